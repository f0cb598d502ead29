//! A virtio driver: what it does whatever the device and the way to it.

use devices::virtio::transport::status;
use devices::virtio::virtq::testing::{Buffer, DriverRing, UsedEntry};
use devices::virtio::virtq::{LEGACY_PAGE_SIZE, QueueConfig};
use pci::Address;
use pci::config_space::command;

use super::bus::MSIX;
use super::legacy::Legacy;
use super::modern::Modern;
use super::{Machine, PciDevice, Transport, wait_for};

/// How a driver reaches its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Ports of BAR 0.
    Legacy,
    /// Structures in BAR 4.
    Modern,
    /// The same through the window in configuration space.
    Window,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Modern, Self::Window];

    /// Whether drivers that come this way accept VERSION_1.
    pub fn is_modern(self) -> bool {
        self != Self::Legacy
    }
}

/// Features that a driver leaves alone unless told otherwise: NOTIFY_ON_EMPTY and EVENT_IDX, so that each completion
/// interrupts, and bit 30, which nobody may accept.
pub const LEFT_ALONE: u64 = 1 << 24 | 1 << 29 | 1 << 30;

/// Bytes of RAM for each device.
const AREA: u64 = 1 << 20;
/// The rings come first, each with so many bytes: enough for 1024 descriptors.
const RING_STRIDE: u64 = 0x8000;
/// Of a device with many queues each has so many: enough for 128 descriptors.
const SMALL_RING_STRIDE: u64 = 0x3000;
/// So many are many.
const MANY_QUEUES: u64 = 9;
/// Then data.
const DATA: u64 = 0x4_0000;

/// What a message of MSI-X goes to: the local APIC of CPU 0.
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// A driver and its device.
pub struct Driver<'m> {
    /// The function.
    pub device: PciDevice<'m>,
    /// How it is reached.
    pub way: Way,
    /// Its registers.
    pub transport: Box<dyn Transport + 'm>,
    /// The queues, once it is up.
    pub rings: Vec<DriverRing>,
    /// Accepted features, once it is up.
    pub features: u64,
    /// Where its rings and data are.
    area: u64,
    /// How many queues it has, once they are set up.
    queues: u64,
    msix_vectors: u16,
}

impl<'m> Driver<'m> {
    /// A driver for the function at `address`, which is switched on and otherwise left as it is.
    ///
    /// # Panics
    /// The function has no such face.
    pub fn bind(machine: &'m Machine, address: Address, way: Way) -> Self {
        let device = PciDevice { machine, address };
        device.enable();
        Self {
            device,
            way,
            transport: transport(device, way, false),
            rings: Vec::new(),
            features: 0,
            area: AREA * u64::from(address.device()),
            queues: 0,
            msix_vectors: 0,
        }
    }

    /// The first device of `machine`, brought up.
    ///
    /// # Panics
    /// As [`bind`](Self::bind) and [`start`](Self::start).
    pub fn of_first(machine: &'m Machine, way: Way) -> Self {
        let mut driver = Self::bind(machine, machine.devices()[0], way);
        driver.start();
        driver
    }

