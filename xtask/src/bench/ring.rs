//! `cargo xtask bench ring`: what a descriptor chain costs the device's side of a ring, beside virtio-queue.

use xtask::{Result, tool};

use crate::cargo;

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// It cannot be built.
pub fn ring() -> Result<u8> {
    tool::run(&mut cargo::command(&["bench", "-p", "devices", "--bench", "ring"]))?;
    Ok(0)
}
