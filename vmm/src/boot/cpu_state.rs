//! The boot processor's registers at the first instruction, and the descriptor and page tables that they point to.
//!
//! 64-bit entry: Documentation/arch/x86/boot.rst in Linux, "64-bit boot protocol". PVH entry: docs/misc/pvh.pandoc in
//! Xen.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Entry, layout as at};
use crate::memory::GuestMemory;

/// CR0: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0: the coprocessor is a 387; always one.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: entries of 64 bits.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode is on when paging is.
const EFER_LME: u64 = 1 << 8;
/// EFER: long mode is on.
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// Code, readable, accessed.
const TYPE_CODE: u8 = 0xb;
/// Data, writable, accessed.
const TYPE_DATA: u8 = 0x3;
/// Task state segment, busy: what the task register must name.
const TYPE_TSS: u8 = 0xb;

const CODE_32: kvm_segment = segment(1, TYPE_CODE, false);
const CODE_64: kvm_segment = segment(2, TYPE_CODE, true);
const DATA: kvm_segment = segment(3, TYPE_DATA, false);
const TSS: kvm_segment = kvm_segment {
    limit: 0x67,
    db: 0,
    s: 0,
    g: 0,
    ..segment(4, TYPE_TSS, false)
};
/// Two null entries round the two kinds of code make the selectors those of Linux: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18.
/// The task state segment takes two entries in long mode.
const GDT: [u64; 6] = [
    0,
    descriptor(&CODE_32),
    descriptor(&CODE_64),
    descriptor(&DATA),
    descriptor(&TSS),
    0,
];

/// Page table entry: present, writable, accessed.
const TABLE: u64 = 0x23;
/// The same and dirty, for a page of 2 MiB.
const LARGE_PAGE: u64 = 0xe3;
const ENTRIES: u64 = 512;
const PAGE: u64 = 4096;
/// Gibibytes that the page tables map: all that code can find before it makes its own.
const MAPPED_GIB: u64 = 4;

/// A flat segment over 4 GiB at entry `index` of the descriptor table.
const fn segment(index: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index << 3,
        type_,
        present: 1,
        dpl: 0,
        db: !long as u8,
        s: 1,
        l: long as u8,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The descriptor of a segment (Intel SDM volume 3, section 3.4.5).
const fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = (if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    }) as u64;
    let access =
        segment.type_ as u64 | (segment.s as u64) << 4 | (segment.dpl as u64) << 5 | (segment.present as u64) << 7;
    let flags = segment.avl as u64 | (segment.l as u64) << 1 | (segment.db as u64) << 2 | (segment.g as u64) << 3;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Writes the descriptor table, and the page tables that map the first 4 GiB to themselves.
pub(super) fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_slice(GDT.map(u64::to_le_bytes).as_flattened(), GuestAddress(at::GDT))?;
    let pointers = at::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    write_table(
        memory,
        at::PAGE_TABLES,
        |index| if index == 0 { pointers | TABLE } else { 0 },
    )?;
    write_table(memory, pointers, |index| {
        if index < MAPPED_GIB {
            (directories + index * PAGE) | TABLE
        } else {
            0
        }
    })?;
    for gib in 0..MAPPED_GIB {
        write_table(memory, directories + gib * PAGE, |index| {
            (gib * ENTRIES + index) << 21 | LARGE_PAGE
        })?;
    }
    Ok(())
}

fn write_table(memory: &GuestMemory, address: u64, entry: impl Fn(u64) -> u64) -> Result<(), GuestMemoryError> {
    let table: Vec<u8> = (0..ENTRIES).flat_map(|index| entry(index).to_le_bytes()).collect();
    memory.write_slice(&table, GuestAddress(address))
}

/// General registers at `entry`.
pub fn registers(entry: &Entry) -> kvm_regs {
    let common = kvm_regs {
        rflags: RFLAGS,
        rsp: at::STACK_TOP,
        rbp: at::STACK_TOP,
        ..kvm_regs::default()
    };
    match *entry {
        Entry::Linux64 { rip, boot_params } => kvm_regs {
            rip,
            rsi: boot_params,
            ..common
        },
        Entry::Pvh { rip, start_info } => kvm_regs {
            rip: rip.into(),
            rbx: start_info.into(),
            ..common
        },
    }
}

