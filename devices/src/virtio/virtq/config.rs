//! The geometry of a virtqueue: what a driver may write before the queue starts, and what makes it
//! valid.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_PACKED};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::fault::GuestFault;

/// The largest split queue: indices are 16 bits and the size is a power of two (virtio 1.3, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// The vector that means "none" (VIRTIO_MSI_NO_VECTOR, virtio 1.3, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// The page size of the legacy layout: unit of the PFN register and alignment of the used ring.
pub const LEGACY_PAGE_SIZE: u64 = 4096;

/// One of the three areas of a split virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available ring, written by the driver.
    Available,
    /// The used ring, written by the device.
    Used,
}

impl RingPart {
    /// All parts, in the order in which a driver sets them up.
    pub const ALL: [Self; 3] = [Self::Descriptors, Self::Available, Self::Used];

    /// Required alignment in bytes (virtio 1.3, 2.7).
    pub fn alignment(self) -> u64 {
        match self {
            Self::Descriptors => 16,
            Self::Available => 2,
            Self::Used => 4,
        }
    }

    /// Length in bytes for a queue of `size` descriptors, the event index included (virtio 1.3,
    /// 2.7).
    pub fn bytes(self, size: u16) -> u64 {
        let size = u64::from(size);
        match self {
            Self::Descriptors => 16 * size,
            Self::Available => 6 + 2 * size,
            Self::Used => 6 + 8 * size,
        }
    }
}

impl fmt::Display for RingPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// The format of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// Three areas: descriptors, available ring, used ring (virtio 1.3, 2.7).
    #[default]
    Split,
    /// One area of descriptors that both sides write (virtio 1.3, 2.8). Its place; no device offers
    /// it yet.
    Packed,
}

/// The negotiated features that change how a ring is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingFeatures {
    /// Split, or VIRTIO_F_RING_PACKED (bit 34).
    pub layout: Layout,
    /// VIRTIO_F_EVENT_IDX (bit 29): event indices replace the suppression flags.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC (bit 28): a descriptor may name a table of descriptors.
    pub indirect: bool,
    /// VIRTIO_F_NOTIFY_ON_EMPTY (bit 24, legacy): interrupt when the ring runs empty even if
    /// interrupts are suppressed.
    pub notify_on_empty: bool,
}

impl RingFeatures {
    /// Picks the ring's bits from the feature word that driver and device agreed on.
    pub fn from_negotiated(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        Self {
            layout: if has(VIRTIO_F_RING_PACKED) {
                Layout::Packed
            } else {
                Layout::Split
            },
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            notify_on_empty: has(VIRTIO_F_NOTIFY_ON_EMPTY),
        }
    }
}

/// What the driver may write about one queue, kept as it was written. Nothing runs on it:
/// [`Virtq`](super::Virtq) is made from it once, when the queue starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueConfig {
    /// The size that the device offers.
    pub max_size: u16,
    /// The number of descriptors that the driver chose.
    pub size: u16,
    /// Guest-physical address of the descriptor table; 0 means not written.
    pub descriptors: u64,
    /// Guest-physical address of the available ring; 0 means not written.
    pub available: u64,
    /// Guest-physical address of the used ring; 0 means not written.
    pub used: u64,
    /// MSI-X vector, or [`NO_VECTOR`].
    pub vector: u16,
    /// Whether the driver enabled the queue.
    pub enabled: bool,
}

impl QueueConfig {
    /// The state after a reset: `max_size` descriptors, no addresses, no vector, disabled.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            descriptors: 0,
            available: 0,
            used: 0,
            vector: NO_VECTOR,
            enabled: false,
        }
    }

    /// Back to the state after a reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Lays the ring out as a legacy driver has it: descriptors at page `pfn`, the available ring
    /// behind them, the used ring at the next multiple of 4096 (virtio 1.3, 2.7.2). PFN 0 takes the
    /// addresses away.
    pub fn set_legacy_pfn(&mut self, pfn: u32) {
        if pfn == 0 {
            (self.descriptors, self.available, self.used) = (0, 0, 0);
            return;
        }
        // Below 2^44 for any PFN, and a ring takes less than 2^20 bytes.
        self.descriptors = u64::from(pfn) * LEGACY_PAGE_SIZE;
        self.available = self.descriptors + RingPart::Descriptors.bytes(self.size);
        let end = self.available + RingPart::Available.bytes(self.size);
        self.used = end.next_multiple_of(LEGACY_PAGE_SIZE);
    }

    /// What a legacy driver reads back from the PFN register.
    pub fn legacy_pfn(&self) -> u32 {
        (self.descriptors / LEGACY_PAGE_SIZE) as u32
    }

    /// The guest-physical address of one part.
    pub fn address(&self, part: RingPart) -> u64 {
        match part {
            RingPart::Descriptors => self.descriptors,
            RingPart::Available => self.available,
            RingPart::Used => self.used,
        }
    }

    /// Checks size and addresses, as far as that is possible without guest memory. Parts may
    /// overlap: a driver that does so harms itself only.
    ///
    /// # Errors
    /// The first rule that is broken, always of [`Severity::Ring`](super::Severity::Ring).
    pub fn check(&self) -> Result<(), GuestFault> {
        check_size(self.size, self.max_size)?;
        for part in RingPart::ALL {
            let address = self.address(part);
            if address == 0 {
                return Err(GuestFault::RingAddressMissing { part });
            }
            if !address.is_multiple_of(part.alignment()) {
                return Err(GuestFault::RingMisaligned { part, address });
            }
        }
        Ok(())
    }
}

