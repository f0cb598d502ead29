//! The guest's physical address space, as QEMU's `pc` machine divides it.
//!
//! ```text
//! 0                         RAM (640 KiB)
//! 0x0009_fc00               extended BIOS data area
//! 0x000a_0000               VGA and option ROM hole
//! 0x000f_0000               firmware tables
//! 0x0010_0000               RAM, up to 3.5 GiB; to 3 GiB when there is 3.5 GiB or more
//! end of low RAM            PCI memory window
//! 0xfec0_0000               IOAPIC, then local APICs at 0xfee0_0000
//! 0xfeff_c000               pages that KVM needs on Intel
//! 0x1_0000_0000             the rest of RAM
//! next multiple of 1 GiB    64-bit PCI memory window
//! ```

use std::ops::Range;

/// Fixed addresses of the machine.
pub mod address {
    /// End of conventional RAM; the extended BIOS data area begins here (639 KiB, as SeaBIOS leaves it).
    pub const EBDA: u64 = 0x9_fc00;
    /// VGA memory, then option ROMs: no RAM for the guest.
    pub const VGA_HOLE: u64 = 0xa_0000;
    /// The segment in which operating systems look for firmware tables; 64 KiB.
    pub const FIRMWARE_TABLES: u64 = 0xf_0000;
    /// RAM goes on from here.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
    /// Registers of the IOAPIC; the low PCI window ends here.
    pub const IOAPIC: u64 = 0xfec0_0000;
    /// Registers of the local APIC.
    pub const LOCAL_APIC: u64 = 0xfee0_0000;
    /// Identity-mapped page table that KVM uses on Intel while a vCPU runs with paging off
    /// (`KVM_SET_IDENTITY_MAP_ADDR`); one page. As QEMU's pc machine.
    pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
    /// Task state segment that KVM uses on Intel in real mode (`KVM_SET_TSS_ADDR`); three pages.
    pub const KVM_TSS: u64 = 0xfeff_d000;
    /// End of the pages that are KVM's.
    pub const KVM_PAGES_END: u64 = 0xff00_0000;
    /// RAM above the hole begins here.
    pub const FOUR_GIB: u64 = 1 << 32;
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Least memory that a guest can have.
const MIN_SIZE: u64 = 32 * MIB;
/// Most memory that a guest can have; one memory slot of KVM holds just under 8 TiB (2^31 - 1 pages).
const MAX_SIZE: u64 = 4096 * GIB;
/// From this size on, RAM is split (QEMU `pc_init1`, `max_ram_below_4g`) ...
const SPLIT_FROM: u64 = 0xe000_0000;
/// ... and this much of it stays below 4 GiB.
const SPLIT_LOW: u64 = 0xc000_0000;
/// Size of the 64-bit PCI window: room for large BARs, and inside the address width of every processor with up to 16
/// GiB of RAM.
const WINDOW64_SIZE: u64 = 32 * GIB;

/// The memory size cannot be laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// Fewer bytes than any supported kernel can start with.
    #[error("guest memory of {0} bytes is too small; give at least 32 MiB (--memory or -m 32M)")]
    TooSmall(u64),
    /// More bytes than the machine can address.
    #[error("guest memory of {0} bytes is too large; give at most 4 TiB (--memory or -m 4096G)")]
    TooLarge(u64),
    /// Memory is dealt out in MiB.
    #[error(
        "guest memory of {0} bytes is not a whole number of MiB; give, for example, \
         {mib}M", mib = .0 / MIB
    )]
    NotWholeMiB(u64),
}

/// Where RAM and the PCI windows lie for one memory size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    size: u64,
    low_end: u64,
}

impl Layout {
    /// The layout for `size` bytes of RAM, a multiple of 1 MiB from 32 MiB to 4 TiB.
    pub fn new(size: u64) -> Result<Self, LayoutError> {
        match size {
            ..MIN_SIZE => Err(LayoutError::TooSmall(size)),
            MIN_SIZE..=MAX_SIZE if !size.is_multiple_of(MIB) => Err(LayoutError::NotWholeMiB(size)),
            MIN_SIZE..SPLIT_FROM => Ok(Self { size, low_end: size }),
            SPLIT_FROM..=MAX_SIZE => Ok(Self {
                size,
                low_end: SPLIT_LOW,
            }),
            _ => Err(LayoutError::TooLarge(size)),
        }
    }

    /// Bytes of RAM altogether.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the RAM below 4 GiB, in guest physical addresses.
    pub fn low_end(&self) -> u64 {
        self.low_end
    }

    /// End of the RAM above 4 GiB; 4 GiB when there is none.
    pub fn high_end(&self) -> u64 {
        address::FOUR_GIB + (self.size - self.low_end)
    }

