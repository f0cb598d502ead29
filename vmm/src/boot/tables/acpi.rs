//! ACPI's fixed tables: ACPI specification 6.4, chapter 5; values as QEMU's `pc` machine has them where a driver can
//! tell.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::area::Area;
use super::routing::SCI;
use super::{Platform, XAPIC_PROCESSORS, dsdt};
use crate::memory::address;

pub(super) const OEM_ID: [u8; 6] = *b"INNKPR";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"INNKEEPR";
pub(super) const OEM_REVISION: u32 = 1;

/// I/O ports of the ACPI hardware. The first three are those of the PIIX4's power management block at its base of
/// 0x600.
pub mod port {
    /// PM1a event block, 4 bytes: status and enable.
    pub const PM1A_EVENT: u16 = 0x600;
    /// PM1a control block, 2 bytes.
    pub const PM1A_CONTROL: u16 = 0x604;
    /// Power management timer, 4 bytes, of which 24 bits count.
    pub const PM_TIMER: u16 = 0x608;
    /// PCI hotplug controller, 24 bytes.
    pub const PCI_HOTPLUG: u16 = 0xae00;
    /// General-purpose event block 0, 4 bytes: status and enable.
    pub const GPE0: u16 = 0xafe0;
    /// SMI command port.
    pub const SMI_COMMAND: u16 = 0xb2;
    /// Reset control register.
    pub const RESET: u16 = 0xcf9;
}

/// Written to the SMI command port: take the hardware over.
const ACPI_ENABLE: u8 = 0xf1;
/// Written to the SMI command port: give the hardware back.
const ACPI_DISABLE: u8 = 0xf0;
/// Written to the reset register: a full reset with the processor's reset line (SeaBIOS, QEMU).
const RESET_VALUE: u8 = 0x0f;
/// The byte of CMOS memory that holds the century.
const CMOS_CENTURY: u8 = 0x32;
/// More than 100 and 1000 microseconds: no C2 and no C3 state.
const NO_C2: u16 = 0x0fff;
const NO_C3: u16 = 0x0fff;

/// Flags of the x86 platform (`IAPC_BOOT_ARCH`).
const LEGACY_DEVICES: u16 = 1 << 0;
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;

/// MADT: there are 8259 interrupt controllers too.
const PC_AT_COMPATIBLE: u32 = 1;
const MADT_HEADER: u32 = 44;
const MADT_REVISION: u8 = 4;
/// MADT entries.
const LOCAL_APIC: u8 = 0;
const IOAPIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
const ENABLED: u32 = 1;
const IOAPIC_ID: u8 = 0;
/// Polarity and trigger mode of an override: as the bus has it; active high and level; active low and level.
const CONFORMING: u16 = 0;
const HIGH_LEVEL: u16 = 0xd;
const LOW_LEVEL: u16 = 0xf;

/// ISA interrupts that reach the IOAPIC otherwise than edge-triggered at the input of the same number: source, input,
/// flags.
///
/// As QEMU has them, save that the SCI is active low: it shares its input with INTA# of power management, and Linux
/// refuses to share between polarities (`mp_check_pin_attr`). KVM's IOAPIC ignores polarity.
const OVERRIDES: [(u8, u32, u16); 5] = [
    (0, 2, CONFORMING),
    (5, 5, HIGH_LEVEL),
    (SCI, SCI as u32, LOW_LEVEL),
    (10, 10, HIGH_LEVEL),
    (11, 11, HIGH_LEVEL),
];

