//! What a user can say about a far end, whichever command line it was said on.

#![forbid(unsafe_code)]

use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::virtio::options::{ConfigError, OptionKind, OptionSpec, Options};

/// A far end as the user wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChardevConfig {
    /// Takes everything and says nothing.
    Null,
    /// A file that takes everything and says nothing.
    File {
        /// Where it is.
        path: PathBuf,
        /// Keeps what is in it.
        append: bool,
    },
    /// Standard input and output of this process.
    Stdio {
        /// Ctrl-A is an escape, as under QEMU.
        escapes: bool,
    },
    /// A new pseudo-terminal.
    Pty,
    /// Two named pipes, PATH.in and PATH.out, or one file for both directions.
    Pipe {
        /// Where they are.
        path: PathBuf,
    },
    /// A descriptor that this process inherited.
    Fd(i32),
    /// A stream socket.
    Socket {
        /// Where.
        address: SocketAddress,
        /// Which side of it.
        role: Role,
    },
    /// The last bytes are kept in memory.
    Ring {
        /// How many.
        size: usize,
    },
}

/// Where a socket is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketAddress {
    /// A path.
    Unix(PathBuf),
    /// A host and a port.
    Tcp {
        /// Name or number.
        host: String,
        /// Number.
        port: u16,
    },
}

/// Which side of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Listens; one client at a time.
    Server {
        /// Opening it waits for the first client.
        wait: bool,
    },
    /// Connects.
    Client {
        /// Seconds after which it tries again when there is no connection; `None`: the first one is the only one.
        reconnect: Option<NonZeroU32>,
    },
}

/// Kinds of far ends, as QEMU's `-chardev` spells them; `fd` is ours.
const BACKENDS: &[&str] = &[
    "null", "file", "stdio", "pty", "pipe", "fd", "socket", "ringbuf", "memory",
];

/// Bytes that a ring keeps if nothing else is said (QEMU, chardev/char-ringbuf.c).
const RING_SIZE: &str = "64K";
/// The largest ring.
const LARGEST_RING: u64 = 64 << 20;

/// The options of a far end, inline among those of what it belongs to. Names are those of QEMU's `-chardev`.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "backend",
        OptionKind::Choice(BACKENDS),
        "what is at the far end; nothing if not given",
    ),
    OptionSpec::new("path", OptionKind::Text, "of file, pipe and UNIX socket"),
    OptionSpec::new("append", OptionKind::Flag, "the file keeps what is in it").or("off"),
    OptionSpec::new("host", OptionKind::Text, "of a TCP socket").or("localhost"),
    OptionSpec::new("port", OptionKind::Number { min: 0, max: 65535 }, "of a TCP socket"),
    OptionSpec::new("server", OptionKind::Flag, "the socket listens instead of connecting").or("off"),
    OptionSpec::new("wait", OptionKind::Flag, "the start waits for the first client").or("on"),
    OptionSpec::new(
        "reconnect",
        OptionKind::Number { min: 0, max: 86400 },
        "seconds after which a lost connection is tried again; 0 for never",
    )
    .or("0"),
    OptionSpec::new(
        "fd",
        OptionKind::Number { min: 0, max: 1 << 20 },
        "number of an inherited descriptor",
    ),
    OptionSpec::new("size", OptionKind::Size, "bytes that ringbuf keeps").or(RING_SIZE),
    OptionSpec::new("nodelay", OptionKind::Flag, "always so: TCP sends what there is").or("on"),
    OptionSpec::new("signal", OptionKind::Flag, "always so: keys on stdio go to the guest").or("off"),
    OptionSpec::new("escapes", OptionKind::Flag, "Ctrl-A is an escape on stdio").or("off"),
];

impl ChardevConfig {
    /// A UNIX socket at `path` that listens and waits for nobody.
    pub fn listening(path: impl Into<PathBuf>) -> Self {
        Self::Socket {
            address: SocketAddress::Unix(path.into()),
            role: Role::Server { wait: false },
        }
    }

