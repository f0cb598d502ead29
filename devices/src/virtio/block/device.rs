//! A disk as its transport sees it.

#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, OnceLock};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SCSI};
use virtio_bindings::virtio_config::VIRTIO_F_ANY_LAYOUT;

use super::SECTOR;
use super::config::{self, DiskConfig, WRITEBACK_OFFSET};
use super::disk::Disk;
use super::engine::Engine;
use super::options::{self, BlockConfig};
use super::queue::QueueWorker;
use crate::io_thread::{IoThreads, WorkerHandle};
use crate::virtio::device::{ConfigInterrupt, Device, HostError, Negotiated, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{Built, Control, DefaultVectors, DeviceInfo, class};
use crate::virtio::options::ConfigError;
use crate::virtio::transport::features::FaceDifferences;
use crate::virtio::virtq::QueueState;

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "virtio-blk-pci",
    id: DeviceId::Block,
    class: class::STORAGE_SCSI,
    transitional_id: Some(0x1001),
    vectors: DefaultVectors::PerQueue,
    config_len: config::CONFIG_BYTES as u32,
    // Without VERSION_1 QEMU offers SCSI commands, which come back as unsupported, and takes
    // ANY_LAYOUT away (hw/block/virtio-blk.c, `virtio_blk_get_features`).
    differences: FaceDifferences {
        added_without_modern: 1 << VIRTIO_BLK_F_SCSI,
        dropped_without_modern: 1 << VIRTIO_F_ANY_LAYOUT,
        ..FaceDifferences::NONE
    },
    options: options::OPTIONS,
    build: |options, host| {
        let threads = host.io_threads(options.subject(), options.text("iothread"))?;
        let block = Block::new(&BlockConfig::from_options(options)?, threads)?;
        let control = Control::Block(block.control());
        Ok(Built {
            device: Box::new(block),
            control,
        })
    },
};

/// virtio-blk.
pub struct Block {
    disk: Arc<Disk>,
    queue_size: u16,
    threads: IoThreads,
    workers: Vec<Option<WorkerHandle<QueueWorker>>>,
    control: BlockControl,
}

impl Block {
    /// Opens the disk that `config` names. Its queues run on `threads`, in turn.
    ///
    /// # Errors
    /// What cannot be, with what to do about it.
    pub fn new(config: &BlockConfig, threads: IoThreads) -> Result<Self, ConfigError> {
        Ok(Self::on(Disk::open(config)?, config, threads))
    }

    /// The device for a disk that is open already.
    pub fn on(disk: Arc<Disk>, config: &BlockConfig, threads: IoThreads) -> Self {
        let queues = config.queues.max(1);
        Self {
            queue_size: config.queue_size,
            threads,
            workers: (0..queues).map(|_| None).collect(),
            control: BlockControl {
                disk: Arc::clone(&disk),
                interrupt: Arc::default(),
            },
            disk,
        }
    }

    /// What management holds on to while the device belongs to its transport.
    pub fn control(&self) -> BlockControl {
        self.control.clone()
    }

    fn queues(&self) -> u16 {
        self.workers.len() as u16
    }

    fn config(&self) -> DiskConfig {
        DiskConfig {
            sectors: self.disk.sectors(),
            queue_size: self.queue_size,
            queues: self.queues(),
            block_size: SECTOR as u32,
            write_cache: self.disk.has_write_cache(),
        }
    }
}

impl Device for Block {
    fn features(&self) -> u64 {
        config::features(self.queues(), self.disk.is_readonly())
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.workers.len()]
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The driver switches the write cache by the `writeback` byte. As in QEMU, it may do so in a
    /// write that covers the byte, and before features are agreed on; all other fields are
    /// read-only.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let byte = WRITEBACK_OFFSET
            .checked_sub(offset as usize)
            .and_then(|index| data.get(index));
        if let Some(&byte) = byte {
            self.disk.set_write_cache(byte != 0);
        }
    }

    fn connect(&mut self, interrupt: ConfigInterrupt) {
        // Once, says the trait; a second one would be the same.
        let _ = self.control.interrupt.set(interrupt);
    }

    /// A driver that cannot switch the cache gets it on if it can flush, and off if it cannot
    /// (virtio 1.3, 5.2.5.2; QEMU, `virtio_blk_set_status`).
    fn activate(&mut self, negotiated: Negotiated) {
        if !negotiated.has(VIRTIO_BLK_F_CONFIG_WCE) {
            self.disk.set_write_cache(negotiated.has(VIRTIO_BLK_F_FLUSH));
        }
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        let index = start.index;
        let failed = |source: io::Error| HostError {
            what: format!("{}: queue {index} cannot be served", self.disk.name()),
            source,
        };
        let engine = Engine::new(&self.disk, start.ring.size()).map_err(failed)?;
        let worker = QueueWorker::new(start, Arc::clone(&self.disk), engine);
        let handle = self.threads.for_queue(index).add(worker).map_err(failed)?;
        match self.workers.get_mut(usize::from(index)) {
            Some(slot) => *slot = Some(handle),
            None => return Err(failed(io::ErrorKind::InvalidInput.into())),
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let handle = self.workers.get_mut(usize::from(index))?.take()?;
        // Of a worker that failed nothing is known; its queue stands still until the driver resets
        // it.
        let broken = QueueState {
            broken: true,
            ..QueueState::default()
        };
        Some(handle.stop().map_or(broken, QueueWorker::into_state))
    }

    fn reset(&mut self) {
        self.disk.reset_write_cache();
    }
}

/// Changes to a disk from outside: the mechanism of QMP's `block_resize`.
#[derive(Clone)]
pub struct BlockControl {
    disk: Arc<Disk>,
    interrupt: Arc<OnceLock<ConfigInterrupt>>,
}

impl BlockControl {
    /// The disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Changes the size of the image to `bytes` and tells the guest.
    ///
    /// # Errors
    /// The host or the format cannot, or the disk is read-only.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let changed = self.disk.resize(bytes)?;
        self.tell(changed);
        Ok(())
    }

    /// Looks whether the image has another size than it had, and tells the guest. Returns whether
    /// it has.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn refresh(&self) -> io::Result<bool> {
        let changed = self.disk.refresh()?;
        self.tell(changed);
        Ok(changed)
    }

    fn tell(&self, changed: bool) {
        if let Some(interrupt) = self.interrupt.get().filter(|_| changed) {
            interrupt.signal();
        }
    }
}
