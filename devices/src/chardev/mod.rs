//! Far ends of character streams: what a serial port, a console or a monitor is connected to on the host.
//!
//! A [`Chardev`] is opened from a [`ChardevConfig`] and belongs to whoever serves it, usually a
//! [`Worker`](crate::io_thread::Worker). It never blocks after it is open. Its descriptors are watched edge-triggered:
//! the owner lists [`Chardev::sources`], passes events to [`Chardev::ready`], and may read while
//! [`Chardev::can_read`] and write while [`Chardev::can_write`]. Nothing is kept here: what the far end does not take stays
//! with the owner, what the owner does not take stays in the host's socket or pipe.
//!
//! A far end is *open* when somebody is there: a socket has its peer, a pseudo-terminal its reader. Files, pipes and
//! standard output always are. What is written while nobody is there is thrown away.

#![deny(unsafe_code)]

pub mod config;
mod ends;
pub mod escape;
#[allow(unsafe_code)]
mod inherited;
mod pty;
mod ring;
mod socket;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;

pub use config::{ChardevConfig, OPTIONS, Role, SocketAddress};
use ends::{End, Ends};
pub use escape::{Escape, EscapeFilter};
pub use pty::new_terminal;
pub use ring::RingBuffer;
use socket::{Listener, Target};

use crate::io_thread::{Interest, Source};
use crate::virtio::options::ConfigError;
use crate::virtio::virtq::GuestIoVec;

/// How the descriptors of a far end come and go.
enum Kind {
    /// There are none.
    Null,
    /// There are none, and the last bytes are kept.
    Ring(RingBuffer),
    /// They are there from the beginning.
    Fixed,
    /// A pseudo-terminal, whose other side is opened and closed by others.
    Pty,
    /// One client at a time.
    Server(Listener),
    /// A connection that may be lost.
    Client(Client),
}

struct Client {
    target: Target,
    /// Ticks from one attempt to the next.
    reconnect: Option<u32>,
    /// Ticks until the next.
    wait: u32,
    attempts: usize,
}

/// What of a far end is ready, as the low part of a token.
mod role {
    pub(super) const INPUT: u32 = 0;
    pub(super) const OUTPUT: u32 = 1;
    pub(super) const LISTENER: u32 = 2;
}

/// A far end, open.
pub struct Chardev {
    kind: Kind,
    ends: Ends,
    /// A client's connection is not decided yet, or nobody has opened the pseudo-terminal.
    absent: bool,
    readable: bool,
    writable: bool,
    /// [`Self::sources`] answers otherwise than it did.
    changed: bool,
    /// Not wanted any more, open until whoever watches has let go.
    retired: Vec<OwnedFd>,
    filter: Option<EscapeFilter>,
    description: String,
}

impl Chardev {
    /// Tokens that one far end needs.
    pub const TOKENS: u32 = 3;

    /// Opens what `config` says for `subject`, which errors name. Waits for a server's first client if `config` says so.
    ///
    /// # Errors
    /// The host has no such thing.
    pub fn open(config: &ChardevConfig, subject: &str) -> Result<Self, ConfigError> {
        open(config).map_err(|error| {
            let remedy = remedy(config);
            ConfigError::refused(subject, format_args!("{}: {error}", Name(config)), remedy)
        })
    }

    fn new(kind: Kind, ends: Ends, description: impl Into<String>) -> Self {
        Self {
            kind,
            ends,
            absent: false,
            readable: true,
            writable: true,
            changed: false,
            retired: Vec::new(),
            filter: None,
            description: description.into(),
        }
    }

    /// What it is, for people; of a pseudo-terminal the file to open.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The bytes that went to a ring.
    pub fn ring(&self) -> Option<RingBuffer> {
        match &self.kind {
            Kind::Ring(ring) => Some(ring.clone()),
            _ => None,
        }
    }

    /// Whether somebody is there.
    pub fn is_open(&self) -> bool {
        match self.kind {
            Kind::Null | Kind::Ring(_) => true,
            _ => !self.absent && !self.has_ended(),
        }
    }

    /// The descriptors to watch, edge-triggered, with tokens from `first` up.
    pub fn sources(&self, first: u32) -> Vec<Source> {
        let watch = |fd: &dyn AsRawFd, role, interest| Source {
            fd: fd.as_raw_fd(),
            token: first + role,
            interest,
        };
        let input = self.ends.input.iter().filter(|end| end.watchable);
        let output = self.ends.output.iter().filter(|end| end.watchable);
        let input = input.map(|end| watch(&end.fd, role::INPUT, Interest::Input));
        let output = output.map(|end| watch(&end.fd, role::OUTPUT, Interest::Output));
        let listener = match &self.kind {
            Kind::Server(listener) if !self.is_open() => Some(watch(listener, role::LISTENER, Interest::Input)),
            _ => None,
        };
        input.chain(output).chain(listener).collect()
    }

