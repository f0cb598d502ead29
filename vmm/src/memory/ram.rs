//! The host memory behind guest RAM.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::Arc;

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionMmap,
    GuestUsize,
    mmap::{MmapRegion, MmapRegionBuilder},
};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::{GuestMemory, Layout};
use crate::config::MachineConfig;

/// Size and alignment of a transparent huge page on x86-64.
const HUGE_PAGE: usize = 2 << 20;
const PAGE: u64 = 4096;

/// What kind of host memory guest RAM is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backing {
    /// A memfd, mapped shared: other processes can be given the file and serve devices from it. Huge pages only where
    /// the host allows them for shared memory (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`).
    #[default]
    Shared,
    /// Anonymous memory of this process. Huge pages wherever the host has not switched them off.
    Private,
}

impl Backing {
    /// What `config` asks for. Private memory gets huge pages on every host; shared memory only where the host allows it,
    /// which few do, and costs eight times the exits until init where not.
    pub fn of(config: &MachineConfig) -> Self {
        if config.shares_memory() {
            Self::Shared
        } else {
            Self::Private
        }
    }
}

/// Guest RAM could not be had from the host.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// `memfd_create`, `ftruncate` or sealing failed.
    #[error(
        "guest memory: the host gives no shared memory file of {size} bytes ({source}); free memory, or raise the limits on \
         file size and open files (ulimit -f, ulimit -n)"
    )]
    File {
        /// Bytes asked for.
        size: u64,
        /// What the host said.
        source: io::Error,
    },
    /// `mmap` failed.
    #[error(
        "guest memory: cannot map {size} bytes ({reason}); give the guest less memory (--memory or -m), or raise ulimit -v"
    )]
    Map {
        /// Bytes asked for.
        size: u64,
        /// What the host said.
        reason: String,
    },
}

/// Guest RAM: mapped, but untouched, so that it costs nothing until the guest uses it.
#[derive(Debug)]
pub struct Ram {
    layout: Layout,
    memory: GuestMemory,
}

impl Ram {
    /// Maps RAM as `layout` says. Pages are zero, are left out of core dumps, and are huge where the host can do so.
    pub fn new(layout: Layout, backing: Backing) -> Result<Self, RamError> {
        let file = match backing {
            Backing::Shared => {
                let size = layout.size();
                Some(Arc::new(
                    sealed_memfd(size).map_err(|source| RamError::File { size, source })?,
                ))
            }
            Backing::Private => None,
        };
        let mut regions = Vec::with_capacity(2);
        let mut offset = 0;
        for range in layout.ram() {
            let size = range.end - range.start;
            let failed = |reason: String| RamError::Map { size, reason };
            let file = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
            let region = map(size, file).map_err(failed)?;
            regions.push(
                GuestRegionMmap::new(region, GuestAddress(range.start))
                    .ok_or_else(|| failed("address overflow".into()))?,
            );
            offset += size;
        }
        let memory = GuestMemory::from_regions(regions).map_err(|error| RamError::Map {
            size: layout.size(),
            reason: error.to_string(),
        })?;
        Ok(Self { layout, memory })
    }

    /// Where it lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The mapped regions; a clone shares the same pages. Each region of shared memory carries its file and offset.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

/// A memory file that nobody who is given it can shrink or grow: a mapping of it can't be made to fault (SIGBUS).
fn sealed_memfd(size: u64) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(c"innkeeper-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open for as long as `file` lives; the call takes an integer and touches no memory.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Maps `size` bytes: of `file`, or of anonymous memory.
fn map(size: u64, file: Option<FileOffset>) -> Result<MmapRegion, String> {
    let length = usize::try_from(size).map_err(|error| error.to_string())?;
    let sharing = if file.is_some() {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    };
    let mut builder = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(sharing | libc::MAP_NORESERVE);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    let _pad = Pad::for_next_mapping(length);
    let region = builder.build().map_err(|error| error.to_string())?;
    // Both are wishes: a kernel built without huge pages, for one, refuses the first, and the guest runs all the same.
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: the range is exactly the mapping just made, and neither advice changes what it holds.
        unsafe { libc::madvise(region.as_ptr().cast(), length, advice) };
    }
    Ok(region)
}

/// Address space held so that the next mapping, which ends below it, begins on a huge page boundary.
///
/// A huge page can back guest memory only where guest physical and host virtual addresses are congruent modulo its
/// size. The kernel aligns mappings itself for shared memory with huge pages switched on, and for anonymous memory
/// since 6.7; for all others it fills the highest gap from its top. So: reserve the mapping and one huge page more, and
/// give back what lies below the end that an aligned mapping would have. Only speed hangs on the result.
struct Pad {
    start: *mut libc::c_void,
    length: usize,
}

impl Pad {
    fn for_next_mapping(length: usize) -> Option<Self> {
        let reserved = length.checked_add(HUGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at a place of the kernel's choice, which nothing reads or writes.
        let base = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let first = base.addr().next_multiple_of(HUGE_PAGE);
        let below_pad = first + length - base.addr();
        // SAFETY: the lower part of the reservation made above; nobody has learnt of it.
        unsafe { libc::munmap(base, below_pad) };
        Some(Self {
            start: base.wrapping_byte_add(below_pad),
            length: reserved - below_pad,
        })
    }
}

impl Drop for Pad {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the upper part of the reservation, which only this value knows of.
            unsafe { libc::munmap(self.start, self.length) };
        }
    }
}