/// Checks a queue size that a driver writes against what the device offers.
///
/// # Errors
/// [`GuestFault::QueueSizeInvalid`] for 0 and everything that is no power of two,
/// [`GuestFault::QueueSizeAboveMax`].
pub fn check_size(size: u16, max: u16) -> Result<(), GuestFault> {
    if !size.is_power_of_two() {
        return Err(GuestFault::QueueSizeInvalid { size });
    }
    if size > max {
        return Err(GuestFault::QueueSizeAboveMax { size, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn modern() -> QueueConfig {
        QueueConfig {
            size: 8,
            descriptors: 0x1000,
            available: 0x2002,
            used: 0x3004,
            ..QueueConfig::new(256)
        }
    }

    #[test]
    fn verify_2_7_sizes_are_powers_of_two_up_to_the_maximum() {
        for size in [1, 2, 256] {
            assert_eq!(check_size(size, 256), Ok(()));
        }
        for size in [0, 3, 255] {
            assert_eq!(check_size(size, 256), Err(GuestFault::QueueSizeInvalid { size }));
        }
        assert_eq!(
            check_size(512, 256),
            Err(GuestFault::QueueSizeAboveMax { size: 512, max: 256 })
        );
        assert_eq!(check_size(MAX_QUEUE_SIZE, MAX_QUEUE_SIZE), Ok(()));
    }

    #[test]
    fn verify_2_7_parts_are_aligned_to_16_2_and_4_bytes() {
        assert_eq!(modern().check(), Ok(()));
        let misaligned = |part, address| Err(GuestFault::RingMisaligned { part, address });
        let descriptors = QueueConfig {
            descriptors: 0x1008,
            ..modern()
        };
        assert_eq!(descriptors.check(), misaligned(RingPart::Descriptors, 0x1008));
        let available = QueueConfig {
            available: 0x2001,
            ..modern()
        };
        assert_eq!(available.check(), misaligned(RingPart::Available, 0x2001));
        let used = QueueConfig {
            used: 0x3002,
            ..modern()
        };
        assert_eq!(used.check(), misaligned(RingPart::Used, 0x3002));
    }

    #[test]
    fn a_queue_without_addresses_does_not_start() {
        let config = QueueConfig::new(8);
        let part = RingPart::Descriptors;
        assert_eq!(config.check(), Err(GuestFault::RingAddressMissing { part }));
    }

    #[test]
    fn verify_2_7_2_legacy_used_ring_starts_at_the_next_page() {
        let mut config = QueueConfig::new(256);
        config.set_legacy_pfn(0x10);
        assert_eq!(
            (config.descriptors, config.available, config.used),
            (0x1_0000, 0x1_1000, 0x1_2000)
        );
        assert_eq!(config.legacy_pfn(), 0x10);
        // 8 descriptors and their available ring fit into the first page.
        let mut small = QueueConfig::new(8);
        small.set_legacy_pfn(0x10);
        assert_eq!((small.available, small.used), (0x1_0080, 0x1_1000));
        assert_eq!(small.check(), Ok(()));
    }

    #[test]
    fn pfn_zero_takes_the_addresses_away() {
        let mut config = QueueConfig::new(8);
        config.set_legacy_pfn(1);
        config.set_legacy_pfn(0);
        assert_eq!(config, QueueConfig::new(8));
    }

    #[test]
    fn the_highest_pfn_does_not_overflow() {
        let mut config = QueueConfig::new(MAX_QUEUE_SIZE);
        config.set_legacy_pfn(u32::MAX);
        assert_eq!(config.legacy_pfn(), u32::MAX);
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn ring_features_are_taken_from_their_bits() {
        assert_eq!(RingFeatures::from_negotiated(0), RingFeatures::default());
        let features = RingFeatures::from_negotiated(1 << 24 | 1 << 28 | 1 << 29 | 1 << 34);
        let expected = RingFeatures {
            layout: Layout::Packed,
            event_idx: true,
            indirect: true,
            notify_on_empty: true,
        };
        assert_eq!(features, expected);
    }

    #[test]
    fn a_config_survives_being_written_down() {
        let config = modern();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<QueueConfig>(&text).unwrap(), config);
    }
}
