//! Which QEMU runs the lab, where its firmware is, and its command line.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use super::cured::CuredQemu;
use super::scratch;
use crate::error::Result;
use crate::packages;

/// Firmware files come from these packages of Debian's, in these folders.
const FIRMWARE: [(&str, &str); 2] = [("seabios", "usr/share/seabios"), ("qemu-system-data", "usr/share/qemu")];

/// A QEMU that can run the lab.
#[derive(Clone, Debug)]
pub struct Emulator {
    /// The program.
    pub program: PathBuf,
    /// Whether its emulated SVM is cured; an uncured one locks a guest up now and then.
    pub cured: bool,
    /// Folders of firmware files.
    pub firmware: Vec<PathBuf>,
}

impl Emulator {
    /// The cured emulator when it has been built, else Debian's own, which is installed when it is missing.
    ///
    /// # Errors
    /// When a package is missing and cannot be fetched or installed.
    pub fn find() -> Result<Self> {
        if let Some(cured) = CuredQemu::existing()? {
            return Ok(Self {
                program: cured.program(),
                cured: true,
                firmware: firmware()?,
            });
        }
        let purpose = "emulate a machine with hardware virtualisation";
        let program = packages::program("qemu-system-x86_64", "qemu-system-x86", purpose)?;
        // Debian's own finds its firmware, but of the right version only where nobody has replaced it.
        Ok(Self {
            program,
            cured: false,
            firmware: Vec::new(),
        })
    }

    /// The cured emulator, built when it is not there yet.
    ///
    /// # Errors
    /// As [`CuredQemu::ensure`].
    pub fn cured() -> Result<Self> {
        Ok(Self {
            program: CuredQemu::ensure()?.program(),
            cured: true,
            firmware: firmware()?,
        })
    }
}

fn firmware() -> Result<Vec<PathBuf>> {
    FIRMWARE
        .iter()
        .map(|(package, folder)| Ok(packages::fetch(package)?.root.join(folder)))
        .collect()
}

/// The files of one run: two that the emulated machine reads and writes, one for the words of its kernel.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: File,
    pub(super) results: File,
    pub(super) serial: File,
}

/// The machine that is emulated.
#[derive(Clone, Debug)]
pub(super) struct Shape<'a> {
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    pub(super) icount: bool,
    pub(super) kernel_arguments: &'a [String],
}

/// What the L1 kernel is told: to start fast, to trust the emulated clock, and to end instead of hanging.
const KERNEL_ARGUMENTS: &str = "console=ttyS0,115200 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check \
                                random.trust_cpu=on";

/// The command that runs the machine; what its first virtio-serial port says is the command's standard output.
pub(super) fn command(emulator: &Emulator, shape: &Shape<'_>, files: &Files) -> Command {
    // Only with one thread does emulated code see its own patching in time; more CPUs are for comparing wall-clock times.
    let threads = if shape.cpus > 1 { "multi" } else { "single" };
    let mut command = Command::new(&emulator.program);
    for folder in &emulator.firmware {
        command.arg("-L").arg(folder);
    }
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-M",
            "pc",
            "-cpu",
            "max,+svm",
        ])
        .args(["-accel", &format!("tcg,thread={threads},tb-size=1024")])
        .args(["-smp", &shape.cpus.to_string(), "-m", &shape.memory_mib.to_string()])
        .arg("-kernel")
        .arg(&files.kernel)
        .args(["-initrd", &scratch::inherited_path(&files.initramfs)])
        .args([
            "-append",
            &format!("{KERNEL_ARGUMENTS} {}", shape.kernel_arguments.join(" ")),
        ])
        .args(["-serial", &format!("file:{}", scratch::inherited_path(&files.serial))])
        .args([
            "-chardev",
            "file,id=output,path=/proc/self/fd/1",
            "-device",
            "virtio-serial-pci",
        ])
        .args(["-device", "virtserialport,chardev=output,nr=1"])
        .args([
            "-drive",
            &format!(
                "file={},if=none,id=results,format=raw,cache=unsafe",
                scratch::inherited_path(&files.results)
            ),
        ])
        .args(["-device", "virtio-blk-pci,drive=results"]);
    if shape.icount {
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    command
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(cpus: u32, icount: bool) -> String {
        let file = || scratch::unlinked_file("test").unwrap();
        let files = Files {
            kernel: "/k".into(),
            initramfs: file(),
            results: file(),
            serial: file(),
        };
        let emulator = Emulator {
            program: "/q".into(),
            cured: true,
            firmware: vec!["/fw".into()],
        };
        let arguments = ["more".to_string()];
        let shape = Shape {
            memory_mib: 512,
            cpus,
            icount,
            kernel_arguments: &arguments,
        };
        format!("{:?}", command(&emulator, &shape, &files))
    }

    #[test]
    fn one_cpu_runs_in_one_thread_and_counts_instructions_when_asked() {
        let plain = line(1, false);
        assert!(plain.contains("thread=single") && !plain.contains("-icount"), "{plain}");
        assert!(
            plain.contains(r#""-L" "/fw""#) && plain.contains("random.trust_cpu=on more"),
            "{plain}"
        );
        assert!(line(1, true).contains("-icount"));
        assert!(line(2, false).contains("thread=multi"));
    }
}
