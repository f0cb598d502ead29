//! Where a frame from the host is to land: buffers of the guest, and behind them a buffer of our
//! own for what has no room there.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use super::backend::MAX_FRAME;
use crate::virtio::virtq::GuestIoVec;

/// Room for one frame, of [`MAX_FRAME`] bytes or more in all.
///
/// The frame fills the guest's buffers first and goes on in the spill, so that a frame that is
/// larger than what the driver has posted is neither lost nor cut.
#[derive(Debug)]
pub struct ReceiveBuffers<'a> {
    guest: &'a mut GuestIoVec,
    spill: &'a mut [u8],
}

impl<'a> ReceiveBuffers<'a> {
    /// These buffers. `spill` has [`MAX_FRAME`] bytes.
    pub fn new(guest: &'a mut GuestIoVec, spill: &'a mut [u8]) -> Self {
        debug_assert!(spill.len() >= MAX_FRAME);
        Self { guest, spill }
    }

    /// Reads one frame from `fd` with one system call (readv). Returns its length.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn read_from(&mut self, fd: impl AsFd) -> io::Result<usize> {
        self.guest.read_with_spill(fd.as_fd(), self.spill)
    }

    /// Takes a frame that is in memory. Returns its length, or how much of it there was room for.
    pub fn copy_from(&mut self, frame: &[u8]) -> usize {
        let copied = self.guest.copy_from(frame);
        let rest = frame.get(copied..).unwrap_or_default();
        let spilled = rest.len().min(self.spill.len());
        let room = self.spill.iter_mut().zip(rest);
        room.for_each(|(to, from)| *to = *from);
        copied + spilled
    }

    /// Copies the first bytes of a frame that was received out again. Returns how many, at most
    /// `to.len()`; the caller knows how long the frame is.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let copied = self.guest.copy_to(to);
        let rest = to.get_mut(copied..).unwrap_or_default();
        let spilled = rest.len().min(self.spill.len());
        rest.iter_mut().zip(&*self.spill).for_each(|(to, from)| *to = *from);
        copied + spilled
    }
}
