//! virtio-rng (device id 4): fills the buffers that the driver posts with random bytes. Virtio 1.3,
//! section 5.4.

#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use super::device::{Device, HostError, QueueStart};
use super::id::DeviceId;
use super::info::{Built, DefaultVectors, DeviceInfo, Host, class};
use super::options::{ConfigError, OptionKind, OptionSpec, Options};
use super::transport::features::FaceDifferences;
use super::virtq::QueueState;
use crate::io_thread::{IoThreads, Source, Worker, WorkerHandle};

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "virtio-rng-pci",
    id: DeviceId::Entropy,
    class: class::OTHERS,
    transitional_id: Some(0x1005),
    vectors: DefaultVectors::Fixed(2),
    config_len: 0,
    differences: FaceDifferences::NONE,
    options: &[
        OptionSpec::new("filename", OptionKind::Text, "where the random bytes come from").or("/dev/urandom"),
        OptionSpec::new("iothread", OptionKind::Text, "the I/O thread that serves it"),
    ],
    build: |options, host| Ok(Built::plain(Rng::new(options, host)?)),
};

/// Descriptors of the one queue, as QEMU has it.
const QUEUE_SIZE: u16 = 8;

/// Bytes that one buffer gets at most, so that a driver with large buffers does not keep the thread
/// from others.
const MAX_FILL: usize = 64 << 10;

/// The device.
struct Rng {
    source: Arc<File>,
    threads: IoThreads,
    worker: Option<WorkerHandle<Filler>>,
}

impl Rng {
    fn new(options: &Options, host: &Host) -> Result<Self, ConfigError> {
        let path = options.required("filename")?;
        let source = File::open(path)
            .map_err(|error| options.invalid("filename", path, format_args!("a source of bytes: {error}")))?;
        Ok(Self {
            source: Arc::new(source),
            threads: host.io_threads(options.subject(), options.text("iothread"))?,
            worker: None,
        })
    }
}

impl Device for Rng {
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        let thread = self.threads.for_queue(start.index);
        let handle = thread.add(Filler {
            queue: start,
            source: self.source.clone(),
            failed: false,
        });
        self.worker = Some(handle.map_err(|source| HostError::new("virtio-rng", source))?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        Some(self.worker.take()?.stop().ok()?.queue.ring.stop())
    }

    fn reset(&mut self) {}
}

/// The queue on its I/O thread.
struct Filler {
    queue: QueueStart,
    source: Arc<File>,
    /// The source failed the last time; the user knows.
    failed: bool,
}

