//! What tests need of the system.

use std::io;

/// Gives the calling thread, and programs that it starts, a network of their own, which ends with
/// them.
///
/// # Errors
/// This process may not.
pub fn own_network() -> io::Result<()> {
    // SAFETY: changes only which network the calling thread sees.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
