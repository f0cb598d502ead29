//! The device, driven in process by a small driver.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use pci::Function;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::io_thread::PollPolicy;
use crate::memory::GuestMemory;
use crate::timer::{ManualClock, Timers};
use crate::virtio::info;
use crate::virtio::interrupt::MsixSender;
use crate::virtio::options::Pairs;
use crate::virtio::transport::VirtioPci;
use crate::virtio::virtq::testing::{Buffer, DriverRing, UsedEntry};

struct NoMessages;

impl MsixSender for NoMessages {
    fn send(&self, _vector: u16) {}
}

fn host(memory: Arc<GuestMemory>) -> Host {
    Host {
        memory,
        io_threads: IoThreads::one(PollPolicy::default()).unwrap(),
        networks: Default::default(),
        timers: Default::default(),
    }
}

/// A legacy driver and the device, on its I/O thread.
struct Bench {
    pci: VirtioPci,
    driver: DriverRing,
}

impl Bench {
    fn new(options: &str) -> Self {
        Self::on(Timers::default(), options)
    }

    fn on(timers: Timers, options: &str) -> Self {
        let ranges = [(GuestAddress(0), 2 << 20)];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        let pairs = Pairs::parse(options, None);
        let host = Host {
            timers,
            ..host(memory.clone())
        };
        let created = info::create("virtio-rng-pci", &pairs, &host, Arc::new(NoMessages));
        let mut bench = Self {
            pci: created.unwrap().function,
            driver: DriverRing::legacy(memory, 0x10, QUEUE_SIZE),
        };
        bench.bring_up();
        bench
    }

    fn port(&mut self, offset: u64, value: u32, len: usize) {
        self.pci.write_bar(0, offset, &value.to_le_bytes()[..len]);
    }

    /// Reset, acknowledge, page, DRIVER_OK.
    fn bring_up(&mut self) {
        for (offset, value, len) in [(0x12, 0, 1), (0x12, 3, 1), (0x08, 0x10, 4), (0x12, 7, 1)] {
            self.port(offset, value, len);
        }
    }

    fn restart(&mut self) {
        self.port(0x12, 0, 1);
        let memory = self.driver.memory().clone();
        self.driver = DriverRing::legacy(memory, 0x10, QUEUE_SIZE);
        self.bring_up();
    }

    /// Posts a buffer and kicks.
    fn post(&mut self, address: u64, len: u32) {
        self.driver.post(&[Buffer::writable(address, len)]).unwrap();
        self.port(0x10, 0, 2);
    }

    /// Posts a buffer, kicks, and waits for it.
    fn fill(&mut self, address: u64, len: u32) -> UsedEntry {
        self.post(address, len);
        self.next_used()
    }

