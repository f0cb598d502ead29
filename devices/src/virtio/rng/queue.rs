//! The worker that fills buffers.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::limit::RateLimit;
use super::source::Source;
use crate::io_thread::{self, Interest, Worker};
use crate::virtio::device::QueueStart;
use crate::virtio::report::Reporter;
use crate::virtio::virtq::{QueueState, Severity};

/// Bytes that one buffer gets at most, so that a driver with large buffers does not keep the thread
/// from others.
pub(super) const MAX_FILL: usize = 64 << 10;

/// How long to wait for a source that failed.
const RETRY: Duration = Duration::from_secs(1);

const KICK: u32 = 0;
const PERIOD: u32 = 1;
const RETRIED: u32 = 2;
const BYTES: u32 = 3;

/// The bytes that a guest gets: all that outlives a start and a stop of the queue.
pub(super) struct Supply {
    source: Source,
    limit: RateLimit,
    /// Runs while the source is [`State::Failed`].
    retry: TimerFd,
}

impl Supply {
    pub(super) fn new(source: Source, limit: RateLimit) -> io::Result<Self> {
        Ok(Self {
            source,
            limit,
            retry: TimerFd::new()?,
        })
    }
}

/// What the source said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It has bytes.
    Flowing,
    /// It will have some when this descriptor is readable.
    Waiting(RawFd),
    /// It has none; the timer says when to ask again.
    Failed,
}

/// The queue on its I/O thread. While there are no bytes, buffers stay where they are: one that came
/// back empty would not be asked for again by Linux.
pub(super) struct Filler {
    queue: QueueStart,
    supply: Supply,
    state: State,
    /// The descriptors that are watched belong to another state.
    changed: bool,
    reporter: Reporter,
}

impl Filler {
    pub(super) fn new(queue: QueueStart, supply: Supply) -> Self {
        Self {
            queue,
            supply,
            state: State::Flowing,
            changed: false,
            reporter: Reporter::default(),
        }
    }

    /// How far the queue has come, and what the next worker goes on with.
    pub(super) fn into_parts(self) -> (QueueState, Supply) {
        (self.queue.ring.stop(), self.supply)
    }

    fn set_state(&mut self, state: State) {
        self.changed |= self.state != state;
        self.state = state;
    }

    /// Whether buffers can be filled now.
    fn can_fill(&self) -> bool {
        self.state == State::Flowing && !self.supply.limit.is_exhausted()
    }

    /// Fills as many buffers as the queue can hold, and no more, however fast the driver posts them.
    fn pass(&mut self) -> bool {
        if !self.can_fill() || !self.queue.ring.has_available() {
            return false;
        }
        self.queue.ring.disable_notify();
        for _ in 0..self.queue.ring.size() {
            if !self.can_fill() || !self.fill_next() {
                break;
            }
        }
        if self.queue.ring.publish() {
            self.queue.interrupt.signal();
        }
        true
    }

    /// Fills the next buffer, if there is one.
    fn fill_next(&mut self) -> bool {
        let chain = match self.queue.ring.pop() {
            Ok(Some(chain)) => chain,
            Ok(None) => return false,
            Err(fault) => {
                let rule = fault.rule();
                self.reporter
                    .warn(format_args!("virtio-rng: the driver broke {rule}: {fault}"));
                if fault.severity() == Severity::Ring {
                    self.queue.interrupt.broken();
                }
                return true;
            }
        };
        if chain.writable_bytes() == 0 {
            self.queue.ring.push(chain, 0);
            return true;
        }
        let Supply { source, limit, .. } = &mut self.supply;
        let filled = limit
            .request()
            .and_then(|allowed| source.fill(&mut chain.writer(), allowed.min(MAX_FILL)));
        match filled {
            Ok(bytes) => {
                limit.take(bytes);
                self.queue.ring.push(chain, u32::try_from(bytes).unwrap_or(u32::MAX));
            }
            Err(error) => {
                self.queue.ring.unpop(chain);
                self.wait(&error);
            }
        }
        true
    }

    fn wait(&mut self, error: &io::Error) {
        let fd = self.supply.source.fd();
        if let (io::ErrorKind::WouldBlock, Some(fd)) = (error.kind(), fd) {
            self.set_state(State::Waiting(fd));
            return;
        }
        self.reporter.warn(format_args!("virtio-rng: no random bytes: {error}"));
        self.set_state(State::Failed);
        if let Err(error) = self.supply.retry.reset(RETRY, None) {
            self.reporter.warn(format_args!(
                "virtio-rng: no timer to ask for random bytes again: {error}"
            ));
        }
    }
}

impl Worker for Filler {
    fn sources(&self) -> Vec<io_thread::Source> {
        let mut sources = vec![
            io_thread::Source::input(&self.queue.kick, KICK),
            io_thread::Source::input(self.supply.limit.timer(), PERIOD),
            io_thread::Source::input(&self.supply.retry, RETRIED),
        ];
        if let State::Waiting(fd) = self.state {
            sources.push(io_thread::Source {
                fd,
                token: BYTES,
                interest: Interest::Input,
            });
        }
        sources
    }

    fn sources_changed(&self) -> bool {
        self.changed
    }

    fn sources_taken(&mut self) {
        self.changed = false;
    }

    /// The timers are never read: each time that they run out is an edge.
    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, token: u32) {
        match (token, self.state) {
            (PERIOD, _) => self.supply.limit.period_ended(),
            (RETRIED, State::Failed) | (BYTES, State::Waiting(_)) => self.set_state(State::Flowing),
            _ => {}
        }
        self.pass();
    }

    fn poll(&mut self) -> bool {
        self.pass()
    }

    fn before_sleep(&mut self) -> bool {
        self.queue.ring.enable_notify() && self.can_fill()
    }

    fn panicked(&mut self) {
        self.queue.interrupt.broken();
    }
}
