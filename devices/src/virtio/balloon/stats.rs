//! Statistics of the guest, and the worker that asks for them.
//!
//! The driver gives a buffer with its statistics, the device keeps it, and gives it back when it
//! wants new ones (virtio 1.3, 5.5.6.3).

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::fault::BalloonFault;
use super::shared::Shared;
use crate::io_thread::{Interest, Source, Worker};
use crate::timer::Timer;
use crate::virtio::device::QueueStart;
use crate::virtio::virtq::{Chain, QueueState};

/// Bytes of one statistic: a tag of 16 bits and a value of 64.
const ENTRY: usize = 10;

/// Statistics that one buffer is read for at most; more than there are tags.
const MAX_ENTRIES: usize = 64;

/// A statistic by its tag (virtio 1.3, 5.5.6.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stat {
    /// Bytes swapped in.
    SwapIn,
    /// Bytes swapped out.
    SwapOut,
    /// Page faults that needed I/O.
    MajorFaults,
    /// Page faults that needed none.
    MinorFaults,
    /// Bytes that are not used for anything.
    FreeMemory,
    /// Bytes that there are, without those in the balloon.
    TotalMemory,
    /// Bytes that could be used without swapping.
    AvailableMemory,
    /// Bytes of the page cache.
    DiskCaches,
    /// Huge pages allocated.
    HugePagesAllocated,
    /// Huge pages that could not be allocated.
    HugePagesFailed,
}

impl Stat {
    /// All of them, in the order of their tags.
    pub const ALL: [Self; 10] = [
        Self::SwapIn,
        Self::SwapOut,
        Self::MajorFaults,
        Self::MinorFaults,
        Self::FreeMemory,
        Self::TotalMemory,
        Self::AvailableMemory,
        Self::DiskCaches,
        Self::HugePagesAllocated,
        Self::HugePagesFailed,
    ];

    /// QEMU's name, as in the property `guest-stats`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SwapIn => "stat-swap-in",
            Self::SwapOut => "stat-swap-out",
            Self::MajorFaults => "stat-major-faults",
            Self::MinorFaults => "stat-minor-faults",
            Self::FreeMemory => "stat-free-memory",
            Self::TotalMemory => "stat-total-memory",
            Self::AvailableMemory => "stat-available-memory",
            Self::DiskCaches => "stat-disk-caches",
            Self::HugePagesAllocated => "stat-htlb-pgalloc",
            Self::HugePagesFailed => "stat-htlb-pgfail",
        }
    }
}

/// What the guest said last.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct GuestStats {
    /// When; `None` if it has said nothing yet.
    pub last_update: Option<SystemTime>,
    values: [Option<u64>; Stat::ALL.len()],
}

impl GuestStats {
    /// The value of one statistic, if the guest has it.
    pub fn get(&self, stat: Stat) -> Option<u64> {
        self.values.get(stat as usize).copied().flatten()
    }

    /// All statistics that the guest has.
    pub fn iter(&self) -> impl Iterator<Item = (Stat, u64)> {
        let pairs = Stat::ALL.into_iter().zip(self.values);
        pairs.filter_map(|(stat, value)| Some((stat, value?)))
    }

    /// Reads what the driver wrote: little-endian on both faces, because x86 is. Tags that nobody
    /// knows are left out.
    fn parse(bytes: &[u8]) -> Self {
        let mut stats = Self {
            last_update: Some(SystemTime::now()),
            ..Self::default()
        };
        for [low, high, value @ ..] in bytes.as_chunks::<ENTRY>().0 {
            let tag = u16::from_le_bytes([*low, *high]);
            if let Some(place) = stats.values.get_mut(usize::from(tag)) {
                *place = Some(u64::from_le_bytes(*value));
            }
        }
        stats
    }
}

/// When statistics are asked for.
pub(super) struct Polling {
    timer: Timer,
    /// Zero is never.
    interval: Duration,
}

