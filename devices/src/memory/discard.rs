//! Giving guest RAM back to the host.

use std::io;
use std::ops::Range;

use vm_memory::GuestRegionMmap;

use super::{HostSpan, MemoryMap};

/// Bytes of a page of the guest, and of the host, which is the same kind of machine.
pub const PAGE: u64 = 4096;

/// What kind of mapping a region of RAM is, which decides how its pages are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// Memory of this process alone.
    Anonymous,
    /// A file that others may have mapped too.
    Shared,
    /// A private view of a file: what is given back would come again from there, and not as zeroes.
    Copied,
}

impl Backing {
    pub(super) fn of(region: &GuestRegionMmap<()>) -> Self {
        if region.flags() & libc::MAP_SHARED != 0 {
            Self::Shared
        } else if region.flags() & libc::MAP_ANONYMOUS != 0 {
            Self::Anonymous
        } else {
            Self::Copied
        }
    }

    fn advice(self) -> Option<libc::c_int> {
        match self {
            Self::Anonymous => Some(libc::MADV_DONTNEED),
            // Takes the pages out of the file, and with that out of all mappings of it.
            Self::Shared => Some(libc::MADV_REMOVE),
            Self::Copied => None,
        }
    }
}

/// What was given back, and what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes, whether or not the host had memory behind each of them.
    pub bytes: u64,
    /// System calls.
    pub calls: u64,
}

/// Memory was not given back, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Part of the range is not RAM. Nothing was given back.
    #[error("{0:#x} is not guest RAM")]
    NotRam(u64),
    /// The host refused. What came before in the range was given back.
    #[error("the host does not take guest memory back: {0}")]
    Host(#[from] io::Error),
}

impl MemoryMap {
    /// Gives the pages of a guest-physical range back to the host, with one system call for each
    /// mapping that the range lies in. They read as zero afterwards and take memory again when they
    /// are touched. Bytes at either end that are no whole page stay as they are, and so does memory
    /// that would not read as zero.
    ///
    /// What is in the range is lost, whoever it belongs to: only the owner may ask for that.
    ///
    /// # Errors
    /// See [`DiscardError`].
    pub fn discard(&self, range: Range<u64>) -> Result<Discarded, DiscardError> {
        let len = range.end.saturating_sub(range.start);
        self.spans(range.start, len, |_| ()).map_err(DiscardError::NotRam)?;
        let mut discarded = Discarded::default();
        let mut result = Ok(());
        let mut address = range.start;
        while address < range.end
            && result.is_ok()
            && let Some((region, offset)) = self.find(address)
        {
            // `find` says that at least one byte from `offset` on is in the region.
            let len = (region.len - offset).min(range.end - address);
            result = give_back(region.span(offset, len), region.backing, &mut discarded);
            address = address.saturating_add(len);
        }
        result.map(|()| discarded).map_err(DiscardError::Host)
    }
}

