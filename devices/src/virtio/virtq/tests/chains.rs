//! Chains that are right, and every way in which one can be wrong.

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Buffer, DriverRing, INDIRECT, NEXT, RawDescriptor, WRITE};
use super::super::{CHAIN_LIMIT, GuestFault, QueueState, RingFeatures, Virtq};
use super::{FLAGS, HIGH, HOLE, Pair, SEAM, memory};

const DATA: u64 = 0x2_0000;
const TABLE: u64 = 0x3_0000;

fn readable(next: u16) -> RawDescriptor {
    RawDescriptor::new(DATA, 8, NEXT, next)
}

/// Writes `descriptors` from index 0 on and makes the chain at 0 available.
fn offer(pair: &mut Pair, descriptors: &[RawDescriptor]) {
    for (index, &descriptor) in descriptors.iter().enumerate() {
        pair.driver.set_descriptor(index as u16, descriptor);
    }
    pair.driver.offer(0);
}

/// As [`offer`], with `entries` as an indirect table of `len` bytes.
fn offer_table(pair: &mut Pair, table: u64, entries: &[RawDescriptor], len: u32) {
    for (index, &entry) in entries.iter().enumerate() {
        pair.driver.set_indirect(table, index as u16, entry);
    }
    offer(pair, &[RawDescriptor::new(table, len, INDIRECT, 0)]);
}

fn refused(descriptors: &[RawDescriptor], fault: GuestFault) {
    for mut pair in Pair::both(8) {
        offer(&mut pair, descriptors);
        pair.assert_chain_refused(fault);
    }
}

fn refused_table(entries: &[RawDescriptor], len: u32, fault: GuestFault) {
    for mut pair in Pair::both(8) {
        offer_table(&mut pair, TABLE, entries, len);
        pair.assert_chain_refused(fault);
    }
}

#[test]
fn a_chain_gives_its_readable_then_its_writable_bytes() {
    for mut pair in Pair::both(8) {
        let buffers = [
            Buffer::readable(DATA, 16),
            Buffer::readable(HIGH, 8),
            Buffer::writable(DATA + 0x1000, 512),
            Buffer::writable(DATA + 0x2000, 1),
        ];
        pair.driver.post(&buffers).unwrap();
        let chain = pair.pop();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (24, 513));
        assert!(!chain.exceeds_queue_size());
    }
}

#[test]
fn verify_2_7_5_chain_that_loops_to_itself_is_refused() {
    refused(&[readable(0)], GuestFault::ChainTooLong { head: 0, limit: 8 });
}

#[test]
fn verify_2_7_5_cycle_of_two_is_refused() {
    let fault = GuestFault::ChainTooLong { head: 0, limit: 8 };
    refused(&[readable(1), readable(0)], fault);
}

#[test]
fn chain_of_queue_size_is_legal() {
    for mut pair in Pair::both(8) {
        pair.driver.post(&[Buffer::writable(DATA, 4); 8]).unwrap();
        assert_eq!(pair.pop().writable_bytes(), 32);
    }
}

#[test]
fn verify_2_7_5_chain_one_longer_than_the_table_is_refused() {
    let mut descriptors: Vec<_> = (1..=8).map(readable).collect();
    descriptors[7] = readable(3);
    refused(&descriptors, GuestFault::ChainTooLong { head: 0, limit: 8 });
}

#[test]
fn verify_2_7_5_next_out_of_range_is_refused() {
    for next in [8, 0x7fff, 0xffff] {
        let fault = GuestFault::NextOutOfRange {
            head: 0,
            next,
            entries: 8,
        };
        refused(&[readable(next)], fault);
    }
}

#[test]
fn next_without_its_flag_has_no_meaning() {
    let mut pair = Pair::modern(8);
    offer(&mut pair, &[RawDescriptor::new(DATA, 8, 0, 0xffff)]);
    assert_eq!(pair.pop().readable_bytes(), 8);
}

#[test]
fn unknown_flags_of_a_descriptor_are_ignored() {
    let mut pair = Pair::modern(8);
    offer(&mut pair, &[RawDescriptor::new(DATA, 8, 0xfff8 | WRITE, 0)]);
    assert_eq!(pair.pop().writable_bytes(), 8);
}