    /// Whether [`Self::sources`] answers otherwise than when [`Self::sources_taken`] was called.
    pub fn sources_changed(&self) -> bool {
        self.changed
    }

    /// What [`Self::sources`] answered last is watched now, and nothing else: descriptors that are no longer wanted are
    /// closed.
    pub fn sources_taken(&mut self) {
        self.changed = false;
        self.retired.clear();
    }

    /// The descriptor with this token, counted from the first, has something to say.
    pub fn ready(&mut self, token: u32) {
        match token {
            role::INPUT => {
                self.readable = true;
                if matches!(self.kind, Kind::Pty) {
                    self.look_for_reader();
                }
            }
            role::OUTPUT => {
                self.writable = true;
                self.finish_connecting();
            }
            _ => self.accept(),
        }
    }

    /// Whether time has to pass for somebody to come; then [`Self::tick`] is to be called about once a second.
    pub fn wants_tick(&self) -> bool {
        match &self.kind {
            Kind::Pty => self.absent,
            Kind::Client(client) => client.reconnect.is_some() && self.has_ended(),
            _ => false,
        }
    }

    /// A second has passed.
    pub fn tick(&mut self) {
        if !self.wants_tick() {
            return;
        }
        match &mut self.kind {
            Kind::Client(client) => {
                client.wait = client.wait.saturating_sub(1);
                if client.wait == 0 {
                    self.connect();
                }
            }
            _ => self.look_for_reader(),
        }
    }

    /// Whether there is no descriptor in either direction.
    fn has_ended(&self) -> bool {
        self.ends.input.is_none() && self.ends.output.is_none()
    }

    /// Whether reading may bring something.
    pub fn can_read(&self) -> bool {
        self.readable && !self.absent && self.ends.input.is_some()
    }

    /// Whether writing may get something done. What nobody would get can always be written.
    pub fn can_write(&self) -> bool {
        self.writable || self.absent || self.ends.output.is_none()
    }

    /// Whether what is read is to pass through [`Self::read`], because there is something to be filtered out.
    pub fn reads_bytes_only(&self) -> bool {
        self.filter.is_some()
    }

    /// Whether what is written is to pass through [`Self::write`], because there is no descriptor behind it.
    pub fn writes_bytes_only(&self) -> bool {
        matches!(self.kind, Kind::Ring(_))
    }

    /// Reads what is there. 0 means that nothing more will come for now: whoever was there has gone, or has nothing more
    /// to say. What the person at a terminal asked of us is in `escapes`; then 0 may mean that there was nothing else.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] and no other: there is nothing now.
    pub fn read(&mut self, to: &mut [u8], escapes: &mut Vec<Escape>) -> io::Result<usize> {
        let count = self.input(|fd| Ok(rustix::io::read(fd, &mut *to)?))?;
        let Some(filter) = &mut self.filter else {
            return Ok(count);
        };
        let mut kept = Vec::with_capacity(count);
        escapes.extend(filter.filter(to.get(..count).unwrap_or_default(), &mut kept));
        if let Some(to) = to.get_mut(..kept.len()) {
            to.copy_from_slice(&kept);
        }
        Ok(kept.len())
    }

