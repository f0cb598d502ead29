//! Where random bytes come from.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::name;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::Writer;

/// The word for the host's kernel.
const KERNEL: &str = "getrandom";

/// EGD's request for so many bytes, which are the whole answer (QEMU, backends/rng-egd.c).
const EGD_READ: u8 = 2;
/// The most that one such request asks for.
const EGD_MAX: usize = 255;

/// The source that the user wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SourceConfig {
    /// The host's kernel (getrandom).
    Kernel,
    /// A file or device.
    File(String),
    /// The socket of an entropy gathering daemon.
    Egd(String),
}

impl SourceConfig {
    pub(super) fn from_options(options: &Options) -> Self {
        if let Some(path) = options.text(name::EGD) {
            return Self::Egd(path.to_owned());
        }
        match options.text(name::SOURCE) {
            None | Some(KERNEL) => Self::Kernel,
            Some(path) => Self::File(path.to_owned()),
        }
    }

    pub(super) fn open(&self) -> io::Result<Source> {
        Ok(match self {
            Self::Kernel => Source::Kernel,
            Self::File(path) => Source::File(open(path)?),
            Self::Egd(path) => Source::Egd(Egd::new(path)?),
        })
    }

    /// What to tell the user whose source cannot be opened.
    pub(super) fn refused(&self, options: &Options, error: &io::Error) -> ConfigError {
        let expected = |what: &str| format!("{what}: {error}");
        match self {
            Self::Egd(path) => options.invalid(name::EGD, path, expected("the socket of a daemon that listens")),
            Self::File(path) => options.invalid(name::SOURCE, path, expected("getrandom or a file or device")),
            Self::Kernel => options.invalid(name::SOURCE, KERNEL, error),
        }
    }
}

fn open(path: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(file)
}

/// A source that is open. None of them blocks.
pub(super) enum Source {
    Kernel,
    File(File),
    Egd(Egd),
}

impl Source {
    /// Writes random bytes to `writer`, at most `max` and more than none. Returns how many.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there will be some when [`Self::fd`] is readable. Any other:
    /// the source has none, or is at its end; later it may have some again.
    pub(super) fn fill(&mut self, writer: &mut Writer<'_>, max: usize) -> io::Result<usize> {
        let result = match self {
            Self::Kernel => writer.fill_from(&mut Kernel, max),
            Self::File(file) => writer.fill_from(file, max),
            Self::Egd(egd) => egd.fill(writer, max),
        };
        match (writer.written() as usize, result) {
            (0, Ok(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
            (0, Err(error)) => Err(error),
            (written, _) => Ok(written),
        }
    }

    /// What becomes readable when there are bytes.
    pub(super) fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Kernel => None,
            Self::File(file) => Some(file.as_raw_fd()),
            Self::Egd(egd) => Some(egd.stream.as_raw_fd()),
        }
    }
}

/// The host's kernel.
struct Kernel;

impl Read for Kernel {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        getrandom::fill(to).map_err(io::Error::from)?;
        Ok(to.len())
    }
}

/// A connection to an entropy gathering daemon.
pub(super) struct Egd {
    path: String,
    stream: UnixStream,
    /// The daemon is gone. The descriptor stays for as long as somebody may watch it: until bytes
    /// are wanted again.
    lost: bool,
    /// Bytes that were asked for and have not come.
    owed: usize,
}

impl Egd {
    fn new(path: &str) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            stream: connect(path)?,
            lost: false,
            owed: 0,
        })
    }

    fn fill(&mut self, writer: &mut Writer<'_>, max: usize) -> io::Result<usize> {
        if self.lost {
            // Not even an answer that asks for patience is one to wait for on the old descriptor.
            self.stream = connect(&self.path).map_err(|error| io::Error::other(error.to_string()))?;
            (self.lost, self.owed) = (false, 0);
        }
        let result = self.exchange(writer, max);
        self.lost = match &result {
            Ok(bytes) => *bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        result
    }

    fn exchange(&mut self, writer: &mut Writer<'_>, max: usize) -> io::Result<usize> {
        let wanted = writer.remaining().min(max).min(EGD_MAX);
        if self.owed == 0 {
            // There is one request at a time, so these two bytes always have room.
            self.stream.write_all(&[EGD_READ, wanted as u8])?;
            self.owed = wanted;
        }
        let result = writer.fill_from(&mut self.stream, self.owed.min(wanted));
        self.owed = self.owed.saturating_sub(writer.written() as usize);
        result
    }
}

/// Connects without waiting for a daemon that has more clients than it takes.
fn connect(path: &str) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
