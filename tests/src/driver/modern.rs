//! The modern driver: structures that capabilities announce (virtio 1.3, 4.1.4), reached where their BAR is, or through
//! the PCI_CFG window without any BAR.

use devices::virtio::transport::status;
use devices::virtio::virtq::{NO_VECTOR, QueueConfig};

use super::bus::VENDOR;
use super::{PciDevice, Transport, wait_for};

/// Offsets in the common configuration structure (virtio 1.3, 4.1.4.3).
pub mod common {
    /// Which half of the offered features is shown, 4 bytes.
    pub const DEVICE_FEATURE_SELECT: u32 = 0x00;
    /// That half, 4 bytes.
    pub const DEVICE_FEATURE: u32 = 0x04;
    /// Which half of the accepted features is shown, 4 bytes.
    pub const DRIVER_FEATURE_SELECT: u32 = 0x08;
    /// That half, 4 bytes.
    pub const DRIVER_FEATURE: u32 = 0x0c;
    /// Vector of configuration changes, 2 bytes.
    pub const CONFIG_VECTOR: u32 = 0x10;
    /// Number of queues, 2 bytes.
    pub const NUM_QUEUES: u32 = 0x12;
    /// Device status, 1 byte.
    pub const STATUS: u32 = 0x14;
    /// Changes with the configuration, 1 byte.
    /// Which queue is selected, 2 bytes.
    pub const QUEUE_SELECT: u32 = 0x16;
    /// Its size, 2 bytes.
    pub const QUEUE_SIZE: u32 = 0x18;
    /// Its vector, 2 bytes.
    pub const QUEUE_VECTOR: u32 = 0x1a;
    /// Whether it is enabled, 2 bytes.
    pub const QUEUE_ENABLE: u32 = 0x1c;
    /// Its doorbell, 2 bytes.
    pub const QUEUE_NOTIFY_OFF: u32 = 0x1e;
    /// Its descriptor table, 8 bytes.
    pub const QUEUE_DESC: u32 = 0x20;
    /// Its available ring, 8 bytes.
    pub const QUEUE_DRIVER: u32 = 0x28;
    /// Its used ring, 8 bytes.
    pub const QUEUE_DEVICE: u32 = 0x30;
    /// Resets it, 2 bytes.
    pub const QUEUE_RESET: u32 = 0x3a;
}

/// Types of structures (virtio 1.3, 4.1.4).
mod structure {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const WINDOW: u8 = 5;
}

/// Where a structure is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its BAR.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Where its capability stands.
    pub capability: u16,
}

/// How the structures are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    Bar,
    Window { capability: u16 },
}

/// The modern face of a device.
pub struct Modern<'m> {
    device: PciDevice<'m>,
    reach: Reach,
    /// Where BARs were when the driver mapped them, and whether each is ports.
    bars: [(u64, bool); 6],
    common: Place,
    notify: Place,
    notify_multiplier: u32,
    isr: Place,
    config: Place,
}

impl<'m> Modern<'m> {
    /// The modern face of `device`, if it has one, with its BARs where they are now.
    pub fn of(device: PciDevice<'m>) -> Option<Self> {
        let place = |wanted| find(device, wanted);
        let notify = place(structure::NOTIFY)?;
        let mut bars = [(0, false); 6];
        for (index, slot) in (0..5).zip(&mut bars) {
            let bar = device.bar(index);
            *slot = (bar.base, bar.is_io);
        }
        Some(Self {
            device,
            reach: Reach::Bar,
            bars,
            common: place(structure::COMMON)?,
            notify,
            notify_multiplier: device.read(notify.capability + 16, 4),
            isr: place(structure::ISR)?,
            config: place(structure::DEVICE)?,
        })
    }

    /// The modern face of `device`, reached through the window in configuration space.
    pub fn through_window(device: PciDevice<'m>) -> Option<Self> {
        let capability = window(device)?;
        let reach = Reach::Window { capability };
        Some(Self {
            reach,
            ..Self::of(device)?
        })
    }

    /// Reads from a structure: at most 4 bytes at once through the window, 8 otherwise.
    fn read_at(&self, place: Place, offset: u32, width: usize) -> u64 {
        let machine = self.device.machine;
        match self.reach {
            Reach::Window { capability } => {
                self.point(capability, place, offset, width);
                self.device.read(capability + 16, width).into()
            }
            Reach::Bar => match self.address(place, offset) {
                (port, true) => machine.port(port as u16, width),
                (address, false) => machine.load(address, width),
            },
        }
    }

    fn write_at(&self, place: Place, offset: u32, width: usize, value: u64) {
        let machine = self.device.machine;
        match self.reach {
            Reach::Window { capability } => {
                self.point(capability, place, offset, width);
                self.device.write(capability + 16, width, value as u32);
            }
            Reach::Bar => match self.address(place, offset) {
                (port, true) => machine.set_port(port as u16, width, value),
                (address, false) => machine.store(address, width, value),
            },
        }
    }

