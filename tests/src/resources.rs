//! The kernels and programs that guests are made of. `cargo xtask test` provides them and names them in the environment.

use std::path::{Path, PathBuf};

use xtask::initramfs::Initramfs;

use crate::Error;

/// The folder with `busybox`.
pub const RESOURCES: &str = "INNKEEPER_RESOURCES";
/// `name:folder` of each kernel, separated by commas; a folder holds `vmlinuz`, `vmlinux` and `modules`.
pub const KERNELS: &str = "INNKEEPER_KERNELS";
/// The `innkeeper` program.
pub const PROGRAM: &str = "INNKEEPER_BINARY";

/// What the first program of a guest does: it tells about the machine in sections, then ends it as `end=` on the command line says.
const INIT: &str = include_str!("../../resources/init.sh");

pub(crate) fn variable(name: &str) -> Result<String, Error> {
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

/// Writes the initial RAM disk of a guest that reports about itself into `folder`.
///
/// # Errors
/// Its parts are missing or the file cannot be written.
pub fn initrd(folder: &Path) -> Result<PathBuf, Error> {
    let path = folder.join("report.cpio");
    if !path.exists() {
        let mut initramfs = Initramfs::new();
        initramfs.busybox(&Path::new(&variable(RESOURCES)?).join("busybox"))?;
        initramfs.script("/init", INIT);
        // Several tests may come here at once; each puts a whole file in place.
        let draft = folder.join(format!("report.{:?}", std::thread::current().id()));
        std::fs::write(&draft, initramfs.to_bytes()?)?;
        std::fs::rename(&draft, &path)?;
    }
    Ok(path)
}
