//! The transport as a driver sees it, good and bad. The device behind it notes what it is told.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use pci::{Changes, Function};
use vm_memory::{Bytes, GuestAddress};

use super::fault::TransportFault;
use super::features::FaceDifferences;
use super::settings::{self, Settings, Variant};
use super::{VirtioPci, status};
use crate::memory::GuestMemory;
use crate::virtio::device::{ConfigInterrupt, Device, HostError, Negotiated, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{DefaultVectors, DeviceInfo, class};
use crate::virtio::interrupt::MsixSender;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::QueueState;

mod features;
mod hostile;
mod interrupts;
mod layout;
mod legacy;
mod life_cycle;
mod modern;
mod random;

const ACKNOWLEDGED: u8 = status::ACKNOWLEDGE | status::DRIVER;
const AGREED: u8 = ACKNOWLEDGED | status::FEATURES_OK;
const READY: u8 = AGREED | status::DRIVER_OK;
const LEGACY_READY: u8 = ACKNOWLEDGED | status::DRIVER_OK;

const VERSION_1: u64 = 1 << 32;
const RING_RESET: u64 = 1 << 40;

/// Offsets of registers, as drivers have them.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    pub(super) const QUEUE_RESET: u64 = 0x3a;

    pub(super) const ISR: u64 = 0x1000;
    pub(super) const CONFIG: u64 = 0x2000;
    pub(super) const NOTIFY: u64 = 0x3000;
}

/// Ports of the legacy face, as drivers have them.
mod port {
    pub(super) const DEVICE_FEATURES: u64 = 0x00;
    pub(super) const DRIVER_FEATURES: u64 = 0x04;
    pub(super) const QUEUE_PFN: u64 = 0x08;
    pub(super) const QUEUE_SIZE: u64 = 0x0c;
    pub(super) const QUEUE_SELECT: u64 = 0x0e;
    pub(super) const QUEUE_NOTIFY: u64 = 0x10;
    pub(super) const STATUS: u64 = 0x12;
    pub(super) const ISR: u64 = 0x13;
}

/// What the device was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Activated(u64),
    Started(u16),
    Stopped(u16),
    Reset,
}

/// What test and device share.
#[derive(Default)]
struct Shared {
    events: Mutex<Vec<Event>>,
    config: Mutex<Vec<u8>>,
    interrupt: Mutex<Option<ConfigInterrupt>>,
    queues: Mutex<BTreeMap<u16, QueueStart>>,
    /// The host refuses to start queues.
    refuse: AtomicBool,
    sent: Mutex<Vec<u16>>,
}

