//! The MultiProcessor table, for `acpi=off`: Intel, "MultiProcessor Specification", version 1.4, chapter 4.

use super::area::Area;
use super::routing::{PIRQ_MASK, SCI, pin_number, pins};
use super::{Platform, XAPIC_PROCESSORS, checksum};
use crate::memory::address;

/// Version 1.4.
const SPECIFICATION: u8 = 4;
const POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const CHECKSUM_OFFSET: usize = 7;
const POINTER_CHECKSUM_OFFSET: usize = 10;
const OEM_ID: &[u8; 8] = b"INNKEEPR";
const PRODUCT_ID: &[u8; 12] = b"PC          ";

/// Versions that the chips of KVM report.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_ID: u8 = 0;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// What an operating system that cares reads by CPUID: family 6, with FPU and APIC.
const PROCESSOR_SIGNATURE: u32 = 0x600;
const PROCESSOR_FEATURES: u32 = 0x201;

const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
const ALL_LOCAL_APICS: u8 = 0xff;

/// First byte of an entry.
#[derive(Clone, Copy)]
#[repr(u8)]
enum EntryType {
    Processor = 0,
    Bus = 1,
    IoApic = 2,
    IoInterrupt = 3,
    LocalInterrupt = 4,
}

/// Interrupt types.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

/// Polarity and trigger mode: as the bus has them.
const CONFORMING: u16 = 0;
/// Active low, level-triggered.
const LOW_LEVEL: u16 = 0xf;

/// The ISA interrupt of the timer, which is wired to another input of the IOAPIC ...
const TIMER: u8 = 0;
/// ... in the place of the second interrupt controller's.
const CASCADE: u8 = 2;

/// Adds the floating pointer and the table.
pub(super) fn add(area: &mut Area, platform: &Platform) {
    let table = table(platform);
    let pointer_at = area.align(16);
    let mut pointer = b"_MP_".to_vec();
    // Both lie below 1 MiB.
    pointer.extend((pointer_at as u32 + POINTER_SIZE as u32).to_le_bytes());
    pointer.extend([(POINTER_SIZE / 16) as u8, SPECIFICATION]);
    pointer.resize(POINTER_SIZE, 0);
    pointer[POINTER_CHECKSUM_OFFSET] = checksum(&pointer);
    area.add(16, &pointer);
    area.add(16, &table);
}

