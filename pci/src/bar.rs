//! Base address registers: where a function answers in I/O and memory space.
//!
//! The register's bytes lie in configuration space, where its address bits are writable and its type bits are not;
//! the sizing protocol (write ones, read back) and half-written 64-bit BARs need nothing more. What a BAR decodes is
//! decided as QEMU's `pci_bar_address` (hw/pci/pci.c) decides it.

use crate::config_space::{ConfigSpace, command, register};
use crate::function::{Region, Space};

/// BARs of a type 0 header.
pub const COUNT: u8 = 6;

/// I/O ports of an x86 machine.
const IO_SPACE: u64 = 1 << 16;

/// What kind of BAR it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The type bits, read-only (PCI Local Bus 3.0, section 6.2.5.1).
    fn flags(self) -> u64 {
        let (width, prefetchable) = match self {
            Self::Io => return 1,
            Self::Memory32 { prefetchable } => (0, prefetchable),
            Self::Memory64 { prefetchable } => (4, prefetchable),
        };
        width | u64::from(prefetchable) << 3
    }

    /// Registers that it takes.
    fn registers(self) -> u8 {
        if matches!(self, Self::Memory64 { .. }) { 2 } else { 1 }
    }

    fn space(self) -> Space {
        if self == Self::Io { Space::Io } else { Space::Memory }
    }
}

/// A BAR that a function has: fixed when the function is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    index: u8,
    kind: BarKind,
    size: u64,
}

/// Why there can be no such BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BarError {
    /// A function has BARs 0 to 5, and a 64-bit BAR takes two
    #[error("BAR {0}: a function has BARs 0 to 5, and a 64-bit BAR takes two")]
    Index(u8),
    /// The size is not a power of two, or outside what the kind of BAR can express
    #[error("BAR {index}: {size:#x} bytes is not a power of two that such a BAR can express")]
    Size {
        /// Index of the BAR.
        index: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// Two BARs take the same register
    #[error("BAR {0}: its register is taken by another BAR")]
    Taken(u8),
}

impl Bar {
    /// BAR `index` of `size` bytes: a power of two of at least 4 ports or 16 bytes, at most 32 KiB of ports, 2 GiB of
    /// 32-bit memory.
    ///
    /// # Errors
    /// Index or size are out of range.
    pub fn new(index: u8, kind: BarKind, size: u64) -> Result<Self, BarError> {
        let sizes = match kind {
            BarKind::Io => 4..=IO_SPACE / 2,
            BarKind::Memory32 { .. } => 16..=1 << 31,
            BarKind::Memory64 { .. } => 16..=1 << 62,
        };
        if index >= COUNT || index + kind.registers() > COUNT {
            return Err(BarError::Index(index));
        }
        if !size.is_power_of_two() || !sizes.contains(&size) {
            return Err(BarError::Size { index, size });
        }
        Ok(Self { index, kind, size })
    }

    /// Index of its (first) register, 0 to 5.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Kind.
    pub fn kind(&self) -> BarKind {
        self.kind
    }

    /// Bytes that it decodes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Offset of its (first) register in configuration space.
    fn offset(&self) -> u16 {
        register::BAR0 + 4 * u16::from(self.index)
    }

    /// Gives its registers in `config` their type bits and their writable bits.
    fn lay_out(&self, config: &mut ConfigSpace) {
        let bytes = 4 * usize::from(self.kind.registers());
        config.set_default(self.offset(), &self.kind.flags().to_le_bytes()[..bytes]);
        config.set_writable(self.offset(), &self.address_bits().to_le_bytes()[..bytes]);
    }

    /// The bits of the register that hold an address.
    fn address_bits(&self) -> u64 {
        !(self.size - 1)
    }

    /// What it decodes with the registers as they are in `config`.
    ///
    /// Nothing while the command register has its space switched off, and nothing at addresses that a guest uses to
    /// say "nowhere": 0, the end of the address space, ports above 64 Ki, a 32-bit BAR that would reach the last byte
    /// below 4 GiB (as every 32-bit BAR does while it is being sized).
    pub fn decoded(&self, config: &ConfigSpace) -> Option<Region> {
        let space = self.kind.space();
        let enable = match space {
            Space::Io => command::IO,
            Space::Memory => command::MEMORY,
        };
        if config.read_u16(register::COMMAND) & enable == 0 {
            return None;
        }
        let low = u64::from(config.read_u32(self.offset()));
        let (high, limit) = match self.kind {
            BarKind::Io => (0, IO_SPACE - 1),
            BarKind::Memory32 { .. } => (0, u64::from(u32::MAX) - 1),
            BarKind::Memory64 { .. } => (u64::from(config.read_u32(self.offset() + 4)), u64::MAX - 1),
        };
        let base = (high << 32 | low) & self.address_bits();
        let last = base.checked_add(self.size - 1)?;
        (base != 0 && last <= limit).then_some(Region {
            bar: self.index,
            space,
            base,
            size: self.size,
        })
    }
}

/// The BARs of a function.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    list: Vec<Bar>,
}

impl Bars {
    /// Puts `list` into the header of `config`.
    ///
    /// # Errors
    /// Two BARs take the same register.
    pub fn new(list: Vec<Bar>, config: &mut ConfigSpace) -> Result<Self, BarError> {
        let mut taken = [false; COUNT as usize];
        for bar in &list {
            let first = usize::from(bar.index);
            let registers = taken
                .get_mut(first..first + usize::from(bar.kind.registers()))
                .ok_or(BarError::Index(bar.index))?;
            if registers.contains(&true) {
                return Err(BarError::Taken(bar.index));
            }
            registers.fill(true);
            bar.lay_out(config);
        }
        Ok(Self { list })
    }

