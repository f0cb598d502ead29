//! `cargo xtask bench net`: what a frame costs in a whole guest, beside QEMU on the same kind of network.

mod frames;
pub mod measure;
mod peer;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use xtask::initramfs::{Initramfs, LOAD_MODULES};
use xtask::kernel::Flavour;
use xtask::lab::{self, Lab, ensure_cured, scratch};
use xtask::modules::ModuleTree;
use xtask::{Result, resources};

use self::measure::{GUEST, PEER, PEER_MAC};
use super::guest::{ENDED, debian_qemu};
use super::machines::Files;
use super::place;
use super::requests::Table;
use crate::cargo;
use crate::way::{self, Way};

/// For each round of both programs, on a busy host in the lab.
const LIMIT_OF_A_RUN: Duration = Duration::from_secs(1800);

/// What a guest's card is plugged into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Link {
    /// A tap interface; the program carries the frames.
    Tap,
    /// A tap interface; the kernel carries the frames.
    Vhost,
    /// A UNIX stream socket, each frame with its length in front.
    Stream,
}

impl Link {
    const ALL: [Self; 3] = [Self::Tap, Self::Vhost, Self::Stream];

    /// As users write it.
    fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Vhost => "vhost",
            Self::Stream => "stream",
        }
    }
}

/// Takes the figures of frames that a guest sends and receives: through a tap interface, with vhost-net, and through a socket.
#[derive(Args, Debug)]
pub struct NetArgs {
    /// How often each figure is taken; medians are shown.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Only this network; may be given several times.
    #[arg(long = "link", value_enum)]
    links: Vec<Link>,
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
pub fn net(args: &NetArgs) -> Result<u8> {
    let innkeeper = cargo::build(&["build", "--release", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
    let load = cargo::build(&["build", "--release", "-p", "xtask", "--bin", "net-load"], "net-load")?;
    let resources = resources::gather()?;
    let way = way::decide(&innkeeper, args.lab || args.icount)?;
    let guest = guest(&load, &resources)?;
    println!(
        "A guest with one CPU and one card of one queue pair; figures for each frame, of TCP for each 64 KiB; {way}\n"
    );
    let mut table = Table::new("a frame of");
    let status = match way {
        Way::Host => on_host(&innkeeper, &resources, &guest, args, &mut table),
        Way::Lab(_) => in_lab(&innkeeper, &resources, &guest, args, &mut table),
    };
    // What was measured before something failed is worth a look.
    println!("{table}");
    status
}

/// A guest whose init loads its card with the phases that its kernel was told of (`phases=A,B`), and says when that is done.
fn guest(load: &Path, resources: &Path) -> Result<Initramfs> {
    let modules = ModuleTree::open(&resources.join("kernels").join(Flavour::Cloud.name()).join("modules"))?;
    let mut contents = Initramfs::new();
    contents.busybox(&lab::busybox()?)?.program(load, "/bin/net-load")?;
    let wanted = ["virtio_pci", "virtio_net"]
        .into_iter()
        .filter(|name| modules.has(name));
    contents.modules(&modules, &wanted.collect::<Vec<_>>())?;
    contents.script(
        "/init",
        &format!(
            "mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev 2>/dev/null\n{LOAD_MODULES}\
             ip link set lo up\nip addr add {GUEST}/24 dev eth0\nip link set eth0 up\narp -s {PEER} {PEER_MAC}\n\
             echo features $(cat /sys/bus/virtio/devices/*/features)\n\
             net-load {PEER} $(tr ' ' '\\n' < /proc/cmdline | sed -n 's/^phases=//p' | tr , ' ')\n\
             echo {ENDED}\nwhile :; do sleep 1000; done\n"
        ),
    );
    Ok(contents)
}

fn on_host(innkeeper: &Path, resources: &Path, guest: &Initramfs, args: &NetArgs, table: &mut Table) -> Result<u8> {
    let initrd = scratch::unlinked_file("initrd")?;
    guest.write_to(&mut &initrd)?;
    let files = Files {
        innkeeper: innkeeper.into(),
        qemu: debian_qemu()?,
        firmware: resources.join("firmware"),
        kernels: resources.join("kernels").join(Flavour::Cloud.name()),
        initrd: scratch::inherited_path(&initrd).into(),
    };
    let limit = LIMIT_OF_A_RUN * args.runs;
    let take = &mut |line: &str| table.take(line);
    place::on_host(&arguments(&files, args), &[&initrd], limit, take)
}

fn in_lab(innkeeper: &Path, resources: &Path, guest: &Initramfs, args: &NetArgs, table: &mut Table) -> Result<u8> {
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
    lab.icount = args.icount;
    lab.contents
        .program(innkeeper, "/bin/innkeeper")?
        .program(&debian_qemu()?, "/bin/qemu")?
        .copy(&resources.join("firmware"), "/firmware")?
        .copy(&kernel, "/kernels/vmlinuz")?
        .bytes("/initrd", guest.to_bytes()?);
    place::in_lab(lab, "", &arguments(&inside, args), &mut |line| table.take(line))
}

/// The measuring process's arguments, without the program.
fn arguments(files: &Files, args: &NetArgs) -> Vec<OsString> {
    let runs = args.runs.to_string();
    let words = ["bench", "measure-net", "--runs", &runs].map(OsString::from);
    let links = if args.links.is_empty() {
        &Link::ALL[..]
    } else {
        &args.links
    };
    let links = links.iter().flat_map(|link| ["--link", link.name()]);
    words
        .into_iter()
        .chain(links.map(OsString::from))
        .chain(files.arguments())
        .collect()
}
