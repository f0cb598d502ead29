//! Which feature bits the driver is offered on each face.

#![forbid(unsafe_code)]

use virtio_bindings::virtio_config::{
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Bit 30: a driver that accepts it accepts everything without looking (QEMU,
/// include/standard-headers/linux/virtio_config.h and hw/virtio/virtio-pci.c).
pub const BAD_FEATURE: u32 = 30;

/// Bits that the modern face does not show (QEMU, include/hw/virtio/virtio.h,
/// `VIRTIO_LEGACY_FEATURES`).
const LEGACY_ONLY: u64 = 1 << VIRTIO_F_NOTIFY_ON_EMPTY | 1 << VIRTIO_F_ANY_LAYOUT | 1 << BAD_FEATURE;

/// Where a type of device differs between the faces.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaceDifferences {
    /// Bits that only the legacy face shows.
    pub legacy_only: u64,
    /// Bits that are offered only by a device without the modern face.
    pub added_without_modern: u64,
    /// Bits that a device without the modern face does not offer.
    pub dropped_without_modern: u64,
    /// What a legacy driver is taken to have accepted that accepted [`BAD_FEATURE`]: what the
    /// drivers understood that did so.
    pub understood_by_bad_drivers: u64,
}

impl FaceDifferences {
    /// None.
    pub const NONE: Self = Self {
        legacy_only: 0,
        added_without_modern: 0,
        dropped_without_modern: 0,
        understood_by_bad_drivers: 0,
    };
}

/// The features of ring and transport, which the user can switch off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingOptions {
    /// Indirect descriptors.
    pub indirect_desc: bool,
    /// Event indices.
    pub event_idx: bool,
    /// NOTIFY_ON_EMPTY, legacy.
    pub notify_on_empty: bool,
    /// ANY_LAYOUT, legacy.
    pub any_layout: bool,
    /// RING_RESET.
    pub queue_reset: bool,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self {
            indirect_desc: true,
            event_idx: true,
            notify_on_empty: true,
            any_layout: true,
            queue_reset: true,
        }
    }
}

impl RingOptions {
    fn bits(self) -> u64 {
        let bits = [
            (self.indirect_desc, VIRTIO_RING_F_INDIRECT_DESC),
            (self.event_idx, VIRTIO_RING_F_EVENT_IDX),
            (self.notify_on_empty, VIRTIO_F_NOTIFY_ON_EMPTY),
            (self.any_layout, VIRTIO_F_ANY_LAYOUT),
            (self.queue_reset, VIRTIO_F_RING_RESET),
        ];
        bits.into_iter()
            .filter(|(on, _)| *on)
            .fold(0, |bits, (_, bit)| bits | 1 << bit)
    }
}

/// What is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offered {
    /// On the modern face.
    pub modern: u64,
    /// On the legacy face.
    pub legacy: u32,
    /// What [`BAD_FEATURE`] stands for.
    pub instead_of_bad: u32,
}

impl Offered {
    /// Puts together what device and transport offer, of what is `possible`. `modern` says whether there
    /// is a modern face.
    pub fn new(device: u64, possible: u64, ring: RingOptions, differences: &FaceDifferences, modern: bool) -> Self {
        let mut all = device | ring.bits();
        if modern {
            all |= 1 << VIRTIO_F_VERSION_1;
        } else {
            all = (all | differences.added_without_modern) & !differences.dropped_without_modern;
        }
        let all = all & possible | 1 << BAD_FEATURE;
        Self {
            modern: all & !LEGACY_ONLY & !differences.legacy_only,
            legacy: all as u32,
            instead_of_bad: (all & differences.understood_by_bad_drivers) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device bits and differences of QEMU 7.2's devices, with what its faces show.
    #[test]
    fn feature_words_are_those_of_qemu() {
        let net = FaceDifferences {
            legacy_only: 1 << 6,
            ..FaceDifferences::NONE
        };
        for (device, differences, modern, legacy) in [
            (0x6e54, FaceDifferences::NONE, 0x101_3000_6e54, 0x7900_6e54),
            (0x00bf_8064, net, 0x101_30bf_8024, 0x79bf_8064),
            (0x6, FaceDifferences::NONE, 0x101_3000_0006, 0x7900_0006),
            (0x12, FaceDifferences::NONE, 0x101_3000_0012, 0x7900_0012),
            (0, FaceDifferences::NONE, 0x101_3000_0000, 0x7900_0000),
            (1, FaceDifferences::NONE, 0x101_3000_0001, 0x7900_0001),
        ] {
            let offered = Offered::new(device, u64::MAX, RingOptions::default(), &differences, true);
            assert_eq!((offered.modern, offered.legacy), (modern, legacy), "{device:#x}");
        }
    }

    #[test]
    fn block_without_the_modern_face_offers_scsi_and_not_any_layout() {
        let block = FaceDifferences {
            added_without_modern: 1 << 7,
            dropped_without_modern: 1 << 27,
            ..FaceDifferences::NONE
        };
        let offered = Offered::new(0x6e54, u64::MAX, RingOptions::default(), &block, false);
        assert_eq!(offered.legacy, 0x7100_6ed4);
    }

    #[test]
    fn what_is_not_possible_is_not_offered() {
        let possible = 1 << VIRTIO_F_NOTIFY_ON_EMPTY | 1 << 5;
        let offered = Offered::new(0xff, possible, RingOptions::default(), &FaceDifferences::NONE, true);
        assert_eq!((offered.modern, offered.legacy), (1 << 5, 0x4100_0020));
    }

    #[test]
    fn each_ring_feature_can_be_switched_off() {
        let off = RingOptions {
            indirect_desc: false,
            event_idx: false,
            notify_on_empty: false,
            any_layout: false,
            queue_reset: false,
        };
        let offered = Offered::new(0, u64::MAX, off, &FaceDifferences::NONE, true);
        assert_eq!((offered.modern, offered.legacy), (1 << 32, 1 << 30));
    }
}
