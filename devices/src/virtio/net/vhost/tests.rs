#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use pci::intx::Intx;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::io_thread::PollPolicy;
use crate::sys::testing::own_network;
use crate::virtio::device::{Negotiated, QueueInterrupt};
use crate::virtio::info::Host;
use crate::virtio::interrupt::{Interrupts, MsixSender};
use crate::virtio::net::backend::testing::{host, run};
use crate::virtio::net::backend::{self, Opened};
use crate::virtio::net::options::OPTIONS;
use crate::virtio::options::Options;
use crate::virtio::virtq::testing::{Buffer, DriverRing};
use crate::virtio::virtq::{RingFeatures, Virtq};

/// Passes on which vectors are sent; what the kernel sends too, if it may.
struct Recorder {
    sent: Sender<u16>,
    events: Vec<EventFd>,
}

impl MsixSender for Recorder {
    fn send(&self, vector: u16) {
        let _ = self.sent.send(vector);
    }

    fn event(&self, vector: u16) -> Option<&EventFd> {
        self.events.get(usize::from(vector))
    }
}

/// Interrupts of two queues, each with its number as its vector; the kernel sends them by `events`.
fn interrupts(events: Vec<EventFd>) -> (Arc<Interrupts>, Receiver<u16>) {
    let (sent, vectors) = channel();
    let recorder = Arc::new(Recorder { sent, events });
    let interrupts = Interrupts::new(QUEUES, QUEUES, recorder, Arc::new(Intx::new()));
    interrupts.set_msix_enabled(true);
    interrupts.set_live(true);
    interrupts.set_modern(true);
    for queue in 0..QUEUES as u16 {
        interrupts.set_queue_vector(queue, queue);
        interrupts.set_masked(queue, false);
    }
    (interrupts, vectors)
}

#[test]
fn the_kernel_is_told_of_all_ram() {
    let ranges = [(GuestAddress(0), 0x2000), (GuestAddress(0x1_0000_0000), 0x3000)];
    let memory = GuestMemory::from_ranges(&ranges).unwrap();
    let regions = regions(&memory);
    let told: Vec<_> = regions.iter().map(|r| (r.guest_phys_addr, r.memory_size)).collect();
    assert_eq!(told, [(0, 0x2000), (0x1_0000_0000, 0x3000)]);
    memory.write_obj(0x5au8, GuestAddress(0x1_0000_0001)).unwrap();
    let host = memory.get_host_address(GuestAddress(0x1_0000_0000)).unwrap();
    assert_eq!(regions[1].userspace_addr, host.addr() as u64);
}

/// What the test's driver accepts.
const ACCEPTED: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_F_VERSION_1;
const HEADER: usize = 12;
const RX_BUFFER: u64 = 0x10_0000;
const TX_BUFFER: u64 = 0x20_0000;

/// A driver of one pair that the kernel serves.
struct Driver {
    opened: Opened,
    memory: Arc<GuestMemory>,
    rings: [DriverRing; QUEUES],
    kicks: [Arc<EventFd>; QUEUES],
    interrupts: Arc<Interrupts>,
    vectors: Receiver<u16>,
    thread: IoThread,
}

impl Driver {
    /// One that the kernel interrupts by `events`. `None`, with the reason printed, where the host
    /// cannot.
    fn new(events: Vec<EventFd>) -> Option<Self> {
        let there_is = own_network().and_then(|()| std::fs::metadata("/dev/vhost-net").map(drop));
        if let Err(error) = there_is {
            println!("skipped: a network of our own and /dev/vhost-net are needed: {error}");
            return None;
        }
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
        let host = Host {
            memory: Arc::clone(&memory),
            ..host()
        };
        let options = Options::parse("net", "tap=tap0,vhost=on", &[OPTIONS]).unwrap();
        let opened = backend::open(&options, &host).unwrap();
        opened.backend.set_header_len(HEADER).unwrap();
        let (interrupts, vectors) = interrupts(events);
        Some(Self {
            opened,
            rings: [0x1_0000, 0x2_0000].map(|base| DriverRing::modern(Arc::clone(&memory), base, 16)),
            memory,
            kicks: [(); QUEUES].map(|()| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())),
            interrupts,
            vectors,
            thread: IoThread::spawn("vhost", PollPolicy::default()).unwrap(),
        })
    }

    fn start(&mut self, states: [QueueState; QUEUES]) {
        let negotiated = Negotiated { features: ACCEPTED };
        let features = RingFeatures::from_negotiated(ACCEPTED);
        for (index, state) in states.into_iter().enumerate() {
            let ring = Virtq::new(Arc::clone(&self.memory), self.rings[index].config(), features, state).unwrap();
            let start = QueueStart {
                index: index as u16,
                ring,
                kick: Arc::clone(&self.kicks[index]),
                interrupt: QueueInterrupt::new(Arc::clone(&self.interrupts), index as u16),
                negotiated,
            };
            self.opened.data_paths[0].start(start, &self.thread).unwrap();
        }
    }

    fn stop(&mut self) -> [QueueState; QUEUES] {
        [0, 1].map(|index| self.opened.data_paths[0].stop(index).unwrap())
    }

    fn offer_receive_buffer(&mut self) {
        let buffer = Buffer::writable(RX_BUFFER, 2048);
        self.rings[0].post(&[buffer]).unwrap();
        self.kicks[0].write(1).unwrap();
    }

    /// Frames that come in, until one ends with `payload`; the last one, with its header.
    fn receive(&mut self, payload: &[u8]) -> Vec<u8> {
        loop {
            let used = self.used(0);
            let mut frame = vec![0; used as usize];
            self.memory.read_slice(&mut frame, GuestAddress(RX_BUFFER)).unwrap();
            if frame.ends_with(payload) {
                return frame;
            }
            self.offer_receive_buffer();
        }
    }

    fn send(&mut self, frame: &[u8]) {
        self.post(frame);
        self.used(1);
    }

    fn post(&mut self, frame: &[u8]) {
        self.memory.write_slice(frame, GuestAddress(TX_BUFFER)).unwrap();
        let buffer = Buffer::readable(TX_BUFFER, frame.len() as u32);
        self.rings[1].post(&[buffer]).unwrap();
        self.kicks[1].write(1).unwrap();
    }

    /// Waits for an interrupt and the used entry behind it; its length.
    fn used(&mut self, queue: usize) -> u32 {
        loop {
            if let Some(entry) = self.rings[queue].next_used() {
                self.rings[queue].set_used_event(self.rings[queue].used_index());
                return entry.len;
            }
            self.vectors.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }
}

