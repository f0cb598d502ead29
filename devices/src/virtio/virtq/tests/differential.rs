//! Our engine beside virtio-queue's `Queue`, in lockstep on random rings.
//!
//! Both see the same rings, in memories of their own. On well-formed rings they agree on
//! everything: which chains there are, what each is made of, the bytes of the used ring, whether to
//! interrupt, whether to go on after notifications are enabled.
//!
//! virtio-queue reports no faults: it ends a chain early where it cannot go on, and does not look
//! at the rest. So on malformed rings "the same" means:
//!
//! - Ours takes a chain: theirs has the same buffers up to a descriptor without NEXT, and none of
//!   them breaks a rule.
//! - Ours refuses a chain: theirs, or the bytes of the ring, show the very violation that ours
//!   names ([`explains`]).
//! - Ours says the available index is invalid: theirs says so too. The other ring faults (head out
//!   of range, head in flight, too many in flight) are checked against what the test knows;
//!   virtio-queue carries on there.
//!
//! Interrupts differ by design in two points: ours honours NO_INTERRUPT, which virtio-queue
//! ignores, and always interrupts for the first publication after a start, as QEMU does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::super::testing::{DriverRing, INDIRECT, NEXT, RawDescriptor, WRITE};
use super::super::{Chain, GuestFault, QueueState, RingFeatures, RingPart, Severity, Virtq};
use super::FLAGS;
use crate::memory::GuestMemory;

const CASES: u32 = 120_000;

/// RAM: two adjacent mappings, and one above a hole. First address and length.
const RAM: [(u64, u64); 3] = [(0, 0x8000), (0x8000, 0x8000), (0x2_0000, 0x4000)];
const RING: u64 = 0x1000;
/// Indirect tables are in here; so is everything that the test copies from one memory to the other.
const TABLES: u64 = 0x2000;
const TABLES_END: u64 = 0x4000;

/// xorshift64*: small, fast, the same on every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number from `from` to below `to`.
    pub(super) fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.range(0, n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.range(0, from.len() as u64) as usize]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.range(0, index as u64 + 1) as usize);
        }
    }
}

/// A buffer as both engines must see it: writable, guest-physical address, length; split where
/// regions of RAM meet.
type Piece = (bool, u64, u64);

/// Whether the range is RAM, worked out byte range by byte range from [`RAM`] alone.
fn pieces(writable: bool, mut address: u64, mut len: u64) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    while len > 0 {
        let region = RAM
            .iter()
            .find(|(start, size)| (*start..start + size).contains(&address));
        let &(start, size) = region?;
        let part = len.min(start + size - address);
        pieces.push((writable, address, part));
        address += part;
        len -= part;
    }
    Some(pieces)
}

/// Writes random rings.
struct Author {
    random: Random,
    /// Of the fields written, one in so many is wrong; 0 for a good driver.
    errors: u64,
    free: Vec<u16>,
    /// The descriptors that belong to each head that was made available.
    owned: BTreeMap<u16, Vec<u16>>,
    next_table: u64,
}

impl Author {
    fn errs(&mut self) -> bool {
        self.errors != 0 && self.random.one_in(self.errors)
    }

    /// A buffer of RAM, or something a bad driver takes for one.
    fn buffer(&mut self, writable: bool) -> RawDescriptor {
        let (start, size) = self.random.pick(&RAM);
        // Behind the rings: a buffer that errs into a table there would be read while the engines,
        // which publish at different moments, leave different indices.
        let first = start.max(TABLES);
        let mut address = self.random.range(first, start + size);
        // As long as the test's memory allows, so that many buffers cross from the first region
        // into the second.
        let end = if start == RAM[2].0 { start + size } else { RAM[2].0 / 2 };
        let mut len = self.random.range(1, (end - address).min(0x3000) + 1) as u32;
        if self.errs() {
            address = self.random.pick(&[0xffff, 0x1_8000, 0x2_3fff, 1 << 40, u64::MAX - 16]);
        }
        if self.errs() {
            len = self.random.pick(&[0, 0, 0x1_0000, u32::MAX]);
        }
        let mut flags = if writable { WRITE } else { 0 };
        for flag in [WRITE, INDIRECT] {
            if self.errs() {
                flags ^= flag;
            }
        }
        RawDescriptor::new(address, len, flags, self.random.next() as u16)
    }

