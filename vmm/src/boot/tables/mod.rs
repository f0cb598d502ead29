//! The tables that firmware leaves for the operating system: ACPI, the MultiProcessor table and the PCI interrupt
//! routing table.
//!
//! All lie in the segment at 0xf0000, which systems search. ACPI serves every guest of today; the other two serve
//! `acpi=off` (MP table) and the same without IOAPIC (`$PIR`). All three say the same, from the one table in
//! [`routing`].

mod acpi;
mod area;
mod dsdt;
mod hotplug;
mod mp;
mod pir;
mod routing;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use acpi::port;
pub use routing::PIRQ_INTERRUPTS;

use crate::memory::{GuestMemory, Layout, address};
use area::Area;

/// Processors whose local APIC id fits the 8 bits of xAPIC; 255 is the broadcast.
const XAPIC_PROCESSORS: u32 = 255;

/// The firmware tables can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// They do not fit their 64 KiB, for which only the number of processors or a user's own AML can be the reason.
    #[error(
        "firmware tables of {size} bytes for {processors} processors do not fit {room}; give the guest fewer (--cpus or -smp)"
    )]
    TooLarge {
        /// Bytes of all tables.
        size: u64,
        /// Processors of the machine.
        processors: u32,
        /// Bytes that there are.
        room: u64,
    },
    /// Guest memory that must be there is not.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// What the tables say of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Platform {
    /// Processors; their local APIC ids are 0, 1, ...
    pub processors: u32,
    /// Where RAM and the PCI windows are.
    pub layout: Layout,
    /// There is a keyboard controller that answers, with keyboard and mouse (i8042).
    pub keyboard: bool,
    /// There is a serial port at COM1.
    pub serial: bool,
    /// Definitions added to the end of the DSDT, for devices that this module does not know (AML).
    pub extra_aml: Vec<u8>,
}

impl Platform {
    /// A machine with `processors` processors, a serial port and no keyboard.
    pub fn new(processors: u32, layout: &Layout) -> Self {
        Self {
            processors,
            layout: *layout,
            keyboard: false,
            serial: true,
            extra_aml: Vec::new(),
        }
    }
}

/// Writes all tables; the guest physical address of the ACPI root pointer.
pub(super) fn write(memory: &GuestMemory, platform: &Platform) -> Result<u64, TablesError> {
    let (bytes, rsdp) = build(platform)?;
    memory.write_slice(&bytes, GuestAddress(address::FIRMWARE_TABLES))?;
    Ok(rsdp)
}

/// The bytes of all tables from [`address::FIRMWARE_TABLES`] on, and the address of the ACPI root pointer.
fn build(platform: &Platform) -> Result<(Vec<u8>, u64), TablesError> {
    let mut area = Area::new(address::FIRMWARE_TABLES);
    mp::add(&mut area, platform);
    pir::add(&mut area);
    let rsdp = acpi::add(&mut area, platform);
    let bytes = area.into_bytes();
    let (size, room) = (bytes.len() as u64, address::HIGH_MEMORY - address::FIRMWARE_TABLES);
    if size > room {
        return Err(TablesError::TooLarge {
            size,
            processors: platform.processors,
            room,
        });
    }
    Ok((bytes, rsdp))
}

/// What makes `bytes` and itself add up to zero modulo 256.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tables_of_many_processors_fit_and_of_too_many_are_refused() {
        let layout = Layout::new(512 << 20).unwrap();
        for processors in [1, 2, 32, 255, 256, 512] {
            build(&Platform::new(processors, &layout)).unwrap();
        }
        let error = build(&Platform::new(4096, &layout)).unwrap_err();
        assert!(matches!(error, TablesError::TooLarge { room: 0x1_0000, .. }), "{error}");
    }

    #[test]
    fn checksum_completes_a_sum_to_zero() {
        let bytes = [1, 2, 250, 77];
        assert_eq!(
            bytes.iter().fold(checksum(&bytes), |sum, byte| sum.wrapping_add(*byte)),
            0
        );
    }
}