#[test]
fn empty_buffer_is_refused() {
    let fault = GuestFault::BufferEmpty { head: 0 };
    refused(&[RawDescriptor::new(DATA, 0, 0, 0)], fault);
    refused(&[readable(1), RawDescriptor::new(DATA, 0, WRITE, 0)], fault);
}

#[test]
fn buffer_at_address_0_is_ram_like_any_other() {
    let mut pair = Pair::modern(8);
    offer(&mut pair, &[RawDescriptor::new(0, 8, WRITE, 0)]);
    assert_eq!(pair.pop().writable_bytes(), 8);
}

#[test]
fn verify_2_7_5_buffer_outside_ram_is_refused() {
    let end = HIGH + 0x1_0000;
    let cases = [
        (HOLE, 1),
        (HOLE - 8, 16),
        (HIGH - 8, 16),
        (0xfebf_1000, 0x1000),
        (end, 1),
        (end - 4, 8),
        (u64::MAX, 1),
        (u64::MAX - 7, 8),
        (u64::MAX - 7, 16),
        (u64::MAX - 7, 0xffff_f000),
        (0, 0xffff_f000),
    ];
    for (address, len) in cases {
        let fault = GuestFault::BufferOutsideRam { head: 0, address, len };
        refused(&[RawDescriptor::new(address, len, WRITE, 0)], fault);
        refused(&[readable(1), RawDescriptor::new(address, len, 0, 0)], fault);
    }
}

#[test]
fn buffer_across_adjacent_regions_is_legal() {
    let mut pair = Pair::modern(8);
    pair.driver
        .memory()
        .write_slice(b"abcdefgh", GuestAddress(SEAM - 3))
        .unwrap();
    offer(&mut pair, &[RawDescriptor::new(SEAM - 3, 8, 0, 0)]);
    let mut bytes = [0; 8];
    pair.pop().reader().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"abcdefgh");
}

#[test]
fn verify_2_7_5_2_chain_of_more_than_4_gib_is_refused() {
    // RAM of 8 GiB that is only reserved: big enough for every buffer alone.
    let ranges = [(GuestAddress(0), 1 << 33)];
    let memory = crate::memory::GuestMemory::from_ranges(&ranges).unwrap();
    let mut pair = Pair::on(DriverRing::modern(memory.into(), 0x1000, 8), FLAGS);
    let big = |len, flags, next| RawDescriptor::new(1 << 32, len, flags, next);

    let half = 1 << 31;
    offer(&mut pair, &[big(half, NEXT, 1), big(half, WRITE, 0)]);
    let chain = pair.pop();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (1 << 31, 1 << 31));
    pair.queue.push(chain, 0);
    assert!(pair.queue.publish());
    pair.driver.next_used().unwrap();

    offer(
        &mut pair,
        &[big(half, NEXT, 1), big(half, NEXT | WRITE, 2), big(1, WRITE, 0)],
    );
    pair.assert_chain_refused(GuestFault::ChainTooLarge { head: 0 });
    offer(&mut pair, &[big(u32::MAX, NEXT, 1), big(u32::MAX, NEXT, 0)]);
    pair.assert_chain_refused(GuestFault::ChainTooLarge { head: 0 });
}

#[test]
fn verify_2_7_4_2_readable_after_writable_is_refused() {
    let fault = GuestFault::ReadableAfterWritable { head: 0 };
    let write = RawDescriptor::new(DATA, 8, NEXT | WRITE, 1);
    refused(&[write, RawDescriptor::new(DATA, 8, 0, 0)], fault);
    refused_table(&[write, RawDescriptor::new(DATA, 8, 0, 0)], 32, fault);
}

#[test]
fn overlapping_buffers_are_the_drivers_own_business() {
    let mut pair = Pair::modern(8);
    pair.driver
        .memory()
        .write_slice(b"abcdefgh", GuestAddress(DATA))
        .unwrap();
    pair.driver
        .post(&[Buffer::readable(DATA, 8), Buffer::writable(DATA + 4, 8)])
        .unwrap();
    let chain = pair.pop();
    chain.writer().write_all(b"12345678").unwrap();
    let mut bytes = [0; 8];
    chain.reader().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd1234");
}

