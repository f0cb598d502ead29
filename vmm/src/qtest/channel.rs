//! Where the test is: the two ends of its connection, and the log of what goes over it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How to reach the test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Channel {
    /// It listens on a UNIX socket.
    Connect(PathBuf),
    /// It will connect to a UNIX socket here; the machine waits for it.
    Listen(PathBuf),
    /// Standard input and output.
    Stdio,
}

/// Where requests and answers are logged.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum LogTarget {
    /// Nowhere.
    None,
    /// On standard error.
    #[default]
    Stderr,
    /// In a file, which is emptied first.
    File(PathBuf),
}

/// The test cannot be reached
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The words of the option
    #[error("qtest: '{0}' is no place of a test; write unix:PATH, unix:PATH,server=on or stdio")]
    Unknown(String),
    /// The socket
    #[error("qtest socket '{path}': {source}; {remedy}")]
    Socket {
        /// As the user gave it.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The log file
    #[error("qtest log '{path}': {source}; name a file in a folder that you may write to")]
    Log {
        /// As the user gave it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard input and output
    #[error("qtest stdio: {0}")]
    Stdio(io::Error),
}

/// The connection's two directions.
pub struct Connection {
    /// Requests come from here.
    pub input: Box<dyn Read + Send>,
    /// Answers go here.
    pub output: Output,
}

impl Channel {
    /// Reads the argument of QEMU's `-qtest`, as far as it names a UNIX socket or standard input and output.
    ///
    /// # Errors
    /// It names something else.
    pub fn parse(text: &str) -> Result<Self, ChannelError> {
        let unknown = || ChannelError::Unknown(text.to_owned());
        if text == "stdio" {
            return Ok(Self::Stdio);
        }
        let mut parts = text.strip_prefix("unix:").ok_or_else(unknown)?.split(',');
        let path = parts.next().filter(|path| !path.is_empty()).ok_or_else(unknown)?;
        let mut listens = false;
        for part in parts {
            match part {
                "server" | "server=on" => listens = true,
                // Without its test the machine has nothing to do.
                "server=off" | "wait" | "wait=on" | "wait=off" | "nowait" => {}
                _ => return Err(unknown()),
            }
        }
        let path = path.into();
        Ok(if listens {
            Self::Listen(path)
        } else {
            Self::Connect(path)
        })
    }

    /// Reaches the test, and opens the log.
    ///
    /// # Errors
    /// Nobody is there, or the log cannot be written.
    pub fn open(&self, log: &LogTarget) -> Result<Connection, ChannelError> {
        let (input, output): (Box<dyn Read + Send>, Box<dyn Write + Send>) = match self {
            Self::Connect(path) => {
                let stream =
                    UnixStream::connect(path).map_err(failed(path, "start the test first: it listens there"))?;
                let input = stream
                    .try_clone()
                    .map_err(failed(path, "raise the limit of open files"))?;
                (Box::new(input), Box::new(stream))
            }
            Self::Listen(path) => {
                let listener = UnixListener::bind(path).map_err(failed(path, "name a path where no file is yet"))?;
                let (stream, _) = listener.accept().map_err(failed(path, "try again"))?;
                let input = stream
                    .try_clone()
                    .map_err(failed(path, "raise the limit of open files"))?;
                (Box::new(input), Box::new(stream))
            }
            Self::Stdio => {
                let input = io::stdin().as_fd().try_clone_to_owned().map_err(ChannelError::Stdio)?;
                let output = io::stdout().as_fd().try_clone_to_owned().map_err(ChannelError::Stdio)?;
                (Box::new(File::from(input)), Box::new(File::from(output)))
            }
        };
        Ok(Connection {
            input,
            output: Output::new(output, log.open()?),
        })
    }
}

fn failed<'a>(path: &'a Path, remedy: &'static str) -> impl FnOnce(io::Error) -> ChannelError + 'a {
    move |source| ChannelError::Socket {
        path: path.to_owned(),
        source,
        remedy,
    }
}

impl LogTarget {
    /// Reads the argument of QEMU's `-qtest-log`; without the option the log is on standard error.
    pub fn parse(text: &str) -> Self {
        match text {
            "none" => Self::None,
            path => Self::File(path.into()),
        }
    }

    fn open(&self) -> Result<Option<Box<dyn Write + Send>>, ChannelError> {
        Ok(match self {
            Self::None => None,
            // A log that nobody can read costs as much as one that somebody does.
            Self::File(path) if path == Path::new("/dev/null") => None,
            Self::Stderr => Some(Box::new(io::stderr())),
            Self::File(path) => Some(Box::new(File::create(path).map_err(|source| ChannelError::Log {
                path: path.clone(),
                source,
            })?)),
        })
    }
}

/// Where lines to the test go; clones write to the same place, a whole line at a time.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Lines>>);

struct Lines {
    to: Box<dyn Write + Send>,
    log: Option<Box<dyn Write + Send>>,
    since: Instant,
}

impl Output {
    /// Lines go to `to`, and into `log`.
    pub fn new(to: Box<dyn Write + Send>, log: Option<Box<dyn Write + Send>>) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            to,
            log,
            since: Instant::now(),
        })))
    }

    /// Sends a line, whose end is added here. A test that has gone reads no more lines.
    ///
    /// # Errors
    /// The test has gone.
    pub fn send(&self, line: &str) -> io::Result<()> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.log('S', line);
        lines.to.write_all(format!("{line}\n").as_bytes())?;
        lines.to.flush()
    }

    /// Puts a line that came in, or what happened to the connection, into the log.
    pub fn log(&self, kind: char, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).log(kind, text);
    }
}

impl Lines {
    fn log(&mut self, kind: char, text: &str) {
        let elapsed = self.since.elapsed().as_secs_f64();
        if let Some(log) = &mut self.log
            // A full disk, say: the test goes on without the log.
            && writeln!(log, "[{kind} +{elapsed:.6}] {text}").is_err()
        {
            self.log = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_option_is_read_as_qemu_reads_it() {
        let connect = |path: &str| Channel::Connect(path.into());
        assert_eq!(Channel::parse("unix:/tmp/a").unwrap(), connect("/tmp/a"));
        assert_eq!(Channel::parse("unix:a,server=off").unwrap(), connect("a"));
        assert_eq!(
            Channel::parse("unix:a,server=on,wait=off").unwrap(),
            Channel::Listen("a".into())
        );
        assert_eq!(Channel::parse("stdio").unwrap(), Channel::Stdio);
        for text in ["", "unix:", "unix:a,speed=1", "tcp::1"] {
            let error = Channel::parse(text).unwrap_err().to_string();
            assert!(error.contains("unix:PATH"), "{error}");
        }
    }

    #[test]
    fn a_test_that_is_not_there_is_named() {
        let error = Channel::Connect("/nonexistent/socket".into())
            .open(&LogTarget::None)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("/nonexistent/socket"), "{error}");
    }
}
