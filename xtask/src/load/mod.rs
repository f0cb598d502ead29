//! What programs that put a load on a guest's devices have in common, and what they and their far ends agree on.

pub mod datagrams;
pub mod stream;

use std::io;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the counters outside have to be read.
const PAUSE: Duration = Duration::from_millis(400);

/// Runs `work`, and says around it what whoever counts outside has to know: `phase NAME ready`, a moment before it begins, and
/// `phase NAME done REQUESTS NANOSECONDS INTERRUPTS` after it.
///
/// # Errors
/// Those of the work.
pub fn phase(name: &str, requests: u32, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    println!("phase {name} ready");
    sleep(PAUSE);
    let interrupts = interrupts()?;
    let started = Instant::now();
    work()?;
    let took = started.elapsed().as_nanos();
    let interrupts = self::interrupts()? - interrupts;
    println!("phase {name} done {requests} {took} {interrupts}");
    sleep(PAUSE);
    Ok(())
}

/// Interrupts of virtio queues so far.
fn interrupts() -> io::Result<u64> {
    let table = std::fs::read_to_string("/proc/interrupts")?;
    let of_line = |line: &str| -> u64 {
        let counts = line
            .split_whitespace()
            .skip(1)
            .map_while(|word| word.parse::<u64>().ok());
        counts.sum()
    };
    Ok(table.lines().filter(|line| line.contains("virtio")).map(of_line).sum())
}

/// Bytes that a socket holds for its reader. A window of frames is far below.
const ROOM: libc::c_int = 8 << 20;

/// Gives a socket room for a whole window; takes root, because it is more than the kernel allows otherwise.
///
/// # Errors
/// This user may not.
pub fn widen(socket: &impl AsRawFd) -> io::Result<()> {
    let (room, len) = (ROOM, size_of_val(&ROOM) as libc::socklen_t);
    // SAFETY: the value is an int, which lives for the call, and so long is it said to be.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            len,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
