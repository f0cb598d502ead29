//! The patience with a backend that does not answer.

#![forbid(unsafe_code)]

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use crate::io_thread::{IoThread, Source, Worker, WorkerHandle};

/// Ends the connection when an exchange takes too long, from an I/O thread, which never waits for the backend. Whoever
/// waits for an answer then sees the end of the stream.
pub(super) struct Guard {
    shared: Arc<Shared>,
    patience: Duration,
    _watch: WorkerHandle<Watch>,
}

struct Shared {
    timer: Mutex<Timer>,
    expired: AtomicBool,
}

struct Timer {
    timer: TimerFd,
    /// An exchange is under way.
    armed: bool,
}

impl Guard {
    /// Watches over `sockets`, on `thread`.
    ///
    /// # Errors
    /// The host gives no more descriptors.
    pub(super) fn new(thread: &IoThread, sockets: Vec<UnixStream>, patience: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            timer: Mutex::new(Timer {
                timer: TimerFd::new().map_err(io::Error::from)?,
                armed: false,
            }),
            expired: AtomicBool::new(false),
        });
        let watch = Watch {
            shared: Arc::clone(&shared),
            sockets,
        };
        Ok(Self {
            shared,
            patience,
            _watch: thread.add(watch)?,
        })
    }

    /// Runs `exchange`, which may wait for the backend.
    ///
    /// # Errors
    /// Its own, or that it took too long.
    pub(super) fn during<T>(&self, exchange: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.shared.set(Some(self.patience))?;
        let result = exchange();
        self.shared.set(None)?;
        if self.shared.expired.load(Ordering::Acquire) {
            let seconds = self.patience.as_secs_f32();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {seconds} s"),
            ));
        }
        result
    }
}

impl Shared {
    fn set(&self, patience: Option<Duration>) -> io::Result<()> {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        timer.armed = patience.is_some();
        let set = match patience {
            Some(patience) => timer.timer.reset(patience, None),
            None => timer.timer.clear(),
        };
        set.map_err(io::Error::from)
    }

    /// Whether an exchange under way has just run out of time.
    fn has_expired(&self) -> bool {
        let armed = self.timer.lock().unwrap_or_else(PoisonError::into_inner).armed;
        if armed {
            self.expired.store(true, Ordering::Release);
        }
        armed
    }
}

struct Watch {
    shared: Arc<Shared>,
    sockets: Vec<UnixStream>,
}

impl Worker for Watch {
    fn sources(&self) -> Vec<Source> {
        let timer = self.shared.timer.lock().unwrap_or_else(PoisonError::into_inner);
        vec![Source::input(&timer.timer, 0)]
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, _token: u32) {
        if self.shared.has_expired() {
            for socket in &self.sockets {
                // One that has no far end any more is as good.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;

    use super::*;
    use crate::io_thread::PollPolicy;

    #[test]
    fn who_does_not_answer_is_cut_off_and_who_does_is_not() {
        let thread = IoThread::spawn("guard", PollPolicy::default()).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let guard = Guard::new(&thread, vec![ours.try_clone().unwrap()], Duration::from_millis(50)).unwrap();
        for answer in 0..3 {
            assert_eq!(guard.during(|| Ok(answer)).unwrap(), answer);
        }
        let error = guard.during(|| (&ours).read(&mut [0])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "no answer within 0.05 s");
    }
}
