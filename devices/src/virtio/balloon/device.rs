//! A balloon as its transport sees it.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use super::config::{self, BalloonConfig, QueueKind, feature};
use super::control::BalloonControl;
use super::free::{Hints, Report};
use super::pages::{Deflate, Inflate};
use super::queue::{BatchWorker, Service};
use super::shared::{Shared, hint};
use super::stats::StatsWorker;
use crate::io_thread::{IoThread, IoThreads, WorkerHandle};
use crate::memory::GuestMemory;
use crate::timer::Timers;
use crate::virtio::device::{ConfigInterrupt, Device, HostError, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{Built, Control, DefaultVectors, DeviceInfo, class};
use crate::virtio::transport::features::FaceDifferences;
use crate::virtio::virtq::QueueState;

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "virtio-balloon-pci",
    id: DeviceId::Balloon,
    class: class::OTHERS,
    transitional_id: Some(0x1002),
    // QEMU 7.2 gives it none.
    vectors: DefaultVectors::Fixed(0),
    config_len: config::ConfigSpace::BYTES as u32,
    differences: FaceDifferences::NONE,
    options: config::OPTIONS,
    build: |options, host| {
        let threads = host.io_threads(options.subject(), options.text(config::name::IO_THREAD))?;
        let config = BalloonConfig::from_options(options, Balloon::ram(&host.memory))?;
        let balloon = Balloon::new(&config, Arc::clone(&host.memory), threads, &host.timers).map_err(|error| {
            let problem = format_args!("the host gives no timer: {error}");
            options.refused(problem, "raise the limit on open files (ulimit -n)")
        })?;
        let control = Control::Balloon(balloon.control());
        Ok(Built {
            device: Box::new(balloon),
            control,
        })
    },
};

/// virtio-balloon.
pub struct Balloon {
    config: BalloonConfig,
    queues: Vec<QueueKind>,
    workers: Vec<Option<Running>>,
    threads: IoThreads,
    shared: Arc<Shared>,
}

/// A queue that is with its I/O thread.
enum Running {
    Batch(WorkerHandle<BatchWorker>),
    Stats(WorkerHandle<StatsWorker>),
}

impl Running {
    /// `None` if the worker failed.
    fn stop(self) -> Option<QueueState> {
        match self {
            Self::Batch(handle) => Some(handle.stop().ok()?.into_state()),
            Self::Stats(handle) => Some(handle.stop().ok()?.into_state()),
        }
    }
}

impl Balloon {
    /// A balloon for the guest whose RAM is `memory`. Its queues run on `threads`, in turn, and statistics come by a timer of
    /// `timers`.
    ///
    /// # Errors
    /// The host has no timer.
    pub fn new(
        config: &BalloonConfig,
        memory: Arc<GuestMemory>,
        threads: IoThreads,
        timers: &Timers,
    ) -> io::Result<Self> {
        let queues = config.queues();
        Ok(Self {
            config: *config,
            workers: queues.iter().map(|_| None).collect(),
            queues,
            threads,
            shared: Arc::new(Shared::new(memory, config, timers)?),
        })
    }

    /// What management holds on to while the device belongs to its transport.
    pub fn control(&self) -> BalloonControl {
        BalloonControl::new(Arc::clone(&self.shared))
    }

    /// Bytes of RAM.
    fn ram(memory: &GuestMemory) -> u64 {
        use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
        memory.iter().map(GuestMemoryRegion::len).sum()
    }

    fn run(&self, thread: &IoThread, kind: QueueKind, start: QueueStart) -> io::Result<Running> {
        let shared = &self.shared;
        let service: Box<dyn Service> = match kind {
            QueueKind::Inflate => Box::new(Inflate::new(shared)),
            QueueKind::Deflate => Box::new(Deflate::new(shared)),
            QueueKind::Hint => Box::new(Hints::new(shared)),
            QueueKind::Report => {
                let poisoned = start.negotiated.has(feature::PAGE_POISON);
                Box::new(Report::new(shared, poisoned))
            }
            QueueKind::Stats => {
                let worker = StatsWorker::new(start, Arc::clone(shared));
                return Ok(Running::Stats(thread.add(worker)?));
            }
        };
        let worker = BatchWorker::new(start, Arc::clone(shared), service);
        Ok(Running::Batch(thread.add(worker)?))
    }
}

impl Device for Balloon {
    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.queues.iter().map(|kind| kind.size()).collect()
    }

    fn config_len(&self) -> Option<u32> {
        Some(self.config.config_len() as u32)
    }

    /// As in QEMU, a read that goes past the end gets nothing: `data` is left as it is.
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let bytes = self.shared.config().to_bytes();
        let from = bytes
            .get(..self.config.config_len())
            .and_then(|bytes| bytes.get(offset as usize..))
            .and_then(|bytes| bytes.get(..data.len()));
        if let Some(from) = from {
            data.copy_from_slice(from);
        }
    }

    /// `actual` and `poison_val` are the driver's; the other fields are read-only.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let config = self.shared.config();
        self.shared
            .set_config(config.written(self.config.config_len(), offset, data));
    }

    fn connect(&mut self, interrupt: ConfigInterrupt) {
        self.shared.connect(interrupt);
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        let index = start.index;
        let failed = |source| HostError::new(format!("virtio-balloon: queue {index} cannot be served"), source);
        let no_such_queue = || failed(io::ErrorKind::InvalidInput.into());
        let kind = *self.queues.get(usize::from(index)).ok_or_else(no_such_queue)?;
        let running = self.run(self.threads.for_queue(index), kind, start).map_err(failed)?;
        *self.workers.get_mut(usize::from(index)).ok_or_else(no_such_queue)? = Some(running);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let running = self.workers.get_mut(usize::from(index))?.take()?;
        // Of a worker that failed nothing is known; its queue stands still until the driver resets
        // it.
        let broken = QueueState {
            broken: true,
            ..QueueState::default()
        };
        Some(running.stop().unwrap_or(broken))
    }

    /// The driver that filled the balloon is gone, and whoever comes next has all of the memory.
    /// What is asked of it stays.
    fn reset(&mut self) {
        self.shared.in_balloon().clear();
        self.shared.set_config(config::ConfigSpace::default());
        self.shared.end_hints(hint::STOP);
    }
}
