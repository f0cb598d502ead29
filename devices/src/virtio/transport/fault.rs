//! What a driver can do wrong with the transport, as values.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::registers::{Face, Register};
use crate::virtio::virtq::GuestFault;

/// The driver broke a rule of the transport. Each is answered where it happens, mostly by ignoring
/// the write; the values are for whoever watches the driver. Clauses are those of virtio 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportFault {
    /// A driver accepts only features that the device offers.
    #[error("accepted features {bits:#x}, which were not offered")]
    FeaturesNotOffered {
        /// The bits too many.
        bits: u64,
    },
    /// A driver that uses the modern face accepts VIRTIO_F_VERSION_1.
    #[error("FEATURES_OK without VIRTIO_F_VERSION_1")]
    Version1Missing,
    /// Bit 30 is a trap for drivers that accept whatever they see.
    #[error("accepted bit 30, as a driver does that accepts without looking")]
    BadFeature,
    /// Features are fixed once FEATURES_OK is set.
    #[error("features written after FEATURES_OK")]
    FeaturesTooLate,
    /// Status bits are set one by one and cleared only all at once.
    #[error("status bits {bits:#04x} cleared without a reset")]
    StatusBitsCleared {
        /// The bits that went.
        bits: u8,
    },
    /// The status register has reserved bits, and one that belongs to the device.
    #[error("status bits {bits:#04x} are not the driver's")]
    StatusBitsUnknown {
        /// The bits.
        bits: u8,
    },
    /// On the modern face DRIVER_OK follows FEATURES_OK.
    #[error("DRIVER_OK before FEATURES_OK")]
    DriverOkTooEarly,
    /// A driver writes only to queues that there are.
    #[error("{register:?} written for queue {queue}, which does not exist")]
    NoSuchQueue {
        /// What was written.
        register: Register,
        /// The selected queue.
        queue: u16,
    },
    /// A queue is set up before it is enabled.
    #[error("{register:?} of queue {queue} written while it is enabled")]
    QueueEnabled {
        /// What was written.
        register: Register,
        /// The selected queue.
        queue: u16,
    },
    /// `queue_enable` and `queue_reset` take 1 and nothing else.
    #[error("{register:?} of queue {queue} written with {value}, not 1")]
    NotOne {
        /// What was written.
        register: Register,
        /// The selected queue.
        queue: u16,
        /// What it was written with.
        value: u32,
    },
    /// Queues are reset one by one only if that was agreed on.
    #[error("queue {queue} reset without VIRTIO_F_RING_RESET")]
    RingResetNotNegotiated {
        /// The selected queue.
        queue: u16,
    },
    /// The geometry of a queue breaks a rule.
    #[error("queue {queue}: {fault}")]
    Queue {
        /// The queue.
        queue: u16,
        /// The rule.
        fault: GuestFault,
    },
    /// A driver kicks queues that there are.
    #[error("kick for queue {queue}, which does not exist")]
    KickNowhere {
        /// What was kicked.
        queue: u32,
    },
    /// A driver kicks after DRIVER_OK.
    #[error("kick for queue {queue} before DRIVER_OK")]
    KickTooEarly {
        /// What was kicked.
        queue: u16,
    },
    /// A vector is one of the MSI-X table.
    #[error("vector {vector:#x} is not in the MSI-X table")]
    NoSuchVector {
        /// What was written.
        vector: u32,
    },
    /// Each register is accessed whole, with its own width.
    #[error("access of {len} bytes at {offset:#x} of the {face:?} face is not to one register")]
    NotARegister {
        /// Where.
        face: Face,
        /// Offset of the access.
        offset: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// Registers that tell something are not written.
    #[error("{register:?} written, which is read-only")]
    ReadOnly {
        /// What was written.
        register: Register,
    },
    /// The window in configuration space is pointed at a structure of the device, at a multiple of
    /// the length.
    #[error("PCI_CFG window used with bar {bar}, offset {offset:#x}, length {len}")]
    WindowAstray {
        /// `cap.bar`.
        bar: u8,
        /// `cap.offset`.
        offset: u32,
        /// `cap.length`.
        len: u32,
    },
}

impl TransportFault {
    /// The number of the rule that was broken, `V-TRANSPORT-nn`, or that of the queue's rule.
    /// Numbers never change.
    pub fn rule(&self) -> &'static str {
        self.facts().0
    }

    /// The clause of virtio 1.3 that says so, or the source of the rule where the specification is
    /// silent.
    pub fn clause(&self) -> &'static str {
        self.facts().1
    }

    fn facts(&self) -> (&'static str, &'static str) {
        match self {
            Self::FeaturesNotOffered { .. } => ("V-TRANSPORT-01", "2.2.1"),
            Self::Version1Missing => ("V-TRANSPORT-02", "6.1"),
            Self::BadFeature => ("V-TRANSPORT-03", "QEMU hw/virtio/virtio-pci.c, virtio_ioport_write"),
            Self::FeaturesTooLate => ("V-TRANSPORT-04", "3.1.1"),
            Self::StatusBitsCleared { .. } => ("V-TRANSPORT-05", "2.1.1"),
            Self::StatusBitsUnknown { .. } => ("V-TRANSPORT-06", "2.1"),
            Self::DriverOkTooEarly => ("V-TRANSPORT-07", "3.1.1"),
            Self::NoSuchQueue { .. } => ("V-TRANSPORT-08", "4.1.5.1.3"),
            Self::QueueEnabled { .. } => ("V-TRANSPORT-09", "4.1.4.3.2"),
            Self::NotOne { .. } => ("V-TRANSPORT-10", "4.1.4.3.2"),
            Self::RingResetNotNegotiated { .. } => ("V-TRANSPORT-11", "2.6.1"),
            Self::Queue { fault, .. } => (fault.rule(), fault.clause()),
            Self::KickNowhere { .. } => ("V-TRANSPORT-12", "4.1.5.2"),
            Self::KickTooEarly { .. } => ("V-TRANSPORT-13", "3.1.1"),
            Self::NoSuchVector { .. } => ("V-TRANSPORT-14", "4.1.5.1.2"),
            Self::NotARegister { .. } => ("V-TRANSPORT-15", "4.1.3.1"),
            Self::ReadOnly { .. } => ("V-TRANSPORT-16", "4.1.4.3"),
            Self::WindowAstray { .. } => ("V-TRANSPORT-17", "4.1.4.9.2"),
        }
    }
}

/// How many faults a [`FaultLog`] keeps.
const KEPT: usize = 64;

/// The last faults of a driver. Its size does not depend on the driver.
#[derive(Debug, Default)]
pub struct FaultLog {
    total: u64,
    last: VecDeque<TransportFault>,
}

impl FaultLog {
    pub(super) fn record(&mut self, fault: TransportFault) {
        tracing::debug!(rule = fault.rule(), "{fault}");
        self.total = self.total.saturating_add(1);
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(fault);
    }

    /// How many there have been.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The last of them, oldest first, which are forgotten with that.
    pub fn take(&mut self) -> Vec<TransportFault> {
        self.last.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_counts_on() {
        let mut log = FaultLog::default();
        for bits in 0..1000 {
            log.record(TransportFault::FeaturesNotOffered { bits });
        }
        let last = log.take();
        assert_eq!((log.total(), last.len()), (1000, KEPT));
        assert_eq!(last.last(), Some(&TransportFault::FeaturesNotOffered { bits: 999 }));
        assert_eq!(log.take(), []);
    }
}
