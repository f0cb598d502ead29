//! virtio-rng (device id 4): fills the buffers that the driver posts with random bytes. Virtio 1.3,
//! section 5.4.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::device::{Device, HostError, QueueInterrupt, QueueStart};
use super::id::DeviceId;
use super::info::{DefaultVectors, DeviceInfo, Host, class};
use super::options::{ConfigError, OptionKind, OptionSpec, Options};
use super::transport::features::FaceDifferences;
use super::virtq::{QueueState, Virtq};
use crate::io_thread::{IoThreads, Worker, WorkerHandle};

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
    build: |options, host| Ok(Box::new(Rng::new(options, host)?)),
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
        let filler = Filler {
            ring: start.ring,
            kick: start.kick,
            interrupt: start.interrupt,
            source: self.source.clone(),
        };
        let handle = self.threads.for_queue(start.index).add(filler);
        self.worker = Some(handle.map_err(|source| HostError {
            what: "virtio-rng".to_owned(),
            source,
        })?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        Some(self.worker.take()?.stop().ok()?.ring.stop())
    }

    fn reset(&mut self) {}
}

/// The queue on its I/O thread.
struct Filler {
    ring: Virtq,
    kick: Arc<EventFd>,
    interrupt: QueueInterrupt,
    source: Arc<File>,
}

impl Worker for Filler {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![(self.kick.as_raw_fd(), 0)]
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
        if !self.ring.has_available() {
            return false;
        }
        self.ring.disable_notify();
        for _ in 0..self.ring.size() {
            match self.ring.pop() {
                Ok(Some(chain)) => {
                    let mut writer = chain.writer();
                    let filled = writer.fill_from(&mut self.source.as_ref(), MAX_FILL);
                    filled
                        .inspect_err(|error| tracing::error!("virtio-rng: no random bytes: {error}"))
                        .ok();
                    let written = writer.written();
                    self.ring.push(chain, written);
                }
                Ok(None) => break,
                Err(fault) => tracing::debug!(rule = fault.rule(), "virtio-rng: {fault}"),
            }
        }
        if self.ring.publish() {
            self.interrupt.signal();
        }
        if self.ring.is_broken() {
            self.interrupt.broken();
        }
        true
    }

    fn before_sleep(&mut self) -> bool {
        self.ring.enable_notify()
    }

    fn panicked(&mut self) {
        self.interrupt.broken();
    }
}
