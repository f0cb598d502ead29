//! One piece of work for a backend, from the guest's buffers to the outcome.
//!
//! A transfer carries the chains of one request, or of several that lie side by side on the disk.
//! What it takes to do the work is a sequence of simple calls to the host, because calls come back
//! short, are not supported, or have to be followed by a sync: [`Transfer::next_call`] names the
//! next one and [`Transfer::returned`] takes its result, until the transfer is finished. How a call
//! is made, and by whom, is the engine's.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::SECTOR;
use super::request::{HEADER_BYTES, Op, Range};
use crate::virtio::virtq::{Chain, GuestFault, GuestIoVec};

/// The most requests in one transfer (QEMU's VIRTIO_BLK_MAX_MERGE_REQS).
const MAX_MERGED: usize = 32;
/// Transfers stop growing here: past this size a call costs little beside its data.
const MAX_MERGED_BYTES: u64 = 1 << 20;
/// The most pieces of guest memory in a merged transfer.
const MAX_MERGED_PIECES: usize = 512;

/// Zeroes for disks that cannot make their own. Aligned for direct I/O.
static ZEROES: Zeroes = Zeroes([0; ZERO_BYTES]);
/// Bytes of [`zeroes`].
pub const ZERO_BYTES: usize = 64 << 10;

#[repr(align(4096))]
struct Zeroes([u8; ZERO_BYTES]);

/// A call to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Read at this offset into [`Transfer::memory`].
    Read(u64),
    /// Write [`Transfer::memory`] at this offset.
    Write(u64),
    /// Write this many zeroes; there are enough of them in [`zeroes`].
    WriteZeroes(u64, usize),
    /// Take the storage of the range away; it reads as zeroes afterwards.
    PunchHole(Range),
    /// Make the range zeroes and keep its storage.
    ZeroRange(Range),
    /// Make all data that was written safe (fdatasync).
    Sync,
}

/// `len` zeroes, or as many as there are.
pub fn zeroes(len: usize) -> &'static [u8] {
    ZEROES.0.get(..len).unwrap_or(&ZEROES.0)
}

/// Where data comes from or goes to.
pub enum Memory<'a> {
    /// The guest's buffers.
    Guest(&'a GuestIoVec),
    /// A copy of our own, because the guest's are not aligned for direct I/O.
    Bounce(&'a mut [u8]),
}

/// How a transfer is carried out on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Buffers have to be aligned to this many bytes; 1 if anything goes.
    pub memory_alignment: usize,
    /// Writes are safe when they are done: the write cache is off.
    pub write_through: bool,
}

/// A request on its way.
#[derive(Debug)]
struct Member {
    chain: Chain,
    /// Bytes of data.
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Data,
    /// Zeroes by writing them.
    DataByHand,
    Sync,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Transfer {
    op: Op,
    range: Range,
    /// Bytes at the front that are done.
    done: u64,
    stage: Stage,
    /// Another way to make zeroes was refused by the host.
    refused_once: bool,
    write_through: bool,
    /// The file is open for direct I/O.
    direct: bool,
    members: Vec<Member>,
    buffers: GuestIoVec,
    bounce: Bounce,
    outcome: io::Result<()>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            op: Op::Flush,
            range: Range { offset: 0, len: 0 },
            done: 0,
            stage: Stage::Data,
            refused_once: false,
            write_through: false,
            direct: false,
            members: Vec::new(),
            buffers: GuestIoVec::new(),
            bounce: Bounce::default(),
            outcome: Ok(()),
        }
    }
}

impl Transfer {
    /// Begins anew with one request. What was there before is gone, but for its room.
    ///
    /// # Errors
    /// The chain is shorter than `range`; it is given back.
    pub fn start(&mut self, op: Op, range: Range, chain: Chain) -> Result<(), (GuestFault, Chain)> {
        self.members.clear();
        self.buffers.clear();
        self.bounce.clear();
        (self.op, self.range) = (
            op,
            Range {
                offset: range.offset,
                len: 0,
            },
        );
        self.done = 0;
        (self.stage, self.refused_once) = (Stage::Data, false);
        self.write_through = false;
        self.outcome = Ok(());
        self.add(chain, range.len)
    }

    /// Adds a request that begins where this transfer ends. Gives the chain back if it does not go
    /// with the others.
    ///
    /// # Errors
    /// The chain, to be started as a transfer of its own.
    pub fn merge(&mut self, op: Op, range: Range, chain: Chain) -> Result<(), Chain> {
        let fits = matches!(op, Op::Read | Op::Write)
            && op == self.op
            && range.offset == self.range.offset + self.range.len
            && self.range.len + range.len <= MAX_MERGED_BYTES
            && self.members.len() < MAX_MERGED
            && self.buffers.as_iovecs().len() < MAX_MERGED_PIECES;
        if !fits {
            return Err(chain);
        }
        self.add(chain, range.len).map_err(|(_, chain)| chain)
    }

