//! Configuration space: 256 bytes of which each bit is read-only, writable, or cleared by writing one.
//!
//! What a register *is* (masks, defaults) and what it *holds* are apart: a snapshot carries [`ConfigState`] alone,
//! and restoring it can't touch a read-only bit.

use serde::{Deserialize, Serialize};

use crate::capability::{Capability, CapabilityError};
use crate::intx::Pin;

/// Bytes of a function's configuration space on a conventional bus.
pub const SIZE: usize = 256;

/// Bytes of the predefined header; the rest is the function's own (PCI Local Bus 3.0, section 6.1).
pub const HEADER_SIZE: usize = 0x40;

/// Offsets in the type 0 header (PCI Local Bus 3.0, figure 6-1).
pub mod register {
    /// Vendor id, 2 bytes.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device id, 2 bytes.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command register, 2 bytes.
    pub const COMMAND: u16 = 0x04;
    /// Status register, 2 bytes.
    pub const STATUS: u16 = 0x06;
    /// Revision id, 1 byte, followed by the class code.
    pub const REVISION: u16 = 0x08;
    /// Class code, 3 bytes: programming interface, subclass, base class.
    pub const CLASS: u16 = 0x09;
    /// Cache line size, 1 byte.
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// Header type, 1 byte; bit 7 says that the device has several functions.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// The first of six base address registers of 4 bytes each.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor id, 2 bytes, followed by the subsystem id.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// Offset of the first capability, 1 byte.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 1 byte: a note of the firmware for the driver.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 1 byte: 0 none, 1 to 4 INTA# to INTD#.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register (PCI Local Bus 3.0, table 6-1).
pub mod command {
    /// The function answers in I/O space.
    pub const IO: u16 = 1 << 0;
    /// The function answers in memory space.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may read and write memory by itself.
    pub const MASTER: u16 = 1 << 2;
    /// The function may report system errors.
    pub const SERR: u16 = 1 << 8;
    /// INTx# is not asserted.
    pub const INTX_DISABLE: u16 = 1 << 10;

    /// What a guest can set; the other bits stay 0 (QEMU, hw/pci/pci.c, `pci_init_wmask`).
    pub const WRITABLE: u16 = IO | MEMORY | MASTER | SERR | INTX_DISABLE;
}

/// Bits of the status register (PCI Local Bus 3.0, table 6-2).
pub mod status {
    /// The function wants its INTx# asserted, whether or not Interrupt Disable holds it back.
    pub const INTERRUPT: u16 = 1 << 3;
    /// The register at 0x34 points to a list of capabilities.
    pub const CAPABILITY_LIST: u16 = 1 << 4;
    /// Fast back-to-back transfers.
    pub const FAST_BACK: u16 = 1 << 7;
    /// Medium DEVSEL# timing.
    pub const DEVSEL_MEDIUM: u16 = 1 << 9;

    /// Error bits: writing one clears them (QEMU, hw/pci/pci.c, `pci_init_w1cmask`).
    pub const WRITE_ONE_TO_CLEAR: u16 = 0xf900;
}

/// What a function is: the read-only part of its type 0 header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Who made it.
    pub vendor: u16,
    /// What it is, in the vendor's numbering.
    pub device: u16,
    /// Base class and subclass, as lspci prints them: 0x0200 is an Ethernet controller.
    pub class: u16,
    /// Programming interface, the lowest byte of the class code.
    pub interface: u8,
    /// Revision id.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Status register; the capability bit is set by [`ConfigSpace::with_capabilities`].
    pub status: u16,
    /// The interrupt pin that the function uses.
    pub pin: Option<Pin>,
    /// Whether the device has functions besides number 0.
    pub multi_function: bool,
}

impl Default for Header {
    /// A function without identity on which the subsystem is QEMU's default, 1af4:1100 (QEMU, include/hw/pci/pci.h).
    fn default() -> Self {
        Self {
            vendor: 0xffff,
            device: 0xffff,
            class: 0,
            interface: 0,
            revision: 0,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            status: 0,
            pin: None,
            multi_function: false,
        }
    }
}

/// What a configuration space holds, in a form to save. A function of the same layout takes it back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigState {
    bytes: Vec<u8>,
}

/// The saved configuration space is of another size
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the saved configuration space has {found} bytes, not {SIZE}")]
pub struct ConfigStateError {
    found: usize,
}

/// The configuration space of a function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    defaults: [u8; SIZE],
    writable: [u8; SIZE],
    write_one_to_clear: [u8; SIZE],
}

