//! I/O threads: they run the queues of devices, each thread an event loop over its workers.

use std::os::fd::RawFd;

/// What an I/O thread runs: the rings and the backend of one or several queues. While it is with a thread, nobody else touches it.
pub trait Worker: Send {
    /// The descriptors to watch for input, each with a token that says which one was ready. Fixed while the worker runs.
    fn sources(&self) -> Vec<(RawFd, u32)>;

    /// Called once on the I/O thread before the first event, for what was there already.
    fn started(&mut self) {}

    /// The descriptor with this token is readable. Must not block.
    fn ready(&mut self, token: u32);

    /// Looks for work without a system call, for adaptive polling; says whether there was any. Notifications are switched off by
    /// [`Self::ready`] while there is work and on again before the thread sleeps.
    fn poll(&mut self) -> bool {
        false
    }

    /// Switches notifications on before the thread sleeps; says whether work came in meanwhile, and the thread polls again.
    fn before_sleep(&mut self) -> bool {
        false
    }

    /// Called on the I/O thread when the worker is taken away: finishes what is in flight. May block until the backend is done.
    fn drain(&mut self) {}
}
