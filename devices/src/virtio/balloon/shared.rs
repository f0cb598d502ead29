//! What the queues of a balloon, its configuration and management have in common.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::PAGE;
use super::config::{BalloonConfig, ConfigSpace};
use super::control::GivenBack;
use super::fault::BalloonFault;
use super::page_set::PageSet;
use super::stats::{GuestStats, Polling};
use crate::memory::{Discarded, GuestMemory, MemoryMap};
use crate::timer::Timers;
use crate::virtio::device::{ConfigInterrupt, QueueStart};
use crate::virtio::report::Reporter;
use crate::virtio::virtq::{GuestFault, Severity};

/// Values of `free_page_hint_cmd_id` (virtio 1.3, 5.5.6.5).
pub(super) mod hint {
    /// No hints are wanted now.
    pub const STOP: u32 = 0;
    /// No hints are wanted any more, and the pages may be used again.
    pub const DONE: u32 = 1;
    /// The first round has the next number (QEMU's VIRTIO_BALLOON_FREE_PAGE_HINT_CMD_ID_MIN).
    pub const FIRST: u32 = 0x8000_0000;
}

/// See the [module](self). A CPU that reads or writes configuration, or resets the device, meets no
/// lock that is held while a queue works: the set of pages is only asked for when all queues stand.
pub(super) struct Shared {
    memory: MemoryMap,
    pages: u32,
    num_pages: AtomicU32,
    actual: AtomicU32,
    poison: AtomicU32,
    hint_command: AtomicU32,
    /// The number of the last round of hints.
    last_round: AtomicU32,
    /// Bytes hinted at in it.
    hinted: AtomicU64,
    in_balloon: Mutex<PageSet>,
    inflated: Counter,
    reported: Counter,
    /// The host did not take pages, and the user knows.
    refused: AtomicBool,
    stats: Mutex<GuestStats>,
    polling: Mutex<Polling>,
    interrupt: OnceLock<ConfigInterrupt>,
    watchers: Mutex<Vec<EventFd>>,
    rules: Mutex<BTreeMap<&'static str, u64>>,
    reporter: Reporter,
}

/// Sums up what was given back.
#[derive(Default)]
pub(super) struct Counter {
    bytes: AtomicU64,
    calls: AtomicU64,
}

impl Counter {
    fn add(&self, discarded: Discarded) {
        self.bytes.fetch_add(discarded.bytes, Ordering::Relaxed);
        self.calls.fetch_add(discarded.calls, Ordering::Relaxed);
    }

    fn sum(&self) -> Discarded {
        Discarded {
            bytes: self.bytes.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
        }
    }
}

/// Why memory is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// It went into the balloon.
    Inflated,
    /// The guest reported it free.
    Reported,
}

impl Shared {
    pub(super) fn new(memory: Arc<GuestMemory>, config: &BalloonConfig, timers: &Timers) -> io::Result<Self> {
        let memory = MemoryMap::new(memory);
        let in_balloon = PageSet::new(&memory);
        let shared = Self {
            pages: u32::try_from(in_balloon.capacity()).unwrap_or(u32::MAX),
            memory,
            num_pages: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            hint_command: AtomicU32::new(hint::STOP),
            last_round: AtomicU32::new(hint::FIRST),
            hinted: AtomicU64::new(0),
            in_balloon: Mutex::new(in_balloon),
            inflated: Counter::default(),
            reported: Counter::default(),
            refused: AtomicBool::new(false),
            stats: Mutex::default(),
            polling: Mutex::new(Polling::new(timers.timer()?)),
            interrupt: OnceLock::new(),
            watchers: Mutex::default(),
            rules: Mutex::default(),
            reporter: Reporter::default(),
        };
        if let Some(target) = config.target {
            shared.set_target(target);
        }
        shared.set_polling(Duration::from_secs(config.polling.into()))?;
        Ok(shared)
    }

    /// Guest RAM.
    pub(super) fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// Pages of RAM.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes of RAM.
    pub(super) fn ram(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// The pages in the balloon. For the queues, and for a device whose queues stand.
    pub(super) fn in_balloon(&self) -> MutexGuard<'_, PageSet> {
        lock(&self.in_balloon)
    }