impl ConfigSpace {
    /// A configuration space with the type 0 header that `header` describes and QEMU's writable bits: the command
    /// register's, cache line size, interrupt line, and everything behind the header that no capability claims.
    pub fn type0(header: &Header) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            defaults: [0; SIZE],
            writable: [0; SIZE],
            write_one_to_clear: [0; SIZE],
        };
        let [subclass, base] = header.class.to_le_bytes();
        space.set_default(register::VENDOR_ID, &header.vendor.to_le_bytes());
        space.set_default(register::DEVICE_ID, &header.device.to_le_bytes());
        space.set_default(register::STATUS, &header.status.to_le_bytes());
        space.set_default(register::REVISION, &[header.revision]);
        space.set_default(register::CLASS, &[header.interface, subclass, base]);
        space.set_default(register::HEADER_TYPE, &[u8::from(header.multi_function) << 7]);
        space.set_default(register::SUBSYSTEM, &header.subsystem_vendor.to_le_bytes());
        space.set_default(register::SUBSYSTEM + 2, &header.subsystem.to_le_bytes());
        space.set_default(register::INTERRUPT_PIN, &[header.pin.map_or(0, |pin| pin as u8)]);

        space.set_writable(register::COMMAND, &command::WRITABLE.to_le_bytes());
        space.set_writable(register::CACHE_LINE_SIZE, &[0xff]);
        space.set_writable(register::INTERRUPT_LINE, &[0xff]);
        space.set_writable(HEADER_SIZE as u16, &[0xff; SIZE - HEADER_SIZE]);
        fill(
            &mut space.write_one_to_clear,
            register::STATUS,
            &status::WRITE_ONE_TO_CLEAR.to_le_bytes(),
        );
        space
    }

    /// Adds capabilities at the offsets that they name. Their order is the order in which the guest finds them.
    ///
    /// # Errors
    /// A capability that lies in the header, past the end, on another one, or not at a multiple of four.
    pub fn with_capabilities(mut self, chain: &[Capability]) -> Result<Self, CapabilityError> {
        let mut taken = [false; SIZE];
        for capability in chain {
            capability.claim(&mut taken)?;
        }
        let nexts = chain.iter().skip(1).map(|capability| capability.offset).chain([0]);
        for (capability, next) in chain.iter().zip(nexts) {
            let offset = u16::from(capability.offset);
            self.set_default(offset, &[capability.id, next]);
            self.set_default(offset + 2, &capability.body);
            self.set_writable(offset, &[0, 0]);
            self.set_writable(offset + 2, &vec![0; capability.body.len()]);
            self.set_writable(offset + 2, &capability.writable);
        }
        if let Some(first) = chain.first() {
            let status = self.read_u16(register::STATUS) | status::CAPABILITY_LIST;
            self.set_default(register::STATUS, &status.to_le_bytes());
            self.set_default(register::CAPABILITIES, &[first.offset]);
        }
        Ok(self)
    }

    /// Gives a register its value after reset, which it takes at once. Bytes past the end are ignored.
    pub fn set_default(&mut self, offset: u16, data: &[u8]) {
        fill(&mut self.defaults, offset, data);
        fill(&mut self.bytes, offset, data);
    }

    /// Says which bits of a register the guest may write: those that are set in `mask`. Bytes past the end are ignored.
    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) {
        fill(&mut self.writable, offset, mask);
    }

    /// Reads `data.len()` bytes. Bytes past the end read as all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let held = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(held) {
            *to = *from;
        }
    }

    /// Reads a byte.
    pub fn read_u8(&self, offset: u16) -> u8 {
        let mut data = [0];
        self.read(offset, &mut data);
        data[0]
    }

    /// Reads a word.
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Reads a dword.
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes as the guest does: only where bits are writable or cleared by ones. Bytes past the end are ignored.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, value) in (usize::from(offset)..SIZE).zip(data) {
            let writable = self.writable[at];
            let held = self.bytes[at] & !writable | value & writable;
            self.bytes[at] = held & !(value & self.write_one_to_clear[at]);
        }
    }

    /// Puts a value into a register whether or not the guest may write it: a register that the device sets by itself.
    pub fn put(&mut self, offset: u16, data: &[u8]) {
        fill(&mut self.bytes, offset, data);
    }

    /// Back to the values after reset.
    pub fn reset(&mut self) {
        self.bytes = self.defaults;
    }

    /// What it holds now.
    pub fn state(&self) -> ConfigState {
        ConfigState {
            bytes: self.bytes.to_vec(),
        }
    }

    /// Takes back what [`state`](Self::state) gave. Read-only bits stay as they are.
    ///
    /// # Errors
    /// The state is of another size than a configuration space.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), ConfigStateError> {
        let found = state.bytes.len();
        let saved: [u8; SIZE] = state
            .bytes
            .as_slice()
            .try_into()
            .map_err(|_| ConfigStateError { found })?;
        for (at, saved) in saved.into_iter().enumerate() {
            let changeable = self.writable[at] | self.write_one_to_clear[at];
            self.bytes[at] = self.bytes[at] & !changeable | saved & changeable;
        }
        Ok(())
    }
}

