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

/// Runs the guest of `config` on QEMU's `-M pc` with nothing but its fixed functions, and `more` options.
///
/// # Errors
/// QEMU is missing or its guest did not report.
pub fn run(config: &MachineConfig, more: &[&str]) -> Result<Report, Error> {
    let qemu = resources::variable(QEMU)?;
    let firmware = Path::new(&resources::variable(resources::RESOURCES)?).join("firmware");
    let mut command = Command::new(&qemu);
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
        .args(["-serial", "stdio", "-monitor", "none"])
        .args([
            "-m",
            &format!("{}M", config.memory >> 20),
            "-smp",
            &config.cpus.to_string(),
        ])
        .arg("-kernel")
        .args(&config.kernel)
        .args(["-append", &config.command_line])
        .args(more)
        .stdin(Stdio::null());
    if let Some(initrd) = &config.initrd {
        command.arg("-initrd").arg(initrd);
    }
    let output = command.output().map_err(|error| format!("{qemu}: {error}"))?;
    let console = String::from_utf8_lossy(&output.stdout);
    let report = Report::parse(&console);
    if !report.is_complete() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the guest on QEMU did not report: {errors}\n{}", tail(&console)).into());
    }
    Ok(report)
}
