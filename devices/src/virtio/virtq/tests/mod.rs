//! The engine against drivers, good and bad.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::testing::DriverRing;
use super::{Chain, GuestFault, QueueState, RingFeatures, Severity, Virtq};
use crate::memory::GuestMemory;

mod buffers;
mod chains;
mod differential;
mod notification;
mod rings;

/// First byte behind low RAM: the hole of the PCI devices.
const HOLE: u64 = 0x8_0000;
/// Where the first two regions of RAM meet.
const SEAM: u64 = 0x4_0000;
/// RAM above the hole.
const HIGH: u64 = 1 << 32;

const EVENT_IDX: RingFeatures = RingFeatures {
    event_idx: true,
    ..FLAGS
};
const FLAGS: RingFeatures = RingFeatures {
    layout: super::Layout::Split,
    event_idx: false,
    indirect: true,
    notify_on_empty: false,
};

/// RAM in two adjacent mappings, a hole, RAM above 4 GiB.
fn memory() -> Arc<GuestMemory> {
    let ranges = [
        (GuestAddress(0), SEAM as usize),
        (GuestAddress(SEAM), (HOLE - SEAM) as usize),
        (GuestAddress(HIGH), 0x1_0000),
    ];
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

/// A driver's ring and the queue on it.
struct Pair {
    driver: DriverRing,
    queue: Virtq,
}

impl Pair {
    fn on(driver: DriverRing, features: RingFeatures) -> Self {
        let memory = Arc::clone(driver.memory());
        let queue = Virtq::new(memory, driver.config(), features, QueueState::default()).unwrap();
        Self { driver, queue }
    }

    /// The ring of a modern driver.
    fn modern(size: u16) -> Self {
        Self::on(DriverRing::modern(memory(), 0x1000, size), FLAGS)
    }

    /// Both layouts, which differ in where the rings are and in nothing else.
    fn both(size: u16) -> [Self; 2] {
        let legacy = DriverRing::legacy(memory(), 1, size);
        [Self::on(legacy, FLAGS), Self::modern(size)]
    }

    fn pop(&mut self) -> Chain {
        self.queue.pop().unwrap().expect("a chain is available")
    }

    /// The next chain is refused with `fault`, comes back with length 0, and the queue goes on.
    fn assert_chain_refused(&mut self, fault: GuestFault) {
        assert_eq!(fault.severity(), Severity::Chain);
        assert_eq!(self.queue.pop().unwrap_err(), fault);
        assert!(!self.queue.is_broken());
        assert!(self.queue.publish());
        let used = self.driver.next_used().unwrap();
        assert_eq!(used.len, 0);
        self.assert_goes_on();
    }

    /// The queue serves an ordinary chain.
    fn assert_goes_on(&mut self) {
        let good = super::testing::Buffer::readable(0x2_0000, 16);
        let head = self.driver.post(&[good]).unwrap();
        let chain = self.pop();
        assert_eq!((chain.head(), chain.readable_bytes()), (head, 16));
        self.queue.push(chain, 0);
        assert!(self.queue.publish());
        assert_eq!(self.driver.next_used().unwrap().head, u32::from(head));
    }

    /// The ring is refused with `fault`, once, and is quiet from then on.
    fn assert_ring_broken(&mut self, fault: GuestFault) {
        assert_eq!(fault.severity(), Severity::Ring);
        assert_eq!(self.queue.pop().unwrap_err(), fault);
        self.assert_quiet();
    }

    /// Nothing comes out, nothing goes in, nobody is told to come again.
    fn assert_quiet(&mut self) {
        let used = self.driver.used_index();
        assert!(self.queue.is_broken());
        assert!(self.queue.pop().unwrap().is_none());
        assert!(!self.queue.has_available());
        assert!(!self.queue.enable_notify());
        assert!(!self.queue.publish());
        assert_eq!(self.driver.used_index(), used);
    }
}

#[test]
fn queues_chains_and_lists_travel_between_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Virtq>();
    assert_send::<Chain>();
    assert_send::<super::GuestIoVec>();
}