    /// Gives ranges of RAM, whole pages, back to the host and counts that.
    pub(super) fn give_back(&self, ranges: impl IntoIterator<Item = Range<u64>>, cause: Cause) {
        let counter = match cause {
            Cause::Inflated => &self.inflated,
            Cause::Reported => &self.reported,
        };
        match self.memory.discard_all(ranges) {
            Ok(discarded) => counter.add(discarded),
            Err(error) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    self.warn(format_args!(
                        "virtio-balloon: {error}; guest memory stays with this process"
                    ));
                }
            }
        }
    }

    pub(super) fn given_back(&self) -> GivenBack {
        GivenBack {
            inflated: self.inflated.sum(),
            reported: self.reported.sum(),
        }
    }

    /// What the driver reads.
    pub(super) fn config(&self) -> ConfigSpace {
        ConfigSpace {
            num_pages: self.num_pages.load(Ordering::Acquire),
            actual: self.actual.load(Ordering::Acquire),
            hint_command: self.hint_command(),
            poison: self.poison(),
        }
    }

    /// What the driver has made of the fields that are its own.
    pub(super) fn set_config(&self, config: ConfigSpace) {
        self.poison.store(config.poison, Ordering::Release);
        self.set_actual(config.actual);
    }

    pub(super) fn set_actual(&self, pages: u32) {
        if self.actual.swap(pages, Ordering::AcqRel) == pages {
            return;
        }
        if pages > self.pages {
            let limit = self.pages;
            self.report(BalloonFault::ActualTooLarge { pages, limit });
        }
        for watcher in lock(&self.watchers).iter() {
            // It fails only if the counter is at its end, and then it is readable.
            let _ = watcher.write(1);
        }
    }

    /// Bytes that the guest has.
    pub(super) fn actual(&self) -> u64 {
        self.left(self.actual.load(Ordering::Acquire))
    }

    /// Bytes that the guest is to have.
    pub(super) fn target(&self) -> u64 {
        self.left(self.num_pages.load(Ordering::Acquire))
    }

    /// Bytes of RAM without `pages`.
    fn left(&self, pages: u32) -> u64 {
        u64::from(self.pages.saturating_sub(pages)) * PAGE
    }

    /// The guest is to have `bytes`, or all that there is.
    pub(super) fn set_target(&self, bytes: u64) {
        let taken = self.ram().saturating_sub(bytes) / PAGE;
        let pages = u32::try_from(taken).unwrap_or(u32::MAX);
        self.num_pages.store(pages, Ordering::Release);
        self.config_changed();
    }

    /// What free pages of the guest are filled with.
    pub(super) fn poison(&self) -> u32 {
        self.poison.load(Ordering::Acquire)
    }

    /// Which round of hints is asked for, or that none is.
    pub(super) fn hint_command(&self) -> u32 {
        self.hint_command.load(Ordering::Acquire)
    }

    /// Asks for a new round of hints.
    pub(super) fn start_hints(&self) {
        let last = self.last_round.load(Ordering::Acquire);
        let round = last.checked_add(1).unwrap_or(hint::FIRST);
        self.last_round.store(round, Ordering::Release);
        self.hinted.store(0, Ordering::Release);
        self.hint_command.store(round, Ordering::Release);
        self.config_changed();
    }

    /// Hints are not wanted: for now ([`hint::STOP`]), or for good ([`hint::DONE`]).
    pub(super) fn end_hints(&self, command: u32) {
        if self.hint_command.swap(command, Ordering::AcqRel) != command {
            self.config_changed();
        }
    }

    /// The driver has no more hints for `round`.
    pub(super) fn hints_ended(&self, round: u32) {
        // Another round may have been asked for meanwhile; then it stays.
        let _ = self
            .hint_command
            .compare_exchange(round, hint::STOP, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn add_hinted(&self, bytes: u64) {
        self.hinted.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn hinted(&self) -> u64 {
        self.hinted.load(Ordering::Acquire)
    }

    pub(super) fn set_stats(&self, stats: GuestStats) {
        *lock(&self.stats) = stats;
    }

    pub(super) fn stats(&self) -> GuestStats {
        *lock(&self.stats)
    }

    pub(super) fn polling(&self) -> MutexGuard<'_, Polling> {
        lock(&self.polling)
    }

    pub(super) fn set_polling(&self, interval: Duration) -> io::Result<()> {
        self.polling().set(interval)
    }

    pub(super) fn connect(&self, interrupt: ConfigInterrupt) {
        // Once, says the trait; a second one would be the same.
        let _ = self.interrupt.set(interrupt);
    }

    fn config_changed(&self) {
        if let Some(interrupt) = self.interrupt.get() {
            interrupt.signal();
        }
    }

    /// A descriptor that becomes readable when `actual` changes.
    pub(super) fn watch(&self) -> io::Result<EventFd> {
        let watcher = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        lock(&self.watchers).push(watcher.try_clone()?);
        Ok(watcher)
    }

    /// The driver broke a rule of the balloon.
    pub(super) fn report(&self, fault: BalloonFault) {
        *lock(&self.rules).entry(fault.rule()).or_default() += 1;
        self.warn(format_args!(
            "virtio-balloon: the driver broke {}: {fault}",
            fault.rule()
        ));
    }

    /// The driver broke a rule of rings.
    pub(super) fn report_ring(&self, queue: &QueueStart, fault: GuestFault) {
        *lock(&self.rules).entry(fault.rule()).or_default() += 1;
        let index = queue.index;
        self.warn(format_args!(
            "virtio-balloon: queue {index}: the driver broke {}: {fault}",
            fault.rule()
        ));
        if fault.severity() == Severity::Ring {
            queue.interrupt.broken();
        }
    }

    /// Tells the user, if there were not too many lines lately.
    pub(super) fn warn(&self, line: fmt::Arguments<'_>) {
        self.reporter.warn(line);
    }

    pub(super) fn broken_rules(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.rules).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
