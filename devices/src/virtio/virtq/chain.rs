//! A descriptor chain, walked once and validated as a whole.

#![forbid(unsafe_code)]

use std::hint::cold_path;
use std::sync::Arc;

use super::buffer::{Reader, Segment, Writer};
use super::config::MAX_QUEUE_SIZE;
use super::fault::GuestFault;
use super::ring::{DESCRIPTOR_SIZE, Descriptor, IndirectTable, SplitRing};
use crate::memory::{GuestMemory, HostSpan, MemoryMap};

/// The most descriptors that a chain with an indirect table may have if its queue is smaller.
///
/// The specification ends at the queue size (2.7.5.3.1), but drivers exceed it and QEMU takes up to
/// VIRTQUEUE_MAX_SIZE, so that is what works in the field. [`Chain::exceeds_queue_size`] tells.
pub const CHAIN_LIMIT: u16 = 1024;

/// The most bytes in one chain (virtio 1.3, 2.7.5.2).
const CHAIN_BYTES: u64 = 1 << 32;

/// Segments that an idle buffer keeps room for; a larger one is shrunk, so that a burst of huge
/// chains is not paid for forever.
const KEPT_SEGMENTS: usize = 512;

/// A request of the driver: buffers to read from, then buffers to write into, all of them checked
/// to be guest RAM.
///
/// A chain may stay out for as long as the I/O takes and travel between threads; it keeps the
/// memory mapped. It goes back to the [`Virtq`](super::Virtq) it came from with
/// [`push`](super::Virtq::push). Dropping it instead loses the head until the queue is reset, which
/// is right only when the queue is gone.
#[derive(Debug)]
#[must_use = "a chain that is dropped never comes back to the driver"]
pub struct Chain(Box<ChainBuffer>);

/// The storage of a chain. The queue keeps a pool of them: a chain costs no allocation and no
/// reference count once the pool is warm.
#[derive(Debug)]
pub(super) struct ChainBuffer {
    memory: Arc<GuestMemory>,
    /// The run of the queue that this chain belongs to.
    pub(super) owner: u64,
    /// Free-running index in the available ring.
    pub(super) position: u16,
    pub(super) head: u16,
    segments: Vec<Segment>,
    sums: Sums,
    exceeds_queue_size: bool,
}

/// What a walk adds up as it goes. It lives in registers until the walk is over.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// How many segments, from the front, are device-readable.
    readable_segments: usize,
    readable_bytes: u64,
    total_bytes: u64,
    /// A device-writable buffer was seen.
    writable: bool,
}

impl Chain {
    pub(super) fn new(buffer: Box<ChainBuffer>) -> Self {
        Self(buffer)
    }

    pub(super) fn into_buffer(self) -> Box<ChainBuffer> {
        self.0
    }

    #[cfg(test)]
    pub(super) fn buffer(&self) -> &ChainBuffer {
        &self.0
    }

    /// The index of the first descriptor: the name of the chain in traces. Unique among the chains
    /// in flight of a queue.
    pub fn head(&self) -> u16 {
        self.0.head
    }

    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> usize {
        self.0.sums.readable_bytes as usize
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> usize {
        self.0.writable_bytes() as usize
    }

    /// Whether the chain is longer than the queue, which 2.7.5.3.1 forbids and QEMU accepts.
    pub fn exceeds_queue_size(&self) -> bool {
        self.0.exceeds_queue_size
    }

    /// Reads the device-readable part from its beginning.
    pub fn reader(&self) -> Reader<'_> {
        let readable = self.0.segments.get(..self.0.sums.readable_segments).unwrap_or_default();
        Reader::new(&self.0.memory, readable, self.readable_bytes(), self.0.head)
    }

    /// Writes the device-writable part from its beginning.
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(&self.0.memory, self.writable(), self.writable_bytes(), self.0.head)
    }

    /// The device-writable part as the memory that it is, for a device that is told about memory
    /// and not about what is in it.
    pub fn writable_spans(&self) -> impl Iterator<Item = HostSpan> {
        self.writable().iter().map(Segment::span)
    }

    fn writable(&self) -> &[Segment] {
        self.0.segments.get(self.0.sums.readable_segments..).unwrap_or_default()
    }
}

impl ChainBuffer {
    pub(super) fn new(memory: Arc<GuestMemory>, owner: u64) -> Box<Self> {
        Box::new(Self {
            memory,
            owner,
            position: 0,
            head: 0,
            segments: Vec::with_capacity(8),
            sums: Sums::default(),
            exceeds_queue_size: false,
        })
    }

    pub(super) fn writable_bytes(&self) -> u64 {
        self.sums.total_bytes - self.sums.readable_bytes
    }

    /// Makes the buffer ready to lie in the pool.
    pub(super) fn recycle(&mut self) {
        self.segments.clear();
        if self.segments.capacity() > KEPT_SEGMENTS {
            self.segments.shrink_to(KEPT_SEGMENTS);
        }
    }

