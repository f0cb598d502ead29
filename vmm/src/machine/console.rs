//! The far end of a serial port: a terminal, a file, a socket, a pseudo-terminal, or the program that uses this library.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use devices::chardev;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Where the bytes of a serial port go to and come from.
pub struct Console {
    pub(super) output: Box<dyn Write + Send>,
    pub(super) input: Input,
    description: String,
}

/// What the machine's thread reads input from.
pub(super) enum Input {
    /// Nothing ever comes in.
    None,
    /// Bytes as they are.
    Stream(File),
    /// A person's terminal, where Ctrl-A is an escape.
    Terminal(File),
    /// One client at a time; its stream is shared with the output.
    Listener(UnixListener, SharedClient),
}

/// The client of a listening console, if one is there.
pub(super) type SharedClient = Arc<Mutex<Option<UnixStream>>>;

/// A console could not be opened
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The output file
    #[error("serial file '{path}': {source}; name a file in a folder that you may write to")]
    File {
        /// As the user gave it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The listening socket
    #[error("serial socket '{path}': {source}; name a path where no file is yet, in a folder that you may write to")]
    Socket {
        /// As the user gave it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket of somebody else
    #[error("serial socket '{path}': {source}; start the program that listens there first")]
    Connect {
        /// As the user gave it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pseudo-terminal
    #[error("serial pty: {0}; /dev/pts must be mounted")]
    Pty(io::Error),
    /// Standard input and output
    #[error("serial stdio: {0}")]
    Stdio(io::Error),
}

impl Console {
    /// Output is thrown away.
    pub fn none() -> Self {
        Self {
            output: Box::new(io::sink()),
            input: Input::None,
            description: "none".into(),
        }
    }

    /// Standard output and input of this process. With `escapes`, Ctrl-A x ends the machine, as under QEMU.
    ///
    /// # Errors
    /// Standard input or output is closed.
    pub fn stdio(escapes: bool) -> Result<Self, ConsoleError> {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).map_err(ConsoleError::Stdio);
        let input = duplicate(io::stdin().as_fd())?;
        let output = duplicate(io::stdout().as_fd())?;
        let input = if escapes {
            Input::Terminal(input)
        } else {
            Input::Stream(input)
        };
        Ok(Self {
            output: Box::new(output),
            input,
            description: "stdio".into(),
        })
    }

    /// Output goes to a file, which is emptied first.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn file(path: &Path) -> Result<Self, ConsoleError> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(path);
        let output = file.map_err(|source| ConsoleError::File {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            output: Box::new(output),
            input: Input::None,
            description: path.display().to_string(),
        })
    }

    /// Listens at `path` for one client at a time. Without a client, output is thrown away. The socket file goes when the machine does.
    ///
    /// # Errors
    /// The socket cannot be made, for instance since the path exists.
    pub fn socket(path: &Path) -> Result<Self, ConsoleError> {
        let error = |source| ConsoleError::Socket {
            path: path.into(),
            source,
        };
        let listener = UnixListener::bind(path).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        let client = SharedClient::default();
        let output = ToClient {
            client: Arc::clone(&client),
            path: path.into(),
        };
        let description = format!("UNIX socket {}", path.display());
        Ok(Self {
            output: Box::new(output),
            input: Input::Listener(listener, client),
            description,
        })
    }

    /// Waits until the first client of a [`Self::socket`] is there; `path` is for messages.
    ///
    /// # Errors
    /// The host refused.
    pub fn wait_for_client(self, path: &Path) -> Result<Self, ConsoleError> {
        if let Input::Listener(listener, client) = &self.input {
            let error = |source| ConsoleError::Socket {
                path: path.into(),
                source,
            };
            listener.set_nonblocking(false).map_err(error)?;
            let (stream, _) = listener.accept().map_err(error)?;
            listener.set_nonblocking(true).map_err(error)?;
            *client.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        }
        Ok(self)
    }

    /// Connects to the socket at `path`, where somebody listens.
    ///
    /// # Errors
    /// Nobody does.
    pub fn connect(path: &Path) -> Result<Self, ConsoleError> {
        let error = |source| ConsoleError::Connect {
            path: path.into(),
            source,
        };
        let output = UnixStream::connect(path).map_err(error)?;
        let input = File::from(OwnedFd::from(output.try_clone().map_err(error)?));
        Ok(Self {
            output: Box::new(output),
            input: Input::Stream(input),
            description: format!("UNIX socket {}", path.display()),
        })
    }

    /// A new pseudo-terminal; [`Self::description`] names it.
    ///
    /// # Errors
    /// None can be had.
    pub fn pty() -> Result<Self, ConsoleError> {
        let (master, name) = open_pty().map_err(ConsoleError::Pty)?;
        let output = master.try_clone().map_err(ConsoleError::Pty)?;
        let description = format!("pseudo-terminal {name}");
        Ok(Self {
            output: Box::new(NeverWaits(output)),
            input: Input::Stream(master),
            description,
        })
    }

    /// A console whose other end is the returned stream: what the guest prints is read from it, what is written to it is typed. A guest that
    /// prints waits while nobody reads.
    ///
    /// # Errors
    /// No socket pair can be had.
    pub fn stream() -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let output = File::from(OwnedFd::from(ours.try_clone()?));
        let input = Input::Stream(File::from(OwnedFd::from(ours)));
        Ok((
            Self {
                output: Box::new(output),
                input,
                description: "stream".into(),
            },
            theirs,
        ))
    }

    /// What it is, for people.
    pub fn description(&self) -> &str {
        &self.description
    }
}

