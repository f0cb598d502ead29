//! The worker for a queue of a balloon whose chains come back at once: all but that of statistics.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::shared::Shared;
use crate::io_thread::{Source, Worker};
use crate::virtio::device::QueueStart;
use crate::virtio::virtq::{Chain, QueueState};

/// What is done with the chains of a queue.
pub(super) trait Service: Send {
    /// Does all that the driver asks with `chains`, which it made available at the same time. They
    /// go back to it afterwards.
    fn serve(&mut self, chains: &[Chain]);
}

/// A queue on its I/O thread.
pub(super) struct BatchWorker {
    queue: QueueStart,
    shared: Arc<Shared>,
    service: Box<dyn Service>,
    batch: Vec<Chain>,
}

impl BatchWorker {
    pub(super) fn new(queue: QueueStart, shared: Arc<Shared>, service: Box<dyn Service>) -> Self {
        Self {
            queue,
            shared,
            service,
            batch: Vec::new(),
        }
    }

    /// How far the queue has come.
    pub(super) fn into_state(self) -> QueueState {
        self.queue.ring.stop()
    }

    /// Serves what is there, at most as many chains as the queue can hold.
    fn pass(&mut self) -> bool {
        if !self.queue.ring.has_available() {
            return false;
        }
        self.queue.ring.disable_notify();
        for _ in 0..self.queue.ring.size() {
            match self.queue.ring.pop() {
                Ok(Some(chain)) => self.batch.push(chain),
                Ok(None) => break,
                Err(fault) => self.shared.report_ring(&self.queue, fault),
            }
        }
        self.service.serve(&self.batch);
        let ring = &mut self.queue.ring;
        for chain in self.batch.drain(..) {
            ring.push(chain, 0);
        }
        if ring.publish() {
            self.queue.interrupt.signal();
        }
        true
    }
}

impl Worker for BatchWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(&self.queue.kick, 0)]
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, _token: u32) {
        self.pass();
    }

    fn poll(&mut self) -> bool {
        self.pass()
    }

    fn before_sleep(&mut self) -> bool {
        self.queue.ring.enable_notify()
    }

    fn panicked(&mut self) {
        self.queue.interrupt.broken();
    }
}
