//! A machine without a processor from its configuration to its end.

use std::sync::Arc;

use super::channel::{Channel, ChannelError, LogTarget};
use super::{QtestMachine, serve};
use crate::config::MachineConfig;
use crate::machine::StartError;
use crate::qemu::backends::Backends;
use crate::qmp::event::ShutdownCause;
use crate::qmp::link::Monitors;
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
    /// Signals or a thread
    #[error("{what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Serves a test and QMP's clients until one of them, or a signal, ends the machine.
///
/// # Errors
/// The machine or the connections to it cannot be had.
pub fn run(config: QtestConfig) -> Result<(), RunError> {
    let host = |what| move |source| RunError::Host { what, source };
    // Before any thread exists, so that all of them leave these signals to this one.
    let signals = Signals::block().map_err(host("signals"))?;
    // First of all: a test that waits for the machine learns at once if the rest fails.
    let connection = config.channel.map(|channel| channel.open(&config.log)).transpose()?;
    let monitors = Monitors::default();
    let machine = QtestMachine::new(&config.machine, config.about, config.backends, monitors.clone())?;
    let machine = Arc::new(machine);
    let target: Arc<dyn Target> = Arc::clone(&machine) as _;
    let server = Server::start(&config.monitors, &monitors, &target)?;
    if let Some(connection) = connection {
        let machine = Arc::clone(&machine);
        let serve = move || {
            // The machine stays when the test goes: QMP's clients may want to look at it.
            if let Err(error) = serve(&machine, connection) {
                tracing::debug!("qtest: {error}");
            }
        };
        std::thread::Builder::new()
            .name("qtest".into())
            .spawn(serve)
            .map_err(host("thread for the test"))?;
    }
    if signals.wait_unless(machine.ended()).is_some() {
        machine.end(ShutdownCause::HostSignal);
    }
    drop(server);
    machine.inventory().clear();
    Ok(())
}
