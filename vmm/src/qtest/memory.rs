//! Memory as a processor sees it: RAM where there is RAM, and BARs elsewhere.

use devices::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::machine::board::Board;

/// Bytes of the widest load or store.
const WORD: usize = 8;

/// Reads any number of bytes. Where nothing answers, they are ones.
pub fn read(board: &Board, memory: &GuestMemory, address: u64, data: &mut [u8]) {
    let mut at = address;
    let mut rest = data;
    while !rest.is_empty() {
        let (count, is_ram) = piece(memory, at, rest.len());
        let (now, later) = rest.split_at_mut(count);
        if !is_ram || memory.read_slice(now, GuestAddress(at)).is_err() {
            board.read_memory(at, now);
        }
        at = at.wrapping_add(count as u64);
        rest = later;
    }
}

/// Writes any number of bytes. Where nothing answers, they are lost.
pub fn write(board: &Board, memory: &GuestMemory, address: u64, data: &[u8]) {
    let mut at = address;
    let mut rest = data;
    while !rest.is_empty() {
        let (count, is_ram) = piece(memory, at, rest.len());
        let (now, later) = rest.split_at(count);
        if !is_ram || memory.write_slice(now, GuestAddress(at)).is_err() {
            board.write_memory(at, now);
        }
        at = at.wrapping_add(count as u64);
        rest = later;
    }
}

/// How many of `length` bytes at `address` one access takes, and whether that is to RAM: the rest of a region of RAM, or a word of
/// natural alignment elsewhere.
fn piece(memory: &GuestMemory, address: u64, length: usize) -> (usize, bool) {
    if let Some(region) = memory.find_region(GuestAddress(address)) {
        let left = region.last_addr().0 - address;
        let left = usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1);
        return (length.min(left), true);
    }
    let aligned = 1_usize << address.trailing_zeros().min(WORD.trailing_zeros());
    let largest = 1 << length.min(WORD).ilog2();
    (aligned.min(largest), false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_are_regions_of_ram_and_aligned_words_elsewhere() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap();
        for (address, length, expected) in [
            (0x10, 4, (4, true)),
            (0xffe, 8, (2, true)),
            (0x1000, 0x5000, (0x1000, true)),
            (0x2000, 16, (8, false)),
            (0x2000, 7, (4, false)),
            (0x2001, 8, (1, false)),
            (0x2006, 8, (2, false)),
            (u64::MAX, 2, (1, false)),
        ] {
            assert_eq!(piece(&memory, address, length), expected, "{length} at {address:#x}");
        }
    }
}
