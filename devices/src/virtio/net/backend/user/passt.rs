//! passt as a program that belongs to a network card: started with a socket, watched, and ended.
//!
//! passt ends by itself when the other end of its socket is closed, which the kernel does however
//! this process ends. So it is never left behind, even though it has changed its user by then and
//! the kernel would send it no signal at our end (PR_SET_PDEATHSIG).

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::sys::fd;
use crate::threads;

/// The program.
const PROGRAM: &str = "passt";

/// How long it may take to start; it needs some 20 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often we look whether it has started.
const GLANCE: Duration = Duration::from_millis(1);

/// Bytes that are kept of what it says.
const TAIL: usize = 4096;

/// With what a line begins that an older passt writes once for each line of its own, where there is
/// no system log.
const NO_SYSLOG: &str = "Failed to send";

/// A frame that nobody answers: from and to everybody, of the type for local experiments (IEEE
/// 802, 0x88b5), with its length in front as the socket has it. passt reads it when it is ready.
const PROBE: [u8; 4 + 60] = {
    let mut probe = [0; 4 + 60];
    probe[3] = 60;
    let mut index = 4;
    while index < 4 + 12 {
        probe[index] = 0xff;
        index += 1;
    }
    probe[16] = 0x88;
    probe[17] = 0xb5;
    probe
};

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// passt is not installed
    #[error("passt is not installed")]
    Missing,
    /// passt does not start: its own words
    #[error("passt does not start: {0}")]
    Ended(String),
    /// passt did not read its socket
    #[error("passt does not read its socket")]
    Silent,
    /// passt cannot be started
    #[error("passt cannot be started: {0}")]
    Host(#[from] io::Error),
}

/// A passt that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Passt {
    /// `None` once somebody waits for its end.
    child: Arc<Mutex<Option<Child>>>,
    /// It is we who end it.
    ending: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Passt {
    /// Starts it with further `arguments`. When this returns, its ports are open, and it reads the
    /// socket that comes with it: frames, each behind its length as a big-endian 32-bit number.
    ///
    /// # Errors
    /// It is not installed, or did not start, with its own words.
    pub fn start(arguments: &[String]) -> Result<(Self, UnixStream), StartError> {
        Self::start_as(Command::new(PROGRAM), arguments)
    }

    /// The same with `command`, which runs passt in some way.
    fn start_as(command: Command, arguments: &[String]) -> Result<(Self, UnixStream), StartError> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(&PROBE)?;
        let mut child = spawn(command, theirs.into(), arguments)?;
        if let Err(error) = until_ready(&mut child, &ours) {
            // It may be over already.
            let _ = child.kill();
            let status = child.wait()?;
            return Err(match error {
                StartError::Ended(_) => StartError::Ended(tail(child.stderr.take()).unwrap_or(status.to_string())),
                other => other,
            });
        }
        Ok((Self::watch(child)?, ours))
    }

    fn watch(mut child: Child) -> io::Result<Self> {
        let stderr = child.stderr.take();
        let child = Arc::new(Mutex::new(Some(child)));
        let ending = Arc::new(AtomicBool::new(false));
        let mut passt = Self {
            child: Arc::clone(&child),
            ending: Arc::clone(&ending),
            listener: None,
        };
        passt.listener = Some(threads::spawn(PROGRAM, move || {
            let words = tail(stderr);
            if let Some(status) = end(&child)
                && !ending.load(Ordering::Relaxed)
            {
                let words = words.map_or(String::new(), |words| format!(": {words}"));
                tracing::error!("passt has ended ({status}){words}; the guest has no network any more");
            }
        })?);
        Ok(passt)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        end(&self.child);
        if let Some(listener) = self.listener.take()
            && listener.join().is_err()
        {
            tracing::error!("the thread that listens to passt panicked");
        }
    }
}

/// Ends `child`, unless somebody else does. Says how it ended, which it may have done before.
fn end(child: &Mutex<Option<Child>>) -> Option<ExitStatus> {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    // It may be over already.
    let _ = child.kill();
    child.wait().ok()
}

/// Takes the command, so that nobody else has the socket afterwards.
fn spawn(mut command: Command, socket: OwnedFd, arguments: &[String]) -> Result<Child, StartError> {
    command
        .args(["--foreground", "--quiet", "--fd", &socket.as_raw_fd().to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Keys at the terminal are for us.
        .process_group(0);
    fd::keep(&mut command, socket);
    command.spawn().map_err(|error| match error.kind() {
        // The second for a search path with a folder that this user may not look into.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => StartError::Missing,
        _ => StartError::Host(error),
    })
}

/// Waits until passt has read what is in the socket, of which `ours` is our end.
fn until_ready(child: &mut Child, ours: &UnixStream) -> Result<(), StartError> {
    let started = Instant::now();
    // Whether the socket was closed with something unread in it. It counts as read from then on.
    let mut gone = false;
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Err(StartError::Ended(status.to_string()));
        }
        if !gone && fd::unread_by_far_end(ours)? == 0 {
            gone = ours.take_error()?.is_some();
            if !gone {
                return Ok(());
            }
        }
        thread::sleep(GLANCE);
    }
    Err(StartError::Silent)
}

/// Listens until passt has nothing more to say, and returns its last line.
fn tail(stderr: Option<ChildStderr>) -> Option<String> {
    let mut stderr = stderr?;
    let mut tail = Vec::new();
    let mut piece = [0; 512];
    // An error says that there is no more, as 0 does.
    while let Ok(read @ 1..) = stderr.read(&mut piece) {
        tail.extend_from_slice(piece.get(..read).unwrap_or_default());
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
    last_line(&String::from_utf8_lossy(&tail))
}

fn last_line(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim);
    let mut telling = lines.filter(|line| !line.is_empty() && !line.starts_with(NO_SYSLOG));
    telling.next_back().map(str::to_owned)
}

#[cfg(test)]
mod tests;
