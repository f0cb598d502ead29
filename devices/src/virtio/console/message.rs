//! What driver and device tell each other about ports, and how much of it may wait (virtio 1.3, 5.3.6.2).

#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Bytes of every message (`struct virtio_console_control`).
pub const HEADER_BYTES: usize = 8;

/// What a message is about (include/uapi/linux/virtio_console.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Event {
    /// The driver is there (1), or is not (0).
    DeviceReady = 0,
    /// There is a new port.
    PortAdd = 1,
    /// A port has gone.
    PortRemove = 2,
    /// The driver has a port ready for use (1), or failed (0).
    PortReady = 3,
    /// A port is to be a console.
    ConsolePort = 4,
    /// A console has another size.
    Resize = 5,
    /// One side has opened (1) or closed (0) a port.
    PortOpen = 6,
    /// What a port is called.
    PortName = 7,
}

impl Event {
    fn from_number(number: u16) -> Option<Self> {
        const ALL: [Event; 8] = [
            Event::DeviceReady,
            Event::PortAdd,
            Event::PortRemove,
            Event::PortReady,
            Event::ConsolePort,
            Event::Resize,
            Event::PortOpen,
            Event::PortName,
        ];
        ALL.get(usize::from(number)).copied()
    }
}

/// Columns and rows of a console.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A message from the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FromDriver {
    /// Which port.
    pub port: u32,
    /// What about it.
    pub event: Event,
    /// Usually 1 for yes, 0 for no.
    pub value: u16,
}

impl FromDriver {
    /// Reads a message; `None` for an event that there is not.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
        Some(Self {
            port: u32::from_le_bytes([p0, p1, p2, p3]),
            event: Event::from_number(u16::from_le_bytes([e0, e1]))?,
            value: u16::from_le_bytes([v0, v1]),
        })
    }
}

/// A message for the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToDriver {
    /// Which port.
    pub port: u32,
    /// What about it.
    pub event: Event,
    /// Usually 1 for yes, 0 for no.
    pub value: u16,
    /// What comes behind the header.
    pub payload: Vec<u8>,
}

impl ToDriver {
    /// A message that is all header.
    pub fn new(port: u32, event: Event, value: u16) -> Self {
        Self {
            port,
            event,
            value,
            payload: Vec::new(),
        }
    }

    /// What the port is called, with the zero byte at the end that QEMU sends.
    pub fn name(port: u32, name: &str) -> Self {
        let mut message = Self::new(port, Event::PortName, 1);
        message.payload.extend(name.bytes().chain([0]));
        message
    }

    /// How large the console is: columns, then rows (virtio 1.3, 5.3.6.2). Linux read them the other way round until 2025, when
    /// 6.15 and the stable releases of that spring, among them Debian 12's 6.1, began to follow the specification
    /// (drivers/char/virtio_console.c, `handle_control_message`). A device cannot tell which of them drives it.
    pub fn resize(port: u32, size: Size) -> Self {
        let mut message = Self::new(port, Event::Resize, 0);
        message.payload.extend(size.columns.to_le_bytes());
        message.payload.extend(size.rows.to_le_bytes());
        message
    }

