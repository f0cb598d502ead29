//! A file or block device that is the disk, byte for byte.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use super::{Image, Lock};
use crate::virtio::block::SECTOR;
use crate::virtio::block::request::{HEADER_BYTES, Op, Range};
use crate::virtio::block::transfer::Transfer;

/// Bytes that are read, changed and written at a time; a multiple of any block.
const CHUNK: usize = 64 << 10;

/// The largest alignment that direct I/O is tried with.
const MAX_ALIGNMENT: usize = 4096;

/// The image.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    /// What offsets, lengths and addresses are multiples of; 1 without direct I/O.
    alignment: usize,
    /// Taken for writing by what reads, changes and writes a block that the guest wrote only a part
    /// of; for reading by all else, while there can be such.
    partial_blocks: RwLock<()>,
    _lock: Lock,
}

impl RawImage {
    /// The disk in `file`, which is open with O_DIRECT if `direct` and locked by `lock`.
    ///
    /// # Errors
    /// It is no file that can be read at an offset.
    pub fn new(file: File, lock: Lock, direct: bool) -> io::Result<Self> {
        let alignment = if direct { probe_alignment(&file)? } else { 1 };
        Ok(Self::with_alignment(file, lock, alignment))
    }

    /// The disk in `file`, whose calls have to be aligned to `alignment` bytes.
    pub(in crate::virtio::block) fn with_alignment(file: File, lock: Lock, alignment: usize) -> Self {
        Self {
            file,
            alignment,
            partial_blocks: RwLock::default(),
            _lock: lock,
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What guest buffers have to be aligned to, in bytes.
    pub fn memory_alignment(&self) -> usize {
        self.alignment
    }

    /// Whether requests may be smaller than what the file takes. Then they go through
    /// [`Image::execute`], which sees to them.
    pub fn has_partial_blocks(&self) -> bool {
        self.alignment as u64 > SECTOR
    }

    fn is_partial(&self, range: Range) -> bool {
        let alignment = self.alignment as u64;
        !range.offset.is_multiple_of(alignment) || !range.len.is_multiple_of(alignment)
    }

    /// Carries out what does not begin and end at block borders, a few blocks at a time.
    fn execute_partial(&self, transfer: &mut Transfer) -> io::Result<()> {
        let op = transfer.op();
        let block = self.alignment as u64;
        let mut buffer = Aligned::new(self.alignment);
        for (range, chain) in transfer.requests() {
            let mut reader = chain.reader();
            let mut writer = chain.writer();
            // The header was read from the same chain, so it is there.
            let _ = reader.skip(HEADER_BYTES);
            let mut at = range.offset;
            let end = range.offset + range.len;
            while at < end {
                let first = at - at % block;
                let last = end.next_multiple_of(block).min(first + CHUNK as u64);
                let bytes = buffer.part((last - first) as usize);
                let stop = last.min(end);
                self.fill(bytes, first)?;
                let part = bytes
                    .get_mut((at - first) as usize..(stop - first) as usize)
                    .unwrap_or_default();
                match op {
                    Op::Read => {
                        writer.write(part);
                    }
                    Op::Write => {
                        reader.read(part);
                    }
                    Op::WriteZeroes { .. } => part.fill(0),
                    Op::Flush | Op::Discard => {}
                }
                if op.is_write() {
                    self.file.write_all_at(bytes, first)?;
                }
                at = stop;
            }
        }
        if transfer.is_write_through() {
            self.file.sync_data()
        } else {
            Ok(())
        }
    }

    /// Reads whole blocks; what is behind the end of the file reads as zeroes.
    fn fill(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let count = self.file.read_at(bytes, offset)?;
        bytes.get_mut(count..).unwrap_or_default().fill(0);
        Ok(())
    }
}

impl Image for RawImage {
    fn bytes(&self) -> io::Result<u64> {
        // The end of a block device is only found by seeking. Nothing else uses the position.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn execute(&self, transfer: &mut Transfer) {
        if !self.has_partial_blocks() {
            transfer.run(&self.file);
            return;
        }
        let by_blocks = matches!(transfer.op(), Op::Read | Op::Write | Op::WriteZeroes { .. });
        if by_blocks && self.is_partial(transfer.range()) {
            let _alone = self.partial_blocks.write().unwrap_or_else(PoisonError::into_inner);
            let outcome = self.execute_partial(transfer);
            transfer.finish(outcome);
        } else {
            let _together = self.partial_blocks.read().unwrap_or_else(PoisonError::into_inner);
            transfer.run(&self.file);
        }
    }

    fn as_raw(&self) -> Option<&RawImage> {
        Some(self)
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        if self.file.metadata()?.is_file() {
            return self.file.set_len(bytes);
        }
        // A block device has the size that it has; QEMU accepts one that fits, too.
        if bytes <= self.bytes()? {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

/// Finds out what direct I/O on `file` has to be aligned to, by trying.
fn probe_alignment(file: &File) -> io::Result<usize> {
    let mut alignment = SECTOR as usize;
    while alignment < MAX_ALIGNMENT {
        match file.read_at(Aligned::new(alignment).part(alignment), 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => alignment *= 2,
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    Ok(alignment)
}

/// A buffer that begins at a multiple of an alignment, and of no larger power of two.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(alignment: usize) -> Self {
        let bytes = vec![0; CHUNK + 2 * alignment];
        let address = bytes.as_ptr().addr();
        let mut start = address.wrapping_neg() % alignment;
        if (address + start).is_multiple_of(2 * alignment) {
            start += alignment;
        }
        Self { bytes, start }
    }

    fn part(&mut self, len: usize) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn probe_buffers_are_aligned_to_what_is_asked_and_no_more() {
        for alignment in [512, 1024, 4096] {
            let mut buffer = Aligned::new(alignment);
            let address = buffer.part(alignment).as_ptr().addr();
            assert_eq!(1 << address.trailing_zeros(), alignment);
        }
    }
}
