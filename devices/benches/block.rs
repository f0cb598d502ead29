//! What a disk costs: requests a second, and how many kicks and interrupts a request, with a driver
//! in the same process.
//!
//! `cargo bench -p devices --bench block` runs all there is; with arguments, `-- ENGINE DEPTH
//! REQUESTS [CACHE]` (an engine is `io_uring`, `threads` or `null`), it runs one, for `strace -c -f`:
//! the I/O thread's calls per request are those of strace, less the driver's kicks, which in a real
//! guest are no system calls.
//!
//! The driver keeps DEPTH random reads of 4 KiB on their way, and does as Linux does: it kicks when
//! the ring asks for it, and wants an interrupt for the first answer after it has looked at all. It
//! spins instead of sleeping, so it takes a CPU of its own.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark, not an interface")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use devices::io_thread::{IoThreads, PollPolicy};
use devices::memory::GuestMemory;
use devices::virtio::block::options::{AioMode, CacheMode, ImageFormat};
use devices::virtio::block::{Block, BlockConfig};
use devices::virtio::device::{Device, Negotiated, QueueInterrupt, QueueStart};
use devices::virtio::interrupt::{Interrupts, MsixSender};
use devices::virtio::virtq::testing::{Buffer, DriverRing};
use devices::virtio::virtq::{QueueState, RingFeatures, Virtq};
use pci::intx::Intx;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

const QUEUE_SIZE: u16 = 256;
const BLOCK: u64 = 4096;
const IMAGE: u64 = 256 << 20;
/// EVENT_IDX, INDIRECT_DESC, FLUSH, CONFIG_WCE, VERSION_1.
const FEATURES: u64 = 1 << 29 | 1 << 28 | 1 << 9 | 1 << 11 | 1 << 32;

/// An irqfd that nobody reads.
struct Irq {
    event: EventFd,
    count: AtomicU64,
}

impl MsixSender for Irq {
    fn send(&self, _vector: u16) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.event.write(1).unwrap();
    }
}

#[derive(Clone, Copy)]
struct Case {
    engine: &'static str,
    cache: &'static str,
    depth: u64,
    requests: u64,
}

struct Outcome {
    seconds: f64,
    kicks: u64,
    interrupts: u64,
}

fn open(path: &std::path::Path, case: Case) -> Block {
    let path = if case.engine == "null" {
        "null-co://".into()
    } else {
        path.to_owned()
    };
    let config = BlockConfig {
        format: ImageFormat::Raw,
        aio: if case.engine == "threads" {
            AioMode::Threads
        } else {
            AioMode::IoUring
        },
        cache: CacheMode::from_name(case.cache).unwrap(),
        ..BlockConfig::new(path)
    };
    Block::new(&config, IoThreads::one(PollPolicy::default()).unwrap()).unwrap()
}

/// The driver's side of a queue.
struct Queue {
    memory: Arc<GuestMemory>,
    ring: DriverRing,
    kick: Arc<EventFd>,
    irq: Arc<Irq>,
}

impl Queue {
    fn start(device: &mut Block) -> Self {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap());
        let ring = DriverRing::modern(Arc::clone(&memory), 0x1_0000, QUEUE_SIZE);
        let irq = Arc::new(Irq {
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
            count: AtomicU64::new(0),
        });
        let interrupts = Interrupts::new(1, 2, Arc::clone(&irq) as Arc<dyn MsixSender>, Arc::new(Intx::new()));
        interrupts.set_msix_enabled(true);
        interrupts.set_queue_vector(0, 1);
        interrupts.set_masked(1, false);
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let negotiated = Negotiated { features: FEATURES };
        device.activate(negotiated);
        let features = RingFeatures::from_negotiated(FEATURES);
        let start = QueueStart {
            index: 0,
            ring: Virtq::new(Arc::clone(&memory), ring.config(), features, QueueState::default()).unwrap(),
            kick: Arc::clone(&kick),
            interrupt: QueueInterrupt::new(interrupts, 0),
            negotiated,
        };
        device.start_queue(start).unwrap();
        Self {
            memory,
            ring,
            kick,
            irq,
        }
    }
}