    fn link(&mut self, descriptor: &mut RawDescriptor, next: Option<u16>) {
        if let Some(next) = next {
            descriptor.flags |= NEXT;
            descriptor.next = next;
        }
        if self.errs() {
            descriptor.flags ^= NEXT;
        }
        if self.errs() {
            descriptor.next = self.random.range(0, 80) as u16;
        }
    }

    /// Buffers in the right order, linked through `places`.
    fn linked(&mut self, places: &[u16]) -> Vec<RawDescriptor> {
        let readable = self.random.range(0, places.len() as u64 + 1) as usize;
        let mut descriptors = Vec::with_capacity(places.len());
        for position in 0..places.len() {
            let mut descriptor = self.buffer(position >= readable);
            self.link(&mut descriptor, places.get(position + 1).copied());
            descriptors.push(descriptor);
        }
        descriptors
    }

    /// An indirect table; returns the descriptor for it.
    fn table(&mut self, driver: &DriverRing, entries: u64) -> RawDescriptor {
        let misaligned = self.random.pick(&[0, 0, 0, 1, 8]);
        if self.next_table + 16 * entries + 16 > TABLES_END {
            self.next_table = TABLES;
        }
        let address = self.next_table + misaligned;
        self.next_table += 16 * entries + 16;
        let mut places: Vec<u16> = (1..entries as u16).collect();
        self.random.shuffle(&mut places);
        places.insert(0, 0);
        for (&place, descriptor) in places.iter().zip(self.linked(&places)) {
            driver.set_indirect(address, place, descriptor);
        }
        let mut descriptor = RawDescriptor::new(address, 16 * entries as u32, INDIRECT, 0);
        if self.random.one_in(4) {
            descriptor.flags |= WRITE;
        }
        if self.errs() {
            descriptor.len = self.random.pick(&[0, 8, 20, 16 * 40_000, 16 * 70_000, 16]);
        }
        if self.errs() {
            descriptor.address = self.random.pick(&[0x7ff8, 0xfff8, 0x1_8000, u64::MAX - 8]);
        }
        descriptor
    }

    /// One more chain, made available. False when the table is full.
    fn post(&mut self, driver: &mut DriverRing, indirect: bool) -> bool {
        let size = u64::from(driver.config().size);
        let room = self.free.len().min(6) as u64;
        if room == 0 {
            return false;
        }
        let count = self.random.range(1, room + 1) as usize;
        let places = self.free.split_off(self.free.len() - count);
        if indirect && self.random.one_in(3) {
            // Readable buffers in front, if any: what follows may then be either.
            for (position, &place) in places.iter().enumerate().take(count - 1) {
                let mut descriptor = self.buffer(false);
                self.link(&mut descriptor, places.get(position + 1).copied());
                driver.set_descriptor(place, descriptor);
            }
            let entries = self.random.range(1, size.min(12) + 1);
            let mut descriptor = self.table(driver, entries);
            self.link(&mut descriptor, None);
            driver.set_descriptor(places[count - 1], descriptor);
        } else {
            for (&place, descriptor) in places.iter().zip(self.linked(&places)) {
                driver.set_descriptor(place, descriptor);
            }
        }
        let mut head = places[0];
        self.owned.insert(head, places);
        if self.errs() && self.random.one_in(4) {
            head = self.random.range(0, size + 4) as u16;
        }
        driver.stage(head);
        true
    }

