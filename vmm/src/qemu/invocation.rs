//! A whole command line of QEMU, made into a configuration of ours.

use std::path::PathBuf;

use devices::virtio::info::CHILDREN;
use devices::virtio::options::{ConfigError, Pairs, read_number};

use super::args::{Arg, Group, Opt};
use super::backends::Backends;
use super::board::{self, Accelerator, Board, MachineType};
use super::collect::{Collected, MonitorText};
use super::keyval::{Reader, canonical, settled};
use super::lines::{self, Line};
use super::{help, network};
use crate::config::{DEBUG_EXIT_PORT, DeviceConfig, MachineConfig};

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// A machine.
    Machine(Box<Invocation>),
    /// A text on standard output, and nothing else.
    Text(String),
}

/// How a monitor speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MonitorMode {
    /// QMP.
    Control {
        /// Answers are indented.
        pretty: bool,
    },
    /// Commands for people.
    Readline,
}

/// A monitor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Monitor {
    /// The name of its character device.
    pub label: String,
    /// The options of its far end ([`devices::chardev`]).
    pub far_end: Pairs,
    /// How it speaks.
    pub mode: MonitorMode,
}

/// A machine as a command line of QEMU asks for it.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The machine.
    pub config: MachineConfig,
    /// Which of QEMU's machines it is.
    pub machine: MachineType,
    /// Who runs the CPUs.
    pub accelerator: Accelerator,
    /// The CPU's model, `host` or `max`.
    pub cpu_model: String,
    /// The object that guest memory comes from.
    pub memory_backend: Option<String>,
    /// What devices refer to, and those that come later may.
    pub backends: Backends,
    /// The far end of the serial port; nothing reads or writes it without one.
    pub serial: Option<Pairs>,
    /// Monitors.
    pub monitors: Vec<Monitor>,
    /// Where a test is, and its log.
    pub qtest: Option<String>,
    /// The log of the test.
    pub qtest_log: Option<String>,
    /// The user's name for the machine.
    pub name: Option<String>,
    /// Its UUID, in the usual spelling.
    pub uuid: Option<String>,
    /// Gets the number of the process.
    pub pidfile: Option<PathBuf>,
    /// The process goes to the background.
    pub daemonize: bool,
    /// What the user is to be told, a line each.
    pub notes: Vec<String>,
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Request, ConfigError> {
    let mut collected = Collected::from_words(words)?;
    if let Some(text) = help::asked_for(&collected) {
        return Ok(Request::Text(text));
    }
    let mut backends = backends(&mut collected)?;
    let board = board::read(&mut collected, &backends)?;
    backends.cpus = board.cpus;
    Builder {
        collected,
        board,
        backends,
        devices: Vec::new(),
        old_cards: Vec::new(),
        old_networks: Vec::new(),
    }
    .build()
    .map(|invocation| Request::Machine(Box::new(invocation)))
}

/// Everything that others refer to. Of kinds that refer to each other, each comes after what it refers to; of one
/// kind, in the user's order.
fn backends(collected: &mut Collected) -> Result<Backends, ConfigError> {
    let mut backends = Backends::default();
    for object in collected.of(Group::Object) {
        backends.add_object(object.clone())?;
    }
    for chardev in collected.of(Group::Chardev) {
        backends.add_chardev(chardev.clone())?;
    }
    for blockdev in collected.of(Group::Blockdev) {
        backends.add_blockdev(blockdev.clone())?;
    }
    for netdev in collected.of(Group::Netdev) {
        backends.add_netdev(netdev.clone())?;
    }
    for [driver, property, value] in &collected.globals {
        if let Some(note) = backends.check_global(driver, property, value)? {
            collected.notes.push(note);
        }
        backends.add_global(driver, property, value);
    }
    Ok(backends)
}

struct Builder {
    collected: Collected,
    board: Board,
    backends: Backends,
    devices: Vec<DeviceConfig>,
    /// The cards of `-net nic`.
    old_cards: Vec<Pairs>,
    /// The other `-net` options.
    old_networks: Vec<Pairs>,
}

