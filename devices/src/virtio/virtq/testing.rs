//! The driver's side of a ring, for tests: a well-behaved driver that can be told to misbehave.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that leaves guest RAM has to fail")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::config::{QueueConfig, RingPart};
use crate::memory::GuestMemory;

/// Another descriptor follows.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor as the driver writes it (virtio 1.3, 2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawDescriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl RawDescriptor {
    /// A descriptor with all fields given.
    pub fn new(address: u64, len: u32, flags: u16, next: u16) -> Self {
        Self {
            address,
            len,
            flags,
            next,
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: true,
        }
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedEntry {
    /// Head of the chain.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// One queue as its driver sees it.
#[derive(Debug)]
pub struct DriverRing {
    memory: Arc<GuestMemory>,
    config: QueueConfig,
    avail_index: u16,
    /// Free-running index of the next used entry to look at.
    used_index: u16,
    free: VecDeque<u16>,
    /// For each head, the descriptors that its chain holds.
    chains: Vec<Vec<u16>>,
}

impl DriverRing {
    /// A ring in the legacy layout, from page `pfn` on.
    pub fn legacy(memory: Arc<GuestMemory>, pfn: u32, size: u16) -> Self {
        let mut config = QueueConfig::new(size);
        config.set_legacy_pfn(pfn);
        Self::on(memory, config)
    }

    /// A ring as a modern driver may have it: the three parts close together from `base` on, which
    /// is a multiple of 16.
    pub fn modern(memory: Arc<GuestMemory>, base: u64, size: u16) -> Self {
        let mut config = QueueConfig::new(size);
        config.descriptors = base;
        config.available = base + RingPart::Descriptors.bytes(size);
        config.used = (config.available + RingPart::Available.bytes(size)).next_multiple_of(4);
        Self::on(memory, config)
    }

    /// A ring at the addresses of `config`. Its areas are cleared.
    pub fn on(memory: Arc<GuestMemory>, mut config: QueueConfig) -> Self {
        config.enabled = true;
        let size = config.size;
        for part in RingPart::ALL {
            let zeroes = vec![0; part.bytes(size) as usize];
            memory
                .write_slice(&zeroes, GuestAddress(config.address(part)))
                .expect("ring in RAM");
        }
        Self {
            memory,
            config,
            avail_index: 0,
            used_index: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); usize::from(size)],
        }
    }

    /// What the driver writes into the transport.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Goes on at free-running indices other than 0, for a queue that is started there.
    pub fn start_at(&mut self, avail_index: u16, used_index: u16) {
        self.set_avail_index(avail_index);
        self.used_index = used_index;
        self.store(self.config.used + 2, used_index);
    }

    /// Builds a chain of `buffers` from free descriptors and makes it available. `None` when the
    /// table is full.
    pub fn post(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let indices: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (position, (buffer, &index)) in buffers.iter().zip(&indices).enumerate() {
            let next = indices.get(position + 1).copied();
            self.set_descriptor(index, link(buffer, next));
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.offer(head);
        Some(head)
    }

    /// Writes `buffers` as a table of indirect descriptors to `table` and makes a chain available
    /// that refers to it. `None` when the table of the ring is full.
    pub fn post_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop_front()?;
        for (index, buffer) in buffers.iter().enumerate() {
            let next = (index + 1 < buffers.len()).then_some(index as u16 + 1);
            self.set_indirect(table, index as u16, link(buffer, next));
        }
        let len = 16 * buffers.len() as u32;
        self.set_descriptor(head, RawDescriptor::new(table, len, INDIRECT, 0));
        self.chains[usize::from(head)] = vec![head];
        self.offer(head);
        Some(head)
    }

    /// Writes descriptor `index` of the ring's table, whatever it says.
    pub fn set_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        self.set_indirect(self.config.descriptors, index, descriptor);
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn set_indirect(&self, table: u64, index: u16, descriptor: RawDescriptor) {
        let address = GuestAddress(table + 16 * u64::from(index));
        self.memory
            .write_slice(&descriptor.to_bytes(), address)
            .expect("descriptor in RAM");
    }

    /// Makes the chain at `head` available, whether there is one or not.
    pub fn offer(&mut self, head: u16) {
        self.stage(head);
        self.set_avail_index(self.avail_index);
    }

    /// Writes the next entry of the available ring and leaves the index in memory alone;
    /// [`Self::set_avail_index`] shows it.
    pub fn stage(&mut self, head: u16) {
        let slot = u64::from(self.avail_index & (self.config.size - 1));
        self.store(self.config.available + 4 + 2 * slot, head);
        self.avail_index = self.avail_index.wrapping_add(1);
    }

    /// The free-running index of the next entry of the available ring.
    pub fn avail_index(&self) -> u16 {
        self.avail_index
    }

    /// Writes `avail.idx`, whatever it says, and goes on from there.
    pub fn set_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        let address = GuestAddress(self.config.available + 2);
        self.memory
            .store(index.to_le(), address, Ordering::Release)
            .expect("index in RAM");
    }

    /// Writes `avail.flags`; 1 is NO_INTERRUPT.
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.config.available, flags);
    }

    /// Writes `avail.used_event`.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.config.available + 4 + 2 * u64::from(self.config.size), index);
    }

    /// Reads `used.idx`.
    pub fn used_index(&self) -> u16 {
        let address = GuestAddress(self.config.used + 2);
        u16::from_le(self.memory.load(address, Ordering::Acquire).expect("index in RAM"))
    }

    /// Reads `used.flags`; 1 is NO_NOTIFY.
    pub fn used_flags(&self) -> u16 {
        self.load(self.config.used)
    }

    /// Reads `used.avail_event`.
    pub fn avail_event(&self) -> u16 {
        self.load(self.config.used + 4 + 8 * u64::from(self.config.size))
    }

    /// Whether a driver that has moved `avail.idx` from `old` has to kick (virtio 1.3, 2.7.10.1).
    pub fn must_kick(&self, event_idx: bool, old: u16) -> bool {
        fence(Ordering::SeqCst);
        if !event_idx {
            return self.used_flags() & 1 == 0;
        }
        let new = self.avail_index;
        new.wrapping_sub(self.avail_event()).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes the next used entry, if there is one, and frees its descriptors.
    pub fn next_used(&mut self) -> Option<UsedEntry> {
        if self.used_index() == self.used_index {
            return None;
        }
        let slot = u64::from(self.used_index & (self.config.size - 1));
        let entry = self.config.used + 4 + 8 * slot;
        self.used_index = self.used_index.wrapping_add(1);
        let used = UsedEntry {
            head: self.load(entry),
            len: self.load(entry + 4),
        };
        if let Some(chain) = self.chains.get_mut(used.head as usize) {
            self.free.extend(chain.drain(..));
        }
        Some(used)
    }

    /// Takes all used entries that there are.
    pub fn drain_used(&mut self) -> Vec<UsedEntry> {
        std::iter::from_fn(|| self.next_used()).collect()
    }

    fn store<T: ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("ring in RAM");
    }

    fn load<T: ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).expect("ring in RAM")
    }
}

fn link(buffer: &Buffer, next: Option<u16>) -> RawDescriptor {
    let write = if buffer.writable { WRITE } else { 0 };
    let flags = write | next.map_or(0, |_| NEXT);
    RawDescriptor::new(buffer.address, buffer.len, flags, next.unwrap_or(0))
}
