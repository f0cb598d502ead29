//! QEMU beside us: the same kernel and initial RAM disk on its `pc` machine, on the same KVM.

use std::path::Path;
use std::process::{Command, Stdio};

use vmm::config::MachineConfig;

use crate::Error;
use crate::guest::tail;
use crate::report::Report;
use crate::resources;

/// The emulator to compare with.
pub const QEMU: &str = "INNKEEPER_QEMU";

/// QEMU's `-M pc` with nothing but its fixed functions and no serial port, about to run the guest of `config`.
///
/// # Errors
/// QEMU is missing.
pub fn command(config: &MachineConfig) -> Result<Command, Error> {
    let firmware = Path::new(&resources::variable(resources::RESOURCES)?).join("firmware");
    let mut command = Command::new(resources::variable(QEMU)?);
    command
        .arg("-L")
        .arg(firmware)
        .args([
            "-M",
            "pc",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-monitor", "none"])
        .args([
            "-m",
            &format!("{}M", config.memory >> 20),
            "-smp",
            &config.cpus.to_string(),
        ])
        .arg("-kernel")
        .args(&config.kernel)
        .args(["-append", &config.command_line]);
    if let Some(initrd) = &config.initrd {
        command.arg("-initrd").arg(initrd);
    }
    Ok(command)
}

/// Runs the guest of `config` on QEMU, without the devices that it has on ours, and with `more` options.
///
/// # Errors
/// QEMU is missing or its guest did not report.
pub fn run(config: &MachineConfig, more: &[&str]) -> Result<Report, Error> {
    report(config, &[&["-serial", "stdio"], more].concat())
}

/// The same without a serial port: `more` leads standard output to the guest's console.
///
/// # Errors
/// As [`run`].
pub fn report(config: &MachineConfig, more: &[&str]) -> Result<Report, Error> {
    let mut command = command(config)?;
    let output = command.args(more).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    let console = String::from_utf8_lossy(&output.stdout);
    let report = Report::parse(&console);
    if !report.is_complete() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the guest on QEMU did not report: {errors}\n{}", tail(&console)).into());
    }
    Ok(report)
}
