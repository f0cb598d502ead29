//! Stream sockets: waiting for a client, and connecting to a server.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::config::SocketAddress;

impl fmt::Display for SocketAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "UNIX socket {}", path.display()),
            Self::Tcp { host, port } => write!(formatter, "TCP socket {host}:{port}"),
        }
    }
}

/// A listening socket. The file of a UNIX socket goes with it.
pub(super) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) fn bind(address: &SocketAddress) -> io::Result<Self> {
        match address {
            SocketAddress::Unix(path) => {
                remove_stale(path);
                Ok(Self::Unix(UnixListener::bind(path)?, path.clone()))
            }
            SocketAddress::Tcp { host, port } => Ok(Self::Tcp(TcpListener::bind((host.as_str(), *port))?)),
        }
    }

    /// Where it listens, if that is not what was asked for: the port that the host chose.
    pub(super) fn chosen(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(listener, _) => listener.set_nonblocking(true),
            Self::Tcp(listener) => listener.set_nonblocking(true),
        }
    }

    /// The next client.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(listener, _) => listener.accept()?.0.into(),
            Self::Tcp(listener) => {
                let client = listener.accept()?.0;
                client.set_nodelay(true)?;
                client.into()
            }
        })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(listener, _) => listener.as_raw_fd(),
            Self::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket at which nobody listens any more; whatever else is at `path` stays.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let nobody =
        is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if nobody {
        let _ = std::fs::remove_file(path);
    }
}

/// Where to connect to, names looked up.
pub(super) enum Target {
    Unix(PathBuf),
    Tcp(Vec<SocketAddr>),
}

impl Target {
    pub(super) fn look_up(address: &SocketAddress) -> io::Result<Self> {
        Ok(match address {
            SocketAddress::Unix(path) => Self::Unix(path.clone()),
            SocketAddress::Tcp { host, port } => Self::Tcp((host.as_str(), *port).to_socket_addrs()?.collect()),
        })
    }

    /// Connects, however long it takes.
    pub(super) fn connect(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(path) => UnixStream::connect(path)?.into(),
            Self::Tcp(addresses) => {
                let stream = std::net::TcpStream::connect(addresses.as_slice())?;
                stream.set_nodelay(true)?;
                stream.into()
            }
        })
    }

    /// Begins to connect for the `attempt`th time, to each of several addresses in turn. The socket can be written when
    /// it is decided.
    pub(super) fn begin(&self, attempt: usize) -> io::Result<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = |family| rustix::net::socket_with(family, SocketType::STREAM, flags, None);
        let (socket, result) = match self {
            Self::Unix(path) => {
                let socket = socket(AddressFamily::UNIX)?;
                let result = rustix::net::connect(&socket, &SocketAddrUnix::new(path)?);
                (socket, result)
            }
            Self::Tcp(addresses) => {
                let index = attempt.checked_rem(addresses.len()).unwrap_or_default();
                let address = addresses.get(index).ok_or(io::ErrorKind::AddrNotAvailable)?;
                let family = if address.is_ipv4() {
                    AddressFamily::INET
                } else {
                    AddressFamily::INET6
                };
                let socket = socket(family)?;
                sockopt::set_tcp_nodelay(&socket, true)?;
                let result = rustix::net::connect(&socket, address);
                (socket, result)
            }
        };
        match result {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }
}

/// How a connection that was begun has ended: `None` while it is not decided.
pub(super) fn outcome(socket: &OwnedFd) -> Option<io::Result<()>> {
    match sockopt::socket_error(socket) {
        Ok(Ok(())) if rustix::net::getpeername(socket).is_err() => None,
        Ok(Ok(())) => Some(Ok(())),
        Ok(Err(error)) | Err(error) => Some(Err(error.into())),
    }
}
