//! Who makes the calls that transfers consist of.

mod threads;
mod uring;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::disk::Disk;
use super::options::AioMode;
use super::transfer::Transfer;
pub use threads::ThreadsEngine;
pub use uring::UringEngine;

/// Carries out transfers for one queue. They are finished in any order.
pub enum Engine {
    /// The kernel does it.
    Uring(Box<UringEngine>),
    /// Threads do it.
    Threads(ThreadsEngine),
}

impl Engine {
    /// The engine that the user asked for, if `disk` and host allow it; else threads, which always
    /// work. `depth` transfers are in flight at most.
    ///
    /// # Errors
    /// The host gives no descriptors.
    pub fn new(disk: &Disk, depth: u16) -> io::Result<Self> {
        let raw = disk.image().as_raw().filter(|raw| !raw.has_partial_blocks());
        if disk.aio() == AioMode::IoUring
            && let Some(raw) = raw
        {
            match UringEngine::new(raw.file(), depth) {
                Ok(engine) => return Ok(Self::Uring(Box::new(engine))),
                Err(error) => disk.report(format_args!("io_uring is refused ({error}), using aio=threads")),
            }
        }
        Ok(Self::Threads(ThreadsEngine::new(Arc::clone(disk.image()))?))
    }

    /// The name of the `aio=` option.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Threads(_) => "threads",
        }
    }

    /// Readable when transfers are finished; watched edge-triggered.
    pub fn source(&self) -> RawFd {
        match self {
            Self::Uring(engine) => engine.source(),
            Self::Threads(engine) => engine.source(),
        }
    }

    /// Takes a transfer that was [prepared](Transfer::prepare). It begins at the next
    /// [`Self::submit`] at the latest.
    pub fn push(&mut self, transfer: Box<Transfer>) {
        match self {
            Self::Uring(engine) => engine.push(transfer),
            Self::Threads(engine) => engine.push(transfer),
        }
    }

    /// Begins everything that was pushed.
    pub fn submit(&mut self) {
        match self {
            Self::Uring(engine) => engine.submit(),
            Self::Threads(engine) => engine.submit(),
        }
    }

    /// Moves finished transfers to `done`. Makes no system call.
    pub fn reap(&mut self, done: &mut Vec<Box<Transfer>>) {
        match self {
            Self::Uring(engine) => engine.reap(done),
            Self::Threads(engine) => engine.reap(done),
        }
    }

    /// Whether there is something to reap or to submit. Makes no system call.
    pub fn has_work(&mut self) -> bool {
        match self {
            Self::Uring(engine) => engine.has_work(),
            Self::Threads(engine) => engine.has_work(),
        }
    }

    /// Transfers that were pushed and not reaped.
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Uring(engine) => engine.in_flight(),
            Self::Threads(engine) => engine.in_flight(),
        }
    }

    /// Submits, and blocks until there is something to reap. Returns at once when nothing is in
    /// flight.
    pub fn wait(&mut self) {
        match self {
            Self::Uring(engine) => engine.wait(),
            Self::Threads(engine) => engine.wait(),
        }
    }
}
