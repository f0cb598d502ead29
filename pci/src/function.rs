//! What a PCI function is to the bus: configuration space, regions that it decodes, and the changes that a write
//! brings about.

use crate::bar::Bar;
use crate::capability::msix::VectorState;

/// The address space that a region lives in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Space {
    /// I/O ports, 16 bits of address on x86.
    Io,
    /// Memory, 64 bits of address.
    Memory,
}

/// A range that a function decodes now: a BAR whose space is switched on in the command register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Region {
    /// Index of the BAR, 0 to 5.
    pub bar: u8,
    /// Where it is decoded.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

/// What an access changed outside the function; the owner of the machine applies it. Nobody is called back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The function decodes this region from now on.
    Mapped(Region),
    /// The function no longer decodes this region.
    Unmapped(Region),
    /// MSI-X was switched on or off, or its function mask changed; every vector's route is to be looked at again.
    MsixControl {
        /// MSI-X Enable of message control.
        enabled: bool,
        /// Function Mask of message control.
        masked: bool,
    },
    /// The address, data or mask of one MSI-X vector changed.
    MsixVector(u16),
    /// Interrupt Disable of the command register changed.
    IntxDisabled(bool),
    /// A PIRQ of the ISA bridge is routed to this ISA interrupt now, or to none (PIIX3 registers 0x60 to 0x63).
    PirqRouted {
        /// PIRQ A to D as 0 to 3.
        pirq: u8,
        /// ISA interrupt 0 to 15; `None` when routing is off.
        irq: Option<u8>,
    },
    /// The power management block of PIIX4 is decoded at this port now, or nowhere (registers 0x40 and 0x80).
    PmBase(Option<u16>),
}

/// The changes of one access. Most accesses change nothing, and an empty `Vec` does not allocate.
pub type Changes = Vec<Change>;

/// A PCI function as the bus sees it. Access lengths are 1, 2 or 4 bytes in configuration space, 1 to 8 in a BAR;
/// data is little-endian.
pub trait Function: Send {
    /// Reads `data.len()` bytes of configuration space at `offset`. Bytes past the end read as all ones.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space; says what changed outside.
    fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes;

    /// The BARs that it has, decoded or not.
    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }

    /// The regions that are decoded now. None, unless the function has BARs.
    fn regions(&self) -> Vec<Region> {
        Vec::new()
    }

    /// Reads from the BAR at an offset into it; ones where there is none.
    fn read_bar(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) -> Changes {
        data.fill(0xff);
        Changes::new()
    }

    /// Writes to the BAR at an offset into it; ignored where there is none.
    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Changes {
        Changes::new()
    }

    /// What an MSI-X vector is set to, for whoever sends its message; `None` when there is no such vector.
    fn msix_vector(&self, _vector: u16) -> Option<VectorState> {
        None
    }

    /// The state after a reset of the bus (RST#): configuration registers at their defaults, nothing decoded.
    fn reset(&mut self) -> Changes;
}