impl Shared {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl MsixSender for Shared {
    fn send(&self, vector: u16) {
        self.sent.lock().unwrap().push(vector);
    }
}

/// A device that notes what it is told.
struct Probe {
    shared: Arc<Shared>,
    features: u64,
    sizes: Vec<u16>,
}

impl Device for Probe {
    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.sizes.clone()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.shared.config.lock().unwrap();
        let from = config.get(offset as usize..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let mut config = self.shared.config.lock().unwrap();
        config[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }

    fn connect(&mut self, config: ConfigInterrupt) {
        *self.shared.interrupt.lock().unwrap() = Some(config);
    }

    fn activate(&mut self, negotiated: Negotiated) {
        assert!(
            self.shared.queues.lock().unwrap().is_empty(),
            "activated with queues running"
        );
        self.shared.note(Event::Activated(negotiated.features));
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        if self.shared.refuse.load(Ordering::Relaxed) {
            let source = io::ErrorKind::OutOfMemory.into();
            return Err(HostError {
                what: "probe".to_owned(),
                source,
            });
        }
        self.shared.note(Event::Started(start.index));
        let before = self.shared.queues.lock().unwrap().insert(start.index, start);
        assert!(before.is_none(), "queue started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let start = self.shared.queues.lock().unwrap().remove(&index)?;
        self.shared.note(Event::Stopped(index));
        Some(start.ring.stop())
    }

    fn reset(&mut self) {
        assert!(
            self.shared.queues.lock().unwrap().is_empty(),
            "reset with queues running"
        );
        self.shared.note(Event::Reset);
    }
}

const fn row(name: &'static str, id: DeviceId, legacy_id: u16, class: u16, config_len: u32) -> DeviceInfo {
    DeviceInfo {
        name,
        id,
        class,
        transitional_id: Some(legacy_id),
        vectors: DefaultVectors::PerQueue,
        config_len,
        differences: FaceDifferences::NONE,
        options: &[],
        build: |options, _| Err(options.refused("only for tests", "none")),
    }
}

static BLOCK: DeviceInfo = DeviceInfo {
    differences: FaceDifferences {
        added_without_modern: 1 << 7,
        dropped_without_modern: 1 << 27,
        ..FaceDifferences::NONE
    },
    ..row("virtio-blk-pci", DeviceId::Block, 0x1001, class::STORAGE_SCSI, 60)
};

/// A function with a probe behind it, and the guest around it.
struct Bench {
    pci: VirtioPci,
    shared: Arc<Shared>,
    memory: Arc<GuestMemory>,
}

impl Bench {
    /// A transitional disk with two queues of 256 and 8 descriptors, RAM from 0 to 1 MiB, decoded,
    /// with bus mastering.
    fn new() -> Self {
        Self::with("")
    }

    fn with(options: &str) -> Self {
        let mut bench = Self::of(&BLOCK, 0x6e54, &[256, 8], options).unwrap();
        bench.pci.write_config(0x04, &7u16.to_le_bytes());
        bench
    }

    fn of(info: &'static DeviceInfo, features: u64, sizes: &[u16], options: &str) -> Result<Self, ConfigError> {
        let options = Options::parse(info.name, options, &[settings::OPTIONS])?;
        let settings = Settings::read(&options, Variant::Plain, info.transitional_id.is_some())?;
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let shared = Arc::new(Shared::default());
        *shared.config.lock().unwrap() = (0..info.config_len as u8).collect();
        let device = Box::new(Probe {
            shared: shared.clone(),
            features,
            sizes: sizes.to_vec(),
        });
        let pci = VirtioPci::new(info, info.name, &settings, device, memory.clone(), shared.clone())?;
        Ok(Self { pci, shared, memory })
    }

    fn read(&mut self, bar: u8, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.pci.read_bar(bar, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, bar: u8, offset: u64, len: usize, value: u64) -> Changes {
        self.pci.write_bar(bar, offset, &value.to_le_bytes()[..len])
    }

    fn port(&mut self, offset: u64, len: usize) -> u64 {
        self.read(0, offset, len)
    }

    fn set_port(&mut self, offset: u64, len: usize, value: u64) {
        self.write(0, offset, len, value);
    }

    fn modern(&mut self, offset: u64, len: usize) -> u64 {
        self.read(4, offset, len)
    }

    fn set_modern(&mut self, offset: u64, len: usize, value: u64) {
        self.write(4, offset, len, value);
    }

    fn config(&mut self, offset: u16, len: usize) -> u32 {
        let mut data = [0; 4];
        self.pci.read_config(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    fn set_config(&mut self, offset: u16, len: usize, value: u32) -> Changes {
        self.pci.write_config(offset, &value.to_le_bytes()[..len])
    }

    fn set_status(&mut self, status: u8) {
        self.set_modern(common::STATUS, 1, status.into());
    }

    fn status(&mut self) -> u8 {
        self.modern(common::STATUS, 1) as u8
    }

    fn legacy_status(&mut self) -> u8 {
        self.port(port::STATUS, 1) as u8
    }

    fn set_legacy_status(&mut self, status: u8) {
        self.set_port(port::STATUS, 1, status.into());
    }

    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.shared.events.lock().unwrap())
    }

    fn sent(&self) -> Vec<u16> {
        std::mem::take(&mut self.shared.sent.lock().unwrap())
    }

    fn faults(&mut self) -> Vec<TransportFault> {
        self.pci.faults().take()
    }

    /// The rules that were broken since the last call.
    fn rules(&mut self) -> Vec<&'static str> {
        self.faults().iter().map(TransportFault::rule).collect()
    }

    fn running(&self) -> Vec<u16> {
        self.shared.queues.lock().unwrap().keys().copied().collect()
    }

    fn size_of_running(&self, queue: u16) -> u16 {
        self.shared.queues.lock().unwrap()[&queue].ring.size()
    }

    /// Kicks that wait at a queue's doorbell.
    fn kicks(&self, queue: u16) -> u64 {
        let doorbells = self.pci.doorbells();
        let doorbell = doorbells.iter().find(|doorbell| doorbell.queue == queue).unwrap();
        doorbell.event.read().unwrap_or(0)
    }

    fn forget_kicks(&self) {
        (0..2).for_each(|queue| {
            self.kicks(queue);
        });
    }

    fn signal_queue(&self, queue: u16) {
        self.shared.queues.lock().unwrap()[&queue].interrupt.signal();
    }

    fn signal_config(&self) {
        self.shared.interrupt.lock().unwrap().as_ref().unwrap().signal();
    }

    /// As a modern driver does it, up to FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGED);
        for select in 0..2 {
            self.set_modern(common::DRIVER_FEATURE_SELECT, 4, select);
            self.set_modern(common::DRIVER_FEATURE, 4, features >> (32 * select) & 0xffff_ffff);
        }
        self.set_status(AGREED);
    }

    /// Sets up a queue in RAM at `base` and enables it.
    fn set_up_queue(&mut self, queue: u16, base: u64) {
        self.set_modern(common::QUEUE_SELECT, 2, queue.into());
        self.set_modern(common::QUEUE_DESC, 8, base);
        self.set_modern(common::QUEUE_DRIVER, 8, base + 0x1000);
        self.set_modern(common::QUEUE_DEVICE, 8, base + 0x2000);
        self.set_modern(common::QUEUE_ENABLE, 2, 1);
    }

    /// As a modern driver does it, up to DRIVER_OK, with both queues.
    fn bring_up(&mut self) {
        self.negotiate(VERSION_1 | RING_RESET);
        self.set_up_queue(0, 0x1_0000);
        self.set_up_queue(1, 0x2_0000);
        self.set_status(READY);
    }

    /// As a legacy driver does it, up to DRIVER_OK, with both queues.
    fn bring_up_legacy(&mut self) {
        self.set_legacy_status(0);
        self.set_legacy_status(status::ACKNOWLEDGE);
        self.set_legacy_status(ACKNOWLEDGED);
        self.set_port(port::DRIVER_FEATURES, 4, 0);
        for (queue, page) in [(0, 0x10), (1, 0x20)] {
            self.set_port(port::QUEUE_SELECT, 2, queue);
            self.set_port(port::QUEUE_PFN, 4, page);
        }
        self.set_legacy_status(LEGACY_READY);
    }

    /// Puts `value` into guest RAM.
    fn poke(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// What the device would do: takes what there is and gives it back.
    fn serve(&self) {
        for start in self.shared.queues.lock().unwrap().values_mut() {
            let mut taken = 0;
            while let Some(chain) = start.ring.pop().unwrap_or(None) {
                start.ring.push(chain, 0);
                taken += 1;
                if taken > 1000 {
                    break;
                }
            }
            if start.ring.publish() {
                start.interrupt.signal();
            }
            if start.ring.is_broken() {
                start.interrupt.broken();
            }
        }
    }
}