    fn reclaim(&mut self, head: u16) {
        self.free.extend(self.owned.remove(&head).unwrap_or_default());
    }
}

/// One random ring and the two engines on it.
struct Case {
    author: Author,
    driver: DriverRing,
    features: RingFeatures,
    ours: Virtq,
    theirs: Queue,
    their_memory: Arc<GuestMemory>,
    /// Where each region of RAM is in our memory.
    hosts: [usize; 3],
    in_flight: Vec<Chain>,
    /// Heads that the device has, or that it finished and did not publish.
    outstanding: BTreeSet<u16>,
    taken_since_publication: u16,
    published_before: bool,
    avail_flags: u16,
}

/// What the cases were made of, so that a generator that has gone blind is noticed.
#[derive(Default)]
struct Tally {
    chains: u32,
    pieces: u32,
    faults: BTreeMap<&'static str, u32>,
    interrupts: [u32; 2],
}

impl Case {
    fn new(seed: u64, our_memory: &Arc<GuestMemory>, their_memory: &Arc<GuestMemory>) -> Self {
        let mut random = Random::new(seed);
        let size = 1 << random.range(0, 7);
        let features = RingFeatures {
            event_idx: random.one_in(2),
            indirect: !random.one_in(8),
            ..FLAGS
        };
        let anywhere = random.next() as u16;
        let near = random.pick(&[0, 0xffff, 0x7fff, anywhere]);
        let next_avail = near.wrapping_sub(random.range(0, 4) as u16);
        let next_used = near.wrapping_sub(random.range(0, 4) as u16);
        let mut driver = DriverRing::modern(Arc::clone(our_memory), RING, size);
        driver.start_at(next_avail, next_used);

        let state = QueueState {
            next_avail,
            next_used,
            broken: false,
        };
        let config = driver.config().clone();
        let ours = Virtq::new(Arc::clone(our_memory), &config, features, state).unwrap();
        let mut theirs = Queue::new(size).unwrap();
        theirs
            .try_set_desc_table_address(GuestAddress(config.descriptors))
            .unwrap();
        theirs
            .try_set_avail_ring_address(GuestAddress(config.available))
            .unwrap();
        theirs.try_set_used_ring_address(GuestAddress(config.used)).unwrap();
        theirs.set_event_idx(features.event_idx);
        theirs.set_next_avail(next_avail);
        theirs.set_next_used(next_used);
        theirs.set_ready(true);

        let mut free: Vec<u16> = (0..size).collect();
        random.shuffle(&mut free);
        let errors = random.pick(&[0, 0, 6, 30]);
        let host = |(start, _)| {
            let address = GuestMemoryBackend::get_host_address(our_memory.as_ref(), GuestAddress(start));
            address.unwrap().addr()
        };
        Self {
            author: Author {
                random,
                errors,
                free,
                owned: BTreeMap::new(),
                next_table: TABLES,
            },
            driver,
            features,
            ours,
            theirs,
            their_memory: Arc::clone(their_memory),
            hosts: RAM.map(host),
            in_flight: Vec::new(),
            outstanding: BTreeSet::new(),
            taken_since_publication: 0,
            published_before: false,
            avail_flags: 0,
        }
    }

    /// A few batches, unless the ring breaks.
    fn run(&mut self, tally: &mut Tally) {
        for _ in 0..self.author.random.range(1, 5) {
            self.drive();
            if !self.take_all(tally) {
                assert!(self.ours.is_broken());
                return;
            }
            self.give_back();
            self.publish(tally);
            self.enable_notifications();
            assert_eq!(self.used_ring(self.driver.memory()), self.used_ring(&self.their_memory));
        }
    }

