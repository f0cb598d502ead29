//! vhost-user-blk (device id 2): a disk that another process serves, such as qemu-storage-daemon or SPDK. What its
//! driver sees is what the backend says; see [`user`].

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::{VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::config::{CONFIG_BYTES, QUEUES_OFFSET, WRITEBACK_OFFSET};
use super::options::{queue_size_of, queues_of};
use crate::io_thread::IoThreads;
use crate::virtio::device::{ConfigInterrupt, Device, HostError, Negotiated, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{Built, DefaultVectors, DeviceInfo, Host, class};
use crate::virtio::options::{BOOT_INDEX, ConfigError, IO_THREAD, OptionKind, OptionSpec, Options};
use crate::virtio::transport::features::FaceDifferences;
use crate::virtio::vhost::user::{self, Event, Remote, Wanted};
use crate::virtio::virtq::QueueState;

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "vhost-user-blk-pci",
    id: DeviceId::Block,
    class: class::STORAGE_SCSI,
    transitional_id: Some(0x1001),
    vectors: DefaultVectors::PerQueue,
    config_len: CONFIG_BYTES as u32,
    differences: FaceDifferences::NONE,
    options: OPTIONS,
    build: |options, host| Ok(Built::plain(VhostUserBlock::new(options, host)?)),
};

/// What the user may write.
static OPTIONS: &[OptionSpec] = &[
    user::OPTIONS[0],
    user::OPTIONS[1],
    OptionSpec::new("queues", OptionKind::Number { min: 1, max: 256 }, "number of queues").or("1"),
    OptionSpec::new(
        "queue-size",
        OptionKind::Number { min: 4, max: 1024 },
        "descriptors of a queue",
    )
    .or("128"),
    SWITCHES[0].0,
    SWITCHES[1].0,
    SWITCHES[2].0,
    BOOT_INDEX,
    IO_THREAD,
];

/// Features that the user can switch.
const SWITCHES: [(OptionSpec, u32); 3] = [
    (
        switch("config-wce", "the guest can switch the write cache"),
        VIRTIO_BLK_F_CONFIG_WCE,
    ),
    (switch("discard", "discards"), VIRTIO_BLK_F_DISCARD),
    (
        switch("write-zeroes", "writes of zeroes without data"),
        VIRTIO_BLK_F_WRITE_ZEROES,
    ),
];

const fn switch(name: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec::new(name, OptionKind::Flag, help).or("on")
}

/// What is offered if the backend has it, whatever the user says (QEMU, hw/block/vhost-user-blk.c,
/// `vhost_user_blk_get_features`).
const ALWAYS: [u32; 7] = [
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
];

/// What else is up to the backend.
const OF_BACKEND: [u32; 9] = [
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_RESET,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
];

fn word(bits: impl IntoIterator<Item = u32>) -> u64 {
    bits.into_iter().fold(0, |word, bit| word | 1 << bit)
}

/// Protocol features without which there is no disk.
const REQUIRED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG;

/// Protocol features that are of use to a disk.
const USEFUL: VhostUserProtocolFeatures = REQUIRED
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD);

struct VhostUserBlock {
    name: String,
    remote: Remote,
    threads: IoThreads,
    queues: u16,
    queue_size: u16,
    features: u64,
    shown: Arc<Shown>,
    /// The driver may switch the write cache.
    switches_cache: bool,
}

/// The configuration as the driver sees it.
#[derive(Default)]
struct Shown {
    bytes: Mutex<Vec<u8>>,
    interrupt: OnceLock<ConfigInterrupt>,
}

impl Shown {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend says what it is like. All of it counts before there is a driver; from then on only the capacity may
    /// change, as in QEMU.
    fn take(&self, new: &[u8]) {
        let mut shown = self.bytes();
        let old = shown.clone();
        match (shown.first_chunk_mut(), new.first_chunk::<8>()) {
            (Some(capacity), Some(new)) => *capacity = *new,
            _ => *shown = new.to_vec(),
        }
        let changed = !old.is_empty() && *shown != old;
        drop(shown);
        if let Some(interrupt) = self.interrupt.get().filter(|_| changed) {
            interrupt.signal();
        }
    }
}

impl VhostUserBlock {
    fn new(options: &Options, host: &Host) -> Result<Self, ConfigError> {
        let (queues, queue_size) = (queues_of(options), queue_size_of(options)?);
        let threads = host.io_threads(options.subject(), options.text("iothread"))?;
        let shown = Arc::new(Shown::default());
        let listener = Arc::clone(&shown);
        let wanted = Wanted {
            protocol: USEFUL,
            required: REQUIRED,
            config_len: CONFIG_BYTES as u32,
            inflight: Some(queue_size),
            ..Wanted::new(
                options.subject(),
                queues,
                queues,
                word(ALWAYS.into_iter().chain(OF_BACKEND)),
            )
        };
        let listener = Box::new(move |event| {
            if let Event::Config(bytes) = event {
                listener.take(&bytes);
            }
        });
        let remote = Remote::open(options, wanted, &host.memory, threads.for_queue(0), listener)?;
        if let Some(field) = shown.bytes().get_mut(QUEUES_OFFSET..QUEUES_OFFSET + 2) {
            field.copy_from_slice(&queues.to_le_bytes());
        }
        let switched = SWITCHES.iter().filter(|(option, _)| options.flag(option.name));
        let several = (queues > 1).then_some(VIRTIO_BLK_F_MQ);
        let features = ALWAYS.into_iter().chain(switched.map(|(_, bit)| *bit)).chain(several);
        Ok(Self {
            name: options.subject().to_owned(),
            remote,
            threads,
            queues,
            queue_size,
            features: word(features),
            shown,
            switches_cache: false,
        })
    }
}

impl Device for VhostUserBlock {
    fn features(&self) -> u64 {
        self.features
    }

    fn possible_features(&self) -> u64 {
        self.remote.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let shown = self.shown.bytes();
        let from = shown.get(offset as usize..).and_then(|from| from.get(..data.len()));
        if let Some(from) = from {
            data.copy_from_slice(from);
        }
    }

    /// The driver switches the write cache; all other fields are read-only.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let written = WRITEBACK_OFFSET
            .checked_sub(offset as usize)
            .and_then(|index| data.get(index));
        let Some(&written) = written.filter(|written| self.switches_cache && **written <= 1) else {
            return;
        };
        let mut shown = self.shown.bytes();
        let changed = shown
            .get_mut(WRITEBACK_OFFSET)
            .is_some_and(|shown| std::mem::replace(shown, written) != written);
        drop(shown);
        if changed {
            self.remote.write_config(WRITEBACK_OFFSET as u32, &[written]);
        }
    }

    fn activate(&mut self, negotiated: Negotiated) {
        self.switches_cache = negotiated.has(VIRTIO_BLK_F_CONFIG_WCE);
    }

    fn connect(&mut self, interrupt: ConfigInterrupt) {
        // Once, says the trait; a second one would be the same.
        let _ = self.shown.interrupt.set(interrupt);
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        let index = start.index;
        let started = self.remote.start(index, start, self.threads.for_queue(index));
        started.map_err(|source| HostError::new(format!("{}: queue {index} cannot be served", self.name), source))
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.remote.stop(index)
    }

    fn reset(&mut self) {
        self.remote.reset();
    }
}
