//! A card on a backend that does what a test wants: frames with a header, several queue pairs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pci::intx::Intx;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{Backend, Capabilities, Endpoint, Offloads, Opened, Wanted};
use super::card::Card;
use super::device::Net;
use super::networks::Networks;
use super::options::{NetConfig, OPTIONS};
use super::pair::{LOOK, Pair, TX_KICK};
use super::receive::ReceiveBuffers;
use crate::io_thread::{IoThread, IoThreads, PollPolicy, Source, Worker};
use crate::memory::GuestMemory;
use crate::virtio::device::{ConfigInterrupt, Device, Negotiated, QueueInterrupt, QueueStart};
use crate::virtio::interrupt::{Interrupts, MsixSender};
use crate::virtio::options::Options;
use crate::virtio::transport::settings;
use crate::virtio::virtq::testing::{Buffer, DriverRing};
use crate::virtio::virtq::{GuestIoVec, QueueState, RingFeatures, Virtq};

/// What was asked of the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    HeaderLen(usize),
    Offloads(Offloads),
    ActivePairs(u16),
}

/// One queue pair of the host.
#[derive(Default)]
struct Line {
    incoming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    /// Frames that are taken before it would block; any number without.
    room: Option<usize>,
    /// What the worker wanted last.
    wanted: Option<Wanted>,
    /// How often it was told that something is ready.
    readied: u32,
}

/// The host's side, as the test sees it.
struct Far {
    calls: Mutex<Vec<Call>>,
    lines: Vec<(Mutex<Line>, EventFd)>,
    refuses_offloads: bool,
    /// Frames are in memory, without a header.
    in_memory: bool,
}

struct FakeBackend(Arc<Far>);

impl Backend for FakeBackend {
    fn describe(&self) -> String {
        "fake".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vnet_header: !self.0.in_memory,
            ufo: true,
            uso: true,
        }
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.0.calls.lock().unwrap().push(Call::HeaderLen(len));
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if self.0.refuses_offloads {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.0.calls.lock().unwrap().push(Call::Offloads(offloads));
        Ok(())
    }

    fn set_active_pairs(&self, pairs: u16) -> io::Result<()> {
        self.0.calls.lock().unwrap().push(Call::ActivePairs(pairs));
        Ok(())
    }
}

struct FakeEndpoint(Arc<Far>, usize, Vec<u8>);

impl FakeEndpoint {
    fn with<R>(&self, change: impl FnOnce(&mut Line) -> R) -> R {
        change(&mut self.0.lines[self.1].0.lock().unwrap())
    }
}

impl Endpoint for FakeEndpoint {
    fn sources(&self, wanted: Wanted) -> Vec<Source> {
        self.with(|line| line.wanted = Some(wanted));
        // Its one descriptor says that something has changed, whatever it is.
        let any = wanted.receive || wanted.send;
        any.then(|| Source::input(&self.0.lines[self.1].1, 0))
            .into_iter()
            .collect()
    }

    fn ready(&mut self, _token: u32) {
        self.with(|line| line.readied += 1);
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        let frame = self.with(|line| line.incoming.pop_front());
        Ok(buffers.copy_from(&frame.ok_or(io::ErrorKind::WouldBlock)?))
    }

    fn next_frame(&mut self) -> Option<io::Result<&[u8]>> {
        if !self.0.in_memory {
            return None;
        }
        let frame = self.with(|line| line.incoming.pop_front());
        Some(frame.ok_or(io::ErrorKind::WouldBlock.into()).map(|frame| {
            self.2 = frame;
            self.2.as_slice()
        }))
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        let mut bytes = vec![0; frame.bytes()];
        frame.copy_to(&mut bytes);
        self.with(|line| {
            if let Some(room) = &mut line.room {
                *room = room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
            }
            line.sent.push(bytes);
            Ok(())
        })
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        self.with(|line| line.sent.push(frame.to_vec()));
    }
}

struct NoMessages;

impl MsixSender for NoMessages {
    fn send(&self, _vector: u16) {}
}

/// All that the device offers, and the ring's INDIRECT_DESC.
const MODERN: u64 = 1 << 32 | 1 << 28;
const MQ: u64 = 1 << 22;
const MRG_RXBUF: u64 = 1 << 15;

/// A driver of one card.
struct Driver {
    device: Net,
    far: Arc<Far>,
    memory: Arc<GuestMemory>,
    interrupts: Arc<Interrupts>,
    rings: Vec<DriverRing>,
    kicks: Vec<Arc<EventFd>>,
    next_buffer: u64,
}

