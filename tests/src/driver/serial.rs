//! What a driver says and hears on a bus of consoles and ports (virtio 1.3, 5.3.6).

use std::collections::BTreeMap;

use devices::virtio::console::SerialControl;
use devices::virtio::info::Control;
use devices::virtio::virtq::testing::{Buffer, UsedEntry};

use super::{Driver, Machine, Way, wait_for};

/// Events of messages (include/uapi/linux/virtio_console.h).
pub mod event {
    /// The driver is there.
    pub const DEVICE_READY: u16 = 0;
    /// There is a port.
    pub const PORT_ADD: u16 = 1;
    /// There is one no more.
    pub const PORT_REMOVE: u16 = 2;
    /// The driver is ready for a port.
    pub const PORT_READY: u16 = 3;
    /// It is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// It has this size.
    pub const RESIZE: u16 = 5;
    /// The other side has opened or closed it.
    pub const PORT_OPEN: u16 = 6;
    /// It has this name.
    pub const PORT_NAME: u16 = 7;
}

/// Feature bits.
pub mod feature {
    /// Columns and rows.
    pub const SIZE: u64 = 1 << 0;
    /// Several ports.
    pub const MULTIPORT: u64 = 1 << 1;
    /// Emergency output.
    pub const EMERG_WRITE: u64 = 1 << 2;
    /// Event indices, of the ring.
    pub const EVENT_IDX: u64 = 1 << 29;
}

/// The queue of messages for the driver.
pub const TO_DRIVER: u16 = 2;
/// The queue of messages of the driver.
pub const FROM_DRIVER: u16 = 3;

/// Bytes of a buffer for a message.
const MESSAGE_ROOM: u32 = 0x100;
/// Bytes of a buffer for input: a page, as Linux has it.
const INPUT_ROOM: u32 = 0x1000;

/// The queue of a port's input.
pub fn input(port: u32) -> u16 {
    if port == 0 { 0 } else { 2 * port as u16 + 2 }
}

/// The queue of a port's output.
pub fn output(port: u32) -> u16 {
    input(port) + 1
}

/// A message for the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// About which port.
    pub port: u32,
    /// One of [`event`].
    pub event: u16,
    /// Usually 0 or 1.
    pub value: u16,
    /// What follows.
    pub payload: Vec<u8>,
}

impl Message {
    /// One that is all header.
    pub fn new(port: u32, event: u16, value: u16) -> Self {
        Self {
            port,
            event,
            value,
            payload: Vec::new(),
        }
    }
}

/// A driver of virtio-serial, and where its buffers are.
pub struct Serial<'m> {
    /// The driver underneath.
    pub driver: Driver<'m>,
    next: u64,
    /// Buffers that the device has, by queue and head.
    posted: BTreeMap<(u16, u16), (u64, u32)>,
}

impl<'m> Serial<'m> {
    /// A driver for the first device of `machine`, brought up with what it offers, event indices among it. It has said
    /// nothing yet, and given nothing but buffers for messages.
    ///
    /// # Panics
    /// The device does not come up.
    pub fn new(machine: &'m Machine, way: Way) -> Self {
        Self::with(
            machine,
            way,
            feature::SIZE | feature::MULTIPORT | feature::EMERG_WRITE | feature::EVENT_IDX,
        )
    }

    /// The same, with those of its own features and event indices that are in `understood`.
    ///
    /// # Panics
    /// The device does not come up.
    pub fn with(machine: &'m Machine, way: Way, understood: u64) -> Self {
        let mut serial = Self {
            driver: Driver::bind(machine, machine.devices()[0], way),
            next: 0,
            posted: BTreeMap::new(),
        };
        serial.start(understood);
        serial
    }

    /// Resets the device and brings it up again.
    ///
    /// # Panics
    /// The device does not come up.
    pub fn start(&mut self, understood: u64) {
        let rings = 1 << 32 | 1 << 28;
        self.driver.start_with(understood | rings);
        // What is said lies in front of everything else.
        self.next = self.driver.data() + 0x1000;
        self.posted.clear();
        if self.driver.features & feature::MULTIPORT != 0 {
            for _ in 0..16 {
                let at = self.allocate(MESSAGE_ROOM);
                self.give(TO_DRIVER, at, MESSAGE_ROOM);
            }
            self.driver.kick(TO_DRIVER);
        }
    }

    /// What management can do with the device.
    ///
    /// # Panics
    /// It is no such device.
    pub fn control(&self) -> SerialControl {
        match self.driver.machine().control(self.driver.device.address) {
            Control::Serial(control) => control,
            _ => panic!("no virtio-serial"),
        }
    }

    /// Room in RAM.
    pub fn allocate(&mut self, len: u32) -> u64 {
        let at = self.next;
        self.next += u64::from(len);
        at
    }

    /// Posts a buffer that the device is to fill.
    pub fn give(&mut self, queue: u16, at: u64, len: u32) {
        let head = self.driver.post(queue, &[Buffer::writable(at, len)]);
        self.posted.insert((queue, head), (at, len));
    }

