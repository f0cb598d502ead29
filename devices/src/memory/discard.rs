//! Giving guest RAM back to the host.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestRegionMmap;

use super::{HostSpan, MemoryMap};

/// Bytes of a page of the guest, and of the host, which is the same kind of machine.
pub const PAGE: u64 = 4096;

/// This process, in place of a descriptor (PIDFD_SELF_THREAD_GROUP in Linux's
/// include/uapi/linux/pidfd.h).
const PIDFD_SELF: libc::c_int = -10001;

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
    /// Gives the pages of a guest-physical range back to the host. They read as zero afterwards and
    /// take memory again when they are touched. Bytes at either end that are no whole page stay as
    /// they are, and so does memory that would not read as zero.
    ///
    /// What is in the range is lost, whoever it belongs to: only the owner may ask for that.
    ///
    /// # Errors
    /// See [`DiscardError`].
    pub fn discard(&self, range: Range<u64>) -> Result<Discarded, DiscardError> {
        self.discard_all([range])
    }

    /// Gives several ranges back, with as few system calls as the host can do: one for many ranges
    /// since Linux 6.14, one for each before that. A range that lies in several mappings counts as
    /// several.
    ///
    /// # Errors
    /// The first [`DiscardError`]. If a range is not RAM, those before it were given back.
    pub fn discard_all(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<Discarded, DiscardError> {
        let mut batch = Batch::default();
        let add_all = || {
            for range in ranges {
                let len = range.end.saturating_sub(range.start);
                self.spans(range.start, len, |_| ()).map_err(DiscardError::NotRam)?;
                self.add_to(&mut batch, range)?;
            }
            Ok(())
        };
        let added = add_all();
        batch.flush()?;
        added.map(|()| batch.discarded)
    }

    /// Adds `range`, which is RAM, mapping by mapping.
    fn add_to(&self, batch: &mut Batch, range: Range<u64>) -> io::Result<()> {
        let mut address = range.start;
        while address < range.end
            && let Some((region, offset)) = self.find(address)
        {
            // `find` says that at least one byte from `offset` on is in the region.
            let len = (region.len - offset).min(range.end - address);
            batch.add(region.span(offset, len), region.backing)?;
            address = address.saturating_add(len);
        }
        Ok(())
    }
}

/// The most ranges of one call (UIO_MAXIOV in Linux's include/uapi/linux/uio.h).
const BATCH: usize = 1024;

/// Ranges of the host's addresses that go back with one call. The map that they come from is
/// borrowed for as long as there are any.
#[derive(Default)]
struct Batch {
    ranges: Vec<libc::iovec>,
    /// What is to be done with all of them.
    advice: libc::c_int,
    discarded: Discarded,
}

impl Batch {
    /// Adds the whole pages of `span`, which lies in a mapping of the kind `backing`.
    fn add(&mut self, span: HostSpan, backing: Backing) -> io::Result<()> {
        let Some(advice) = backing.advice() else { return Ok(()) };
        let page = PAGE as usize;
        let start = span.as_ptr().addr().next_multiple_of(page);
        let end = span.as_ptr().addr().wrapping_add(span.len()) & !(page - 1);
        let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else {
            return Ok(());
        };
        if advice != self.advice || self.ranges.len() == BATCH {
            self.flush()?;
        }
        self.advice = advice;
        self.ranges.push(libc::iovec {
            iov_base: span.as_ptr().with_addr(start).cast(),
            iov_len: len,
        });
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let ranges = std::mem::take(&mut self.ranges);
        let rest = ranges.get(self.give_back_together(&ranges)..).unwrap_or_default();
        let mut result = Ok(());
        for range in rest {
            result = result.and(self.give_back(range));
        }
        result
    }