/// Puts `data` into `array` at `offset`, as far as there is room.
fn fill(array: &mut [u8; SIZE], offset: u16, data: &[u8]) {
    for (to, from) in array.iter_mut().skip(usize::from(offset)).zip(data) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn network_card() -> ConfigSpace {
        ConfigSpace::type0(&Header {
            vendor: 0x1af4,
            device: 0x1000,
            class: 0x0200,
            subsystem: 1,
            pin: Some(Pin::A),
            ..Header::default()
        })
    }

    fn capability(offset: u8, id: u8, body: &[u8]) -> Capability {
        Capability {
            offset,
            id,
            body: body.to_vec(),
            writable: Vec::new(),
        }
    }

    #[test]
    fn header_reads_as_the_guest_expects_it() {
        let space = network_card();
        assert_eq!(space.read_u32(register::VENDOR_ID), 0x1000_1af4);
        assert_eq!(space.read_u32(register::REVISION), 0x0200_0000);
        assert_eq!(space.read_u32(register::SUBSYSTEM), 0x0001_1af4);
        assert_eq!(space.read_u8(register::INTERRUPT_PIN), 1);
        assert_eq!(space.read_u8(register::HEADER_TYPE), 0);
    }

    #[test]
    fn only_the_writable_bits_of_the_command_register_take() {
        let mut space = network_card();
        space.write(register::COMMAND, &[0xff, 0xff]);
        assert_eq!(space.read_u16(register::COMMAND), 0x0507);
        space.reset();
        assert_eq!(space.read_u16(register::COMMAND), 0);
    }

    #[test]
    fn latency_timer_is_read_only_as_in_qemu() {
        let mut space = network_card();
        space.write(register::CACHE_LINE_SIZE, &[0x10, 0x40]);
        assert_eq!(space.read_u16(register::CACHE_LINE_SIZE), 0x0010);
    }

    #[test]
    fn status_errors_are_cleared_by_ones_and_kept_by_zeros() {
        let mut space = network_card();
        space.set_default(register::STATUS, &0xf910u16.to_le_bytes());
        space.write(register::STATUS, &0x2000u16.to_le_bytes());
        assert_eq!(space.read_u16(register::STATUS), 0xd910);
        space.write(register::STATUS, &[0xff, 0xff]);
        assert_eq!(space.read_u16(register::STATUS), 0x0010);
    }

    #[test]
    fn capabilities_are_chained_in_the_order_given() {
        let chain = [capability(0x98, 0x11, &[0; 10]), capability(0x40, 9, &[16, 1])];
        let mut space = network_card().with_capabilities(&chain).unwrap();
        assert_eq!(space.read_u16(register::STATUS), status::CAPABILITY_LIST);
        assert_eq!(space.read_u8(register::CAPABILITIES), 0x98);
        assert_eq!(space.read_u16(0x98), 0x4011);
        assert_eq!(space.read_u32(0x40), 0x0110_0009);
        space.write(0x40, &[0xff; 4]);
        assert_eq!(space.read_u32(0x40), 0x0110_0009, "a capability is read-only");
        space.write(0x44, &[0xff; 4]);
        assert_eq!(
            space.read_u32(0x44),
            0xffff_ffff,
            "what no capability claims is writable"
        );
    }

    #[test]
    fn misplaced_capabilities_are_refused() {
        for chain in [
            vec![capability(0x3c, 9, &[0; 2])],
            vec![capability(0x42, 9, &[0; 2])],
            vec![capability(0xf8, 9, &[0; 8])],
            vec![capability(0x40, 9, &[0; 6]), capability(0x44, 9, &[0; 2])],
        ] {
            assert!(network_card().with_capabilities(&chain).is_err(), "{chain:?}");
        }
    }

    #[test]
    fn accesses_past_the_end_read_ones_and_write_nothing() {
        let mut space = network_card();
        space.write(0xfe, &[1, 2, 3, 4]);
        let mut data = [0; 4];
        space.read(0xfe, &mut data);
        assert_eq!(data, [1, 2, 0xff, 0xff]);
        space.read(0xffff, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn restoring_a_state_leaves_read_only_bits() {
        let mut saved = network_card();
        saved.write(register::COMMAND, &[0x07]);
        let mut state = saved.state();
        state.bytes[0] = 0x55;
        let mut space = network_card();
        space.restore(&state).unwrap();
        assert_eq!(space.read_u16(register::COMMAND), 7);
        assert_eq!(space.read_u16(register::VENDOR_ID), 0x1af4);
        state.bytes.pop();
        assert_eq!(space.restore(&state), Err(ConfigStateError { found: 255 }));
    }

    proptest! {
        #[test]
        fn read_only_bits_stay_under_any_writes(
            writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..40),
        ) {
            let fresh = network_card();
            let mut space = fresh.clone();
            for (offset, data) in &writes {
                space.write(offset % 0x180, data);
            }
            for at in 0..SIZE {
                let fixed = !(space.writable[at] | space.write_one_to_clear[at]);
                prop_assert_eq!(space.bytes[at] & fixed, fresh.bytes[at] & fixed);
            }
        }
    }
}