/// Gives the whole pages of `span`, which lies in a mapping of the kind `backing`, back to the host.
fn give_back(span: HostSpan, backing: Backing, discarded: &mut Discarded) -> io::Result<()> {
    let Some(advice) = backing.advice() else { return Ok(()) };
    let page = PAGE as usize;
    let start = span.as_ptr().addr().next_multiple_of(page);
    let end = span.as_ptr().addr().wrapping_add(span.len()) & !(page - 1);
    let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else {
        return Ok(());
    };
    // SAFETY: the range lies inside `span`, which is guest RAM that the caller keeps mapped, and is whole pages. The
    // call leaves the mapping as it is and changes what it holds, to zeroes; all of guest RAM may change at any time,
    // and nothing in this process holds a reference into it.
    let result = unsafe { libc::madvise(span.as_ptr().with_addr(start).cast(), len, advice) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    discarded.bytes += len as u64;
    discarded.calls += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::File;
    use std::sync::Arc;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};
    use vmm_sys_util::tempfile::TempFile;

    use super::*;
    use crate::memory::GuestMemory;

    const MIB: u64 = 1 << 20;

    /// 2 MiB at 0, 2 MiB right behind, a hole, 2 MiB at 1 GiB: of `file`, or anonymous.
    fn map(file: Option<&File>, flags: libc::c_int) -> MemoryMap {
        let regions = [(0, 0), (2 * MIB, 2 * MIB), (1 << 30, 4 * MIB)].map(|(address, offset)| {
            let mut builder = MmapRegionBuilder::new(2 << 20)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags | libc::MAP_NORESERVE);
            if let Some(file) = file {
                builder = builder.with_file_offset(FileOffset::new(file.try_clone().unwrap(), offset));
            }
            GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(address)).unwrap()
        });
        MemoryMap::new(Arc::new(GuestMemory::from_regions(regions.into()).unwrap()))
    }

    fn file() -> File {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(6 * MIB).unwrap();
        file
    }

    fn anonymous() -> MemoryMap {
        map(None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    fn fill(map: &MemoryMap) {
        for range in map.ranges() {
            let bytes = vec![0xa5; (range.end - range.start) as usize];
            map.memory().write_slice(&bytes, GuestAddress(range.start)).unwrap();
        }
    }

    /// Pages of the region at `address` that the host has memory for.
    fn resident(map: &MemoryMap, address: u64) -> usize {
        let start = map.memory().get_host_address(GuestAddress(address)).unwrap();
        let mut pages = vec![0u8; 2 * MIB as usize / PAGE as usize];
        // SAFETY: the range is a mapping of `map`, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(start.cast(), 2 << 20, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    fn byte(map: &MemoryMap, address: u64) -> u8 {
        map.memory().read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn pages_go_back_to_the_host_whatever_the_memory_is() {
        let file = file();
        for map in [anonymous(), map(Some(&file), libc::MAP_SHARED)] {
            fill(&map);
            assert_eq!(resident(&map, 0), 512);
            let discarded = map.discard(0x10_0000..0x18_0000).unwrap();
            assert_eq!((discarded.bytes, discarded.calls), (0x8_0000, 1));
            assert_eq!(resident(&map, 0), 512 - 128);
            for (address, value) in [(0xf_ffff, 0xa5), (0x10_0000, 0), (0x17_ffff, 0), (0x18_0000, 0xa5)] {
                assert_eq!(byte(&map, address), value, "{address:#x}");
            }
        }
    }

    #[test]
    fn what_is_given_back_leaves_the_file_too() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let file = file();
        let map = map(Some(&file), libc::MAP_SHARED);
        fill(&map);
        let before = file.metadata().unwrap().blocks();
        map.discard(1 << 30..(1 << 30) + MIB).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), before - MIB / 512);
        let mut bytes = [1];
        file.read_exact_at(&mut bytes, 4 * MIB).unwrap();
        assert_eq!(bytes, [0]);
    }

    #[test]
    fn a_range_over_mappings_takes_a_call_for_each() {
        let map = anonymous();
        fill(&map);
        let discarded = map.discard(MIB..3 * MIB).unwrap();
        assert_eq!((discarded.bytes, discarded.calls), (2 * MIB, 2));
        assert_eq!((resident(&map, 0), resident(&map, 2 * MIB)), (256, 256));
    }

    #[test]
    fn a_range_that_leaves_ram_is_not_touched() {
        let map = anonymous();
        fill(&map);
        for (range, first) in [
            (3 * MIB..5 * MIB, 4 * MIB),
            (8 * MIB..9 * MIB, 8 * MIB),
            ((1 << 30) - PAGE..(1 << 30) + PAGE, (1 << 30) - PAGE),
            (MIB..u64::MAX, 4 * MIB),
        ] {
            let error = map.discard(range).unwrap_err();
            assert!(
                matches!(error, DiscardError::NotRam(address) if address == first),
                "{error}"
            );
        }
        for region in [0, 2 * MIB, 1 << 30] {
            assert_eq!(resident(&map, region), 512);
        }
    }

    #[test]
    fn parts_of_pages_stay() {
        let map = anonymous();
        fill(&map);
        assert_eq!(map.discard(0x1001..0x1fff).unwrap(), Discarded::default());
        assert_eq!(map.discard(0x1001..0x4fff).unwrap().bytes, 2 * PAGE);
        for (address, value) in [(0x1fff, 0xa5), (0x2000, 0), (0x3fff, 0), (0x4000, 0xa5)] {
            assert_eq!(byte(&map, address), value, "{address:#x}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "a caller may be wrong")]
        let reversed = 0x5000..0x1000;
        assert_eq!(map.discard(reversed).unwrap(), Discarded::default());
    }

    #[test]
    fn memory_that_would_come_back_from_a_file_stays() {
        let map = map(Some(&file()), libc::MAP_PRIVATE);
        fill(&map);
        assert_eq!(map.discard(0..MIB).unwrap(), Discarded::default());
        assert_eq!(byte(&map, 0), 0xa5);
    }

    #[test]
    fn the_way_back_from_a_span_is_its_address() {
        let map = anonymous();
        for address in [0, 0x1234, 2 * MIB, 4 * MIB - 1, 1 << 30] {
            let span = map.contiguous(address, 1).unwrap();
            assert_eq!(map.address_of(span), Some(address));
        }
        let mut elsewhere = 0u8;
        assert_eq!(map.address_of(HostSpan::new(&raw mut elsewhere, 1)), None);
    }
}