    fn address(&self, place: Place, offset: u32) -> (u64, bool) {
        let (base, is_io) = self.bars[usize::from(place.bar)];
        (base + u64::from(place.offset) + u64::from(offset), is_io)
    }

    fn point(&self, capability: u16, place: Place, offset: u32, width: usize) {
        self.device.write(capability + 4, 1, place.bar.into());
        self.device.write(capability + 8, 4, place.offset + offset);
        self.device.write(capability + 12, 4, width as u32);
    }

    /// Reads a register of the common structure.
    pub fn read(&self, offset: u32, width: usize) -> u64 {
        self.read_at(self.common, offset, width)
    }

    /// Writes a register of the common structure.
    pub fn write(&self, offset: u32, width: usize, value: u64) {
        self.write_at(self.common, offset, width, value);
    }

    /// Writes an address, low half first, as the specification asks.
    pub fn write_address(&self, offset: u32, address: u64) {
        self.write(offset, 4, address & 0xffff_ffff);
        self.write(offset + 4, 4, address >> 32);
    }

    /// Where the structure of doorbells is.
    pub fn doorbells(&self) -> Place {
        self.notify
    }

    /// Writes into the structure of doorbells.
    pub fn ring_at(&self, offset: u32, width: usize, value: u64) {
        self.write_at(self.notify, offset, width, value);
    }

    fn half(&self, select: u32, word: u32, index: u64) -> u64 {
        self.write(select, 4, index);
        self.read(word, 4)
    }
}

/// The first structure of this type, in the order of capabilities.
fn find(device: PciDevice<'_>, wanted: u8) -> Option<Place> {
    let capabilities = device.capabilities(VENDOR);
    let capability = *capabilities
        .iter()
        .find(|at| device.read(**at + 3, 1) == u32::from(wanted))?;
    Some(Place {
        bar: device.read(capability + 4, 1) as u8,
        offset: device.read(capability + 8, 4),
        len: device.read(capability + 12, 4),
        capability,
    })
}

/// Where the capability of the window stands.
pub fn window(device: PciDevice<'_>) -> Option<u16> {
    find(device, structure::WINDOW).map(|place| place.capability)
}

impl Transport for Modern<'_> {
    fn offered(&self) -> u64 {
        let half = |index| self.half(common::DEVICE_FEATURE_SELECT, common::DEVICE_FEATURE, index);
        half(0) | half(1) << 32
    }

    fn accept(&self, features: u64) -> bool {
        for index in 0..2 {
            self.write(common::DRIVER_FEATURE_SELECT, 4, index);
            self.write(common::DRIVER_FEATURE, 4, features >> (32 * index) & 0xffff_ffff);
        }
        self.set_status(self.status() | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    fn status(&self) -> u8 {
        self.read(common::STATUS, 1) as u8
    }

    fn set_status(&self, status: u8) {
        self.write(common::STATUS, 1, status.into());
        if status == 0 {
            wait_for("the end of a reset", || (self.status() == 0).then_some(()));
        }
    }

    fn queue_size(&self, queue: u16) -> u16 {
        if u64::from(queue) >= self.read(common::NUM_QUEUES, 2) {
            return 0;
        }
        self.write(common::QUEUE_SELECT, 2, queue.into());
        self.read(common::QUEUE_SIZE, 2) as u16
    }

    fn set_up_queue(&self, queue: u16, ring: &QueueConfig, vector: Option<u16>) -> bool {
        self.write(common::QUEUE_SELECT, 2, queue.into());
        self.write(common::QUEUE_SIZE, 2, ring.size.into());
        self.write_address(common::QUEUE_DESC, ring.descriptors);
        self.write_address(common::QUEUE_DRIVER, ring.available);
        self.write_address(common::QUEUE_DEVICE, ring.used);
        let mut taken = true;
        if let Some(vector) = vector {
            self.write(common::QUEUE_VECTOR, 2, vector.into());
            taken = self.read(common::QUEUE_VECTOR, 2) != u64::from(NO_VECTOR);
        }
        self.write(common::QUEUE_ENABLE, 2, 1);
        taken
    }

    fn places_parts(&self) -> bool {
        true
    }

    fn set_config_vector(&self, vector: u16) -> bool {
        self.write(common::CONFIG_VECTOR, 2, vector.into());
        self.read(common::CONFIG_VECTOR, 2) != u64::from(NO_VECTOR)
    }

    fn kick(&self, queue: u16) {
        let offset = self.notify_multiplier * u32::from(queue);
        self.ring_at(offset, 2, queue.into());
    }

    fn isr(&self) -> u8 {
        self.read_at(self.isr, 0, 1) as u8
    }

    fn config(&self, offset: u32, width: usize) -> u64 {
        self.read_at(self.config, offset, width)
    }

    fn set_config(&self, offset: u32, width: usize, value: u64) {
        self.write_at(self.config, offset, width, value);
    }
}
