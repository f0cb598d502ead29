//! Tables that firmware leaves for the operating system.

use crate::memory::{GuestMemory, Layout};

/// The firmware tables can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// Guest memory that must be there is not.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What the tables say of the machine.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Processors; their local APIC ids are 0, 1, ...
    pub processors: u32,
    /// Where RAM and the PCI windows are.
    pub layout: Layout,
    /// There is a keyboard controller that answers.
    pub keyboard: bool,
    /// Definitions added to the end of the DSDT (AML).
    pub extra_aml: Vec<u8>,
}

impl Platform {
    /// A machine with `processors` processors and nothing optional.
    pub fn new(processors: u32, layout: &Layout) -> Self {
        Self {
            processors,
            layout: *layout,
            keyboard: false,
            extra_aml: Vec::new(),
        }
    }
}

/// Writes all tables; the guest physical address of the ACPI root pointer.
pub(super) fn write(_memory: &GuestMemory, _platform: &Platform) -> Result<u64, TablesError> {
    Ok(0)
}