    /// As the driver reads it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        bytes.extend(self.port.to_le_bytes());
        bytes.extend((self.event as u16).to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// Messages that wait for buffers of the driver.
///
/// QEMU loses them (its `send_control_msg`). Here they wait, and still do not grow without bound: what the host says
/// about a port is only the latest, and what the driver asks is not taken while [`Self::is_full`].
#[derive(Default, Debug)]
pub struct Outbox(VecDeque<ToDriver>);

/// Messages above which the driver is not listened to.
const ENOUGH: usize = 256;

impl Outbox {
    /// Whether the driver has to take some before it is listened to.
    pub fn is_full(&self) -> bool {
        self.0.len() >= ENOUGH
    }

    /// The message that is next.
    pub fn first(&self) -> Option<&ToDriver> {
        self.0.front()
    }

    /// Takes it out.
    pub fn remove_first(&mut self) {
        self.0.pop_front();
    }

    /// Nothing waits any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds an answer to what the driver asked.
    pub fn answer(&mut self, message: ToDriver) {
        self.0.push_back(message);
    }

    /// The host's side of a port was opened or closed. An opening that the driver has not seen is not closed before its
    /// eyes, but a closing that it has not seen stays, so that it never takes two far ends for one.
    pub fn host_opened(&mut self, port: u32, open: bool) {
        if !open {
            self.withdraw_last(port, Event::PortOpen, 1);
        }
        let last = self.last(port, Event::PortOpen).map(|message| message.value);
        if last != Some(u16::from(open)) {
            self.answer(ToDriver::new(port, Event::PortOpen, open.into()));
        }
    }

    /// A port has come.
    pub fn added(&mut self, port: u32) {
        self.answer(ToDriver::new(port, Event::PortAdd, 1));
    }

    /// A port has gone: nothing else about it is of interest. One that the driver has not heard of goes without a word.
    pub fn removed(&mut self, port: u32) {
        let unheard_of = self.last(port, Event::PortAdd).is_some();
        // An earlier removal stays.
        self.0
            .retain(|message| message.port != port || message.event == Event::PortRemove);
        if !unheard_of {
            self.answer(ToDriver::new(port, Event::PortRemove, 1));
        }
    }

    /// A console has this size now.
    pub fn resized(&mut self, port: u32, size: Size) {
        self.0
            .retain(|message| message.port != port || message.event != Event::Resize);
        self.answer(ToDriver::resize(port, size));
    }

    fn last(&self, port: u32, event: Event) -> Option<&ToDriver> {
        let mut found = self.0.iter().rev();
        found.find(|message| message.port == port && message.event == event)
    }

    /// Takes the last message about this event back if it says so.
    fn withdraw_last(&mut self, port: u32, event: Event, value: u16) {
        let about = |message: &ToDriver| message.port == port && message.event == event;
        if let Some(index) = self.0.iter().rposition(about)
            && self.0.get(index).is_some_and(|message| message.value == value)
        {
            self.0.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(outbox: &Outbox) -> Vec<(u32, Event, u16)> {
        let brief = |message: &ToDriver| (message.port, message.event, message.value);
        outbox.0.iter().map(brief).collect()
    }

    #[test]
    fn messages_have_the_layout_of_the_header_file() {
        let name = ToDriver::name(0x0102, "ab");
        assert_eq!(name.bytes(), [2, 1, 0, 0, 7, 0, 1, 0, b'a', b'b', 0]);
        let size = Size { columns: 80, rows: 25 };
        assert_eq!(
            ToDriver::resize(1, size).bytes(),
            [1, 0, 0, 0, 5, 0, 0, 0, 80, 0, 25, 0]
        );
        let parsed = FromDriver::parse([9, 0, 0, 0, 6, 0, 1, 0]);
        assert_eq!(
            parsed.map(|m| (m.port, m.event, m.value)),
            Some((9, Event::PortOpen, 1))
        );
        assert_eq!(FromDriver::parse([9, 0, 0, 0, 8, 0, 1, 0]), None);
    }

    #[test]
    fn a_far_end_that_comes_and_goes_leaves_at_most_two_messages() {
        let mut outbox = Outbox::default();
        for _ in 0..1000 {
            outbox.host_opened(1, true);
            outbox.host_opened(1, false);
        }
        assert_eq!(waiting(&outbox), [(1, Event::PortOpen, 0)]);
        outbox.host_opened(1, true);
        assert_eq!(waiting(&outbox), [(1, Event::PortOpen, 0), (1, Event::PortOpen, 1)]);
    }

    #[test]
    fn a_port_that_was_never_announced_goes_without_a_word() {
        let mut outbox = Outbox::default();
        outbox.added(3);
        outbox.host_opened(3, true);
        outbox.removed(3);
        assert_eq!(waiting(&outbox), []);
        for _ in 0..1000 {
            outbox.removed(4);
            outbox.added(4);
        }
        assert_eq!(waiting(&outbox), [(4, Event::PortRemove, 1), (4, Event::PortAdd, 1)]);
    }
}
