//! Calls made by the kernel, asynchronously, through an io_uring of the queue's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};

use crate::virtio::block::request::Range;
use crate::virtio::block::transfer::{Call, Memory, Transfer, zeroes};

/// The image is the only file in the ring's table.
const FILE: types::Fixed = types::Fixed(0);
/// The most pieces in one call (UIO_MAXIOV in Linux's include/uapi/linux/uio.h); the rest takes
/// another one.
const MAX_PIECES: usize = 1024;
/// The most entries that a ring may have (IORING_MAX_ENTRIES).
const MAX_ENTRIES: u32 = 32768;

/// An io_uring, and the transfers that the kernel works on.
///
/// A transfer is owned by its slot from the moment that a submission refers to it until its
/// completion has been taken, so its buffers and their lists stay where they are; the chains in it
/// keep guest memory mapped. There are never more slots than entries.
pub struct UringEngine {
    ring: IoUring,
    slots: Vec<Option<Box<Transfer>>>,
    free: Vec<u32>,
    /// Entries that the kernel has not been told of.
    unsubmitted: bool,
}

impl UringEngine {
    /// A ring for `file`, with room for `depth` transfers.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not let us use it.
    pub fn new(file: &File, depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth).clamp(1, MAX_ENTRIES).next_power_of_two();
        let ring = IoUring::new(entries)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Fallocate::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            unsubmitted: false,
        })
    }

    /// The ring itself is readable when it holds completions.
    pub fn source(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// See [`Engine::push`](super::Engine::push).
    pub fn push(&mut self, transfer: Box<Transfer>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        let transfer = place.insert(transfer);
        let entry = entry_for(transfer).user_data(slot.into());
        self.enqueue(&entry);
    }

    /// See [`Engine::submit`](super::Engine::submit).
    pub fn submit(&mut self) {
        if self.unsubmitted {
            self.enter(0);
        }
    }

    /// See [`Engine::reap`](super::Engine::reap).
    pub fn reap(&mut self, done: &mut Vec<Box<Transfer>>) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            let slot = entry.user_data() as u32;
            let result = usize::try_from(entry.result());
            let result = result.map_err(|_| io::Error::from_raw_os_error(entry.result().wrapping_neg()));
            let Some(place) = self.slots.get_mut(slot as usize) else {
                continue;
            };
            let Some(transfer) = place.as_mut() else { continue };
            if transfer.returned(result) {
                done.extend(place.take());
                self.free.push(slot);
            } else {
                let entry = entry_for(transfer).user_data(slot.into());
                self.enqueue(&entry);
            }
        }
    }

    /// See [`Engine::has_work`](super::Engine::has_work).
    pub fn has_work(&mut self) -> bool {
        self.unsubmitted || !self.ring.completion().is_empty()
    }

    /// See [`Engine::in_flight`](super::Engine::in_flight).
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// See [`Engine::wait`](super::Engine::wait).
    pub fn wait(&mut self) {
        if self.in_flight() > 0 && self.ring.completion().is_empty() {
            self.enter(1);
        }
    }

    /// Puts an entry into the ring. It refers to a transfer that lies in its slot.
    fn enqueue(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the entry was made by `entry_for` from a transfer that stays in its slot,
            // unchanged, until the completion was taken: `reap` alone takes it out, and `drop`
            // waits. So the buffers and the list of them that the entry names are valid for as long
            // as the kernel uses them.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.unsubmitted = true;
                return;
            }
            // The ring is full of entries that the kernel has not seen.
            self.submit();
        }
    }

    /// Hands over all entries and waits for `want` completions.
    fn enter(&mut self, want: usize) {
        match self.ring.submit_and_wait(want) {
            Ok(_) => self.unsubmitted = !self.ring.submission().is_empty(),
            // The kernel is short of something, or a signal came; the entries stay and are tried
            // again.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => tracing::error!("io_uring_enter: {error}"),
        }
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            self.wait();
            self.reap(&mut done);
        }
        // The kernel takes the ring down some time after it is closed; it is not to hold on to the
        // image until then. If it does not work, the image stays open that much longer.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// The submission for the next call of a transfer.
fn entry_for(transfer: &mut Transfer) -> squeue::Entry {
    let allocate = |mode: libc::c_int, Range { offset, len }| {
        opcode::Fallocate::new(FILE, len)
            .offset(offset)
            .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
            .build()
    };
    match transfer.next_call() {
        Call::Read(offset) => match transfer.memory() {
            Memory::Guest(buffers) => {
                let pieces = buffers.as_iovecs();
                let count = pieces.len().min(MAX_PIECES) as u32;
                opcode::Readv::new(FILE, pieces.as_ptr(), count).offset(offset).build()
            }
            Memory::Bounce(bytes) => opcode::Read::new(FILE, bytes.as_mut_ptr(), call_len(bytes))
                .offset(offset)
                .build(),
        },
        Call::Write(offset) => match transfer.memory() {
            Memory::Guest(buffers) => {
                let pieces = buffers.as_iovecs();
                let count = pieces.len().min(MAX_PIECES) as u32;
                opcode::Writev::new(FILE, pieces.as_ptr(), count).offset(offset).build()
            }
            Memory::Bounce(bytes) => opcode::Write::new(FILE, bytes.as_ptr(), call_len(bytes))
                .offset(offset)
                .build(),
        },
        Call::WriteZeroes(offset, len) => {
            let bytes = zeroes(len);
            opcode::Write::new(FILE, bytes.as_ptr(), call_len(bytes))
                .offset(offset)
                .build()
        }
        Call::PunchHole(range) => allocate(libc::FALLOC_FL_PUNCH_HOLE, range),
        Call::ZeroRange(range) => allocate(libc::FALLOC_FL_ZERO_RANGE, range),
        Call::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

fn call_len(bytes: &[u8]) -> u32 {
    // No request is longer than 2^31 bytes.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