fn table(platform: &Platform) -> Vec<u8> {
    let entries = entries(platform);
    let length = HEADER_SIZE + entries.iter().map(Vec::len).sum::<usize>();
    let mut table = b"PCMP".to_vec();
    // 255 processors and 31 slots stay far below 64 KiB.
    table.extend((length as u16).to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(OEM_ID);
    table.extend(PRODUCT_ID);
    table.extend([0; 6]);
    table.extend((entries.len() as u16).to_le_bytes());
    table.extend((address::LOCAL_APIC as u32).to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    table[CHECKSUM_OFFSET] = checksum(&table);
    table
}

fn entries(platform: &Platform) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    entries.extend((0..platform.processors.min(XAPIC_PROCESSORS)).map(|id| processor(id as u8)));
    entries.push(bus(PCI_BUS, b"PCI   "));
    entries.push(bus(ISA_BUS, b"ISA   "));
    let mut ioapic = vec![EntryType::IoApic as u8, IOAPIC_ID, IOAPIC_VERSION, ENABLED];
    ioapic.extend((address::IOAPIC as u32).to_le_bytes());
    entries.push(ioapic);
    entries.extend(pins().map(|(slot, pin, input)| {
        let source = slot << 2 | pin_number(pin);
        interrupt(
            EntryType::IoInterrupt,
            VECTORED,
            LOW_LEVEL,
            [PCI_BUS, source, IOAPIC_ID, input],
        )
    }));
    entries.extend(
        (0..16)
            .filter(|irq| *irq != CASCADE && !belongs_to_pci(*irq))
            .map(|irq| {
                let input = if irq == TIMER { CASCADE } else { irq };
                interrupt(
                    EntryType::IoInterrupt,
                    VECTORED,
                    CONFORMING,
                    [ISA_BUS, irq, IOAPIC_ID, input],
                )
            }),
    );
    // LINT0 of the boot processor and LINT1 of all.
    entries.push(interrupt(
        EntryType::LocalInterrupt,
        EXTERNAL,
        CONFORMING,
        [ISA_BUS, 0, 0, 0],
    ));
    entries.push(interrupt(
        EntryType::LocalInterrupt,
        NMI,
        CONFORMING,
        [ISA_BUS, 0, ALL_LOCAL_APICS, 1],
    ));
    entries
}

fn belongs_to_pci(irq: u8) -> bool {
    irq == SCI || PIRQ_MASK >> irq & 1 == 1
}

fn processor(id: u8) -> Vec<u8> {
    let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    let mut entry = vec![EntryType::Processor as u8, id, LOCAL_APIC_VERSION, flags];
    entry.extend(PROCESSOR_SIGNATURE.to_le_bytes());
    entry.extend(PROCESSOR_FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

fn bus(id: u8, name: &[u8; 6]) -> Vec<u8> {
    let mut entry = vec![EntryType::Bus as u8, id];
    entry.extend(name);
    entry
}

/// An interrupt assignment: source bus and interrupt, destination APIC and input.
fn interrupt(entry: EntryType, kind: u8, mode: u16, [bus, source, apic, input]: [u8; 4]) -> Vec<u8> {
    let [mode, reserved] = mode.to_le_bytes();
    vec![entry as u8, kind, mode, reserved, bus, source, apic, input]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::Layout;

    /// The entries by type, read back from the bytes.
    fn parse(processors: u32) -> Vec<Vec<u8>> {
        let mut area = Area::new(0xf_0000);
        area.add(1, &[0xee]);
        add(&mut area, &Platform::new(processors, &Layout::new(64 << 20).unwrap()));
        let bytes = area.into_bytes();
        let pointer = &bytes[16..32];
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(checksum(pointer), 0);
        let at = u32::from_le_bytes(pointer[4..8].try_into().unwrap()) - 0xf_0000;
        let table = &bytes[at as usize..];
        assert_eq!(&table[..4], b"PCMP");
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(checksum(table), 0);
        assert_eq!(table[36..40], 0xfee0_0000_u32.to_le_bytes());
        let mut rest = &table[44..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, tail) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = tail;
        }
        assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), entries.len());
        assert!(
            entries.is_sorted_by_key(|entry| entry[0]),
            "the specification asks for ascending types"
        );
        entries
    }

    fn of_type(entries: &[Vec<u8>], kind: EntryType) -> Vec<&[u8]> {
        entries
            .iter()
            .map(Vec::as_slice)
            .filter(|entry| entry[0] == kind as u8)
            .collect()
    }

    #[test]
    fn every_processor_is_there_once_and_the_first_one_boots() {
        for processors in [1, 4, 32, 300] {
            let entries = parse(processors);
            let found = of_type(&entries, EntryType::Processor);
            assert_eq!(found.len(), processors.min(255) as usize);
            for (id, entry) in (0..=254).zip(found) {
                assert_eq!(entry[1..4], [id, 0x14, if id == 0 { 3 } else { 1 }]);
            }
        }
    }

    #[test]
    fn timer_takes_the_cascades_input_and_pci_interrupts_are_not_isa() {
        let entries = parse(1);
        let isa: Vec<_> = of_type(&entries, EntryType::IoInterrupt)
            .into_iter()
            .filter(|entry| entry[4] == 1)
            .collect();
        let pairs: Vec<_> = isa.iter().map(|entry| (entry[5], entry[7])).collect();
        assert_eq!(pairs[..2], [(0, 2), (1, 1)]);
        assert!(
            pairs[1..]
                .iter()
                .all(|(irq, input)| irq == input && ![2, 9, 10, 11].contains(irq))
        );
        assert_eq!(pairs.len(), 12);
    }

    #[test]
    fn every_pin_of_every_slot_has_a_level_triggered_input() {
        let entries = parse(1);
        let pci: Vec<_> = of_type(&entries, EntryType::IoInterrupt)
            .into_iter()
            .filter(|entry| entry[4] == 0)
            .collect();
        assert_eq!(pci.len(), 31 * 4);
        // Slot 3, INTA#: source 0xc, input 11.
        assert!(pci.iter().any(|entry| entry[..] == [3, 0, 0xf, 0, 0, 3 << 2, 0, 11]));
        assert!(pci.iter().all(|entry| [9, 10, 11].contains(&entry[7])));
    }

    #[test]
    fn local_inputs_are_external_and_nmi() {
        let entries = parse(2);
        assert_eq!(
            of_type(&entries, EntryType::LocalInterrupt),
            [&[4, 3, 0, 0, 1, 0, 0, 0][..], &[4, 1, 0, 0, 1, 0, 0xff, 1]]
        );
    }
}
