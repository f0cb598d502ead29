//! Power management of 82371AB, PIIX4 (8086:7113), as in QEMU's hw/acpi/piix4.c: says where the ACPI registers are.
//! What is there, and the SMBus controller, are not here.

use crate::config_space::{Header, status};
use crate::endpoint::{Endpoint, EndpointState, EndpointStateError};
use crate::function::{Change, Changes, Function};
use crate::intx::Pin;

/// Port of the power management block, 4 bytes: bits 6 to 15 count, bit 0 says that these are ports.
pub const PM_BASE: u16 = 0x40;

/// Bit 0 lets the power management block be decoded, 1 byte.
pub const PM_ENABLE: u16 = 0x80;

/// Port of the SMBus controller, 4 bytes, as [`PM_BASE`].
pub const SMBUS_BASE: u16 = 0x90;

/// SMBus host configuration, 1 byte.
pub const SMBUS_CONFIG: u16 = 0xd2;

/// The byte of the device activity register in which bit 1 lets the APM port raise an SMI.
pub const SMI_CONTROL: u16 = 0x5b;

/// Registers that are not 0 after reset (QEMU, hw/acpi/piix4.c, `piix4_pm_realize`, `piix4_pm_reset`,
/// `piix4_pm_machine_ready`; the last says that there is a serial port at 0x3f8 and no other).
const DEFAULTS: &[(u16, &[u8])] = &[
    (PM_BASE, &[0x01]),
    (0x5f, &[0x10]),
    (0x63, &[0x60]),
    (0x67, &[0x08]),
    (SMBUS_BASE, &[0x01, 0xb1]),
    (SMBUS_CONFIG, &[0x09]),
];

/// The bits of [`PM_BASE`] that are an address: 64 ports, aligned.
const PM_BASE_MASK: u16 = 0xffc0;

/// Power management.
pub struct Piix4Pm {
    endpoint: Endpoint,
}

impl Piix4Pm {
    /// Power management after reset: its block is not decoded.
    pub fn new() -> Self {
        let mut endpoint = Endpoint::plain(&Header {
            vendor: 0x8086,
            device: 0x7113,
            class: 0x0680,
            revision: 3,
            status: status::FAST_BACK | status::DEVSEL_MEDIUM,
            pin: Some(Pin::A),
            ..Header::default()
        });
        for (offset, data) in DEFAULTS {
            endpoint.config_mut().set_default(*offset, data);
        }
        Self { endpoint }
    }

    /// The first of the 64 ports of the power management block, if it is decoded. At port 0 it is not: other devices
    /// are there.
    pub fn pm_base(&self) -> Option<u16> {
        let config = self.endpoint.config();
        let enabled = config.read_u8(PM_ENABLE) & 1 != 0;
        let base = config.read_u16(PM_BASE) & PM_BASE_MASK;
        (enabled && base != 0).then_some(base)
    }

    /// What it holds now.
    pub fn state(&self) -> EndpointState {
        self.endpoint.state()
    }

    /// Takes back what [`state`](Self::state) gave, and says whether the block moved.
    ///
    /// # Errors
    /// The state is of another function.
    pub fn restore(&mut self, state: &EndpointState) -> Result<Changes, EndpointStateError> {
        let before = self.pm_base();
        let changes = self.endpoint.restore(state)?;
        Ok(self.moved(before, changes))
    }

    /// `changes` and the place of the block if it is not as `before`.
    fn moved(&self, before: Option<u16>, mut changes: Changes) -> Changes {
        let base = self.pm_base();
        if base != before {
            changes.push(Change::PmBase(base));
        }
        changes
    }
}

impl Default for Piix4Pm {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for Piix4Pm {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.endpoint.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes {
        let before = self.pm_base();
        let changes = self.endpoint.write_config(offset, data);
        self.moved(before, changes)
    }

    fn reset(&mut self) -> Changes {
        let before = self.pm_base();
        let changes = self.endpoint.reset();
        self.moved(before, changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_is_decoded_once_placed_and_enabled() {
        let mut pm = Piix4Pm::new();
        assert_eq!(pm.write_config(0x40, &0x0601u32.to_le_bytes()), []);
        assert_eq!(pm.write_config(0x80, &[1]), [Change::PmBase(Some(0x600))]);
        assert_eq!(
            pm.write_config(0x40, &0xb03f_u32.to_le_bytes()),
            [Change::PmBase(Some(0xb000))]
        );
        assert_eq!(pm.write_config(0x41, &[0]), [Change::PmBase(None)], "not at port 0");
        assert_eq!(pm.write_config(0x41, &[6]), [Change::PmBase(Some(0x600))]);
        assert_eq!(pm.reset(), [Change::PmBase(None)]);
    }
}
