//! The PCI interrupt routing table, for systems that drive the ISA bridge's routing registers themselves (`acpi=off
//! noapic`).
//!
//! Layout: Microsoft, "PCI IRQ Routing Table Specification", version 1.0; `struct irq_routing_table` in Linux.

use pci::intx::pirq;

use super::area::Area;
use super::checksum;
use super::routing::{PINS, PIRQ_MASK, SLOTS};

const VERSION: u16 = 0x0100;
const HEADER_SIZE: usize = 32;
const SLOT_SIZE: usize = 16;
const CHECKSUM_OFFSET: usize = 31;
/// The interrupt router: function 00:01.0, 8086:7000.
const ROUTER_DEVFN: u8 = 1 << 3;
const ROUTER_ID: [u16; 2] = [0x8086, 0x7000];
/// A link is named by the register of the ISA bridge that routes it: 0x60 for PIRQ A.
const FIRST_LINK: u8 = 0x60;

/// Adds the table.
pub(super) fn add(area: &mut Area) {
    let mut table = header();
    for slot in SLOTS {
        table.extend([0, slot << 3]);
        for pin in PINS {
            table.push(FIRST_LINK + pirq(slot, pin));
            table.extend(PIRQ_MASK.to_le_bytes());
        }
        table.extend([slot, 0]);
    }
    table[CHECKSUM_OFFSET] = checksum(&table);
    area.add(16, &table);
}

/// The header without its checksum. No interrupt is for PCI alone; there is no miniport driver.
fn header() -> Vec<u8> {
    let size = (HEADER_SIZE + SLOTS.count() * SLOT_SIZE) as u16;
    let mut header = b"$PIR".to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend(size.to_le_bytes());
    header.extend([0, ROUTER_DEVFN, 0, 0]);
    header.extend(ROUTER_ID.map(u16::to_le_bytes).as_flattened());
    header.resize(HEADER_SIZE, 0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_found_and_read_as_linux_does() {
        let mut area = Area::new(0xf_0000);
        area.add(1, &[1, 2, 3]);
        add(&mut area);
        let bytes = area.into_bytes();
        let table = &bytes[16..];
        assert_eq!(&table[..4], b"$PIR");
        assert_eq!(usize::from(u16::from_le_bytes([table[6], table[7]])), table.len());
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!((table.len() - 32) / 16, 31);
        assert_eq!(table[8..16], [0, 8, 0, 0, 0x86, 0x80, 0x00, 0x70]);
        // Slot 3: INTA# on PIRQ C, INTB# on D, INTC# on A, INTD# on B.
        let slot = &table[32 + 2 * 16..][..16];
        assert_eq!(
            slot,
            [0, 0x18, 0x62, 0, 0xc, 0x63, 0, 0xc, 0x60, 0, 0xc, 0x61, 0, 0xc, 3, 0]
        );
    }
}
