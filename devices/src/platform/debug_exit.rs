//! The debug-exit port: a guest ends the machine with a status of its own (QEMU hw/misc/debugexit.c).

#![forbid(unsafe_code)]

use super::{MachineRequest, PortDevice};

/// The debug-exit port, as many ports as the caller decodes for it (QEMU: 2 at 0x501, or at 0xf4 as most test kernels ask).
#[derive(Default, Debug)]
pub struct DebugExit;

impl PortDevice for DebugExit {
    /// Reads zeros.
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    /// Ends the machine with the value as it was written, whatever its width.
    fn write(&mut self, _offset: u16, data: &[u8]) -> Option<MachineRequest> {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        Some(MachineRequest::DebugExit(u32::from_le_bytes(value)))
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, inl, outb, outw, perform};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_width_carries_its_value() {
        let mut port = DebugExit;
        assert_eq!(outb(&mut port, 0, 0x21), Some(MachineRequest::DebugExit(0x21)));
        assert_eq!(outw(&mut port, 0, 0x1234), Some(MachineRequest::DebugExit(0x1234)));
        assert_eq!(
            port.write(0, &0xdead_beef_u32.to_le_bytes()),
            Some(MachineRequest::DebugExit(0xdead_beef))
        );
    }

    #[test]
    fn reads_zero() {
        assert_eq!(inl(&mut DebugExit, 0), 0);
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(accesses in accesses(4)) {
            perform(&mut DebugExit, &accesses);
        }
    }
}