impl Driver {
    fn new(options: &str, pairs: usize, refuses_offloads: bool) -> Self {
        Self::connected(options, pairs, refuses_offloads, false)
    }

    fn connected(options: &str, pairs: usize, refuses_offloads: bool, in_memory: bool) -> Self {
        let line = |_| (Mutex::default(), EventFd::new(EFD_NONBLOCK).unwrap());
        let far = Arc::new(Far {
            calls: Mutex::default(),
            lines: (0..pairs).map(line).collect(),
            refuses_offloads,
            in_memory,
        });
        let endpoint = |number| Box::new(FakeEndpoint(far.clone(), number, Vec::new())) as Box<dyn Endpoint>;
        let opened = Opened {
            backend: Arc::new(FakeBackend(far.clone())),
            endpoints: (0..pairs).map(endpoint).collect(),
            data_paths: Vec::new(),
            link: true,
        };
        let options = Options::parse("net", options, &[OPTIONS, settings::OPTIONS]).unwrap();
        let config = NetConfig::from_options(&options).unwrap();
        let threads = IoThreads::one(PollPolicy::default()).unwrap();
        let mut device = Net::on(config, opened, threads, &Networks::default()).unwrap();
        let interrupts = Interrupts::new(2 * pairs + 1, 0, Arc::new(NoMessages), Arc::new(Intx::new()));
        interrupts.set_live(true);
        interrupts.set_modern(true);
        device.connect(ConfigInterrupt::new(interrupts.clone()));
        Self {
            device,
            far,
            memory: Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()),
            interrupts,
            rings: Vec::new(),
            kicks: Vec::new(),
            next_buffer: 1 << 20,
        }
    }

    /// Agrees on `features` and starts all queues that there are then.
    fn start(&mut self, features: u64) {
        self.device.activate(Negotiated { features });
        self.rings.clear();
        self.kicks.clear();
        for (index, size) in (0..).zip(self.device.queue_sizes_for(features)) {
            let start = self.queue(index, size, features);
            self.device.start_queue(start).unwrap();
        }
    }

    /// Sets up the next queue.
    fn queue(&mut self, index: u16, size: u16, features: u64) -> QueueStart {
        let ring = DriverRing::modern(self.memory.clone(), 0x8000 * (1 + u64::from(index)), size);
        let virtq = Virtq::new(
            self.memory.clone(),
            ring.config(),
            RingFeatures::from_negotiated(features),
            QueueState::default(),
        );
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        self.rings.push(ring);
        self.kicks.push(kick.clone());
        QueueStart {
            index,
            ring: virtq.unwrap(),
            kick,
            interrupt: QueueInterrupt::new(self.interrupts.clone(), index),
            negotiated: Negotiated { features },
        }
    }

    fn reset(&mut self) {
        for index in 0..self.rings.len() {
            self.device.stop_queue(index as u16).unwrap();
        }
        self.device.reset();
    }

    fn post(&mut self, queue: usize, buffers: &[Buffer]) {
        self.rings[queue].post(buffers).unwrap();
        self.kicks[queue].write(1).unwrap();
    }

    fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = self.next_buffer;
        self.next_buffer += 0x1_0000;
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        at
    }

    /// Posts a receive buffer of `len` bytes; returns where it is.
    fn post_room(&mut self, queue: usize, len: usize) -> u64 {
        let at = self.place(&vec![0xee; len]);
        self.post(queue, &[Buffer::writable(at, len as u32)]);
        at
    }

    fn post_frame(&mut self, queue: usize, frame: &[u8]) {
        let at = self.place(frame);
        self.post(queue, &[Buffer::readable(at, frame.len() as u32)]);
    }

    /// Waits for a used entry; returns its length.
    fn complete(&mut self, queue: usize) -> u32 {
        let ring = &mut self.rings[queue];
        wait_for(|| ring.next_used()).len
    }

    fn bytes(&self, at: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn command(&mut self, class: u8, number: u8, data: &[u8]) -> u8 {
        let at = self.place(&[&[class, number], data].concat());
        let answer = self.place(&[0xaa]);
        let queue = self.rings.len() - 1;
        let command = Buffer::readable(at, 2 + data.len() as u32);
        self.post(queue, &[command, Buffer::writable(answer, 1)]);
        assert_eq!(self.complete(queue), 1);
        self.bytes(answer, 1)[0]
    }

    /// A frame, header and all, comes to the host on a pair.
    fn arrive(&self, pair: usize, frame: &[u8]) {
        self.line(pair, |line| line.incoming.push_back(frame.to_vec()));
        self.wake(pair);
    }

    fn wake(&self, pair: usize) {
        self.far.lines[pair].1.write(1).unwrap();
    }

    fn line<R>(&self, pair: usize, look: impl FnOnce(&mut Line) -> R) -> R {
        look(&mut self.far.lines[pair].0.lock().unwrap())
    }

    fn sent(&self, pair: usize) -> Vec<Vec<u8>> {
        self.line(pair, |line| std::mem::take(&mut line.sent))
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.far.calls.lock().unwrap())
    }
}

fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    // Half a minute: whoever waits that long waits for nothing.
    for _ in 0..30_000 {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("waited in vain");
}

/// Host and guest leave these to each other.
fn all_offloads() -> Offloads {
    Offloads {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        ufo: true,
        uso: false,
    }
}

#[test]
fn a_host_with_headers_offers_what_qemu_does() {
    assert_eq!(Driver::new("", 1, false).device.features(), 0x00bf_ffe7);
    assert_eq!(Driver::new("queues=2", 2, false).device.features(), 0x00ff_ffe7);
    assert_eq!(Driver::new("offload=off", 1, false).device.features(), 0x00bf_8024);
    let uso = Driver::new("guest_uso4=on,guest_uso6=on,host_uso=on", 1, false);
    assert_eq!(uso.device.features(), 7 << 54 | 0x00bf_ffe7);
}

#[test]
fn the_host_does_exactly_what_the_driver_accepted_until_a_reset() {
    let mut driver = Driver::new("", 1, false);
    let nothing = [Call::HeaderLen(10), Call::Offloads(Offloads::default())];
    assert_eq!(driver.calls(), nothing);
    driver.start(MODERN | 0x00bf_ffe7);
    assert_eq!(driver.calls(), [Call::HeaderLen(12), Call::Offloads(all_offloads())]);
    driver.reset();
    assert_eq!(driver.calls(), nothing);
    driver.start(0x83);
    let some = Offloads {
        csum: true,
        tso4: true,
        ..Offloads::default()
    };
    assert_eq!(driver.calls(), [Call::HeaderLen(10), Call::Offloads(some)]);
    driver.reset();
    driver.start(MRG_RXBUF);
    assert_eq!(driver.calls().split_off(2)[0], Call::HeaderLen(12));
}

#[test]
fn offloads_are_switched_within_what_was_accepted() {
    let mut driver = Driver::new("", 1, false);
    driver.start(MODERN | 0x00bf_ffe7 & !(1 << 8));
    driver.calls();
    assert_eq!(driver.command(5, 0, &(1u64 << 1).to_le_bytes()), 0);
    let csum = Offloads {
        csum: true,
        ..Offloads::default()
    };
    assert_eq!(driver.calls(), [Call::Offloads(csum)]);
    for wrong in [1u64 << 8, 1 << 15, u64::MAX] {
        assert_eq!(driver.command(5, 0, &wrong.to_le_bytes()), 1, "{wrong:#x}");
    }
    assert_eq!(driver.command(5, 1, &[0; 8]), 1);
    assert_eq!(driver.command(5, 0, &[0; 7]), 1);
    assert_eq!(driver.calls(), []);
}

#[test]
fn a_host_that_cannot_switch_offloads_is_an_error_for_the_driver() {
    let mut driver = Driver::new("", 1, true);
    driver.start(MODERN | 0x00bf_ffe7);
    assert_eq!(driver.command(5, 0, &[0; 8]), 1);
}

#[test]
fn headers_go_through_as_they_are_and_buffers_are_counted() {
    let mut driver = Driver::new("", 1, false);
    driver.start(MODERN | 0x00bf_ffe7);
    let sent = [&[1, 0, 3, 0, 5, 0, 7, 0, 9, 0, 0, 0][..], &[0x42; 60]].concat();
    driver.post_frame(1, &sent);
    assert_eq!(driver.complete(1), 0);
    assert_eq!(driver.sent(0), [sent]);

    let first = driver.post_room(0, 100);
    let second = driver.post_room(0, 100);
    driver.arrive(
        0,
        &[&[2, 1, 3, 0, 5, 0, 7, 0, 9, 0, 0xff, 0xff][..], &[0x43; 138]].concat(),
    );
    assert_eq!((driver.complete(0), driver.complete(0)), (100, 50));
    assert_eq!(driver.bytes(first, 12), [2, 1, 3, 0, 5, 0, 7, 0, 9, 0, 2, 0]);
    assert_eq!(driver.bytes(first + 12, 88), [0x43; 88]);
    assert_eq!(driver.bytes(second, 50), [0x43; 50]);
}

