//! I/O threads: they run the queues of devices, each thread an event loop over its workers.
//!
//! A device makes a [`Worker`] per queue, [adds](IoThread::add) it to a thread and gets a
//! [`WorkerHandle`]. From then on the worker belongs to the thread alone; [`WorkerHandle::stop`]
//! drains it there and brings it back. Nothing is locked while a worker works, so whoever waits in
//! `stop` may hold any lock that the worker does not take itself.
//!
//! Before a thread sleeps it looks for work for a while without a system call, as QEMU does with
//! `poll-max-ns`; see [`PollPolicy`].

#![forbid(unsafe_code)]

mod event_loop;
mod pacer;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use event_loop::{EventLoop, Mailbox};
pub use pacer::PollPolicy;

use crate::threads;

/// A descriptor that a worker watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The descriptor. A thread watches it once only: two workers that share a file each have a
    /// descriptor of their own (`dup`).
    pub fd: RawFd,
    /// Says which descriptor of the worker was ready.
    pub token: u32,
    /// What it is watched for.
    pub interest: Interest,
}

/// What a descriptor is watched for. A far end that has hung up counts as ready for either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// It can be read.
    Input,
    /// It can be written.
    Output,
    /// Either.
    Both,
}

impl Source {
    /// `source`, watched until it can be read.
    pub fn input(source: &impl AsRawFd, token: u32) -> Self {
        let (fd, interest) = (source.as_raw_fd(), Interest::Input);
        Self { fd, token, interest }
    }

    /// The same, watched for `interest`.
    #[must_use]
    pub fn with(self, interest: Interest) -> Self {
        Self { interest, ..self }
    }
}

/// What an I/O thread runs: the rings and the backend of one or several queues. While it is with a
/// thread, nobody else touches it.
///
/// A worker that panics is taken out of the loop, [told so](Self::panicked) and dropped; the thread
/// and its other workers go on.
pub trait Worker: Send {
    /// The descriptors to watch. Asked for when the worker comes to its thread, and again whenever
    /// [`Self::sources_changed`] says so.
    fn sources(&self) -> Vec<Source>;

    /// Whether [`Self::sources`] answers otherwise than before; asked after each call into the
    /// worker. A descriptor that is no longer wanted stays open until [`Self::sources_taken`].
    fn sources_changed(&self) -> bool {
        false
    }

    /// The thread watches what [`Self::sources`] answered last, and nothing else of this worker.
    fn sources_taken(&mut self) {}

    /// Whether [`Self::ready`] is wanted once per signal (EPOLLET) instead of for as long as a
    /// descriptor is readable. Then an eventfd need not be read, which saves a system call each
    /// time; whatever the descriptor has to say must be taken at once.
    fn edge_triggered(&self) -> bool {
        false
    }

    /// Called once on the I/O thread before the first event, for what was there already.
    fn started(&mut self) {}

    /// The descriptor with this token is ready. Must not block.
    fn ready(&mut self, token: u32);

    /// Looks for work without a system call, for adaptive polling; says whether there was any.
    /// Notifications are switched off by [`Self::ready`] while there is work and on again before
    /// the thread sleeps.
    fn poll(&mut self) -> bool {
        false
    }

    /// Switches notifications on before the thread sleeps; says whether work came in meanwhile, and
    /// the thread polls again.
    fn before_sleep(&mut self) -> bool {
        false
    }

    /// Called on the I/O thread when the worker is taken away: finishes what is in flight. May
    /// block until the backend is done.
    fn drain(&mut self) {}

    /// The worker panicked and is about to be dropped: the last chance to tell the driver. It may
    /// be in any state.
    fn panicked(&mut self) {}
}

/// A worker that can come back as what it was.
trait AnyWorker: Worker {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<W: Worker + 'static> AnyWorker for W {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// Names a worker of a thread. Never used twice.
type WorkerId = u64;

/// The worker panicked, or its thread is gone; there is nothing to hand back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker failed and was removed from its I/O thread")]
pub struct WorkerFailed;

/// A running I/O thread. Cloning gives another handle to the same thread; it ends when the last
/// handle, those of workers included, is gone.
#[derive(Clone)]
pub struct IoThread(Arc<Running>);

struct Running {
    name: String,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread. `name` is what `iothread=` and the process list show (the latter 15
    /// characters of it).
    ///
    /// # Errors
    /// The host gives no more threads or descriptors.
    pub fn spawn(name: &str, policy: PollPolicy) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let event_loop = EventLoop::new(Arc::clone(&mailbox), policy)?;
        let thread = threads::spawn(name, move || event_loop.run())?;
        Ok(Self(Arc::new(Running {
            name: name.to_owned(),
            mailbox,
            thread: Some(thread),
        })))
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether there are other handles than this one: those of devices that run on it, or may.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Gives `worker` to the thread. When this returns, the thread watches its descriptors and has
    /// called [`Worker::started`].
    ///
    /// # Errors
    /// A descriptor cannot be watched, or the thread is gone. The worker is dropped then.
    pub fn add<W: Worker + 'static>(&self, worker: W) -> io::Result<WorkerHandle<W>> {
        let worker: Box<dyn AnyWorker> = Box::new(worker);
        let id = self
            .call(|event_loop| event_loop.add(worker))
            .ok_or(io::ErrorKind::BrokenPipe)??;
        Ok(WorkerHandle {
            thread: self.clone(),
            id: Some(id),
            worker: PhantomData,
        })
    }