    fn add(&mut self, chain: Chain, len: u64) -> Result<(), (GuestFault, Chain)> {
        let gathered = match self.op {
            Op::Read => chain.writer().gather(len as usize, &mut self.buffers),
            Op::Write => {
                let mut reader = chain.reader();
                reader
                    .skip(HEADER_BYTES)
                    .and_then(|()| reader.gather(len as usize, &mut self.buffers))
            }
            Op::Flush | Op::Discard | Op::WriteZeroes { .. } => Ok(()),
        };
        match gathered {
            Ok(()) => {
                self.range.len += len;
                self.members.push(Member { chain, len });
                Ok(())
            }
            Err(fault) => Err((fault, chain)),
        }
    }

    /// Makes ready for [`Self::next_call`].
    pub fn prepare(&mut self, manner: Manner) {
        self.write_through = manner.write_through && self.op.is_write();
        self.direct = manner.memory_alignment > 1;
        if matches!(self.op, Op::Read | Op::Write) && !self.is_aligned(manner.memory_alignment) {
            self.bounce.resize(self.range.len as usize, manner.memory_alignment);
            if self.op == Op::Write {
                self.copy_in();
            }
        }
    }

    /// What is done.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Where on the disk.
    pub fn range(&self) -> Range {
        self.range
    }

    /// Whether what it writes is to be safe when it is done.
    pub fn is_write_through(&self) -> bool {
        self.write_through
    }

    /// Whether it is more than one request.
    pub fn is_merged(&self) -> bool {
        self.members.len() > 1
    }

    /// What came out. Meaningful once the transfer is finished.
    pub fn outcome(&self) -> &io::Result<()> {
        &self.outcome
    }

    /// Ends the transfer, for an engine that does without [`Self::next_call`].
    pub fn finish(&mut self, outcome: io::Result<()>) {
        self.outcome = outcome;
    }

    /// The chains of the requests, each with its offset on the disk and its bytes of data.
    pub fn requests(&self) -> impl Iterator<Item = (Range, &Chain)> {
        let mut offset = self.range.offset;
        self.members.iter().map(move |member| {
            let range = Range {
                offset,
                len: member.len,
            };
            offset += member.len;
            (range, &member.chain)
        })
    }

