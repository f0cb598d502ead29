//! The measuring process: boots a guest with a card on each program and each kind of network, and is the far end of them all.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::Args;
use xtask::{Error, Result, tool};

use super::Link;
use super::frames::Ends;
use super::peer;
use crate::bench::guest;
use crate::bench::load::MeasureArgs;
use crate::bench::machines::Files;
use crate::bench::requests::Program;

/// The guest's address, of the network that is set aside for benchmarks (RFC 2544).
pub const GUEST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The far end's.
pub const PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The far end's card, as commands take it.
pub const PEER_MAC: &str = "02:00:c6:12:00:01";

const ENDS: Ends = Ends {
    guest: ([0x52, 0x54, 0, 0x12, 0x34, 0x56], GUEST),
    peer: ([2, 0, 0xc6, 0x12, 0, 1], PEER),
};

const TAP: &str = "innkeeper-bench";
const SOCKET: &str = "innkeeper-bench.sock";

/// Measures; started by `bench net`.
#[derive(Args, Debug, Clone)]
pub struct MeasureNetArgs {
    #[command(flatten)]
    common: MeasureArgs,
    /// The kinds of networks.
    #[arg(long = "link", value_enum)]
    links: Vec<Link>,
}

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end, and so do two
/// machines whose drivers accepted different features.
///
/// # Errors
/// Nothing can be measured here.
pub fn measure(args: &MeasureNetArgs) -> Result<u8> {
    let socket = std::env::temp_dir().join(SOCKET);
    // One that an earlier run left behind.
    let _ = std::fs::remove_file(&socket);
    peer::serve_addresses()?;
    peer::serve_frames(&socket, ENDS)?;
    let mut failed = false;
    for _ in 0..args.common.runs {
        for link in &args.links {
            let features = Program::ALL.map(|program| {
                let machine = Machine {
                    program,
                    link: *link,
                    socket: socket.clone(),
                };
                machine.run(&args.common.files).unwrap_or_else(|error| {
                    eprintln!("{program} {}: {error}", link.name());
                    failed = true;
                    None
                })
            });
            if features[0] != features[1] {
                eprintln!("{}: the drivers accepted different features: {features:?}", link.name());
                failed = true;
            }
        }
    }
    // It is of no use to anybody else.
    let _ = std::fs::remove_file(&socket);
    Ok(failed.into())
}

/// A program with a card.
struct Machine {
    program: Program,
    link: Link,
    socket: PathBuf,
}

impl Machine {
    /// Measures it. Returns the features that its driver accepted, in the words of sysfs.
    fn run(&self, files: &Files) -> Result<Option<String>> {
        let _interface = match self.link {
            Link::Tap | Link::Vhost => Some(Interface::new()?),
            Link::Stream => None,
        };
        let mut words = guest::command_line(self.program, files, guest::MEMORY_MIB, &self.append());
        words.extend(self.card().into_iter().map(OsString::from));
        let mut features = None;
        let mut hear = |line: &str| match line.strip_prefix("features ") {
            Some(bits) => features = Some(bits.trim_end().to_owned()),
            None => eprintln!("{} {}: {line}", self.program, self.link.name()),
        };
        let prefix = format!("{}/", self.link.name());
        guest::run(self.program, &words, &prefix, &mut hear)?;
        Ok(features)
    }

    /// What the guest's kernel is told: nothing but the load's frames is to be on the wire.
    fn append(&self) -> String {
        let large = match self.link {
            Link::Tap | Link::Vhost => "send-tcp,receive-tcp",
            Link::Stream => "send-1514,receive-1514",
        };
        format!("net.ifnames=0 ipv6.disable=1 phases={large},send-64,receive-64,ping-64")
    }

    fn card(&self) -> Vec<String> {
        let vhost = if self.link == Link::Vhost { "on" } else { "off" };
        let socket = self.socket.display();
        match self.program {
            Program::Innkeeper => {
                let net = match self.link {
                    Link::Tap | Link::Vhost => format!("tap={TAP},vhost={vhost}"),
                    Link::Stream => format!("socket=connect:{socket}"),
                };
                vec!["--net".into(), net]
            }
            Program::Qemu => {
                let netdev = match self.link {
                    Link::Tap | Link::Vhost => {
                        format!("tap,id=n0,ifname={TAP},script=no,downscript=no,vhost={vhost}")
                    }
                    Link::Stream => format!("stream,id=n0,server=off,addr.type=unix,addr.path={socket}"),
                };
                let device = "virtio-net-pci,netdev=n0,romfile=";
                vec!["-netdev".into(), netdev, "-device".into(), device.into()]
            }
        }
    }
}

/// The tap interface, which goes when it is dropped.
struct Interface;

impl Interface {
    /// One with the far end's addresses.
    fn new() -> Result<Self> {
        let interface = Self;
        // Of two programs that can, busybox's is in the lab.
        shell(&format!(
            "tunctl -t {TAP} >/dev/null 2>&1 || ip tuntap add dev {TAP} mode tap\n\
             ip link set {TAP} address {PEER_MAC} && ip addr add {PEER}/24 dev {TAP} && ip link set {TAP} up"
        ))?;
        Ok(interface)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let gone = shell(&format!("tunctl -d {TAP} >/dev/null 2>&1 || ip link del {TAP}"));
        if let Err(error) = gone {
            eprintln!("the interface {TAP} stays: {error}");
        }
    }
}

fn shell(script: &str) -> Result<()> {
    tool::output(tool::command("sh").args(["-c", script]))
        .map(drop)
        .map_err(|error| Error::Other(format!("a tap interface takes root: {error}")))
}
