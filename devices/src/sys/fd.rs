//! Descriptors: those that we were started with, and their modes.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// A copy of the descriptor `number`, which whoever started this process left open for it. It does
/// not block, which holds for the original too, and neither of them reaches programs that this
/// process starts.
///
/// # Errors
/// There is no such descriptor.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let copy = duplicate(&number)?;
    // SAFETY: changes flags of a descriptor, and touches no memory.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    set_nonblocking(&copy)?;
    Ok(copy)
}

/// Another descriptor of the same open file. Programs that this process starts do not get it.
///
/// # Errors
/// The host gives no more descriptors.
pub fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, and touches no memory.
    let copy = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: it was made just now, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Programs that `command` starts find `fd` under its number, as no other program does. It is closed
/// here with the command.
pub fn keep(command: &mut Command, fd: OwnedFd) {
    let keep = move || {
        // SAFETY: changes flags of a descriptor, and touches no memory.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
    };
    // SAFETY: between fork and exec there is one system call, and no memory is allocated.
    unsafe { command.pre_exec(keep) };
}

/// Reads and writes of `fd` no longer block.
///
/// # Errors
/// What the kernel says.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: reads flags of a descriptor, and touches no memory.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: changes them, and touches no memory.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// How much memory of the socket `fd` holds what its far end has not read yet (SIOCOUTQ); 0 once it
/// has read all.
///
/// # Errors
/// It is no socket that knows.
pub fn unread_by_far_end(fd: &impl AsRawFd) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes an int. SIOCOUTQ is another name for TIOCOUTQ.
    check(unsafe { ioctl_with_mut_ref(fd, libc::TIOCOUTQ, &mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// What a system call answered.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_inherited_is_a_copy_that_does_not_block() {
        let (ours, mut far) = UnixStream::pair().unwrap();
        let mut copy = UnixStream::from(inherited(ours.as_raw_fd()).unwrap());
        assert_eq!(copy.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        far.write_all(b"x").unwrap();
        assert_eq!(copy.read(&mut [0]).unwrap(), 1);
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_refused() {
        assert_eq!(inherited(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn it_shows_when_the_far_end_has_read() {
        let (mut ours, mut far) = UnixStream::pair().unwrap();
        ours.write_all(b"abc").unwrap();
        assert!(unread_by_far_end(&ours).unwrap() > 0);
        far.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(unread_by_far_end(&ours).unwrap(), 0);
    }
}
