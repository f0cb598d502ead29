//! The way of a port's bytes: its two queues and the port itself, whichever of them are there.
//!
//! Bytes are moved where they are, by the kernel, many buffers at a time. Chains of output are held until the far end has
//! taken all of them, so a far end that is slow stops the guest; nothing is read from the far end for which the guest has
//! no buffer, so a guest that is slow stops the far end. Nothing is copied, kept, or dropped on the way, except for
//! consoles: see [`PATIENCE`].

#![forbid(unsafe_code)]

use std::io;

use super::port::{Port, PortKind};
use super::queue::Queue;
use crate::chardev::{Chardev, Escape};
use crate::virtio::virtq::{GuestIoVec, QueueState};

/// Chains that are moved by one system call at most.
const BATCH: usize = 64;
/// Bytes that are moved by one system call at most.
const BATCH_BYTES: usize = 1 << 20;
/// System calls in each direction before it is another lane's turn.
const ROUNDS: usize = 8;
/// Pieces of memory that a system call takes (UIO_MAXIOV).
const PIECES: usize = 1024;
/// Bytes that are copied at a time where they have to be.
const COPIED: usize = 4096;
/// Ticks that the output of a console waits for a far end that takes nothing; then it is lost until something is taken
/// again. Linux's console driver waits in a loop with interrupts off, and takes its CPU for dead after 20 seconds
/// (drivers/tty/hvc/hvc_console.c, drivers/char/virtio_console.c `__send_to_port`). QEMU does not wait at all.
const PATIENCE: u32 = 5;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Lane {
    pub(super) port: Option<Port>,
    pub(super) input: Option<Queue>,
    pub(super) output: Option<Queue>,
    /// Bytes of the first held chain of output that have gone.
    gone: usize,
    /// Where `gone` belongs to, while the queue is stopped.
    paused_at: u16,
    /// Chains that the next reading gets.
    batch: usize,
    /// Ticks since a console's output moved.
    stalled: u32,
    iovec: GuestIoVec,
    /// It is on the list of those that are looked at before sleep.
    pub(super) awake: bool,
}

impl Lane {
    /// Starts the queue of output, where it was stopped or from its beginning.
    pub(super) fn start_output(&mut self, queue: Queue) {
        if queue.position() != self.paused_at {
            self.gone = 0;
        }
        self.output = Some(queue);
    }

    /// Starts the queue of input.
    pub(super) fn start_input(&mut self, mut queue: Queue) {
        // Kicks tell nothing while the far end says nothing.
        queue.disable_notify();
        self.input = Some(queue);
    }

    pub(super) fn stop_output(&mut self) -> Option<QueueState> {
        let state = self.output.take()?.stop();
        self.paused_at = state.next_avail;
        Some(state)
    }

    pub(super) fn stop_input(&mut self) -> Option<QueueState> {
        Some(self.input.take()?.stop())
    }

    /// The driver has reset the device.
    pub(super) fn reset(&mut self) {
        (self.gone, self.stalled) = (0, 0);
    }

    /// Moves what can be moved.
    pub(super) fn serve(&mut self, escapes: &mut Vec<Escape>) {
        if let Some(port) = &mut self.port
            && !port.guest_open
            && let Some(far) = &mut port.far
        {
            far.notice_hang_up();
        }
        self.move_output();
        self.move_input(escapes);
    }

    /// Throws away what the guest has written.
    pub(super) fn discard_output(&mut self) {
        self.gone = 0;
        if let Some(queue) = &mut self.output {
            queue.discard();
        }
    }

    fn move_output(&mut self) {
        let Some(queue) = &mut self.output else { return };
        queue.disable_notify();
        let far = self.port.as_mut().and_then(Port::open_far);
        let Some(far) = far.filter(|far| far.can_write() || self.stalled < PATIENCE) else {
            return self.discard_output();
        };
        for _ in 0..ROUNDS {
            if !far.can_write() {
                break;
            }
            queue.hold(BATCH);
            if queue.held().is_empty() {
                break;
            }
            let Ok(taken) = write_held(queue, self.gone, far, &mut self.iovec) else {
                break;
            };
            self.stalled = 0;
            self.gone = give_back_written(queue, self.gone + taken);
        }
        queue.publish();
    }

    fn move_input(&mut self, escapes: &mut Vec<Escape>) {
        let (Some(queue), Some(port)) = (&mut self.input, &mut self.port) else {
            return;
        };
        let guest_open = port.guest_open;
        let Some(far) = port.open_far().filter(|_| guest_open) else {
            return;
        };
        queue.disable_notify();
        for _ in 0..ROUNDS {
            if !far.can_read() {
                break;
            }
            queue.hold(self.batch.clamp(1, BATCH));
            if queue.held().is_empty() {
                break;
            }
            let taken = queue.held().len();
            match read_held(queue, far, &mut self.iovec, escapes) {
                Ok(count) => give_back_filled(queue, count),
                Err(_) => break,
            }
            // All were filled: there is more where that came from.
            self.batch = if queue.held().is_empty() { taken * 2 } else { 1 };
        }
        queue.put_back();
        queue.publish();
    }

