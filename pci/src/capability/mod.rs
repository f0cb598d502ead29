//! Capabilities: structures in configuration space that a guest finds by walking a list.

pub mod msix;
pub mod vendor;

use crate::config_space::{HEADER_SIZE, SIZE};

/// A capability as it lies in configuration space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Where it begins: a multiple of four from 0x40 on.
    pub offset: u8,
    /// Capability id (PCI Local Bus 3.0, appendix H).
    pub id: u8,
    /// What follows the id and the pointer to the next one.
    pub body: Vec<u8>,
    /// Which bits of `body` the guest may write; bytes that it has no mask for are read-only.
    pub writable: Vec<u8>,
}

/// Why a capability can't stand where it was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CapabilityError {
    /// The capability at this offset is not at a multiple of four behind the header
    #[error("capability at {0:#04x}: not at a multiple of four behind the header")]
    Misplaced(u8),
    /// The capability at this offset ends behind the 256 bytes of configuration space
    #[error("capability at {0:#04x}: ends behind the configuration space")]
    TooLong(u8),
    /// The capability at this offset lies on another one
    #[error("capability at {0:#04x}: lies on another one")]
    Overlaps(u8),
    /// The write mask of the capability at this offset is longer than the capability
    #[error("capability at {0:#04x}: its write mask is longer than the capability")]
    MaskTooLong(u8),
}

impl Capability {
    /// Marks the bytes that it occupies.
    pub(crate) fn claim(&self, taken: &mut [bool; SIZE]) -> Result<(), CapabilityError> {
        let start = usize::from(self.offset);
        if start < HEADER_SIZE || !start.is_multiple_of(4) {
            return Err(CapabilityError::Misplaced(self.offset));
        }
        if self.writable.len() > self.body.len() {
            return Err(CapabilityError::MaskTooLong(self.offset));
        }
        let bytes = taken
            .get_mut(start..start + 2 + self.body.len())
            .ok_or(CapabilityError::TooLong(self.offset))?;
        if bytes.contains(&true) {
            return Err(CapabilityError::Overlaps(self.offset));
        }
        bytes.fill(true);
        Ok(())
    }
}
