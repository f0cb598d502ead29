//! The DSDT: what there is besides what a system finds by itself.
//!
//! The interrupt routing names IOAPIC inputs, not link devices: Linux spends about 0.1 s on enabling each of those.

use std::fmt::Write;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, PackageBuilder,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::Platform;
use super::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use super::hotplug::{self, HotplugBus};
use super::routing::{pin_number, pins};

const HEADER: u32 = 36;
/// From 2 on, integers have 64 bits.
const REVISION: u8 = 2;
/// VGA memory, which PCI decodes.
const VGA_MEMORY: (u32, u32) = (0xa_0000, 0xb_ffff);

/// The whole table.
pub(super) fn table(platform: &Platform) -> Vec<u8> {
    let mut code = Vec::new();
    host_bridge(platform, &mut code);
    processors(platform, &mut code);
    soft_off(&mut code);
    hotplug::event(&mut code);
    code.extend(&platform.extra_aml);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt.as_slice().to_vec()
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

/// `_S5_`: the sleep type of PIIX4 for "off" is 0.
fn soft_off(code: &mut Vec<u8>) {
    name("_S5_", &Package::new(vec![&ZERO; 4])).to_aml_bytes(code);
}

/// `\_SB.PCI0` with its windows, its interrupt routing and the ISA devices.
fn host_bridge(platform: &Platform, code: &mut Vec<u8>) {
    let low = platform.layout.pci_window32();
    let high = platform.layout.pci_window64();
    // The low window ends where the IOAPIC begins, below 4 GiB.
    let (low_first, low_last) = (low.start as u32, (low.end - 1) as u32);
    let cacheable = AddressSpaceCacheable::Cacheable;
    let uncached = AddressSpaceCacheable::NotCacheable;
    let buses = AddressSpace::new_bus_number(0_u16, 255);
    let mechanism1 = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports_below = AddressSpace::new_io(0_u16, 0xcf7, None);
    let ports_above = AddressSpace::new_io(0xd00_u16, 0xffff, None);
    let vga = AddressSpace::new_memory(cacheable, true, VGA_MEMORY.0, VGA_MEMORY.1, None);
    let window32 = AddressSpace::new_memory(uncached, true, low_first, low_last, None);
    let window64 = AddressSpace::new_memory(cacheable, true, high.start, high.end - 1, None);
    let resources = ResourceTemplate::new(vec![
        &buses,
        &mechanism1,
        &ports_below,
        &ports_above,
        &vga,
        &window32,
        &window64,
    ]);
    let bridge: [&dyn Aml; 6] = [
        &name("_HID", &EISAName::new("PNP0A03")),
        &name("_UID", &ZERO),
        &name("_CRS", &resources),
        &name("_PRT", &routing()),
        &IsaDevices(platform),
        &HotplugBus,
    ];
    let bridge = Device::new("PCI0".into(), bridge.to_vec());
    Scope::new("_SB_".into(), vec![&bridge]).to_aml_bytes(code);
}

/// `_PRT`: for every pin of every slot the IOAPIC's input.
fn routing() -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    for (slot, pin, input) in pins() {
        let address = u32::from(slot) << 16 | ANY_FUNCTION;
        table.add_element(&Package::new(vec![&address, &pin_number(pin), &ZERO, &input]));
    }
    table
}

/// Devices that nothing else announces.
struct IsaDevices<'a>(&'a Platform);

impl Aml for IsaDevices<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        isa_device("RTC_", "PNP0B00", &[(0x70, 8)], 8).emit(sink);
        if self.0.serial {
            isa_device("COM1", "PNP0501", &[(0x3f8, 8)], 4).emit(sink);
        }
        if self.0.keyboard {
            isa_device("KBD_", "PNP0303", &[(0x60, 1), (0x64, 1)], 1).emit(sink);
            isa_device("MOU_", "PNP0F13", &[], 12).emit(sink);
        }
    }
}

/// An ISA device: first port and number of its port ranges, and its interrupt.
struct IsaDevice<'a> {
    name: &'static str,
    id: &'static str,
    ports: &'a [(u16, u8)],
    irq: u32,
}

fn isa_device<'a>(name: &'static str, id: &'static str, ports: &'a [(u16, u8)], irq: u32) -> IsaDevice<'a> {
    IsaDevice { name, id, ports, irq }
}

