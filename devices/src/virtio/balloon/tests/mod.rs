//! The device, driven in process by a small driver.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod free;
mod pages;
mod stats;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use pci::intx::Intx;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::{BalloonConfig, feature};
use super::{Balloon, BalloonControl, PAGE};
use crate::io_thread::{IoThread, IoThreads, PollPolicy};
use crate::memory::{GuestMemory, MemoryMap};
use crate::timer::Timers;
use crate::virtio::device::{ConfigInterrupt, Device, Negotiated, QueueInterrupt, QueueStart};
use crate::virtio::interrupt::{Interrupts, MsixSender};
use crate::virtio::virtq::testing::{Buffer, DriverRing, UsedEntry};
use crate::virtio::virtq::{QueueState, RingFeatures, Virtq};

const MIB: u64 = 1 << 20;
/// RAM from 0, in two mappings that meet, and above 4 GiB.
const RAM: [(u64, u64); 3] = [(0, 16 * MIB), (16 * MIB, 16 * MIB), (HIGH, 16 * MIB)];
const HIGH: u64 = 1 << 32;
const ALL_RAM: u64 = 48 * MIB;
/// Where buffers of requests begin; the rings come before them, the pages of the tests after.
const BUFFERS: u64 = MIB;
/// The first page of the tests.
const FIRST: u32 = (4 * MIB / PAGE) as u32;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
const HINT: u16 = 3;
const REPORT: u16 = 4;

const RING_FEATURES: u64 = 1 << 28 | 1 << 32;

struct Recorder(Sender<u16>);

impl MsixSender for Recorder {
    fn send(&self, vector: u16) {
        let _ = self.0.send(vector);
    }
}

/// A driver of a balloon that has all queues.
struct Driver {
    device: Balloon,
    control: BalloonControl,
    memory: Arc<GuestMemory>,
    rings: Vec<DriverRing>,
    kicks: Vec<Arc<EventFd>>,
    interrupts: Arc<Interrupts>,
    /// Vectors that the device sent: 0 is the configuration's.
    vectors: Receiver<u16>,
    features: u64,
}

impl Driver {
    fn new() -> Self {
        Self::with(&BalloonConfig::default(), !(1 << feature::PAGE_POISON))
    }

