//! What a kernel is told when it starts: `boot_params` for the 64-bit entry, `hvm_start_info` for the PVH entry.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::layout as at;
use crate::memory::{GuestMemory, Layout, clear};

/// `type_of_loader`: a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 0x80;
/// End of the real-mode heap, which the 64-bit entry does not use; the customary value.
const HEAP_END: u16 = 0xfe00;

/// Where an initrd lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Initrd {
    /// First guest physical address; below 4 GiB.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// What both protocols tell.
pub(super) struct Parameters<'a> {
    pub layout: &'a Layout,
    pub command_line_size: u64,
    pub initrd: Option<Initrd>,
    /// Guest physical address of the ACPI root pointer.
    pub rsdp: u64,
}

/// Writes `boot_params` ("zero page", Documentation/arch/x86/zero-page.rst in Linux). Screen information stays zero: no
/// video mode.
pub(super) fn write_boot_params(
    memory: &GuestMemory,
    parameters: &Parameters<'_>,
    header: setup_header,
) -> Result<(), GuestMemoryError> {
    let mut zero_page = boot_params {
        hdr: header,
        acpi_rsdp_addr: parameters.rsdp,
        ..boot_params::default()
    };
    zero_page.hdr.type_of_loader = LOADER_UNDEFINED;
    zero_page.hdr.loadflags |= CAN_USE_HEAP;
    zero_page.hdr.heap_end_ptr = HEAP_END;
    zero_page.hdr.setup_data = 0;
    // Both lie below 4 GiB.
    zero_page.hdr.cmd_line_ptr = at::COMMAND_LINE as u32;
    let initrd = parameters.initrd.unwrap_or(Initrd { address: 0, size: 0 });
    zero_page.hdr.ramdisk_image = initrd.address as u32;
    zero_page.hdr.ramdisk_size = initrd.size as u32;
    let map = parameters.layout.e820();
    let mut table = zero_page.e820_table;
    for (slot, entry) in table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            r#type: entry.kind as u32,
        };
    }
    zero_page.e820_table = table;
    zero_page.e820_entries = map.len().min(table.len()) as u8;
    memory.write_slice(zero_page.as_slice(), GuestAddress(at::BOOT_PARAMS))
}

/// Writes `hvm_start_info`, version 1, with its modules and memory map (xen/include/public/arch-x86/hvm/start_info.h).
pub(super) fn write_start_info(memory: &GuestMemory, parameters: &Parameters<'_>) -> Result<(), GuestMemoryError> {
    clear(memory, at::START_INFO..at::START_INFO + 0x1000)?;
    let map = parameters.layout.e820();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: parameters.initrd.is_some().into(),
        modlist_paddr: if parameters.initrd.is_some() {
            at::START_INFO_MODULES
        } else {
            0
        },
        cmdline_paddr: if parameters.command_line_size > 0 {
            at::COMMAND_LINE
        } else {
            0
        },
        rsdp_paddr: parameters.rsdp,
        memmap_paddr: at::START_INFO_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    memory.write_obj(info, GuestAddress(at::START_INFO))?;
    if let Some(initrd) = parameters.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        };
        memory.write_obj(module, GuestAddress(at::START_INFO_MODULES))?;
    }
    for (slot, entry) in (at::START_INFO_MEMORY_MAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(&map)
    {
        let size = entry.range.end - entry.range.start;
        let record = hvm_memmap_table_entry {
            addr: entry.range.start,
            size,
            type_: entry.kind as u32,
            reserved: 0,
        };
        memory.write_obj(record, GuestAddress(slot))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::boot::testing::guest;

    const INITRD: Initrd = Initrd {
        address: 0x1f0_0000,
        size: 0x1234,
    };

    fn parameters(layout: &Layout) -> Parameters<'_> {
        Parameters {
            layout,
            command_line_size: 5,
            initrd: Some(INITRD),
            rsdp: 0xf_1230,
        }
    }

    #[test]
    fn zero_page_has_its_fields_at_the_offsets_of_the_protocol() {
        let (layout, ram) = guest(6144);
        let memory = ram.memory();
        memory
            .write_slice(&[0xff; 0x1000], GuestAddress(at::BOOT_PARAMS))
            .unwrap();
        let header = setup_header {
            loadflags: 1,
            setup_data: 7,
            ..setup_header::default()
        };
        write_boot_params(memory, &parameters(&layout), header).unwrap();
        let word = |offset| memory.read_obj::<u32>(GuestAddress(at::BOOT_PARAMS + offset)).unwrap();
        let byte = |offset| memory.read_obj::<u8>(GuestAddress(at::BOOT_PARAMS + offset)).unwrap();
        assert_eq!(word(0x070), 0xf_1230, "acpi_rsdp_addr");
        assert_eq!(byte(0x1e8), 6, "e820_entries");
        assert_eq!(byte(0x1ef), 0, "sentinel");
        assert_eq!(byte(0x210), 0xff, "type_of_loader");
        assert_eq!(byte(0x211), 0x81, "loadflags");
        assert_eq!((word(0x218), word(0x21c)), (0x1f0_0000, 0x1234), "ramdisk");
        assert_eq!(word(0x228), 0x2_0000, "cmd_line_ptr");
        assert_eq!((word(0x250), word(0x254)), (0, 0), "setup_data");
        assert_eq!((word(0x2d0), word(0x2d8), word(0x2e0)), (0, 0x9_fc00, 1), "first range");
        assert_eq!(
            (word(0x2d0 + 5 * 20 + 4), word(0x2d0 + 5 * 20 + 16)),
            (1, 1),
            "range at 4 GiB"
        );
        assert_eq!(word(0x000), 0, "screen_info");
    }

    #[test]
    fn start_info_leads_to_module_and_memory_map() {
        let (layout, ram) = guest(32);
        let memory = ram.memory();
        memory
            .write_slice(&[0xff; 0x1000], GuestAddress(at::START_INFO))
            .unwrap();
        write_start_info(memory, &parameters(&layout)).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(at::START_INFO)).unwrap();
        assert_eq!(
            (info.magic, info.version, info.flags, info.nr_modules),
            (0x336e_c578, 1, 0, 1)
        );
        assert_eq!(
            (info.cmdline_paddr, info.rsdp_paddr, info.memmap_entries),
            (0x2_0000, 0xf_1230, 5)
        );
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (INITRD.address, INITRD.size));
        let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(info.memmap_paddr + 4 * 24)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (0xfeff_c000, 0x4000, 2));
    }
}
