//! The load of `cargo xtask bench block`: runs in the guest, as a child of its init, and times requests to a disk.
//!
//! `disk-load DEVICE` goes through all phases and says of each how it went.

use std::alloc::{Layout, alloc_zeroed};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;

use io_uring::{IoUring, opcode, types};
use xtask::load;

/// Requests start within so much of the disk, in bytes.
const SPAN: u64 = 64 << 20;

/// Requests of one kind.
struct Phase {
    name: &'static str,
    write: bool,
    /// Bytes of a request.
    size: usize,
    /// Requests in flight.
    depth: u32,
    /// Requests in all.
    count: u32,
    /// One behind the other, instead of anywhere.
    sequential: bool,
}

const PHASES: [Phase; 6] = [
    random("read-4k-1", false, 1, 1_500),
    random("read-4k-32", false, 32, 12_000),
    random("write-4k-1", true, 1, 1_500),
    random("write-4k-32", true, 32, 12_000),
    sequential("read-1m", false),
    sequential("write-1m", true),
];

const fn random(name: &'static str, write: bool, depth: u32, count: u32) -> Phase {
    Phase {
        name,
        write,
        size: 4096,
        depth,
        count,
        sequential: false,
    }
}

const fn sequential(name: &'static str, write: bool) -> Phase {
    Phase {
        name,
        write,
        size: 1 << 20,
        depth: 4,
        count: 256,
        sequential: true,
    }
}

fn main() -> ExitCode {
    let result = std::env::args()
        .nth(1)
        .ok_or_else(|| io::Error::other("usage: disk-load DEVICE"))
        .and_then(|path| PHASES.iter().try_for_each(|phase| run(phase, &path)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("disk-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(phase: &Phase, path: &str) -> io::Result<()> {
    let disk = OpenOptions::new()
        .read(true)
        .write(phase.write)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let buffers = (0..phase.depth).map(|_| Buffer::new(phase.size));
    let mut buffers = buffers.collect::<io::Result<Vec<_>>>()?;
    // The first request of a kind pays for what later ones find done.
    for buffer in buffers.iter_mut().take(1) {
        disk.read_at(buffer.bytes(), 0)?;
    }
    load::phase(phase.name, phase.count, || transfer(phase, &disk, &mut buffers))
}

fn transfer(phase: &Phase, disk: &File, buffers: &mut [Buffer]) -> io::Result<()> {
    let mut ring = IoUring::new(phase.depth)?;
    let mut places = Places::new(phase);
    let (mut submitted, mut finished) = (0, 0);
    let mut free: Vec<usize> = (0..buffers.len()).collect();
    while finished < phase.count {
        while submitted < phase.count
            && let Some(index) = free.pop()
        {
            let buffer = buffers[index].bytes();
            let (start, length) = (buffer.as_mut_ptr(), buffer.len() as u32);
            let (file, offset) = (types::Fd(disk.as_raw_fd()), places.next());
            let entry = if phase.write {
                opcode::Write::new(file, start, length).offset(offset).build()
            } else {
                opcode::Read::new(file, start, length).offset(offset).build()
            };
            // SAFETY: the buffer is not touched until its completion puts it back among the free ones, and outlives the ring's
            // requests: all are waited for here.
            unsafe { ring.submission().push(&entry.user_data(index as u64)) }.map_err(io::Error::other)?;
            submitted += 1;
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            if entry.result() != phase.size as i32 {
                return Err(io::Error::other(format!(
                    "{}: a request gave {}",
                    phase.name,
                    entry.result()
                )));
            }
            free.push(entry.user_data() as usize);
            finished += 1;
        }
    }
    Ok(())
}

/// Where requests start.
struct Places {
    slots: u64,
    size: u64,
    state: u64,
    sequential: bool,
}

impl Places {
    fn new(phase: &Phase) -> Self {
        let size = phase.size as u64;
        Self {
            slots: SPAN / size,
            size,
            state: 0,
            sequential: phase.sequential,
        }
    }

    fn next(&mut self) -> u64 {
        // Knuth's linear congruential generator (The Art of Computer Programming, 3.3.4, MMIX); the upper bits are the random ones.
        let (next, slot) = if self.sequential {
            (self.state + 1, self.state)
        } else {
            let next = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (next, next >> 33)
        };
        self.state = next;
        slot % self.slots * self.size
    }
}

/// Memory as O_DIRECT wants it.
struct Buffer(&'static mut [u8]);

impl Buffer {
    fn new(size: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(size, 4096).map_err(io::Error::other)?;
        // SAFETY: the layout is not empty; the memory is never freed, so it may be borrowed for ever.
        let bytes = unsafe {
            let start = alloc_zeroed(layout);
            if start.is_null() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            std::slice::from_raw_parts_mut(start, size)
        };
        Ok(Self(bytes))
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.0
    }
}
