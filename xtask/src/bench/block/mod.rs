//! `cargo xtask bench block`: what a request to a disk costs in a whole guest, beside QEMU with an I/O thread and io_uring.

pub mod measure;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use xtask::error::During;
use xtask::initramfs::{Initramfs, LOAD_MODULES};
use xtask::kernel::Flavour;
use xtask::lab::{self, Lab, ensure_cured, scratch};
use xtask::modules::ModuleTree;
use xtask::{Result, resources};

use super::guest::{ENDED, debian_qemu};
use super::machines::Files;
use super::place;
use super::requests::Table;
use crate::cargo;
use crate::way::{self, Way};

/// For each round of both programs, on a busy host in the lab.
const LIMIT_OF_A_RUN: Duration = Duration::from_secs(420);
/// Bytes of the image.
const IMAGE: u64 = 128 << 20;
/// The lab holds the image in its memory, twice: itself and the page cache.
const LAB_MEMORY_MIB: u32 = 4096;

/// Takes the figures of requests to a disk in a guest: 4 KiB at depths 1 and 32, and 1 MiB in sequence.
#[derive(Args, Debug)]
pub struct BlockArgs {
    /// How often each figure is taken; medians are shown.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Use the lab even where this host's KVM could run the guests.
    #[arg(long)]
    lab: bool,
    /// Use the lab and count its time in instructions (1 ns each), so that figures repeat whatever else the host does.
    #[arg(long)]
    icount: bool,
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn block(args: &BlockArgs) -> Result<u8> {
    let innkeeper = cargo::build(&["build", "--release", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
    let load = cargo::build(
        &["build", "--release", "-p", "xtask", "--bin", "disk-load"],
        "disk-load",
    )?;
    let resources = resources::gather()?;
    let way = way::decide(&innkeeper, args.lab || args.icount)?;
    let guest = guest(&load, &resources)?;
    println!(
        "A guest with one CPU and one disk of one queue, image in the page cache; figures for each request; {way}\n"
    );
    let mut table = Table::new("a request of");
    let status = match way {
        Way::Host => on_host(&innkeeper, &resources, &guest, args, &mut table)?,
        Way::Lab(_) => in_lab(&innkeeper, &resources, &guest, args, &mut table)?,
    };
    println!("{table}");
    Ok(status)
}

/// A guest whose init loads its disk and says when that is done.
fn guest(load: &Path, resources: &Path) -> Result<Initramfs> {
    let modules = ModuleTree::open(&resources.join("kernels").join(Flavour::Cloud.name()).join("modules"))?;
    let mut contents = Initramfs::new();
    contents.busybox(&lab::busybox()?)?.program(load, "/bin/disk-load")?;
    contents.modules(
        &modules,
        &["virtio_pci", "virtio_blk"]
            .into_iter()
            .filter(|name| modules.has(name))
            .collect::<Vec<_>>(),
    )?;
    let wait = "i=0; while [ ! -e /dev/vda ] && [ $i -lt 100 ]; do i=$((i + 1)); usleep 100000; done\n";
    contents.script(
        "/init",
        &format!(
            "mount -t proc proc /proc\nmount -t devtmpfs dev /dev 2>/dev/null\n{LOAD_MODULES}{wait}\
             disk-load /dev/vda\necho {ENDED}\nwhile :; do sleep 1000; done\n"
        ),
    );
    Ok(contents)
}

fn on_host(innkeeper: &Path, resources: &Path, guest: &Initramfs, args: &BlockArgs, table: &mut Table) -> Result<u8> {
    let initrd = scratch::unlinked_file("initrd")?;
    guest.write_to(&mut &initrd)?;
    let image = scratch::unlinked_file("image")?;
    image.set_len(IMAGE).during(|| "making the image")?;
    let files = Files {
        innkeeper: innkeeper.into(),
        qemu: debian_qemu()?,
        firmware: resources.join("firmware"),
        kernels: resources.join("kernels").join(Flavour::Cloud.name()),
        initrd: scratch::inherited_path(&initrd).into(),
    };
    let arguments = arguments(&files, &scratch::inherited_path(&image), args.runs);
    let limit = LIMIT_OF_A_RUN * args.runs;
    place::on_host(&arguments, &[&initrd, &image], limit, &mut |line| table.take(line))
}

fn in_lab(innkeeper: &Path, resources: &Path, guest: &Initramfs, args: &BlockArgs, table: &mut Table) -> Result<u8> {
    const DISK: &str = "/tmp/disk";
    let inside = Files {
        innkeeper: "/bin/innkeeper".into(),
        qemu: "/bin/qemu".into(),
        firmware: "/firmware".into(),
        kernels: "/kernels".into(),
        initrd: "/initrd".into(),
    };
    let kernel = resources.join("kernels").join(Flavour::Cloud.name()).join("vmlinuz");
    let mut lab = Lab::with(ensure_cured()?);
    lab.limit = LIMIT_OF_A_RUN * args.runs;
    lab.memory_mib = LAB_MEMORY_MIB;
    lab.icount = args.icount;
    lab.contents
        .program(innkeeper, "/bin/innkeeper")?
        .program(&debian_qemu()?, "/bin/qemu")?
        .copy(&resources.join("firmware"), "/firmware")?
        .copy(&kernel, "/kernels/vmlinuz")?
        .bytes("/initrd", guest.to_bytes()?);
    let prelude = format!("dd if=/dev/zero of={DISK} bs=1M count={} 2>/dev/null\n", IMAGE >> 20);
    let arguments = arguments(&inside, DISK, args.runs);
    place::in_lab(lab, &prelude, &arguments, &mut |line| table.take(line))
}

/// The measuring process's arguments, without the program.
fn arguments(files: &Files, image: &str, runs: u32) -> Vec<OsString> {
    let runs = runs.to_string();
    let words = ["bench", "measure-block", "--runs", &runs, "--image", image].map(OsString::from);
    words.into_iter().chain(files.arguments()).collect()
}
