//! The functions that QEMU's `pc` machine has on its board, and what its firmware writes to them.
//!
//! All are functions without BARs whose registers behind the header are plain storage, as in QEMU; some have effects,
//! which the modules name. The IDE function 00:01.1 is absent.

pub mod i440fx;
pub mod piix3;
pub mod piix4_pm;

pub use i440fx::I440fx;
pub use piix3::Piix3;
pub use piix4_pm::Piix4Pm;

use crate::address::Address;
use crate::bus::{Bus, BusError};
use crate::function::Change;

/// Where the host bridge is.
pub const HOST_BRIDGE: Address = Address::from_devfn(0, 0x00);
/// Where the ISA bridge is.
pub const ISA_BRIDGE: Address = Address::from_devfn(0, 0x08);
/// Where power management is.
pub const POWER_MANAGEMENT: Address = Address::from_devfn(0, 0x0b);

/// The first slot that is for devices.
pub const FIRST_DEVICE_SLOT: u8 = 2;

/// The interrupts that SeaBIOS routes PIRQ A to D to (src/fw/pciinit.c, `pci_irqs`).
pub const PIRQ_IRQS: [u8; 4] = [10, 10, 11, 11];

/// The port of the power management block as SeaBIOS places it (src/fw/pciinit.c, `piix4_pm_config_setup`).
pub const PM_BASE: u16 = 0x600;

/// The interrupt of ACPI, wired to the chip.
pub const SCI_IRQ: u8 = 9;

/// A write to configuration space that firmware does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirmwareWrite {
    /// The function.
    pub address: Address,
    /// Offset of the first byte.
    pub offset: u16,
    /// The bytes.
    pub data: &'static [u8],
}

const fn write(address: Address, offset: u16, data: &'static [u8]) -> FirmwareWrite {
    FirmwareWrite { address, offset, data }
}

/// I/O space, memory space and SERR#, which SeaBIOS switches on for every function.
const COMMAND: &[u8] = &0x0103u16.to_le_bytes();

/// What SeaBIOS leaves in the three functions, in the form of the writes that bring it about (src/fw: pciinit.c for
/// routing, power management and command registers; shadow.c for the memory attributes 0x59 to 0x5f; smm.c for 0x72
/// and 0x5b).
pub const FIRMWARE_WRITES: &[FirmwareWrite] = &[
    write(
        HOST_BRIDGE,
        i440fx::MEMORY_ATTRIBUTES,
        &[0x10, 0x11, 0x11, 0x11, 0x11, 0x11, 0x33],
    ),
    write(HOST_BRIDGE, i440fx::SMRAM, &[0x0a]),
    write(HOST_BRIDGE, 0x04, COMMAND),
    write(ISA_BRIDGE, piix3::PIRQ_ROUTING, &PIRQ_IRQS),
    write(ISA_BRIDGE, 0x04, COMMAND),
    write(POWER_MANAGEMENT, 0x3c, &[SCI_IRQ]),
    write(POWER_MANAGEMENT, piix4_pm::PM_BASE, &(PM_BASE as u32 | 1).to_le_bytes()),
    write(POWER_MANAGEMENT, piix4_pm::PM_ENABLE, &[1]),
    write(POWER_MANAGEMENT, piix4_pm::SMBUS_BASE, &0x701u32.to_le_bytes()),
    write(POWER_MANAGEMENT, piix4_pm::SMBUS_CONFIG, &[0x09]),
    write(POWER_MANAGEMENT, piix4_pm::SMI_CONTROL, &[0x02]),
    write(POWER_MANAGEMENT, 0x04, COMMAND),
];

/// Puts the three functions of a machine with `memory` bytes of RAM on `bus`, in the state after reset.
///
/// # Errors
/// One of their places is taken.
pub fn add_to(bus: &Bus, memory: u64) -> Result<(), BusError> {
    bus.add_function(HOST_BRIDGE, I440fx::new(memory))?;
    bus.add_function(ISA_BRIDGE, Piix3::new())?;
    bus.add_function(POWER_MANAGEMENT, Piix4Pm::new())
}

/// Does [`FIRMWARE_WRITES`] on `bus`; returns what they changed. To be done after each reset.
pub fn play_firmware(bus: &Bus) -> Vec<(Address, Change)> {
    let write = |write: FirmwareWrite| {
        let changes = bus.write_config(write.address, write.offset, write.data);
        changes.into_iter().map(move |change| (write.address, change))
    };
    FIRMWARE_WRITES.iter().copied().flat_map(write).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config_space::SIZE;

    /// `lspci -xxx` of the three functions in a Linux guest with 256 MiB on QEMU 7.2, `-M pc`.
    const DUMPS: [(Address, &str); 3] = [
        (HOST_BRIDGE, include_str!("../../tests/data/i440fx.txt")),
        (ISA_BRIDGE, include_str!("../../tests/data/piix3.txt")),
        (POWER_MANAGEMENT, include_str!("../../tests/data/piix4_pm.txt")),
    ];

    fn parse(dump: &str) -> Vec<u8> {
        let bytes = |line: &str| -> Vec<u8> {
            let (_, bytes) = line.split_once(": ").unwrap();
            bytes
                .split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect()
        };
        dump.lines().flat_map(bytes).collect()
    }

    fn machine() -> Bus {
        let bus = Bus::new();
        add_to(&bus, 256 << 20).unwrap();
        bus
    }

    fn contents(bus: &Bus, address: Address) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        bus.read_config(address, 0, &mut bytes);
        bytes
    }

    #[test]
    fn after_the_firmware_each_function_equals_qemus_byte_for_byte() {
        let bus = machine();
        play_firmware(&bus);
        // Linux, drivers/pci/quirks.c, quirk_passive_release: the dump was taken after it.
        bus.write_config(ISA_BRIDGE, 0x82, &[0x02]);
        for (address, dump) in DUMPS {
            assert_eq!(contents(&bus, address), parse(dump), "{address}");
        }
    }

    #[test]
    fn firmware_routes_the_interrupts_and_places_power_management() {
        let routed = |pirq, irq| (ISA_BRIDGE, Change::PirqRouted { pirq, irq: Some(irq) });
        let placed = (POWER_MANAGEMENT, Change::PmBase(Some(PM_BASE)));
        let expected = [routed(0, 10), routed(1, 10), routed(2, 11), routed(3, 11), placed];
        assert_eq!(play_firmware(&machine()), expected);
    }

    #[test]
    fn reset_undoes_what_the_firmware_did_and_it_can_be_done_again() {
        let (bus, fresh) = (machine(), machine());
        let first = play_firmware(&bus);
        assert_eq!(bus.reset().len(), first.len());
        for (address, _) in DUMPS {
            assert_eq!(contents(&bus, address), contents(&fresh, address), "{address}");
        }
        assert_eq!(play_firmware(&bus), first);
    }
}
