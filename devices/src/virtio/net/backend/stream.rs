//! Frames over a stream: each with its length in front, 4 bytes, big end first. It is what QEMU's
//! `-netdev socket` and `-netdev stream` speak (net/socket.c, net/net.c), and passt.
//!
//! A listening card takes one client at a time, and the next when that one is gone. While there is
//! none, what the guest sends is lost, as in QEMU.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Socket, Type};

use super::socket::{self, Address, Bound};
use super::{Backend, Endpoint, MAX_FRAME, Opened, Wanted, datagram};
use crate::io_thread::Source;
use crate::virtio::info::Host;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::report::Reporter;
use crate::virtio::virtq::GuestIoVec;

/// Bytes of the length in front of a frame.
const PREFIX: usize = 4;

/// Bytes that are received ahead, at least.
const READ_AHEAD: usize = 64 << 10;

/// Bytes that are kept back until the end of the batch, or until there are so many.
const KEPT_BACK: usize = 64 << 10;

/// The listener has two tokens in turn: with the other one it is watched anew, and tells of who has
/// come meanwhile.
const LISTENER: [u32; 2] = [0, 1];
const CONNECTION: u32 = 2;

/// `socket=listen:ADDR`, `connect:ADDR` or `fd=N`; a descriptor may be one for datagrams too, as in
/// QEMU.
pub(super) fn open(options: &Options, _host: &Host) -> Result<Opened, ConfigError> {
    let text = options.required("socket")?;
    let refused = |error: io::Error| options.refused(format!("socket={text}: {error}"), remedy(&error));
    if let Some(number) = text.strip_prefix("fd=").or(text.strip_prefix("fd:")) {
        let socket = socket::inherited(number).map_err(refused)?;
        if socket.r#type().map_err(refused)? == Type::DGRAM {
            return datagram::over(socket).map_err(refused);
        }
        return connected(socket, format!("fd={number}")).map_err(refused);
    }
    if let Some(text) = text.strip_prefix("listen:") {
        let address = Address::parse(text, "0.0.0.0").map_err(refused)?;
        let listener = socket::listen(&address).map_err(refused)?;
        return Ok(listening(listener, format!("listen={address}")));
    }
    if let Some(text) = text.strip_prefix("connect:") {
        let address = Address::parse(text, "127.0.0.1").map_err(refused)?;
        let socket = socket::connect(&address).map_err(refused)?;
        return connected(socket, format!("connect={address}")).map_err(refused);
    }
    Err(options.invalid(
        "socket",
        text,
        "listen:ADDR, connect:ADDR or fd=N, where ADDR is host:port or a path",
    ))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "start what listens there first",
        io::ErrorKind::AddrInUse => "choose another address, or end who uses it",
        _ => "check the address",
    }
}

/// A stream that has its far end.
///
/// # Errors
/// It is no socket that can be used so.
pub(in crate::virtio::net) fn connected(socket: Socket, name: String) -> io::Result<Opened> {
    socket::make_ready(&socket)?;
    Ok(opened(None, Some(socket), name))
}

fn listening(listener: Bound, name: String) -> Opened {
    opened(Some(listener), None, name)
}

fn opened(listener: Option<Bound>, connection: Option<Socket>, name: String) -> Opened {
    let connected = Arc::new(AtomicBool::new(connection.is_some()));
    let endpoint = Stream {
        listener,
        connection,
        retired: None,
        changed: false,
        clients: 0,
        connected: connected.clone(),
        incoming: Incoming::new(),
        outgoing: Outgoing::default(),
        reporter: Reporter::default(),
    };
    Opened::one(StreamBackend { name, connected }, endpoint)
}

struct StreamBackend {
    name: String,
    connected: Arc<AtomicBool>,
}

impl Backend for StreamBackend {
    fn describe(&self) -> String {
        let state = if self.connected.load(Ordering::Relaxed) {
            "connected"
        } else {
            "not connected"
        };
        format!("stream, {}, {state}", self.name)
    }
}

/// One end of the stream.
struct Stream {
    listener: Option<Bound>,
    connection: Option<Socket>,
    /// Closed once it is watched no longer.
    retired: Option<Socket>,
    changed: bool,
    /// How many have gone.
    clients: usize,
    connected: Arc<AtomicBool>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The far end can bring about as many failures as it likes.
    reporter: Reporter,
}