    /// What the [`OPTIONS`] among `options` say; `None` when they say nothing.
    ///
    /// # Errors
    /// Something is missing, or does not go together.
    pub fn from_options(options: &Options) -> Result<Option<Self>, ConfigError> {
        let Some(backend) = options.text("backend") else {
            return Ok(None);
        };
        let path = || options.required("path").map(PathBuf::from);
        let fd = || options.number("fd").and_then(|fd| i32::try_from(fd).ok());
        let missing_fd = || options.refused("fd= is missing", "give the number of an inherited descriptor");
        Ok(Some(match backend {
            "file" => Self::File {
                path: path()?,
                append: options.flag("append"),
            },
            "stdio" => Self::Stdio {
                escapes: options.flag("escapes"),
            },
            "pty" => Self::Pty,
            "pipe" => Self::Pipe { path: path()? },
            "fd" => Self::Fd(fd().ok_or_else(missing_fd)?),
            "socket" => match fd() {
                Some(fd) => Self::Fd(fd),
                None => Self::Socket {
                    address: address(options)?,
                    role: role(options),
                },
            },
            "ringbuf" | "memory" => Self::Ring {
                size: ring_size(options)?,
            },
            _ => Self::Null,
        }))
    }
}

fn address(options: &Options) -> Result<SocketAddress, ConfigError> {
    match (options.text("path"), options.number("port")) {
        (Some(path), None) => Ok(SocketAddress::Unix(path.into())),
        (None, Some(port)) => Ok(SocketAddress::Tcp {
            host: options.text("host").unwrap_or_default().to_owned(),
            port: u16::try_from(port).unwrap_or_default(),
        }),
        _ => Err(options.refused(
            "a socket needs one address",
            "give path= for a UNIX socket, or host= and port=",
        )),
    }
}

fn role(options: &Options) -> Role {
    if options.flag("server") {
        let wait = options.flag("wait");
        return Role::Server { wait };
    }
    let seconds = options.number("reconnect").unwrap_or_default();
    Role::Client {
        reconnect: u32::try_from(seconds).ok().and_then(NonZeroU32::new),
    }
}

fn ring_size(options: &Options) -> Result<usize, ConfigError> {
    let size = options.number("size").unwrap_or_default();
    let fits = (1..=LARGEST_RING).contains(&size);
    fits.then_some(size as usize)
        .ok_or_else(|| options.invalid("size", size, "a size from 1 to 64M"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Result<Option<ChardevConfig>, ConfigError> {
        ChardevConfig::from_options(&Options::parse("port", text, &[OPTIONS])?)
    }

    #[test]
    fn qemus_words_are_understood() {
        let unix = || SocketAddress::Unix("/run/x".into());
        let client = |seconds| Role::Client {
            reconnect: NonZeroU32::new(seconds),
        };
        let socket = |address, role| ChardevConfig::Socket { address, role };
        let tcp = SocketAddress::Tcp {
            host: "::1".into(),
            port: 4444,
        };
        for (text, expected) in [
            ("backend=null", ChardevConfig::Null),
            ("backend=pty", ChardevConfig::Pty),
            ("backend=fd,fd=7", ChardevConfig::Fd(7)),
            ("backend=socket,fd=7", ChardevConfig::Fd(7)),
            ("backend=memory", ChardevConfig::Ring { size: 65536 }),
            ("backend=socket,path=/run/x", socket(unix(), client(0))),
            ("backend=socket,path=/run/x,reconnect=2", socket(unix(), client(2))),
            (
                "backend=socket,path=/run/x,server=on,wait=off",
                ChardevConfig::listening("/run/x"),
            ),
            (
                "backend=socket,host=::1,port=4444,server=on",
                socket(tcp, Role::Server { wait: true }),
            ),
        ] {
            assert_eq!(read(text), Ok(Some(expected)), "{text}");
        }
        assert_eq!(read(""), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, complaint) in [
            ("backend=file", "port: path= is missing"),
            ("backend=fd", "port: fd= is missing"),
            ("backend=socket", "port: a socket needs one address"),
            ("backend=socket,path=/x,port=1", "port: a socket needs one address"),
            ("backend=ringbuf,size=1G", "port: size=1073741824: expected"),
            ("backend=udp", "port: backend=udp: expected null|file"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }
}