    /// Reads what is there into guest memory; not for one that [reads bytes only](Self::reads_bytes_only). 0 as for
    /// [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_guest(&mut self, to: &GuestIoVec) -> io::Result<usize> {
        self.input(|fd| to.read(fd))
    }

    /// Writes, and returns how much was taken.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] and no other: nothing is taken now.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if let Kind::Ring(ring) = &self.kind {
            ring.write(from);
            return Ok(from.len());
        }
        self.output(from.len(), |fd| Ok(rustix::io::write(fd, from)?))
    }

    /// Writes from guest memory; not for one that [writes bytes only](Self::writes_bytes_only).
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_guest(&mut self, from: &GuestIoVec) -> io::Result<usize> {
        self.output(from.bytes(), |fd| from.write(fd))
    }

    /// For an owner who does not read now: whether whoever was there has gone nevertheless. What was left to read is lost
    /// then.
    pub fn notice_hang_up(&mut self) {
        if self.is_open() && self.ends.is_gone() {
            self.hang_up();
        }
    }

    fn input(&mut self, read: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>) -> io::Result<usize> {
        let end = self.ends.input.as_ref().filter(|_| !self.absent);
        let result = end.map_or(Err(io::ErrorKind::WouldBlock.into()), |end| read(end.fd.as_fd()));
        match result {
            Ok(count) if count > 0 => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Err(error);
            }
            // A signal; it can be tried again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(io::ErrorKind::WouldBlock.into()),
            _ => {}
        }
        if self.ends.duplex {
            self.hang_up();
        } else {
            self.retire_input();
        }
        Ok(0)
    }

    fn output(&mut self, all: usize, write: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>) -> io::Result<usize> {
        let Some(end) = self.ends.output.as_ref().filter(|_| !self.absent) else {
            return Ok(all);
        };
        match write(end.fd.as_fd()) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Err(error)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                tracing::debug!("{}: {error}", self.description);
                // Whoever has gone may have left something to read.
                if !matches!(self.kind, Kind::Pty) {
                    self.retire_output();
                }
                Ok(all)
            }
        }
    }

    /// Nobody is there any more.
    fn hang_up(&mut self) {
        if matches!(self.kind, Kind::Pty) {
            self.absent = true;
            return;
        }
        self.retire_input();
        self.retire_output();
        self.absent = false;
        if let Kind::Client(client) = &mut self.kind {
            client.wait = client.reconnect.unwrap_or_default();
        }
    }

    fn retire_input(&mut self) {
        self.retired.extend(self.ends.input.take().map(|end| end.fd));
        self.changed = true;
    }

    fn retire_output(&mut self) {
        self.retired.extend(self.ends.output.take().map(|end| end.fd));
        self.changed = true;
    }

    /// Takes a client, if there is none.
    fn accept(&mut self) {
        let Kind::Server(listener) = &self.kind else { return };
        // Both directions of the last client have ended before the next is taken.
        if !self.has_ended() {
            return;
        }
        match listener.accept().and_then(Ends::duplex) {
            Ok(ends) => self.arrived(ends),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::warn!("{}: a client was not taken: {error}", self.description),
        }
    }

    fn arrived(&mut self, ends: Ends) {
        self.ends = ends;
        (self.readable, self.writable, self.changed) = (true, true, true);
    }

    /// Begins to connect.
    fn connect(&mut self) {
        let Kind::Client(client) = &mut self.kind else { return };
        client.wait = client.reconnect.unwrap_or_default();
        client.attempts = client.attempts.wrapping_add(1);
        match client.target.begin(client.attempts).and_then(Ends::duplex) {
            Ok(ends) => {
                self.arrived(ends);
                self.absent = true;
                self.finish_connecting();
            }
            Err(error) => tracing::debug!("{}: {error}", self.description),
        }
    }

    /// A connection that was begun may be decided now.
    fn finish_connecting(&mut self) {
        let (Kind::Client(_), true, Some(end)) = (&self.kind, self.absent, &self.ends.output) else {
            return;
        };
        match socket::outcome(&end.fd) {
            Some(Ok(())) => self.absent = false,
            Some(Err(error)) => {
                tracing::debug!("{}: {error}", self.description);
                self.hang_up();
            }
            None => {}
        }
    }

    /// Whether somebody has the other side of the pseudo-terminal open.
    fn look_for_reader(&mut self) {
        let gone = self.ends.is_gone();
        if self.absent && !gone {
            self.absent = false;
            (self.readable, self.writable) = (true, true);
        }
        // One that has gone is noticed by reading, so that its last words are read.
    }
}

impl fmt::Debug for Chardev {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Chardev").field(&self.description).finish()
    }
}