    fn take(&mut self, queue: u16, used: UsedEntry) -> (u64, u32, Vec<u8>) {
        let key = (queue, used.head as u16);
        let (at, len) = self.posted.remove(&key).expect("a buffer that was posted");
        assert!(used.len <= len, "more than there was room for");
        (at, len, self.driver.machine().bytes(at, used.len as usize))
    }

    /// A message, if there is one; its buffer goes back to the device.
    pub fn message(&mut self) -> Option<Message> {
        let used = self.driver.rings[usize::from(TO_DRIVER)].next_used()?;
        let (at, len, bytes) = self.take(TO_DRIVER, used);
        self.give(TO_DRIVER, at, len);
        self.driver.kick(TO_DRIVER);
        assert!(bytes.len() >= 8, "a message of {} bytes", bytes.len());
        Some(Message {
            port: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            event: u16::from_le_bytes([bytes[4], bytes[5]]),
            value: u16::from_le_bytes([bytes[6], bytes[7]]),
            payload: bytes[8..].to_vec(),
        })
    }

    /// The next message.
    ///
    /// # Panics
    /// None comes.
    pub fn next_message(&mut self) -> Message {
        wait_for("a message", || self.message())
    }

    /// The next messages.
    ///
    /// # Panics
    /// Fewer come.
    pub fn messages(&mut self, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.next_message()).collect()
    }

    /// Says something to the device, and waits until it has heard.
    ///
    /// # Panics
    /// It does not listen.
    pub fn tell(&mut self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.tell_bytes(&bytes);
    }

    /// Says something that may be no message.
    ///
    /// # Panics
    /// The device does not listen.
    pub fn tell_bytes(&mut self, bytes: &[u8]) {
        let at = self.driver.data();
        self.driver.machine().set_bytes(at, bytes);
        let used = self
            .driver
            .request(FROM_DRIVER, &[Buffer::readable(at, bytes.len() as u32)]);
        assert_eq!(used.len, 0);
    }

    /// Says that the driver is there, and that each port that is added is ready. Returns everything that the device says
    /// about `ports` ports, in order, without the additions.
    ///
    /// # Panics
    /// The device is silent.
    pub fn shake_hands(&mut self, ports: &[(u32, usize)]) -> Vec<Message> {
        self.tell(0, event::DEVICE_READY, 1);
        let added = self.messages(ports.len());
        let expected: Vec<_> = ports
            .iter()
            .map(|(port, _)| Message::new(*port, event::PORT_ADD, 1))
            .collect();
        assert_eq!(added, expected);
        let mut heard = Vec::new();
        for (port, messages) in ports {
            self.tell(*port, event::PORT_READY, 1);
            heard.extend(self.messages(*messages));
        }
        heard
    }

    /// Opens a port, with `buffers` pages for what comes.
    ///
    /// # Panics
    /// The device does not listen.
    pub fn open(&mut self, port: u32, buffers: usize) {
        self.give_room(port, buffers);
        self.tell(port, event::PORT_OPEN, 1);
    }

    /// Gives a port pages for input.
    pub fn give_room(&mut self, port: u32, buffers: usize) {
        for _ in 0..buffers {
            let at = self.allocate(INPUT_ROOM);
            self.give(input(port), at, INPUT_ROOM);
        }
        self.driver.kick(input(port));
    }

    /// What has come in at a port; the buffers go back to the device.
    pub fn received(&mut self, port: u32) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(used) = self.driver.rings[usize::from(input(port))].next_used() {
            let (at, len, bytes) = self.take(input(port), used);
            all.extend(bytes);
            self.give(input(port), at, len);
        }
        if !all.is_empty() {
            self.driver.kick(input(port));
        }
        all
    }

    /// So many bytes from a port.
    ///
    /// # Panics
    /// Fewer come, or more.
    pub fn receive(&mut self, port: u32, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        wait_for("input", || {
            all.extend(self.received(port));
            (all.len() >= len).then_some(())
        });
        assert_eq!(all.len(), len, "more than was said");
        all
    }

    /// Writes to a port without waiting; returns the head of the chain.
    ///
    /// # Panics
    /// The ring is full.
    pub fn write(&mut self, port: u32, at: u64, bytes: &[u8]) -> u16 {
        self.driver.machine().set_bytes(at, bytes);
        let head = self
            .driver
            .post(output(port), &[Buffer::readable(at, bytes.len() as u32)]);
        self.driver.kick(output(port));
        head
    }

    /// Writes to a port, and waits until it has gone.
    ///
    /// # Panics
    /// It does not go.
    pub fn send(&mut self, port: u32, bytes: &[u8]) {
        let at = self.driver.data() + 0x800;
        assert!(bytes.len() <= 0x800);
        let head = self.write(port, at, bytes);
        assert_eq!(self.driver.complete(output(port)).head, u32::from(head));
    }

    /// Whether a chain of output has come back.
    pub fn sent(&mut self, port: u32) -> Option<UsedEntry> {
        self.driver.rings[usize::from(output(port))].next_used()
    }
}
