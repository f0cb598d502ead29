//! The worker that serves one queue of a disk on an I/O thread.
//!
//! It goes in passes: take what is finished, take what the driver has made available, start it all
//! with one submission, show the driver everything that is done with one publication and at most
//! one interrupt. In steady state a pass allocates nothing: transfers are used again, and chains
//! bring their own room.

#![forbid(unsafe_code)]

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::engine::Engine;
use super::request::{ID_BYTES, Op, Range, Request, Status};
use super::transfer::Transfer;
use crate::io_thread::{Source, Worker};
use crate::virtio::device::{QueueInterrupt, QueueStart};
use crate::virtio::virtq::{Chain, GuestFault, QueueState, Severity, Virtq};

/// Tokens of what the worker waits for.
const KICK: u32 = 0;
const FINISHED: u32 = 1;

/// Zeroes are looked for in steps of this many bytes.
const COMPARED: usize = 512;

/// See the [module](self).
#[expect(clippy::vec_box, reason = "a transfer is its box: moving it moves a pointer")]
pub(super) struct QueueWorker {
    index: u16,
    ring: Virtq,
    kick: Arc<EventFd>,
    interrupt: QueueInterrupt,
    disk: Arc<Disk>,
    engine: Engine,
    /// The transfer that the next request may go with.
    open: Option<Box<Transfer>>,
    /// Finished, on their way back to the driver.
    done: Vec<Box<Transfer>>,
    /// To be used again.
    spare: Vec<Box<Transfer>>,
}

impl QueueWorker {
    pub(super) fn new(start: QueueStart, disk: Arc<Disk>, engine: Engine) -> Self {
        let QueueStart {
            index,
            ring,
            kick,
            interrupt,
            negotiated: _,
        } = start;
        Self {
            index,
            ring,
            kick,
            interrupt,
            disk,
            engine,
            open: None,
            done: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// How far the queue has come. Nothing is in flight any more.
    pub(super) fn into_state(self) -> QueueState {
        self.ring.stop()
    }

    /// Does everything that can be done without waiting. Returns whether there was anything.
    fn pass(&mut self) -> bool {
        self.ring.disable_notify();
        let finished = self.reap();
        let taken = self.take_available();
        self.engine.submit();
        // What the page cache has is there at once.
        let at_once = self.reap();
        self.publish();
        finished || taken || at_once
    }

    fn take_available(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.ring.pop() {
                Ok(Some(chain)) => self.serve(chain),
                Ok(None) => break,
                Err(fault) => self.report(fault),
            }
            any = true;
        }
        self.close();
        any
    }

    fn report(&self, fault: GuestFault) {
        self.disk.report(format_args!(
            "queue {}: the driver broke {}: {fault}",
            self.index,
            fault.rule()
        ));
        if fault.severity() == Severity::Ring {
            self.interrupt.broken();
        }
    }

    fn serve(&mut self, chain: Chain) {
        match Request::parse(&chain, &self.disk.limits()) {
            Request::Unanswerable => self.ring.push(chain, 0),
            Request::Answer(status) => answer(&mut self.ring, chain, status),
            Request::Identify => {
                let room = chain.writable_bytes().saturating_sub(1).min(ID_BYTES);
                let serial = self.disk.serial();
                chain.writer().write(serial.get(..room).unwrap_or(serial));
                answer(&mut self.ring, chain, Status::Ok);
            }
            Request::Transfer(op, range) => self.begin(op, range, chain),
        }
    }

    fn begin(&mut self, op: Op, range: Range, chain: Chain) {
        let zeroing = if op == Op::Write {
            self.disk.for_zeroes().filter(|_| is_zero(&chain, range))
        } else {
            None
        };
        let Some(op) = self.disk.effective(zeroing.unwrap_or(op)) else {
            answer(&mut self.ring, chain, Status::Ok);
            return;
        };
        let chain = match &mut self.open {
            None => chain,
            Some(open) => match open.merge(op, range, chain) {
                Ok(()) => return,
                Err(chain) => chain,
            },
        };
        self.close();
        self.open = self.start(op, range, chain);
    }

    /// A transfer for one request.
    fn start(&mut self, op: Op, range: Range, chain: Chain) -> Option<Box<Transfer>> {
        let mut transfer = self.spare.pop().unwrap_or_default();
        match transfer.start(op, range, chain) {
            Ok(()) => Some(transfer),
            Err((fault, chain)) => {
                // The range was measured by the chain, so this does not happen; an answer is due
                // nevertheless.
                self.report(fault);
                answer(&mut self.ring, chain, Status::IoError);
                self.spare.push(transfer);
                None
            }
        }
    }

    /// The open transfer goes to work.
    fn close(&mut self) {
        if let Some(transfer) = self.open.take() {
            self.dispatch(transfer);
        }
    }

    fn dispatch(&mut self, mut transfer: Box<Transfer>) {
        transfer.prepare(self.disk.manner());
        let image = self.disk.image();
        if image.is_instant() {
            image.execute(&mut transfer);
            self.done.push(transfer);
        } else {
            self.engine.push(transfer);
        }
    }

    /// Takes finished transfers and stages their chains. Returns whether there were any.
    fn reap(&mut self) -> bool {
        self.engine.reap(&mut self.done);
        let any = !self.done.is_empty();
        let mut done = std::mem::take(&mut self.done);
        for transfer in done.drain(..) {
            self.complete(transfer);
        }
        // What is started anew may be finished already.
        done.append(&mut self.done);
        self.done = done;
        // Calls that came back short were queued again, and merged ones that failed.
        self.engine.submit();
        any
    }

    fn complete(&mut self, mut transfer: Box<Transfer>) {
        let op = transfer.op();
        if transfer.outcome().is_err() && transfer.is_merged() {
            // Only one of them may be to blame.
            for (range, chain) in transfer.drain().collect::<Vec<_>>() {
                if let Some(alone) = self.start(op, range, chain) {
                    self.dispatch(alone);
                }
            }
            self.spare.push(transfer);
            return;
        }
        let status = match transfer.outcome() {
            Ok(()) => {
                let requests = transfer.requests().count() as u64;
                self.disk.counters().done(op, requests, transfer.range().len);
                Status::Ok
            }
            Err(error) => {
                self.disk.counters().failed(op);
                self.disk.report_failure(op, transfer.range(), error);
                Status::IoError
            }
        };
        for (_, chain) in transfer.drain() {
            answer(&mut self.ring, chain, status);
        }
        self.spare.push(transfer);
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            self.interrupt.signal();
        }
    }
}