#[test]
fn indirect_table_is_walked_in_place_of_its_descriptor() {
    for mut pair in Pair::both(8) {
        let buffers = [Buffer::readable(DATA, 16), Buffer::writable(DATA + 0x1000, 512)];
        let head = pair.driver.post_indirect(TABLE, &buffers).unwrap();
        let chain = pair.pop();
        assert_eq!(chain.head(), head);
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 512));
    }
}

#[test]
fn verify_2_7_5_3_2_direct_descriptors_before_an_indirect_one_are_legal() {
    let mut pair = Pair::modern(8);
    pair.driver
        .set_indirect(TABLE, 0, RawDescriptor::new(DATA, 512, WRITE, 0));
    offer(&mut pair, &[readable(1), RawDescriptor::new(TABLE, 16, INDIRECT, 0)]);
    let chain = pair.pop();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (8, 512));
}

#[test]
fn verify_2_7_5_3_2_write_on_the_indirect_descriptor_is_ignored() {
    let mut pair = Pair::modern(8);
    pair.driver.set_indirect(TABLE, 0, RawDescriptor::new(DATA, 8, 0, 0));
    offer(&mut pair, &[RawDescriptor::new(TABLE, 16, INDIRECT | WRITE, 0)]);
    assert_eq!(pair.pop().readable_bytes(), 8);
}

#[test]
fn verify_2_7_5_3_1_indirect_without_the_feature_is_refused() {
    let features = RingFeatures {
        indirect: false,
        ..FLAGS
    };
    let mut pair = Pair::on(DriverRing::modern(memory(), 0x1000, 8), features);
    pair.driver.post_indirect(TABLE, &[Buffer::readable(DATA, 8)]).unwrap();
    pair.assert_chain_refused(GuestFault::IndirectNotNegotiated { head: 0 });
}

#[test]
fn verify_2_7_5_3_1_indirect_inside_indirect_is_refused() {
    let nested = RawDescriptor::new(TABLE, 16, INDIRECT, 0);
    let fault = GuestFault::IndirectNested { head: 0 };
    refused_table(&[nested], 16, fault);
    refused_table(&[readable(1), nested], 32, fault);
}

#[test]
fn verify_2_7_5_3_1_indirect_with_next_is_refused() {
    let entry = RawDescriptor::new(TABLE, 16, INDIRECT | NEXT, 1);
    refused(&[entry, readable(0)], GuestFault::IndirectWithNext { head: 0 });
}

#[test]
fn verify_2_7_5_3_1_two_indirects_in_a_chain_are_refused() {
    let first = RawDescriptor::new(TABLE, 16, INDIRECT | NEXT, 1);
    let second = RawDescriptor::new(TABLE, 16, INDIRECT, 0);
    refused(&[first, second], GuestFault::IndirectWithNext { head: 0 });
}

#[test]
fn verify_2_7_5_3_indirect_table_of_odd_length_is_refused() {
    let end = RawDescriptor::new(DATA, 8, 0, 0);
    for len in [0, 1, 15, 17, 31, 16 * 32769, 0xffff_fff0, u32::MAX] {
        refused_table(&[end], len, GuestFault::IndirectLengthInvalid { head: 0, len });
    }
}

#[test]
fn verify_2_7_5_3_indirect_table_outside_ram_is_refused() {
    for (address, len) in [(HOLE, 16), (HOLE - 16, 32), (HIGH - 16, 16), (u64::MAX - 15, 32)] {
        let fault = GuestFault::IndirectOutsideRam { head: 0, address, len };
        refused(&[RawDescriptor::new(address, len, INDIRECT, 0)], fault);
    }
}

#[test]
fn indirect_next_out_of_its_table_is_refused() {
    let fault = GuestFault::NextOutOfRange {
        head: 0,
        next: 2,
        entries: 2,
    };
    refused_table(&[readable(2)], 32, fault);
}

#[test]
fn indirect_loop_is_refused() {
    let fault = GuestFault::ChainTooLong { head: 0, limit: 2 };
    refused_table(&[readable(1), readable(0)], 32, fault);
}

