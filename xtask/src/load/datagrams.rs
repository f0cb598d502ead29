//! A load of datagrams between two ends, without loss: whoever sends is never further ahead than a window, and whoever receives
//! says now and then how far it has come. So both ends, and the device between them, work as fast as the slowest of them.
//!
//! One end [asks](Request) and takes part, the other [serves](serve).

use std::io;
use std::net::UdpSocket;

/// The port at which a far end serves datagrams, and streams.
pub const PORT: u16 = 5600;

/// Datagrams that are under way at most. A queue of a card has as many descriptors.
const WINDOW: u32 = 256;
/// After so many the receiver says how far it has come.
const ACKNOWLEDGED: u32 = 64;
/// Bytes of a datagram at least: a word for its kind, two numbers.
pub const HEADER: usize = 12;
/// Bytes of a datagram at most.
pub const LARGEST: usize = 1472;

/// One end of a connection that carries datagrams, in order.
pub trait Datagrams {
    /// Sends one.
    ///
    /// # Errors
    /// The connection is gone.
    fn send(&mut self, datagram: &[u8]) -> io::Result<()>;

    /// Receives one; returns its length. Everything that was sent is on its way before it waits.
    ///
    /// # Errors
    /// The connection is gone, or nothing comes.
    fn receive(&mut self, datagram: &mut [u8]) -> io::Result<usize>;
}

impl Datagrams for UdpSocket {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        UdpSocket::send(self, datagram).map(drop)
    }

    fn receive(&mut self, datagram: &mut [u8]) -> io::Result<usize> {
        self.recv(datagram)
    }
}

/// What the far end is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Take what comes.
    Sink,
    /// Send.
    Source,
    /// Send back each datagram that comes.
    Echo,
}

/// A task and its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is to be done.
    pub task: Task,
    /// Datagrams, or blocks of a stream.
    pub count: u32,
    /// Bytes of each.
    pub size: u32,
}

const TASKS: [(u32, Task); 3] = [(1, Task::Sink), (2, Task::Source), (3, Task::Echo)];
const DATA: u32 = 4;
const ACKNOWLEDGEMENT: u32 = 5;

impl Request {
    /// As it is sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let kind = TASKS.iter().find(|(_, task)| *task == self.task);
        message(kind.map_or(0, |(kind, _)| *kind), self.count, self.size)
    }

    /// Reads one; `None` if it is something else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, count, size) = read(bytes)?;
        let (_, task) = *TASKS.iter().find(|(known, _)| *known == kind)?;
        Some(Self { task, count, size })
    }
}