    /// Each BAR.
    pub fn iter(&self) -> impl Iterator<Item = &Bar> {
        self.list.iter()
    }

    /// BAR `index`, if there is one.
    pub fn get(&self, index: u8) -> Option<&Bar> {
        self.list.iter().find(|bar| bar.index == index)
    }

    /// The regions decoded now, in the order in which the BARs were given.
    pub fn regions(&self, config: &ConfigSpace) -> Vec<Region> {
        self.list.iter().filter_map(|bar| bar.decoded(config)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config_space::Header;

    const PREFETCHABLE: BarKind = BarKind::Memory64 { prefetchable: true };
    const PLAIN: BarKind = BarKind::Memory32 { prefetchable: false };

    /// The BARs of a transitional virtio device: I/O, MSI-X, 64-bit.
    fn virtio() -> (ConfigSpace, Bars) {
        let mut config = ConfigSpace::type0(&Header::default());
        let list = vec![
            Bar::new(0, BarKind::Io, 0x80).unwrap(),
            Bar::new(1, PLAIN, 0x1000).unwrap(),
            Bar::new(4, PREFETCHABLE, 0x4000).unwrap(),
        ];
        let bars = Bars::new(list, &mut config).unwrap();
        (config, bars)
    }

    fn write(config: &mut ConfigSpace, offset: u16, value: u32) {
        config.write(offset, &value.to_le_bytes());
    }

    fn enable(config: &mut ConfigSpace) {
        config.write(register::COMMAND, &[3]);
    }

    #[test]
    fn writing_ones_shows_size_and_type() {
        let (mut config, _) = virtio();
        for (offset, empty, sized) in [
            (0x10, 0x1, 0xffff_ff81),
            (0x14, 0x0, 0xffff_f000),
            (0x18, 0x0, 0x0),
            (0x20, 0xc, 0xffff_c00c),
            (0x24, 0x0, 0xffff_ffff),
        ] {
            assert_eq!(config.read_u32(offset), empty, "{offset:#x}");
            write(&mut config, offset, 0xffff_ffff);
            assert_eq!(config.read_u32(offset), sized, "{offset:#x}");
        }
    }

    #[test]
    fn each_space_is_decoded_only_while_it_is_enabled() {
        let (mut config, bars) = virtio();
        write(&mut config, 0x10, 0xc000);
        write(&mut config, 0x14, 0xfebf_0000);
        write(&mut config, 0x20, 0x4000);
        write(&mut config, 0x24, 1);
        assert_eq!(bars.regions(&config), []);
        config.write(register::COMMAND, &[1]);
        let ports = Region {
            bar: 0,
            space: Space::Io,
            base: 0xc000,
            size: 0x80,
        };
        assert_eq!(bars.regions(&config), [ports]);
        config.write(register::COMMAND, &[2]);
        let table = Region {
            bar: 1,
            space: Space::Memory,
            base: 0xfebf_0000,
            size: 0x1000,
        };
        let modern = Region {
            bar: 4,
            space: Space::Memory,
            base: 0x1_0000_4000,
            size: 0x4000,
        };
        assert_eq!(bars.regions(&config), [table, modern]);
    }

    #[test]
    fn addresses_that_mean_nowhere_are_not_decoded() {
        let nowhere = [
            (0x10, 0, "ports at 0"),
            (0x10, 0x1_0000, "ports above 64 Ki"),
            (0x10, 0xffff_ff80, "ports being sized"),
            (0x14, 0, "memory at 0"),
            (0x14, 0xffff_f000, "32-bit memory being sized"),
            (0x20, 0, "64-bit memory at 0"),
        ];
        for (offset, value, what) in nowhere {
            let (mut config, bars) = virtio();
            enable(&mut config);
            write(&mut config, offset, value);
            assert_eq!(bars.regions(&config), [], "{what}");
        }
        let (mut config, bars) = virtio();
        enable(&mut config);
        write(&mut config, 0x10, 0xff80);
        assert_eq!(
            bars.regions(&config)[0].base,
            0xff80,
            "the last ports of all are decoded"
        );
    }

    #[test]
    fn half_written_64_bit_bar_is_where_its_halves_say() {
        let (mut config, bars) = virtio();
        enable(&mut config);
        let base = |config: &ConfigSpace| bars.regions(config).first().map(|region| region.base);
        write(&mut config, 0x24, 0x20);
        assert_eq!(base(&config), Some(0x20_0000_0000));
        write(&mut config, 0x20, 0xfebf_4000);
        assert_eq!(base(&config), Some(0x20_febf_4000));
        write(&mut config, 0x24, 0xffff_ffff);
        write(&mut config, 0x20, 0xffff_ffff);
        assert_eq!(base(&config), None, "all ones is nowhere");
    }

    #[test]
    fn bars_that_cannot_be_are_refused() {
        assert_eq!(Bar::new(6, BarKind::Io, 4), Err(BarError::Index(6)));
        assert_eq!(Bar::new(5, PREFETCHABLE, 0x1000), Err(BarError::Index(5)));
        for (kind, size) in [
            (BarKind::Io, 2),
            (BarKind::Io, 0x1_0000),
            (PLAIN, 0),
            (PLAIN, 24),
            (PLAIN, 1 << 32),
        ] {
            assert_eq!(Bar::new(0, kind, size), Err(BarError::Size { index: 0, size }));
        }
        let mut config = ConfigSpace::type0(&Header::default());
        let list = vec![
            Bar::new(0, PREFETCHABLE, 0x1000).unwrap(),
            Bar::new(1, PLAIN, 0x1000).unwrap(),
        ];
        assert_eq!(Bars::new(list, &mut config).err(), Some(BarError::Taken(1)));
    }
}
