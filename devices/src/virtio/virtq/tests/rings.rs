//! Indices, heads and geometry; stop and start.

use super::super::testing::{Buffer, DriverRing, RawDescriptor};
use super::super::{GuestFault, Layout, QueueConfig, QueueState, RingFeatures, RingPart, Virtq};
use super::{FLAGS, HIGH, HOLE, Pair, SEAM, memory};

const DATA: u64 = 0x2_0000;
const BUFFER: [Buffer; 1] = [Buffer {
    address: DATA,
    len: 8,
    writable: true,
}];

fn start(config: &QueueConfig) -> Result<Virtq, GuestFault> {
    Virtq::new(memory(), config, FLAGS, QueueState::default())
}

#[test]
fn verify_2_7_6_1_available_index_beyond_the_queue_size_breaks_the_ring() {
    for (index, is_broken) in [(8, false), (9, true), (0x7fff, true), (0x8000, true), (0xffff, true)] {
        for mut pair in Pair::both(8) {
            pair.driver.set_avail_index(index);
            if is_broken {
                let fault = GuestFault::AvailIndexInvalid {
                    index,
                    expected: 0,
                    size: 8,
                };
                pair.assert_ring_broken(fault);
            } else {
                assert!(pair.queue.has_available());
            }
        }
    }
}

#[test]
fn verify_2_7_6_1_available_index_going_back_breaks_the_ring() {
    let mut pair = Pair::modern(8);
    for _ in 0..3 {
        pair.driver.post(&BUFFER).unwrap();
        let chain = pair.pop();
        pair.queue.push(chain, 0);
    }
    pair.driver.set_avail_index(2);
    pair.assert_ring_broken(GuestFault::AvailIndexInvalid {
        index: 2,
        expected: 3,
        size: 8,
    });
}

#[test]
fn a_jumped_index_is_found_when_notifications_are_enabled_and_ends_the_loop() {
    let mut pair = Pair::modern(8);
    pair.driver.set_avail_index(100);
    assert!(pair.queue.enable_notify());
    assert_eq!(pair.queue.pop().unwrap_err().rule(), "V-RING-01");
    pair.assert_quiet();
}

#[test]
fn verify_2_7_6_head_out_of_range_breaks_the_ring() {
    for head in [8, 0x7fff, 0xffff] {
        for mut pair in Pair::both(8) {
            pair.driver.offer(head);
            pair.assert_ring_broken(GuestFault::HeadOutOfRange { head, size: 8 });
        }
    }
}

#[test]
fn verify_2_7_13_1_same_head_twice_in_flight_breaks_the_ring() {
    for mut pair in Pair::both(8) {
        let head = pair.driver.post(&BUFFER).unwrap();
        pair.driver.offer(head);
        let chain = pair.pop();
        pair.assert_ring_broken(GuestFault::HeadInFlight { head });
        // The device finishes what it has; nobody is told any more.
        pair.queue.push(chain, 8);
        assert_eq!(pair.queue.in_flight(), 0);
        pair.assert_quiet();
    }
}

#[test]
fn a_head_may_come_again_once_it_was_given_back() {
    let mut pair = Pair::modern(2);
    for round in 0..200_000u32 {
        let head = pair.driver.post(&BUFFER).unwrap();
        let chain = pair.pop();
        pair.queue.push(chain, 8);
        assert!(pair.queue.publish());
        let used = pair.driver.next_used().unwrap();
        assert_eq!((used.head, used.len), (head.into(), 8), "round {round}");
    }
}

#[test]
fn more_chains_than_descriptors_between_two_publications_break_the_ring() {
    // A driver that never looks at the used ring could otherwise keep a device in its loop for
    // good.
    let mut pair = Pair::modern(4);
    pair.driver.set_descriptor(0, RawDescriptor::new(DATA, 8, 0, 0));
    for _ in 0..4 {
        pair.driver.offer(0);
        let chain = pair.pop();
        pair.queue.push(chain, 0);
    }
    pair.driver.offer(0);
    pair.assert_ring_broken(GuestFault::TooManyInFlight { size: 4 });
}

