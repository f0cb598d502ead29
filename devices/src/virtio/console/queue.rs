//! A running queue of the device, and which queue is whose.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

use crate::virtio::device::QueueStart;
use crate::virtio::virtq::{Chain, QueueState};

/// What a queue is for. Those of port 0 come first, then those of messages, then those of all other ports (virtio 1.3,
/// 5.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Bytes for the guest.
    Input(u32),
    /// Bytes of the guest.
    Output(u32),
    /// Messages for the driver.
    ToDriver,
    /// Messages of the driver.
    FromDriver,
}

impl Role {
    pub(super) fn of(queue: u16) -> Self {
        let pair = u32::from(queue / 2);
        match (pair, queue.is_multiple_of(2)) {
            (1, true) => Self::ToDriver,
            (1, false) => Self::FromDriver,
            (pair, true) => Self::Input(pair.saturating_sub(1)),
            (pair, false) => Self::Output(pair.saturating_sub(1)),
        }
    }
}

/// A queue, with the chains that were taken and wait for the far end.
pub(super) struct Queue {
    start: QueueStart,
    /// In the order in which they were taken.
    held: VecDeque<Chain>,
    /// So many of them, from the first, have a malformed one behind them and cannot go back into the ring.
    pinned: usize,
    broken: bool,
}

impl Queue {
    pub(super) fn new(start: QueueStart) -> Self {
        Self {
            start,
            held: VecDeque::new(),
            pinned: 0,
            broken: false,
        }
    }

    pub(super) fn index(&self) -> u16 {
        self.start.index
    }

    pub(super) fn kick_fd(&self) -> RawFd {
        self.start.kick.as_raw_fd()
    }

    /// Chains that the ring holds.
    pub(super) fn size(&self) -> usize {
        self.start.ring.size().into()
    }

    /// Free-running index of the first chain that is not given back.
    pub(super) fn position(&self) -> u16 {
        let held = u16::try_from(self.held.len()).unwrap_or_default();
        self.start.ring.state().next_avail.wrapping_sub(held)
    }

    /// Takes the next chain. Malformed ones go back by themselves.
    pub(super) fn pop(&mut self) -> Option<Chain> {
        loop {
            match self.start.ring.pop() {
                Ok(chain) => return chain,
                Err(fault) => {
                    let queue = self.start.index;
                    tracing::debug!(rule = fault.rule(), queue, "virtio-serial: {fault}");
                    self.pinned = self.held.len();
                }
            }
        }
    }

    /// Holds up to `count` chains.
    pub(super) fn hold(&mut self, count: usize) {
        while self.held.len() < count
            && let Some(chain) = self.pop()
        {
            self.held.push_back(chain);
        }
    }

    /// What is held, from the first.
    pub(super) fn held(&self) -> &VecDeque<Chain> {
        &self.held
    }

    /// Gives the first that is held back.
    pub(super) fn push_first(&mut self, written: usize) {
        if let Some(chain) = self.held.pop_front() {
            self.pinned = self.pinned.saturating_sub(1);
            self.push(chain, written);
        }
    }

    /// Puts what is held back into the ring, so that the driver may take it away again: Linux before 4.13 does so when it
    /// removes a port.
    pub(super) fn put_back(&mut self) {
        while self.held.len() > self.pinned
            && let Some(chain) = self.held.pop_back()
        {
            self.start.ring.unpop(chain);
        }
    }

    /// Gives a chain back.
    pub(super) fn push(&mut self, chain: Chain, written: usize) {
        self.start.ring.push(chain, u32::try_from(written).unwrap_or(u32::MAX));
    }

    /// Gives everything back, as if it had been used.
    pub(super) fn discard(&mut self) {
        while !self.held.is_empty() {
            self.push_first(0);
        }
        for _ in 0..self.size() {
            let Some(chain) = self.pop() else { break };
            self.push(chain, 0);
        }
        self.publish();
    }

    /// Shows the driver what was given back.
    pub(super) fn publish(&mut self) {
        if self.start.ring.publish() {
            self.start.interrupt.signal();
        }
        if self.start.ring.is_broken() && !std::mem::replace(&mut self.broken, true) {
            self.start.interrupt.broken();
        }
    }

    pub(super) fn has_available(&self) -> bool {
        self.start.ring.has_available()
    }

    pub(super) fn disable_notify(&mut self) {
        self.start.ring.disable_notify();
    }

    /// Wants to hear of the next chain; says whether there is one already.
    pub(super) fn enable_notify(&mut self) -> bool {
        self.start.ring.enable_notify()
    }

    pub(super) fn fail(&self) {
        self.start.interrupt.broken();
    }

    pub(super) fn stop(mut self) -> QueueState {
        self.put_back();
        self.publish();
        self.start.ring.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_in_the_order_of_the_specification() {
        let roles = [
            Role::Input(0),
            Role::Output(0),
            Role::ToDriver,
            Role::FromDriver,
            Role::Input(1),
            Role::Output(1),
            Role::Input(2),
        ];
        assert!((0..).zip(roles).all(|(queue, role)| Role::of(queue) == role));
    }
}