impl Builder {
    fn build(mut self) -> Result<Invocation, ConfigError> {
        for arg in std::mem::take(&mut self.collected.small) {
            self.small(&arg)?;
        }
        self.join_old_networks()?;
        self.nics()?;
        let drives = self.drives()?;
        let debug_exit = self.devices()?;
        self.devices.extend(drives);
        let mut monitors = Vec::new();
        self.monitors(&mut monitors)?;
        let serial = self.serial(&monitors)?;
        Self::readline(&mut monitors, serial.as_ref());
        let mut config = match self.collected.kernel.take() {
            Some(kernel) => MachineConfig::new(kernel),
            None => MachineConfig::without_kernel(),
        };
        config.initrd = self.collected.initrd.take().map(PathBuf::from);
        config.command_line = self.collected.append.take().unwrap_or_default();
        config.cpus = self.board.cpus;
        config.memory = self.board.memory;
        config.shared_memory = self.board.shared;
        config.debug_exit = debug_exit;
        config.io_threads = self.io_threads();
        self.bios(config.kernel.is_some())?;
        self.needs_kernel(&config)?;
        if config.kernel.is_none() && (config.initrd.is_some() || !config.command_line.is_empty()) {
            return Err(ConfigError::refused(
                "-initrd, -append",
                "they belong to a kernel",
                "add -kernel FILE",
            ));
        }
        self.actions(&mut config)?;
        config.start_paused = self.collected.paused;
        config.reset_at_triple_fault = true;
        let uuid = self.collected.uuid.take();
        self.firmware(&mut config, uuid.as_deref())?;
        config
            .validate()
            .map_err(|error| ConfigError::refused("-m", error, "see -help"))?;
        config.devices = self.devices;
        let mut notes = self.collected.notes;
        notes.extend(self.board.notes);
        Ok(Invocation {
            config,
            machine: self.board.machine,
            accelerator: self.board.accelerator,
            cpu_model: self.board.cpu_model,
            memory_backend: self.board.backend,
            backends: self.backends,
            serial,
            monitors,
            qtest: self.collected.qtest,
            qtest_log: self.collected.qtest_log,
            name: name(self.collected.name)?,
            uuid,
            pidfile: self.collected.pidfile.map(PathBuf::from),
            daemonize: self.collected.daemonize,
            notes,
        })
    }

    /// `-nic`: cards that stand before those of `-device`.
    fn nics(&mut self) -> Result<(), ConfigError> {
        let nics: Vec<_> = self.collected.of(Group::Nic).cloned().collect();
        for (index, pairs) in nics.into_iter().enumerate() {
            let Some((mut netdev, mut card)) = network::nic(pairs)? else {
                continue;
            };
            let id = netdev.take("id").unwrap_or_else(|| format!("nic{index}"));
            netdev.push("id", id.as_str());
            self.backends.add_netdev(netdev)?;
            card.push("netdev", id);
            self.devices.push(self.backends.resolve("virtio-net-pci", card)?);
        }
        Ok(())
    }

    /// `-drive`; those with `if=virtio` are devices too, which stand behind those of `-device`.
    fn drives(&mut self) -> Result<Vec<DeviceConfig>, ConfigError> {
        let drives: Vec<_> = self.collected.of(Group::Drive).cloned().collect();
        let mut devices = Vec::new();
        for (index, mut pairs) in drives.into_iter().enumerate() {
            let interface = pairs.take("if");
            let virtio = match interface.as_deref() {
                Some("none") => false,
                Some("virtio") => true,
                other => {
                    let what = other.unwrap_or("ide, which is meant without if=");
                    let expected = "virtio, or none with -device virtio-blk-pci: there are no other controllers";
                    return Err(Reader::new("-drive", pairs).invalid("if", what, expected));
                }
            };
            let id = pairs
                .take("id")
                .unwrap_or_else(|| format!("{}{index}", if virtio { "virtio" } else { "none" }));
            pairs.push("id", id.as_str());
            self.backends.add_drive(pairs)?;
            if virtio {
                let device = [("drive", id)].into_iter().collect();
                devices.push(self.backends.resolve("virtio-blk-pci", device)?);
            }
        }
        Ok(devices)
    }