#[test]
fn the_short_header_of_a_legacy_driver_goes_through_too() {
    let mut driver = Driver::new("", 1, false);
    driver.start(0x83);
    let frame = [&[0; 10][..], &[0x42; 60]].concat();
    driver.post_frame(1, &frame);
    assert_eq!(driver.complete(1), 0);
    assert_eq!(driver.sent(0), std::slice::from_ref(&frame));
    let room = driver.post_room(0, 1524);
    driver.arrive(0, &frame);
    assert_eq!(driver.complete(0), 70);
    assert_eq!(driver.bytes(room, 70), frame);
}

#[test]
fn what_is_less_than_a_header_is_no_frame() {
    let mut driver = Driver::new("", 1, false);
    driver.start(MODERN | 0x00bf_ffe7);
    let room = driver.post_room(0, 1526);
    driver.arrive(0, &[1; 5]);
    driver.arrive(0, &[1; 12]);
    driver.arrive(0, &[&[0; 12][..], &[7; 20]].concat());
    assert_eq!(driver.complete(0), 32);
    assert_eq!(driver.bytes(room + 12, 20), [7; 20]);
}

#[test]
fn the_control_queue_is_behind_all_pairs_and_pairs_carry_frames_when_told() {
    let mut driver = Driver::new("queues=3", 3, false);
    assert_eq!(driver.device.queue_sizes(), [256, 256, 256, 256, 256, 256, 64]);
    driver.calls();
    driver.start(MODERN | MQ | 0x00bf_8024);
    assert_eq!(driver.rings.len(), 7);
    driver.post_room(2, 2000);
    driver.post_frame(3, &[0x11; 72]);
    driver.arrive(1, &[0x22; 72]);
    // Every pair runs on the one thread; what it could do is done when it answers.
    for wrong in [0u16, 4, 0x8001] {
        assert_eq!(driver.command(4, 0, &wrong.to_le_bytes()), 1, "{wrong}");
    }
    assert_eq!(driver.rings[2].used_index(), 0);
    assert!(driver.sent(1).is_empty());
    assert_eq!(driver.command(4, 0, &[2, 0]), 0);
    assert!(driver.calls().contains(&Call::ActivePairs(2)));
    assert_eq!((driver.complete(2), driver.complete(3)), (72, 0));
    assert_eq!(driver.sent(1), [[0x11; 72]]);
    assert_eq!(driver.command(4, 0, &[1, 0]), 0);
    driver.post_frame(3, &[0x33; 72]);
    assert_eq!(driver.command(4, 0, &[0, 0]), 1);
    assert!(driver.sent(1).is_empty(), "the pair is out of use again");
    driver.reset();
    assert!(driver.calls().ends_with(&[Call::ActivePairs(1)]));
}

#[test]
fn a_driver_without_several_pairs_finds_the_control_queue_third() {
    let mut driver = Driver::new("queues=3", 3, false);
    driver.start(MODERN | 0x00bf_8024);
    assert_eq!(driver.rings.len(), 3);
    assert_eq!(driver.command(0, 0, &[1]), 0);
    assert_eq!(driver.command(4, 0, &[2, 0]), 1);
}

#[test]
fn a_host_that_takes_no_more_is_asked_again_when_it_does() {
    let mut driver = Driver::new("", 1, false);
    driver.start(MODERN | 0x00bf_ffe7);
    driver.line(0, |line| line.room = Some(2));
    for seed in 0..4 {
        driver.post_frame(1, &[seed; 72]);
    }
    assert_eq!((driver.complete(1), driver.complete(1)), (0, 0));
    wait_for(|| driver.line(0, |line| line.wanted.filter(|wanted| wanted.send)));
    assert_eq!(driver.rings[1].next_used(), None);
    driver.line(0, |line| line.room = None);
    driver.wake(0);
    assert_eq!((driver.complete(1), driver.complete(1)), (0, 0));
    assert_eq!(driver.sent(0), [[0; 72], [1; 72], [2; 72], [3; 72]]);
}

