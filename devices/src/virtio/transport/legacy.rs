//! The legacy face: BAR 0, I/O ports (virtio 1.3, 4.1.4.10, and virtio 0.9.5).

#![forbid(unsafe_code)]

use super::registers::{Face, LEGACY, LEGACY_VECTORS, RegisterSpec, pieces};
use super::state::State;

/// BAR of the legacy face.
pub(super) const BAR: u8 = 0;

/// Offset of the register that kicks a queue.
pub(super) const NOTIFY: u64 = 0x10;

/// Where the vectors are while MSI-X is enabled, and device configuration while it is not.
const HEADER_END: u64 = 0x14;

/// Where device configuration is while MSI-X is enabled.
const VECTORS_END: u64 = 0x18;

/// What I/O ports that nobody answers read as.
const ABSENT: u32 = u32::MAX;

/// Ports of a device with `config_len` bytes of configuration: all of its registers, to the next
/// power of two (QEMU, hw/virtio/virtio-pci.c, `virtio_pci_device_plugged`).
pub(in crate::virtio) fn bar_size(config_len: u32, msix: bool) -> u64 {
    let header = if msix { VECTORS_END } else { HEADER_END };
    (header + u64::from(config_len)).next_power_of_two()
}

/// What an offset of the BAR is, which depends on whether MSI-X is enabled.
enum Place {
    Registers(&'static [RegisterSpec]),
    Config(u64),
}

fn place(offset: u64, msix_enabled: bool) -> Place {
    let config = if msix_enabled { VECTORS_END } else { HEADER_END };
    match offset.checked_sub(config) {
        Some(offset) => Place::Config(offset),
        None if offset < HEADER_END => Place::Registers(LEGACY),
        None => Place::Registers(LEGACY_VECTORS),
    }
}

pub(super) fn read(state: &mut State, msix_enabled: bool, offset: u64, data: &mut [u8]) {
    for piece in pieces(offset, data.len()) {
        match place(piece.offset, msix_enabled) {
            Place::Registers(block) => {
                let value = state.read_block(Face::Legacy, block, &piece, piece.offset, ABSENT);
                piece.put(data, value);
            }
            Place::Config(offset) => {
                let bytes = data.get_mut(piece.at..piece.at + piece.len).unwrap_or_default();
                state.read_config(offset, bytes);
            }
        }
    }
}

pub(super) fn write(state: &mut State, msix_enabled: bool, offset: u64, data: &[u8]) {
    for piece in pieces(offset, data.len()) {
        match place(piece.offset, msix_enabled) {
            Place::Registers(block) => {
                state.write_block(Face::Legacy, block, &piece, piece.offset, piece.value(data));
            }
            Place::Config(offset) => {
                let bytes = data.get(piece.at..piece.at + piece.len).unwrap_or_default();
                state.write_config(offset, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_sizes_are_those_of_qemu() {
        // Device configuration of QEMU 7.2's network, block, console, entropy, SCSI and 9P
        // ("qtest") devices, and of the balloon.
        for (config_len, size) in [(8, 0x20), (60, 0x80), (12, 0x40), (0, 0x20), (36, 0x40), (7, 0x20)] {
            assert_eq!(bar_size(config_len, true), size, "{config_len}");
        }
        assert_eq!(bar_size(16, false), 0x40);
        assert_eq!(bar_size(12, false), 0x20);
    }
}
