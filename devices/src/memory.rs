//! Guest RAM as devices see it: the mapping itself, and the way from a guest-physical range to host
//! memory.
//!
//! A range that a guest names is checked here once, against the regions that really are RAM, and
//! leaves as one or several [`HostSpan`]s. There is no arithmetic on guest addresses anywhere else.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "a system call that takes addresses")]
mod discard;

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

pub use discard::{DiscardError, Discarded, PAGE};

/// Guest RAM: mappings of the host at guest-physical addresses, without a dirty bitmap.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A stretch of guest RAM that is contiguous in the host.
///
/// It is an address and a length; reading or writing through it takes `unsafe`, and the right to do
/// so lasts as long as the [`GuestMemory`] it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSpan {
    start: *mut u8,
    len: usize,
}

impl HostSpan {
    /// `len` bytes from `start` on, of which the caller knows that they are guest RAM.
    pub(crate) fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len }
    }

    /// Where the stretch begins in the host.
    pub fn as_ptr(self) -> *mut u8 {
        self.start
    }

    /// Bytes in the stretch; never 0 when it comes from [`MemoryMap::spans`] with a length above 0.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the stretch has no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// One region of guest RAM and its place in the host.
#[derive(Clone, Copy, Debug)]
struct Region {
    /// First guest-physical address.
    start: u64,
    /// Bytes.
    len: u64,
    /// Host address of the first byte, with its provenance exposed, so that the table may move
    /// between threads.
    host: usize,
    /// How its pages go back to the host.
    backing: discard::Backing,
}

/// The translation table of guest RAM, laid out for the data path: a flat list that is scanned from
/// the front.
///
/// A PC has two regions, below and above the PCI hole, so a scan is two comparisons; `vm-memory`'s
/// own lookup costs several times as much per buffer. The table keeps the memory it describes
/// alive.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    regions: Box<[Region]>,
    memory: Arc<GuestMemory>,
}

impl MemoryMap {
    /// Reads the regions of `memory` once. Regions that have no host mapping are left out, which
    /// makes them "not RAM".
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let regions = memory
            .iter()
            .filter_map(|region| {
                let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
                Some(Region {
                    start: region.start_addr().0,
                    len: region.len(),
                    host: host.expose_provenance(),
                    backing: discard::Backing::of(region),
                })
            })
            .collect();
        Self { regions, memory }
    }

    /// The memory this table describes.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The host stretch behind `len` bytes at the guest-physical `address`, if all of them lie in
    /// one region.
    #[inline]
    pub fn contiguous(&self, address: u64, len: u64) -> Option<HostSpan> {
        let (region, offset) = self.find(address)?;
        (len <= region.len - offset).then(|| region.span(offset, len))
    }

    /// Hands `len` bytes at the guest-physical `address` to `take`, split where one region ends and
    /// the next begins.
    ///
    /// # Errors
    /// The first guest-physical address that is not RAM, or `address` itself when the range wraps
    /// around 64 bits. Spans in front of that address have been handed out already.
    pub fn spans(&self, address: u64, len: u64, mut take: impl FnMut(HostSpan)) -> Result<(), u64> {
        if address.checked_add(len).is_none() {
            return Err(address);
        }
        let (mut address, mut left) = (address, len);
        while left > 0 {
            let span = self.up_to(address, left).ok_or(address)?;
            take(span);
            // `up_to` returns at least one byte and at most `left`, so both stay in range and the
            // loop ends.
            address = address.wrapping_add(span.len as u64);
            left = left.saturating_sub(span.len as u64);
        }
        Ok(())
    }

    /// Whether every one of `len` bytes at `address` is RAM.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        self.spans(address, len, |_| ()).is_ok()
    }

    /// Where RAM is: guest-physical ranges, one for each mapping.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let range = |region: &Region| region.start..region.start.saturating_add(region.len);
        self.regions.iter().map(range)
    }

    /// The guest-physical address of a stretch that came from this table.
    pub fn address_of(&self, span: HostSpan) -> Option<u64> {
        let offset = |region: &Region| (span.start.addr() as u64).wrapping_sub(region.host as u64);
        let region = self.regions.iter().find(|region| offset(region) < region.len)?;
        Some(region.start.wrapping_add(offset(region)))
    }

    /// The longest stretch of at most `len` bytes from `address` that one region holds.
    fn up_to(&self, address: u64, len: u64) -> Option<HostSpan> {
        let (region, offset) = self.find(address)?;
        Some(region.span(offset, len.min(region.len - offset)))
    }

    /// The region that holds `address`, and how far in; less than its length.
    #[inline]
    fn find(&self, address: u64) -> Option<(&Region, u64)> {
        let inside = |region: &Region| address.wrapping_sub(region.start) < region.len;
        let region = self.regions.iter().find(|region| inside(region))?;
        Some((region, address.wrapping_sub(region.start)))
    }
}

impl Region {
    /// `len` bytes from `offset` on, which the caller knows to be inside.
    #[inline]
    fn span(&self, offset: u64, len: u64) -> HostSpan {
        HostSpan {
            start: std::ptr::with_exposed_provenance_mut(self.host.wrapping_add(offset as usize)),
            len: len as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// RAM at 0..0x2000 in two mappings, a hole, RAM at 0x1_0000..0x1_1000.
    fn map() -> MemoryMap {
        let ranges = [
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x1_0000), 0x1000),
        ];
        MemoryMap::new(Arc::new(GuestMemory::from_ranges(&ranges).unwrap()))
    }

    fn lengths(map: &MemoryMap, address: u64, len: u64) -> Result<Vec<usize>, u64> {
        let mut lengths = Vec::new();
        map.spans(address, len, |span| lengths.push(span.len()))?;
        Ok(lengths)
    }

    #[test]
    fn a_range_inside_a_region_is_one_span() {
        assert_eq!(map().contiguous(0x800, 0x800).map(HostSpan::len), Some(0x800));
        assert_eq!(lengths(&map(), 0x1_0000, 0x1000), Ok(vec![0x1000]));
    }

    #[test]
    fn a_range_across_adjacent_regions_is_split_where_they_meet() {
        assert_eq!(map().contiguous(0xff0, 0x20), None);
        assert_eq!(lengths(&map(), 0xff0, 0x20), Ok(vec![0x10, 0x10]));
    }

    #[test]
    fn a_range_into_the_hole_names_its_first_byte_there() {
        assert_eq!(lengths(&map(), 0x1ff0, 0x20), Err(0x2000));
        assert_eq!(lengths(&map(), 0x8000, 1), Err(0x8000));
        assert!(!map().contains(0x1_0fff, 2));
    }

    #[test]
    fn a_range_that_wraps_around_is_refused() {
        assert_eq!(lengths(&map(), u64::MAX, 2), Err(u64::MAX));
        assert_eq!(map().contiguous(u64::MAX - 3, u64::MAX), None);
    }

    #[test]
    fn a_span_is_the_memory_that_the_guest_address_names() {
        let map = map();
        map.memory().write_obj(0x5au8, GuestAddress(0x1_0010)).unwrap();
        let span = map.contiguous(0x1_0010, 1).unwrap();
        let expected = GuestMemoryBackend::get_host_address(map.memory().as_ref(), GuestAddress(0x1_0010)).unwrap();
        assert_eq!(span.as_ptr(), expected);
    }
}
