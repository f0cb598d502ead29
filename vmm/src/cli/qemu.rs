//! `innkeeper qemu`: a machine from a command line of QEMU to its end.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use devices::virtio::options::Pairs;

use super::daemon::{self, Fork, PidFile, Ready};
use super::exit::{self, Failure, host};
use super::run::{Consoles, End, wait_for_end};
use super::starting::Starting;
use super::terminal::RawMode;
use crate::machine::console::Console;
use crate::machine::{Machine, Outcome};
use crate::qemu::board::{Accelerator, MachineType};
use crate::qemu::invocation::{self, Invocation, Monitor, MonitorMode, Request};
use crate::qmp::json::Style;
use crate::qmp::link::Monitors;
use crate::qmp::managed::Managed;
use crate::qmp::server::{Endpoint, Language, MonitorConfig, Server};
use crate::qmp::target::{self, About, Target};
use crate::qtest::{self, Channel, LogTarget, QtestConfig};
use crate::signals::Signals;

/// Names of the program under which it takes QEMU's options.
const NAMES: [&str; 3] = ["qemu-system-x86_64", "qemu-kvm", "kvm"];

/// Was the program called by one of QEMU's names?
pub fn is_called_by(program: &str) -> bool {
    Path::new(program)
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| NAMES.contains(&name))
}

/// Does what the words say. Statuses are QEMU's: 1 for whatever went wrong, 0 for every other end but that of a
/// debug-exit.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let text = |word: OsString| {
        let shown = word.to_string_lossy().into_owned();
        word.into_string()
            .map_err(|_| Failure::Usage(format!("'{shown}' is not UTF-8; rename the file")))
    };
    let words: Result<Vec<_>, _> = words.into_iter().map(text).collect();
    words.and_then(start).unwrap_or_else(|failure| {
        eprintln!("innkeeper: {failure}");
        ExitCode::FAILURE
    })
}

fn start(words: Vec<String>) -> Result<ExitCode, Failure> {
    let invocation = match invocation::parse(words).map_err(|error| Failure::Usage(error.to_string()))? {
        Request::Text(text) => {
            // A reader that has gone is no failure of ours.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return Ok(ExitCode::SUCCESS);
        }
        Request::Machine(invocation) => *invocation,
    };
    for note in &invocation.notes {
        eprintln!("innkeeper: {note}");
    }
    let ready = if invocation.daemonize {
        match daemon::fork().map_err(host("a process in the background"))? {
            Fork::Parent(waiting) => {
                return Ok(if waiting.wait() {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                });
            }
            Fork::Child(ready) => Some(ready),
        }
    } else {
        None
    };
    let pid_file = invocation.pidfile.as_deref().map(|path| {
        PidFile::write(path).map_err(|error| Failure::Usage(format!("-pidfile {}: {error}", path.display())))
    });
    let pid_file = pid_file.transpose()?.map(Arc::new);
    // Before any thread exists, so that all of them leave these signals to this one.
    let signals = Signals::block().map_err(host("signals"))?;
    let written = pid_file.clone();
    let leave = move || written.iter().for_each(|pid_file| pid_file.remove());
    let starting = Starting::watch(&signals, leave).map_err(host("signals"))?;
    match (invocation.accelerator, invocation.machine) {
        (Accelerator::Kvm, MachineType::Pc) => with_kvm(invocation, &signals, starting, ready),
        _ => without_cpus(invocation, &signals, starting, ready),
    }
}

fn with_kvm(
    invocation: Invocation,
    signals: &Signals,
    starting: Starting,
    ready: Option<Ready>,
) -> Result<ExitCode, Failure> {
    let about = about(&invocation);
    let monitors = monitors(&invocation.monitors)?;
    let serial = invocation.serial.as_ref();
    let escapes = serial.is_some_and(|options| options.get("escapes") == Some("on"));
    let devices = invocation.config.devices.iter().map(|device| &device.options);
    let on_terminal = serial
        .into_iter()
        .chain(devices)
        .any(|options| options.get("backend") == Some("stdio"));
    let console = console(serial)?;
    let mut config = invocation.config;
    config.serial_port = serial.is_some();
    let machine = Machine::new(config, console)?;
    let consoles = Consoles::of(machine.inventory());
    consoles.announce();
    let links = Monitors::default();
    let managed = Managed::new(Arc::clone(machine.remote()), about, invocation.backends, &links);
    let target: Arc<dyn Target> = Arc::new(managed);
    let server = Server::start(&monitors, &links, &target).map_err(|error| Failure::Usage(error.to_string()))?;
    // From here on nobody is waited for, and a signal stops the guest. The terminal may have another size by now.
    drop(starting);
    consoles.resize();
    let raw = on_terminal.then(|| RawMode::enter(!escapes)).flatten();
    let guest = machine.start()?;
    if let Some(ready) = ready {
        ready.detach().map_err(host("the background"))?;
    }
    let End { outcome, .. } = wait_for_end(guest, signals, &consoles)?;
    // Clients hear of the end.
    drop(server);
    drop(raw);
    match outcome {
        Outcome::Failed(reason) => Err(Failure::Host(reason)),
        Outcome::DebugExit(_) => Ok(exit::status(&outcome)),
        Outcome::PowerOff | Outcome::Reset | Outcome::TripleFault | Outcome::Quit => Ok(ExitCode::SUCCESS),
    }
}

