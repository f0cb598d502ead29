//! Calls made by a few threads of our own, for hosts without io_uring and for images that are more
//! than a file.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::threads;
use crate::virtio::block::backend::Image;
use crate::virtio::block::transfer::Transfer;

/// The most threads of one queue. They are started when there is work for them.
const MAX_THREADS: usize = 16;

/// Threads, and the transfers that they work on.
#[expect(clippy::vec_box, reason = "a transfer is its box: moving it moves a pointer")]
pub struct ThreadsEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Pushed and not submitted.
    batch: Vec<Box<Transfer>>,
    in_flight: usize,
}

struct Shared {
    image: Arc<dyn Image>,
    state: Mutex<State>,
    /// There is work, or an end of it.
    work: Condvar,
    /// Something is done.
    finished: Condvar,
    /// Signalled when `State::done` is no longer empty.
    signal: EventFd,
    /// `State::done` is not empty; spares a look the lock.
    has_done: AtomicBool,
}

#[derive(Default)]
#[expect(clippy::vec_box, reason = "a transfer is its box: moving it moves a pointer")]
struct State {
    queue: VecDeque<Box<Transfer>>,
    done: Vec<Box<Transfer>>,
    idle: usize,
    /// A thread was woken and has not looked yet.
    waking: bool,
    ending: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes a thread, one at a time: whoever wakes and finds more work than it can take wakes the
    /// next. So a batch that one thread gets through in no time does not cost a wake-up for each of
    /// its transfers.
    fn wake(&self, state: &mut State) {
        if state.idle > 0 && !state.waking {
            state.waking = true;
            self.work.notify_one();
        }
    }

    /// What each thread does.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(mut transfer) = state.queue.pop_front() {
                if !state.queue.is_empty() {
                    self.wake(&mut state);
                }
                drop(state);
                let executed = catch_unwind(AssertUnwindSafe(|| self.image.execute(&mut transfer)));
                if executed.is_err() {
                    transfer.finish(Err(io::Error::other("the backend panicked")));
                }
                state = self.lock();
                state.done.push(transfer);
                if state.done.len() == 1 {
                    self.has_done.store(true, Ordering::Release);
                    // It only fails when the counter is at its end, and then it is readable anyway.
                    let _ = self.signal.write(1);
                    self.finished.notify_one();
                }
            } else if state.ending {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                state.waking = false;
            }
        }
    }
}

impl ThreadsEngine {
    /// An engine for `image`.
    ///
    /// # Errors
    /// The host gives no descriptors.
    pub fn new(image: Arc<dyn Image>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            image,
            state: Mutex::default(),
            work: Condvar::new(),
            finished: Condvar::new(),
            signal: EventFd::new(EFD_NONBLOCK)?,
            has_done: AtomicBool::new(false),
        });
        Ok(Self {
            shared,
            threads: Vec::new(),
            batch: Vec::new(),
            in_flight: 0,
        })
    }

    /// An eventfd that is signalled when transfers are finished.
    pub fn source(&self) -> RawFd {
        self.shared.signal.as_raw_fd()
    }

    /// See [`Engine::push`](super::Engine::push).
    pub fn push(&mut self, transfer: Box<Transfer>) {
        self.batch.push(transfer);
        self.in_flight += 1;
    }

    /// See [`Engine::submit`](super::Engine::submit).
    pub fn submit(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let missing = {
            let mut state = self.shared.lock();
            state.queue.extend(self.batch.drain(..));
            self.shared.wake(&mut state);
            state.queue.len().saturating_sub(state.idle)
        };
        for _ in 0..missing.min(MAX_THREADS - self.threads.len()) {
            self.start_thread();
        }
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        match threads::spawn("disk", move || shared.run()) {
            Ok(thread) => self.threads.push(thread),
            Err(error) if self.threads.is_empty() => {
                tracing::error!("no thread for a disk ({error}); it is served by its I/O thread");
                self.work_here();
            }
            Err(_) => {}
        }
    }

    /// Without any thread, work is done by whoever brings it.
    fn work_here(&self) {
        let mut state = self.shared.lock();
        while let Some(mut transfer) = state.queue.pop_front() {
            self.shared.image.execute(&mut transfer);
            state.done.push(transfer);
        }
        self.shared.has_done.store(!state.done.is_empty(), Ordering::Release);
    }

    /// See [`Engine::reap`](super::Engine::reap).
    pub fn reap(&mut self, done: &mut Vec<Box<Transfer>>) {
        if !self.shared.has_done.load(Ordering::Acquire) {
            return;
        }
        let before = done.len();
        let mut state = self.shared.lock();
        done.append(&mut state.done);
        self.shared.has_done.store(false, Ordering::Release);
        drop(state);
        self.in_flight -= done.len() - before;
    }

    /// See [`Engine::has_work`](super::Engine::has_work).
    pub fn has_work(&self) -> bool {
        !self.batch.is_empty() || self.shared.has_done.load(Ordering::Acquire)
    }

    /// See [`Engine::in_flight`](super::Engine::in_flight).
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// See [`Engine::wait`](super::Engine::wait).
    pub fn wait(&mut self) {
        self.submit();
        let mut state = self.shared.lock();
        while self.in_flight > 0 && state.done.is_empty() {
            state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for ThreadsEngine {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of the backend were caught; there are no others to hear of.
            let _ = thread.join();
        }
    }
}
