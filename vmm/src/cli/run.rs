//! `innkeeper run`: a guest from the command line to its end.

use std::process::ExitCode;
use std::sync::Arc;

use devices::virtio::console::{PortKind, SerialControl};

use super::exit::{self, Failure, host};
use super::starting::Starting;
use super::terminal::{self, RawMode};
use super::{RunArgs, SerialTarget, ports};
use crate::config::{DeviceConfig, MachineConfig};
use crate::machine::console::Console;
use crate::machine::inventory::Inventory;
use crate::machine::{Machine, Outcome, Running, Stats, serial_buses};
use crate::qemu::backends::Backends;
use crate::qmp::json::Style;
use crate::qmp::link::Monitors;
use crate::qmp::managed::Managed;
use crate::qmp::server::{Endpoint, Language, MonitorConfig, Server};
use crate::qmp::target::{About, Target};
use crate::signals::Signals;

/// Launches the guest and waits for its end.
pub fn run(mut args: Box<RunArgs>) -> Result<ExitCode, Failure> {
    let stats_wanted = args.stats;
    let on_terminal = args.has_terminal();
    let on_stdio = args.serial() == SerialTarget::Stdio;
    let endpoints = std::mem::take(&mut args.qmp);
    if on_terminal && endpoints.contains(&Endpoint::Stdio) {
        let problem = "--qmp stdio: a console is on standard input and output already; lead that elsewhere, or use --qmp unix:PATH";
        return Err(Failure::Usage(problem.into()));
    }
    let about = About::new(args.cpus, args.memory);
    let (config, serial) = resolve(*args)?;
    if !on_stdio && serial.description() != "none" {
        eprintln!("innkeeper: serial port on {}", serial.description());
    }
    // Before any thread exists, so that all of them leave these signals to this one.
    let signals = Signals::block().map_err(host("signals"))?;
    let starting = Starting::watch(&signals, || ()).map_err(host("signals"))?;
    let machine = Machine::new(config, serial)?;
    let consoles = Consoles::of(machine.inventory());
    consoles.announce();
    let monitors = serve_qmp(endpoints, about, &machine)?;
    // From here on nobody is waited for, and a signal stops the guest. The terminal may have another size by now.
    drop(starting);
    consoles.resize();
    let raw = on_terminal.then(|| RawMode::enter(false)).flatten();
    let guest = machine.start()?;

    let End { signal, outcome, stats } = wait_for_end(guest, &signals, &consoles)?;
    // Clients hear of the end.
    drop(monitors);
    drop(raw);

    if stats_wanted {
        eprintln!("{stats}");
    }
    match (signal, outcome) {
        (Some(signal), Outcome::Quit) => Ok(ExitCode::from(exit::of_signal(signal))),
        (_, Outcome::Failed(reason)) => Err(Failure::Host(reason)),
        (_, outcome) => {
            if let Some(note) = note(&outcome) {
                eprintln!("innkeeper: {note}");
            }
            Ok(exit::status(&outcome))
        }
    }
}

/// How it went.
pub(super) struct End {
    /// The signal that stopped the guest, if one did.
    pub(super) signal: Option<i32>,
    pub(super) outcome: Outcome,
    pub(super) stats: Stats,
}

/// Waits until the guest ends, or a signal says to stop it.
pub(super) fn wait_for_end(guest: Running, signals: &Signals, consoles: &Consoles) -> Result<End, Failure> {
    let ended = guest.ended().map_err(host("event descriptor"))?;
    let signal = signals.wait_unless(&ended, || consoles.resize());
    if signal.is_some() {
        guest.stop();
    }
    let (outcome, stats) = guest.wait();
    Ok(End { signal, outcome, stats })
}

/// Lets programs watch and steer the machine.
fn serve_qmp(endpoints: Vec<Endpoint>, about: About, machine: &Machine) -> Result<Option<Server>, Failure> {
    if endpoints.is_empty() {
        return Ok(None);
    }
    let config = |(index, endpoint)| MonitorConfig {
        label: format!("qmp{index}"),
        endpoint,
        language: Language::Control(Style::Line),
    };
    let configs: Vec<_> = endpoints.into_iter().enumerate().map(config).collect();
    let monitors = Monitors::default();
    let managed = Managed::new(Arc::clone(machine.remote()), about, Backends::default(), &monitors);
    let target: Arc<dyn Target> = Arc::new(managed);
    let server = Server::start(&configs, &monitors, &target);
    server.map(Some).map_err(|error| Failure::Usage(error.to_string()))
}

/// What a user would wonder about.
fn note(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::TripleFault => Some("the guest ended in a triple fault"),
        Outcome::Reset => Some("the guest reset itself, and --no-reboot says to end there"),
        _ => None,
    }
}