    /// Asks to be kicked for what is waited for. Returns whether there is something to do after all.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        let (blocked, readable) = (self.is_blocked(), self.is_readable());
        let output = self.output.as_mut();
        let output = output.is_some_and(|queue| !blocked && (queue.enable_notify() || !queue.held().is_empty()));
        let input = self.input.as_mut();
        output || input.is_some_and(|queue| readable && queue.enable_notify())
    }

    /// Whether there may be something to do: without a system call.
    pub(super) fn has_work(&mut self) -> bool {
        let has_available = |queue: &Queue| queue.has_available() || !queue.held().is_empty();
        let output = self.output.as_ref().is_some_and(has_available) && !self.is_blocked();
        output || self.is_readable() && self.input.as_ref().is_some_and(Queue::has_available)
    }

    /// Whether output waits for the far end.
    fn is_blocked(&mut self) -> bool {
        let given_up = self.stalled >= PATIENCE;
        let far = self.port.as_mut().and_then(Port::open_far);
        far.is_some_and(|far| !far.can_write() && !given_up)
    }

    /// Whether the far end may have something for the guest.
    fn is_readable(&mut self) -> bool {
        let port = self.port.as_mut().filter(|port| port.guest_open);
        port.and_then(Port::open_far).is_some_and(|far| far.can_read())
    }

    /// Whether it wants [`Self::tick`].
    pub(super) fn wants_tick(&mut self) -> bool {
        let far = self.port.as_ref().and_then(|port| port.far.as_ref());
        far.is_some_and(Chardev::wants_tick) || self.waits_for_console()
    }

    /// A second has passed.
    pub(super) fn tick(&mut self) {
        if self.waits_for_console() {
            self.stalled += 1;
        }
        if let Some(far) = self.port.as_mut().and_then(|port| port.far.as_mut()) {
            far.tick();
        }
    }

    /// Whether a console's output waits, and not too long yet.
    fn waits_for_console(&mut self) -> bool {
        let console = self.port.as_ref().is_some_and(|port| port.kind == PortKind::Console);
        console && self.is_blocked()
    }
}

/// Writes what the queue holds, but for the first `gone` bytes. Returns how many bytes were taken.
fn write_held(queue: &Queue, gone: usize, far: &mut Chardev, iovec: &mut GuestIoVec) -> io::Result<usize> {
    let mut skipped = gone;
    if far.writes_bytes_only() {
        let mut bytes = [0; COPIED];
        let mut filled = 0;
        for chain in queue.held() {
            let mut reader = chain.reader();
            let _ = reader.skip(skipped.min(reader.remaining()));
            skipped = 0;
            filled += reader.read(bytes.get_mut(filled..).unwrap_or_default());
        }
        return far.write(bytes.get(..filled).unwrap_or_default());
    }
    iovec.clear();
    for chain in queue.held() {
        let mut reader = chain.reader();
        // Not more than there is: a driver that shortens a chain while it is stopped loses its end.
        let _ = reader.skip(skipped.min(reader.remaining()));
        skipped = 0;
        let len = reader.remaining().min(BATCH_BYTES.saturating_sub(iovec.bytes()));
        if reader.gather(len, iovec).is_err() || iovec.as_iovecs().len() >= PIECES {
            break;
        }
    }
    if iovec.is_empty() {
        return Ok(0);
    }
    far.write_guest(iovec)
}

/// Gives back the chains that `gone` bytes from the first one's beginning cover. Returns what is left of them.
fn give_back_written(queue: &mut Queue, mut gone: usize) -> usize {
    while let Some(chain) = queue.held().front() {
        let len = chain.readable_bytes();
        if len > gone {
            return gone;
        }
        gone -= len;
        queue.push_first(0);
    }
    0
}

/// Reads into what the queue holds. Returns how many bytes came.
fn read_held(queue: &Queue, far: &mut Chardev, iovec: &mut GuestIoVec, escapes: &mut Vec<Escape>) -> io::Result<usize> {
    if far.reads_bytes_only() {
        let room: usize = queue.held().iter().map(|chain| chain.writable_bytes()).sum();
        let mut bytes = [0; COPIED];
        let count = far.read(bytes.get_mut(..room.min(COPIED)).unwrap_or_default(), escapes)?;
        let mut rest = bytes.get(..count).unwrap_or_default();
        for chain in queue.held() {
            let written = chain.writer().write(rest);
            rest = rest.get(written..).unwrap_or_default();
        }
        return Ok(count);
    }
    iovec.clear();
    for chain in queue.held() {
        let mut writer = chain.writer();
        let len = writer.remaining().min(BATCH_BYTES.saturating_sub(iovec.bytes()));
        if writer.gather(len, iovec).is_err() || iovec.as_iovecs().len() >= PIECES {
            break;
        }
    }
    if iovec.is_empty() {
        return Ok(0);
    }
    far.read_guest(iovec)
}

/// Gives back the chains that `count` bytes went into, and those that have no room.
fn give_back_filled(queue: &mut Queue, mut count: usize) {
    while let Some(chain) = queue.held().front() {
        let room = chain.writable_bytes();
        if count == 0 && room > 0 {
            return;
        }
        let filled = room.min(count);
        count -= filled;
        queue.push_first(filled);
    }
}