/// Makes `range` of guest memory read as zero. Whole pages of shared memory go back to the host, so clearing untouched
/// memory is one system call and takes no memory.
pub fn clear(memory: &GuestMemory, range: Range<u64>) -> Result<(), GuestMemoryError> {
    let pages = range.start.next_multiple_of(PAGE)..range.end - range.end % PAGE;
    if pages.is_empty() || !punch(memory, &pages) {
        return write_zeroes(memory, range);
    }
    write_zeroes(memory, range.start..pages.start)?;
    write_zeroes(memory, pages.end..range.end)
}

/// Gives whole pages back to the host; `false` when that can't be done here.
fn punch(memory: &GuestMemory, pages: &Range<u64>) -> bool {
    let Some(region) = memory.find_region(GuestAddress(pages.start)) else {
        return false;
    };
    let Some(file) = region.file_offset() else { return false };
    let offset = pages.start - region.start_addr().0;
    let length = pages.end - pages.start;
    let inside = region.len().checked_sub(offset).is_some_and(|rest| length <= rest);
    inside
        && fallocate(
            file.file(),
            FallocateMode::PunchHole,
            true,
            file.start() + offset,
            length,
        )
        .is_ok()
}

fn write_zeroes(memory: &GuestMemory, range: Range<u64>) -> Result<(), GuestMemoryError> {
    const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
    let mut at = range.start;
    while at < range.end {
        let count = (range.end - at).min(PAGE as GuestUsize) as usize;
        memory.write_slice(&ZEROES[..count], GuestAddress(at))?;
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram(size: u64, backing: Backing) -> Ram {
        Ram::new(Layout::new(size).unwrap(), backing).unwrap()
    }

    #[test]
    fn memory_of_both_kinds_spans_the_hole() {
        for backing in [Backing::Shared, Backing::Private] {
            let ram = ram(6 << 30, backing);
            let memory = ram.memory();
            memory
                .write_obj(0x1234_5678_u32, GuestAddress(0xc000_0000 - 4))
                .unwrap();
            memory.write_obj(0x9abc_def0_u32, GuestAddress(0x1_0000_0000)).unwrap();
            assert_eq!(
                memory.read_obj::<u32>(GuestAddress(0xc000_0000 - 4)).unwrap(),
                0x1234_5678
            );
            assert!(memory.write_obj(0_u8, GuestAddress(0xc000_0000)).is_err());
            assert_eq!(memory.last_addr(), GuestAddress(0x1_bfff_ffff));
        }
    }

    #[test]
    fn guest_and_host_addresses_are_congruent_for_huge_pages() {
        for backing in [Backing::Shared, Backing::Private] {
            for region in ram(6 << 30, backing).memory().iter() {
                assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0, "{backing:?}");
            }
        }
    }

    #[test]
    fn shared_memory_is_one_file_that_cannot_change_its_size() {
        let ram = ram(4 << 30, Backing::Shared);
        let offsets: Vec<_> = ram
            .memory()
            .iter()
            .map(|region| region.file_offset().unwrap().start())
            .collect();
        assert_eq!(offsets, [0, 0xc000_0000]);
        let region = ram.memory().iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert_eq!(file.metadata().unwrap().len(), 4 << 30);
        assert!(file.set_len(MIB).is_err());
        assert!(file.set_len(8 << 30).is_err());
    }

    #[test]
    fn private_memory_has_no_file() {
        assert!(
            ram(32 * MIB, Backing::Private)
                .memory()
                .iter()
                .all(|region| region.file_offset().is_none())
        );
    }

    #[test]
    fn clearing_takes_exactly_the_range() {
        for backing in [Backing::Shared, Backing::Private] {
            let ram = ram(32 * MIB, backing);
            let memory = ram.memory();
            for range in [
                0x1000..0x9000,
                0x1234..0x8765,
                0x1100..0x1200,
                0x1ff0..0x2010,
                0x3000..0x3000,
            ] {
                memory.write_slice(&[0xff; 0xa000], GuestAddress(0)).unwrap();
                clear(memory, range.clone()).unwrap();
                let mut bytes = vec![0; 0xa000];
                memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
                for (at, byte) in (0..).zip(bytes) {
                    assert_eq!(byte == 0, range.contains(&at), "{at:#x} {range:x?}");
                }
            }
        }
    }

    #[test]
    fn clearing_outside_memory_fails() {
        let ram = ram(32 * MIB, Backing::Shared);
        assert!(clear(ram.memory(), 31 * MIB..33 * MIB).is_err());
        assert!(clear(ram.memory(), 64 * MIB..65 * MIB).is_err());
    }
}