#[test]
fn unaligned_indirect_table_is_legal() {
    for shift in 0..16 {
        let mut pair = Pair::modern(8);
        let entries = [readable(1), RawDescriptor::new(DATA, 24, WRITE, 0)];
        offer_table(&mut pair, TABLE + shift, &entries, 32);
        let chain = pair.pop();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (8, 24));
    }
}

#[test]
fn indirect_table_across_adjacent_regions_is_legal() {
    for shift in 1..32 {
        let mut pair = Pair::modern(8);
        let entries = [readable(1), RawDescriptor::new(DATA, 24, WRITE, 0)];
        offer_table(&mut pair, SEAM - shift, &entries, 32);
        let chain = pair.pop();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (8, 24));
    }
}

#[test]
fn indirect_table_of_more_entries_than_the_queue_is_legal_if_few_are_used() {
    let mut pair = Pair::modern(8);
    offer_table(&mut pair, TABLE, &[RawDescriptor::new(DATA, 8, 0, 0)], 16 * 4096);
    assert!(!pair.pop().exceeds_queue_size());
}

#[test]
fn indirect_chain_longer_than_the_queue_is_taken_as_qemu_takes_it_and_told() {
    let mut pair = Pair::modern(8);
    pair.driver
        .post_indirect(TABLE, &[Buffer::writable(DATA, 1); CHAIN_LIMIT as usize])
        .unwrap();
    let chain = pair.pop();
    assert_eq!(chain.writable_bytes(), usize::from(CHAIN_LIMIT));
    assert!(chain.exceeds_queue_size());
}

#[test]
fn indirect_chain_as_long_as_the_queue_is_within_the_rules() {
    let mut pair = Pair::modern(8);
    let buffers = [Buffer::writable(DATA, 1); 8];
    pair.driver.post_indirect(TABLE, &buffers).unwrap();
    assert!(!pair.pop().exceeds_queue_size());
}

#[test]
fn indirect_chain_beyond_the_limit_is_refused() {
    let mut pair = Pair::modern(8);
    let buffers = [Buffer::writable(DATA, 1); CHAIN_LIMIT as usize + 1];
    pair.driver.post_indirect(TABLE, &buffers).unwrap();
    let limit = CHAIN_LIMIT.into();
    pair.assert_chain_refused(GuestFault::ChainTooLong { head: 0, limit });
}

#[test]
fn descriptor_changed_after_it_was_taken_changes_nothing() {
    let mut pair = Pair::modern(8);
    pair.driver.memory().write_slice(b"old!", GuestAddress(DATA)).unwrap();
    pair.driver.post(&[Buffer::readable(DATA, 4)]).unwrap();
    let chain = pair.pop();
    pair.driver
        .set_descriptor(0, RawDescriptor::new(HOLE, u32::MAX, WRITE, 99));
    let mut bytes = [0; 4];
    chain.reader().read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, chain.writable_bytes()), (b"old!", 0));
}

#[test]
fn every_chain_of_a_full_ring_of_faults_comes_back() {
    let mut pair = Pair::modern(8);
    for head in 0..8 {
        pair.driver.set_descriptor(head, RawDescriptor::new(HOLE, 8, 0, 0));
        pair.driver.offer(head);
    }
    for _ in 0..8 {
        assert_eq!(pair.queue.pop().unwrap_err().rule(), "V-RING-10");
    }
    assert!(pair.queue.pop().unwrap().is_none());
    assert_eq!(pair.queue.in_flight(), 0);
    assert!(pair.queue.publish());
    assert_eq!(pair.driver.drain_used().len(), 8);
}

#[test]
fn a_chain_outlives_its_queue_and_its_memory_stays_mapped() {
    let memory = memory();
    let weak = std::sync::Arc::downgrade(&memory);
    let mut driver = DriverRing::modern(memory.clone(), 0x1000, 8);
    driver.post(&[Buffer::writable(DATA, 4)]).unwrap();
    let mut queue = Virtq::new(memory, driver.config(), FLAGS, QueueState::default()).unwrap();
    let chain = queue.pop().unwrap().unwrap();
    drop((driver, queue));
    chain.writer().write_all(b"late").unwrap();
    let written: [u8; 4] = weak.upgrade().unwrap().read_obj(GuestAddress(DATA)).unwrap();
    assert_eq!(&written, b"late");
    drop(chain);
    assert!(weak.upgrade().is_none());
}
