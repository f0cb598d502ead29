//! Reading and writing the buffers of a chain.
//!
//! Both cursors only ever go forward, so a byte that the guest may change is read once. The driver
//! owns the memory all the while; copies are volatile, as `vm-memory` makes them.

use std::io;
use std::sync::Arc;

use vm_memory::{ByteValued, VolatileSlice};

use super::fault::GuestFault;
use super::iovec::GuestIoVec;
use crate::memory::{GuestMemory, HostSpan};

/// A stretch of memory, nearly always of guest RAM, in the form in which the kernel takes it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Segment(libc::iovec);

// SAFETY: a segment is an address and a length. Guest RAM is shared with the guest's processors
// anyway; all accesses are volatile or made by the kernel.
unsafe impl Send for Segment {}
// SAFETY: as above; a shared segment gives away nothing but the address.
unsafe impl Sync for Segment {}

impl Segment {
    #[inline]
    pub(super) fn new(span: HostSpan) -> Self {
        Self(libc::iovec {
            iov_base: span.as_ptr().cast(),
            iov_len: span.len(),
        })
    }

    /// Memory of our own.
    #[inline]
    pub(super) fn of_slice(slice: &mut [u8]) -> Self {
        Self(libc::iovec {
            iov_base: slice.as_mut_ptr().cast(),
            iov_len: slice.len(),
        })
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.0.iov_len
    }

    /// The stretch that it was made of.
    pub(super) fn span(&self) -> HostSpan {
        HostSpan::new(self.0.iov_base.cast(), self.0.iov_len)
    }

    #[inline]
    pub(super) fn as_iovec(&self) -> &libc::iovec {
        &self.0
    }

    /// The part from `offset` on, of at most `len` bytes.
    #[inline]
    pub(super) fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        Self(libc::iovec {
            iov_base: self.0.iov_base.wrapping_byte_add(offset),
            iov_len: len.min(self.len() - offset),
        })
    }
}

/// A place in a list of segments. The list was made by `ChainBuffer` from checked spans of
/// `memory`.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    memory: &'a Arc<GuestMemory>,
    segments: &'a [Segment],
    /// Bytes of the first segment that lie behind the cursor.
    offset: usize,
    remaining: usize,
    /// Head of the chain, for faults.
    head: u16,
}

impl<'a> Cursor<'a> {
    /// Goes forward by at most `len` bytes, over `take`n pieces. Returns how far.
    #[inline]
    fn advance(&mut self, len: usize, mut take: impl FnMut(Segment)) -> usize {
        let len = len.min(self.remaining);
        let mut left = len;
        while left > 0
            && let [first, rest @ ..] = self.segments
        {
            let piece = first.part(self.offset, left);
            left -= piece.len();
            if self.offset + piece.len() == first.len() {
                self.segments = rest;
                self.offset = 0;
            } else {
                self.offset += piece.len();
            }
            take(piece);
        }
        self.remaining -= len;
        len
    }

    /// Like [`Self::advance`], with each piece as a slice.
    #[inline]
    fn advance_slices(&mut self, len: usize, mut take: impl FnMut(VolatileSlice<'a>)) -> usize {
        self.advance(len, |piece| {
            let piece = piece.as_iovec();
            // SAFETY: the piece lies in a segment, which is a checked span of guest RAM; `memory`
            // keeps it mapped for 'a. Others use it as volatile or by way of the kernel.
            take(unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) });
        })
    }

    /// Fails unless `wanted` bytes are left.
    #[inline]
    fn need(&self, wanted: usize) -> Result<(), GuestFault> {
        if wanted <= self.remaining {
            return Ok(());
        }
        Err(GuestFault::BufferTooShort {
            head: self.head,
            wanted,
            available: self.remaining,
        })
    }

    /// Keeps the next `len` bytes; returns a cursor over what follows.
    fn split_at(&mut self, len: usize) -> Result<Self, GuestFault> {
        self.need(len)?;
        let mut rest = self.clone();
        rest.advance(len, |_| ());
        self.remaining = len;
        Ok(rest)
    }

    fn gather(&mut self, len: usize, into: &mut GuestIoVec) -> Result<(), GuestFault> {
        self.need(len)?;
        into.keep(self.memory);
        self.advance(len, |piece| into.push(piece));
        Ok(())
    }
}