fn run(path: &std::path::Path, case: Case) -> Outcome {
    let mut device = open(path, case);
    let Queue {
        memory,
        mut ring,
        kick,
        irq,
    } = Queue::start(&mut device);
    // Each request has a place of its own: header, status, data.
    let place = |slot: u64| 0x10_0000 + slot * 2 * BLOCK;

    let mut random = 1u64;
    let (mut posted, mut done, mut kicks) = (0, 0, 0);
    let mut post = |ring: &mut DriverRing, slot: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let sector = (random >> 33) % (IMAGE / BLOCK) * (BLOCK / 512);
        let at = place(slot);
        memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
        let buffers = [
            Buffer::readable(at, 16),
            Buffer::writable(at + BLOCK, BLOCK as u32),
            Buffer::writable(at + 16, 1),
        ];
        ring.post(&buffers).unwrap()
    };
    let start = Instant::now();
    let mut free: Vec<u64> = (0..case.depth).collect();
    let mut slot_of = vec![0; usize::from(QUEUE_SIZE)];
    while done < case.requests {
        let old = ring.avail_index();
        while posted < case.requests
            && let Some(slot) = free.pop()
        {
            slot_of[usize::from(post(&mut ring, slot))] = slot;
            posted += 1;
        }
        if ring.avail_index() != old && ring.must_kick(true, old) {
            kick.write(1).unwrap();
            kicks += 1;
        }
        while ring.used_index() == (done as u16) {
            std::hint::spin_loop();
        }
        while let Some(used) = ring.next_used() {
            free.push(slot_of[used.head as usize]);
            done += 1;
        }
        ring.set_used_event(done as u16);
    }
    let seconds = start.elapsed().as_secs_f64();
    device.stop_queue(0).unwrap();
    for slot in 0..case.depth {
        let status: u8 = memory.read_obj(GuestAddress(place(slot) + 16)).unwrap();
        assert_eq!(status, 0, "all requests succeed");
    }
    Outcome {
        seconds,
        kicks,
        interrupts: irq.count.load(Ordering::Relaxed),
    }
}

fn report(path: &std::path::Path, case: Case) {
    let Outcome {
        seconds,
        kicks,
        interrupts,
    } = run(path, case);
    let requests = case.requests as f64;
    println!(
        "{:10} {:10} {:>5} {:>12.0} {:>10.3} {:>10.3}",
        case.engine,
        case.cache,
        case.depth,
        requests / seconds,
        kicks as f64 / requests,
        interrupts as f64 / requests
    );
}

fn main() {
    let image = TempFile::new().unwrap();
    // Written, so that reads find data in the page cache.
    std::fs::write(image.as_path(), vec![0x5a; IMAGE as usize]).unwrap();
    println!(
        "{:10} {:10} {:>5} {:>12} {:>10} {:>10}",
        "engine", "cache", "depth", "requests/s", "kicks", "interrupts"
    );

    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if let [engine, depth, requests, rest @ ..] = arguments.as_slice() {
        let case = Case {
            engine: engine.clone().leak(),
            cache: rest.first().cloned().unwrap_or("writeback".into()).leak(),
            depth: depth.parse().unwrap(),
            requests: requests.parse().unwrap(),
        };
        return report(image.as_path(), case);
    }
    for (engine, cache, requests) in [
        ("null", "writeback", 400_000),
        ("io_uring", "writeback", 200_000),
        ("threads", "writeback", 100_000),
        ("io_uring", "none", 20_000),
        ("threads", "none", 20_000),
    ] {
        for depth in [1, 4, 32] {
            report(
                image.as_path(),
                Case {
                    engine,
                    cache,
                    depth,
                    requests,
                },
            );
        }
    }
}
