//! A disk without storage, QEMU's `null-co://`: for tests and benchmarks.

#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Image;
use crate::virtio::block::request::Op;
use crate::virtio::block::transfer::Transfer;

/// Takes all writes, and answers reads with zeroes or with nothing.
#[derive(Debug)]
pub struct NullImage {
    bytes: AtomicU64,
    read_zeroes: bool,
}

impl NullImage {
    /// A disk of `bytes`.
    pub fn new(bytes: u64, read_zeroes: bool) -> Self {
        Self {
            bytes: AtomicU64::new(bytes),
            read_zeroes,
        }
    }
}

impl Image for NullImage {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes.load(Ordering::Relaxed))
    }

    fn execute(&self, transfer: &mut Transfer) {
        if self.read_zeroes && transfer.op() == Op::Read {
            for (range, chain) in transfer.requests() {
                // There is room: the range was measured by it.
                let _ = chain.writer().write_zeroes(range.len as usize);
            }
        }
        transfer.finish(Ok(()));
    }

    fn is_instant(&self) -> bool {
        true
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}
