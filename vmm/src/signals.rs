//! The signals that end a process politely, and the one that tells of another size of the terminal, taken by one thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

/// SIGTERM, SIGINT, SIGHUP and SIGWINCH, held back from the calling thread and every thread that it starts, and readable here.
pub struct Signals {
    fd: OwnedFd,
}

const TAKEN: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGWINCH];

impl Signals {
    /// Holds the signals back from now on.
    ///
    /// # Errors
    /// The kernel refused the mask or the descriptor.
    pub fn block() -> io::Result<Self> {
        let set = vmm_sys_util::signal::create_sigset(&TAKEN)?;
        // SAFETY: the set is initialised and the call only reads it.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: as above; the descriptor that comes back is ours.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// The same signals; each is taken by one of those who wait.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
        })
    }

    /// Waits for a signal that ends the process and returns its number; `None` when `event` came first. Calls `resized` whenever the
    /// terminal has another size.
    pub fn wait_unless(&self, event: &EventFd, mut resized: impl FnMut()) -> Option<libc::c_int> {
        let wanted = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [wanted(event.as_raw_fd()), wanted(self.fd.as_raw_fd())];
        loop {
            // SAFETY: the array outlives the call and its length is right.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
            match ready {
                1.. if fds[0].revents != 0 => return None,
                1.. => match self.read() {
                    Some(libc::SIGWINCH) => resized(),
                    signal => return signal,
                },
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
    }

    fn read(&self) -> Option<libc::c_int> {
        // SAFETY: signalfd_siginfo is plain data for which all zeroes is valid.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: the buffer is as long as the call is told.
        let count = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size) };
        (count == size as isize).then_some(info.ssi_signo as libc::c_int)
    }
}
