//! The three areas of a split ring in host memory, and every access to them.
//!
//! The guest may write any byte here at any time. Each accessor reads its field once, with one
//! atomic access of the field's own width, and hands the value on by copy. Offsets are computed
//! from the frozen size alone.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::config::{QueueConfig, RingPart};
use super::fault::GuestFault;
use crate::memory::{HostSpan, MemoryMap};

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_SIZE: u32 = 16;

/// `flags` of both rings are at their start, `idx` behind them, then the entries.
const INDEX_OFFSET: usize = 2;
const ENTRIES_OFFSET: usize = 4;
const AVAIL_ENTRY_SIZE: usize = 2;
const USED_ENTRY_SIZE: usize = 8;

/// A copy of one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// From the two little-endian halves of the 16 bytes.
    fn from_halves(low: u64, high: u64) -> Self {
        let high = u64::from_le(high);
        Self {
            address: u64::from_le(low),
            len: high as u32,
            flags: (high >> 32) as u16,
            next: (high >> 48) as u16,
        }
    }

    pub(super) fn has_next(self) -> bool {
        u32::from(self.flags) & VRING_DESC_F_NEXT != 0
    }

    pub(super) fn is_writable(self) -> bool {
        u32::from(self.flags) & VRING_DESC_F_WRITE != 0
    }

    pub(super) fn is_indirect(self) -> bool {
        u32::from(self.flags) & VRING_DESC_F_INDIRECT != 0
    }
}

/// Host pointers to a split ring whose geometry was checked.
#[derive(Debug)]
pub(super) struct SplitRing {
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
    size: u16,
}

// SAFETY: the pointers name guest RAM, which is mapped for as long as the owner of the ring keeps
// the `MemoryMap` alive, from whichever thread; all accesses are atomic.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Translates the three areas of `config`, which passed [`QueueConfig::check`].
    ///
    /// The pointers are good for as long as `memory` or a clone of it lives; the caller keeps one.
    pub(super) fn map(config: &QueueConfig, memory: &MemoryMap) -> Result<Self, GuestFault> {
        let map = |part: RingPart| {
            let (address, len) = (config.address(part), part.bytes(config.size));
            let span = memory
                .contiguous(address, len)
                .ok_or(GuestFault::RingOutsideRam { part, address, len })?;
            // Regions of RAM are page-aligned in guest and host, so this follows from the guest
            // address; if one ever is not, the accesses below must not be reached.
            if span.as_ptr().addr().is_multiple_of(part.alignment() as usize) {
                Ok(span.as_ptr())
            } else {
                Err(GuestFault::RingMisaligned { part, address })
            }
        };
        Ok(Self {
            descriptors: map(RingPart::Descriptors)?,
            available: map(RingPart::Available)?,
            used: map(RingPart::Used)?,
            size: config.size,
        })
    }

    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// `avail.idx`. Acquire: the entries and descriptors that the driver wrote before it moved the
    /// index are seen by later reads.
    #[inline]
    pub(super) fn avail_index(&self) -> u16 {
        // SAFETY: `available` is valid and 2-aligned for 6 + 2 * size bytes (`map`).
        let index = unsafe { AtomicU16::from_ptr(self.available.add(INDEX_OFFSET).cast()) };
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// `used.idx`, for when somebody else has written it.
    pub(super) fn used_index(&self) -> u16 {
        // SAFETY: `used` is valid and 4-aligned for 6 + 8 * size bytes (`map`).
        let index = unsafe { AtomicU16::from_ptr(self.used.add(INDEX_OFFSET).cast()) };
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// `avail.flags`.
    #[inline]
    pub(super) fn avail_flags(&self) -> u16 {
        // SAFETY: as in `avail_index`.
        let flags = unsafe { AtomicU16::from_ptr(self.available.cast()) };
        u16::from_le(flags.load(Ordering::Relaxed))
    }

    /// The entry of the available ring for the free-running `position`.
    #[inline]
    pub(super) fn avail_entry(&self, position: u16) -> u16 {
        let offset = ENTRIES_OFFSET + AVAIL_ENTRY_SIZE * self.slot(position);
        // SAFETY: `slot` is below `size`, so the entry is inside the available ring; see
        // `avail_index`.
        let entry = unsafe { AtomicU16::from_ptr(self.available.add(offset).cast()) };
        u16::from_le(entry.load(Ordering::Relaxed))
    }

    /// `avail.used_event`, behind the entries: the used index at which the driver wants an
    /// interrupt.
    #[inline]
    pub(super) fn used_event(&self) -> u16 {
        let offset = ENTRIES_OFFSET + AVAIL_ENTRY_SIZE * usize::from(self.size);
        // SAFETY: the field is the last of the 6 + 2 * size bytes; see `avail_index`.
        let event = unsafe { AtomicU16::from_ptr(self.available.add(offset).cast()) };
        u16::from_le(event.load(Ordering::Relaxed))
    }

    /// Descriptor `index` of the table; `None` if there is none.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: `descriptors` is valid and 16-aligned for 16 * size bytes (`map`), and `index` is
        // below `size`.
        unsafe {
            let halves = self.descriptors.cast::<u64>().add(2 * usize::from(index));
            let low = AtomicU64::from_ptr(halves).load(Ordering::Relaxed);
            let high = AtomicU64::from_ptr(halves.add(1)).load(Ordering::Relaxed);
            Some(Descriptor::from_halves(low, high))
        }
    }

    /// Writes the used entry for the free-running `position`; the driver does not look at it before
    /// [`Self::publish_used`].
    #[inline]
    pub(super) fn write_used(&self, position: u16, head: u16, len: u32) {
        let offset = ENTRIES_OFFSET + USED_ENTRY_SIZE * self.slot(position);
        // SAFETY: `used` is valid and 4-aligned for 6 + 8 * size bytes (`map`), and `slot` is below
        // `size`.
        unsafe {
            let entry = self.used.add(offset).cast::<u32>();
            AtomicU32::from_ptr(entry).store(u32::from(head).to_le(), Ordering::Relaxed);
            AtomicU32::from_ptr(entry.add(1)).store(len.to_le(), Ordering::Relaxed);
        }
    }

    /// Moves `used.idx`. Release: a driver that sees the index also sees the entries and all data
    /// written before.
    #[inline]
    pub(super) fn publish_used(&self, index: u16) {
        // SAFETY: as in `write_used`; the field is 2-aligned.
        let target = unsafe { AtomicU16::from_ptr(self.used.add(INDEX_OFFSET).cast()) };
        target.store(index.to_le(), Ordering::Release);
    }

    /// Writes `used.flags`.
    #[inline]
    pub(super) fn set_used_flags(&self, flags: u16) {
        // SAFETY: as in `publish_used`.
        let target = unsafe { AtomicU16::from_ptr(self.used.cast()) };
        target.store(flags.to_le(), Ordering::Relaxed);
    }

    /// Writes `used.avail_event`, behind the entries: the available index at which the device wants
    /// a kick.
    #[inline]
    pub(super) fn set_avail_event(&self, index: u16) {
        let offset = ENTRIES_OFFSET + USED_ENTRY_SIZE * usize::from(self.size);
        // SAFETY: the field is the last of the 6 + 8 * size bytes; see `publish_used`.
        let target = unsafe { AtomicU16::from_ptr(self.used.add(offset).cast()) };
        target.store(index.to_le(), Ordering::Relaxed);
    }

    /// Where a free-running index falls. The size is a power of two, so the mask is the remainder.
    #[inline]
    fn slot(&self, position: u16) -> usize {
        usize::from(position & self.size.wrapping_sub(1))
    }
}