/// Segment and control registers at `entry`; of `current`, only the base and state of the local APIC stay.
pub fn special_registers(entry: &Entry, current: &kvm_sregs) -> kvm_sregs {
    let gdt = kvm_dtable {
        base: at::GDT,
        limit: (size_of_val(&GDT) - 1) as u16,
        ..kvm_dtable::default()
    };
    let common = kvm_sregs {
        ds: DATA,
        es: DATA,
        fs: DATA,
        gs: DATA,
        ss: DATA,
        tr: TSS,
        ldt: kvm_segment {
            unusable: 1,
            ..kvm_segment::default()
        },
        gdt,
        apic_base: current.apic_base,
        ..kvm_sregs::default()
    };
    match entry {
        Entry::Linux64 { .. } => kvm_sregs {
            cs: CODE_64,
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: at::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..common
        },
        Entry::Pvh { .. } => kvm_sregs {
            cs: CODE_32,
            cr0: CR0_PE | CR0_ET,
            ..common
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::boot::testing::guest;

    const LINUX: Entry = Entry::Linux64 {
        rip: 0x100_0200,
        boot_params: at::BOOT_PARAMS,
    };
    const PVH: Entry = Entry::Pvh {
        rip: 0x20_0000,
        start_info: at::START_INFO as u32,
    };

    #[test]
    fn descriptors_are_those_of_linux() {
        // arch/x86/boot/pm.c and GDT_ENTRY_INIT, with the accessed bit set; then a busy TSS of 0x68 bytes.
        assert_eq!(
            GDT,
            [
                0,
                0xcf_9b00_0000_ffff,
                0xaf_9b00_0000_ffff,
                0xcf_9300_0000_ffff,
                0x8b00_0000_0067,
                0
            ]
        );
    }

    #[test]
    fn page_tables_map_every_address_below_4_gib_to_itself() {
        let (_, ram) = guest(32);
        let memory = ram.memory();
        memory
            .write_slice(&[0xff; 0x7000], GuestAddress(at::PAGE_TABLES))
            .unwrap();
        write_tables(memory).unwrap();
        let entry = |table: u64, index: u64| {
            memory
                .read_obj::<u64>(GuestAddress((table & !0xfff) + index * 8))
                .unwrap()
        };
        for address in [0, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xfee0_0000, 0xffff_ffff_u64] {
            let pointers = entry(at::PAGE_TABLES, address >> 39);
            let directory = entry(pointers, address >> 30 & 511);
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0x81, 0x81, "large and present");
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
        }
        assert_eq!(entry(at::PAGE_TABLES, 1), 0);
        assert_eq!(entry(at::PAGE_TABLES + PAGE, 4), 0);
        const { assert!(at::PAGE_TABLES + 6 * PAGE <= at::COMMAND_LINE) };
    }

    #[test]
    fn linux_starts_in_long_mode_with_the_zero_page_in_rsi() {
        let current = kvm_sregs {
            apic_base: 0xfee0_0900,
            cr3: 0x1234_5000,
            interrupt_bitmap: [1; 4],
            ..kvm_sregs::default()
        };
        let special = special_registers(&LINUX, &current);
        assert_eq!(
            (special.cs.selector, special.cs.l, special.cs.db, special.ds.selector),
            (0x10, 1, 0, 0x18)
        );
        assert_eq!(
            (special.cr0, special.cr3, special.cr4, special.efer),
            (0x8000_0011, 0x9000, 0x20, 0x500)
        );
        assert_eq!((special.apic_base, special.interrupt_bitmap), (0xfee0_0900, [0; 4]));
        assert_eq!(
            (registers(&LINUX).rip, registers(&LINUX).rsi, registers(&LINUX).rflags),
            (0x100_0200, 0x7000, 2)
        );
    }

    #[test]
    fn pvh_starts_in_protected_mode_without_paging_with_start_info_in_ebx() {
        let special = special_registers(
            &PVH,
            &kvm_sregs {
                cr4: 0x20,
                efer: 0x500,
                ..kvm_sregs::default()
            },
        );
        assert_eq!(
            (special.cs.db, special.cs.l, special.cs.limit, special.cs.base),
            (1, 0, 0xffff_ffff, 0)
        );
        assert_eq!((special.cr0, special.cr4, special.efer), (0x11, 0, 0));
        assert_eq!((special.tr.limit, special.tr.type_), (0x67, 0xb));
        assert_eq!((registers(&PVH).rip, registers(&PVH).rbx), (0x20_0000, 0x2000));
    }
}
