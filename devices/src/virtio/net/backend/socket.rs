//! Sockets as users name them: `host:port`, the path of a UNIX socket, or an open descriptor.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::fd;

/// How long the far end of a connection may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a socket is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    Unix(PathBuf),
    Inet(SocketAddr),
}

impl Address {
    /// Reads `host:port`, or a path: what has a slash in it, begins with `unix:`, or does not end
    /// in a port. An empty host is `nowhere`.
    ///
    /// # Errors
    /// There is no such host.
    pub(super) fn parse(text: &str, nowhere: &str) -> io::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let bare = text.trim_start_matches("tcp:").trim_start_matches("udp:");
        match bare.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(port))) if !host.contains('/') => {
                let host = if host.is_empty() { nowhere } else { host };
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let mut found = (host, port).to_socket_addrs()?;
                found
                    .next()
                    .map(Self::Inet)
                    .ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            _ => Ok(Self::Unix(text.into())),
        }
    }

    fn domain(&self) -> Domain {
        match self {
            Self::Unix(_) => Domain::UNIX,
            Self::Inet(address) => Domain::for_address(*address),
        }
    }

    fn to_socket_address(&self) -> io::Result<SockAddr> {
        match self {
            Self::Unix(path) => SockAddr::unix(path),
            Self::Inet(address) => Ok((*address).into()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Inet(address) => address.fmt(formatter),
        }
    }
}

/// The file of a UNIX socket, which goes when we do.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it already has done no harm.
        let _ = fs::remove_file(&self.0);
    }
}

/// A socket that has an address of its own and does not block.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: Socket,
    _file: Option<SocketFile>,
}

impl From<Socket> for Bound {
    fn from(socket: Socket) -> Self {
        Self { socket, _file: None }
    }
}

/// A socket of `kind` at `address`. A UNIX socket that nobody uses any more is replaced, as QEMU
/// does.
///
/// # Errors
/// The address cannot be had.
pub(super) fn bind(address: &Address, kind: Type) -> io::Result<Bound> {
    let socket = Socket::new(address.domain(), kind, None)?;
    let file = match address {
        Address::Unix(path) => {
            remove_stale(path);
            Some(path)
        }
        Address::Inet(_) => {
            socket.set_reuse_address(true)?;
            None
        }
    };
    socket.bind(&address.to_socket_address()?)?;
    socket.set_nonblocking(true)?;
    Ok(Bound {
        socket,
        _file: file.map(|path| SocketFile(path.clone())),
    })
}

/// A stream at `address` that waits for others.
///
/// # Errors
/// The address cannot be had.
pub(super) fn listen(address: &Address) -> io::Result<Bound> {
    let bound = bind(address, Type::STREAM)?;
    bound.socket.listen(1)?;
    Ok(bound)
}

/// A stream to `address`.
///
/// # Errors
/// Nobody answers there.
pub(super) fn connect(address: &Address) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    let far = address.to_socket_address()?;
    match address {
        Address::Unix(_) => socket.connect(&far)?,
        Address::Inet(_) => socket.connect_timeout(&far, CONNECT_TIMEOUT)?,
    }
    make_ready(&socket)?;
    Ok(socket)
}

/// Sends datagrams of `socket` to `address`, and receives from there only.
///
/// # Errors
/// Nobody is there.
pub(super) fn send_to(socket: &Socket, address: &Address) -> io::Result<()> {
    socket.connect(&address.to_socket_address()?)
}

/// The socket that whoever started us left open as `number`.
///
/// # Errors
/// There is none.
pub(super) fn inherited(number: &str) -> io::Result<Socket> {
    let number = number.parse().map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let socket = Socket::from(fd::inherited(number)?);
    socket.r#type()?;
    Ok(socket)
}

/// A connection as frames want it: small ones go at once, and nothing blocks.
///
/// # Errors
/// Those of the system call.
pub(super) fn make_ready(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if matches!(socket.domain()?, Domain::IPV4 | Domain::IPV6) {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(())
}

/// Removes the file of a UNIX socket that was left behind; any other file is left alone, and the
/// user told so.
fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_are_read_as_users_write_them() {
        let inet = |text: &str| Address::Inet(text.parse().unwrap());
        let unix = |text: &str| Address::Unix(text.into());
        for (text, address) in [
            ("127.0.0.1:1234", inet("127.0.0.1:1234")),
            ("tcp:127.0.0.1:1234", inet("127.0.0.1:1234")),
            (":1234", inet("0.0.0.0:1234")),
            ("[::1]:80", inet("[::1]:80")),
            ("/run/net.sock", unix("/run/net.sock")),
            ("./a:1", unix("./a:1")),
            ("net.sock", unix("net.sock")),
            ("unix:a:1", unix("a:1")),
        ] {
            assert_eq!(Address::parse(text, "0.0.0.0").unwrap(), address, "{text}");
        }
    }
}