/// A machine that a test drives, or none at all, for programs that ask what there is.
fn without_cpus(
    invocation: Invocation,
    signals: &Signals,
    starting: Starting,
    ready: Option<Ready>,
) -> Result<ExitCode, Failure> {
    let usage = |error: qtest::ChannelError| Failure::Usage(error.to_string());
    let channel = invocation
        .qtest
        .as_deref()
        .map(Channel::parse)
        .transpose()
        .map_err(usage)?;
    let log = invocation
        .qtest_log
        .as_deref()
        .map_or_else(LogTarget::default, LogTarget::parse);
    let config = QtestConfig {
        about: about(&invocation),
        monitors: monitors(&invocation.monitors)?,
        machine: invocation.config,
        backends: invocation.backends,
        channel,
        log,
    };
    let started = move || {
        drop(starting);
        ready.map_or(Ok(()), Ready::detach)
    };
    qtest::run(config, signals, started).map_err(|error| {
        if error.is_users() {
            Failure::Usage(error.to_string())
        } else {
            Failure::Host(error.to_string())
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What QMP's clients are told of the machine.
fn about(invocation: &Invocation) -> About {
    let config = &invocation.config;
    About {
        name: invocation.name.clone(),
        uuid: invocation.uuid.clone(),
        board: match invocation.machine {
            MachineType::Pc => target::Board::Pc,
            MachineType::None => target::Board::None,
        },
        kvm: invocation.accelerator == Accelerator::Kvm,
        cpu_model: invocation.cpu_model.clone(),
        memory_shared: config.shared_memory,
        memory_backend: invocation.memory_backend.clone(),
        ..About::new(config.cpus, config.memory)
    }
}

fn monitors(monitors: &[Monitor]) -> Result<Vec<MonitorConfig>, Failure> {
    let config = |monitor: &Monitor| {
        let endpoint = endpoint(&monitor.far_end).ok_or_else(|| {
            let far_end = &monitor.far_end;
            Failure::Usage(format!(
                "monitor on {far_end}: use a socket with path= or port=, or stdio"
            ))
        })?;
        Ok(MonitorConfig {
            label: monitor.label.clone(),
            endpoint,
            language: match monitor.mode {
                MonitorMode::Control { pretty: true } => Language::Control(Style::Pretty),
                MonitorMode::Control { pretty: false } => Language::Control(Style::Line),
                MonitorMode::Readline => Language::Lines,
            },
        })
    };
    let reachable = |monitor: &&Monitor| monitor.far_end.get("backend") != Some("null");
    monitors.iter().filter(reachable).map(config).collect()
}

/// Where the client of a monitor with this far end is.
fn endpoint(far_end: &Pairs) -> Option<Endpoint> {
    let wait = far_end.get("wait") != Some("off");
    let server = far_end.get("server") == Some("on");
    match (far_end.get("backend")?, far_end.get("path"), far_end.get("port")) {
        ("stdio", ..) => Some(Endpoint::Stdio),
        ("socket", Some(path), None) if server => Some(Endpoint::UnixServer {
            path: path.into(),
            wait,
        }),
        ("socket", Some(path), None) => Some(Endpoint::UnixClient { path: path.into() }),
        ("socket", None, Some(port)) => {
            let address = format!("{}:{port}", far_end.get("host").unwrap_or("localhost"));
            Some(if server {
                Endpoint::TcpServer { address, wait }
            } else {
                Endpoint::TcpClient { address }
            })
        }
        _ => None,
    }
}

/// The serial port's far end.
fn console(options: Option<&Pairs>) -> Result<Console, Failure> {
    let Some(options) = options else {
        return Ok(Console::none());
    };
    let get = |key| options.get(key);
    let path = || Path::new(get("path").unwrap_or_default());
    let console = match get("backend") {
        Some("stdio") => Console::stdio(get("escapes") == Some("on") && std::io::stdin().is_terminal()),
        Some("pty") => Console::pty(),
        Some("file") if get("append") != Some("on") => Console::file(path()),
        Some("socket") if get("server") == Some("on") && get("path").is_some() => {
            Console::socket(path()).and_then(|console| match get("wait") {
                Some("off") => Ok(console),
                _ => console.wait_for_client(path()),
            })
        }
        Some("socket") if get("path").is_some() => Console::connect(path()),
        Some("null") => Ok(Console::none()),
        _ => {
            return Err(Failure::Usage(format!(
                "-serial ({options}): the serial port leads to stdio, pty, file:PATH, unix:PATH or null; \
                 a virtconsole leads anywhere"
            )));
        }
    };
    let console = console.map_err(|error| Failure::Usage(error.to_string()))?;
    if get("backend") == Some("pty") {
        eprintln!("innkeeper: serial port on {}", console.description());
    }
    Ok(console)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_names_are_known_wherever_the_program_lies() {
        for name in [
            "qemu-system-x86_64",
            "/usr/lib/innkeeper/bin/qemu-system-x86_64",
            "kvm",
            "./qemu-kvm",
        ] {
            assert!(is_called_by(name), "{name}");
        }
        for name in ["innkeeper", "/usr/bin/innkeeper", "", "qemu-system-x86_64/innkeeper"] {
            assert!(!is_called_by(name), "{name}");
        }
    }
}
