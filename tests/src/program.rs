//! Guests that other processes run, ours or QEMU's: with the same kernel, the same devices and the same management over QMP.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm::config::MachineConfig;

use crate::process::Process;
use crate::qmp::Client;
use crate::{Error, qemu, resources};

/// Who runs the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// We do.
    Innkeeper,
    /// QEMU's `pc`.
    Qemu,
}

impl Program {
    /// Both, ours first.
    pub const ALL: [Self; 2] = [Self::Innkeeper, Self::Qemu];

    /// The command that runs the guest of `config` with its serial port on standard input and output. Of devices, QEMU gets
    /// those whose options both understand.
    fn command(self, config: &MachineConfig) -> Result<Command, Error> {
        let mut command = match self {
            Self::Qemu => {
                let mut command = qemu::command(config)?;
                command.args(["-serial", "stdio"]);
                command
            }
            Self::Innkeeper => {
                let kernel = config.kernel.as_deref().unwrap_or(Path::new(""));
                let mut command = Command::new(resources::program()?);
                command.arg("run").arg(kernel).args(["--serial", "stdio"]);
                command.args(["--memory", &format!("{}M", config.memory >> 20)]);
                command.args(["--cpus", &config.cpus.to_string(), "--append", &config.command_line]);
                if let Some(initrd) = &config.initrd {
                    command.arg("--initrd").arg(initrd);
                }
                command
            }
        };
        let option = match self {
            Self::Innkeeper => "--device",
            Self::Qemu => "-device",
        };
        for device in &config.devices {
            command.args([option, &format!("{},{}", device.name, device.options)]);
        }
        Ok(command)
    }

    /// Starts a guest and connects to the program's monitor.
    ///
    /// # Errors
    /// The program is missing or does not start.
    pub fn start(self, config: &MachineConfig) -> Result<Managed, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("qmp-{}-{number}.sock", std::process::id()));
        let (option, server) = match self {
            Self::Innkeeper => ("--qmp", ""),
            Self::Qemu => ("-qmp", ",server=on,wait=off"),
        };
        let mut command = self.command(config)?;
        command.args([option, &format!("unix:{}{server}", socket.display())]);
        let mut process = Process::start(command)?;
        let monitor = process.monitor(&socket)?;
        Ok(Managed { process, monitor })
    }
}

/// A guest in a process of its own, with the client of its monitor.
pub struct Managed {
    /// The process, with the guest's serial line.
    pub process: Process,
    /// The client.
    pub monitor: Client,
}
