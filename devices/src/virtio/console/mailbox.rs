//! How others reach the hub: they leave what they want, and wait for the answer where there is one.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::message::Size;
use super::port::Port;
use crate::virtio::device::QueueStart;
use crate::virtio::virtq::QueueState;

/// Where an answer goes. It is dropped without one when the hub fails.
pub(super) type Answer<T> = SyncSender<T>;

/// Something that the hub is to do.
pub(super) enum Request {
    /// The driver has agreed on features.
    Activate { multiport: bool, done: Answer<()> },
    /// A queue begins.
    Start(Box<QueueStart>),
    /// A queue ends.
    Stop(u16, Answer<Option<QueueState>>),
    /// The driver has reset the device.
    Reset(Answer<()>),
    /// There is a new port.
    Add(Box<Port>, Answer<()>),
    /// A port goes.
    Remove(u32, Answer<()>),
    /// A console has another size.
    Resize(u32, Size, Answer<()>),
}

/// Bytes of emergency output that may wait.
const EMERGENCY: usize = 4096;

/// See the [module](self).
pub(super) struct Mailbox {
    inside: Mutex<Inside>,
    pub(super) wake: EventFd,
}

#[derive(Default)]
struct Inside {
    requests: VecDeque<Request>,
    emergency: Vec<u8>,
    closed: bool,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inside: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Leaves a request. It is dropped when the hub is gone.
    pub(super) fn post(&self, request: Request) {
        let mut inside = self.lock();
        if !inside.closed {
            inside.requests.push_back(request);
        }
        drop(inside);
        self.wake();
    }

    /// Leaves a request and waits for the answer; `None` when the hub is gone.
    pub(super) fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Option<T> {
        let (answer, result): (_, Receiver<T>) = sync_channel(1);
        self.post(request(answer));
        result.recv().ok()
    }

    /// Leaves a byte of emergency output, unless too many are waiting.
    pub(super) fn emergency(&self, byte: u8) {
        let mut inside = self.lock();
        if inside.emergency.len() < EMERGENCY && !inside.closed {
            inside.emergency.push(byte);
        }
        drop(inside);
        self.wake();
    }

    /// Takes everything out.
    pub(super) fn take(&self) -> (VecDeque<Request>, Vec<u8>) {
        let mut inside = self.lock();
        (
            std::mem::take(&mut inside.requests),
            std::mem::take(&mut inside.emergency),
        )
    }

    /// The hub is gone: whoever waits is let go, and nobody need wait any more.
    pub(super) fn close(&self) {
        let mut inside = self.lock();
        inside.closed = true;
        inside.requests.clear();
    }

    fn wake(&self) {
        // It fails only when the counter is at its end, and then the hub is being woken anyway.
        let _ = self.wake.write(1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
