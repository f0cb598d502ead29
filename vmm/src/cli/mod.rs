//! The command line: what the user says, made into calls of the library.

mod check;
mod daemon;
mod exit;
mod messages;
mod ports;
mod qemu;
mod run;
mod starting;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use devices::virtio::options::Pairs;

use crate::config::{DEBUG_EXIT_PORT, PciResources, parse_size};
use crate::qmp::server::Endpoint;

/// Runs Linux guests on KVM with the virtio devices that QEMU gives them.
#[derive(Parser)]
#[command(name = "innkeeper", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Launch a guest
    #[command(after_help = exit::HELP)]
    Run(Box<RunArgs>),
    /// Say what this host can do, and what to do about what it cannot
    Check(CheckArgs),
    /// List the devices that a guest can have
    Devices,
    /// Take QEMU's options: innkeeper qemu -- -kernel bzImage -nographic ...
    #[command(disable_help_flag = true)]
    Qemu {
        /// As for qemu-system-x86_64; -help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

/// The options of `innkeeper run`.
#[derive(Args, Debug)]
struct RunArgs {
    /// A Linux kernel: bzImage (any compression) or ELF vmlinux
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line; console=ttyS0, or hvc0, is added when it names no console
    #[arg(
        long,
        value_name = "STRING",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    append: String,
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Guest memory: a number of MiB, or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = |text: &str| parse_size(text))]
    memory: u64,
    /// The first serial port: stdio, none, pty, file=PATH or socket=PATH [default: stdio, or none with --console stdio]
    #[arg(long, value_name = "WHERE", value_parser = parse_serial)]
    serial: Option<SerialTarget>,
    /// A console on virtio, /dev/hvc0 in the guest: stdio, null, pty, file=PATH, socket=PATH or fd=N; several times
    #[arg(long, value_name = "WHERE", value_parser = ports::parse_console)]
    console: Vec<Pairs>,
    /// A port, /dev/virtio-ports/NAME in the guest: name=NAME[,socket=PATH|,pty|,file=PATH|,fd=N|,null]; several times
    #[arg(long, value_name = "OPTIONS", value_parser = ports::parse_port)]
    port: Vec<Pairs>,
    /// A reset by the guest ends the process (exit status 3)
    #[arg(long)]
    no_reboot: bool,
    /// A port whose write ends the process with status (value << 1) | 1 [default port: 0x501]
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, value_parser = parse_port,
          default_missing_value = "0x501")]
    debug_exit: Option<u16>,
    /// A disk: path=FILE or null-co://, format=raw|qcow2 and more, or vhost-user=SOCKET, see 'innkeeper devices'; in the order of slots, several times
    #[arg(long, value_name = "OPTIONS")]
    disk: Vec<String>,
    /// A network card and what it is plugged into: user, tap=NAME, tap-fd=N[,N...], socket=listen:ADDR|connect:ADDR|fd=N, dgram=ADDR,remote=ADDR,
    /// hub=N, vhost-user=SOCKET or none; mac=, queues=, vhost=, capture=FILE and more, see 'innkeeper devices'; in the order of slots,
    /// several times
    #[arg(long, value_name = "OPTIONS")]
    net: Vec<String>,
    /// A source of random numbers; see 'innkeeper devices' for its options
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    rng: Vec<String>,
    /// A balloon, which takes memory from the guest: target=256M (bytes without a letter), free-page-reporting=on and more, see 'innkeeper devices'
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    balloon: Option<String>,
    /// Any device by its name in 'innkeeper devices', with its options: NAME[,key=value...]; several times
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// An I/O thread for devices to run on; several times
    #[arg(long, value_name = "NAME")]
    iothread: Vec<String>,
    /// A monitor for programs that speak QMP: unix:PATH, to which they connect, or stdio; several times
    #[arg(long, value_name = "WHERE", value_parser = parse_qmp)]
    qmp: Vec<Endpoint>,
    /// Who places the BARs of PCI devices: firmware (before the kernel starts) or guest
    #[arg(long, value_name = "WHO", value_enum, default_value_t)]
    pci_resources: ResourcesArg,
    /// Print what the run cost when it ends: exits by kind and device, interrupts, times
    #[arg(long)]
    stats: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// Print key=value lines for programs
    #[arg(long)]
    machine_readable: bool,
}

#[derive(Clone, Copy, ValueEnum, Default, Debug)]
enum ResourcesArg {
    #[default]
    Firmware,
    Guest,
}

impl From<ResourcesArg> for PciResources {
    fn from(arg: ResourcesArg) -> Self {
        match arg {
            ResourcesArg::Firmware => Self::Firmware,
            ResourcesArg::Guest => Self::Guest,
        }
    }
}

impl RunArgs {
    /// Where the serial port leads to.
    fn serial(&self) -> SerialTarget {
        let taken = self.console.iter().any(ports::is_stdio);
        let default = if taken { SerialTarget::None } else { SerialTarget::Stdio };
        self.serial.clone().unwrap_or(default)
    }

    /// Whether the guest has this process' terminal, if there is one.
    fn has_terminal(&self) -> bool {
        self.serial() == SerialTarget::Stdio || self.console.iter().any(ports::is_stdio)
    }
}

/// Where a serial port leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum SerialTarget {
    Stdio,
    None,
    Pty,
    File(PathBuf),
    Socket(PathBuf),
}

