//! How the host's scheduler treats a thread.

use std::io;

/// The calling thread waits for its turn from now on when it is woken, and does not push others off their CPU (SCHED_BATCH).
///
/// # Errors
/// The host does not allow it.
pub fn wait_for_turn() -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call, which only reads it.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
