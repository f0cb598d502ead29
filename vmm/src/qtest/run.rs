//! A machine without a processor from its configuration to its end.

use std::io;
use std::sync::Arc;

use super::channel::{Channel, ChannelError, LogTarget};
use super::{QtestMachine, serve};
use crate::config::MachineConfig;
use crate::machine::StartError;
use crate::machine::events::Cause;
use crate::qemu::backends::Backends;
use crate::qmp::link::Monitors;
use crate::qmp::managed::Managed;
use crate::qmp::server::{MonitorConfig, ServeError, Server};
use crate::qmp::target::{About, Target};
use crate::signals::Signals;

/// All that a machine without a processor is made of.
#[derive(Debug)]
pub struct QtestConfig {
    /// The machine, apart from its kernel.
    pub machine: MachineConfig,
    /// What QMP's clients are told of it.
    pub about: About,
    /// What devices can refer to.
    pub backends: Backends,
    /// Monitors for QMP.
    pub monitors: Vec<MonitorConfig>,
    /// Where the test is.
    pub channel: Option<Channel>,
    /// Where its requests are logged.
    pub log: LogTarget,
}

/// The machine cannot be had
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The test
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A device, or memory
    #[error(transparent)]
    Start(#[from] StartError),
    /// A monitor
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A thread
    #[error("no thread for the test: {0}")]
    Thread(io::Error),
    /// What is done once it runs
    #[error(transparent)]
    Started(io::Error),
}

impl RunError {
    /// Is it the user's to mend, by another command line or another file?
    pub fn is_users(&self) -> bool {
        match self {
            Self::Channel(_) | Self::Serve(_) => true,
            Self::Start(error) => error.is_users(),
            Self::Thread(_) | Self::Started(_) => false,
        }
    }
}

/// Serves a test and QMP's clients until one of them, or a signal, ends the machine. `started` is called once all
/// connections are there: nobody is waited for from then on.
///
/// # Errors
/// The machine or the connections to it cannot be had.
pub fn run(config: QtestConfig, signals: &Signals, started: impl FnOnce() -> io::Result<()>) -> Result<(), RunError> {
    // First of all: a test that waits for the machine learns at once if the rest fails.
    let connection = config.channel.map(|channel| channel.open(&config.log)).transpose()?;
    let machine = Arc::new(QtestMachine::new(config.about.board, &config.machine)?);
    let remote = Arc::clone(machine.remote());
    let monitors = Monitors::default();
    let managed = Managed::new(Arc::clone(&remote), config.about, config.backends, &monitors);
    let target: Arc<dyn Target> = Arc::new(managed);
    let server = Server::start(&config.monitors, &monitors, &target)?;
    started().map_err(RunError::Started)?;
    remote.start(config.machine.start_paused);
    if let Some(connection) = connection {
        let machine = Arc::clone(&machine);
        let serve = move || {
            // The machine stays when the test goes: QMP's clients may want to look at it.
            if let Err(error) = serve(&machine, connection) {
                tracing::debug!("qtest: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("qtest".into()).spawn(serve);
        thread.map_err(RunError::Thread)?;
    }
    while remote.outcome().is_none() {
        match signals.wait_unless(remote.wake(), || ()) {
            Some(_) => remote.quit(Cause::HostSignal),
            None => machine.attend(),
        }
    }
    drop(server);
    remote.inventory().clear();
    Ok(())
}