fn parse_serial(text: &str) -> Result<SerialTarget, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(SerialTarget::Stdio),
        None if text == "none" => Ok(SerialTarget::None),
        None if text == "pty" => Ok(SerialTarget::Pty),
        Some(("file", path)) if !path.is_empty() => Ok(SerialTarget::File(path.into())),
        Some(("socket", path)) if !path.is_empty() => Ok(SerialTarget::Socket(path.into())),
        _ => Err("use stdio, none, pty, file=PATH or socket=PATH".into()),
    }
}

fn parse_qmp(text: &str) -> Result<Endpoint, String> {
    match text.split_once(':') {
        None if text == "stdio" => Ok(Endpoint::Stdio),
        Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::UnixServer {
            path: path.into(),
            wait: false,
        }),
        _ => Err("use unix:PATH or stdio".into()),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("not a port; write a number from 0 to 0xffff, such as {DEBUG_EXIT_PORT:#x}"))
}

/// The whole program: reads the arguments of the process, does what they say, and answers with the documented exit status.
pub fn main() -> ExitCode {
    terminal::restore_on_panic();
    messages::show();
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    if qemu::is_called_by(&program.to_string_lossy()) {
        return qemu::run(words);
    }
    let result = match Cli::try_parse() {
        Ok(Cli {
            command: Command::Run(args),
        }) => run::run(args),
        Ok(Cli {
            command: Command::Check(args),
        }) => Ok(check::check(args.machine_readable)),
        Ok(Cli {
            command: Command::Devices,
        }) => Ok(devices()),
        Ok(Cli {
            command: Command::Qemu { options },
        }) => Ok(qemu::run(options)),
        Err(error) if error.use_stderr() => Err(exit::Failure::Usage(one_line(&error))),
        Err(help) => {
            // Help goes to standard output; a reader that has gone is no failure of ours.
            let _ = help.print();
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|failure| {
        eprintln!("innkeeper: {failure}");
        failure.exit_code()
    })
}

/// What clap says in a paragraph, in one line: the error, then its tips.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let sentences = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(|line| {
            line.strip_prefix("error: ")
                .or_else(|| line.strip_prefix("tip: "))
                .unwrap_or(line)
        });
    let line = sentences.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    if line.is_empty() {
        Cli::command().render_usage().to_string()
    } else {
        line
    }
}

fn devices() -> ExitCode {
    for row in crate::machine::FIXED_FUNCTIONS {
        println!("{row}");
    }
    println!("\n{}", devices::virtio::info::Table);
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn run_args(args: &[&str]) -> Result<RunArgs, String> {
        let all = ["innkeeper", "run"].iter().chain(args);
        match Cli::try_parse_from(all) {
            Ok(Cli {
                command: Command::Run(args),
            }) => Ok(*args),
            Ok(_) => panic!("not run"),
            Err(error) => Err(one_line(&error)),
        }
    }

    #[test]
    fn the_command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_kernel_alone_is_enough() {
        let args = run_args(&["bzImage"]).unwrap();
        assert_eq!(
            (args.cpus, args.memory, args.serial()),
            (1, 512 << 20, SerialTarget::Stdio)
        );
        assert_eq!(args.debug_exit, None);
    }

    #[test]
    fn a_console_on_standard_output_takes_it_from_the_serial_port() {
        let serial = |args: &[&str]| run_args(args).unwrap().serial();
        assert_eq!(serial(&["k", "--console", "stdio"]), SerialTarget::None);
        assert_eq!(serial(&["k", "--console", "pty"]), SerialTarget::Stdio);
        assert_eq!(
            serial(&["k", "--console", "stdio", "--serial", "pty"]),
            SerialTarget::Pty
        );
        let both = run_args(&["k", "--console=stdio", "--console=null", "--port=name=x,pty"]).unwrap();
        assert_eq!((both.console.len(), both.port.len()), (2, 1));
    }

    #[test]
    fn debug_exit_has_qemus_port_unless_told() {
        assert_eq!(
            run_args(&["k", "--debug-exit"]).unwrap().debug_exit,
            Some(DEBUG_EXIT_PORT)
        );
        assert_eq!(run_args(&["k", "--debug-exit=0xf4"]).unwrap().debug_exit, Some(0xf4));
    }

    #[test]
    fn an_unknown_option_names_the_nearest_in_one_line() {
        let error = run_args(&["k", "--memori", "1"]).unwrap_err();
        assert!(
            !error.contains('\n') && error.contains("--memori") && error.contains("'--memory'"),
            "{error}"
        );
    }

    #[test]
    fn monitors_are_sockets_or_standard_input_and_output() {
        let args = run_args(&["k", "--serial", "none", "--qmp", "unix:/x", "--qmp", "stdio"]).unwrap();
        let socket = Endpoint::UnixServer {
            path: "/x".into(),
            wait: false,
        };
        assert_eq!(args.qmp, [socket, Endpoint::Stdio]);
        assert!(
            run_args(&["k", "--qmp", "tcp:1"])
                .unwrap_err()
                .contains("use unix:PATH or stdio")
        );
    }

    #[test]
    fn a_wrong_value_says_what_is_right() {
        let error = run_args(&["k", "--memory", "lots"]).unwrap_err();
        assert!(error.contains("'lots' is not a size"), "{error}");
        let error = run_args(&["k", "--serial", "tcp"]).unwrap_err();
        assert!(error.contains("file=PATH"), "{error}");
    }
}
