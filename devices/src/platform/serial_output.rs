//! Where a serial port's bytes go: a bounded queue, and a thread that writes it out.
//!
//! A terminal that was stopped, a pipe that nobody reads or a disk that hangs blocks the thread, never a vCPU. When the queue is full,
//! the port shows its transmitter as busy, and the guest waits as it would for a slow line.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::threads;

/// Bytes that wait at most for the thread.
const CAPACITY: usize = 64 << 10;
/// How long the thread lets bytes gather. A guest prints byte by byte; a wake-up and a system call for each would cost it more than the
/// exit does, and nobody sees four milliseconds.
const GATHER: Duration = Duration::from_millis(4);
/// Bytes that are written without waiting for more.
const ENOUGH: usize = CAPACITY / 4;
/// How long to leave an output alone that would block although it was opened for blocking.
const RETRY: Duration = Duration::from_millis(5);
/// How long the end of a port waits for its last bytes to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The device's end of the queue. Dropping it writes out what is left, as far as the output takes it within a second.
pub(super) struct OutputQueue(Arc<Shared>);

/// A [`Write`] into the queue that never blocks. What finds it full is lost, and counted.
#[derive(Clone)]
pub(super) struct OutputWriter(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to do for the thread.
    filled: Condvar,
    /// All has been written out.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread sleeps.
    idle: bool,
    /// The thread holds bytes that it has not written yet.
    writing: bool,
    closed: bool,
    /// Somebody waits for the queue to be empty.
    hurry: bool,
    lost: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_drained(&self, patience: Duration) -> bool {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        let mut state = self.lock();
        state.hurry = true;
        self.filled.notify_one();
        let (mut state, result) = self
            .drained
            .wait_timeout_while(state, patience, busy)
            .unwrap_or_else(PoisonError::into_inner);
        state.hurry = false;
        !result.timed_out()
    }
}

impl OutputQueue {
    /// Starts the thread. It calls `room` whenever it has taken bytes from a queue that was full.
    pub fn start(output: Box<dyn Write + Send>, room: impl Fn() + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        threads::spawn("serial-output", move || write_out(&theirs, output, &room))?;
        Ok(Self(shared))
    }

    pub fn writer(&self) -> OutputWriter {
        OutputWriter(Arc::clone(&self.0))
    }

    pub fn is_full(&self) -> bool {
        self.0.lock().waiting.len() >= CAPACITY
    }

    /// Bytes that did not reach the output.
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }

    /// Waits until all has been written out; false when the output takes longer than `patience`.
    pub fn drain(&self, patience: Duration) -> bool {
        self.0.wait_drained(patience)
    }

    /// Waits until all has been written out, and lets go of the output; false when the output takes longer than `patience`.
    pub fn close(&self, patience: Duration) -> bool {
        self.0.lock().closed = true;
        self.0.wait_drained(patience)
    }
}

impl Drop for OutputQueue {
    fn drop(&mut self) {
        self.close(PATIENCE);
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let room = CAPACITY.saturating_sub(state.waiting.len());
        let (taken, lost) = bytes.split_at(room.min(bytes.len()));
        state.waiting.extend_from_slice(taken);
        state.lost = state.lost.saturating_add(lost.len() as u64);
        if state.idle || state.waiting.len() >= ENOUGH {
            state.idle = false;
            self.0.filled.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread's work: takes all that waits, writes it, until the queue is closed and empty.
fn write_out(shared: &Shared, mut output: Box<dyn Write + Send>, room: &impl Fn()) {
    let mut bytes = Vec::new();
    let mut reported = false;
    loop {
        let mut state = shared.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return;
            }
            state.idle = true;
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        let gathering = |state: &mut State| state.waiting.len() < ENOUGH && !state.closed && !state.hurry;
        state = shared
            .filled
            .wait_timeout_while(state, GATHER, gathering)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        state.writing = true;
        std::mem::swap(&mut bytes, &mut state.waiting);
        drop(state);
        if bytes.len() >= CAPACITY {
            room();
        }

        let (written, result) = write_persistently(&mut *output, &bytes);
        let mut state = shared.lock();
        if let Err(error) = result {
            state.lost = state.lost.saturating_add((bytes.len() - written) as u64);
            if !std::mem::replace(&mut reported, true) {
                tracing::warn!("serial port: its output fails and is lost: {error}");
            }
        }
        state.writing = false;
        if state.waiting.is_empty() {
            shared.drained.notify_all();
        }
        bytes.clear();
    }
}

/// Writes all of `bytes`, waiting for an output that would block. Returns how many bytes the output took.
fn write_persistently(output: &mut dyn Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match output.write(rest) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, output.flush())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Takes a byte a write, and hands it on; every other call would block.
    struct Trickle(mpsc::Sender<u8>, bool);

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.0.send(bytes[0]).map_err(|_| ErrorKind::BrokenPipe)?;
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Blocks each write until it gets a permit.
    struct Gate(mpsc::Receiver<()>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_come_out_in_order_through_an_output_that_would_block() {
        let (sender, receiver) = mpsc::channel();
        let queue = OutputQueue::start(Box::new(Trickle(sender, false)), || {}).unwrap();
        queue.writer().write_all(b"login: ").unwrap();
        assert!(queue.drain(LONG));
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), b"login: ");
        assert_eq!(queue.lost(), 0);
    }

    #[test]
    fn closing_writes_out_what_is_left() {
        let (sender, receiver) = mpsc::channel();
        let queue = OutputQueue::start(Box::new(Trickle(sender, false)), || {}).unwrap();
        queue.writer().write_all(b"halted").unwrap();
        drop(queue);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), b"halted");
    }

    #[test]
    fn blocked_output_fills_the_queue_and_then_loses_instead_of_blocking() {
        let (permit, gate) = mpsc::channel();
        let (room, told) = mpsc::channel();
        let queue = OutputQueue::start(Box::new(Gate(gate)), move || {
            room.send(()).unwrap();
        })
        .unwrap();
        let mut writer = queue.writer();
        // However much of it the thread has taken, twice the capacity and a bit does not fit.
        writer.write_all(&[0; CAPACITY]).unwrap();
        writer.write_all(&[0; CAPACITY]).unwrap();
        writer.write_all(&[0; CAPACITY]).unwrap();
        assert!(queue.lost() >= CAPACITY as u64);
        assert!(!queue.drain(Duration::ZERO));
        for _ in 0..4 {
            permit.send(()).unwrap();
        }
        assert!(queue.drain(LONG));
        assert!(!queue.is_full());
        told.recv().unwrap();
    }

    #[test]
    fn failing_output_counts_what_it_loses_and_stays_usable() {
        let (permit, gate) = mpsc::channel();
        drop(permit);
        let queue = OutputQueue::start(Box::new(Gate(gate)), || {}).unwrap();
        for _ in 0..2 {
            queue.writer().write_all(b"abc").unwrap();
            assert!(queue.drain(LONG));
        }
        assert_eq!(queue.lost(), 6);
    }
}
