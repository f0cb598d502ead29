//! virtio-rng (device id 4): fills the buffers that the driver posts with random bytes. Virtio 1.3,
//! section 5.4.
//!
//! [`source`] is where the bytes come from, [`limit`] how many may come in what time, [`queue`] the
//! worker that fills buffers on an I/O thread.

#![forbid(unsafe_code)]

mod limit;
mod queue;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use self::limit::RateLimit;
use self::queue::{Filler, Supply};
use self::source::SourceConfig;
use super::device::{Device, HostError, QueueStart};
use super::id::DeviceId;
use super::info::{Built, DefaultVectors, DeviceInfo, Host, class};
use super::options::{ConfigError, OptionKind, OptionSpec, Options};
use super::transport::features::FaceDifferences;
use super::virtq::QueueState;
use crate::io_thread::{IoThreads, WorkerHandle};
use crate::timer::Timers;

/// Names of the options. Of QEMU's objects, rng-builtin is what there is without the first two,
/// rng-random's `filename` is the first, and the socket of rng-egd is the second.
mod name {
    pub const SOURCE: &str = "source";
    pub const EGD: &str = "egd";
    pub const MAX_BYTES: &str = "max-bytes";
    pub const PERIOD: &str = "period";
    pub const IO_THREAD: &str = "iothread";
}

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
        OptionSpec::new(
            name::SOURCE,
            OptionKind::Text,
            "where the random bytes come from: getrandom, which is the host's kernel, or a file or device",
        )
        .or("getrandom"),
        OptionSpec::new(
            name::EGD,
            OptionKind::Text,
            "the socket of a daemon that gathers randomness (EGD), instead",
        ),
        OptionSpec::new(
            name::MAX_BYTES,
            OptionKind::Number {
                min: 0,
                max: i64::MAX as u64,
            },
            "bytes that the guest gets at most in each period",
        )
        .or("9223372036854775807"),
        OptionSpec::new(
            name::PERIOD,
            OptionKind::Number {
                min: 1,
                max: u32::MAX as u64,
            },
            "milliseconds of a period",
        )
        .or("65536"),
        OptionSpec::new(name::IO_THREAD, OptionKind::Text, "the I/O thread that serves it"),
    ],
    build: |options, host| Ok(Built::plain(Rng::new(options, host)?)),
};

/// Descriptors of the one queue, as QEMU has it.
const QUEUE_SIZE: u16 = 8;

/// The device.
struct Rng {
    source: SourceConfig,
    max_bytes: u64,
    period: Duration,
    /// Where the bytes come from; with the worker while that runs.
    supply: Option<Supply>,
    threads: IoThreads,
    timers: Timers,
    worker: Option<WorkerHandle<Filler>>,
}

impl Rng {
    fn new(options: &Options, host: &Host) -> Result<Self, ConfigError> {
        let mut device = Self {
            source: SourceConfig::from_options(options),
            max_bytes: options.number(name::MAX_BYTES).unwrap_or(u64::MAX),
            period: Duration::from_millis(options.number(name::PERIOD).unwrap_or(1)),
            supply: None,
            threads: host.io_threads(options.subject(), options.text(name::IO_THREAD))?,
            timers: host.timers.clone(),
            worker: None,
        };
        let supply = device.open();
        device.supply = Some(supply.map_err(|error| device.source.refused(options, &error))?);
        Ok(device)
    }

    fn open(&self) -> io::Result<Supply> {
        let limit = RateLimit::new(self.max_bytes, self.period, self.timers.timer()?);
        Supply::new(self.source.open()?, limit)
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
        let failed = |source| HostError::new("virtio-rng", source);
        // It is gone only if the worker that had it failed.
        let supply = self.supply.take().map_or_else(|| self.open(), Ok).map_err(failed)?;
        let worker = self.threads.for_queue(start.index).add(Filler::new(start, supply));
        self.worker = Some(worker.map_err(failed)?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        let (state, supply) = self.worker.take()?.stop().ok()?.into_parts();
        self.supply = Some(supply);
        Some(state)
    }

    fn reset(&mut self) {}
}