fn open(config: &ChardevConfig) -> io::Result<Chardev> {
    let name = Name(config).to_string();
    Ok(match config {
        ChardevConfig::Null => Chardev::new(Kind::Null, Ends::default(), name),
        ChardevConfig::Ring { size } => Chardev::new(Kind::Ring(RingBuffer::new(*size)), Ends::default(), name),
        ChardevConfig::File { path, append } => {
            let how = if *append { OFlags::APPEND } else { OFlags::TRUNC };
            let output = Some(End::new(ends::open(path, how | OFlags::WRONLY | OFlags::CREATE)?)?);
            let ends = Ends {
                output,
                ..Ends::default()
            };
            Chardev::new(Kind::Fixed, ends, name)
        }
        ChardevConfig::Stdio { escapes } => {
            let ends = Ends {
                input: Some(End::standard(io::stdin().as_fd(), OFlags::RDONLY)?),
                output: Some(End::standard(io::stdout().as_fd(), OFlags::WRONLY)?),
                duplex: false,
            };
            let mut chardev = Chardev::new(Kind::Fixed, ends, name);
            chardev.filter = escapes.then(EscapeFilter::default);
            chardev
        }
        ChardevConfig::Pty => {
            let (master, name) = pty::open()?;
            let mut chardev = Chardev::new(Kind::Pty, Ends::duplex(master)?, format!("pseudo-terminal {name}"));
            chardev.absent = true;
            chardev
        }
        ChardevConfig::Pipe { path } => Chardev::new(Kind::Fixed, pipes(path)?, name),
        ChardevConfig::Fd(number) => Chardev::new(Kind::Fixed, Ends::duplex(inherited::adopt(*number)?)?, name),
        ChardevConfig::Socket { address, role } => match role {
            Role::Server { wait } => serve(address, *wait, name)?,
            Role::Client { reconnect } => connect(address, reconnect.map(u32::from), name)?,
        },
    })
}

/// Both of PATH.in and PATH.out, or PATH, as QEMU has it (chardev/char-pipe.c). They are opened for both directions, so
/// that whoever closes them at the other side ends nothing.
fn pipes(path: &Path) -> io::Result<Ends> {
    let with_suffix = |suffix: &str| {
        let mut path = path.as_os_str().to_owned();
        path.push(suffix);
        ends::open(Path::new(&path), OFlags::RDWR)
    };
    let (input, output) = match (with_suffix(".in"), with_suffix(".out")) {
        (Ok(input), Ok(output)) => (input, output),
        _ => {
            let both = ends::open(path, OFlags::RDWR)?;
            (both.try_clone()?, both)
        }
    };
    Ok(Ends {
        input: Some(End::new(input)?),
        output: Some(End::new(output)?),
        duplex: false,
    })
}

fn serve(address: &SocketAddress, wait: bool, name: String) -> io::Result<Chardev> {
    let listener = Listener::bind(address)?;
    let name = match listener.chosen() {
        Some(chosen) => format!("TCP socket {chosen}"),
        None => name,
    };
    let ends = if wait {
        tracing::info!("waiting for a client on {name}");
        Ends::duplex(listener.accept()?)?
    } else {
        Ends::default()
    };
    listener.set_nonblocking()?;
    Ok(Chardev::new(Kind::Server(listener), ends, name))
}

fn connect(address: &SocketAddress, reconnect: Option<u32>, name: String) -> io::Result<Chardev> {
    let target = Target::look_up(address)?;
    let ends = match reconnect {
        None => Ends::duplex(target.connect()?)?,
        Some(_) => Ends::default(),
    };
    let client = Client {
        target,
        reconnect,
        wait: 0,
        attempts: 0,
    };
    let mut chardev = Chardev::new(Kind::Client(client), ends, name);
    if reconnect.is_some() {
        chardev.connect();
    }
    Ok(chardev)
}

/// A far end for people.
struct Name<'a>(&'a ChardevConfig);

impl fmt::Display for Name<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ChardevConfig::Null => formatter.write_str("nothing"),
            ChardevConfig::File { path, .. } => write!(formatter, "file '{}'", path.display()),
            ChardevConfig::Stdio { .. } => formatter.write_str("standard input and output"),
            ChardevConfig::Pty => formatter.write_str("pseudo-terminal"),
            ChardevConfig::Pipe { path } => write!(formatter, "pipe '{}'", path.display()),
            ChardevConfig::Fd(number) => write!(formatter, "descriptor {number}"),
            ChardevConfig::Socket { address, .. } => address.fmt(formatter),
            ChardevConfig::Ring { size } => write!(formatter, "ring of {size} bytes"),
        }
    }
}

/// What the user can do when one cannot be opened.
fn remedy(config: &ChardevConfig) -> &'static str {
    match config {
        ChardevConfig::File { .. } => "name a file in a folder that you may write to",
        ChardevConfig::Pipe { .. } => "make PATH.in and PATH.out, or PATH, with mkfifo first",
        ChardevConfig::Pty => "/dev/pts must be mounted",
        ChardevConfig::Fd(_) => "give the number of a descriptor that this process inherits, and give it once",
        ChardevConfig::Socket {
            role: Role::Server { .. },
            ..
        } => "give an address that nobody uses, in a folder that you may write to",
        ChardevConfig::Socket { .. } => "start the server first, or add reconnect=1",
        ChardevConfig::Null | ChardevConfig::Stdio { .. } | ChardevConfig::Ring { .. } => {
            "look at how this process was started"
        }
    }
}
