//! Frames as datagrams, one in each, over UDP or a UNIX socket: what QEMU's `-netdev dgram` speaks
//! (net/dgram.c).

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use socket2::{Socket, Type};

use super::socket::{self, Address, Bound};
use super::{Backend, Endpoint, Opened, Wanted};
use crate::io_thread::Source;
use crate::virtio::info::Host;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

/// Notes that the far end is not there come in the place of datagrams; so many are passed over at
/// once.
const REFUSALS: usize = 16;

/// `dgram=LOCAL,remote=REMOTE` or `dgram=fd=N`.
pub(super) fn open(options: &Options, _host: &Host) -> Result<Opened, ConfigError> {
    let local = options.required("dgram")?;
    let refused = |error: io::Error| options.refused(format!("dgram={local}: {error}"), "check the addresses");
    if let Some(number) = local.strip_prefix("fd=").or(local.strip_prefix("fd:")) {
        if options.is_given("remote") {
            return Err(options.refused(format!("dgram={local} has its far end"), "leave out remote="));
        }
        return over(socket::inherited(number).map_err(refused)?).map_err(refused);
    }
    let Some(remote) = options.text("remote") else {
        return Err(options.refused(format!("dgram={local}: where to?"), "give remote="));
    };
    let local = Address::parse(local, "0.0.0.0").map_err(refused)?;
    let remote = Address::parse(remote, "127.0.0.1").map_err(refused)?;
    let name = format!("local={local}, remote={remote}");
    let endpoint = Datagrams {
        bound: socket::bind(&local, Type::DGRAM).map_err(refused)?,
        remote: Some(remote),
    };
    Ok(Opened::one(DatagramBackend { name }, endpoint))
}

/// Over a socket that has its far end.
///
/// # Errors
/// It cannot be used so.
pub(super) fn over(socket: Socket) -> io::Result<Opened> {
    socket.set_nonblocking(true)?;
    let endpoint = Datagrams {
        bound: Bound::from(socket),
        remote: None,
    };
    let name = "fd".to_owned();
    Ok(Opened::one(DatagramBackend { name }, endpoint))
}

struct DatagramBackend {
    name: String,
}

impl Backend for DatagramBackend {
    fn describe(&self) -> String {
        format!("datagrams, {}", self.name)
    }
}

struct Datagrams {
    bound: Bound,
    /// Where to, until the socket is connected to it: a UNIX socket may come later, and again.
    remote: Option<Address>,
}

impl Datagrams {
    /// Whether there is a far end to send to.
    fn find_far_end(&mut self) -> bool {
        match &self.remote {
            None => true,
            Some(remote) => socket::send_to(&self.bound.socket, remote).is_ok(),
        }
    }

    fn socket(&self) -> &Socket {
        &self.bound.socket
    }
}

impl Endpoint for Datagrams {
    fn sources(&self, wanted: Wanted) -> Vec<Source> {
        wanted.watch(self.socket(), 0)
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        let mut last = Ok(0);
        for _ in 0..REFUSALS {
            match buffers.read_from(self.socket().as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // It says what became of a datagram of ours; one for us may lie behind it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => last = Ok(0),
                Err(error) => last = Err(error),
                received => return received,
            }
        }
        last
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        match frame.write(self.socket().as_fd()) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // There is no far end yet, or another one than there was.
            Err(error) => match self.find_far_end() {
                true => frame.write(self.socket().as_fd()).map(drop),
                false => Err(error),
            },
        }
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        if self.socket().send(frame).is_err() && self.find_far_end() {
            let _ = self.socket().send(frame);
        }
    }
}