    /// The driver's turn, in both memories.
    fn drive(&mut self) {
        let random = &mut self.author.random;
        let index = self.driver.avail_index();
        let used = self.driver.used_index();
        let event = match random.range(0, 3) {
            0 => used,
            1 => used.wrapping_add(random.range(0, 8) as u16),
            _ => random.next() as u16,
        };
        self.driver.set_used_event(event);
        self.avail_flags = random.pick(&[0, 0, 1, 0xfffe]);
        self.driver.set_avail_flags(self.avail_flags);
        let wanted = random.range(0, u64::from(self.driver.config().size) + 1);
        for _ in 0..wanted {
            if !self
                .author
                .post(&mut self.driver, self.features.indirect || self.author.errors != 0)
            {
                break;
            }
        }
        let mut shown = self.driver.avail_index();
        if self.author.errs() && self.author.random.one_in(8) {
            shown = index.wrapping_add(self.author.random.next() as u16);
        }
        self.driver.set_avail_index(shown);

        let mut page = vec![0; (TABLES_END - RING) as usize];
        self.driver.memory().read_slice(&mut page, GuestAddress(RING)).unwrap();
        self.their_memory.write_slice(&page, GuestAddress(RING)).unwrap();
    }

    /// Both take what there is. False when the ring is broken.
    fn take_all(&mut self, tally: &mut Tally) -> bool {
        loop {
            let ours = self.ours.pop();
            let their_memory = Arc::clone(&self.their_memory);
            let theirs = match self.theirs.iter(their_memory.as_ref()) {
                Ok(mut iter) => iter.next(),
                Err(_) => {
                    let fault = ours.unwrap_err();
                    assert!(matches!(fault, GuestFault::AvailIndexInvalid { .. }), "{fault}");
                    *tally.faults.entry(fault.rule()).or_default() += 1;
                    return false;
                }
            };
            let Some(theirs) = theirs else {
                assert!(ours.unwrap().is_none());
                return true;
            };
            let head = theirs.head_index();
            let descriptors: Vec<Descriptor> = theirs.collect();
            match ours {
                Ok(None) => panic!("theirs has a chain, ours has none"),
                Ok(Some(chain)) => {
                    self.assert_same(&chain, head, &descriptors);
                    tally.chains += 1;
                    tally.pieces += descriptors.len() as u32;
                    self.in_flight.push(chain);
                }
                Err(fault) => {
                    *tally.faults.entry(fault.rule()).or_default() += 1;
                    assert!(self.author.errors != 0, "a good driver is blamed: {fault}");
                    if fault.severity() == Severity::Ring {
                        self.assert_ring_fault(fault, head);
                        return false;
                    }
                    assert!(self.explains(fault, head, &descriptors), "{fault}: {descriptors:?}");
                    self.theirs.add_used(their_memory.as_ref(), head, 0).unwrap();
                    self.author.reclaim(head);
                }
            }
            self.outstanding.insert(head);
            self.taken_since_publication += 1;
        }
    }

    fn assert_same(&self, chain: &Chain, head: u16, descriptors: &[Descriptor]) {
        assert_eq!(chain.head(), head);
        let last = descriptors.last().expect("a chain that we take has buffers");
        assert!(!last.has_next(), "virtio-queue ended the chain early: {descriptors:?}");
        let mut expected = Vec::new();
        for descriptor in descriptors {
            let (address, len) = (descriptor.addr().0, descriptor.len().into());
            let ram = pieces(descriptor.is_write_only(), address, len);
            expected.extend(ram.expect("a buffer that we take is RAM"));
            assert_ne!(descriptor.len(), 0);
        }
        assert!(descriptors.is_sorted_by_key(|descriptor| descriptor.is_write_only()));
        let guest = |(writable, host, len): (bool, usize, usize)| {
            let region = |(&start, &(guest, size)): (&usize, &(u64, u64))| {
                let offset = host.wrapping_sub(start) as u64;
                (offset < size).then(|| guest + offset)
            };
            let address = self.hosts.iter().zip(&RAM).find_map(region);
            (writable, address.expect("a segment is RAM"), len as u64)
        };
        let ours: Vec<Piece> = chain.buffer().segments().map(guest).collect();
        assert_eq!(ours, expected);
        if let Some(indirect) = self.first_indirect(head) {
            assert!(self.features.indirect && indirect.flags & NEXT == 0);
        }
    }

