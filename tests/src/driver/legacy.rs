//! The legacy driver: ports of BAR 0, as the driver of Linux 2.6.25 to 3.x has them (virtio 0.9.5; Linux,
//! include/uapi/linux/virtio_pci.h).

use std::cell::Cell;

use devices::virtio::virtq::{NO_VECTOR, QueueConfig};

use super::{PciDevice, Transport};

/// Offsets in BAR 0.
pub mod port {
    /// Offered features, 4 bytes.
    pub const HOST_FEATURES: u16 = 0x00;
    /// Accepted features, 4 bytes.
    pub const GUEST_FEATURES: u16 = 0x04;
    /// Page of the selected queue, 4 bytes.
    pub const QUEUE_PFN: u16 = 0x08;
    /// Size of the selected queue, 2 bytes.
    pub const QUEUE_NUM: u16 = 0x0c;
    /// Which queue is selected, 2 bytes.
    pub const QUEUE_SEL: u16 = 0x0e;
    /// A kick, 2 bytes.
    pub const QUEUE_NOTIFY: u16 = 0x10;
    /// Device status, 1 byte.
    pub const STATUS: u16 = 0x12;
    /// Interrupt status, 1 byte.
    pub const ISR: u16 = 0x13;
    /// Vector of configuration changes, 2 bytes, while MSI-X is on.
    pub const CONFIG_VECTOR: u16 = 0x14;
    /// Vector of the selected queue, 2 bytes, while MSI-X is on.
    pub const QUEUE_VECTOR: u16 = 0x16;
    /// Device configuration, while MSI-X is off.
    pub const CONFIG: u16 = 0x14;
    /// Device configuration, while MSI-X is on.
    pub const CONFIG_WITH_MSIX: u16 = 0x18;
}

/// The legacy face of a device.
pub struct Legacy<'m> {
    device: PciDevice<'m>,
    base: u16,
    msix: Cell<bool>,
}

impl<'m> Legacy<'m> {
    /// The legacy face of `device`, if it has one, with its BAR where it is now.
    pub fn of(device: PciDevice<'m>) -> Option<Self> {
        let bar = device.bar(0);
        bar.is_io.then_some(Self {
            device,
            base: bar.base as u16,
            msix: Cell::new(false),
        })
    }

    /// MSI-X is on, which moves device configuration.
    pub fn with_msix(self, on: bool) -> Self {
        self.msix.set(on);
        self
    }

    /// Reads a register.
    pub fn read(&self, offset: u16, width: usize) -> u64 {
        self.device.machine.port(self.base.wrapping_add(offset), width)
    }

    /// Writes a register.
    pub fn write(&self, offset: u16, width: usize, value: u64) {
        self.device
            .machine
            .set_port(self.base.wrapping_add(offset), width, value);
    }

    fn config_base(&self) -> u16 {
        if self.msix.get() {
            port::CONFIG_WITH_MSIX
        } else {
            port::CONFIG
        }
    }
}

impl Transport for Legacy<'_> {
    fn offered(&self) -> u64 {
        self.read(port::HOST_FEATURES, 4)
    }

    fn accept(&self, features: u64) -> bool {
        self.write(port::GUEST_FEATURES, 4, features);
        true
    }

    fn status(&self) -> u8 {
        self.read(port::STATUS, 1) as u8
    }

    fn set_status(&self, status: u8) {
        self.write(port::STATUS, 1, status.into());
    }

    fn queue_size(&self, queue: u16) -> u16 {
        self.write(port::QUEUE_SEL, 2, queue.into());
        self.read(port::QUEUE_NUM, 2) as u16
    }

    fn set_up_queue(&self, queue: u16, ring: &QueueConfig, vector: Option<u16>) -> bool {
        self.write(port::QUEUE_SEL, 2, queue.into());
        self.write(port::QUEUE_PFN, 4, ring.descriptors >> 12);
        let Some(vector) = vector else { return true };
        self.write(port::QUEUE_VECTOR, 2, vector.into());
        self.read(port::QUEUE_VECTOR, 2) != u64::from(NO_VECTOR)
    }

    fn places_parts(&self) -> bool {
        false
    }

    fn set_config_vector(&self, vector: u16) -> bool {
        self.write(port::CONFIG_VECTOR, 2, vector.into());
        self.read(port::CONFIG_VECTOR, 2) != u64::from(NO_VECTOR)
    }

    fn kick(&self, queue: u16) {
        self.write(port::QUEUE_NOTIFY, 2, queue.into());
    }

    fn isr(&self) -> u8 {
        self.read(port::ISR, 1) as u8
    }

    fn config(&self, offset: u32, width: usize) -> u64 {
        self.read(self.config_base() + offset as u16, width)
    }

    fn set_config(&self, offset: u32, width: usize, value: u64) {
        self.write(self.config_base() + offset as u16, width, value);
    }
}