/// The device-readable part of a chain.
#[derive(Clone, Debug)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(memory: &'a Arc<GuestMemory>, segments: &'a [Segment], remaining: usize, head: u16) -> Self {
        Self(Cursor {
            memory,
            segments,
            offset: 0,
            remaining,
            head,
        })
    }

    /// Bytes left to read.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Copies as many bytes as there are, at most `to.len()`. Returns how many.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        let mut filled = 0;
        self.0.advance_slices(to.len(), |piece| {
            filled += piece.copy_to(to.get_mut(filled..).unwrap_or_default());
        })
    }

    /// Fills `to`.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was read then.
    pub fn read_exact(&mut self, to: &mut [u8]) -> Result<(), GuestFault> {
        self.0.need(to.len())?;
        self.read(to);
        Ok(())
    }

    /// Copies a value out of the buffers, wherever their borders are.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was read then.
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, GuestFault> {
        let mut value = T::zeroed();
        self.read_exact(value.as_mut_slice())?;
        Ok(value)
    }

    /// Leaves out `len` bytes.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; the place is unchanged then.
    pub fn skip(&mut self, len: usize) -> Result<(), GuestFault> {
        self.0.need(len)?;
        self.0.advance(len, |_| ());
        Ok(())
    }

    /// Keeps the next `len` bytes in this reader and returns one for the bytes behind them.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; the reader is unchanged then.
    pub fn split_at(&mut self, len: usize) -> Result<Self, GuestFault> {
        self.0.split_at(len).map(Self)
    }

    /// Adds the next `len` bytes to `into`, for a system call that reads them where they are.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was added then.
    pub fn gather(&mut self, len: usize, into: &mut GuestIoVec) -> Result<(), GuestFault> {
        self.0.gather(len, into)
    }

    /// Hands out the next `len` bytes (or what is left) piece by piece, uncopied. Returns how many
    /// bytes that were.
    pub fn for_each_slice(&mut self, len: usize, take: impl FnMut(VolatileSlice<'a>)) -> usize {
        self.0.advance_slices(len, take)
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(Reader::read(self, to))
    }
}

/// The device-writable part of a chain.
#[derive(Clone, Debug)]
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    written: usize,
}

impl<'a> Writer<'a> {
    #[inline]
    pub(super) fn new(memory: &'a Arc<GuestMemory>, segments: &'a [Segment], remaining: usize, head: u16) -> Self {
        let cursor = Cursor {
            memory,
            segments,
            offset: 0,
            remaining,
            head,
        };
        Self { cursor, written: 0 }
    }

    /// Bytes left to write.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Bytes that this writer has gone over, by writing or by [`Self::skip`]; what
    /// [`Virtq::push`](super::Virtq::push) wants to know.
    pub fn written(&self) -> u32 {
        u32::try_from(self.written).unwrap_or(u32::MAX)
    }

    /// Writes as many bytes as there is room for. Returns how many.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut taken = 0;
        let len = self.cursor.advance_slices(from.len(), |piece| {
            piece.copy_from(from.get(taken..).unwrap_or_default());
            taken += piece.len();
        });
        self.written += len;
        len
    }

    /// Writes all of `from`.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was written then.
    pub fn write_all(&mut self, from: &[u8]) -> Result<(), GuestFault> {
        self.cursor.need(from.len())?;
        self.write(from);
        Ok(())
    }

    /// Writes a value, wherever the borders of the buffers are.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was written then.
    pub fn write_obj<T: ByteValued>(&mut self, value: &T) -> Result<(), GuestFault> {
        self.write_all(value.as_slice())
    }

    /// Sets the next `len` bytes to 0.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was written then.
    pub fn write_zeroes(&mut self, len: usize) -> Result<(), GuestFault> {
        self.cursor.need(len)?;
        let zeroed = self.cursor.advance(len, |piece| {
            let piece = piece.as_iovec();
            // SAFETY: the piece lies in a checked span of guest RAM that `memory` keeps mapped. The
            // driver gave it to us to write; it may look at it meanwhile, and sees zeroes or what
            // was there.
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        });
        self.written += zeroed;
        Ok(())
    }

    /// Fills at most `max` bytes from `source`, through a small buffer on the stack. Returns how
    /// many; fewer than asked for mean that the source or the room has come to its end.
    ///
    /// # Errors
    /// Those of the source. What was read before has been written and is counted.
    pub fn fill_from(&mut self, source: &mut impl io::Read, max: usize) -> io::Result<usize> {
        let mut bounce = [0u8; 1024];
        let wanted = max.min(self.remaining());
        let mut filled = 0;
        while filled < wanted {
            let room = bounce.len().min(wanted - filled);
            match source.read(bounce.get_mut(..room).unwrap_or_default()) {
                Ok(0) => break,
                Ok(len) => filled += self.write(bounce.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Goes over `len` bytes that were written by other means, such as a system call on
    /// [`Self::gather`]ed buffers.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; the place is unchanged then.
    pub fn skip(&mut self, len: usize) -> Result<(), GuestFault> {
        self.cursor.need(len)?;
        self.written += self.cursor.advance(len, |_| ());
        Ok(())
    }

    /// Keeps the next `len` bytes in this writer and returns one, with a count of its own, for the
    /// bytes behind them.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; the writer is unchanged then.
    pub fn split_at(&mut self, len: usize) -> Result<Self, GuestFault> {
        let cursor = self.cursor.split_at(len)?;
        Ok(Self { cursor, written: 0 })
    }

    /// Adds the next `len` bytes to `into`, for a system call that writes them where they are. They
    /// do not count as written: only the result of the call tells.
    ///
    /// # Errors
    /// [`GuestFault::BufferTooShort`]; nothing was added then.
    pub fn gather(&mut self, len: usize, into: &mut GuestIoVec) -> Result<(), GuestFault> {
        self.cursor.gather(len, into)
    }

    /// Hands out the next `len` bytes (or what is left) piece by piece, to be written in place.
    /// They count as written. Returns how many bytes that were.
    pub fn for_each_slice(&mut self, len: usize, take: impl FnMut(VolatileSlice<'a>)) -> usize {
        let len = self.cursor.advance_slices(len, take);
        self.written += len;
        len
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(Writer::write(self, from))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