#[test]
fn a_flood_without_receive_buffers_is_not_listened_to() {
    let mut driver = Driver::new("", 1, false);
    driver.start(MODERN | 0x00bf_ffe7);
    let stops_listening = |driver: &Driver| {
        wait_for(|| {
            driver.wake(0);
            driver.line(0, |line| line.wanted.filter(|wanted| !wanted.receive))
        });
    };
    driver.arrive(0, &[1; 72]);
    stops_listening(&driver);
    let before = driver.line(0, |line| line.readied);
    (0..100).for_each(|_| driver.wake(0));
    assert_eq!(driver.command(0, 0, &[1]), 0);
    assert_eq!(driver.line(0, |line| line.readied), before);
    driver.post_room(0, 2000);
    assert_eq!(driver.complete(0), 72);
    driver.post_room(0, 2000);
    driver.arrive(0, &[2; 72]);
    assert_eq!(driver.complete(0), 72, "it listens again");
}

#[test]
fn a_queue_that_is_stopped_alone_goes_on_where_it_was() {
    let mut driver = Driver::new("", 1, false);
    driver.start(MODERN | 0x00bf_ffe7);
    let rooms = [driver.post_room(0, 2000), driver.post_room(0, 2000)];
    driver.arrive(0, &[1; 72]);
    driver.complete(0);
    let state = driver.device.stop_queue(0).unwrap();
    assert_eq!(
        (state.next_avail, state.next_used),
        (1, 1),
        "the second buffer is still the driver's"
    );
    driver.post_frame(1, &[9; 72]);
    assert_eq!(driver.complete(1), 0, "the other queue runs");
    driver.arrive(0, &[2; 72]);
    let features = MODERN | 0x00bf_ffe7;
    let ring = Virtq::new(
        driver.memory.clone(),
        driver.rings[0].config(),
        RingFeatures::from_negotiated(features),
        state,
    );
    let start = QueueStart {
        index: 0,
        ring: ring.unwrap(),
        kick: driver.kicks[0].clone(),
        interrupt: QueueInterrupt::new(driver.interrupts.clone(), 0),
        negotiated: Negotiated { features },
    };
    driver.device.start_queue(start).unwrap();
    assert_eq!(driver.complete(0), 72);
    assert_eq!(driver.bytes(rooms[1], 10), [2; 10]);
}

/// A pair on a card of its own, on no thread, that shares the guest's CPU.
struct LonePair {
    driver: Driver,
    pair: Pair,
    frame: u64,
}

impl LonePair {
    fn new() -> Self {
        let features = MODERN | 0x00bf_ffe7;
        let mut driver = Driver::new("", 1, false);
        let config =
            NetConfig::from_options(&Options::parse("net", "", &[OPTIONS, settings::OPTIONS]).unwrap()).unwrap();
        let claim = Networks::default().macs.claim(config.mac);
        let nudge = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let backend = Arc::new(FakeBackend(driver.far.clone()));
        let card = Arc::new(Card::new(config, claim, backend, true, vec![nudge.clone()]));
        card.reset();
        card.activate(Negotiated { features });
        let endpoint = Box::new(FakeEndpoint(driver.far.clone(), 0, Vec::new()));
        let mut pair = Pair::new(0, card, endpoint, None, nudge, true).unwrap();
        let thread = IoThread::spawn("other", PollPolicy::OFF).unwrap();
        for index in 0..2 {
            pair.attach(driver.queue(index, 256, features), &thread).unwrap();
        }
        pair.started();
        let frame = driver.place(&[9; 72]);
        let mut pair = Self { driver, pair, frame };
        pair.serve(None);
        pair
    }

    fn post(&mut self) {
        self.driver.rings[1].post(&[Buffer::readable(self.frame, 72)]).unwrap();
    }

    /// What the thread does between two sleeps. Returns how many frames have gone.
    fn serve(&mut self, token: Option<u32>) -> usize {
        if let Some(token) = token {
            self.pair.ready(token);
        }
        assert!(!self.pair.before_sleep());
        self.driver.rings[1].drain_used();
        self.driver.sent(0).len()
    }

    fn receive(&mut self) {
        self.driver.post_room(0, 2000);
        self.driver.arrive(0, &[2; 72]);
        self.serve(Some(0));
        assert_eq!(self.driver.rings[0].drain_used().len(), 1);
    }

    fn wants_kicks(&self) -> bool {
        self.driver.rings[1].used_flags() & 1 == 0
    }

    /// Frames until kicks are not wanted any more.
    fn stream(&mut self) {
        for _ in 0..16 {
            assert!(self.wants_kicks());
            self.post();
            assert_eq!(self.serve(Some(TX_KICK)), 1);
        }
        assert!(!self.wants_kicks());
    }
}