fn message(kind: u32, first: u32, second: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (to, from) in bytes.chunks_exact_mut(4).zip([kind, first, second]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    bytes
}

fn read(bytes: &[u8]) -> Option<(u32, u32, u32)> {
    let mut words = bytes
        .chunks_exact(4)
        .map(|word| word.try_into().map(u32::from_le_bytes));
    let mut next = || words.next()?.ok();
    Some((next()?, next()?, next()?))
}

/// Sends `count` datagrams of `size` bytes to somebody who [receives](receive_all) them; returns when all have come.
///
/// # Errors
/// Those of the connection; one was lost.
pub fn send_all(wire: &mut impl Datagrams, count: u32, size: usize) -> io::Result<()> {
    let mut datagram = vec![0; size.max(HEADER)];
    let mut arrived = 0;
    for number in 0..count {
        while number - arrived >= WINDOW {
            arrived = expect(wire, ACKNOWLEDGEMENT)?;
        }
        datagram[..HEADER].copy_from_slice(&message(DATA, number, 0));
        wire.send(&datagram)?;
    }
    while arrived < count {
        arrived = expect(wire, ACKNOWLEDGEMENT)?;
    }
    Ok(())
}

/// Receives `count` datagrams from somebody who [sends](send_all) them.
///
/// # Errors
/// Those of the connection; one was lost.
pub fn receive_all(wire: &mut impl Datagrams, count: u32) -> io::Result<()> {
    for number in 0..count {
        let came = expect(wire, DATA)?;
        if came != number {
            let words = format!("datagram {number} of {count} is lost: {came} has come");
            return Err(io::Error::other(words));
        }
        let received = number + 1;
        if received % ACKNOWLEDGED == 0 || received == count {
            wire.send(&message(ACKNOWLEDGEMENT, received, 0))?;
        }
    }
    Ok(())
}

/// Sends `count` datagrams of `size` bytes to somebody who echoes, each after the one before has come back.
///
/// # Errors
/// Those of the connection; one was lost.
pub fn ping(wire: &mut impl Datagrams, count: u32, size: usize) -> io::Result<()> {
    let mut datagram = vec![0; size.max(HEADER)];
    for number in 0..count {
        datagram[..HEADER].copy_from_slice(&message(DATA, number, 0));
        wire.send(&datagram)?;
        while expect(wire, DATA)? != number {}
    }
    Ok(())
}

/// Does what is asked for, until the connection is gone.
///
/// # Errors
/// Those of the connection.
pub fn serve(wire: &mut impl Datagrams) -> io::Result<()> {
    let mut datagram = [0; LARGEST];
    loop {
        let len = wire.receive(&mut datagram)?;
        let Some(Request { task, count, size }) = Request::parse(&datagram[..len]) else {
            continue;
        };
        match task {
            Task::Sink => receive_all(wire, count)?,
            Task::Source => send_all(wire, count, (size as usize).min(LARGEST))?,
            Task::Echo => {
                for _ in 0..count {
                    let len = wire.receive(&mut datagram)?;
                    wire.send(&datagram[..len])?;
                }
            }
        }
    }
}

/// Waits for a message of this kind, and returns its number.
fn expect(wire: &mut impl Datagrams, wanted: u32) -> io::Result<u32> {
    let mut datagram = [0; LARGEST];
    loop {
        let len = wire.receive(&mut datagram)?;
        if let Some((kind, number, _)) = read(&datagram[..len])
            && kind == wanted
        {
            return Ok(number);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Wire {
        out: Sender<Vec<u8>>,
        inward: Receiver<Vec<u8>>,
        under_way: u32,
        most: u32,
    }

    impl Datagrams for Wire {
        fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
            self.under_way += 1;
            self.most = self.most.max(self.under_way);
            self.out.send(datagram.into()).map_err(io::Error::other)
        }

        fn receive(&mut self, datagram: &mut [u8]) -> io::Result<usize> {
            let bytes = self.inward.recv().map_err(io::Error::other)?;
            if let Some((ACKNOWLEDGEMENT, ..)) = read(&bytes) {
                self.under_way -= ACKNOWLEDGED;
            }
            datagram[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
    }

    fn wires() -> [Wire; 2] {
        let (there, back) = (channel(), channel());
        [(there.0, back.1), (back.0, there.1)].map(|(out, inward)| Wire {
            out,
            inward,
            under_way: 0,
            most: 0,
        })
    }

    #[test]
    fn each_task_is_served_and_the_window_is_kept() {
        let [mut near, mut far] = wires();
        let server = std::thread::spawn(move || serve(&mut far));
        for task in [Task::Sink, Task::Source, Task::Echo] {
            let (count, size) = (ACKNOWLEDGED * 10, 100);
            near.under_way = 0;
            let request = Request { task, count, size };
            assert_eq!(Request::parse(&request.to_bytes()), Some(request));
            near.send(&request.to_bytes()).unwrap();
            near.under_way = 0;
            match task {
                Task::Sink => send_all(&mut near, count, 100).unwrap(),
                Task::Source => receive_all(&mut near, count).unwrap(),
                Task::Echo => ping(&mut near, count, 100).unwrap(),
            }
            if task == Task::Sink {
                assert_eq!(near.most, WINDOW);
            }
        }
        drop(near);
        assert!(server.join().unwrap().is_err());
    }

    #[test]
    fn a_lost_datagram_is_an_error() {
        let [mut near, mut far] = wires();
        near.send(&message(DATA, 1, 0)).unwrap();
        assert!(
            receive_all(&mut far, 2)
                .unwrap_err()
                .to_string()
                .contains("0 of 2 is lost")
        );
    }
}
