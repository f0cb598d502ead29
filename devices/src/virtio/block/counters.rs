//! What a disk has done so far, for management.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::request::Op;

/// Sums of one kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Requests of the driver that were done.
    pub requests: u64,
    /// Transfers that they were put together to.
    pub transfers: u64,
    /// Bytes that were moved, or lost their content.
    pub bytes: u64,
    /// Transfers that the host could not do.
    pub failed: u64,
}

/// A disk's sums by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskStats {
    /// Reads.
    pub reads: Done,
    /// Writes, those of zeroes among them.
    pub writes: Done,
    /// Flushes.
    pub flushes: Done,
    /// Discards.
    pub discards: Done,
}

#[derive(Default, Debug)]
struct Kind {
    requests: AtomicU64,
    transfers: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

impl Kind {
    fn sums(&self) -> Done {
        Done {
            requests: self.requests.load(Ordering::Relaxed),
            transfers: self.transfers.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// Counts transfers when they have ended; queues on several threads share it.
#[derive(Default, Debug)]
pub(super) struct Counters([Kind; 4]);

impl Counters {
    fn kind(op: Op) -> usize {
        match op {
            Op::Read => 0,
            Op::Write | Op::WriteZeroes { .. } => 1,
            Op::Flush => 2,
            Op::Discard => 3,
        }
    }

    /// A transfer for `requests` requests of the driver moved `bytes` bytes.
    pub(super) fn done(&self, op: Op, requests: u64, bytes: u64) {
        let kind = &self.0[Self::kind(op)];
        kind.requests.fetch_add(requests, Ordering::Relaxed);
        kind.transfers.fetch_add(1, Ordering::Relaxed);
        kind.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The host could not do a transfer.
    pub(super) fn failed(&self, op: Op) {
        self.0[Self::kind(op)].failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sums(&self) -> DiskStats {
        let [reads, writes, flushes, discards] = self.0.each_ref().map(Kind::sums);
        DiskStats {
            reads,
            writes,
            flushes,
            discards,
        }
    }
}