    /// Ring faults that virtio-queue knows nothing of, against what the test knows.
    fn assert_ring_fault(&self, fault: GuestFault, head: u16) {
        let size = self.driver.config().size;
        match fault {
            GuestFault::HeadOutOfRange { head: named, .. } => {
                assert!(named == head && head >= size);
            }
            GuestFault::HeadInFlight { head: named } => {
                assert!(named == head && self.outstanding.contains(&head));
            }
            GuestFault::TooManyInFlight { .. } => {
                let before = self.in_flight.len() as u16;
                assert!(before + self.taken_since_publication >= size);
            }
            _ => panic!("virtio-queue takes a head here: {fault}"),
        }
    }

    /// Whether what virtio-queue saw of the chain at `head`, or the bytes in memory, show the
    /// violation that `fault` names.
    fn explains(&self, fault: GuestFault, head: u16, theirs: &[Descriptor]) -> bool {
        let ended_early = theirs.last().is_none_or(Descriptor::has_next);
        let indirect = self.first_indirect(head);
        // 2^32 bytes in all are allowed, but virtio-queue ends in front of the buffer that makes
        // them full; here that is one byte and a buffer of `u32::MAX`.
        let sum: u64 = theirs.iter().map(|it| u64::from(it.len())).sum();
        let ended_at_4_gib = ended_early && sum == 1;
        match fault {
            GuestFault::NextOutOfRange { next, entries, .. } => {
                let last = theirs.last();
                ended_early && last.is_some_and(|last| last.next() == next) && u32::from(next) >= entries
            }
            GuestFault::ChainTooLong { limit, .. } => ended_early && theirs.len() as u32 >= limit,
            GuestFault::BufferEmpty { .. } => theirs.iter().any(|descriptor| descriptor.len() == 0),
            GuestFault::ReadableAfterWritable { .. } => {
                !theirs.is_sorted_by_key(|it| it.is_write_only()) || ended_at_4_gib
            }
            GuestFault::BufferOutsideRam { address, len, .. } => {
                let is_it = |it: &Descriptor| (it.addr().0, it.len()) == (address, len);
                let seen = theirs.iter().any(is_it) || ended_at_4_gib;
                seen && pieces(false, address, len.into()).is_none()
            }
            GuestFault::ChainTooLarge { .. } => ended_early,
            GuestFault::IndirectNotNegotiated { .. } => !self.features.indirect && indirect.is_some(),
            GuestFault::IndirectNested { .. } => ended_early && indirect.is_some(),
            GuestFault::IndirectWithNext { .. } => indirect.is_some_and(|it| it.flags & NEXT != 0),
            GuestFault::IndirectLengthInvalid { len, .. } => {
                let invalid = len == 0 || len % 16 != 0 || len / 16 > 32768;
                invalid && indirect.is_some_and(|it| it.len == len)
            }
            GuestFault::IndirectOutsideRam { address, len, .. } => {
                let is_it = indirect.is_some_and(|it| (it.address, it.len) == (address, len));
                is_it && pieces(false, address, len.into()).is_none()
            }
            // Every other variant is a ring fault.
            _ => false,
        }
    }

    /// The indirect descriptor that the chain at `head` comes to, read naively.
    fn first_indirect(&self, head: u16) -> Option<RawDescriptor> {
        let mut index = head;
        for _ in 0..self.driver.config().size {
            let descriptor = self.raw(index);
            if descriptor.flags & INDIRECT != 0 {
                return Some(descriptor);
            }
            if descriptor.flags & NEXT == 0 || descriptor.next >= self.driver.config().size {
                return None;
            }
            index = descriptor.next;
        }
        None
    }