impl Worker for Filler {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(&self.queue.kick, 0)]
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, _token: u32) {
        self.poll();
    }

    /// Fills as many buffers as the queue can hold, and no more, however fast the driver posts
    /// them.
    fn poll(&mut self) -> bool {
        let ring = &mut self.queue.ring;
        if !ring.has_available() {
            return false;
        }
        ring.disable_notify();
        for _ in 0..ring.size() {
            match ring.pop() {
                Ok(Some(chain)) => {
                    let mut writer = chain.writer();
                    let filled = writer.fill_from(&mut self.source.as_ref(), MAX_FILL);
                    if let (Err(error), false) = (&filled, self.failed) {
                        tracing::error!("virtio-rng: no random bytes: {error}");
                    }
                    self.failed = filled.is_err();
                    let written = writer.written();
                    ring.push(chain, written);
                }
                Ok(None) => break,
                Err(fault) => tracing::debug!(rule = fault.rule(), "virtio-rng: {fault}"),
            }
        }
        if ring.publish() {
            self.queue.interrupt.signal();
        }
        if ring.is_broken() {
            self.queue.interrupt.broken();
        }
        true
    }

    fn before_sleep(&mut self) -> bool {
        self.queue.ring.enable_notify()
    }

    fn panicked(&mut self) {
        self.queue.interrupt.broken();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::Duration;

    use pci::Function;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::io_thread::PollPolicy;
    use crate::memory::GuestMemory;
    use crate::virtio::info;
    use crate::virtio::interrupt::MsixSender;
    use crate::virtio::net::Networks;
    use crate::virtio::options::Pairs;
    use crate::virtio::transport::VirtioPci;
    use crate::virtio::virtq::testing::{Buffer, DriverRing, UsedEntry};

    struct NoMessages;

    impl MsixSender for NoMessages {
        fn send(&self, _vector: u16) {}
    }

    /// A legacy driver and the device, on its I/O thread.
    struct Bench {
        pci: VirtioPci,
        driver: DriverRing,
    }

    impl Bench {
        fn new(options: &str) -> Self {
            let ranges = [(GuestAddress(0), 2 << 20)];
            let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
            let io_threads = IoThreads::one(PollPolicy::default()).unwrap();
            let host = Host {
                memory: memory.clone(),
                io_threads,
                networks: Networks::default(),
            };
            let pairs = Pairs::parse(options, None);
            let pci = info::create("virtio-rng-pci", &pairs, &host, Arc::new(NoMessages))
                .unwrap()
                .function;
            let mut bench = Self {
                pci,
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

        /// Posts a buffer, kicks, and waits for it.
        fn fill(&mut self, address: u64, len: u32) -> UsedEntry {
            self.driver.post(&[Buffer::writable(address, len)]).unwrap();
            self.port(0x10, 0, 2);
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
        let mut bench = Bench::new("");
        assert_eq!((bench.fill(0x4_0000, 64).len, bench.fill(0x4_1000, 64).len), (64, 64));
        let (first, second) = (bench.bytes(0x4_0000, 64), bench.bytes(0x4_1000, 64));
        assert!(first != second && first != [0; 64] && second != [0; 64]);
        assert_eq!(bench.bytes(0x4_0040, 64), [0; 64], "nothing behind the buffer");
    }

    #[test]
    fn a_huge_buffer_gets_a_bounded_part() {
        let mut bench = Bench::new("");
        assert_eq!(bench.fill(0x10_0000, 1 << 20).len, MAX_FILL as u32);
    }

    #[test]
    fn a_malformed_chain_comes_back_empty_and_the_next_is_filled() {
        let mut bench = Bench::new("");
        assert_eq!(bench.fill(0x1000_0000, 64).len, 0);
        assert_eq!(bench.fill(0x4_0000, 64).len, 64);
    }

    #[test]
    fn a_source_that_ends_gives_what_it_has() {
        let mut bench = Bench::new("filename=/dev/null");
        assert_eq!(bench.fill(0x4_0000, 64).len, 0);
    }

    #[test]
    fn the_device_starts_again_after_a_reset() {
        let mut bench = Bench::new("");
        for _ in 0..3 {
            bench.fill(0x4_0000, 64);
            bench.port(0x12, 0, 1);
            let memory = bench.driver.memory().clone();
            bench.driver = DriverRing::legacy(memory, 0x10, QUEUE_SIZE);
            bench.bring_up();
        }
        assert_eq!(bench.fill(0x4_0000, 64).len, 64);
    }

    #[test]
    fn the_users_mistakes_are_named() {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        let host = Host {
            memory,
            io_threads: IoThreads::one(PollPolicy::default()).unwrap(),
            networks: Networks::default(),
        };
        for (options, complaint) in [
            (
                "filename=/nowhere",
                "virtio-rng-pci: filename=/nowhere: expected a source of bytes",
            ),
            (
                "iothread=x",
                "virtio-rng-pci: iothread=x: there is no such I/O thread; add --iothread x",
            ),
            (
                "fielname=x",
                "virtio-rng-pci: there is no option 'fielname'; did you mean 'filename'?",
            ),
        ] {
            let pairs = Pairs::parse(options, None);
            let made = info::create("virtio-rng-pci", &pairs, &host, Arc::new(NoMessages));
            let error = made.err().unwrap().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }
}
