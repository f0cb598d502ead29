//! Where the backend is, and who goes to whom.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::virtio::options::{ConfigError, OptionKind, OptionSpec, Options};

/// What the user says of the backend of a device.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "vhost-user",
        OptionKind::Text,
        "another process serves the queues, over the UNIX socket PATH, connect:PATH or listen:PATH",
    ),
    OptionSpec::new(
        "reconnect",
        OptionKind::Number { min: 0, max: 86400 },
        "with vhost-user: seconds after which a lost connection is tried again, 0 for never",
    )
    .or("0"),
];

/// Where the backend is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// The backend comes to us.
    listens: bool,
    /// Until we try again.
    reconnect: Option<Duration>,
}

impl Place {
    /// What the [`OPTIONS`] among `options` say.
    ///
    /// # Errors
    /// They do not name a path.
    pub(crate) fn from_options(options: &Options) -> Result<Self, ConfigError> {
        let text = options.required("vhost-user")?;
        let (listens, path) = match (text.strip_prefix("listen:"), text.strip_prefix("connect:")) {
            (Some(path), _) => (true, path),
            (_, Some(path)) => (false, path),
            _ => (false, text),
        };
        if path.is_empty() {
            return Err(options.invalid("vhost-user", text, "PATH, connect:PATH or listen:PATH"));
        }
        let seconds = options.number("reconnect").unwrap_or(0);
        Ok(Self {
            path: path.into(),
            listens,
            reconnect: (seconds > 0).then(|| Duration::from_secs(seconds)),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gets ready to meet it there.
    ///
    /// # Errors
    /// Its path cannot be listened at.
    pub(super) fn meet(self) -> io::Result<Meeting> {
        let listener = self.listens.then(|| listen(&self.path)).transpose()?;
        Ok(Meeting { place: self, listener })
    }
}

/// Where backends are met, one after the other.
pub(super) struct Meeting {
    place: Place,
    listener: Option<UnixListener>,
}

/// How to get to the next backend.
pub(super) enum Way<'a> {
    /// It comes here.
    Accept(&'a UnixListener),
    /// By [`Meeting::connect`], after so long.
    Connect(Duration),
    /// There will be none.
    None,
}

impl Meeting {
    pub(super) fn path(&self) -> &Path {
        &self.place.path
    }

    /// How a backend that has gone is followed by another.
    pub(super) fn next(&self) -> Way<'_> {
        match (&self.listener, self.place.reconnect) {
            (Some(listener), _) => Way::Accept(listener),
            (None, Some(after)) => Way::Connect(after),
            (None, None) => Way::None,
        }
    }

    /// Goes to the backend, and does not wait in a queue of others that it leaves standing.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        net::connect(&socket, &SocketAddrUnix::new(&self.place.path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if self.listener.is_some() {
            // Whoever removed it already has done no harm.
            let _ = fs::remove_file(&self.place.path);
        }
    }
}

/// A socket at `path`. One that nobody uses any more is replaced, as QEMU does.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket {
        let _ = fs::remove_file(path);
    }
    UnixListener::bind(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_backend_is_gone_to_or_waited_for() {
        let place = |text: &str| Place::from_options(&Options::parse("net", text, &[OPTIONS]).unwrap());
        let expected = |path: &str, listens, reconnect| Place {
            path: path.into(),
            listens,
            reconnect: Option::map(reconnect, Duration::from_secs),
        };
        for (text, place_of) in [
            ("vhost-user=/run/b", expected("/run/b", false, None)),
            ("vhost-user=connect:b:c,reconnect=2", expected("b:c", false, Some(2))),
            ("vhost-user=listen:b,reconnect=0", expected("b", true, None)),
        ] {
            assert_eq!(place(text).unwrap(), place_of, "{text}");
        }
        let error = place("vhost-user=listen:").unwrap_err().to_string();
        assert!(error.contains("expected PATH, connect:PATH or listen:PATH"), "{error}");
    }
}