#[test]
fn frames_of_a_stream_are_sent_by_the_clock_where_there_is_one_cpu() {
    let mut pair = LonePair::new();
    pair.stream();
    for frames in [5, 20, 3] {
        (0..frames).for_each(|_| pair.post());
        assert_eq!(pair.serve(Some(LOOK)), frames);
        assert!(!pair.wants_kicks());
    }
    assert_eq!([0; 3].map(|_| pair.serve(Some(LOOK))), [0; 3]);
    assert!(pair.wants_kicks(), "the stream has ended");
    pair.stream();
    pair.receive();
    assert!(!pair.wants_kicks(), "an acknowledgement");
    pair.receive();
    assert!(pair.wants_kicks(), "a conversation");
}

#[test]
fn frames_of_a_conversation_are_sent_at_kicks_where_there_is_one_cpu() {
    let mut pair = LonePair::new();
    for _ in 0..100 {
        pair.post();
        assert_eq!(pair.serve(Some(TX_KICK)), 1);
        assert!(pair.wants_kicks());
        pair.receive();
    }
}

#[test]
fn frames_that_wait_for_the_clock_leave_before_the_queue_stops() {
    let mut pair = LonePair::new();
    pair.stream();
    pair.post();
    pair.pair.drain();
    assert_eq!(pair.driver.sent(0).len(), 1);
}

/// A card whose frames are in memory when they come.
fn driver_with_frames_in_memory(features: u64) -> Driver {
    let mut driver = Driver::connected("", 1, false, true);
    driver.start(features);
    driver
}

#[test]
fn a_frame_in_memory_fills_as_many_chains_as_it_needs_and_waits_for_them() {
    let mut driver = driver_with_frames_in_memory(MODERN | 0x00bf_8024);
    let first = driver.post_room(0, 100);
    let second = driver.post_room(0, 100);
    let frame: Vec<u8> = (0..200).collect();
    driver.arrive(0, &frame);
    driver.arrive(0, &frame[..60]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.rings[0].next_used(), None, "212 bytes with the header");
    let third = driver.post_room(0, 100);
    let lengths = [0; 3].map(|_| driver.complete(0));
    assert_eq!(lengths, [100, 100, 12]);
    assert_eq!(driver.bytes(first, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    let landed = [
        driver.bytes(first + 12, 88),
        driver.bytes(second, 100),
        driver.bytes(third, 12),
    ];
    assert_eq!(landed.concat(), frame);
    let fourth = driver.post_room(0, 100);
    assert_eq!(driver.complete(0), 72, "the next frame has waited with the host");
    assert_eq!(driver.bytes(fourth + 10, 2), [1, 0]);
    assert_eq!(driver.bytes(fourth + 12, 60), frame[..60]);
}

#[test]
fn a_frame_in_memory_is_filtered_and_fits_or_is_lost_like_any_other() {
    let mut driver = driver_with_frames_in_memory(MODERN | 0x00bf_0024);
    assert_eq!(driver.command(0, 0, &[0]), 0, "not promiscuous");
    let room = driver.post_room(0, 100);
    driver.arrive(0, &[0x42; 60]);
    driver.arrive(0, &[]);
    driver.arrive(0, &[0xff; 89]);
    driver.arrive(0, &[&[0xff; 6][..], &[7; 82]].concat());
    assert_eq!(driver.complete(0), 100, "to all, and as long as there is room");
    assert_eq!(driver.bytes(room, 18), [&[0; 10][..], &[1, 0], &[0xff; 6]].concat());
    assert_eq!(driver.bytes(room + 18, 82), [7; 82]);
}

#[test]
fn a_frame_that_waits_for_chains_is_lost_with_the_cable() {
    let mut driver = driver_with_frames_in_memory(MODERN | 0x00bf_8024);
    let all_taken = |driver: &Driver| wait_for(|| driver.line(0, |line| line.incoming.is_empty().then_some(())));
    let room = driver.post_room(0, 100);
    driver.arrive(0, &[1; 200]);
    all_taken(&driver);
    driver.device.control().set_link(false);
    driver.arrive(0, &[2; 60]);
    all_taken(&driver);
    driver.device.control().set_link(true);
    driver.arrive(0, &[3; 60]);
    assert_eq!(driver.complete(0), 72);
    assert_eq!(driver.bytes(room + 12, 60), [3; 60]);
}