    /// Walks the chain that begins at `head` and keeps its buffers. The buffer is empty before;
    /// after an error its content is meaningless.
    ///
    /// # Errors
    /// The first rule that the chain breaks, always of [`Severity::Chain`](super::Severity::Chain).
    /// The work done for it is bounded: each table is read at most once per entry, and at most
    /// [`CHAIN_LIMIT`] entries or the queue size in all.
    #[inline]
    pub(super) fn walk(
        &mut self,
        ring: &SplitRing,
        memory: &MemoryMap,
        indirect: bool,
        head: u16,
    ) -> Result<(), GuestFault> {
        self.head = head;
        self.exceeds_queue_size = false;

        let size = ring.size();
        let mut sums = Sums::default();
        let mut next = head;
        for walked in 0..size {
            let Some(descriptor) = ring.descriptor(next) else {
                cold_path();
                return Err(GuestFault::NextOutOfRange {
                    head,
                    next,
                    entries: size.into(),
                });
            };
            if descriptor.is_indirect() {
                if !indirect {
                    cold_path();
                    return Err(GuestFault::IndirectNotNegotiated { head });
                }
                return self.walk_indirect(memory, descriptor, sums, walked, size);
            }
            self.add(memory, descriptor, &mut sums)?;
            if !descriptor.has_next() {
                self.sums = sums;
                return Ok(());
            }
            next = descriptor.next;
        }
        // A chain without a loop has ended by now: it visits each of the `size` descriptors at most
        // once.
        cold_path();
        Err(GuestFault::ChainTooLong {
            head,
            limit: size.into(),
        })
    }

    /// Goes on in the table that `descriptor` names, which ends the chain (2.7.5.3.2). Its WRITE
    /// flag has no meaning and is ignored.
    #[inline(never)]
    fn walk_indirect(
        &mut self,
        memory: &MemoryMap,
        descriptor: Descriptor,
        mut sums: Sums,
        walked: u16,
        size: u16,
    ) -> Result<(), GuestFault> {
        let Descriptor { address, len, .. } = descriptor;
        let head = self.head;
        if descriptor.has_next() {
            return Err(GuestFault::IndirectWithNext { head });
        }
        let entries = len / DESCRIPTOR_SIZE;
        if entries == 0 || !len.is_multiple_of(DESCRIPTOR_SIZE) || entries > MAX_QUEUE_SIZE.into() {
            return Err(GuestFault::IndirectLengthInvalid { head, len });
        }
        let table =
            IndirectTable::map(memory, address, len).ok_or(GuestFault::IndirectOutsideRam { head, address, len })?;

        // The walk ends when every entry was visited once, or at what the device takes; direct
        // descriptors in front count too.
        let room = u32::from(size.max(CHAIN_LIMIT).saturating_sub(walked));
        let limit = entries.min(room);
        let mut next = 0;
        for visited in 1..=limit {
            let Some(descriptor) = table.descriptor(next) else {
                return Err(GuestFault::NextOutOfRange { head, next, entries });
            };
            if descriptor.is_indirect() {
                return Err(GuestFault::IndirectNested { head });
            }
            self.add(memory, descriptor, &mut sums)?;
            if !descriptor.has_next() {
                self.sums = sums;
                self.exceeds_queue_size = u32::from(walked) + visited > size.into();
                return Ok(());
            }
            next = descriptor.next;
        }
        Err(GuestFault::ChainTooLong { head, limit })
    }

    /// Adds the buffer of one descriptor.
    #[inline(always)]
    fn add(&mut self, memory: &MemoryMap, descriptor: Descriptor, sums: &mut Sums) -> Result<(), GuestFault> {
        let bytes = u64::from(descriptor.len);
        // At most 2^16 descriptors of 2^32 bytes: no overflow.
        sums.total_bytes += bytes;
        let writable = descriptor.is_writable();
        if bytes == 0 || sums.total_bytes > CHAIN_BYTES || (sums.writable && !writable) {
            return Err(refuse(self.head, bytes, sums.total_bytes));
        }
        match memory.contiguous(descriptor.address, bytes) {
            Some(span) => self.segments.push(Segment::new(span)),
            None => self.add_straddling(memory, descriptor.address, descriptor.len)?,
        }
        if writable {
            sums.writable = true;
        } else {
            sums.readable_segments = self.segments.len();
            sums.readable_bytes = sums.total_bytes;
        }
        Ok(())
    }

    /// Adds a buffer that lies in more than one region of RAM, or not in RAM.
    #[cold]
    fn add_straddling(&mut self, memory: &MemoryMap, address: u64, len: u32) -> Result<(), GuestFault> {
        let take = |span| self.segments.push(Segment::new(span));
        let result = memory.spans(address, len.into(), take);
        result.map_err(|_| GuestFault::BufferOutsideRam {
            head: self.head,
            address,
            len,
        })
    }

    /// The host stretches of the chain, readable first.
    #[cfg(test)]
    pub(super) fn segments(&self) -> impl Iterator<Item = (bool, usize, usize)> {
        let readable = self.sums.readable_segments;
        let with_direction = move |(index, segment): (usize, &Segment)| {
            (index >= readable, segment.as_iovec().iov_base.addr(), segment.len())
        };
        self.segments.iter().enumerate().map(with_direction)
    }
}

/// Why no buffer is taken from a descriptor of `bytes` that makes the chain `total_bytes` long.
#[cold]
fn refuse(head: u16, bytes: u64, total_bytes: u64) -> GuestFault {
    if bytes == 0 {
        GuestFault::BufferEmpty { head }
    } else if total_bytes > CHAIN_BYTES {
        GuestFault::ChainTooLarge { head }
    } else {
        GuestFault::ReadableAfterWritable { head }
    }
}
