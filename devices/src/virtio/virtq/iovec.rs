//! Guest buffers as the kernel's scatter/gather list.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::buffer::Segment;
use crate::memory::GuestMemory;

/// The most entries that one system call takes (UIO_MAXIOV in Linux's include/uapi/linux/uio.h).
/// Longer lists are transferred in part, like any other short read or write.
const UIO_MAXIOV: usize = 1024;

/// Buffers of one or more chains, to be read or written by the kernel where they are.
///
/// It keeps guest RAM mapped, so it may outlive the chains it was gathered from; whether the driver
/// still expects the I/O is another question, which is why a device holds on to the
/// [`Chain`](super::Chain). The list is meant to be [`clear`](Self::clear)ed and used again.
#[derive(Clone, Debug, Default)]
pub struct GuestIoVec {
    entries: Vec<Segment>,
    bytes: usize,
    /// What the entries point into: one, but for chains of queues that were started on different
    /// memory.
    memories: Vec<Arc<GuestMemory>>,
}

impl GuestIoVec {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in all entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to transfer.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The entries. They stay where they are until the list is changed, which is what io_uring
    /// wants to be sure of; the memory behind them is mapped for as long as the list lives and is
    /// not cleared.
    pub fn as_iovecs(&self) -> &[libc::iovec] {
        // SAFETY: `Segment` is a transparent `iovec`.
        unsafe { std::slice::from_raw_parts(self.entries.as_ptr().cast(), self.entries.len()) }
    }

    /// Empties the list and keeps its room.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
        // The latest memory stays: the next chain is nearly always from the same.
        self.memories.drain(..self.memories.len().saturating_sub(1));
    }

    /// Takes all entries but the first `entries` off the end.
    pub fn truncate(&mut self, entries: usize) {
        let gone = self.entries.drain(entries.min(self.entries.len())..);
        self.bytes -= gone.map(|entry| entry.len()).sum::<usize>();
    }

    /// Takes `len` bytes off the front, after a transfer that was cut short.
    pub fn advance(&mut self, len: usize) {
        let mut left = len.min(self.bytes);
        self.bytes -= left;
        let whole = self.entries.iter().take_while(|entry| {
            let fits = entry.len() <= left;
            if fits {
                left -= entry.len();
            }
            fits
        });
        let whole = whole.count();
        self.entries.drain(..whole);
        if let Some(first) = self.entries.first_mut() {
            *first = first.part(left, usize::MAX);
        }
    }

    /// Reads from `fd` at byte `offset` into the buffers (preadv). Returns the bytes read, which
    /// may be fewer than asked for.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn read_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = to_offset(offset)?;
        // SAFETY: the entries are guest RAM that `memories` keeps mapped; the kernel may write it.
        count(unsafe { libc::preadv(fd.as_raw_fd(), self.as_iovecs().as_ptr(), self.call_entries(), offset) })
    }

    /// Writes the buffers to `fd` at byte `offset` (pwritev). Returns the bytes written, which may
    /// be fewer than asked for.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn write_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = to_offset(offset)?;
        // SAFETY: the entries are guest RAM that `memories` keeps mapped; the kernel only reads it.
        count(unsafe { libc::pwritev(fd.as_raw_fd(), self.as_iovecs().as_ptr(), self.call_entries(), offset) })
    }

    /// Reads from `fd` into the buffers (readv). Returns the bytes read.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn read(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `read_at`.
        count(unsafe { libc::readv(fd.as_raw_fd(), self.as_iovecs().as_ptr(), self.call_entries()) })
    }

    /// Writes the buffers to `fd` (writev). Returns the bytes written.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn write(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `write_at`.
        count(unsafe { libc::writev(fd.as_raw_fd(), self.as_iovecs().as_ptr(), self.call_entries()) })
    }

    /// Reads from `fd` into the buffers and, when they are full, into `spill`, with one call
    /// (readv). Returns the bytes read.
    ///
    /// One entry of the call is needed for the spill: with as many entries as a call takes there is
    /// none.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn read_with_spill(&mut self, fd: BorrowedFd<'_>, spill: &mut [u8]) -> io::Result<usize> {
        self.entries.push(Segment::of_slice(spill));
        // SAFETY: as in `read_at`; the last entry is a slice that we hold exclusively, and it is
        // gone from the list after the call.
        let read = count(unsafe { libc::readv(fd.as_raw_fd(), self.as_iovecs().as_ptr(), self.call_entries()) });
        self.entries.pop();
        read
    }

    /// Entries in the list.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Copies `from` into the buffers, as much as they have room for. Returns how much.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        self.copy(from.len(), |piece, at| {
            piece.copy_from(from.get(at..).unwrap_or_default())
        })
    }

    /// Copies from the beginning of the buffers to `to`, as much as there is. Returns how much.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        self.copy(to.len(), |piece, at| {
            piece.copy_to(to.get_mut(at..).unwrap_or_default());
        })
    }

    /// Goes over the first `len` bytes, at most; hands out each piece and how many bytes lie in
    /// front of it. Returns how many there were.
    fn copy(&self, len: usize, mut copy: impl FnMut(VolatileSlice<'_>, usize)) -> usize {
        let mut done = 0;
        for entry in &self.entries {
            if done == len {
                break;
            }
            let piece = entry.part(0, len - done);
            let iovec = piece.as_iovec();
            // SAFETY: the entry is guest RAM that `memories` keeps mapped for as long as the list
            // lives.
            copy(
                unsafe { VolatileSlice::new(iovec.iov_base.cast(), iovec.iov_len) },
                done,
            );
            done += piece.len();
        }
        done
    }

    /// A list of guest memory that holds `bytes`, in pieces of at most `piece` bytes.
    #[cfg(test)]
    pub(crate) fn holding(bytes: &[u8], piece: usize) -> Self {
        #![allow(clippy::unwrap_used)]
        use vm_memory::{Bytes, GuestAddress};

        let range = (GuestAddress(0), bytes.len().max(1));
        let memory = Arc::new(GuestMemory::from_ranges(&[range]).unwrap());
        memory.write_slice(bytes, GuestAddress(0)).unwrap();
        let map = crate::memory::MemoryMap::new(Arc::clone(&memory));
        let mut list = Self::new();
        list.keep(&memory);
        for at in (0..bytes.len()).step_by(piece) {
            let len = piece.min(bytes.len() - at);
            list.push(Segment::new(map.contiguous(at as u64, len as u64).unwrap()));
        }
        list
    }

    /// Keeps `memory` mapped for the entries that follow.
    #[inline]
    pub(super) fn keep(&mut self, memory: &Arc<GuestMemory>) {
        if !self.memories.iter().any(|kept| Arc::ptr_eq(kept, memory)) {
            self.memories.push(Arc::clone(memory));
        }
    }

    /// Adds a piece of the memory that was [kept](Self::keep) last.
    #[inline]
    pub(super) fn push(&mut self, piece: Segment) {
        self.bytes += piece.len();
        self.entries.push(piece);
    }

    fn call_entries(&self) -> libc::c_int {
        self.entries.len().min(UIO_MAXIOV) as libc::c_int
    }
}

fn to_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn count(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