    fn next_used(&mut self) -> UsedEntry {
        // Half a minute: whoever waits that long waits for nothing.
        for _ in 0..30_000 {
            if let Some(used) = self.driver.next_used() {
                return used;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the buffer never came back");
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver
            .memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

#[test]
fn buffers_are_filled_with_bytes_that_differ() {
    for options in ["", "source=/dev/urandom"] {
        let mut bench = Bench::new(options);
        assert_eq!((bench.fill(0x4_0000, 64).len, bench.fill(0x4_1000, 64).len), (64, 64));
        let (first, second) = (bench.bytes(0x4_0000, 64), bench.bytes(0x4_1000, 64));
        assert!(first != second && first != [0; 64] && second != [0; 64]);
        assert_eq!(bench.bytes(0x4_0040, 64), [0; 64], "nothing behind the buffer");
    }
}

#[test]
fn a_huge_buffer_gets_a_bounded_part() {
    let mut bench = Bench::new("");
    assert_eq!(bench.fill(0x10_0000, 1 << 20).len, queue::MAX_FILL as u32);
}

#[test]
fn a_malformed_chain_comes_back_empty_and_the_next_is_filled() {
    let mut bench = Bench::new("");
    assert_eq!(bench.fill(0x1000_0000, 64).len, 0);
    bench.driver.post(&[Buffer::readable(0x4_0000, 64)]).unwrap();
    bench.port(0x10, 0, 2);
    assert_eq!(bench.next_used().len, 0);
    assert_eq!(bench.fill(0x4_0000, 64).len, 64);
}

#[test]
fn a_buffer_waits_until_the_source_has_bytes() {
    let (near, mut far) = std::io::pipe().unwrap();
    let mut bench = Bench::new(&format!("source=/proc/self/fd/{}", near.as_raw_fd()));
    for round in 1..4u8 {
        bench.post(0x4_0000, 64);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(bench.driver.next_used(), None);
        far.write_all(&[round; 5]).unwrap();
        assert_eq!(bench.next_used().len, 5);
        assert_eq!(bench.bytes(0x4_0000, 6), [round, round, round, round, round, 0]);
    }
    // A reset while a buffer waits.
    bench.post(0x4_0000, 64);
    bench.restart();
    far.write_all(&[9; 64]).unwrap();
    assert_eq!(bench.fill(0x4_0000, 64).len, 64);
}

#[test]
fn a_source_at_its_end_is_asked_again_later() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("bytes");
    std::fs::write(&path, [7; 10]).unwrap();
    let mut bench = Bench::new(&format!("source={}", path.display()));
    assert_eq!(bench.fill(0x4_0000, 64).len, 10);
    bench.post(0x4_0000, 64);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(
        bench.driver.next_used(),
        None,
        "an empty buffer would be the last for Linux"
    );
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&[8; 3]).unwrap();
    assert_eq!(bench.next_used().len, 3);
}

#[test]
fn no_more_bytes_than_allowed_come_in_a_period() {
    let mut bench = Bench::new("max-bytes=100,period=4294967295");
    assert_eq!((bench.fill(0x4_0000, 64).len, bench.fill(0x4_0000, 64).len), (64, 36));
    bench.post(0x4_0000, 64);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(bench.driver.next_used(), None);
    // Neither does a reset help.
    bench.restart();
    bench.post(0x4_0000, 64);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(bench.driver.next_used(), None);
    // Periods that are short enough to wait for.
    let mut bench = Bench::new("max-bytes=10,period=1");
    for _ in 0..20 {
        assert!((1..=10).contains(&bench.fill(0x4_0000, 64).len));
    }
    let mut bench = Bench::new("max-bytes=0,period=1");
    bench.post(0x4_0000, 64);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(bench.driver.next_used(), None);
}

#[test]
fn periods_are_those_of_the_machines_clock() {
    let clock = Arc::new(ManualClock::default());
    let mut bench = Bench::on(Timers::on(&clock), "max-bytes=16,period=1000");
    assert_eq!(bench.fill(0x4_0000, 64).len, 16);
    for second in 1..5 {
        bench.post(0x4_0000, 64);
        clock.set(second * 1_000_000_000 - 1);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(bench.driver.next_used(), None);
        clock.set(second * 1_000_000_000);
        assert_eq!(bench.next_used().len, 16);
    }
}

/// A daemon's end of a connection: takes a request.
fn asked(stream: &mut UnixStream) -> u8 {
    let mut request = [0; 2];
    stream.read_exact(&mut request).unwrap();
    assert_eq!(request[0], 2);
    request[1]
}

#[test]
fn a_daemon_is_asked_for_what_fits_and_found_again_when_it_was_gone() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("egd");
    let daemon = UnixListener::bind(&path).unwrap();
    let mut bench = Bench::new(&format!("egd={}", path.display()));
    let (mut stream, _) = daemon.accept().unwrap();
    bench.post(0x4_0000, 64);
    assert_eq!(asked(&mut stream), 64);
    assert_eq!(bench.driver.next_used(), None);
    stream.write_all(&[1; 64]).unwrap();
    assert_eq!(bench.next_used().len, 64);
    // A part of an answer is an answer, and the rest is for the next buffer.
    bench.post(0x4_0000, 4096);
    assert_eq!(asked(&mut stream), 255);
    stream.write_all(&[2; 55]).unwrap();
    assert_eq!(bench.next_used().len, 55);
    stream.write_all(&[3; 200]).unwrap();
    assert_eq!(bench.fill(0x4_0000, 300).len, 200);
    assert_eq!(bench.bytes(0x4_0000, 200), [3; 200]);
    bench.post(0x4_0000, 64);
    asked(&mut stream);
    drop(stream);
    let (mut stream, _) = daemon.accept().unwrap();
    assert_eq!(asked(&mut stream), 64);
    stream.write_all(&[4; 64]).unwrap();
    assert_eq!(bench.next_used().len, 64);
    assert_eq!(bench.bytes(0x4_0000, 64), [4; 64]);
}

#[test]
fn the_device_starts_again_after_a_reset() {
    let mut bench = Bench::new("");
    for _ in 0..3 {
        bench.fill(0x4_0000, 64);
        bench.restart();
    }
    assert_eq!(bench.fill(0x4_0000, 64).len, 64);
}

#[test]
fn the_users_mistakes_are_named() {
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
    let host = host(memory);
    for (options, complaint) in [
        (
            "source=/nowhere",
            "virtio-rng-pci: source=/nowhere: expected getrandom or a file or device: ",
        ),
        (
            "source=/",
            "virtio-rng-pci: source=/: expected getrandom or a file or device: ",
        ),
        (
            "egd=/nowhere",
            "virtio-rng-pci: egd=/nowhere: expected the socket of a daemon that listens: ",
        ),
        ("period=0", "virtio-rng-pci: period=0: expected a number from 1 to "),
        (
            "iothread=x",
            "virtio-rng-pci: iothread=x: there is no such I/O thread; add --iothread x",
        ),
        (
            "suorce=x",
            "virtio-rng-pci: there is no option 'suorce'; did you mean 'source'?",
        ),
    ] {
        let pairs = Pairs::parse(options, None);
        let made = info::create("virtio-rng-pci", &pairs, &host, Arc::new(NoMessages));
        let error = made.err().unwrap().to_string();
        assert!(error.starts_with(complaint), "{error}");
    }
}
