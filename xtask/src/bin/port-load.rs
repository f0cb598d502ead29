//! The load of `cargo xtask bench console`: runs in the guest, as a child of its init, and times what a port and a console carry.
//!
//! `port-load PORT CONSOLE` goes through all phases; at the far ends somebody serves (`xtask::load::stream`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use xtask::load;
use xtask::load::stream::{receive, send};

/// Blocks through a port, and through a console, which is a terminal and slow.
const PORT_BLOCKS: u32 = 1024;
const CONSOLE_BLOCKS: u32 = 32;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [port, console] => run(port, console),
        _ => Err(io::Error::other("usage: port-load PORT CONSOLE")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("port-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(port: &str, console: &str) -> io::Result<()> {
    let open = |path| OpenOptions::new().read(true).write(true).open(path);
    let mut port = open(port)?;
    // The first block pays for what later ones find done, and shows that somebody is there.
    send(&mut port, 1)?;
    receive(&mut port, 1)?;
    load::phase("port-out", PORT_BLOCKS, || send(&mut port, PORT_BLOCKS))?;
    load::phase("port-in", PORT_BLOCKS, || receive(&mut port, PORT_BLOCKS))?;
    let mut console = open(console)?;
    make_raw(&console)?;
    send(&mut console, 1)?;
    load::phase("console-out", CONSOLE_BLOCKS, || send(&mut console, CONSOLE_BLOCKS))?;
    load::phase("console-in", CONSOLE_BLOCKS, || receive(&mut console, CONSOLE_BLOCKS))
}

/// Makes a terminal pass bytes as they are.
fn make_raw(terminal: &File) -> io::Result<()> {
    // SAFETY: termios is plain data, for which zeroes are a value.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    let fd = terminal.as_raw_fd();
    // SAFETY: the descriptor is open, and the pointer is to settings that live for all three calls.
    let result = unsafe {
        match libc::tcgetattr(fd, &raw mut settings) {
            0 => {
                libc::cfmakeraw(&raw mut settings);
                libc::tcsetattr(fd, libc::TCSANOW, &raw const settings)
            }
            failed => failed,
        }
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
