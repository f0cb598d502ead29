//! The kernels and programs that guests are made of. `cargo xtask test` provides them and names them in the environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::initramfs::Initramfs;
use xtask::modules::ModuleTree;
use xtask::resources::VIRTIO_DRIVERS;

use crate::Error;

/// The folder with `busybox` and `tools`.
pub const RESOURCES: &str = "INNKEEPER_RESOURCES";
/// `name:folder` of each kernel, separated by commas; a folder holds `vmlinuz`, `vmlinux` and `modules`.
pub const KERNELS: &str = "INNKEEPER_KERNELS";
/// The `innkeeper` program.
pub const PROGRAM: &str = "INNKEEPER_BINARY";
/// The `qemu-img` program.
pub const QEMU_IMG: &str = "INNKEEPER_QEMU_IMG";

/// What the first program of a guest does: it tells about the machine in sections, then ends it as `end=` on the command line says.
const INIT: &str = include_str!("../../resources/init.sh");

/// What such a guest does when `job=` names it: files of shell functions, `job_NAME` each.
const JOBS: &[(&str, &str)] = &[
    ("balloon", include_str!("../../resources/jobs/balloon.sh")),
    ("filesystem", include_str!("../../resources/jobs/filesystem.sh")),
    ("management", include_str!("../../resources/jobs/management.sh")),
    ("network", include_str!("../../resources/jobs/network.sh")),
    ("rng", include_str!("../../resources/jobs/rng.sh")),
    ("serial", include_str!("../../resources/jobs/serial.sh")),
    ("shell", include_str!("../../resources/jobs/shell.sh")),
];

/// What the environment says under `name`.
///
/// # Errors
/// It says nothing under that name.
pub fn variable(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|_| format!("{name} is not set; run these tests by `cargo xtask test`").into())
}

/// The kernel called `name`: `cloud` or `generic`.
///
/// # Errors
/// The environment names no such kernel.
pub fn kernel(name: &str) -> Result<PathBuf, Error> {
    let kernels = variable(KERNELS)?;
    let found = kernels
        .split(',')
        .filter_map(|kernel| kernel.split_once(':'))
        .find(|(known, _)| *known == name);
    found
        .map(|(_, folder)| Path::new(folder).join("vmlinuz"))
        .ok_or_else(|| format!("no kernel '{name}' in {KERNELS}={kernels}").into())
}

/// The program under test.
///
/// # Errors
/// The environment does not name it.
pub fn program() -> Result<PathBuf, Error> {
    variable(PROGRAM).map(PathBuf::from)
}

/// A command that runs one of the tools that guests have (`xtask::resources`), with its own libraries, where the test itself runs.
///
/// # Errors
/// The environment does not name the resources.
pub fn tool(name: &str) -> Result<Command, Error> {
    let tools = Path::new(&variable(RESOURCES)?).join("tools");
    let mut command = Command::new(tools.join("lib64/ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(tools.join("lib/x86_64-linux-gnu"))
        .arg(tools.join("bin").join(name));
    Ok(command)
}

/// What the initial RAM disk of a guest holds besides busybox and the script that reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extras {
    /// Nothing.
    None,
    /// The kernel's virtio drivers, loaded first; with a legacy driver they drive the legacy face, where they can.
    Virtio {
        /// `virtio_pci.force_legacy=1`.
        force_legacy: bool,
    },
    /// The same, drivers for file systems and networks, the tools of the resources, and the jobs of resources/jobs.
    Tools {
        /// `virtio_pci.force_legacy=1`.
        force_legacy: bool,
    },
}

impl Extras {
    /// Are there drivers, and is it the legacy face that they drive?
    fn force_legacy(self) -> Option<bool> {
        match self {
            Self::None => None,
            Self::Virtio { force_legacy } | Self::Tools { force_legacy } => Some(force_legacy),
        }
    }
}

/// Modules of a kernel for what tools and jobs do; ext4 asks for its checksum by the name of an algorithm, which no dependency tells.
const TOOL_MODULES: [&str; 6] = ["crc32c_generic", "ext4", "8021q", "af_packet", "button", "evdev"];

/// Writes the initial RAM disk of a guest that reports about itself into `folder`.
///
/// # Errors
/// Its parts are missing or the file cannot be written.
pub fn initrd(folder: &Path, kernel_name: &str, extras: Extras) -> Result<PathBuf, Error> {
    let path = folder.join(match extras {
        Extras::None => "report.cpio".to_owned(),
        Extras::Virtio { force_legacy } => format!("report-{kernel_name}-virtio-{force_legacy}.cpio"),
        Extras::Tools { force_legacy } => format!("report-{kernel_name}-tools-{force_legacy}.cpio"),
    });
    if !path.exists() {
        let mut initramfs = Initramfs::new();
        let resources = PathBuf::from(variable(RESOURCES)?);
        let mut modules = VIRTIO_DRIVERS.to_vec();
        if matches!(extras, Extras::Tools { .. }) {
            // Before busybox, which has a lesser mke2fs.
            initramfs.copy(&resources.join("tools"), "/")?;
            for (name, functions) in JOBS {
                initramfs.script(&format!("/jobs/{name}.sh"), functions);
            }
            modules.extend(TOOL_MODULES);
        }
        initramfs.busybox(&resources.join("busybox"))?;
        if let Some(force_legacy) = extras.force_legacy() {
            let tree = ModuleTree::open(&kernel(kernel_name)?.with_file_name("modules"))?;
            let order = initramfs.modules(&tree, &modules)?;
            let words = |module: &str| {
                if force_legacy && module == "virtio_pci" {
                    " force_legacy=1"
                } else {
                    ""
                }
            };
            let load = order
                .iter()
                .map(|module| format!("insmod /lib/modules/{module}.ko{}\n", words(module)));
            initramfs.script("/load-modules", &load.collect::<String>());
        }
        initramfs.script("/init", INIT);
        // Several tests may come here at once; each puts a whole file in place.
        let draft = folder.join(format!("report.{:?}", std::thread::current().id()));
        std::fs::write(&draft, initramfs.to_bytes()?)?;
        std::fs::rename(&draft, &path)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_do_not_take_functions_from_one_another() {
        let lines = JOBS.iter().flat_map(|(_, functions)| functions.lines());
        let mut names: Vec<&str> = lines
            .filter(|line| !line.starts_with(['\t', ' ', '#']))
            .filter_map(|line| Some(line.split_once("() {")?.0))
            .collect();
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(
            names.contains(&"job_shell") && twice.is_empty(),
            "{twice:?} of {names:?}"
        );
    }
}
