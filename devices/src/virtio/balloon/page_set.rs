//! The pages that are in a balloon.

#![forbid(unsafe_code)]

use crate::memory::{MemoryMap, PAGE};

/// A set of pages of guest RAM, one bit each. Room that nobody used costs no memory, because the
/// allocator has it from the host as zeroes.
#[derive(Debug)]
pub(super) struct PageSet {
    stretches: Box<[Stretch]>,
    words: Vec<u64>,
    len: usize,
}

/// Pages of one mapping of RAM.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    first: u64,
    pages: u64,
    /// The bit of the first page.
    bit: u64,
}

/// How a change to the set ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// The set is changed.
    Done,
    /// It was so before.
    None,
    /// There is no such page in RAM.
    NotRam,
}

impl PageSet {
    /// An empty set of pages of `memory`.
    pub(super) fn new(memory: &MemoryMap) -> Self {
        let mut bits = 0;
        let stretch = |range: std::ops::Range<u64>| {
            let first = range.start.div_ceil(PAGE);
            let pages = (range.end / PAGE).saturating_sub(first);
            let stretch = Stretch {
                first,
                pages,
                bit: bits,
            };
            bits += pages;
            stretch
        };
        let stretches = memory.ranges().map(stretch).collect();
        Self {
            stretches,
            words: vec![0; bits.div_ceil(64) as usize],
            len: 0,
        }
    }

    /// Pages that could be in the set: those of RAM.
    pub(super) fn capacity(&self) -> usize {
        self.stretches.iter().map(|stretch| stretch.pages as usize).sum()
    }

    /// Pages in the set.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts page number `page` into the set.
    pub(super) fn insert(&mut self, page: u32) -> Change {
        let Some((word, bit)) = self.bit(page) else {
            return Change::NotRam;
        };
        if *word & bit != 0 {
            return Change::None;
        }
        *word |= bit;
        self.len += 1;
        Change::Done
    }

    /// Takes page number `page` out of the set.
    pub(super) fn remove(&mut self, page: u32) -> Change {
        let Some((word, bit)) = self.bit(page) else {
            return Change::NotRam;
        };
        if *word & bit == 0 {
            return Change::None;
        }
        *word &= !bit;
        self.len = self.len.saturating_sub(1);
        Change::Done
    }

    /// Takes all pages out.
    pub(super) fn clear(&mut self) {
        if self.len > 0 {
            self.words = vec![0; self.words.len()];
            self.len = 0;
        }
    }

    #[inline]
    fn bit(&mut self, page: u32) -> Option<(&mut u64, u64)> {
        let inside = |stretch: &&Stretch| u64::from(page).wrapping_sub(stretch.first) < stretch.pages;
        let stretch = self.stretches.iter().find(inside)?;
        let index = stretch.bit + (u64::from(page) - stretch.first);
        let word = self.words.get_mut((index / 64) as usize)?;
        Some((word, 1 << (index % 64)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::GuestMemory;

    #[test]
    fn pages_of_every_mapping_have_a_bit_and_others_have_none() {
        let ranges = [(0, 3 * PAGE), (3 * PAGE, 70 * PAGE), (1 << 32, PAGE)];
        let ranges = ranges.map(|(start, len)| (GuestAddress(start), len as usize));
        let memory = MemoryMap::new(Arc::new(GuestMemory::from_ranges(&ranges).unwrap()));
        let mut set = PageSet::new(&memory);
        assert_eq!(set.capacity(), 74);
        let pages: Vec<u32> = (0..73).chain([1 << 20]).collect();
        for &page in &pages {
            assert_eq!((set.insert(page), set.insert(page)), (Change::Done, Change::None));
        }
        for page in [73, (1 << 20) - 1, (1 << 20) + 1, u32::MAX] {
            assert_eq!((set.insert(page), set.remove(page)), (Change::NotRam, Change::NotRam));
        }
        assert_eq!(set.len(), 74);
        assert_eq!((set.remove(72), set.remove(72)), (Change::Done, Change::None));
        set.clear();
        assert_eq!((set.len(), set.insert(5)), (0, Change::Done));
    }
}
