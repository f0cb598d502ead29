//! `cargo xtask bench net`: what a frame costs in a whole guest, beside QEMU on the same kind of network.

mod frames;
pub mod measure;
mod peer;

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};
use xtask::Result;

use self::measure::{GUEST, PEER, PEER_MAC};
use super::load::{Load, LoadArgs};
use super::requests::Table;

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
    #[command(flatten)]
    load: LoadArgs,
    /// Only this network; may be given several times.
    #[arg(long = "link", value_enum)]
    links: Vec<Link>,
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn net(args: &NetArgs) -> Result<u8> {
    // The guest's kernel is told of the phases by `phases=A,B`.
    let start = format!(
        "ip link set lo up\nip addr add {GUEST}/24 dev eth0\nip link set eth0 up\narp -s {PEER} {PEER_MAC}\n\
         echo features $(cat /sys/bus/virtio/devices/*/features)\n\
         net-load {PEER} $(tr ' ' '\\n' < /proc/cmdline | sed -n 's/^phases=//p' | tr , ' ')"
    );
    let load = Load {
        program: "net-load",
        modules: &["virtio_pci", "virtio_net"],
        start: &start,
        measure: "measure-net",
        limit: Duration::from_secs(1800),
        lab_memory: 4096,
        image: None,
    };
    let links = if args.links.is_empty() {
        &Link::ALL[..]
    } else {
        &args.links
    };
    let words = links.iter().flat_map(|link| ["--link", link.name()]);
    let words: Vec<_> = words.map(OsString::from).collect();
    let title = "A guest with one CPU and one card of one queue pair; figures for each frame, of TCP for each 64 KiB";
    load.run(&args.load, &words, title, &mut Table::new("a frame of"))
}