impl IsaDevice<'_> {
    fn emit(&self, sink: &mut dyn AmlSink) {
        let ports: Vec<IO> = self
            .ports
            .iter()
            .map(|(first, count)| IO::new(*first, *first, 1, *count))
            .collect();
        // A consumer's, edge-triggered, active high, not shared.
        let interrupt = Interrupt::new(true, true, false, false, self.irq);
        let mut resources: Vec<&dyn Aml> = ports.iter().map(|ports| ports as &dyn Aml).collect();
        resources.push(&interrupt);
        Device::new(
            self.name.into(),
            vec![
                &name("_HID", &EISAName::new(self.id)),
                &name("_UID", &ZERO),
                &name("_CRS", &ResourceTemplate::new(resources)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `\_SB.Cxxx`: a processor each, by the number under which the MADT has it.
fn processors(platform: &Platform, code: &mut Vec<u8>) {
    let mut devices = Vec::new();
    let mut path = String::new();
    for id in 0..platform.processors {
        path.clear();
        // Writing to a string cannot fail. Three digits: the tables do not hold 4096 processors.
        let _ = write!(path, "C{:03X}", id & 0xfff);
        Device::new(
            path.as_str().into(),
            vec![&name("_HID", &"ACPI0007"), &name("_UID", &id)],
        )
        .to_aml_bytes(&mut devices);
    }
    code.extend(Scope::raw("_SB_".into(), devices));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::boot::tables::checksum;
    use crate::memory::Layout;

    fn platform(processors: u32) -> Platform {
        Platform::new(processors, &Layout::new(6 << 30).unwrap())
    }

    fn count(table: &[u8], bytes: &[u8]) -> usize {
        table.windows(bytes.len()).filter(|window| *window == bytes).count()
    }

    #[test]
    fn length_and_checksum_take_in_added_definitions() {
        let extra_aml = b"\x08ABCD\x00".to_vec();
        let table = table(&Platform {
            extra_aml: extra_aml.clone(),
            ..platform(1)
        });
        assert!(table.ends_with(&extra_aml));
        assert_eq!(
            u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize,
            table.len()
        );
        assert_eq!(checksum(&table), 0);
    }

    #[test]
    fn every_processor_is_a_device() {
        assert_eq!(count(&table(&platform(32)), b"ACPI0007\0"), 32);
        let table = table(&platform(300));
        assert_eq!(count(&table, b"ACPI0007\0"), 300);
        assert_eq!(count(&table, b"C12B"), 1);
    }

    #[test]
    fn windows_are_those_of_the_memory_layout() {
        let table = table(&platform(1));
        let words = |words: [u32; 3]| words.map(u32::to_le_bytes).concat();
        assert_eq!(count(&table, &words([0, 0xc000_0000, 0xfebf_ffff])), 1);
        let words = |words: [u64; 3]| words.map(u64::to_le_bytes).concat();
        assert_eq!(count(&table, &words([0, 0x1_c000_0000, 0x9_bfff_ffff])), 1);
    }

    #[test]
    fn pins_are_routed_to_inputs_without_link_devices() {
        let table = table(&platform(1));
        // Package of four: address of slot 3, INTA#, no source, input 11.
        assert_eq!(
            count(&table, &[0x04, 0x0c, 0xff, 0xff, 0x03, 0x00, 0x00, 0x00, 0x0a, 11]),
            1
        );
        assert_eq!(
            count(&table, &[0x04, 0x0c, 0xff, 0xff, 0x01, 0x00, 0x00, 0x00, 0x0a, 9]),
            1,
            "the SCI"
        );
        assert_eq!(count(&table, b"LNK"), 0);
    }

    #[test]
    fn devices_are_there_when_the_machine_has_them() {
        // Compressed EISA identifiers: PNP0303 and PNP0501.
        let (keyboard, serial) = ([0x41, 0xd0, 0x03, 0x03], [0x41, 0xd0, 0x05, 0x01]);
        let with = table(&Platform {
            keyboard: true,
            serial: true,
            ..platform(1)
        });
        let without = table(&Platform {
            keyboard: false,
            serial: false,
            ..platform(1)
        });
        assert_eq!((count(&with, &keyboard), count(&with, &serial)), (1, 1));
        assert_eq!((count(&without, &keyboard), count(&without, &serial)), (0, 0));
    }
}
