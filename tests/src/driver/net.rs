//! What a driver does with a network card (virtio 1.3, 5.1.6), and the far end of its cable.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use devices::virtio::info::Control;
use devices::virtio::net::NetControl;
use devices::virtio::virtq::testing::Buffer;

use super::{Driver, LEFT_ALONE, Machine, PATIENCE, Way, wait_for};

/// What management can ask of the card `net0`.
///
/// # Panics
/// There is none.
pub fn control(machine: &Machine) -> NetControl {
    match machine.inventory().control("net0") {
        Some(Control::Net(control)) => control,
        _ => panic!("a network card"),
    }
}

/// The receive queue of the first pair.
pub const RX: u16 = 0;
/// The transmit queue of the first pair.
pub const TX: u16 = 1;

/// VIRTIO_NET_F_MRG_RXBUF.
pub const MRG_RXBUF: u32 = 15;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u32 = 32;

/// Bytes of RAM for each receive buffer.
pub const SLOT: u64 = 0x1000;
/// Where frames to be sent are, from the data of the driver on.
const OUTGOING: u64 = 0x8_0000;
/// Where commands are.
const COMMAND: u64 = 0x7_0000;
/// The answer to a command before the device writes it.
const UNANSWERED: u8 = 0xaa;

/// A driver of a network card.
pub struct Card<'m> {
    /// The virtio driver.
    pub driver: Driver<'m>,
    /// Receive buffers with the device, by their heads.
    posted: HashMap<u32, (u64, u32)>,
}

impl<'m> Card<'m> {
    /// A driver that uses all that the first device of `machine` offers.
    pub fn of_first(machine: &'m Machine, way: Way) -> Self {
        Self::on(Driver::of_first(machine, way))
    }

    /// A driver that uses all that the first device of `machine` offers but feature `bit`.
    pub fn without(machine: &'m Machine, way: Way, bit: u32) -> Self {
        let mut driver = Driver::bind(machine, machine.devices()[0], way);
        driver.start_with(!(LEFT_ALONE | 1 << bit));
        Self::on(driver)
    }

    /// A driver that is up.
    pub fn on(driver: Driver<'m>) -> Self {
        Self {
            driver,
            posted: HashMap::new(),
        }
    }

    /// Whether a feature was accepted.
    pub fn has(&self, bit: u32) -> bool {
        self.driver.features & 1 << bit != 0
    }

    /// Bytes of the header in front of each frame.
    pub fn header(&self) -> usize {
        if self.has(VERSION_1) || self.has(MRG_RXBUF) {
            12
        } else {
            10
        }
    }

    /// Posts a receive buffer of `len` bytes in slot `slot`, and kicks.
    pub fn post(&mut self, slot: u64, len: u32) {
        let at = self.driver.data() + SLOT * slot;
        self.driver.machine().set_bytes(at, &vec![0xee; len as usize]);
        let head = self.driver.post(RX, &[Buffer::writable(at, len)]);
        self.posted.insert(head.into(), (at, len));
        self.driver.kick(RX);
    }

    /// Takes a filled buffer: what the device wrote, header and all.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let used = self.driver.rings[usize::from(RX)].next_used()?;
        let (at, len) = self.posted.remove(&used.head).expect("a buffer that was posted");
        assert!(used.len <= len, "{} of {len} bytes", used.len);
        Some(self.driver.machine().bytes(at, used.len as usize))
    }

    /// Waits for a filled buffer.
    pub fn wait(&mut self) -> Vec<u8> {
        wait_for("a receive buffer", || self.take())
    }

    /// Waits for a frame, from as many buffers as its header says.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut first = self.wait();
        let payload = first.split_off(self.header());
        let buffers = match first[..] {
            [.., low, high] if self.header() == 12 => u16::from_le_bytes([low, high]),
            _ => 1,
        };
        assert!(buffers >= 1, "a frame in no buffer");
        (1..buffers).fold(payload, |frame, _| [frame, self.wait()].concat())
    }

    /// Posts a frame, header and frame in one buffer each, and kicks. Returns the head.
    pub fn post_frame(&mut self, frame: &[u8]) -> u16 {
        let at = self.driver.data() + OUTGOING;
        let header = self.header();
        let machine = self.driver.machine();
        machine.set_bytes(at, &vec![0; header]);
        machine.set_bytes(at + 0x100, frame);
        let buffers = [
            Buffer::readable(at, header as u32),
            Buffer::readable(at + 0x100, frame.len() as u32),
        ];
        let head = self.driver.post(TX, &buffers);
        self.driver.kick(TX);
        head
    }

    /// Sends a frame and waits until the device has taken it.
    pub fn send(&mut self, frame: &[u8]) {
        let head = self.post_frame(frame);
        let used = self.driver.complete(TX);
        assert_eq!((used.head, used.len), (head.into(), 0));
    }

    /// Index of the control queue: the last.
    pub fn control(&self) -> u16 {
        self.driver.rings.len() as u16 - 1
    }

    /// Gives a command; returns the answer.
    pub fn command(&mut self, class: u32, number: u32, data: &[u8]) -> u8 {
        let at = self.driver.data() + COMMAND;
        let machine = self.driver.machine();
        machine.set_bytes(at, &[class as u8, number as u8]);
        machine.set_bytes(at + 0x10, data);
        machine.set_bytes(at + 0xf000, &[UNANSWERED]);
        let mut buffers = vec![Buffer::readable(at, 2)];
        if !data.is_empty() {
            buffers.push(Buffer::readable(at + 0x10, data.len() as u32));
        }
        buffers.push(Buffer::writable(at + 0xf000, 1));
        let used = self.driver.request(self.control(), &buffers);
        assert_eq!(used.len, 1, "an answer is one byte");
        self.driver.machine().bytes(at + 0xf000, 1)[0]
    }
}

/// The far end of a stream: frames with their length in front.
pub struct Cable {
    far: UnixStream,
    /// The device's end, as long as the device may take it over.
    near: UnixStream,
}

impl Cable {
    /// A new one.
    ///
    /// # Errors
    /// The host has no sockets.
    pub fn new() -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        far.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { far, near })
    }

    /// What the device's options say of it.
    pub fn options(&self) -> String {
        format!("socket=fd={}", self.near.as_raw_fd())
    }

    /// A cable over a stream that is connected already.
    ///
    /// # Errors
    /// The host has no sockets.
    pub fn over(far: UnixStream) -> io::Result<Self> {
        far.set_read_timeout(Some(PATIENCE))?;
        let near = far.try_clone()?;
        Ok(Self { far, near })
    }

    /// Sends a frame to the device.
    pub fn send(&mut self, frame: &[u8]) {
        let prefix = (frame.len() as u32).to_be_bytes();
        self.send_raw(&[&prefix[..], frame].concat());
    }

    /// Sends bytes, whatever they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.far.write_all(bytes).expect("the device reads");
    }

    /// Waits for a frame from the device.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.far.read_exact(&mut prefix).expect("a length");
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.far.read_exact(&mut frame).expect("a frame");
        frame
    }

    /// Whether the device has read everything.
    pub fn is_empty(&self) -> bool {
        devices::sys::fd::unread_by_far_end(&self.far).is_ok_and(|bytes| bytes == 0)
    }

    /// Waits for the device to hang up; says whether it did, without a further frame.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.far.read(&mut [0]), Ok(0) | Err(_))
    }
}