    /// Takes the chains out, each with its place on the disk.
    pub fn drain(&mut self) -> impl Iterator<Item = (Range, Chain)> + '_ {
        let mut offset = self.range.offset;
        self.members.drain(..).map(move |member| {
            let range = Range {
                offset,
                len: member.len,
            };
            offset += member.len;
            (range, member.chain)
        })
    }

    /// Where the data of the next call is.
    pub fn memory(&mut self) -> Memory<'_> {
        if self.bounce.is_empty() {
            Memory::Guest(&self.buffers)
        } else {
            Memory::Bounce(self.bounce.rest(self.done as usize))
        }
    }

    /// The next call to make.
    pub fn next_call(&self) -> Call {
        let offset = self.range.offset + self.done;
        let rest = Range {
            offset,
            len: self.range.len.saturating_sub(self.done),
        };
        match (self.stage, self.op) {
            (Stage::Sync, _) | (_, Op::Flush) => Call::Sync,
            (_, Op::Read) => Call::Read(offset),
            (_, Op::Write) => Call::Write(offset),
            (Stage::DataByHand, _) => Call::WriteZeroes(offset, zeroes(rest.len.min(ZERO_BYTES as u64) as usize).len()),
            (_, Op::Discard) => Call::PunchHole(rest),
            // A host that cannot punch holes may still zero ranges.
            (_, Op::WriteZeroes { unmap: true }) if !self.refused_once => Call::PunchHole(rest),
            (_, Op::WriteZeroes { .. }) => Call::ZeroRange(rest),
        }
    }

    /// Takes the result of the call: the number of bytes for reading and writing, anything for the
    /// others. Returns whether the transfer is finished.
    pub fn returned(&mut self, result: io::Result<usize>) -> bool {
        let call = self.next_call();
        match result {
            Ok(count) => self.succeeded(call, count as u64),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => false,
            Err(error) if self.try_otherwise(call, &error) => self.op == Op::Discard,
            Err(error) => {
                self.outcome = Err(error);
                true
            }
        }
    }

    fn succeeded(&mut self, call: Call, count: u64) -> bool {
        match call {
            Call::Sync => return true,
            Call::Read(_) if count == 0 => self.zero_rest(),
            Call::Write(_) | Call::WriteZeroes(..) if count == 0 => {
                self.outcome = Err(io::ErrorKind::WriteZero.into());
                return true;
            }
            Call::Read(_) | Call::Write(_) => {
                self.done += count;
                self.buffers.advance(count as usize);
                // Direct reads stop in the middle of a sector only where the file does, and cannot
                // go on from there.
                if self.direct && self.op == Op::Read && !count.is_multiple_of(SECTOR) {
                    self.zero_rest();
                }
            }
            Call::WriteZeroes(..) => self.done += count,
            Call::PunchHole(_) | Call::ZeroRange(_) => self.done = self.range.len,
        }
        if self.done < self.range.len {
            return false;
        }
        self.copy_out();
        let sync = self.write_through && self.stage != Stage::Sync;
        if sync {
            self.stage = Stage::Sync;
        }
        !sync
    }

    /// The host cannot do it: whether there is another way. A discard is a hint and counts as done.
    fn try_otherwise(&mut self, call: Call, error: &io::Error) -> bool {
        let unsupported = [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOTTY, libc::EINVAL, libc::ENODEV];
        let zeroing = matches!(call, Call::PunchHole(_) | Call::ZeroRange(_));
        if !zeroing || !error.raw_os_error().is_some_and(|code| unsupported.contains(&code)) {
            return false;
        }
        match self.op {
            Op::WriteZeroes { unmap: true } if !self.refused_once => self.refused_once = true,
            Op::WriteZeroes { .. } => self.stage = Stage::DataByHand,
            _ => {}
        }
        true
    }

    /// Makes all calls, one after the other, on `file`.
    pub fn run(&mut self, file: &File) {
        loop {
            let result = self.call(file);
            if self.returned(result) {
                return;
            }
        }
    }

    fn call(&mut self, file: &File) -> io::Result<usize> {
        let allocate = |mode, range: Range| {
            let result = fallocate(file, mode, true, range.offset, range.len);
            result
                .map(|()| 0)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))
        };
        match self.next_call() {
            Call::Read(offset) => match self.memory() {
                Memory::Guest(buffers) => buffers.read_at(file.as_fd(), offset),
                Memory::Bounce(bytes) => file.read_at(bytes, offset),
            },
            Call::Write(offset) => match self.memory() {
                Memory::Guest(buffers) => buffers.write_at(file.as_fd(), offset),
                Memory::Bounce(bytes) => file.write_at(bytes, offset),
            },
            Call::WriteZeroes(offset, len) => file.write_at(zeroes(len), offset),
            Call::PunchHole(range) => allocate(FallocateMode::PunchHole, range),
            Call::ZeroRange(range) => allocate(FallocateMode::ZeroRange, range),
            Call::Sync => file.sync_data().map(|()| 0),
        }
    }

    fn is_aligned(&self, alignment: usize) -> bool {
        let aligned = |value: usize| value.is_multiple_of(alignment);
        alignment <= 1
            || self
                .buffers
                .as_iovecs()
                .iter()
                .all(|piece| aligned(piece.iov_base.addr()) && aligned(piece.iov_len))
    }

    /// The image ends here: what lies behind reads as zeroes.
    fn zero_rest(&mut self) {
        if !self.bounce.is_empty() {
            self.bounce.rest(self.done as usize).fill(0);
            self.done = self.range.len;
            return;
        }
        let mut skip = self.done;
        for member in &self.members {
            let skipped = skip.min(member.len);
            skip -= skipped;
            let mut writer = member.chain.writer();
            // Lengths were checked when the buffers were gathered.
            let _ = writer.skip(skipped as usize);
            let _ = writer.write_zeroes((member.len - skipped) as usize);
        }
        self.done = self.range.len;
    }

    /// Copies what is to be written from the guest.
    fn copy_in(&mut self) {
        let mut room = self.bounce.rest(0);
        for member in &self.members {
            let (part, rest) = room.split_at_mut((member.len as usize).min(room.len()));
            let mut reader = member.chain.reader();
            let _ = reader.skip(HEADER_BYTES);
            let _ = reader.read(part);
            room = rest;
        }
    }

    /// Copies what was read to the guest, if it was read beside it.
    fn copy_out(&mut self) {
        if self.op != Op::Read || self.bounce.is_empty() {
            return;
        }
        let mut data: &[u8] = self.bounce.rest(0);
        for member in &self.members {
            let (part, rest) = data.split_at((member.len as usize).min(data.len()));
            member.chain.writer().write(part);
            data = rest;
        }
    }
}

/// A buffer at an address that suits direct I/O.
#[derive(Debug, Default)]
struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn clear(&mut self) {
        // One large request is not to keep its memory for good.
        if self.bytes.capacity() as u64 > 2 * MAX_MERGED_BYTES {
            self.bytes = Vec::new();
        }
        self.len = 0;
    }

    fn resize(&mut self, len: usize, alignment: usize) {
        self.bytes.resize(len + alignment, 0);
        self.start = self.bytes.as_ptr().addr().wrapping_neg() % alignment;
        self.len = len;
    }

    /// The bytes from `from` on.
    fn rest(&mut self, from: usize) -> &mut [u8] {
        let end = self.start + self.len;
        self.bytes
            .get_mut((self.start + from).min(end)..end)
            .unwrap_or_default()
    }
}