impl Worker for QueueWorker {
    fn sources(&self) -> Vec<Source> {
        vec![
            Source::input(&self.kick, KICK),
            Source::input(&self.engine.source(), FINISHED),
        ]
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn started(&mut self) {
        self.pass();
    }

    fn ready(&mut self, _token: u32) {
        self.pass();
    }

    fn poll(&mut self) -> bool {
        (self.engine.has_work() || self.ring.has_available()) && self.pass()
    }

    fn before_sleep(&mut self) -> bool {
        self.ring.enable_notify() || self.engine.has_work()
    }

    fn drain(&mut self) {
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            self.reap();
        }
        self.publish();
    }

    fn panicked(&mut self) {
        self.interrupt.broken();
    }
}

/// Writes the status and gives the chain back. All of the writable part counts as written, as in
/// QEMU, which writes the last byte of it in any case.
fn answer(ring: &mut Virtq, chain: Chain, status: Status) {
    let room = chain.writable_bytes();
    let mut writer = chain.writer();
    // There is a last byte: what has none was given back before.
    let _ = writer.skip(room.saturating_sub(1));
    writer.write(&[status as u8]);
    ring.push(chain, u32::try_from(room).unwrap_or(u32::MAX));
}

/// Whether the data of a write is nothing but zeroes. If the driver changes it meanwhile, it was so
/// at one time, and that is what is written.
fn is_zero(chain: &Chain, range: Range) -> bool {
    let mut reader = chain.reader();
    if reader.skip(super::request::HEADER_BYTES).is_err() {
        return false;
    }
    let mut bytes = [0; COMPARED];
    let mut left = range.len as usize;
    while left > 0 {
        let count = reader.read(bytes.get_mut(..left.min(COMPARED)).unwrap_or_default());
        if count == 0 || bytes.iter().take(count).any(|&byte| byte != 0) {
            return false;
        }
        left -= count;
    }
    true
}