impl Polling {
    /// Never, until [`set`](Self::set).
    pub(super) fn new(timer: Timer) -> Self {
        Self {
            timer,
            interval: Duration::ZERO,
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Asks at once and then again and again; zero stops that.
    pub(super) fn set(&mut self, interval: Duration) -> io::Result<()> {
        if interval.is_zero() {
            self.timer.stop()?;
        } else if self.interval.is_zero() {
            self.timer.start(Duration::ZERO)?;
        } else {
            self.timer.start(interval)?;
        }
        self.interval = interval;
        Ok(())
    }

    /// Asks again after an interval from now.
    fn again(&mut self) -> io::Result<()> {
        if self.interval.is_zero() {
            return Ok(());
        }
        self.timer.start(self.interval)
    }
}

const KICK: u32 = 0;
const TIMER: u32 = 1;

/// The queue of statistics on its I/O thread.
pub(super) struct StatsWorker {
    queue: QueueStart,
    shared: Arc<Shared>,
    timer: i32,
    /// The driver's buffer, between its statistics and our wish for new ones.
    held: Option<Chain>,
}

impl StatsWorker {
    pub(super) fn new(queue: QueueStart, shared: Arc<Shared>) -> Self {
        let timer = shared.polling().timer.as_raw_fd();
        Self {
            queue,
            shared,
            timer,
            held: None,
        }
    }

    /// How far the queue has come. The buffer that was held is the next to be taken again.
    pub(super) fn into_state(mut self) -> QueueState {
        if let Some(chain) = self.held.take() {
            self.queue.ring.unpop(chain);
        }
        self.queue.ring.stop()
    }

    fn take_available(&mut self) -> bool {
        if !self.queue.ring.has_available() {
            return false;
        }
        self.queue.ring.disable_notify();
        for _ in 0..self.queue.ring.size() {
            match self.queue.ring.pop() {
                Ok(Some(chain)) => self.receive(chain),
                Ok(None) => break,
                Err(fault) => self.shared.report_ring(&self.queue, fault),
            }
        }
        self.publish();
        true
    }

    fn receive(&mut self, chain: Chain) {
        if let Some(before) = self.held.take() {
            self.shared.report(BalloonFault::StatsTwice);
            self.queue.ring.push(before, 0);
        }
        let len = chain.readable_bytes();
        if !len.is_multiple_of(ENTRY) {
            self.shared.report(BalloonFault::StatsLength { len });
        }
        let mut bytes = [0; ENTRY * MAX_ENTRIES];
        let read = chain.reader().read(&mut bytes);
        self.shared
            .set_stats(GuestStats::parse(bytes.get(..read).unwrap_or_default()));
        self.held = Some(chain);
        self.wait_again();
    }

    /// Asks for new statistics by giving the buffer back.
    fn ask(&mut self) {
        match self.held.take() {
            Some(chain) => {
                self.queue.ring.push(chain, 0);
                self.publish();
            }
            None => self.wait_again(),
        }
    }

    fn wait_again(&self) {
        if let Err(error) = self.shared.polling().again() {
            self.shared
                .warn(format_args!("virtio-balloon: no timer for statistics: {error}"));
        }
    }

    fn publish(&mut self) {
        if self.queue.ring.publish() {
            self.queue.interrupt.signal();
        }
    }
}

impl Worker for StatsWorker {
    fn sources(&self) -> Vec<Source> {
        let timer = Source {
            fd: self.timer,
            token: TIMER,
            interest: Interest::Input,
        };
        vec![Source::input(&self.queue.kick, KICK), timer]
    }

    /// The timer is never read: each time that it runs out is an edge.
    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, token: u32) {
        self.take_available();
        if token == TIMER {
            self.ask();
        }
    }

    fn poll(&mut self) -> bool {
        self.take_available()
    }

    fn before_sleep(&mut self) -> bool {
        self.queue.ring.enable_notify()
    }

    fn panicked(&mut self) {
        self.queue.interrupt.broken();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn tags_are_in_the_order_of_their_numbers() {
        for (tag, stat) in (0..).zip(Stat::ALL) {
            let stats = GuestStats::parse(&entry(tag, 7));
            assert_eq!(stats.iter().collect::<Vec<_>>(), [(stat, 7)]);
            assert_eq!((stats.get(stat), stat as u16), (Some(7), tag));
        }
    }

    #[test]
    fn unknown_tags_and_a_broken_end_are_left_out() {
        let bytes = [
            entry(4, 1 << 40),
            entry(10, 1),
            entry(0xffff, 2),
            entry(5, 3)[..9].to_vec(),
        ]
        .concat();
        let stats = GuestStats::parse(&bytes);
        assert_eq!(stats.iter().collect::<Vec<_>>(), [(Stat::FreeMemory, 1 << 40)]);
        assert!(stats.last_update.is_some());
    }

    #[test]
    fn what_the_guest_no_longer_says_is_forgotten() {
        assert_eq!(GuestStats::parse(&[]).iter().count(), 0);
        assert_eq!(GuestStats::default().last_update, None);
    }
}
