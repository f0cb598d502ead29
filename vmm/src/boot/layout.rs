//! What lies where in the first MiB of guest memory when the first instruction runs.
//!
//! | Address | Size | What |
//! |---|---|---|
//! | `0x0_0000` | 4 KiB | BIOS data area at 0x400: EBDA segment (0x40e), KiB of base memory (0x413) |
//! | `0x0_1000` | 4 KiB | [`GDT`] |
//! | `0x0_2000` | 4 KiB | [`START_INFO`], modules and memory map (PVH) |
//! | `0x0_7000` | 4 KiB | [`BOOT_PARAMS`] ("zero page", 64-bit entry) |
//! | `0x0_8000` | 4 KiB | stack, growing down from [`STACK_TOP`] |
//! | `0x0_9000` | 24 KiB | [`PAGE_TABLES`]: identity map of the first 4 GiB (64-bit entry) |
//! | `0x2_0000` | 64 KiB | [`COMMAND_LINE`] |
//! | `0x9_fc00` | 1 KiB | extended BIOS data area |
//! | `0xf_0000` | 64 KiB | [firmware tables](super::tables) |
//!
//! The kernel, and the initrd as high as it may be, lie above 1 MiB.

/// Segment in BIOS data: where the extended BIOS data area begins, divided by 16.
pub const BDA_EBDA_SEGMENT: u64 = 0x40e;
/// Word in BIOS data: KiB of memory below the extended BIOS data area.
pub const BDA_BASE_MEMORY: u64 = 0x413;
/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// `hvm_start_info` of the PVH entry.
pub const START_INFO: u64 = 0x2000;
/// Modules of the PVH entry.
pub const START_INFO_MODULES: u64 = START_INFO + 0x80;
/// Memory map of the PVH entry.
pub const START_INFO_MEMORY_MAP: u64 = START_INFO + 0x100;
/// `boot_params` of the 64-bit entry.
pub const BOOT_PARAMS: u64 = 0x7000;
/// First address above the stack. Both entries set a stack of their own; this one serves code that does not.
pub const STACK_TOP: u64 = 0x9000;
/// Page map level 4, one page directory pointer table, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line with a NUL at its end.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes reserved for it.
pub const COMMAND_LINE_SIZE: u64 = 0x1_0000;
