//! The last bytes that went to a far end, in memory.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// A bounded memory of bytes. Copies share it.
#[derive(Clone, Debug)]
pub struct RingBuffer {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    size: usize,
}

impl RingBuffer {
    pub(super) fn new(size: usize) -> Self {
        Self {
            bytes: Arc::default(),
            size,
        }
    }

    /// Adds bytes; the oldest go when there are too many.
    pub fn write(&self, bytes: &[u8]) {
        let kept = bytes.get(bytes.len().saturating_sub(self.size)..).unwrap_or_default();
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = (held.len() + kept.len()).saturating_sub(self.size);
        held.drain(..surplus);
        held.extend(kept);
    }

    /// Takes the oldest bytes out, at most `most`.
    pub fn read(&self, most: usize) -> Vec<u8> {
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let count = most.min(held.len());
        held.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let ring = RingBuffer::new(4);
        ring.write(b"ab");
        ring.write(b"cde");
        assert_eq!(ring.read(2), b"bc");
        ring.write(b"0123456789");
        assert_eq!(ring.read(100), b"6789");
    }
}
