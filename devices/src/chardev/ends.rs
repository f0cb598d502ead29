//! The descriptors of a far end.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{FileType, Mode, OFlags};

/// One direction of a far end, never blocking.
pub(super) struct End {
    pub(super) fd: OwnedFd,
    /// Whether it can be watched. A regular file cannot, and is always ready.
    pub(super) watchable: bool,
}

/// Both directions. What is a single descriptor outside is two here, so that each is watched on its own.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) input: Option<End>,
    pub(super) output: Option<End>,
    /// One file outside: when its input ends, so does its output.
    pub(super) duplex: bool,
}

impl End {
    /// Takes `fd`, which is made non-blocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(fd.as_fd())?;
        Self::as_is(fd)
    }

    /// Takes `fd`, which does not block.
    fn as_is(fd: OwnedFd) -> io::Result<Self> {
        let watchable = can_be_watched(fd.as_fd())?;
        Ok(Self { fd, watchable })
    }

    /// Standard input or output. They are often shared with other processes, whose view must not change, so terminals
    /// and pipes are opened once more; what cannot be is made non-blocking after all.
    pub(super) fn standard(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        if kind == FileType::RegularFile {
            // Opening it again would begin at its beginning.
            return Self::as_is(fd.try_clone_to_owned()?);
        }
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::fs::open(path.as_str(), flags, Mode::empty()) {
            Ok(again) => Self::as_is(again),
            Err(_) => Self::new(fd.try_clone_to_owned()?),
        }
    }
}

impl Ends {
    /// One descriptor for both directions.
    pub(super) fn duplex(fd: OwnedFd) -> io::Result<Self> {
        let output = End::new(fd.try_clone()?)?;
        Ok(Self {
            input: Some(End::new(fd)?),
            output: Some(output),
            duplex: true,
        })
    }

    /// Whether whoever was at the other side of the input has gone, whatever is left to read.
    pub(super) fn is_gone(&self) -> bool {
        self.input.as_ref().is_some_and(|end| has_hung_up(end.fd.as_fd()))
    }
}

/// Whether a descriptor says so by itself, without being read.
pub(super) fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP;
    poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0 && asked[0].revents().intersects(gone))
}

/// Opens a file by its path, without ever waiting for it.
pub(super) fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?)
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

fn can_be_watched(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(&set, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