    fn raw(&self, index: u16) -> RawDescriptor {
        let at = self.driver.config().descriptors + 16 * u64::from(index);
        let memory = self.driver.memory();
        RawDescriptor {
            address: memory.read_obj(GuestAddress(at)).unwrap(),
            len: memory.read_obj(GuestAddress(at + 8)).unwrap(),
            flags: memory.read_obj(GuestAddress(at + 12)).unwrap(),
            next: memory.read_obj(GuestAddress(at + 14)).unwrap(),
        }
    }

    /// Some of what is in flight is finished, in any order.
    fn give_back(&mut self) {
        self.author.random.shuffle(&mut self.in_flight);
        let keep = self.author.random.range(0, self.in_flight.len() as u64 + 1) / 2;
        for chain in self.in_flight.split_off(keep as usize) {
            let head = chain.head();
            let written = self.author.random.range(0, chain.writable_bytes() as u64 + 1) as u32;
            self.ours.push(chain, written);
            self.theirs.add_used(self.their_memory.as_ref(), head, written).unwrap();
            self.author.reclaim(head);
        }
    }

    fn publish(&mut self, tally: &mut Tally) {
        let staged = self.ours.state().next_used != self.theirs.next_used();
        let ours = self.ours.publish();
        let theirs = self.theirs.needs_notification(self.their_memory.as_ref()).unwrap();
        let expected = if !self.features.event_idx {
            staged && self.avail_flags & 1 == 0
        } else if staged && !self.published_before {
            true
        } else {
            theirs
        };
        assert_eq!(ours, expected);
        assert_eq!(self.ours.state().next_used, self.theirs.next_used());
        tally.interrupts[usize::from(ours)] += u32::from(staged);
        self.published_before |= staged;
        self.taken_since_publication = 0;
        self.outstanding = self.in_flight.iter().map(Chain::head).collect();
        assert_eq!(usize::from(self.ours.in_flight()), self.in_flight.len());
    }

    fn enable_notifications(&mut self) {
        if self.author.random.one_in(2) {
            self.ours.disable_notify();
            self.theirs.disable_notification(self.their_memory.as_ref()).unwrap();
        }
        let theirs = self.theirs.enable_notification(self.their_memory.as_ref()).unwrap();
        assert_eq!(self.ours.enable_notify(), theirs);
        assert_eq!(self.ours.state().next_avail, self.theirs.next_avail());
    }

    fn used_ring(&self, memory: &GuestMemory) -> Vec<u8> {
        let config = self.driver.config();
        let mut bytes = vec![0; RingPart::Used.bytes(config.size) as usize];
        memory.read_slice(&mut bytes, GuestAddress(config.used)).unwrap();
        bytes
    }
}

#[test]
fn both_engines_agree_on_random_rings() {
    let ranges = RAM.map(|(start, size)| (GuestAddress(start), size as usize));
    let memory = || Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
    let (our_memory, their_memory) = (memory(), memory());
    let mut tally = Tally::default();
    for seed in 0..u64::from(CASES) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Case::new(seed, &our_memory, &their_memory).run(&mut tally);
        }));
        assert!(result.is_ok(), "the case of seed {seed} failed");
    }

    // Every kind of ring was really there. Too many in flight (04) takes a driver that works while
    // the device does.
    let rules = (1..=15).filter(|&number| number != 4);
    for rule in rules.map(|number| format!("V-RING-{number:02}")) {
        let count = tally.faults.get(rule.as_str()).copied().unwrap_or(0);
        assert!(count >= 50, "rule {rule} was broken only {count} times");
    }
    assert!(tally.chains > 10 * CASES / 4, "{} chains", tally.chains);
    assert!(tally.pieces > 2 * tally.chains, "{} buffers", tally.pieces);
    assert!(
        tally.interrupts.iter().all(|&count| count > CASES / 4),
        "{:?}",
        tally.interrupts
    );
}
