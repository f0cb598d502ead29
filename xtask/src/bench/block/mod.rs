//! `cargo xtask bench block`: what a request to a disk costs in a whole guest, beside QEMU with an I/O thread and io_uring.

pub mod measure;

use std::time::Duration;

use xtask::Result;

use super::load::{Load, LoadArgs};
use super::requests::Table;

const LOAD: Load<'_> = Load {
    program: "disk-load",
    modules: &["virtio_pci", "virtio_blk"],
    start: "i=0; while [ ! -e /dev/vda ] && [ $i -lt 100 ]; do i=$((i + 1)); usleep 100000; done\ndisk-load /dev/vda",
    measure: "measure-block",
    limit: Duration::from_secs(420),
    // It holds the image twice: itself and the page cache.
    lab_memory: 4096,
    image: Some(128 << 20),
};

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn block(args: &LoadArgs) -> Result<u8> {
    let title = "A guest with one CPU and one disk of one queue, image in the page cache; figures for each request";
    LOAD.run(args, &[], title, &mut Table::new("a request of"))
}
