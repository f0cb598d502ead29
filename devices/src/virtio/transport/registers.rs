//! The registers of both faces, declared: offset, width, name and access. The names mean the same
//! on every face; what they do is said once, in `access`.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// A view of the transport's registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Face {
    /// I/O ports in BAR 0, virtio 0.9.5.
    Legacy,
    /// Structures in BAR 4, virtio 1.x; also through the PCI_CFG window.
    Modern,
}

/// A register of the transport.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Register {
    /// Bits 0 to 31 of the offered features.
    LegacyDeviceFeatures,
    /// Bits 0 to 31 of the accepted features.
    LegacyDriverFeatures,
    /// Page frame number of the selected queue.
    QueuePfn,
    /// A kick: the queue's number.
    QueueNotify,
    /// Interrupt status; reading clears it.
    Isr,

    /// Which 32 bits of the offered features are shown.
    DeviceFeatureSelect,
    /// The selected 32 bits of the offered features.
    DeviceFeature,
    /// Which 32 bits of the accepted features are shown.
    DriverFeatureSelect,
    /// The selected 32 bits of the accepted features.
    DriverFeature,
    /// Number of queues.
    NumQueues,
    /// Changes when the configuration changes.
    ConfigGeneration,
    /// Whether the selected queue is enabled.
    QueueEnable,
    /// What the selected queue's doorbell is multiplied by the multiplier.
    QueueNotifyOff,
    /// Descriptor table, low and high half.
    QueueDescLow,
    /// High half.
    QueueDescHigh,
    /// Available ring, low half.
    QueueDriverLow,
    /// High half.
    QueueDriverHigh,
    /// Used ring, low half.
    QueueDeviceLow,
    /// High half.
    QueueDeviceHigh,
    /// Resets the selected queue.
    QueueReset,

    /// Device status.
    Status,
    /// Which queue the queue registers are about.
    QueueSelect,
    /// Descriptors of the selected queue.
    QueueSize,
    /// Vector of configuration changes.
    ConfigVector,
    /// Vector of the selected queue.
    QueueVector,
}

/// What a driver may do with a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only read.
    Read,
    /// Only write; reads as if it were not there.
    Write,
    /// Both.
    ReadWrite,
}

/// A register's place in a block.
#[derive(Clone, Copy, Debug)]
pub struct RegisterSpec {
    /// Offset in bytes.
    pub offset: u64,
    /// Width in bytes.
    pub width: usize,
    /// Which it is.
    pub register: Register,
    /// What a driver may do.
    pub access: Access,
}

const fn spec(offset: u64, width: usize, register: Register, access: Access) -> RegisterSpec {
    RegisterSpec {
        offset,
        width,
        register,
        access,
    }
}

/// BAR 0 (virtio 1.3, 4.1.4.10; Linux include/uapi/linux/virtio_pci.h).
pub const LEGACY: &[RegisterSpec] = &[
    spec(0x00, 4, Register::LegacyDeviceFeatures, Access::Read),
    spec(0x04, 4, Register::LegacyDriverFeatures, Access::ReadWrite),
    spec(0x08, 4, Register::QueuePfn, Access::ReadWrite),
    spec(0x0c, 2, Register::QueueSize, Access::Read),
    spec(0x0e, 2, Register::QueueSelect, Access::ReadWrite),
    spec(0x10, 2, Register::QueueNotify, Access::Write),
    spec(0x12, 1, Register::Status, Access::ReadWrite),
    spec(0x13, 1, Register::Isr, Access::Read),
];

/// What follows in BAR 0 while MSI-X is enabled.
pub const LEGACY_VECTORS: &[RegisterSpec] = &[
    spec(0x14, 2, Register::ConfigVector, Access::ReadWrite),
    spec(0x16, 2, Register::QueueVector, Access::ReadWrite),
];