impl Stream {
    /// Takes the next client, if there is one.
    fn accept(&mut self) {
        // What is gone is watched for a moment longer; the next must not get its number.
        if self.connection.is_some() || self.retired.is_some() {
            return;
        }
        let Some(listener) = &self.listener else { return };
        let accepted = listener.socket.accept().and_then(|(socket, _)| {
            socket::make_ready(&socket)?;
            Ok(socket)
        });
        match accepted {
            Ok(socket) => {
                self.connection = Some(socket);
                self.connected.store(true, Ordering::Relaxed);
                self.changed = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.reporter.warn(format_args!("virtio-net: no client: {error}")),
        }
    }

    /// The far end is gone, or speaks another language. Anything of it that is half received or
    /// half sent is forgotten. The next client is taken as soon as this one is watched no longer.
    fn disconnect(&mut self) {
        self.retired = self.connection.take();
        self.clients = self.clients.wrapping_add(1);
        self.connected.store(false, Ordering::Relaxed);
        self.changed = true;
        self.incoming.clear();
        self.outgoing.clear();
    }

    /// The next frame. Only `WouldBlock` comes out.
    fn next(&mut self) -> io::Result<&[u8]> {
        let frame = loop {
            match self.incoming.next_frame() {
                Next::Frame(frame) => break frame,
                Next::Oversized(len) => {
                    self.reporter.warn(format_args!(
                        "virtio-net: the far end sent a frame of {len} bytes; disconnected"
                    ));
                    self.disconnect();
                    continue;
                }
                Next::Incomplete => {}
            }
            let Some(connection) = &self.connection else {
                return Err(io::ErrorKind::WouldBlock.into());
            };
            match self.incoming.read_from(connection) {
                Ok(0) => self.disconnect(),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Err(error),
                    io::ErrorKind::Interrupted => {}
                    _ => self.disconnect(),
                },
            }
        };
        Ok(self.incoming.bytes.get(frame).unwrap_or_default())
    }

    /// Sends what is waiting. Only `WouldBlock` comes out: of a far end that has gone, what it sent
    /// before is still to be received.
    fn push_out(&mut self) -> io::Result<()> {
        let Some(connection) = &self.connection else {
            self.outgoing.clear();
            return Ok(());
        };
        match self.outgoing.write_to(connection) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(_) => {
                self.outgoing.clear();
                if self.incoming.is_empty() && has_nothing(connection) {
                    self.disconnect();
                } else {
                    // A part of a frame may be there; nothing that makes sense can follow.
                    let _ = connection.shutdown(Shutdown::Write);
                }
                Ok(())
            }
        }
    }
}

/// Whether there is nothing to read, now or later.
fn has_nothing(connection: &Socket) -> bool {
    match connection.peek(&mut [MaybeUninit::uninit()]) {
        Ok(len) => len == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

impl Endpoint for Stream {
    fn sources(&self, wanted: Wanted) -> Vec<Source> {
        match (&self.connection, &self.listener) {
            (Some(connection), _) => wanted.watch(connection, CONNECTION),
            (None, Some(listener)) => vec![Source::input(&listener.socket, LISTENER[self.clients % 2])],
            (None, None) => Vec::new(),
        }
    }

    fn sources_changed(&self) -> bool {
        self.changed
    }

    fn sources_taken(&mut self) {
        self.changed = false;
        self.retired = None;
    }

    fn ready(&mut self, token: u32) {
        if LISTENER.contains(&token) {
            self.accept();
        }
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        self.next().map(|frame| buffers.copy_from(frame))
    }

    fn next_frame(&mut self) -> Option<io::Result<&[u8]>> {
        Some(self.next())
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        if self.connection.is_none() {
            return Ok(());
        }
        if self.outgoing.len() >= KEPT_BACK {
            self.push_out()?;
        }
        self.outgoing.add(frame.bytes(), |to| {
            frame.copy_to(to);
        });
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.outgoing.len() == 0 {
            return Ok(());
        }
        self.push_out()
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        if self.connection.is_some() && self.outgoing.len() < KEPT_BACK {
            self.outgoing.add(frame.len(), |to| to.copy_from_slice(frame));
        }
    }
}

/// What was received and not yet passed on.
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What lies at the front.
enum Next {
    /// A frame, by its place.
    Frame(Range<usize>),
    Incomplete,
    Oversized(usize),
}

impl Incoming {
    fn new() -> Self {
        Self {
            bytes: vec![0; PREFIX + MAX_FRAME + READ_AHEAD].into(),
            start: 0,
            end: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Takes the next frame out, if all of it is there.
    fn next_frame(&mut self) -> Next {
        let held = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = held.split_first_chunk::<PREFIX>() else {
            return Next::Incomplete;
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > MAX_FRAME {
            return Next::Oversized(len);
        }
        if len > rest.len() {
            return Next::Incomplete;
        }
        let start = self.start + PREFIX;
        self.start = start + len;
        Next::Frame(start..self.start)
    }

    /// Reads as much as there is room for. What is held goes to the front first: it is less than a
    /// frame.
    fn read_from(&mut self, mut socket: &Socket) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let read = socket.read(self.bytes.get_mut(self.end..).unwrap_or_default())?;
        self.end += read;
        Ok(read)
    }
}

/// What waits to be sent.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// How much of it is sent.
    sent: usize,
}

impl Outgoing {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }

    /// Adds a frame of `len` bytes, which `fill` writes.
    fn add(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) {
        let prefix = u32::try_from(len).unwrap_or(u32::MAX);
        self.bytes.extend(prefix.to_be_bytes());
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        fill(self.bytes.get_mut(start..).unwrap_or_default());
    }

    /// Writes as much as the socket takes.
    ///
    /// # Errors
    /// `WouldBlock` if there is a rest, others if nobody is there.
    fn write_to(&mut self, mut socket: &Socket) -> io::Result<()> {
        while self.len() > 0 {
            match socket.write(self.bytes.get(self.sent..).unwrap_or_default()) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.bytes.drain(..self.sent);
                    self.sent = 0;
                    return Err(error);
                }
            }
        }
        self.clear();
        Ok(())
    }
}
