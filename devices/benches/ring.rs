//! What a descriptor chain costs the device side of a split ring: ours beside virtio-queue's, same
//! ring, same process.
//!
//! `cargo bench -p devices --bench ring`. Chains of two descriptors, a request of 16 bytes and a
//! buffer of 4096, are made available 64 at a time; a round takes them all, resolves their buffers
//! to host memory, gives them back and decides on one interrupt. The figure is the median of many
//! runs, in nanoseconds per chain, the driver's one store per round included.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark, not an interface")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use devices::memory::GuestMemory;
use devices::virtio::virtq::testing::{Buffer, DriverRing};
use devices::virtio::virtq::{Chain, QueueState, RingFeatures, Virtq};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const QUEUE_SIZE: u16 = 256;
const BATCH: u16 = 64;
const ROUNDS: u32 = 2_000;
const RUNS: usize = 41;

/// A ring whose every available entry names one of 128 chains, in turn.
fn ring() -> DriverRing {
    let ranges = [(GuestAddress(0), 16 << 20), (GuestAddress(1 << 32), 16 << 20)];
    let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
    let mut ring = DriverRing::modern(memory, 0x1_0000, QUEUE_SIZE);
    let mut heads = Vec::new();
    for chain in 0..u64::from(QUEUE_SIZE / 2) {
        let request = Buffer::readable(0x10_0000 + 16 * chain, 16);
        let data = Buffer::writable((1 << 32) + 4096 * chain, 4096);
        heads.push(ring.post(&[request, data]).unwrap());
    }
    for head in heads {
        ring.stage(head);
    }
    ring.set_avail_index(0);
    ring
}

/// Median, over runs, of the nanoseconds per chain of `round`, which serves [`BATCH`] chains.
fn measure(ring: &mut DriverRing, mut round: impl FnMut()) -> f64 {
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                ring.set_avail_index(ring.avail_index().wrapping_add(BATCH));
                round();
            }
            start.elapsed().as_nanos() as f64 / (f64::from(ROUNDS) * f64::from(BATCH))
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

fn virtq(ring: &DriverRing, features: RingFeatures) -> Virtq {
    let memory = Arc::clone(ring.memory());
    Virtq::new(memory, ring.config(), features, QueueState::default()).unwrap()
}

/// Each chain is given back before the next is taken.
fn ours_in_turn(features: RingFeatures) -> f64 {
    let mut ring = ring();
    let mut queue = virtq(&ring, features);
    measure(&mut ring, || {
        queue.disable_notify();
        while let Some(chain) = queue.pop().unwrap() {
            queue.push(black_box(chain), 4096);
        }
        black_box(queue.publish());
        assert!(!queue.enable_notify());
    })
}

/// All chains of a batch are in flight at once.
fn ours_in_flight(features: RingFeatures) -> f64 {
    let mut ring = ring();
    let mut queue = virtq(&ring, features);
    let mut in_flight: Vec<Chain> = Vec::new();
    measure(&mut ring, || {
        queue.disable_notify();
        while let Some(chain) = queue.pop().unwrap() {
            in_flight.push(chain);
        }
        for chain in in_flight.drain(..) {
            queue.push(black_box(chain), 4096);
        }
        black_box(queue.publish());
        assert!(!queue.enable_notify());
    })
}

/// In turn, and with the request copied out and one byte of status written, as a disk does.
fn ours_with_data(features: RingFeatures) -> f64 {
    let mut ring = ring();
    let mut queue = virtq(&ring, features);
    measure(&mut ring, || {
        queue.disable_notify();
        while let Some(chain) = queue.pop().unwrap() {
            black_box(chain.reader().read_obj::<[u64; 2]>().unwrap());
            let mut writer = chain.writer();
            let mut status = writer.split_at(4095).unwrap();
            status.write_all(&[0]).unwrap();
            queue.push(chain, 4096);
        }
        black_box(queue.publish());
        assert!(!queue.enable_notify());
    })
}

/// virtio-queue as its users drive it. `resolve` also finds the host memory of each buffer, which
/// ours always does.
fn theirs(event_idx: bool, resolve: bool) -> f64 {
    let mut ring = ring();
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    let config = ring.config();
    queue
        .try_set_desc_table_address(GuestAddress(config.descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(config.available))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(config.used)).unwrap();
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    let memory = Arc::clone(ring.memory());
    let memory = memory.as_ref();
    assert!(queue.is_valid(memory));
    measure(&mut ring, || {
        queue.disable_notification(memory).unwrap();
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            for descriptor in chain {
                if resolve {
                    let len = descriptor.len() as usize;
                    black_box(GuestMemoryBackend::get_slice(memory, descriptor.addr(), len).unwrap());
                } else {
                    black_box(descriptor);
                }
            }
            queue.add_used(memory, head, 4096).unwrap();
        }
        black_box(queue.needs_notification(memory).unwrap());
        assert!(!queue.enable_notification(memory).unwrap());
    })
}

fn main() {
    // Whoever changes the engine wants the numbers to mean the same ring.
    let probe: u16 = ring().memory().read_obj(GuestAddress(0x1_0000 + 12)).unwrap();
    assert_eq!(probe, 1, "first descriptor is readable and has a next");

    let flags = RingFeatures {
        indirect: true,
        ..RingFeatures::default()
    };
    let event_idx = RingFeatures {
        event_idx: true,
        ..flags
    };
    println!("ring: chains of 2 descriptors, batches of {BATCH}, queue of {QUEUE_SIZE}, medians of {RUNS} runs");
    println!("{:44} {:>10} {:>10}", "ns per chain", "event_idx", "flags");
    let row = |name: &str, with: f64, without: f64| println!("{name:44} {with:10.1} {without:10.1}");
    row(
        "innkeeper, given back in turn",
        ours_in_turn(event_idx),
        ours_in_turn(flags),
    );
    row(
        "innkeeper, batch in flight",
        ours_in_flight(event_idx),
        ours_in_flight(flags),
    );
    row(
        "innkeeper, request read, status written",
        ours_with_data(event_idx),
        ours_with_data(flags),
    );
    row("virtio-queue, walk", theirs(true, false), theirs(false, false));
    row(
        "virtio-queue, walk and resolve",
        theirs(true, true),
        theirs(false, true),
    );
}