/// Throws away what does not fit: a pseudo-terminal that nobody has opened fills up and stays full.
struct NeverWaits(File);

impl Write for NeverWaits {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.0.write(data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(data.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ToClient {
    client: SharedClient,
    path: PathBuf,
}

impl Write for ToClient {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if client.as_mut().is_some_and(|stream| stream.write_all(data).is_err()) {
            *client = None;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ToClient {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open_pty() -> io::Result<(File, String)> {
    let (master, name) = chardev::new_terminal()?;
    fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    Ok((File::from(master), name))
}

/// The text of Ctrl-A h.
pub(super) const ESCAPE_HELP: &str =
    "\r\nCtrl-A x  end the guest\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n";

/// Reads what is there; an empty result is the end of the input.
pub(super) fn read_some(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let count = input.read(&mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_pty_that_nobody_opens_takes_any_amount_of_output() {
        let mut console = Console::pty().unwrap();
        assert!(console.description().contains("/dev/pts/"), "{}", console.description());
        for _ in 0..100 {
            console.output.write_all(&[b'x'; 4096]).unwrap();
        }
    }

    #[test]
    fn a_pseudo_terminal_passes_bytes_as_they_are_and_echoes_nothing() {
        let mut console = Console::pty().unwrap();
        let name = console.description.strip_prefix("pseudo-terminal ").unwrap();
        let mut person = File::options().read(true).write(true).open(name).unwrap();
        console.output.write_all(b"said\n").unwrap();
        let mut heard = [0; 16];
        let count = person.read(&mut heard).unwrap();
        assert_eq!(&heard[..count], b"said\n");
        person.write_all(b"typed\n").unwrap();
        let Input::Stream(mut input) = console.input else {
            panic!("a pseudo-terminal is a stream")
        };
        let count = input.read(&mut heard).unwrap();
        assert_eq!(&heard[..count], b"typed\n");
    }

    #[test]
    fn a_socket_console_without_a_client_throws_output_away_and_removes_its_file() {
        let path = std::env::temp_dir().join(format!("innkeeper-test-{}.sock", std::process::id()));
        let mut console = Console::socket(&path).unwrap();
        console.output.write_all(b"nobody hears").unwrap();
        assert!(Console::socket(&path).is_err(), "a path in use is refused");
        drop(console);
        assert!(!path.exists());
    }
}