    /// Runs `action` on the thread, between two rounds of its loop, and waits for the answer.
    /// `None` if the thread is gone.
    fn call<R: Send + 'static>(&self, action: impl FnOnce(&mut EventLoop) -> R + Send + 'static) -> Option<R> {
        debug_assert!(!self.0.is_current(), "an I/O thread cannot wait for itself");
        let (answer, result) = mpsc::sync_channel(1);
        self.0.mailbox.post(Box::new(move |event_loop| {
            // Nobody may be waiting any more; that is their affair.
            let _ = answer.send(action(event_loop));
        }));
        result.recv().ok()
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IoThread").field(&self.name()).finish()
    }
}

impl Running {
    /// Whether this is the thread.
    fn is_current(&self) -> bool {
        let id = thread::current().id();
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == id)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.mailbox.post(Box::new(EventLoop::end));
        if self.is_current() {
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("I/O thread '{}' panicked", self.name);
        }
    }
}

/// A worker that is with its thread. Dropping it stops the worker too.
#[must_use = "the worker stops when its handle is dropped"]
pub struct WorkerHandle<W> {
    thread: IoThread,
    /// `None` once it was stopped.
    id: Option<WorkerId>,
    worker: PhantomData<fn() -> W>,
}

impl<W: Worker + 'static> WorkerHandle<W> {
    /// Takes the worker back: on its thread it is [drained](Worker::drain) and its descriptors are
    /// no longer watched. Blocks until that is done. Not to be called on the worker's own thread.
    ///
    /// # Errors
    /// [`WorkerFailed`] if it panicked, now or before.
    pub fn stop(mut self) -> Result<W, WorkerFailed> {
        let worker = self.take().ok_or(WorkerFailed)?;
        worker
            .into_any()
            .downcast()
            .map(|worker| *worker)
            .map_err(|_| WorkerFailed)
    }

    /// Whether the worker has panicked.
    pub fn has_failed(&self) -> bool {
        self.id
            .is_none_or(|id| self.thread.call(move |event_loop| !event_loop.has(id)).unwrap_or(true))
    }
}

impl<W> WorkerHandle<W> {
    fn take(&mut self) -> Option<Box<dyn AnyWorker>> {
        let id = self.id.take()?;
        self.thread.call(move |event_loop| event_loop.remove(id)).flatten()
    }
}

impl<W> Drop for WorkerHandle<W> {
    fn drop(&mut self) {
        // A worker that failed may have had one on its own thread, which cannot wait for itself.
        if !self.thread.0.is_current() {
            self.take();
        } else if let Some(id) = self.id.take() {
            let remove = move |event_loop: &mut EventLoop| drop(event_loop.remove(id));
            self.thread.0.mailbox.post(Box::new(remove));
        }
    }
}

/// The I/O threads that devices may run on: one by default, more where the user asks.
#[derive(Clone, Debug)]
pub struct IoThreads(Arc<[IoThread]>);

impl IoThreads {
    /// One thread, named `io0`.
    ///
    /// # Errors
    /// As for [`IoThread::spawn`].
    pub fn one(policy: PollPolicy) -> io::Result<Self> {
        Ok(Self(Arc::new([IoThread::spawn("io0", policy)?])))
    }

    /// These threads, in this order. `None` without any.
    pub fn new(threads: Vec<IoThread>) -> Option<Self> {
        (!threads.is_empty()).then(|| Self(threads.into()))
    }

    /// Only the thread called `name`, for a device that names one.
    pub fn named(&self, name: &str) -> Option<Self> {
        let thread = self.0.iter().find(|thread| thread.name() == name)?;
        Some(Self(Arc::new([thread.clone()])))
    }

    /// The thread of queue `index`: the queues of a device go round all threads.
    pub fn for_queue(&self, index: u16) -> &IoThread {
        // Never empty: all ways to make one see to that.
        &self.0[usize::from(index) % self.0.len()]
    }
}
