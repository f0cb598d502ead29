//! Descriptors that this process was started with, named by their number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::FdFlags;

/// Takes over the inherited descriptor `number`: it is closed under that number, so that the far end hears of it when
/// the result is dropped. Standard input, output and error stay open too.
///
/// # Errors
/// It is not open, or is one of our own: everything that we open ourselves has close-on-exec set, and what we inherited
/// cannot have it.
pub(super) fn adopt(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the number is only asked about, and copied if it is open.
    let inherited = unsafe { BorrowedFd::borrow_raw(number.max(0)) };
    if rustix::io::fcntl_getfd(inherited)?.contains(FdFlags::CLOEXEC) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let ours = rustix::io::fcntl_dupfd_cloexec(inherited, 3)?;
    if number > 2 {
        // SAFETY: nobody in this process owns it: it has no close-on-exec flag, so it was inherited, and whoever comes
        // second with the same number finds it closed above.
        unsafe { libc::close(inherited.as_raw_fd()) };
    }
    Ok(ours)
}
