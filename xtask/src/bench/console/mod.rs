//! `cargo xtask bench console`: what bytes cost on their way through a port and a console of a whole guest, beside QEMU.

pub mod measure;

use std::time::Duration;

use xtask::Result;

use super::load::{Load, LoadArgs};
use super::requests::Table;

const LOAD: Load<'_> = Load {
    program: "port-load",
    modules: &["virtio_pci", "virtio_console"],
    start: "until [ -c /dev/vport0p1 ] && [ -c /dev/hvc0 ]; do usleep 100000; done\nport-load /dev/vport0p1 /dev/hvc0",
    measure: "measure-console",
    limit: Duration::from_secs(1800),
    lab_memory: 3072,
    image: None,
};

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn console(args: &LoadArgs) -> Result<u8> {
    let title = "A guest with one CPU, a port and a console, each on a UNIX socket; figures for each 64 KiB";
    LOAD.run(args, &[], title, &mut Table::new("64 KiB through"))
}
