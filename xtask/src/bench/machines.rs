//! The machines that are compared: each boots the same kernel with the same initial RAM disk and command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// Guest memory of all machines, in MiB.
pub const MEMORY_MIB: u64 = 512;

/// The kernel's command line in all machines.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";

/// Where the programs and the guest's files are.
#[derive(Args, Clone, Debug)]
pub struct Files {
    /// The program `innkeeper`.
    #[arg(long)]
    pub innkeeper: PathBuf,
    /// The program `qemu-system-x86_64`.
    #[arg(long)]
    pub qemu: PathBuf,
    /// QEMU's firmware.
    #[arg(long)]
    pub firmware: PathBuf,
    /// The folder with the kernel as `vmlinuz` and as `vmlinux`.
    #[arg(long)]
    pub kernels: PathBuf,
    /// The initial RAM disk.
    #[arg(long)]
    pub initrd: PathBuf,
}

impl Files {
    /// The arguments that say so.
    pub fn arguments(&self) -> Vec<OsString> {
        let options = [
            ("--innkeeper", &self.innkeeper),
            ("--qemu", &self.qemu),
            ("--firmware", &self.firmware),
            ("--kernels", &self.kernels),
            ("--initrd", &self.initrd),
        ];
        let words = options.map(|(option, path)| [option.into(), path.clone().into()]);
        words.concat()
    }
}

/// A machine and the format of its kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Names it among the samples.
    pub key: &'static str,
    /// The head of its column.
    pub title: [&'static str; 2],
    program: Program,
    kernel: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Program {
    Innkeeper,
    /// With this argument to `-M`.
    Qemu(&'static str),
}

const BZIMAGE: &str = "vmlinuz";
const ELF: &str = "vmlinux";

/// All machines, in the order of the columns.
pub const MACHINES: [Machine; 5] = [
    machine(
        "innkeeper-bzimage",
        ["innkeeper", "bzImage"],
        Program::Innkeeper,
        BZIMAGE,
    ),
    machine("pc-bzimage", ["QEMU pc", "bzImage"], Program::Qemu("pc"), BZIMAGE),
    machine("innkeeper-elf", ["innkeeper", "vmlinux"], Program::Innkeeper, ELF),
    machine("pc-elf", ["QEMU pc", "vmlinux"], Program::Qemu("pc"), ELF),
    machine(
        "microvm-elf",
        ["QEMU microvm", "vmlinux"],
        Program::Qemu("microvm"),
        ELF,
    ),
];

const fn machine(key: &'static str, title: [&'static str; 2], program: Program, kernel: &'static str) -> Machine {
    Machine {
        key,
        title,
        program,
        kernel,
    }
}

impl Machine {
    /// What its figures are compared with: `-M pc` with the same kernel file.
    pub fn reference(&self) -> Option<&'static Self> {
        MACHINES
            .iter()
            .find(|other| other.program == Program::Qemu("pc") && other.kernel == self.kernel)
    }

    /// Whether it is ours.
    pub fn is_ours(&self) -> bool {
        self.program == Program::Innkeeper
    }

    /// The command line that starts it, program first, with the serial port on standard output.
    pub fn command_line(&self, files: &Files) -> Vec<OsString> {
        let kernel = files.kernels.join(self.kernel);
        let mut words: Vec<OsString> = Vec::new();
        match self.program {
            Program::Innkeeper => {
                words.extend([files.innkeeper.clone().into(), "run".into(), kernel.into()]);
                words.extend(["--initrd".into(), files.initrd.clone().into()]);
                words.extend(["--append", COMMAND_LINE, "--no-reboot", "--stats"].map(OsString::from));
                words.extend(["--memory".into(), format!("{MEMORY_MIB}M").into()]);
            }
            Program::Qemu(machine) => {
                words.extend([files.qemu.clone().into(), "-L".into(), files.firmware.clone().into()]);
                words.extend(["-M", machine, "-accel", "kvm", "-cpu", "host"].map(OsString::from));
                words.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
                words.extend(["-display", "none", "-monitor", "none", "-serial", "stdio"].map(OsString::from));
                words.extend(["-m".into(), format!("{MEMORY_MIB}M").into()]);
                words.extend([
                    "-kernel".into(),
                    kernel.into(),
                    "-initrd".into(),
                    files.initrd.clone().into(),
                ]);
                words.extend(["-append", COMMAND_LINE].map(OsString::from));
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_is_compared_with_a_pc_that_boots_the_same_file() {
        let named = |key| MACHINES.iter().find(|machine| machine.key == key);
        let reference = |key| named(key).and_then(Machine::reference).map(|machine| machine.key);
        assert_eq!(reference("innkeeper-bzimage"), Some("pc-bzimage"));
        assert_eq!(reference("microvm-elf"), Some("pc-elf"));
    }
}