    /// `-device`; what sits on another device's bus comes after all others. Answers with the port of a debug-exit.
    fn devices(&mut self) -> Result<Option<u16>, ConfigError> {
        let mut debug_exit = None;
        let mut used: Vec<(&'static str, String)> = Vec::new();
        let all: Vec<_> = self.collected.of(Group::Device).cloned().collect();
        let is_child = |pairs: &Pairs| CHILDREN.iter().any(|child| pairs.get("driver") == Some(child.name));
        let (children, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_child);
        for mut pairs in others.into_iter().chain(children) {
            let driver = pairs.take("driver").ok_or_else(|| {
                ConfigError::refused(
                    "-device",
                    "no driver is named",
                    "write -device NAME,KEY=VALUE; -device help lists names",
                )
            })?;
            if driver == "isa-debug-exit" {
                debug_exit = Some(debug_exit_port(pairs)?);
                continue;
            }
            if self.board.machine == MachineType::None {
                return Err(ConfigError::refused(
                    format_args!("-device {driver}"),
                    "a machine of type none has no bus",
                    "use -M pc",
                ));
            }
            once(&driver, &pairs, &mut used)?;
            self.devices.push(self.backends.resolve(&driver, pairs)?);
        }
        Ok(debug_exit)
    }

    fn io_threads(&self) -> Vec<String> {
        let threads = self
            .backends
            .objects
            .iter()
            .filter(|(_, object)| object.get("qom-type") == Some("iothread"));
        threads.map(|(name, _)| name.clone()).collect()
    }

    /// `-mon`, `-qmp`, `-monitor`.
    fn monitors(&mut self, monitors: &mut Vec<Monitor>) -> Result<(), ConfigError> {
        let mons: Vec<_> = self.collected.of(Group::Mon).cloned().collect();
        for pairs in mons {
            let mut reader = Reader::new("-mon", pairs);
            let id = reader.required("chardev", "the id of a -chardev")?;
            let pretty = reader.flag("pretty")?.unwrap_or(false);
            let mode = match reader.text("mode").as_deref() {
                Some("control") => MonitorMode::Control { pretty },
                None | Some("readline") => MonitorMode::Readline,
                Some(other) => return Err(reader.invalid("mode", other, "control|readline")),
            };
            reader.text("id");
            reader.finish()?;
            let far_end = self.far_end("-mon", &id)?;
            monitors.push(Monitor {
                label: id,
                far_end,
                mode,
            });
        }
        for (index, MonitorText { option, place }) in
            std::mem::take(&mut self.collected.monitors).into_iter().enumerate()
        {
            let mode = match option {
                "-qmp" => MonitorMode::Control { pretty: false },
                "-qmp-pretty" => MonitorMode::Control { pretty: true },
                _ => MonitorMode::Readline,
            };
            let (label, far_end) = match lines::short(option, &place)? {
                Line::None => continue,
                Line::Chardev(id) => (id.clone(), self.far_end(option, &id)?),
                // The name that QEMU gives it.
                Line::Own(options) => (format!("compat_monitor{index}"), options),
            };
            monitors.push(Monitor { label, far_end, mode });
        }
        Ok(())
    }

    /// A monitor for people that would share the terminal with the serial port is not there: the keys are the port's.
    fn readline(monitors: &mut Vec<Monitor>, serial: Option<&Pairs>) {
        monitors.retain(|monitor| monitor.mode != MonitorMode::Readline || Some(&monitor.far_end) != serial);
    }

    fn far_end(&self, subject: &str, id: &str) -> Result<Pairs, ConfigError> {
        self.backends.chardevs.get(id).cloned().ok_or_else(|| {
            ConfigError::refused(
                subject,
                format_args!("chardev {id}: there is none of that name"),
                format_args!("add -chardev ...,id={id}"),
            )
        })
    }

    /// The one serial port. Without a word of the user it leads to this terminal, unless somebody else is there or
    /// the user wants neither windows nor defaults.
    fn serial(&mut self, monitors: &[Monitor]) -> Result<Option<Pairs>, ConfigError> {
        let serials = std::mem::take(&mut self.collected.serials);
        let mut ports = serials.iter().map(|text| lines::short("-serial", text));
        let first = ports.next().transpose()?;
        for other in ports {
            if other? != Line::None {
                return Err(ConfigError::refused(
                    "-serial",
                    "there is one serial port",
                    "use -device virtconsole for others",
                ));
            }
        }
        match first {
            Some(Line::None) => Ok(None),
            Some(Line::Chardev(id)) => self.far_end("-serial", &id).map(Some),
            Some(Line::Own(options)) => Ok(Some(options)),
            None => {
                let quiet = self.collected.no_defaults
                    || self.collected.daemonize
                    || (self.collected.no_display && !self.collected.no_graphic)
                    || self.board.accelerator == Accelerator::Qtest;
                let stdio = |pairs: &Pairs| pairs.get("backend") == Some("stdio");
                let taken = monitors.iter().any(|monitor| stdio(&monitor.far_end))
                    || self.backends.chardevs.values().any(stdio);
                let options = [("backend", "stdio"), ("escapes", "on")];
                Ok((!quiet && !taken).then(|| options.into_iter().collect()))
            }
        }
    }

    /// `-bios`: what SeaBIOS and qboot do with `-kernel` is done here.
    fn bios(&mut self, kernel: bool) -> Result<(), ConfigError> {
        let Some(bios) = self.collected.bios.take() else {
            return Ok(());
        };
        let name = bios.rsplit('/').next().unwrap_or_default();
        let plain = name.starts_with("bios") || name.starts_with("qboot") || name.starts_with("seabios");
        if !plain || !kernel {
            return Err(ConfigError::refused(
                format_args!("-bios {bios}"),
                "there is no firmware here",
                "leave it out, and name the kernel that is to boot with -kernel",
            ));
        }
        self.collected
            .notes
            .push(format!("-bios {bios}: the kernel is started without it"));
        Ok(())
    }

    /// A machine that is to run needs something to run.
    fn needs_kernel(&self, config: &MachineConfig) -> Result<(), ConfigError> {
        let runs = self.board.accelerator == Accelerator::Kvm && self.board.machine == MachineType::Pc;
        if runs && config.kernel.is_none() {
            return Err(ConfigError::refused(
                "-kernel",
                "none is named, and there is no firmware that would look for one on a disk",
                "add -kernel FILE, and -append 'root=/dev/vda1 ...' for a disk with one",
            ));
        }
        Ok(())
    }

    /// `-action`, `-no-reboot`, `-no-shutdown`.
    fn actions(&mut self, config: &mut MachineConfig) -> Result<(), ConfigError> {
        let mut reader = Reader::new("-action", std::mem::take(&mut self.collected.actions));
        config.end_at_reset = match reader.text("reboot").as_deref() {
            None | Some("reset") => false,
            Some("shutdown") => true,
            Some(other) => return Err(reader.invalid("reboot", other, "reset|shutdown")),
        };
        config.keep_at_shutdown = match reader.text("shutdown").as_deref() {
            None | Some("poweroff") => false,
            Some("pause") => true,
            Some(other) => return Err(reader.invalid("shutdown", other, "poweroff|pause")),
        };
        // No device here tells of a panic, and none is a watchdog.
        reader.settle(&[
            settled("panic", &["pause", "shutdown", "exit-failure", "none"], "one of these"),
            settled("watchdog", &[], ""),
        ])?;
        reader.finish()
    }

    /// What firmware is told, where a test asks for it.
    fn firmware(&mut self, config: &mut MachineConfig, uuid: Option<&str>) -> Result<(), ConfigError> {
        let mut reader = Reader::new("-boot", std::mem::take(&mut self.collected.boot));
        let firmware = &mut config.firmware;
        firmware.no_graphic = self.collected.no_graphic;
        firmware.boot_menu = reader.flag("menu")?.unwrap_or(false);
        if let Some(text) = reader.text("reboot-timeout") {
            let timeout = text
                .parse()
                .map_err(|_| reader.invalid("reboot-timeout", &text, "a number from -1 to 65535"))?;
            firmware.reboot_timeout = Some(timeout);
        }
        if let Some(time) = reader.number("splash-time")? {
            let fits = u16::try_from(time)
                .map_err(|_| reader.invalid("splash-time", &time.to_string(), "a number up to 65535"))?;
            firmware.splash_time = Some(fits);
        }
        // Letters of drives, and a picture: with a kernel, QEMU's firmware does not look at them either.
        reader.settle(&[
            settled("order", &[], ""),
            settled("once", &[], ""),
            settled("splash", &[], ""),
            settled("strict", &[], ""),
        ])?;
        reader.finish()?;
        if let Some(text) = uuid {
            firmware.uuid = uuid_bytes(text).ok_or_else(|| {
                ConfigError::refused(
                    format_args!("-uuid {text}"),
                    "this is not a UUID",
                    "write 8-4-4-4-12 hexadecimal digits",
                )
            })?;
        }
        Ok(())
    }

    /// `-net`, the old way: one `nic,model=virtio` and one network make a `-nic`.
    fn net(&mut self, value: &str) -> Result<(), ConfigError> {
        let mut pairs = Pairs::parse(value, Some("type"));
        match pairs.get("type") {
            Some("none") => {}
            Some("nic") => {
                pairs.take("type");
                self.old_cards.push(pairs);
            }
            _ => self.old_networks.push(pairs),
        }
        Ok(())
    }

    /// Joins what the `-net` options asked for. QEMU puts all of them on one hub; with one of each that is a cable.
    fn join_old_networks(&mut self) -> Result<(), ConfigError> {
        let refused = |problem: &str| {
            let remedy = "write -nic TYPE,model=virtio-net-pci for each card";
            Err(ConfigError::refused("-net", problem, remedy))
        };
        match (self.old_cards.len(), self.old_networks.len()) {
            (0, 0) => Ok(()),
            (1, 1) => {
                let mut pairs = std::mem::take(&mut self.old_networks)
                    .into_iter()
                    .chain(self.old_cards.drain(..));
                let mut nic = pairs.next().unwrap_or_default();
                nic.extend(pairs.flatten());
                self.collected.groups.push((Group::Nic, nic));
                Ok(())
            }
            (_, 0) => refused("there is a card without a network"),
            (0, _) => refused("there is a network without a card"),
            _ => refused("there are several cards, or several networks"),
        }
    }

    /// Options of which there is little to say.
    fn small(&mut self, arg: &Arg) -> Result<(), ConfigError> {
        let value = arg.value.as_str();
        let none = |what: &str| match value {
            "none" => Ok(()),
            _ => Err(ConfigError::refused(
                format_args!("{} {value}", arg.name),
                what,
                format_args!("write {} none", arg.name),
            )),
        };
        let displays = "there are no displays; -serial and virtconsole are text";
        let plain = |table: &[super::keyval::Settled], implied| {
            let mut reader = Reader::new(arg.name.as_str(), Pairs::parse(value, implied));
            reader.settle(table)?;
            reader.finish()
        };
        match arg.option {
            Opt::Display => {
                self.collected.no_display = true;
                none(displays)
            }
            Opt::Vga | Opt::Vnc => none(displays),
            Opt::Parallel => none("there is no parallel port"),
            Opt::Net => self.net(value),
            Opt::Audiodev => plain(
                &[
                    settled("driver", &["none"], "there is no sound"),
                    settled("id", &[], ""),
                ],
                Some("driver"),
            ),
            Opt::Echr => match read_number(value) {
                Some(1) => Ok(()),
                _ => Err(ConfigError::refused(
                    format_args!("-echr {value}"),
                    "the escape is Ctrl-A",
                    "write -echr 1",
                )),
            },
            Opt::Rtc => plain(
                &[
                    settled("base", &["utc"], "the clock has UTC"),
                    settled("clock", &["host"], "the clock is the host's"),
                    settled("driftfix", &["none", "slew"], "ticks are KVM's"),
                ],
                None,
            ),
            Opt::Overcommit => plain(
                &[
                    settled(
                        "mem-lock",
                        &["off"],
                        "start the process with locked memory (systemd-run -p LimitMEMLOCK=)",
                    ),
                    settled("cpu-pm", &["off"], "an idle CPU goes back to the host"),
                ],
                None,
            ),
            Opt::RunWith => plain(&[settled("async-teardown", &[], "")], None),
            Opt::Sandbox => {
                if value.split(',').next().map(canonical) == Some("on") {
                    self.collected.notes.push(
                        "-sandbox on: there is no system call filter yet; the machine runs without one".to_owned(),
                    );
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Sees that no two devices have the same backend.
fn once(driver: &str, pairs: &Pairs, used: &mut Vec<(&'static str, String)>) -> Result<(), ConfigError> {
    for key in ["drive", "netdev", "chardev"] {
        let Some(id) = pairs.get(key) else { continue };
        if used.iter().any(|(other, name)| *other == key && name == id) {
            return Err(ConfigError::refused(
                driver,
                format_args!("{key}={id} is another device's already"),
                "give each its own",
            ));
        }
        used.push((key, id.to_owned()));
    }
    Ok(())
}

/// `-device isa-debug-exit`: its port. A write to any of its ports ends the machine in QEMU, and the first is what
/// everybody uses.
fn debug_exit_port(pairs: Pairs) -> Result<u16, ConfigError> {
    let mut reader = Reader::new("isa-debug-exit", pairs);
    let port = reader.number("iobase")?.unwrap_or(u64::from(DEBUG_EXIT_PORT));
    if let Some(size) = reader.number("iosize")?.filter(|size| !(1..=8).contains(size)) {
        return Err(reader.invalid("iosize", &size.to_string(), "a number from 1 to 8"));
    }
    reader.text("id");
    let wide = port.to_string();
    let port = u16::try_from(port).map_err(|_| reader.invalid("iobase", &wide, "a port from 0 to 0xffff"));
    reader.finish()?;
    port
}

/// `-name [guest=]NAME,process=NAME,debug-threads=on|off`.
fn name(pairs: Pairs) -> Result<Option<String>, ConfigError> {
    let mut reader = Reader::new("-name", pairs);
    let name = reader.text("guest");
    reader.settle(&[
        settled("process", &[], ""),
        settled("debug-threads", &[], "threads have names"),
    ])?;
    reader.finish()?;
    Ok(name)
}

/// The bytes of a UUID, in the order of its digits.
fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<_> = text.split('-').collect();
    let right = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    let digits = groups.concat();
    let hex = digits.chars().all(|digit| digit.is_ascii_hexdigit());
    (right && hex)
        .then(|| u128::from_str_radix(&digits, 16).ok())?
        .map(u128::to_be_bytes)
}
