//! The modern face: four structures in BAR 4, and a doorbell port in BAR 2 if asked for (virtio
//! 1.3, 4.1.4).

#![forbid(unsafe_code)]

use super::registers::{COMMON, Face, pieces};
use super::state::State;

/// BAR of the structures.
pub(super) const BAR: u8 = 4;

/// BAR of the doorbell port.
pub(super) const PIO_BAR: u8 = 2;

/// Bytes of the doorbell port's BAR.
pub(super) const PIO_BAR_SIZE: u64 = 4;

/// Bytes from one queue's doorbell to the next.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Bytes of each structure (QEMU, hw/virtio/virtio-pci.c, `virtio_pci_realize`).
pub(super) const STRUCTURE_SIZE: u64 = 0x1000;

/// Structures in the order in which they lie in the BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Structure {
    Common,
    Isr,
    Device,
    Notify,
}

impl Structure {
    pub(super) const ALL: [Self; 4] = [Self::Common, Self::Isr, Self::Device, Self::Notify];

    /// Type of the capability that announces it (virtio 1.3, 4.1.4, `cfg_type`).
    pub(super) fn capability_type(self) -> u8 {
        match self {
            Self::Common => 1,
            Self::Notify => 2,
            Self::Isr => 3,
            Self::Device => 4,
        }
    }

    /// Where it lies in the BAR.
    pub(super) fn offset(self) -> u64 {
        self as u64 * STRUCTURE_SIZE
    }

    /// The structure at `offset` of the BAR, and the offset in it.
    fn at(offset: u64) -> Option<(Self, u64)> {
        let index = usize::try_from(offset / STRUCTURE_SIZE).ok()?;
        Some((*Self::ALL.get(index)?, offset % STRUCTURE_SIZE))
    }
}

/// Bytes of the BAR.
pub(super) const BAR_SIZE: u64 = STRUCTURE_SIZE * Structure::ALL.len() as u64;

pub(super) fn read(state: &mut State, offset: u64, data: &mut [u8]) {
    data.fill(0);
    for piece in pieces(offset, data.len()) {
        match Structure::at(piece.offset) {
            Some((Structure::Common, offset)) => {
                let value = state.read_block(Face::Modern, COMMON, &piece, offset, 0);
                piece.put(data, value);
            }
            // It is one byte, and QEMU has it everywhere in the structure.
            Some((Structure::Isr, _)) => piece.put(data, state.interrupts().take_isr().into()),
            Some((Structure::Device, offset)) => {
                let bytes = data.get_mut(piece.at..piece.at + piece.len).unwrap_or_default();
                state.read_config(offset, bytes);
            }
            Some((Structure::Notify, _)) | None => {}
        }
    }
}

pub(super) fn write(state: &mut State, offset: u64, data: &[u8]) {
    for piece in pieces(offset, data.len()) {
        match Structure::at(piece.offset) {
            Some((Structure::Common, offset)) => {
                state.write_block(Face::Modern, COMMON, &piece, offset, piece.value(data));
            }
            Some((Structure::Device, offset)) => {
                let bytes = data.get(piece.at..piece.at + piece.len).unwrap_or_default();
                state.write_config(offset, bytes);
            }
            // The place says which queue, not the value.
            Some((Structure::Notify, offset)) => state.kick((offset / u64::from(NOTIFY_MULTIPLIER)) as u32),
            Some((Structure::Isr, _)) | None => {}
        }
    }
}

/// A write to the doorbell port: the value says which queue.
pub(super) fn write_port(state: &mut State, offset: u64, data: &[u8]) {
    for piece in pieces(offset, data.len()) {
        state.kick(piece.value(data));
    }
}
