//! The load of `cargo xtask bench net`: runs in the guest, as a child of its init, and times what a network card carries.
//!
//! `net-load ADDRESS [PHASE...]` goes through these phases, with the far end at that address, and says of each how it went.

use std::io::{self, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use xtask::load::datagrams::{PORT, Request, Task, ping, receive_all, send_all};
use xtask::load::{self, widen};

/// Longer than the far end ever takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What carries a phase.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// Blocks of a stream, in frames as large as both ends like.
    Tcp,
    /// Datagrams, each a frame.
    Udp,
}

struct Phase {
    name: &'static str,
    carrier: Carrier,
    /// What the far end does.
    task: Task,
    /// Blocks or datagrams.
    count: u32,
    /// Bytes of each.
    size: u32,
}

/// Bytes of Ethernet, IPv4 and UDP headers in front of a datagram.
const HEADERS: u32 = 14 + 20 + 8;
const BLOCK: u32 = 64 << 10;

const PHASES: [Phase; 7] = [
    stream("send-tcp", Task::Sink),
    stream("receive-tcp", Task::Source),
    frames("send-1514", Task::Sink, 1514, 10_000),
    frames("receive-1514", Task::Source, 1514, 10_000),
    frames("send-64", Task::Sink, 64, 20_000),
    frames("receive-64", Task::Source, 64, 20_000),
    frames("ping-64", Task::Echo, 64, 4_000),
];

const fn stream(name: &'static str, task: Task) -> Phase {
    Phase {
        name,
        carrier: Carrier::Tcp,
        task,
        count: 2_000,
        size: BLOCK,
    }
}

const fn frames(name: &'static str, task: Task, frame: u32, count: u32) -> Phase {
    Phase {
        name,
        carrier: Carrier::Udp,
        task,
        count,
        size: frame - HEADERS,
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        println!("usage: net-load ADDRESS [PHASE...]");
        return ExitCode::FAILURE;
    };
    let names: Vec<String> = arguments.collect();
    let wanted = |phase: &&Phase| names.iter().any(|name| name == phase.name);
    match PHASES.iter().filter(wanted).try_for_each(|phase| run(phase, &address)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("net-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(phase: &Phase, address: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", phase.name));
    match phase.carrier {
        Carrier::Tcp => blocks(phase, address).map_err(named),
        Carrier::Udp => datagrams(phase, address).map_err(named),
    }
}

fn datagrams(phase: &Phase, address: &str) -> io::Result<()> {
    let mut socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    widen(&socket)?;
    socket.connect((address, PORT))?;
    let &Phase { task, count, size, .. } = phase;
    // The first of a kind pay for what later ones find done.
    for count in [count / 100, count] {
        let mut work = || {
            socket.send(&Request { task, count, size }.to_bytes())?;
            match task {
                Task::Sink => send_all(&mut socket, count, size as usize),
                Task::Source => receive_all(&mut socket, count),
                Task::Echo => ping(&mut socket, count, size as usize),
            }
        };
        if count == phase.count {
            load::phase(phase.name, count, work)?;
        } else {
            work()?;
        }
    }
    Ok(())
}

fn blocks(phase: &Phase, address: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect((address, PORT))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let &Phase { task, count, size, .. } = phase;
    let mut block = vec![0; size as usize];
    load::phase(phase.name, count, || {
        stream.write_all(&Request { task, count, size }.to_bytes())?;
        for _ in 0..count {
            match task {
                Task::Sink => stream.write_all(&block)?,
                _ => stream.read_exact(&mut block)?,
            }
        }
        if task == Task::Sink {
            // All of it has come.
            stream.read_exact(&mut [0])?;
        }
        Ok(())
    })
}