#[test]
fn indices_wrap_at_65535() {
    let mut driver = DriverRing::modern(memory(), 0x1000, 8);
    driver.start_at(0xfffe, 0xfffd);
    let state = QueueState {
        next_avail: 0xfffe,
        next_used: 0xfffd,
        broken: false,
    };
    let config = driver.config().clone();
    let mut queue = Virtq::new(driver.memory().clone(), &config, FLAGS, state).unwrap();
    for _ in 0..8 {
        driver.post(&BUFFER).unwrap();
    }
    while let Some(chain) = queue.pop().unwrap() {
        queue.push(chain, 1);
    }
    assert!(queue.publish());
    let heads: Vec<u32> = driver.drain_used().iter().map(|used| used.head).collect();
    assert_eq!(heads, (0..8).collect::<Vec<_>>());
    assert_eq!(
        queue.stop(),
        QueueState {
            next_avail: 6,
            next_used: 5,
            broken: false
        }
    );
}

#[test]
fn a_kick_without_work_finds_nothing() {
    for mut pair in Pair::both(8) {
        assert!(pair.queue.pop().unwrap().is_none());
        assert!(!pair.queue.publish());
        assert!(!pair.queue.enable_notify());
    }
}

#[test]
fn what_the_guest_writes_into_the_used_ring_is_never_read() {
    let mut pair = Pair::modern(8);
    let used = pair.driver.config().used;
    let garbage = vec![0xa5; RingPart::Used.bytes(8) as usize];
    for _ in 0..3 {
        vm_memory::Bytes::write_slice(pair.driver.memory().as_ref(), &garbage, vm_memory::GuestAddress(used)).unwrap();
        pair.driver.post(&BUFFER).unwrap();
        let chain = pair.pop();
        pair.queue.push(chain, 8);
        assert!(pair.queue.publish());
        assert_eq!(pair.driver.next_used().unwrap().len, 8);
    }
    assert_eq!(pair.driver.used_index(), 3);
}

#[test]
fn rings_that_overlap_everything_harm_only_the_guest() {
    let overlapping = [
        QueueConfig {
            descriptors: 0x1000,
            available: 0x1000,
            used: 0x1000,
            ..QueueConfig::new(8)
        },
        QueueConfig {
            descriptors: 0x1000,
            available: 0x1002,
            used: 0x1004,
            ..QueueConfig::new(8)
        },
        QueueConfig {
            descriptors: DATA,
            available: DATA + 64,
            used: DATA + 4,
            ..QueueConfig::new(8)
        },
    ];
    for config in overlapping {
        let mut driver = DriverRing::on(memory(), config);
        for len in [4, 64, 256] {
            // Each post writes over what the last one wrote, in one order or another.
            driver.post(&[Buffer::readable(DATA, len), Buffer::writable(DATA, len)]);
        }
        let mut pair = Pair::on(driver, FLAGS);
        for _ in 0..64 {
            if let Ok(Some(chain)) = pair.queue.pop() {
                let len = chain.writable_bytes();
                chain.writer().write_zeroes(len).unwrap();
                pair.queue.push(chain, len as u32);
            }
            let _ = pair.queue.publish();
        }
    }
}

#[test]
fn verify_2_7_ring_outside_ram_does_not_start() {
    let good = DriverRing::modern(memory(), 0x1000, 8).config().clone();
    assert!(start(&good).is_ok());
    for part in RingPart::ALL {
        let len = part.bytes(8);
        let last_fit = (HOLE - len) & !15;
        for address in [HOLE, last_fit + 16, HIGH - 16, 0xffff_ffff_ffff_fff0] {
            let mut config = good.clone();
            match part {
                RingPart::Descriptors => config.descriptors = address,
                RingPart::Available => config.available = address,
                RingPart::Used => config.used = address,
            }
            let fault = GuestFault::RingOutsideRam { part, address, len };
            assert_eq!(start(&config).unwrap_err(), fault);
        }
    }
}

#[test]
fn a_ring_that_is_not_in_one_piece_does_not_start() {
    let config = QueueConfig {
        descriptors: SEAM - 16,
        available: 0x1000,
        used: 0x2000,
        ..QueueConfig::new(8)
    };
    assert_eq!(start(&config).unwrap_err().rule(), "V-QUEUE-04");
}

#[test]
fn legacy_pfn_at_the_end_of_ram_does_not_start() {
    let mut config = QueueConfig::new(256);
    config.set_legacy_pfn((HOLE >> 12) as u32 - 2);
    assert_eq!(start(&config).unwrap_err().rule(), "V-QUEUE-04");
    config.set_legacy_pfn(u32::MAX);
    assert_eq!(start(&config).unwrap_err().rule(), "V-QUEUE-04");
}

#[test]
fn a_packed_ring_that_nobody_offered_does_not_start() {
    let config = DriverRing::modern(memory(), 0x1000, 8).config().clone();
    let features = RingFeatures {
        layout: Layout::Packed,
        ..FLAGS
    };
    let result = Virtq::new(memory(), &config, features, QueueState::default());
    assert_eq!(result.unwrap_err(), GuestFault::PackedNotOffered);
}

