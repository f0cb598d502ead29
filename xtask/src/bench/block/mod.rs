//! `cargo xtask bench block`: what a request to a disk costs in a whole guest, beside QEMU with an I/O thread and io_uring.

pub mod measure;
mod samples;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use xtask::error::During;
use xtask::initramfs::{Initramfs, LOAD_MODULES};
use xtask::kernel::Flavour;
use xtask::lab::{self, Failure, Job, Lab, ensure_cured, process, scratch};
use xtask::modules::ModuleTree;
use xtask::{Error, Result, packages, resources, tool};

use self::measure::MeasureBlockArgs;
use self::samples::Table;
use crate::cargo;
use crate::lab_command::{exit_status, quoted};
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
    let mut table = Table::default();
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
             disk-load /dev/vda\necho load ended\nwhile :; do sleep 1000; done\n"
        ),
    );
    Ok(contents)
}

/// Debian's own QEMU: it has io_uring, which the lab's emulator is built without.
fn qemu() -> Result<PathBuf> {
    const PROGRAM: &str = "qemu-system-x86_64";
    if tool::find(PROGRAM).is_none() {
        packages::install(&["qemu-system-x86"], "compare with QEMU")?;
    }
    tool::find(PROGRAM).ok_or_else(|| Error::Other(format!("{PROGRAM} is not on the PATH")))
}

fn on_host(innkeeper: &Path, resources: &Path, guest: &Initramfs, args: &BlockArgs, table: &mut Table) -> Result<u8> {
    let initrd = scratch::unlinked_file("initrd")?;
    guest.write_to(&mut &initrd)?;
    let image = scratch::unlinked_file("image")?;
    image.set_len(IMAGE).during(|| "making the image")?;
    let measure = MeasureBlockArgs {
        innkeeper: innkeeper.into(),
        qemu: qemu()?,
        firmware: resources.join("firmware"),
        kernel: resources.join("kernels").join(Flavour::Cloud.name()).join("vmlinuz"),
        initrd: scratch::inherited_path(&initrd).into(),
        image: scratch::inherited_path(&image).into(),
        runs: args.runs,
    };
    let mut command = Command::new(this_program()?);
    command.args(arguments(&measure));
    let limit = LIMIT_OF_A_RUN * args.runs;
    match process::watch(&mut command, &[&initrd, &image], limit, &mut |line| take(table, line))? {
        process::Ended::TimedOut => Err(timed_out(limit)),
        process::Ended::Exited(status) => Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
    }
}

fn in_lab(innkeeper: &Path, resources: &Path, guest: &Initramfs, args: &BlockArgs, table: &mut Table) -> Result<u8> {
    let inside = MeasureBlockArgs {
        innkeeper: "/bin/innkeeper".into(),
        qemu: "/bin/qemu".into(),
        firmware: "/firmware".into(),
        kernel: "/vmlinuz".into(),
        initrd: "/initrd".into(),
        image: "/tmp/disk".into(),
        runs: args.runs,
    };
    let kernel = resources.join("kernels").join(Flavour::Cloud.name()).join("vmlinuz");
    let mut lab = Lab::with(ensure_cured()?);
    lab.limit = LIMIT_OF_A_RUN * args.runs;
    lab.memory_mib = LAB_MEMORY_MIB;
    lab.icount = args.icount;
    lab.contents
        .program(&this_program()?, "/bin/xtask")?
        .program(innkeeper, "/bin/innkeeper")?
        .program(&qemu()?, "/bin/qemu")?
        .copy(&resources.join("firmware"), "/firmware")?
        .copy(&kernel, "/vmlinuz")?
        .bytes("/initrd", guest.to_bytes()?);
    let script = arguments(&inside).iter().fold(
        format!(
            "dd if=/dev/zero of=/tmp/disk bs=1M count={} 2>/dev/null\nexec xtask",
            IMAGE >> 20
        ),
        |line, word| line + " " + &quoted(word),
    );
    let job = Job {
        name: "bench".into(),
        script,
    };
    let outcome = lab.run(&[job], &mut |line| take(table, line))?;
    match outcome.failure {
        Some(Failure::TimedOut(limit)) => Err(timed_out(limit)),
        Some(Failure::Died(words)) => Err(Error::Lab(words)),
        None => Ok(exit_status(&outcome)),
    }
}

/// The measuring process's arguments, without the program.
fn arguments(args: &MeasureBlockArgs) -> Vec<String> {
    let mut words = vec![
        "bench".into(),
        "measure-block".into(),
        "--runs".into(),
        args.runs.to_string(),
    ];
    for (option, path) in [
        ("--innkeeper", &args.innkeeper),
        ("--qemu", &args.qemu),
        ("--firmware", &args.firmware),
        ("--kernel", &args.kernel),
        ("--initrd", &args.initrd),
        ("--image", &args.image),
    ] {
        words.extend([option.to_owned(), path.display().to_string()]);
    }
    words
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().during(|| "finding this program")
}

/// Keeps a sample; passes anything else on.
fn take(table: &mut Table, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    if !table.take(&text) {
        eprint!("{text}");
    }
}

fn timed_out(limit: Duration) -> Error {
    Error::Other(format!("the benchmark did not end within {} s", limit.as_secs()))
}