fn resolve(args: RunArgs) -> Result<(MachineConfig, Console), Failure> {
    let devices = devices(&args);
    let (serial, hvc) = (args.serial(), !args.console.is_empty());
    let mut config = MachineConfig::new(args.kernel).cpus(args.cpus).memory(args.memory);
    config.initrd = args.initrd;
    let named_console = match serial {
        SerialTarget::None => hvc.then_some("hvc0"),
        _ => Some("ttyS0"),
    };
    config.command_line = with_console(args.append, named_console);
    config.end_at_reset = args.no_reboot;
    config.debug_exit = args.debug_exit;
    config.pci_resources = args.pci_resources.into();
    config.io_threads = args.iothread;
    config.devices = devices;
    config.serial_port = serial != SerialTarget::None;
    config.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    let serial = match serial {
        SerialTarget::Stdio => Console::stdio(stdio_is_terminal()),
        SerialTarget::None => Ok(Console::none()),
        SerialTarget::Pty => Console::pty(),
        SerialTarget::File(path) => Console::file(&path),
        SerialTarget::Socket(path) => Console::socket(&path),
    };
    Ok((config, serial.map_err(|error| Failure::Usage(error.to_string()))?))
}

/// Disks first, then network cards, sources of random numbers, the balloon, and what was named by its name: the order of their slots.
fn devices(args: &RunArgs) -> Vec<DeviceConfig> {
    let short = |name, implied| move |options: &String| DeviceConfig::parse(name, options, implied);
    let named = args.device.iter().map(|text| {
        let (name, options) = text.split_once(',').unwrap_or((text, ""));
        DeviceConfig::parse(name, options, None)
    });
    let disks = args.disk.iter().map(|text| disk(text));
    let short = disks
        .chain(args.net.iter().map(short("virtio-net-pci", None)))
        .chain(args.rng.iter().map(short("virtio-rng-pci", None)))
        .chain(args.balloon.iter().map(short("virtio-balloon-pci", None)));
    let mut devices: Vec<_> = short.collect();
    let first_named = devices.len();
    devices.extend(named);
    ports::add_to(
        &mut devices,
        first_named,
        &args.console,
        &args.port,
        stdio_is_terminal(),
    );
    devices
}

/// A disk of our own, or of another process.
fn disk(text: &str) -> DeviceConfig {
    let mut device = DeviceConfig::parse("virtio-blk-pci", text, Some("path"));
    if device.options.get("vhost-user").is_some() {
        device.name = "vhost-user-blk-pci".to_owned();
    }
    device
}

fn stdio_is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdin())
}

/// The command line, with the console `name` when there is one and the user named none.
fn with_console(mut command_line: String, name: Option<&str>) -> String {
    let named = command_line.split_whitespace().any(|word| word.starts_with("console="));
    if let Some(name) = name.filter(|_| !named) {
        if !command_line.is_empty() {
            command_line.push(' ');
        }
        command_line.push_str("console=");
        command_line.push_str(name);
    }
    command_line
}

/// The consoles and ports of the machine, for the user.
pub(super) struct Consoles(Vec<SerialControl>);

impl Consoles {
    pub(super) fn of(inventory: &Inventory) -> Self {
        Self(serial_buses(inventory).collect())
    }

    /// Says where those lead to that the user cannot know.
    pub(super) fn announce(&self) {
        for (number, port) in self.0.iter().flat_map(SerialControl::ports) {
            if let Some(far) = port.far.filter(|far| far.starts_with("pseudo-terminal")) {
                let name = port.name.or(port.id).unwrap_or_else(|| number.to_string());
                let kind = match port.kind {
                    PortKind::Console => "console",
                    PortKind::Plain => "port",
                };
                eprintln!("innkeeper: {kind} {name} on {far}");
            }
        }
    }

    /// Tells the guest how large the terminal is.
    pub(super) fn resize(&self) {
        let Some(size) = terminal::size() else { return };
        for control in &self.0 {
            let ports = control.ports().into_iter();
            ports
                .filter(|(_, port)| port.on_stdio)
                .for_each(|(number, _)| control.resize(number, size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_added_only_when_none_is_named() {
        assert_eq!(with_console(String::new(), Some("ttyS0")), "console=ttyS0");
        assert_eq!(with_console("quiet".into(), Some("hvc0")), "quiet console=hvc0");
        assert_eq!(
            with_console("console=hvc0 quiet".into(), Some("ttyS0")),
            "console=hvc0 quiet"
        );
        assert_eq!(with_console("quiet".into(), None), "quiet");
    }
}
