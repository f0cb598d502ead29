//! What taking 1 GiB from a guest costs: pages a second, and system calls that give memory back.
//!
//! `cargo bench -p devices --bench balloon`. A driver in the same process does as Linux does: arrays
//! of 256 page numbers, each waited for before the next. The lists are those of a guest that has been
//! running for minutes (blocks of 4 MiB, from the last page to the first), for days (blocks of 256
//! KiB with pages missing in between) and of no guest at all (every other page). Beside it, in the
//! same run and on the same pages, a call for each page, as QEMU does.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark, not an interface")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::io_thread::{IoThreads, PollPolicy};
use devices::memory::{GuestMemory, MemoryMap, PAGE};
use devices::timer::Timers;
use devices::virtio::balloon::Balloon;
use devices::virtio::balloon::config::BalloonConfig;
use devices::virtio::device::{Device, Negotiated, QueueInterrupt, QueueStart};
use devices::virtio::interrupt::{Interrupts, MsixSender};
use devices::virtio::virtq::testing::{Buffer, DriverRing};
use devices::virtio::virtq::{QueueState, RingFeatures, Virtq};
use pci::intx::Intx;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

/// Where the balloon's pages begin; the ring and the arrays are below.
const START: u64 = 16 << 20;
const TAKEN: u64 = 1 << 30;
const RAM: u64 = START + 2 * TAKEN;
/// The most page numbers that Linux sends at once (VIRTIO_BALLOON_ARRAY_PFNS_MAX).
const ARRAY: usize = 256;
const ARRAY_AT: u64 = 0x10_0000;
const FEATURES: u64 = 1 << 32;

/// A configuration without messages.
struct Silent;

impl MsixSender for Silent {
    fn send(&self, _vector: u16) {}
}

/// Memory as the machine has it: private in huge pages, or shared.
fn memory(shared: bool) -> Arc<GuestMemory> {
    let ranges = (GuestAddress(0), RAM as usize);
    if !shared {
        let memory = GuestMemory::from_ranges(&[ranges]).unwrap();
        let start = memory.get_host_address(GuestAddress(0)).unwrap();
        // SAFETY: the range is the mapping just made, and the advice changes nothing that it holds.
        unsafe { libc::madvise(start.cast(), RAM as usize, libc::MADV_HUGEPAGE) };
        return Arc::new(memory);
    }
    let file = TempFile::new_in(std::path::Path::new("/dev/shm")).unwrap().into_file();
    file.set_len(RAM).unwrap();
    let region = (ranges.0, ranges.1, Some(FileOffset::new(file, 0)));
    Arc::new(GuestMemory::from_ranges_with_files([region]).unwrap())
}

/// Page numbers in the order in which the guest gives them up.
fn pages(kind: &str) -> Vec<u32> {
    let first = (START / PAGE) as u32;
    let count = (TAKEN / PAGE) as u32;
    let blocks = |pages: u32| (0..count / pages).flat_map(move |block| (0..pages).rev().map(move |page| (block, page)));
    match kind {
        "fresh" => blocks(1024).map(|(block, page)| first + 1024 * block + page).collect(),
        // A page in 256 is somebody else's.
        "worn" => blocks(64)
            .map(|(block, page)| first + 65 * block + page + u32::from(block % 4 == 3))
            .collect(),
        _ => (0..count).map(|page| first + 2 * page).collect(),
    }
}

/// Makes the host have memory behind every page.
fn touch(memory: &GuestMemory) {
    for address in (START..RAM).step_by(PAGE as usize) {
        memory.write_obj(address, GuestAddress(address)).unwrap();
    }
}

fn inflate(memory: &Arc<GuestMemory>, pages: &[u32]) -> (Duration, u64) {
    let threads = IoThreads::one(PollPolicy::default()).unwrap();
    let mut device = Balloon::new(
        &BalloonConfig::default(),
        Arc::clone(memory),
        threads,
        &Timers::default(),
    )
    .unwrap();
    let mut ring = DriverRing::modern(Arc::clone(memory), 0x1_0000, 128);
    let interrupts = Interrupts::new(3, 1, Arc::new(Silent), Arc::new(Intx::new()));
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let negotiated = Negotiated { features: FEATURES };
    let features = RingFeatures::from_negotiated(FEATURES);
    device.activate(negotiated);
    let start = QueueStart {
        index: 0,
        ring: Virtq::new(Arc::clone(memory), ring.config(), features, QueueState::default()).unwrap(),
        kick: Arc::clone(&kick),
        interrupt: QueueInterrupt::new(interrupts, 0),
        negotiated,
    };
    device.start_queue(start).unwrap();
    let begin = Instant::now();
    for array in pages.chunks(ARRAY) {
        let bytes: Vec<u8> = array.iter().flat_map(|page| page.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(ARRAY_AT)).unwrap();
        ring.post(&[Buffer::readable(ARRAY_AT, bytes.len() as u32)]).unwrap();
        kick.write(1).unwrap();
        while ring.next_used().is_none() {
            std::hint::spin_loop();
        }
    }
    let elapsed = begin.elapsed();
    let given_back = device.control().given_back().inflated;
    assert_eq!(given_back.bytes, pages.len() as u64 * PAGE, "every page, once");
    device.stop_queue(0).unwrap();
    (elapsed, given_back.calls)
}

fn page_by_page(memory: &Arc<GuestMemory>, pages: &[u32]) -> Duration {
    let map = MemoryMap::new(Arc::clone(memory));
    let begin = Instant::now();
    for page in pages {
        let address = u64::from(*page) * PAGE;
        map.discard(address..address + PAGE).unwrap();
    }
    begin.elapsed()
}

fn main() {
    println!(
        "{:8} {:6} {:>12} {:>10} {:>14} {:>6}",
        "memory", "guest", "pages/s", "calls/GiB", "page by page/s", "ratio"
    );
    for (name, shared) in [("private", false), ("shared", true)] {
        for kind in ["fresh", "worn", "comb"] {
            let memory = self::memory(shared);
            let pages = pages(kind);
            touch(&memory);
            let (merged, calls) = inflate(&memory, &pages);
            drop(memory);
            // Huge pages that were split do not come back, so each begins with memory of its own.
            let memory = self::memory(shared);
            touch(&memory);
            let single = page_by_page(&memory, &pages);
            let rate = |time: Duration| pages.len() as f64 / time.as_secs_f64();
            println!(
                "{name:8} {kind:6} {:>12.0} {calls:>10} {:>14.0} {:>6.2}",
                rate(merged),
                rate(single),
                rate(merged) / rate(single)
            );
        }
    }
}
