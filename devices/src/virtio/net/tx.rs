//! The transmit queue of a pair: chains of the driver to the host.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::backend::{Endpoint, MAX_FRAME};
use super::header::Header;
use crate::virtio::device::{QueueInterrupt, QueueStart};
use crate::virtio::virtq::{Chain, GuestFault, GuestIoVec, QueueState, Virtq};

/// Entries that a frame may have for one system call, with one to spare for a backend's own.
const MAX_ENTRIES: usize = 1023;

/// What became of an attempt to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// A chain was served.
    One,
    /// There is none.
    Nothing,
    /// The host takes no more at the moment.
    Blocked,
}

/// See the [module](self).
pub(super) struct TxQueue {
    pub(super) index: u16,
    pub(super) kick: Arc<EventFd>,
    ring: Virtq,
    interrupt: QueueInterrupt,
    header: Header,
    iovec: GuestIoVec,
}

impl TxQueue {
    pub(super) fn new(start: QueueStart, header: Header) -> Self {
        Self {
            index: start.index,
            kick: start.kick,
            ring: start.ring,
            interrupt: start.interrupt,
            header,
            iovec: GuestIoVec::new(),
        }
    }

    /// How far the queue has come.
    pub(super) fn into_state(self) -> QueueState {
        self.ring.stop()
    }

    pub(super) fn panicked(&self) {
        self.interrupt.broken();
    }

    pub(super) fn has_work(&self) -> bool {
        self.ring.has_available()
    }

    /// Wants a kick for the next chain. Returns whether one has come in meanwhile.
    pub(super) fn arm(&mut self) -> bool {
        self.ring.enable_notify()
    }

    /// Wants no kicks while it is looked at anyway.
    pub(super) fn disarm(&mut self) {
        self.ring.disable_notify();
    }

    /// Sends the next frame to `endpoint`; without one, the cable is out and the frame is lost.
    pub(super) fn send(
        &mut self,
        endpoint: Option<&mut (dyn Endpoint + '_)>,
        report: &mut dyn FnMut(GuestFault),
    ) -> Sent {
        let chain = match self.ring.pop() {
            Ok(Some(chain)) => chain,
            Ok(None) => return Sent::Nothing,
            Err(fault) => {
                if self.ring.is_broken() {
                    self.interrupt.broken();
                }
                report(fault);
                return Sent::One;
            }
        };
        match (self.gather(&chain), endpoint) {
            (Ok(true), Some(endpoint)) => {
                if let Err(error) = endpoint.send(&self.iovec) {
                    if error.kind() == io::ErrorKind::WouldBlock {
                        self.ring.unpop(chain);
                        return Sent::Blocked;
                    }
                    tracing::debug!("virtio-net: a frame is lost: {error}");
                }
            }
            (Ok(_), _) => {}
            (Err(fault), _) => report(fault),
        }
        self.ring.push(chain, 0);
        Sent::One
    }

    /// Gathers the frame in `chain`. Returns whether a backend can carry it.
    fn gather(&mut self, chain: &Chain) -> Result<bool, GuestFault> {
        self.iovec.clear();
        let mut reader = chain.reader();
        let header = self.header.len();
        if reader.remaining() < header {
            // The header is missing, or not all of it is there.
            reader.skip(header)?;
        }
        reader.skip(self.header.added())?;
        let len = reader.remaining();
        let carried = len > header - self.header.added() && len <= MAX_FRAME;
        if carried {
            reader.gather(len, &mut self.iovec)?;
        }
        Ok(carried && self.iovec.entries() <= MAX_ENTRIES)
    }

    /// Shows the driver what was sent.
    pub(super) fn publish(&mut self) {
        if self.ring.publish() {
            self.interrupt.signal();
        }
    }
}
