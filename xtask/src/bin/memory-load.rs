//! The load of `cargo xtask bench balloon`: runs in the guest, as a child of its init, and times how its memory goes and comes back.
//!
//! `memory-load MIB` touches so much memory and a bit more, frees it, and then says `now inflate` when the balloon is to take so
//! much, and `now deflate` when it is to give it back.

use std::io;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use xtask::load;

/// MiB that are touched beyond those that the balloon takes.
const MORE: usize = 64;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Time from one look at the memory to the next: much shorter than a phase, and much longer than a look takes.
const LOOK: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    let size = std::env::args().nth(1).and_then(|size| size.parse().ok());
    let result = size
        .ok_or_else(|| io::Error::other("usage: memory-load MIB"))
        .and_then(run);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("memory-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mib: usize) -> io::Result<()> {
    touch((mib + MORE) << 20);
    let all = total_kib()?;
    let taken = all.saturating_sub((mib << 10) as u64);
    let mebibytes = u32::try_from(mib).map_err(io::Error::other)?;
    load::phase("inflate", mebibytes, || {
        println!("now inflate");
        wait_until(|total| total <= taken)
    })?;
    println!("now nothing");
    load::phase("deflate", mebibytes, || {
        println!("now deflate");
        wait_until(|total| total >= all)
    })?;
    println!("now nothing");
    Ok(())
}

/// Uses so many bytes of memory once.
fn touch(bytes: usize) {
    let mut memory = vec![0_u8; bytes];
    for byte in memory.iter_mut().step_by(PAGE) {
        *byte = 1;
    }
    std::hint::black_box(memory);
}

fn wait_until(reached: impl Fn(u64) -> bool) -> io::Result<()> {
    while !reached(total_kib()?) {
        sleep(LOOK);
    }
    Ok(())
}

/// KiB of memory that this kernel has, those in the balloon left out.
fn total_kib() -> io::Result<u64> {
    let figures = std::fs::read_to_string("/proc/meminfo")?;
    let total = figures.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))
}
