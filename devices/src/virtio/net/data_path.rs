//! Who carries the frames of a queue pair, where the pair itself does not.

#![forbid(unsafe_code)]

use std::io;

use crate::io_thread::IoThread;
use crate::virtio::device::QueueStart;
use crate::virtio::virtq::QueueState;

/// Serves the queues of a pair in our place: the host's kernel, or another process.
pub trait DataPath: Send {
    /// Serves a queue of the pair. Interrupts come by way of `thread`.
    ///
    /// # Errors
    /// The other side refuses.
    fn start(&mut self, start: QueueStart, thread: &IoThread) -> io::Result<()>;

    /// Whether management has the cable in, and whether the driver uses the pair. Without either no frames are carried. Called on
    /// an I/O thread: must not wait for the other side.
    ///
    /// # Errors
    /// The other side refuses.
    fn set_state(&mut self, link: bool, active: bool) -> io::Result<()>;

    /// Takes a queue back; `None` when it is not served. Nobody serves it any more when this returns.
    fn stop(&mut self, index: u16) -> Option<QueueState>;
}