    /// The guest physical ranges that RAM backs, ascending; one or two. The first begins at 0 and takes in the hole
    /// below 1 MiB, where the firmware tables are.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        [0..self.low_end, address::FOUR_GIB..self.high_end()]
            .into_iter()
            .filter(|range| !range.is_empty())
    }

    /// The window below 4 GiB for memory BARs.
    pub fn pci_window32(&self) -> Range<u64> {
        self.low_end..address::IOAPIC
    }

    /// The window above RAM for 64-bit memory BARs.
    pub fn pci_window64(&self) -> Range<u64> {
        let start = self.high_end().next_multiple_of(GIB);
        start..start + WINDOW64_SIZE
    }

    /// The memory map that firmware would report (INT 15h, E820), ascending.
    pub fn e820(&self) -> Vec<E820Entry> {
        let entry = |range: Range<u64>, kind| E820Entry { range, kind };
        let mut map = vec![
            entry(0..address::EBDA, E820Type::Ram),
            entry(address::EBDA..address::VGA_HOLE, E820Type::Reserved),
            entry(address::FIRMWARE_TABLES..address::HIGH_MEMORY, E820Type::Reserved),
            entry(address::HIGH_MEMORY..self.low_end, E820Type::Ram),
            entry(address::KVM_IDENTITY_MAP..address::KVM_PAGES_END, E820Type::Reserved),
        ];
        if self.high_end() > address::FOUR_GIB {
            map.push(entry(address::FOUR_GIB..self.high_end(), E820Type::Ram));
        }
        map
    }
}

/// What a range of the memory map is; the numbers are those of ACPI 6.4, table 15.4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum E820Type {
    /// RAM that the operating system may use.
    Ram = 1,
    /// Not for the operating system.
    Reserved = 2,
}

/// One range of the memory map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct E820Entry {
    /// Guest physical addresses.
    pub range: Range<u64>,
    /// What is there.
    pub kind: E820Type,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_under_three_and_a_half_gib_stays_in_one_piece() {
        for size in [32 * MIB, 512 * MIB, SPLIT_FROM - MIB] {
            let layout = Layout::new(size).unwrap();
            assert!(layout.ram().eq(std::iter::once(0..size)));
            assert_eq!(layout.pci_window32(), size..0xfec0_0000);
            assert_eq!(layout.pci_window64().start, 1 << 32);
        }
    }

    #[test]
    fn memory_from_three_and_a_half_gib_on_is_split_at_three() {
        let layout = Layout::new(SPLIT_FROM).unwrap();
        assert_eq!(
            layout.ram().collect::<Vec<_>>(),
            [0..0xc000_0000, 0x1_0000_0000..0x1_2000_0000]
        );
        assert_eq!(layout.pci_window64().start, 0x1_4000_0000);
    }

    #[test]
    fn sizes_that_cannot_be_laid_out_are_refused() {
        assert_eq!(Layout::new(31 * MIB), Err(LayoutError::TooSmall(31 * MIB)));
        assert_eq!(Layout::new(32 * MIB + 1), Err(LayoutError::NotWholeMiB(32 * MIB + 1)));
        assert_eq!(Layout::new(MAX_SIZE + MIB), Err(LayoutError::TooLarge(MAX_SIZE + MIB)));
        assert_eq!(Layout::new(u64::MAX), Err(LayoutError::TooLarge(u64::MAX)));
        assert!(Layout::new(MAX_SIZE).is_ok());
        assert!(
            LayoutError::NotWholeMiB(33 * MIB + 5)
                .to_string()
                .ends_with("give, for example, 33M")
        );
    }

    #[test]
    fn memory_map_is_ascending_disjoint_and_holds_all_ram_but_the_legacy_hole() {
        for size in [32 * MIB, 512 * MIB, SPLIT_FROM, 6 * GIB, MAX_SIZE] {
            let layout = Layout::new(size).unwrap();
            let map = layout.e820();
            assert!(map.iter().all(|entry| !entry.range.is_empty()));
            assert!(
                map.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start),
                "{map:?}"
            );
            let ram: u64 = map
                .iter()
                .filter(|entry| entry.kind == E820Type::Ram)
                .map(|entry| entry.range.end - entry.range.start)
                .sum();
            assert_eq!(ram, size - (address::HIGH_MEMORY - address::EBDA));
        }
    }

    #[test]
    fn windows_and_ram_do_not_overlap() {
        for size in [32 * MIB, SPLIT_FROM - MIB, SPLIT_FROM, 6 * GIB + MIB] {
            let layout = Layout::new(size).unwrap();
            for ram in layout.ram() {
                for window in [layout.pci_window32(), layout.pci_window64()] {
                    assert!(
                        ram.end <= window.start || window.end <= ram.start,
                        "{ram:x?} {window:x?}"
                    );
                }
            }
        }
    }
}