/// A table of indirect descriptors, which may begin at any address and run across regions of RAM.
pub(super) struct IndirectTable<'a> {
    memory: &'a MemoryMap,
    /// Guest-physical address of the first entry.
    address: u64,
    entries: u32,
    /// The whole table, where it lies in one region; nearly always.
    span: Option<HostSpan>,
}

impl<'a> IndirectTable<'a> {
    /// `None` unless every byte of the table is guest RAM. `len` is a multiple of 16.
    pub(super) fn map(memory: &'a MemoryMap, address: u64, len: u32) -> Option<Self> {
        let span = memory.contiguous(address, len.into());
        if span.is_none() && !memory.contains(address, len.into()) {
            return None;
        }
        let entries = len / DESCRIPTOR_SIZE;
        Some(Self {
            memory,
            address,
            entries,
            span,
        })
    }

    /// Entry `index`; `None` if there is none.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let offset = usize::from(index) * DESCRIPTOR_SIZE as usize;
        let Some(span) = self.span else {
            return self.straddling(offset);
        };
        let entry = span.as_ptr().wrapping_add(offset);
        let mut halves = [0u64; 2];
        if entry.addr().is_multiple_of(align_of::<u64>()) {
            // SAFETY: `index` is below the number of entries, so the 16 bytes are inside `span`,
            // which is mapped for as long as `memory` lives; the alignment was checked.
            unsafe {
                let entry = entry.cast::<u64>();
                halves[0] = AtomicU64::from_ptr(entry).load(Ordering::Relaxed);
                halves[1] = AtomicU64::from_ptr(entry.add(1)).load(Ordering::Relaxed);
            }
        } else {
            let mut bytes = [0u8; DESCRIPTOR_SIZE as usize];
            // SAFETY: as above; single bytes need no alignment.
            unsafe { read_bytes(entry, &mut bytes) };
            halves = halves_of(bytes);
        }
        Some(Descriptor::from_halves(halves[0], halves[1]))
    }

    /// An entry of a table that lies in more than one region.
    #[cold]
    fn straddling(&self, offset: usize) -> Option<Descriptor> {
        let mut bytes = [0u8; DESCRIPTOR_SIZE as usize];
        let mut filled = 0;
        let address = self.address.checked_add(offset as u64)?;
        let gathered = self.memory.spans(address, DESCRIPTOR_SIZE.into(), |span| {
            if let Some(piece) = bytes.get_mut(filled..filled + span.len()) {
                // SAFETY: `piece` is as long as `span`, which is mapped for as long as `memory`
                // lives.
                unsafe { read_bytes(span.as_ptr(), piece) };
                filled += span.len();
            }
        });
        let [low, high] = halves_of(bytes);
        gathered.ok().map(|()| Descriptor::from_halves(low, high))
    }
}

/// Copies guest bytes, each read once.
///
/// # Safety
/// `from` is valid for reads of as many bytes as `to` has.
unsafe fn read_bytes(from: *mut u8, to: &mut [u8]) {
    for (index, byte) in to.iter_mut().enumerate() {
        // SAFETY: by contract of this function.
        *byte = unsafe { from.add(index).read_volatile() };
    }
}

fn halves_of(bytes: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}