    /// A balloon as in `config`, with all queues, whose driver accepts those features that are in
    /// `understood`.
    fn with(config: &BalloonConfig, understood: u64) -> Self {
        let config = BalloonConfig {
            free_page_hint: true,
            free_page_reporting: true,
            ..*config
        };
        let ranges = RAM.map(|(start, len)| (GuestAddress(start), len as usize));
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        let threads = ["io0", "io1"].map(|name| IoThread::spawn(name, PollPolicy::default()).unwrap());
        let threads = IoThreads::new(threads.into()).unwrap();
        let mut device = Balloon::new(&config, Arc::clone(&memory), threads, &Timers::default()).unwrap();
        let (sender, vectors) = channel();
        let queues = device.queue_sizes();
        let interrupts = Interrupts::new(queues.len(), 1, Arc::new(Recorder(sender)), Arc::new(Intx::new()));
        interrupts.set_msix_enabled(true);
        interrupts.set_config_vector(0);
        interrupts.set_masked(0, false);
        interrupts.set_live(true);
        interrupts.set_modern(true);
        device.connect(ConfigInterrupt::new(Arc::clone(&interrupts)));
        let ring = |(n, size): (u64, u16)| DriverRing::modern(Arc::clone(&memory), 0x1_0000 * (1 + n), size);
        let mut driver = Self {
            control: device.control(),
            features: device.features() & understood | RING_FEATURES,
            device,
            rings: (0..).zip(queues).map(ring).collect(),
            memory: Arc::clone(&memory),
            kicks: Vec::new(),
            interrupts,
            vectors,
        };
        let negotiated = driver.negotiated();
        driver.device.activate(negotiated);
        for queue in 0..driver.rings.len() as u16 {
            driver.kicks.push(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
            driver.start(queue, QueueState::default());
        }
        driver
    }

    fn negotiated(&self) -> Negotiated {
        Negotiated {
            features: self.features,
        }
    }

    fn start(&mut self, index: u16, state: QueueState) {
        let queue = usize::from(index);
        let features = RingFeatures::from_negotiated(self.features);
        let ring = Virtq::new(Arc::clone(&self.memory), self.rings[queue].config(), features, state).unwrap();
        let start = QueueStart {
            index,
            ring,
            kick: Arc::clone(&self.kicks[queue]),
            interrupt: QueueInterrupt::new(Arc::clone(&self.interrupts), index),
            negotiated: self.negotiated(),
        };
        self.device.start_queue(start).unwrap();
    }

    fn post(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        self.rings[usize::from(queue)].post(buffers).expect("room in the ring")
    }

    fn kick(&self, queue: u16) {
        self.kicks[usize::from(queue)].write(1).unwrap();
    }

    fn complete(&mut self, queue: u16) -> UsedEntry {
        let ring = &mut self.rings[usize::from(queue)];
        wait_for("a used entry", || ring.next_used())
    }

    /// Posts, kicks, waits, and sees that nothing was written.
    fn request(&mut self, queue: u16, buffers: &[Buffer]) {
        let head = self.post(queue, buffers);
        self.kick(queue);
        let expected = UsedEntry {
            head: head.into(),
            len: 0,
        };
        assert_eq!(self.complete(queue), expected);
    }

    fn place(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Writes page numbers to `address`.
    fn place_pages(&self, address: u64, pages: impl IntoIterator<Item = u32>) -> Buffer {
        let bytes: Vec<u8> = pages.into_iter().flat_map(u32::to_le_bytes).collect();
        self.place(address, &bytes);
        Buffer::readable(address, bytes.len() as u32)
    }

    fn pages(&mut self, queue: u16, pages: impl IntoIterator<Item = u32>) {
        let buffer = self.place_pages(BUFFERS, pages);
        self.request(queue, &[buffer]);
    }

    /// The rules that were broken and how often, as text.
    fn broken(&self) -> Vec<(&'static str, u64)> {
        self.control.broken_rules().into_iter().collect()
    }

    /// Gives every page of the tests something to hold.
    fn touch(&self) {
        let behind = u64::from(FIRST) * PAGE;
        for (start, end) in [(behind, 32 * MIB), (HIGH, HIGH + 16 * MIB)] {
            self.place(start, &vec![0xa5; (end - start) as usize]);
        }
    }

    /// Whether page number `page` is as [`touch`](Self::touch) left it.
    fn is_kept(&self, page: u32) -> bool {
        let mut bytes = [0; PAGE as usize];
        let address = GuestAddress(u64::from(page) * PAGE);
        self.memory.read_slice(&mut bytes, address).unwrap();
        match bytes {
            bytes if bytes == [0xa5; PAGE as usize] => true,
            bytes if bytes == [0; PAGE as usize] => false,
            _ => panic!("page {page:#x} is neither as it was nor empty"),
        }
    }

    fn config(&self) -> super::config::ConfigSpace {
        let mut bytes = [0; 16];
        self.device.read_config(0, &mut bytes);
        super::config::ConfigSpace::default().written(16, 0, &bytes)
    }

    /// KiB of the mapping above 4 GiB that the host has memory for.
    fn resident_kib(&self) -> u64 {
        let len = 16 * MIB as usize;
        let span = MemoryMap::new(Arc::clone(&self.memory))
            .contiguous(HIGH, len as u64)
            .unwrap();
        let mut pages = vec![0u8; len / PAGE as usize];
        // SAFETY: the range is a mapping that `memory` keeps, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(span.as_ptr().cast(), len, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count() as u64 * PAGE / 1024
    }
}

fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    // Half a minute: whoever waits that long waits for nothing.
    for _ in 0..30_000 {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("waited in vain for {what}");
}