    /// Goes on with `machine`, which has taken over what this driver's had.
    pub fn move_to<'n>(self, machine: &'n Machine) -> Driver<'n> {
        let device = PciDevice {
            machine,
            address: self.device.address,
        };
        Driver {
            device,
            way: self.way,
            transport: transport(device, self.way, self.msix_vectors > 0),
            rings: self.rings,
            features: self.features,
            area: self.area,
            queues: self.queues,
            msix_vectors: self.msix_vectors,
        }
    }

    /// The machine.
    pub fn machine(&self) -> &'m Machine {
        self.device.machine
    }

    /// Where its data is: 768 KiB, or less behind many queues.
    pub fn data(&self) -> u64 {
        self.area + DATA.max(self.ring_stride() * self.queues)
    }

    /// Where queue `queue` is.
    pub fn ring_base(&self, queue: u16) -> u64 {
        self.area + self.ring_stride() * u64::from(queue)
    }

    fn ring_stride(&self) -> u64 {
        if self.queues < MANY_QUEUES {
            RING_STRIDE
        } else {
            SMALL_RING_STRIDE
        }
    }

    /// Finds the BARs anew.
    pub fn remap(&mut self) {
        self.transport = transport(self.device, self.way, self.msix_vectors > 0);
    }

    /// Uses MSI-X from the next start on: a vector for configuration changes, one for each queue as far as they go.
    ///
    /// # Panics
    /// The function has no MSI-X.
    pub fn use_msix(&mut self) {
        let machine = self.machine();
        let capability = *self.device.capabilities(MSIX).first().expect("a capability of MSI-X");
        let control = self.device.read(capability + 2, 2);
        self.msix_vectors = (control & 0x7ff) as u16 + 1;
        let table = self.device.read(capability + 4, 4);
        let table = self.device.bar((table & 7) as u8).base + u64::from(table & !7);
        for vector in 0..u64::from(self.msix_vectors) {
            let entry = table + 16 * vector;
            machine.store(entry, 4, MSI_ADDRESS.into());
            machine.store(entry + 4, 4, 0);
            machine.store(entry + 8, 4, 0x40 + vector);
            machine.store(entry + 12, 4, 0);
        }
        self.device.write(capability + 2, 2, control | 0x8000);
        self.device.command(command::INTX_DISABLE, 0);
        self.remap();
    }

    /// Switches MSI-X off again.
    pub fn use_line(&mut self) {
        if let Some(capability) = self.device.capabilities(MSIX).first() {
            let control = self.device.read(capability + 2, 2);
            self.device.write(capability + 2, 2, control & 0x7fff);
        }
        self.device.command(0, command::INTX_DISABLE);
        self.msix_vectors = 0;
        self.remap();
    }

    /// Resets the device and brings it up, with all features that are understood.
    ///
    /// # Panics
    /// The device does not agree.
    pub fn start(&mut self) {
        self.start_with(!LEFT_ALONE);
    }

    /// Resets the device and brings it up, with those of the offered features that are in `understood`.
    ///
    /// # Panics
    /// The device does not agree.
    pub fn start_with(&mut self, understood: u64) {
        self.negotiate(understood);
        self.set_up_queues();
        self.set_status(status::DRIVER_OK);
    }

    /// Resets the device and agrees on features.
    ///
    /// # Panics
    /// The device does not agree.
    pub fn negotiate(&mut self, understood: u64) {
        self.transport.set_status(0);
        self.rings.clear();
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::DRIVER);
        self.features = self.transport.offered() & understood;
        assert!(
            self.transport.accept(self.features),
            "the device does not accept what it offered: {:#x}",
            self.features
        );
    }

    /// Makes a fresh ring for each queue and tells the device.
    ///
    /// # Panics
    /// The device does not take a vector.
    pub fn set_up_queues(&mut self) {
        self.rings.clear();
        if self.msix_vectors > 0 {
            assert!(self.transport.set_config_vector(0), "no vector for changes");
        }
        let sizes: Vec<u16> = (0..)
            .map(|queue| self.transport.queue_size(queue))
            .take_while(|size| *size > 0)
            .collect();
        self.queues = sizes.len() as u64;
        for (queue, size) in (0..).zip(sizes) {
            let ring = self.make_ring(queue, size);
            let vector = self.queue_vector(queue);
            assert!(
                self.transport.set_up_queue(queue, ring.config(), vector),
                "no vector for queue {queue}"
            );
            self.rings.push(ring);
        }
    }

    /// A fresh ring for a queue, of which the device does not know yet.
    pub fn make_ring(&self, queue: u16, size: u16) -> DriverRing {
        let (memory, base) = (self.machine().memory().clone(), self.ring_base(queue));
        if self.transport.places_parts() {
            DriverRing::modern(memory, base, size)
        } else {
            DriverRing::legacy(memory, (base / LEGACY_PAGE_SIZE) as u32, size)
        }
    }

    /// The vector of a queue, if MSI-X is used: each its own, the last one shared by those that are left.
    pub fn queue_vector(&self, queue: u16) -> Option<u16> {
        (self.msix_vectors > 0).then(|| (queue + 1).min(self.msix_vectors - 1))
    }

    /// Sets bits of the device status.
    pub fn set_status(&self, bits: u8) {
        self.transport.set_status(self.transport.status() | bits);
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.transport.set_status(0);
        self.rings.clear();
    }

    /// Sets a queue up at the addresses of `config`, whatever they are, instead of a sensible place.
    pub fn set_up_queue_at(&self, queue: u16, config: &QueueConfig) {
        self.transport.set_up_queue(queue, config, None);
    }

    /// Makes a request available, without a kick.
    ///
    /// # Panics
    /// The ring is full.
    pub fn post(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let ring = &mut self.rings[usize::from(queue)];
        ring.post(buffers).expect("free descriptors")
    }

    /// Kicks a queue.
    pub fn kick(&self, queue: u16) {
        self.transport.kick(queue);
    }

    /// Waits for the next request that comes back.
    ///
    /// # Panics
    /// None comes back.
    pub fn complete(&mut self, queue: u16) -> UsedEntry {
        let ring = &mut self.rings[usize::from(queue)];
        wait_for("a used entry", || ring.next_used())
    }

    /// Posts, kicks and waits.
    ///
    /// # Panics
    /// It does not come back, or another does.
    pub fn request(&mut self, queue: u16, buffers: &[Buffer]) -> UsedEntry {
        let head = self.post(queue, buffers);
        self.kick(queue);
        let used = self.complete(queue);
        assert_eq!(used.head, u32::from(head), "another request came back");
        used
    }

    /// The interrupt line of the function as the firmware routed it.
    pub fn line(&self) -> super::Line {
        self.machine().line(self.device.interrupt_line())
    }

    /// Waits until its line is high.
    ///
    /// # Panics
    /// It stays low.
    pub fn wait_for_line(&self) {
        wait_for("the interrupt line", || self.line().high.then_some(()));
    }

    /// Waits for a message of `vector`; forgets those that came with it.
    ///
    /// # Panics
    /// None comes.
    pub fn wait_for_message(&self, vector: u16) {
        let address = self.device.address;
        wait_for("a message", || {
            self.machine().messages(address).contains(&vector).then_some(())
        });
    }

    /// Waits until the device says that it needs a reset.
    ///
    /// # Panics
    /// It never says so.
    pub fn wait_until_broken(&self) {
        wait_for("DEVICE_NEEDS_RESET", || {
            (self.transport.status() & status::NEEDS_RESET != 0).then_some(())
        });
    }
}

fn transport<'m>(device: PciDevice<'m>, way: Way, msix: bool) -> Box<dyn Transport + 'm> {
    match way {
        Way::Legacy => Box::new(Legacy::of(device).expect("a legacy face").with_msix(msix)),
        Way::Modern => Box::new(Modern::of(device).expect("a modern face")),
        Way::Window => Box::new(Modern::through_window(device).expect("a window")),
    }
}
