//! The device, driven in process by a small driver.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod images;
mod life;
mod qcow2;
mod requests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use pci::intx::Intx;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

use super::backend::Image;
use super::device::BlockControl;
use super::options::{AioMode, ImageFormat};
use super::{Block, BlockConfig, Disk, DiskFailure};
use crate::io_thread::{IoThread, IoThreads, PollPolicy};
use crate::memory::GuestMemory;
use crate::virtio::device::{ConfigInterrupt, Device, Negotiated, QueueInterrupt, QueueStart};
use crate::virtio::interrupt::{Interrupts, MsixSender};
use crate::virtio::virtq::testing::{Buffer, DriverRing};
use crate::virtio::virtq::{QueueState, RingFeatures, Virtq};

const QUEUE_SIZE: u16 = 64;
const MEMORY: usize = 64 << 20;
/// Where buffers of requests begin.
const BUFFERS: u64 = 1 << 20;
/// FLUSH, CONFIG_WCE, and the ring's EVENT_IDX and INDIRECT_DESC.
const FEATURES: u64 = 1 << 9 | 1 << 11 | 1 << 28 | 1 << 29 | 1 << 32;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Both engines.
const ENGINES: [AioMode; 2] = [AioMode::IoUring, AioMode::Threads];

struct Recorder(Sender<u16>);

impl MsixSender for Recorder {
    fn send(&self, vector: u16) {
        let _ = self.0.send(vector);
    }
}

/// A driver of one disk. Vector 0 is the configuration's, queue `n` has vector `n + 1`.
struct Driver {
    device: Block,
    control: BlockControl,
    memory: Arc<GuestMemory>,
    rings: Vec<DriverRing>,
    kicks: Vec<Arc<EventFd>>,
    interrupts: Arc<Interrupts>,
    vectors: Receiver<u16>,
    next_buffer: u64,
    /// Answers that were taken while waiting for another one.
    answers: HashMap<(usize, u32), u32>,
}

/// A request that was posted: its head, and where the answer goes.
#[derive(Clone, Copy, Debug)]
struct Posted {
    queue: usize,
    head: u32,
    data: u64,
    data_len: usize,
    status: u64,
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Answer {
    status: u8,
    /// The length in the used ring.
    len: u32,
    data: Vec<u8>,
}

impl Driver {
    fn open(config: &BlockConfig) -> Self {
        Self::on(Disk::open(config).unwrap(), config)
    }

    fn on_image(image: Arc<dyn Image>, config: &BlockConfig) -> Self {
        Self::on(Disk::on(image, config).unwrap(), config)
    }

    fn on(disk: Arc<Disk>, config: &BlockConfig) -> Self {
        let threads = (0..config.queues).map(|n| IoThread::spawn(&format!("io{n}"), PollPolicy::default()).unwrap());
        let threads = IoThreads::new(threads.collect()).unwrap();
        let mut device = Block::on(disk, config, threads);
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let (sender, vectors) = channel();
        let queues = usize::from(config.queues);
        let interrupts = Interrupts::new(queues, queues + 1, Arc::new(Recorder(sender)), Arc::new(Intx::new()));
        interrupts.set_msix_enabled(true);
        interrupts.set_config_vector(0);
        interrupts.set_masked(0, false);
        interrupts.set_live(true);
        interrupts.set_modern(true);
        device.connect(ConfigInterrupt::new(Arc::clone(&interrupts)));
        let ring = |n| DriverRing::modern(Arc::clone(&memory), 0x1_0000 * (1 + n as u64), QUEUE_SIZE);
        let mut driver = Self {
            control: device.control(),
            device,
            rings: (0..queues).map(ring).collect(),
            memory,
            kicks: Vec::new(),
            interrupts,
            vectors,
            next_buffer: BUFFERS,
            answers: HashMap::new(),
        };
        driver.device.activate(Negotiated { features: FEATURES });
        for queue in 0..queues {
            let vector = queue as u16 + 1;
            driver.interrupts.set_queue_vector(queue as u16, vector);
            driver.interrupts.set_masked(vector, false);
            driver.kicks.push(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
            driver.start(queue, QueueState::default());
        }
        driver
    }

    fn start(&mut self, queue: usize, state: QueueState) {
        let features = RingFeatures::from_negotiated(FEATURES);
        let ring = Virtq::new(Arc::clone(&self.memory), self.rings[queue].config(), features, state).unwrap();
        let index = queue as u16;
        let start = QueueStart {
            index,
            ring,
            kick: Arc::clone(&self.kicks[queue]),
            interrupt: QueueInterrupt::new(Arc::clone(&self.interrupts), index),
            negotiated: Negotiated { features: FEATURES },
        };
        self.device.start_queue(start).unwrap();
    }

    /// Room for a buffer, aligned to 4096 bytes plus `skew`.
    fn buffer(&mut self, len: usize, skew: u64) -> u64 {
        let address = self.next_buffer.next_multiple_of(4096) + skew;
        self.next_buffer = address + len as u64;
        if self.next_buffer > MEMORY as u64 {
            self.next_buffer = BUFFERS;
            return self.buffer(len, skew);
        }
        address
    }

    /// Writes `bytes` to guest memory.
    fn place(&mut self, bytes: &[u8], skew: u64) -> u64 {
        let address = self.buffer(bytes.len(), skew);
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        address
    }

    fn load(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Posts a chain as it is, with `status` as the address of its status byte.
    fn post_raw(&mut self, queue: usize, buffers: &[Buffer]) -> Posted {
        let mut writable = buffers.iter().filter(|buffer| buffer.writable);
        let last = writable
            .next_back()
            .map_or(0, |buffer| buffer.address + u64::from(buffer.len) - 1);
        if last != 0 {
            // Neither of the answers that there are.
            self.memory.write_obj(0xeeu8, GuestAddress(last)).unwrap();
        }
        let head = u32::from(self.rings[queue].post(buffers).expect("room in the ring"));
        Posted {
            queue,
            head,
            data: 0,
            data_len: 0,
            status: last,
        }
    }

    /// Posts a request with `out` to the disk and room for `room` bytes from it.
    fn post(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], room: usize) -> Posted {
        self.post_skewed(queue, kind, sector, out, room, 0)
    }

    fn post_skewed(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], room: usize, skew: u64) -> Posted {
        let header = self.place(&header(kind, sector), 0);
        let mut buffers = vec![Buffer::readable(header, 16)];
        if !out.is_empty() {
            buffers.push(Buffer::readable(self.place(out, skew), out.len() as u32));
        }
        let data = self.place(&vec![0xcc; room], skew);
        if room > 0 {
            buffers.push(Buffer::writable(data, room as u32));
        }
        buffers.push(Buffer::writable(self.buffer(1, 0), 1));
        Posted {
            data,
            data_len: room,
            ..self.post_raw(queue, &buffers)
        }
    }

    fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Takes what has come back, and waits for an interrupt when that is nothing.
    fn wait_used(&mut self, queue: usize) {
        loop {
            let used = self.rings[queue].drain_used();
            if !used.is_empty() {
                self.answers
                    .extend(used.into_iter().map(|used| ((queue, used.head), used.len)));
                let next = self.rings[queue].used_index();
                self.rings[queue].set_used_event(next);
                if self.rings[queue].used_index() == next {
                    return;
                }
            } else {
                self.wait_interrupt();
            }
        }
    }

    fn wait_interrupt(&self) -> u16 {
        match self.vectors.recv_timeout(Duration::from_secs(60)) {
            Ok(vector) => vector,
            Err(RecvTimeoutError::Timeout) => panic!("the driver waits for an interrupt in vain"),
            Err(RecvTimeoutError::Disconnected) => panic!("the device is gone"),
        }
    }

    fn answer(&mut self, posted: Posted) -> Answer {
        let len = loop {
            if let Some(len) = self.answers.remove(&(posted.queue, posted.head)) {
                break len;
            }
            self.wait_used(posted.queue);
        };
        let status = if posted.status == 0 {
            0xee
        } else {
            self.load(posted.status, 1)[0]
        };
        Answer {
            status,
            len,
            data: self.load(posted.data, posted.data_len),
        }
    }

    /// Posts a request, kicks and waits for the answer.
    fn ask(&mut self, kind: u32, sector: u64, out: &[u8], room: usize) -> Answer {
        let posted = self.post(0, kind, sector, out, room);
        self.kick(0);
        self.answer(posted)
    }

    fn ask_raw(&mut self, buffers: &[Buffer]) -> Answer {
        let posted = self.post_raw(0, buffers);
        self.kick(0);
        self.answer(posted)
    }

    fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let answer = self.ask(IN, sector, &[], len);
        assert_eq!((answer.status, answer.len as usize), (OK, len + 1));
        answer.data
    }

    #[track_caller]
    fn write(&mut self, sector: u64, data: &[u8]) {
        assert_eq!(self.ask(OUT, sector, data, 0).status, OK);
    }

    #[track_caller]
    fn flush(&mut self) {
        assert_eq!(self.ask(FLUSH, 0, &[], 0).status, OK);
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// A segment of a discard or write-zeroes request.
fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}

/// A raw image of `bytes`, whose sectors hold their number plus one.
fn image(bytes: u64) -> TempFile {
    let file = TempFile::new().unwrap();
    let content: Vec<u8> = (0..bytes).map(|at| (at / 512 + 1) as u8).collect();
    std::fs::write(file.as_path(), content).unwrap();
    file
}

fn raw(path: &Path) -> BlockConfig {
    BlockConfig {
        format: ImageFormat::Raw,
        queue_size: QUEUE_SIZE,
        ..BlockConfig::new(path)
    }
}

fn with_engine(file: &TempFile, aio: AioMode) -> BlockConfig {
    BlockConfig {
        aio,
        ..raw(file.as_path())
    }
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}