/// Adds all ACPI tables; the address of the root pointer.
pub(super) fn add(area: &mut Area, platform: &Platform) -> u64 {
    let facs = area.add(64, &bytes_of(&FACS::new()));
    let dsdt = area.add(16, &dsdt::table(platform));
    let fadt = area.add(16, &bytes_of(&fadt(platform, facs, dsdt)));
    let madt = area.add(16, madt(platform).as_slice());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(16, &bytes_of(&xsdt));
    area.add(16, &bytes_of(&Rsdp::new(OEM_ID, xsdt)))
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed description: a PC with power and timer hardware of its own, not "hardware-reduced".
fn fadt(platform: &Platform, facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .gpe_info(port::GPE0.into(), 0, 4, 0, 0);
    // The 32-bit field too, for systems that know only ACPI 1.0; the table lies below 1 MiB.
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = u16::from(SCI).into();
    fadt.smi_cmd = u32::from(port::SMI_COMMAND).into();
    fadt.acpi_enable = ACPI_ENABLE;
    fadt.acpi_disable = ACPI_DISABLE;
    fadt.pm1a_evt_blk = u32::from(port::PM1A_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(port::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(port::PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CMOS_CENTURY;
    let keyboard = if platform.keyboard { KEYBOARD_CONTROLLER } else { 0 };
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | keyboard).into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port::RESET.into());
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// The interrupt controllers.
fn madt(platform: &Platform) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", MADT_HEADER, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, address::LOCAL_APIC as u32);
    madt.write_u32(40, PC_AT_COMPATIBLE);
    let mut entries = Vec::new();
    for id in 0..platform.processors {
        if id < XAPIC_PROCESSORS {
            entries.extend([LOCAL_APIC, 8, id as u8, id as u8]);
            entries.extend(ENABLED.to_le_bytes());
        } else {
            entries.extend([LOCAL_X2APIC, 16, 0, 0]);
            entries.extend([id, ENABLED, id].map(u32::to_le_bytes).as_flattened());
        }
    }
    entries.extend([IOAPIC, 12, IOAPIC_ID, 0]);
    entries.extend([address::IOAPIC as u32, 0].map(u32::to_le_bytes).as_flattened());
    for (source, input, flags) in OVERRIDES {
        entries.extend([SOURCE_OVERRIDE, 10, 0, source]);
        entries.extend(input.to_le_bytes());
        entries.extend(flags.to_le_bytes());
    }
    // LINT1 of every processor.
    entries.extend([LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    if platform.processors > XAPIC_PROCESSORS {
        entries.extend([LOCAL_X2APIC_NMI, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    madt.append_slice(&entries);
    madt
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::boot::tables::checksum;
    use crate::memory::Layout;

    const BASE: u64 = 0xf_0000;

    struct Tables {
        bytes: Vec<u8>,
        rsdp: usize,
    }

    impl Tables {
        fn new(processors: u32) -> Self {
            let mut area = Area::new(BASE);
            let rsdp = add(&mut area, &Platform::new(processors, &Layout::new(512 << 20).unwrap()));
            Self {
                bytes: area.into_bytes(),
                rsdp: (rsdp - BASE) as usize,
            }
        }

        fn at(&self, address: u64) -> &[u8] {
            &self.bytes[(address - BASE) as usize..]
        }

        fn u32(table: &[u8], offset: usize) -> u32 {
            u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap())
        }

        fn u64(table: &[u8], offset: usize) -> u64 {
            u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
        }

        /// The table at `address`, its signature and checksum checked.
        fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
            let table = self.at(address);
            assert_eq!(&table[..4], signature);
            let table = &table[..Self::u32(table, 4) as usize];
            assert_eq!(checksum(table), 0, "{signature:?}");
            table
        }

        fn xsdt(&self) -> &[u8] {
            let rsdp = &self.bytes[self.rsdp..self.rsdp + 36];
            self.table(Self::u64(rsdp, 24), b"XSDT")
        }

        fn fadt(&self) -> &[u8] {
            self.table(Self::u64(self.xsdt(), 36), b"FACP")
        }

        fn madt(&self) -> &[u8] {
            self.table(Self::u64(self.xsdt(), 44), b"APIC")
        }

        /// Type and bytes of every MADT entry.
        fn madt_entries(&self) -> Vec<&[u8]> {
            let mut rest = &self.madt()[44..];
            let mut entries = Vec::new();
            while let Some(length) = rest.get(1) {
                let (entry, tail) = rest.split_at((*length).into());
                entries.push(entry);
                rest = tail;
            }
            entries
        }
    }

    #[test]
    fn root_pointer_is_on_a_paragraph_with_two_right_checksums() {
        let tables = Tables::new(1);
        let rsdp = &tables.bytes[tables.rsdp..tables.rsdp + 36];
        assert_eq!(tables.rsdp % 16, 0);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((checksum(&rsdp[..20]), checksum(rsdp), rsdp[15]), (0, 0, 2));
    }

    #[test]
    fn fixed_table_leads_to_the_others_and_has_the_ports_of_the_hardware() {
        let tables = Tables::new(1);
        let fadt = tables.fadt();
        tables.table(Tables::u64(fadt, 140), b"DSDT");
        assert_eq!(u64::from(Tables::u32(fadt, 40)), Tables::u64(fadt, 140));
        let facs = u64::from(Tables::u32(fadt, 36));
        assert_eq!(facs % 64, 0);
        assert_eq!(&tables.at(facs)[..8], b"FACS\x40\0\0\0");
        assert_eq!(fadt[46], 9, "SCI");
        assert_eq!((Tables::u32(fadt, 48), fadt[52], fadt[53]), (0xb2, 0xf1, 0xf0));
        assert_eq!(
            [56, 64, 76, 80].map(|at| Tables::u32(fadt, at)),
            [0x600, 0x604, 0x608, 0xafe0]
        );
        assert_eq!([88, 89, 91, 92].map(|at| fadt[at]), [4, 2, 4, 4]);
        assert_eq!(fadt[108], 0x32, "century");
        let flags = Tables::u32(fadt, 112);
        assert_eq!(
            flags & (1 << 4 | 1 << 8 | 1 << 10 | 1 << 20),
            1 << 10,
            "fixed power button, 24 bits, reset, full hardware"
        );
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[128], 0x0f);
    }

    #[test]
    fn every_processor_has_one_entry_of_the_kind_its_id_needs() {
        let tables = Tables::new(300);
        let entries = tables.madt_entries();
        let xapic: Vec<_> = entries
            .iter()
            .filter(|entry| entry[0] == 0)
            .map(|entry| (entry[2], entry[3]))
            .collect();
        assert_eq!(xapic, (0..255).map(|id| (id, id)).collect::<Vec<_>>());
        let x2apic = entries
            .iter()
            .filter(|entry| entry[0] == 9)
            .map(|entry| (Tables::u32(entry, 4), Tables::u32(entry, 12)));
        assert!(x2apic.eq((255..300).map(|id| (id, id))));
        assert_eq!(entries.iter().filter(|entry| entry[0] == 10).count(), 1);
        assert_eq!(
            Tables::new(255)
                .madt_entries()
                .iter()
                .filter(|entry| entry[0] >= 9)
                .count(),
            0
        );
    }

    #[test]
    fn interrupt_inputs_are_described() {
        let tables = Tables::new(1);
        assert_eq!(Tables::u32(tables.madt(), 36), 0xfee0_0000);
        let entries = tables.madt_entries();
        assert!(entries.contains(&&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0][..]));
        assert!(entries.contains(&&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0][..]));
        assert!(entries.contains(&&[2, 10, 0, 11, 11, 0, 0, 0, 0xd, 0][..]));
        assert!(entries.contains(&&[4, 6, 0xff, 0, 0, 1][..]));
    }
}
