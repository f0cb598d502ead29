//! The reset control register at port 0xcf9 (PIIX3 datasheet, "RCR"; QEMU hw/isa/piix.c).

#![forbid(unsafe_code)]

use super::{FLOATING, MachineRequest, PortDevice, read_bytes, write_bytes};

/// Chooses hard or soft reset; kept and read back, since both are the same here.
const SYSTEM_RESET: u8 = 1 << 1;
/// Resets the machine.
const RESET_CPU: u8 = 1 << 2;

/// The reset control register, one port at 0xcf9. It lies inside the configuration address port (0xcf8, 32 bits), so only
/// accesses that begin at 0xcf9 are for it.
#[derive(Default, Debug)]
pub struct ResetControl {
    value: u8,
}

impl PortDevice for ResetControl {
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
            if byte & RESET_CPU != 0 {
                return Some(MachineRequest::Reset);
            }
            self.value = byte & SYSTEM_RESET;
            None
        })
    }

    fn reset(&mut self) {
        self.value = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, inb, inw, outb, outw, perform};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn linux_cf9_reboot_resets_the_machine() {
        let mut register = ResetControl::default();
        // Linux's native_machine_emergency_restart: the type first, then the trigger.
        assert_eq!(outb(&mut register, 0, 0x02), None);
        assert_eq!(inb(&mut register, 0), 0x02);
        assert_eq!(outb(&mut register, 0, 0x06), Some(MachineRequest::Reset));
    }

    #[test]
    fn only_the_reset_type_reads_back() {
        let mut register = ResetControl::default();
        assert_eq!(outb(&mut register, 0, 0xfb), None);
        assert_eq!(inb(&mut register, 0), 0x02);
        register.reset();
        assert_eq!(inb(&mut register, 0), 0);
    }

    #[test]
    fn ports_behind_it_float() {
        let mut register = ResetControl::default();
        assert_eq!(inw(&mut register, 0), 0xff00);
        assert_eq!(outb(&mut register, 1, 0x06), None);
        assert_eq!(outw(&mut register, 0, 0x0600), None);
        assert_eq!(outw(&mut register, u16::MAX, 0x0606), None);
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(accesses in accesses(1)) {
            perform(&mut ResetControl::default(), &accesses);
        }
    }
}