    /// Gives ranges back with one call, from the first on. Returns how many it was good for: not all
    /// if the host cannot do so, or refuses one.
    fn give_back_together(&mut self, ranges: &[libc::iovec]) -> usize {
        /// The host knows no call for several ranges of ours, or does not allow it.
        static UNKNOWN: AtomicBool = AtomicBool::new(false);

        if ranges.len() < 2 || UNKNOWN.load(Ordering::Relaxed) {
            return 0;
        }
        // SAFETY: the list and its length belong together, and what it names is as `give_back` has it.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                PIDFD_SELF,
                ranges.as_ptr(),
                ranges.len(),
                self.advice,
                0,
            )
        };
        self.discarded.calls += 1;
        let Ok(mut advised) = usize::try_from(advised) else {
            UNKNOWN.store(true, Ordering::Relaxed);
            return 0;
        };
        let done = ranges.iter().take_while(|range| {
            let whole = range.iov_len <= advised;
            advised = advised.saturating_sub(range.iov_len);
            whole
        });
        let (count, bytes) = done.fold((0, 0), |(count, bytes), range| (count + 1, bytes + range.iov_len));
        self.discarded.bytes += bytes as u64;
        count
    }

    fn give_back(&mut self, range: &libc::iovec) -> io::Result<()> {
        // SAFETY: the range lies inside a span of guest RAM that the map keeps mapped, and is whole pages. The call
        // leaves the mapping as it is and changes what it holds, to zeroes; all of guest RAM may change at any time,
        // and nothing in this process holds a reference into it.
        let result = unsafe { libc::madvise(range.iov_base, range.iov_len, self.advice) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        self.discarded.bytes += range.iov_len as u64;
        self.discarded.calls += 1;
        Ok(())
    }
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
    fn a_range_over_mappings_is_given_back_in_each() {
        let map = anonymous();
        fill(&map);
        let discarded = map.discard(MIB..3 * MIB).unwrap();
        assert!(discarded.bytes == 2 * MIB && (1..=3).contains(&discarded.calls));
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
    fn many_ranges_go_back_whether_or_not_one_call_can_do_it() {
        let ranges = || {
            (0..511)
                .map(|n| 2 * n * PAGE % (4 * MIB))
                .map(|start| start..start + PAGE)
        };
        let file = file();
        for map in [anonymous(), map(Some(&file), libc::MAP_SHARED)] {
            fill(&map);
            let discarded = map.discard_all(ranges()).unwrap();
            assert_eq!(discarded.bytes, 511 * PAGE);
            assert!(discarded.calls == 1 || discarded.calls >= 511, "{}", discarded.calls);
            assert_eq!((byte(&map, 0), byte(&map, PAGE), byte(&map, 2 * PAGE)), (0, 0xa5, 0));
            // One by one, as on a host that knows no other way.
            fill(&map);
            let mut batch = Batch::default();
            map.add_to(&mut batch, 0..3 * MIB).unwrap();
            let each = std::mem::take(&mut batch.ranges);
            each.iter().for_each(|range| batch.give_back(range).unwrap());
            assert_eq!((batch.discarded.bytes, batch.discarded.calls), (3 * MIB, 2));
            assert_eq!((resident(&map, 0), resident(&map, 2 * MIB)), (0, 256));
        }
    }

    #[test]
    fn what_comes_before_a_range_that_is_not_ram_goes_back() {
        let map = anonymous();
        fill(&map);
        let result = map.discard_all([0..PAGE, 8 * MIB..9 * MIB, 2 * PAGE..3 * PAGE]);
        assert!(matches!(result, Err(DiscardError::NotRam(address)) if address == 8 * MIB));
        assert_eq!((byte(&map, 0), byte(&map, 2 * PAGE)), (0, 0xa5));
    }

    #[test]
    fn more_ranges_than_one_call_takes_all_go_back() {
        let map = anonymous();
        fill(&map);
        let one_by_one = (0..512)
            .chain((1 << 18)..(1 << 18) + 512)
            .map(|page| page * PAGE..(page + 1) * PAGE);
        assert_eq!(
            map.discard_all(one_by_one.clone().chain(one_by_one)).unwrap().bytes,
            2048 * PAGE
        );
        assert_eq!((resident(&map, 0), resident(&map, 1 << 30)), (0, 0));
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