#[test]
fn the_kernel_carries_frames_both_ways_and_gives_the_queues_back() {
    let Some(mut driver) = Driver::new(Vec::new()) else {
        return;
    };
    run("ip address add 10.9.8.1/24 dev tap0");
    run("ip link set tap0 up");
    run("ip neighbour add 10.9.8.2 lladdr 52:54:00:12:34:56 dev tap0 nud permanent");
    let socket = UdpSocket::bind("10.9.8.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut states = [QueueState::default(); QUEUES];
    driver.offer_receive_buffer();
    for payload in [b"first", b"again"] {
        driver.start(states);
        socket.send_to(payload, "10.9.8.2:7").unwrap();
        let mut frame = driver.receive(payload);
        // Sent back with the ends changed: the checksums stay right.
        let ip = HEADER + 14;
        for (a, b, bytes) in [(HEADER, HEADER + 6, 6), (ip + 12, ip + 16, 4), (ip + 20, ip + 22, 2)] {
            (0..bytes).for_each(|i| frame.swap(a + i, b + i));
        }
        frame[..HEADER].fill(0);
        driver.send(&frame);
        let mut received = [0; 64];
        let (len, _) = socket.recv_from(&mut received).unwrap();
        assert_eq!(received[..len], payload[..]);
        // What is sent while the cable is out goes when it is in.
        driver.opened.data_paths[0].set_state(false, true).unwrap();
        driver.post(&frame);
        driver.opened.data_paths[0].set_state(true, true).unwrap();
        driver.used(1);
        socket.recv_from(&mut received).unwrap();
        driver.offer_receive_buffer();
        states = driver.stop();
        // The buffer that was offered last may be used by now.
        let [rx, tx] = states;
        assert_eq!(tx.next_avail, driver.rings[1].avail_index());
        assert_eq!(tx.next_used, driver.rings[1].used_index());
        assert_eq!(rx.next_used, driver.rings[0].used_index());
        assert!(!rx.broken && !tx.broken);
    }
}

#[test]
fn the_kernel_interrupts_the_driver_itself_unless_the_vector_is_masked() {
    let events = [(); QUEUES].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    let given = events.iter().map(|event| event.try_clone().unwrap()).collect();
    let Some(mut driver) = Driver::new(given) else { return };
    run("ip link set tap0 up");
    driver.start([QueueState::default(); QUEUES]);
    let wait = |done: &dyn Fn() -> bool| {
        let waited = (0..20_000).any(|_| {
            let done = done();
            std::thread::sleep(Duration::from_millis(u64::from(!done)));
            done
        });
        assert!(waited);
    };
    let mut frame = [0x55; HEADER + 60];
    frame[..HEADER].fill(0);
    driver.post(&frame);
    wait(&|| events[1].read().is_ok());
    driver.used(1);
    assert!(driver.vectors.try_recv().is_err());
    driver.interrupts.set_masked(1, true);
    driver.post(&frame);
    wait(&|| driver.interrupts.is_pending(1));
    assert!(events[1].read().is_err());
    driver.interrupts.set_masked(1, false);
    assert_eq!(driver.vectors.recv_timeout(Duration::from_secs(20)), Ok(1));
    driver.used(1);
    driver.post(&frame);
    wait(&|| events[1].read().is_ok());
}

#[test]
fn vhost_that_is_not_there_is_refused_or_done_without() {
    if let Err(error) = own_network() {
        println!("skipped: a network of our own is needed: {error}");
        return;
    }
    let open = |options: &str| {
        let options = Options::parse("net", options, &[OPTIONS]).unwrap();
        backend::open(&options, &host())
    };
    assert!(open("tap=tap0,vhost=off").unwrap().data_paths.is_empty());
    let (on, auto) = (open("tap=tap0,vhost=on"), open("tap=tap1,vhost=auto").unwrap());
    match on {
        Ok(opened) => assert_eq!((opened.data_paths.len(), auto.data_paths.len()), (1, 1)),
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("net: vhost=on: /dev/vhost-net: "), "{error}");
            assert!(error.contains("vhost=auto") && auto.data_paths.is_empty());
        }
    }
}
