//! What a driver can do wrong with a virtqueue, as values.

#![forbid(unsafe_code)]

use thiserror::Error;

use super::config::RingPart;

/// How far a [`GuestFault`] reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// One chain is unusable. It is given back with length 0 and the queue goes on.
    Chain,
    /// The ring itself can no longer be trusted. The queue stands still until the driver resets it.
    Ring,
}

/// The driver broke a rule of the virtqueue. Clauses are those of virtio 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// The queue size is a power of two from 1 to 32768.
    #[error("queue size {size} is not a power of two")]
    QueueSizeInvalid {
        /// What the driver wrote.
        size: u16,
    },
    /// The driver may lower the queue size, not raise it.
    #[error("queue size {size} is above the maximum of {max}")]
    QueueSizeAboveMax {
        /// What the driver wrote.
        size: u16,
        /// What the device offers.
        max: u16,
    },
    /// Each part of a ring has an alignment: 16, 2 and 4 bytes.
    #[error("{part} at {address:#x} is not aligned to {} bytes", part.alignment())]
    RingMisaligned {
        /// The part.
        part: RingPart,
        /// Its guest-physical address.
        address: u64,
    },
    /// Each part of a ring lies in guest RAM, whole and in one piece.
    #[error("{part} of {len} bytes at {address:#x} is not inside guest RAM")]
    RingOutsideRam {
        /// The part.
        part: RingPart,
        /// Its guest-physical address.
        address: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A queue is enabled after its addresses have been written.
    #[error("queue enabled before the address of the {part} was written")]
    RingAddressMissing {
        /// The part whose address is still 0.
        part: RingPart,
    },
    /// A driver acknowledges only features that the device offered.
    #[error("packed ring acknowledged, but never offered")]
    PackedNotOffered,

    /// The available index moves forward, by at most the queue size from what the device has taken.
    #[error("available index {index} is not within {size} entries of {expected}")]
    AvailIndexInvalid {
        /// The index read.
        index: u16,
        /// How far the device has taken entries.
        expected: u16,
        /// The queue size.
        size: u16,
    },
    /// The head of a chain is a descriptor of the table.
    #[error("chain head {head} is outside the table of {size} descriptors")]
    HeadOutOfRange {
        /// The head read from the available ring.
        head: u16,
        /// The queue size.
        size: u16,
    },
    /// A head is not made available again before it came back in the used ring.
    #[error("chain head {head} made available while it is still in use")]
    HeadInFlight {
        /// The head read from the available ring.
        head: u16,
    },
    /// No more chains are outstanding than the table has descriptors.
    #[error("more than {size} chains outstanding")]
    TooManyInFlight {
        /// The queue size.
        size: u16,
    },

    /// `next` names a descriptor of the same table.
    #[error("chain {head}: next descriptor {next} is outside the table of {entries} descriptors")]
    NextOutOfRange {
        /// Head of the chain.
        head: u16,
        /// The index read.
        next: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// A chain has no loop, and no more descriptors than its table (or than the device takes).
    #[error("chain {head}: loops, or has more than {limit} descriptors")]
    ChainTooLong {
        /// Head of the chain.
        head: u16,
        /// The number of descriptors after which the walk ended.
        limit: u32,
    },
    /// The buffers of a chain add up to at most 2^32 bytes.
    #[error("chain {head}: buffers add up to more than 4 GiB")]
    ChainTooLarge {
        /// Head of the chain.
        head: u16,
    },
    /// Device-readable buffers come before device-writable ones.
    #[error("chain {head}: a device-readable buffer after a device-writable one")]
    ReadableAfterWritable {
        /// Head of the chain.
        head: u16,
    },
    /// A buffer has at least one byte. The specification is silent; QEMU refuses ("zero sized
    /// buffers are not allowed").
    #[error("chain {head}: a buffer of length 0")]
    BufferEmpty {
        /// Head of the chain.
        head: u16,
    },
    /// A buffer lies in guest RAM.
    #[error("chain {head}: buffer of {len} bytes at {address:#x} is not inside guest RAM")]
    BufferOutsideRam {
        /// Head of the chain.
        head: u16,
        /// Guest-physical address of the buffer.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// Indirect descriptors are used only when VIRTIO_F_INDIRECT_DESC was negotiated.
    #[error("chain {head}: indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated {
        /// Head of the chain.
        head: u16,
    },
    /// A table of indirect descriptors holds no indirect descriptor.
    #[error("chain {head}: indirect descriptor inside an indirect table")]
    IndirectNested {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor is the last of its chain.
    #[error("chain {head}: indirect descriptor with NEXT set")]
    IndirectWithNext {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table is 1 to 32768 whole descriptors of 16 bytes.
    #[error("chain {head}: indirect table of {len} bytes")]
    IndirectLengthInvalid {
        /// Head of the chain.
        head: u16,
        /// Length of the table in bytes.
        len: u32,
    },
    /// An indirect table lies in guest RAM.
    #[error("chain {head}: indirect table of {len} bytes at {address:#x} is not inside guest RAM")]
    IndirectOutsideRam {
        /// Head of the chain.
        head: u16,
        /// Guest-physical address of the table.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A request has the bytes that its device's chapter of the specification asks for.
    #[error("chain {head}: {wanted} bytes needed, {available} left in the buffers")]
    BufferTooShort {
        /// Head of the chain.
        head: u16,
        /// Bytes that the device needs to read or write.
        wanted: usize,
        /// Bytes that are left.
        available: usize,
    },
}

impl GuestFault {
    /// The number of the rule that was broken, `V-QUEUE-nn` (geometry) or `V-RING-nn` (rings and
    /// chains). Numbers never change.
    pub fn rule(&self) -> &'static str {
        self.facts().0
    }

    /// The clause of virtio 1.3 that says so, or the source of the rule where the specification is
    /// silent.
    pub fn clause(&self) -> &'static str {
        self.facts().1
    }

    /// How far the fault reaches.
    pub fn severity(&self) -> Severity {
        self.facts().2
    }

    fn facts(&self) -> (&'static str, &'static str, Severity) {
        use Severity::{Chain, Ring};
        match self {
            Self::QueueSizeInvalid { .. } => ("V-QUEUE-01", "2.7", Ring),
            Self::QueueSizeAboveMax { .. } => ("V-QUEUE-02", "4.1.5.1.3", Ring),
            Self::RingMisaligned { .. } => ("V-QUEUE-03", "2.7", Ring),
            Self::RingOutsideRam { .. } => ("V-QUEUE-04", "2.7", Ring),
            Self::RingAddressMissing { .. } => ("V-QUEUE-05", "4.1.4.3.2", Ring),
            Self::PackedNotOffered => ("V-QUEUE-06", "2.2.1", Ring),
            Self::AvailIndexInvalid { .. } => ("V-RING-01", "2.7.6.1", Ring),
            Self::HeadOutOfRange { .. } => ("V-RING-02", "2.7.6", Ring),
            Self::HeadInFlight { .. } => ("V-RING-03", "2.7.13.1", Ring),
            Self::TooManyInFlight { .. } => ("V-RING-04", "2.7.13.1", Ring),
            Self::NextOutOfRange { .. } => ("V-RING-05", "2.7.5", Chain),
            Self::ChainTooLong { .. } => ("V-RING-06", "2.7.5.2", Chain),
            Self::ChainTooLarge { .. } => ("V-RING-07", "2.7.5.2", Chain),
            Self::ReadableAfterWritable { .. } => ("V-RING-08", "2.7.4.2", Chain),
            Self::BufferEmpty { .. } => ("V-RING-09", "QEMU hw/virtio/virtio.c, virtqueue_map_desc", Chain),
            Self::BufferOutsideRam { .. } => ("V-RING-10", "2.7.5", Chain),
            Self::IndirectNotNegotiated { .. } => ("V-RING-11", "2.7.5.3.1", Chain),
            Self::IndirectNested { .. } => ("V-RING-12", "2.7.5.3.1", Chain),
            Self::IndirectWithNext { .. } => ("V-RING-13", "2.7.5.3.1", Chain),
            Self::IndirectLengthInvalid { .. } => ("V-RING-14", "2.7.5.3", Chain),
            Self::IndirectOutsideRam { .. } => ("V-RING-15", "2.7.5.3", Chain),
            Self::BufferTooShort { .. } => ("V-RING-16", "2.7.4.2", Chain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_where_and_how_much() {
        let fault = GuestFault::RingMisaligned {
            part: RingPart::Used,
            address: 0x1001,
        };
        assert_eq!(fault.to_string(), "used ring at 0x1001 is not aligned to 4 bytes");
        assert_eq!((fault.rule(), fault.clause()), ("V-QUEUE-03", "2.7"));
    }

    #[test]
    fn a_fault_stays_small_enough_to_be_returned_by_pop() {
        assert!(size_of::<GuestFault>() <= 32);
    }
}