#[test]
fn a_queue_of_one_descriptor_works() {
    for mut pair in Pair::both(1) {
        for _ in 0..3 {
            pair.assert_goes_on();
        }
    }
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let mut pair = Pair::modern(8);
    pair.assert_goes_on();
    pair.driver.post(&BUFFER).unwrap();
    let state = pair.queue.stop();
    assert_eq!(
        state,
        QueueState {
            next_avail: 1,
            next_used: 1,
            broken: false
        }
    );
    let text = serde_json::to_string(&state).unwrap();
    let state = serde_json::from_str(&text).unwrap();
    let config = pair.driver.config().clone();
    pair.queue = Virtq::new(pair.driver.memory().clone(), &config, FLAGS, state).unwrap();
    let chain = pair.pop();
    pair.queue.push(chain, 8);
    assert!(pair.queue.publish());
    assert_eq!(pair.driver.next_used().unwrap().len, 8);
}

#[test]
fn a_broken_queue_stays_broken_across_stop_and_start_until_it_is_reset() {
    let mut pair = Pair::modern(8);
    pair.driver.offer(99);
    pair.queue.pop().unwrap_err();
    let state = pair.queue.stop();
    let config = pair.driver.config().clone();
    pair.queue = Virtq::new(pair.driver.memory().clone(), &config, FLAGS, state).unwrap();
    pair.assert_quiet();

    let driver = DriverRing::on(pair.driver.memory().clone(), config);
    Pair::on(driver, FLAGS).assert_goes_on();
}

#[test]
fn a_chain_from_before_a_reset_does_not_reach_the_queue_after_it() {
    let mut pair = Pair::modern(8);
    pair.driver.post(&BUFFER).unwrap();
    let late = pair.pop();
    let driver = DriverRing::on(pair.driver.memory().clone(), pair.driver.config().clone());
    let mut pair = Pair::on(driver, FLAGS);
    pair.driver.post(&BUFFER).unwrap();
    let current = pair.pop();
    assert_eq!(late.head(), current.head());

    pair.queue.push(late, 8);
    assert_eq!(pair.queue.in_flight(), 1);
    assert!(!pair.queue.publish());
    pair.queue.push(current, 8);
    assert!(pair.queue.publish());
    assert_eq!(pair.driver.drain_used().len(), 1);
}

#[test]
fn chains_come_back_in_the_order_in_which_they_are_finished() {
    let mut pair = Pair::modern(8);
    let heads: Vec<u16> = (0..3).map(|_| pair.driver.post(&BUFFER).unwrap()).collect();
    let [first, second, third] = [pair.pop(), pair.pop(), pair.pop()];
    assert_eq!(pair.queue.in_flight(), 3);
    for (chain, written) in [(third, 3), (first, 1), (second, 2)] {
        pair.queue.push(chain, written);
    }
    assert_eq!((pair.queue.in_flight(), pair.driver.used_index()), (0, 0));
    assert!(pair.queue.publish());
    let used = pair.driver.drain_used();
    let expected = [(heads[2], 3), (heads[0], 1), (heads[1], 2)];
    assert_eq!(
        used.iter().map(|used| (used.head as u16, used.len)).collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn a_chain_that_is_put_back_comes_out_again() {
    let mut pair = Pair::modern(8);
    let head = pair.driver.post(&BUFFER).unwrap();
    let second = pair.driver.post(&BUFFER).unwrap();
    let chain = pair.pop();
    pair.queue.unpop(chain);
    assert_eq!(pair.queue.in_flight(), 0);
    assert_eq!(pair.pop().head(), head);
    assert_eq!(pair.pop().head(), second);
}

#[test]
fn only_the_last_chain_can_be_put_back() {
    let mut pair = Pair::modern(8);
    pair.driver.post(&BUFFER).unwrap();
    pair.driver.post(&BUFFER).unwrap();
    let first = pair.pop();
    let _second = pair.pop();
    pair.queue.unpop(first);
    assert!(pair.queue.pop().unwrap().is_none());
    assert_eq!(pair.queue.in_flight(), 2);
}

#[test]
fn no_more_is_reported_as_written_than_there_was_room_for() {
    let mut pair = Pair::modern(8);
    pair.driver.post(&BUFFER).unwrap();
    let chain = pair.pop();
    pair.queue.push(chain, u32::MAX);
    assert!(pair.queue.publish());
    assert_eq!(pair.driver.next_used().unwrap().len, 8);
}
