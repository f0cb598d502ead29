//! A running virtqueue.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::chain::{Chain, ChainBuffer};
use super::config::{Layout, QueueConfig, RingFeatures, RingPart};
use super::fault::{GuestFault, Severity};
use super::ring::SplitRing;
use crate::memory::{GuestMemory, MemoryMap};

/// How far a queue has come: all that is needed to go on where it was stopped. The default is that
/// of a fresh queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Free-running index of the next entry to take from the available ring.
    pub next_avail: u16,
    /// Free-running index of the next entry to fill in the used ring.
    pub next_used: u16,
    /// The ring was found malformed; it stands still until it is reset.
    pub broken: bool,
}

/// A split virtqueue whose geometry was checked and cannot change any more.
///
/// The device takes chains with [`pop`](Self::pop), gives them back in any order with
/// [`push`](Self::push), and shows the driver what it gave back with one [`publish`](Self::publish)
/// for the whole batch. A serving loop is
///
/// ```
/// # use devices::virtio::virtq::{GuestFault, Virtq};
/// # fn serve(queue: &mut Virtq, report: impl Fn(GuestFault), interrupt: impl Fn()) {
/// queue.disable_notify();
/// loop {
///     loop {
///         match queue.pop() {
///             Ok(Some(chain)) => queue.push(chain, 0),
///             Ok(None) => break,
///             Err(fault) => report(fault),
///         }
///     }
///     if queue.publish() {
///         interrupt();
///     }
///     if !queue.enable_notify() {
///         break;
///     }
///     queue.disable_notify();
/// }
/// # }
/// ```
///
/// and ends whatever the guest does: a malformed ring is reported once and then looks empty, and no
/// more chains than the queue has descriptors come out between two publications.
#[derive(Debug)]
pub struct Virtq {
    ring: SplitRing,
    /// Guest-physical addresses in the order of [`RingPart::ALL`].
    addresses: [u64; 3],
    memory: MemoryMap,
    features: RingFeatures,
    /// Tells the chains of this run from those of any other queue, and of this one before its last
    /// reset.
    id: u64,
    next_avail: u16,
    /// `avail.idx` as last read; entries up to here are known to be there.
    seen_avail: u16,
    next_used: u16,
    /// `used.idx` as last written; entries from here to `next_used` are staged.
    published: u16,
    /// Chains popped whose used entry is not published yet. At most the queue size.
    outstanding: u16,
    in_flight: Heads,
    /// Whether an interrupt was decided on since the start. As in QEMU, the first publication
    /// always interrupts: what the driver saw before the queue was stopped and started again is not
    /// known.
    signalled: bool,
    broken: bool,
    /// Buffers of chains that came back.
    #[expect(clippy::vec_box, reason = "a chain is its box: moving it moves a pointer")]
    pool: Vec<Box<ChainBuffer>>,
}

impl Virtq {
    /// Starts a queue on the geometry that `config` has now, from `state` on. The queue keeps
    /// `memory` mapped.
    ///
    /// # Errors
    /// The first rule that the geometry breaks. Whether the driver enabled the queue is the
    /// caller's to ask.
    pub fn new(
        memory: Arc<GuestMemory>,
        config: &QueueConfig,
        features: RingFeatures,
        state: QueueState,
    ) -> Result<Self, GuestFault> {
        /// Runs of queues in this process.
        static RUNS: AtomicU64 = AtomicU64::new(0);

        if features.layout == Layout::Packed {
            return Err(GuestFault::PackedNotOffered);
        }
        config.check()?;
        let memory = MemoryMap::new(memory);
        Ok(Self {
            ring: SplitRing::map(config, &memory)?,
            addresses: RingPart::ALL.map(|part| config.address(part)),
            memory,
            features,
            id: RUNS.fetch_add(1, Ordering::Relaxed),
            next_avail: state.next_avail,
            seen_avail: state.next_avail,
            next_used: state.next_used,
            published: state.next_used,
            outstanding: 0,
            in_flight: Heads::new(config.size),
            signalled: false,
            broken: state.broken,
            pool: Vec::new(),
        })
    }

    /// Ends the run: for a reset of the device or of the queue (RING_RESET), for a pause, for a
    /// snapshot.
    ///
    /// A device drains its I/O, pushes and publishes first, if the queue is to go on later; chains
    /// that are still out, and used entries that are not published, are lost to the driver. Such
    /// chains may be dropped later: they keep their memory.
    pub fn stop(self) -> QueueState {
        self.state()
    }

    /// The index behind the last used entry, as it stands in guest memory: how far somebody who
    /// serves the queue in our place has come at least.
    pub fn used_index(&self) -> u16 {
        self.ring.used_index()
    }