/// The common configuration structure (virtio 1.3, 4.1.4.3). `queue_notify_data` (0x38) belongs to
/// a feature that is not offered and reads as 0, as in QEMU.
pub const COMMON: &[RegisterSpec] = &[
    spec(0x00, 4, Register::DeviceFeatureSelect, Access::ReadWrite),
    spec(0x04, 4, Register::DeviceFeature, Access::Read),
    spec(0x08, 4, Register::DriverFeatureSelect, Access::ReadWrite),
    spec(0x0c, 4, Register::DriverFeature, Access::ReadWrite),
    spec(0x10, 2, Register::ConfigVector, Access::ReadWrite),
    spec(0x12, 2, Register::NumQueues, Access::Read),
    spec(0x14, 1, Register::Status, Access::ReadWrite),
    spec(0x15, 1, Register::ConfigGeneration, Access::Read),
    spec(0x16, 2, Register::QueueSelect, Access::ReadWrite),
    spec(0x18, 2, Register::QueueSize, Access::ReadWrite),
    spec(0x1a, 2, Register::QueueVector, Access::ReadWrite),
    spec(0x1c, 2, Register::QueueEnable, Access::ReadWrite),
    spec(0x1e, 2, Register::QueueNotifyOff, Access::Read),
    spec(0x20, 4, Register::QueueDescLow, Access::ReadWrite),
    spec(0x24, 4, Register::QueueDescHigh, Access::ReadWrite),
    spec(0x28, 4, Register::QueueDriverLow, Access::ReadWrite),
    spec(0x2c, 4, Register::QueueDriverHigh, Access::ReadWrite),
    spec(0x30, 4, Register::QueueDeviceLow, Access::ReadWrite),
    spec(0x34, 4, Register::QueueDeviceHigh, Access::ReadWrite),
    spec(0x3a, 2, Register::QueueReset, Access::ReadWrite),
];

/// The register that begins at `offset`. As in QEMU an access is for the register at its first
/// byte, whatever its width: there is nothing in the middle of a register.
pub fn find(block: &[RegisterSpec], offset: u64) -> Option<&RegisterSpec> {
    block.iter().find(|spec| spec.offset == offset)
}

/// A part of an access that reaches a face at once: 1, 2 or 4 bytes at a multiple of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Offset in the BAR.
    pub offset: u64,
    /// Place in the access.
    pub at: usize,
    /// 1, 2 or 4.
    pub len: usize,
}

impl Piece {
    /// Its bytes of `data` as a number.
    pub fn value(&self, data: &[u8]) -> u32 {
        let bytes = data.get(self.at..self.at + self.len).unwrap_or_default();
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// Puts the low bytes of `value` into its bytes of `data`.
    pub fn put(&self, data: &mut [u8], value: u32) {
        let bytes = data.get_mut(self.at..self.at + self.len).unwrap_or_default();
        bytes
            .iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(to, from)| *to = from);
    }
}

/// Cuts an access into pieces as QEMU's `memory_access_size` (softmmu/physmem.c) does: ascending,
/// each as long as its alignment, its length and the widest register, 4 bytes, allow. So an access
/// of 8 bytes is two of 4, and an unaligned one is several.
pub fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len.checked_sub(at).filter(|left| *left > 0)?;
        let offset = offset.checked_add(at as u64)?;
        let longest = [4, 2, 1]
            .into_iter()
            .find(|size| offset.is_multiple_of(*size as u64) && *size <= left);
        let piece = Piece {
            offset,
            at,
            len: longest.unwrap_or(1),
        };
        at += piece.len;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn cut(offset: u64, len: usize) -> Vec<(u64, usize)> {
        pieces(offset, len).map(|piece| (piece.offset, piece.len)).collect()
    }

    #[test]
    fn accesses_are_cut_at_their_natural_alignment() {
        assert_eq!(cut(0, 8), [(0, 4), (4, 4)]);
        assert_eq!(cut(0x12, 4), [(0x12, 2), (0x14, 2)]);
        assert_eq!(cut(1, 8), [(1, 1), (2, 2), (4, 4), (8, 1)]);
        assert_eq!(cut(0, 3), [(0, 2), (2, 1)]);
        assert_eq!(cut(5, 1), [(5, 1)]);
        assert_eq!(cut(0, 0), []);
    }

    #[test]
    fn accesses_that_run_past_the_end_of_addresses_end() {
        assert_eq!(cut(u64::MAX, 8), [(u64::MAX, 1)]);
    }

    #[test]
    fn pieces_take_and_put_their_own_bytes() {
        let mut data = [1, 2, 3, 4, 5, 6, 7, 8];
        let piece = pieces(0, 8).nth(1).unwrap();
        assert_eq!(piece.value(&data), 0x0807_0605);
        piece.put(&mut data, 0xaabb_ccdd);
        assert_eq!(data, [1, 2, 3, 4, 0xdd, 0xcc, 0xbb, 0xaa]);
    }

    #[test]
    fn registers_are_aligned_and_do_not_overlap() {
        let legacy: Vec<_> = LEGACY.iter().chain(LEGACY_VECTORS).copied().collect();
        for block in [&legacy, COMMON] {
            for pair in block.windows(2) {
                assert!(pair[0].offset + pair[0].width as u64 <= pair[1].offset, "{pair:?}");
            }
            assert!(block.iter().all(|spec| spec.offset.is_multiple_of(spec.width as u64)));
        }
    }
}
