//! System control port A, 0x92: fast A20 gate and fast reset (PS/2 hardware reference; QEMU hw/i386/port92.c).

#![forbid(unsafe_code)]

use super::{FLOATING, MachineRequest, PortDevice, read_bytes, write_bytes};

/// Resets the machine when it goes from 0 to 1.
const FAST_RESET: u8 = 1 << 0;
/// A20 is not masked. Kept for the guest to read back: no guest here starts with address line 20 masked, and none can mask it.
const A20_GATE: u8 = 1 << 1;

/// System control port A, one port at 0x92.
#[derive(Debug)]
pub struct Port92 {
    value: u8,
}

impl Default for Port92 {
    fn default() -> Self {
        Self { value: A20_GATE }
    }
}

impl PortDevice for Port92 {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        read_bytes(offset, data, |port| match port {
            0 => self.value,
            _ => FLOATING,
        });
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        write_bytes(offset, data, |port, byte| {
            if port != 0 {
                return None;
            }
            let rising = byte & !self.value;
            self.value = byte;
            (rising & FAST_RESET != 0).then_some(MachineRequest::Reset)
        })
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, inb, inw, outb, perform};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a20_starts_open_and_reads_back() {
        let mut port = Port92::default();
        assert_eq!(inb(&mut port, 0), 0x02);
        assert_eq!(outb(&mut port, 0, 0x00), None);
        assert_eq!(inb(&mut port, 0), 0x00);
    }

    #[test]
    fn rising_reset_bit_resets_once() {
        let mut port = Port92::default();
        assert_eq!(outb(&mut port, 0, 0x03), Some(MachineRequest::Reset));
        assert_eq!(outb(&mut port, 0, 0x03), None);
        port.reset();
        assert_eq!(inb(&mut port, 0), 0x02);
        assert_eq!(outb(&mut port, 0, 0x01), Some(MachineRequest::Reset));
    }

    #[test]
    fn ports_behind_it_float() {
        let mut port = Port92::default();
        assert_eq!(inw(&mut port, 0), 0xff02);
        assert_eq!(outb(&mut port, 1, 0x01), None);
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(accesses in accesses(1)) {
            perform(&mut Port92::default(), &accesses);
        }
    }
}