    /// Ends the run of a queue that somebody else has served instead (vhost): who took the
    /// available entries up to `next_avail`, and all of them are in the used ring.
    pub fn stop_after_others(self, next_avail: u16) -> QueueState {
        QueueState {
            next_avail,
            next_used: self.ring.used_index(),
            broken: self.broken,
        }
    }

    /// The guest-physical addresses of the parts, in the order of [`RingPart::ALL`], for whoever
    /// serves the queue in our place.
    pub fn addresses(&self) -> [u64; 3] {
        self.addresses
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.memory.memory()
    }

    /// How far the queue has come.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail,
            next_used: self.published,
            broken: self.broken,
        }
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether the ring was found malformed. It takes and gives nothing until a new queue is made
    /// after a reset.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Chains that were popped and not yet pushed.
    pub fn in_flight(&self) -> u16 {
        self.outstanding.saturating_sub(self.staged())
    }

    /// Takes the next chain that the driver made available.
    ///
    /// # Errors
    /// A rule that the driver broke, to be reported. The policy is carried out already: of a fault
    /// of [`Severity::Chain`] the chain is staged as used with length 0 and the next call goes on
    /// behind it; after one of [`Severity::Ring`] the queue is broken and every later call returns
    /// `None`.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Chain>, GuestFault> {
        if self.next_avail == self.seen_avail && !self.look_for_more()? {
            return Ok(None);
        }
        let position = self.next_avail;
        let head = self.ring.avail_entry(position);
        self.take_head(head)?;

        let mut buffer = match self.pool.pop() {
            Some(buffer) => buffer,
            None => ChainBuffer::new(Arc::clone(self.memory.memory()), self.id),
        };
        buffer.position = position;
        match buffer.walk(&self.ring, &self.memory, self.features.indirect, head) {
            Ok(()) => Ok(Some(Chain::new(buffer))),
            Err(fault) => {
                self.give_back(buffer, 0);
                Err(fault)
            }
        }
    }

    /// Takes back the chain that was popped last, so that the next [`pop`](Self::pop) reads it
    /// anew.
    ///
    /// For a device that finds it cannot use the chain yet. A chain that was not the last, or is
    /// not of this run, is only dropped.
    pub fn unpop(&mut self, chain: Chain) {
        let mut buffer = chain.into_buffer();
        if !self.owns(&buffer) || buffer.position != self.next_avail.wrapping_sub(1) {
            return;
        }
        self.next_avail = buffer.position;
        self.outstanding = self.outstanding.saturating_sub(1);
        self.in_flight.remove(buffer.head);
        buffer.recycle();
        self.pool.push(buffer);
    }

    /// Stages `chain` as used: the device has written `written` bytes from the beginning of the
    /// writable part. The driver sees it after the next [`publish`](Self::publish).
    ///
    /// A chain of another queue, or of this one before a reset, is only dropped: its driver no
    /// longer waits for it.
    #[inline]
    pub fn push(&mut self, chain: Chain, written: u32) {
        let buffer = chain.into_buffer();
        if !self.owns(&buffer) {
            return;
        }
        // More than there was room for can only be a mistake of the device, and drivers have
        // trusted this number with their lives.
        let room = u32::try_from(buffer.writable_bytes()).unwrap_or(u32::MAX);
        self.give_back(buffer, written.min(room));
    }

    /// Shows the driver all staged chains at once. Returns whether it wants an interrupt for them.
    ///
    /// The decision belongs to exactly these chains; a caller that does not act on it leaves the
    /// driver waiting.
    #[must_use = "the driver may be waiting for an interrupt"]
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new || self.broken {
            return false;
        }
        self.outstanding = self.outstanding.saturating_sub(self.staged());
        self.published = new;
        // Release: a driver that sees the index sees the entries and the data too.
        self.ring.publish_used(new);
        // The driver, going to sleep, writes used_event or flags and then reads used.idx once more.
        // We write used.idx and then read used_event or flags. Only with a full barrier between the
        // two steps on both sides at least one of us sees the other (virtio 1.3, 2.7.7.2); x86
        // moves a load ahead of an earlier store otherwise.
        fence(Ordering::SeqCst);
        self.wants_interrupt(old, new)
    }

    /// Whether the driver has made chains available that were not taken yet. Never for a broken
    /// queue.
    pub fn has_available(&self) -> bool {
        !self.broken && (self.seen_avail != self.next_avail || self.ring.avail_index() != self.next_avail)
    }

    /// Asks the driver not to kick while the queue is being served anyway. A hint: kicks may still
    /// come.
    pub fn disable_notify(&mut self) {
        // With event indices there is nothing to do: a driver kicks when it passes the index
        // written last, and that one is behind.
        if !self.features.event_idx && !self.broken {
            self.ring.set_used_flags(VRING_USED_F_NO_NOTIFY as u16);
        }
    }

    /// Asks the driver to kick for the next chain. Returns whether chains have come in meanwhile:
    /// then no kick may come for them, and the caller goes on serving instead of sleeping. Never
    /// for a broken queue.
    #[must_use = "chains that came in meanwhile may never be kicked for"]
    pub fn enable_notify(&mut self) -> bool {
        if self.broken {
            return false;
        }
        if self.features.event_idx {
            self.ring.set_avail_event(self.next_avail);
        } else {
            self.ring.set_used_flags(0);
        }
        // The mirror of `publish`: the driver moves avail.idx, has a full barrier, and reads
        // avail_event or flags; we write those, have ours, and read avail.idx again (virtio 1.3,
        // 2.7.10.2).
        fence(Ordering::SeqCst);
        self.ring.avail_index() != self.next_avail
    }

    /// Reads the available index again. Returns whether there is something to take.
    fn look_for_more(&mut self) -> Result<bool, GuestFault> {
        if self.broken {
            return Ok(false);
        }
        let index = self.ring.avail_index();
        let size = self.size();
        if index.wrapping_sub(self.next_avail) > size {
            return Err(self.break_down(GuestFault::AvailIndexInvalid {
                index,
                expected: self.next_avail,
                size,
            }));
        }
        self.seen_avail = index;
        Ok(index != self.next_avail)
    }

    /// Takes the entry at `next_avail`, whose chain begins at `head`.
    #[inline]
    fn take_head(&mut self, head: u16) -> Result<(), GuestFault> {
        let size = self.size();
        if self.outstanding >= size {
            return Err(self.break_down(GuestFault::TooManyInFlight { size }));
        }
        match self.in_flight.insert(head) {
            Some(true) => {}
            Some(false) => return Err(self.break_down(GuestFault::HeadInFlight { head })),
            None => return Err(self.break_down(GuestFault::HeadOutOfRange { head, size })),
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.outstanding += 1;
        Ok(())
    }

    /// Stages the used entry of a chain and keeps its buffer for the next.
    #[inline]
    fn give_back(&mut self, mut buffer: Box<ChainBuffer>, written: u32) {
        if self.broken {
            self.outstanding = self.outstanding.saturating_sub(1);
        } else {
            self.ring.write_used(self.next_used, buffer.head, written);
            self.next_used = self.next_used.wrapping_add(1);
        }
        self.in_flight.remove(buffer.head);
        buffer.recycle();
        self.pool.push(buffer);
    }

    /// The ring cannot be trusted any more: from now on it looks empty.
    #[cold]
    fn break_down(&mut self, fault: GuestFault) -> GuestFault {
        debug_assert_eq!(fault.severity(), Severity::Ring);
        self.broken = true;
        self.seen_avail = self.next_avail;
        fault
    }

    /// Whether the driver wants to hear that `used.idx` went from `old` to `new`.
    fn wants_interrupt(&mut self, old: u16, new: u16) -> bool {
        let first = !std::mem::replace(&mut self.signalled, true);
        if self.features.notify_on_empty && self.outstanding == 0 && self.ring.avail_index() == self.next_avail {
            return true;
        }
        if self.features.event_idx {
            // Whether used_event is among the indices old..new just passed, in arithmetic modulo
            // 2^16 (virtio 1.3, 2.7.7.2).
            let event = self.ring.used_event();
            let passed = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
            return first || passed;
        }
        u32::from(self.ring.avail_flags()) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }

    #[inline]
    fn staged(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    #[inline]
    fn owns(&self, buffer: &ChainBuffer) -> bool {
        buffer.owner == self.id
    }
}

/// A set of chain heads, one bit each.
#[derive(Debug)]
struct Heads {
    words: Box<[u64]>,
    size: u16,
}

impl Heads {
    fn new(size: u16) -> Self {
        let words = usize::from(size).div_ceil(64);
        Self {
            words: vec![0; words].into(),
            size,
        }
    }

    /// Whether `head` was not in the set before; `None` if there is no such head.
    #[inline]
    fn insert(&mut self, head: u16) -> Option<bool> {
        if head >= self.size {
            return None;
        }
        let word = self.words.get_mut(usize::from(head / 64))?;
        let bit = 1 << (head % 64);
        let new = *word & bit == 0;
        *word |= bit;
        Some(new)
    }

    #[inline]
    fn remove(&mut self, head: u16) {
        if let Some(word) = self.words.get_mut(usize::from(head / 64)) {
            *word &= !(1 << (head % 64));
        }
    }
}
