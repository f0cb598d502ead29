//! The host bridge 82441FX (8086:1237), as in QEMU's hw/pci-host/i440fx.c.
//!
//! Its memory attributes and SMRAM registers hold what is written but have no effect: there is no ROM to shadow and
//! no SMM.

use crate::config_space::Header;
use crate::endpoint::{Endpoint, EndpointState, EndpointStateError};
use crate::function::{Changes, Function};

/// RAM in units of 8 MiB, 1 byte: a register of QEMU's, which coreboot reads.
const MEMORY_SIZE: u16 = 0x57;

/// Programmable attribute map of 0xc0000 to 0xfffff, 7 bytes.
pub const MEMORY_ATTRIBUTES: u16 = 0x59;

/// System management RAM control, 1 byte.
pub const SMRAM: u16 = 0x72;

/// The host bridge.
pub struct I440fx {
    endpoint: Endpoint,
}

impl I440fx {
    /// The host bridge of a machine with `memory` bytes of RAM.
    pub fn new(memory: u64) -> Self {
        let mut endpoint = Endpoint::plain(&Header {
            vendor: 0x8086,
            device: 0x1237,
            class: 0x0600,
            revision: 2,
            ..Header::default()
        });
        let units = u8::try_from(memory >> 23).unwrap_or(u8::MAX);
        endpoint.config_mut().set_default(MEMORY_SIZE, &[units]);
        endpoint.config_mut().set_default(SMRAM, &[0x02]);
        Self { endpoint }
    }

    /// What it holds now.
    pub fn state(&self) -> EndpointState {
        self.endpoint.state()
    }

    /// Takes back what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// The state is of another function.
    pub fn restore(&mut self, state: &EndpointState) -> Result<Changes, EndpointStateError> {
        self.endpoint.restore(state)
    }
}

impl Function for I440fx {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.endpoint.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes {
        self.endpoint.write_config(offset, data)
    }

    fn reset(&mut self) -> Changes {
        self.endpoint.reset()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_size_is_counted_in_8_mib_and_saturates() {
        for (memory, units) in [(32 << 20, 4), (512 << 20, 64), (6 << 30, 255)] {
            let mut data = [0];
            I440fx::new(memory).read_config(MEMORY_SIZE, &mut data);
            assert_eq!(data, [units], "{memory:#x}");
        }
    }
}
