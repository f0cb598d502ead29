//! What is typed at a console, on its way into the guest's serial port.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use devices::chardev::{Escape, EscapeFilter};
use devices::platform::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::Shared;
use super::console::{ESCAPE_HELP, Input, SharedClient, read_some};
use super::events::Cause;
use super::fixed::Platform;

/// Typed bytes that wait for room in the port. Reading stops above, so that a paste of any length keeps its place in the kernel's queues.
const WAITING: usize = 4096;

/// The source of the bytes, and how to treat them.
enum Source {
    None,
    Stream(File),
    Terminal(File, EscapeFilter),
    Listener(UnixListener, SharedClient, Option<UnixStream>),
}

/// Moves input from a console to the serial port, as fast as the guest takes it.
pub(super) struct SerialFeed {
    shared: Arc<Shared>,
    serial: Arc<Mutex<Serial>>,
    room: EventFd,
    source: Source,
    waiting: VecDeque<u8>,
    watching: bool,
}

impl SerialFeed {
    /// The feed of `platform`'s serial port; `None` when nothing ever comes in, or the feed was taken before.
    pub(super) fn new(shared: &Arc<Shared>, platform: &mut Platform) -> Option<Self> {
        let source = match std::mem::replace(&mut platform.input, Input::None) {
            Input::None => return None,
            Input::Stream(file) => Source::Stream(file),
            Input::Terminal(file) => Source::Terminal(file, EscapeFilter::default()),
            Input::Listener(listener, client) => {
                let waited_for = client.lock().unwrap_or_else(PoisonError::into_inner);
                let first = waited_for.as_ref().and_then(|client| client.try_clone().ok());
                drop(waited_for);
                Source::Listener(listener, client, first)
            }
        };
        Some(Self {
            shared: Arc::clone(shared),
            serial: Arc::clone(&platform.serial),
            room: platform.serial_room.try_clone().ok()?,
            source,
            waiting: VecDeque::new(),
            watching: false,
        })
    }

    /// The descriptor that bytes are read from now.
    fn stream(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::None | Source::Listener(_, _, None) => None,
            Source::Stream(file) | Source::Terminal(file, _) => Some(file.as_fd()),
            Source::Listener(_, _, Some(client)) => Some(client.as_fd()),
        }
    }

    /// Watches the stream while there is room for what it may bring.
    fn watch(&mut self, ops: &mut EventOps) {
        let wanted = self.waiting.len() < WAITING && self.stream().is_some();
        if wanted == self.watching {
            return;
        }
        let Some(fd) = self.stream().map(|fd| fd.as_raw_fd()) else {
            self.watching = false;
            return;
        };
        let events = Events::new_raw(fd, EventSet::IN);
        // A regular file cannot be watched (EPERM): it has nothing to say to a guest that is interactive.
        self.watching = if wanted {
            ops.add(events).is_ok()
        } else {
            ops.remove(events).is_err()
        };
    }

    /// Reads once, and gives the guest what it takes.
    fn receive(&mut self, ops: &mut EventOps) {
        let result = match &mut self.source {
            Source::None | Source::Listener(_, _, None) => return,
            Source::Stream(file) | Source::Terminal(file, _) => read_some(file),
            Source::Listener(_, _, Some(client)) => read_some(client),
        };
        match result {
            Ok(bytes) if bytes.is_empty() => self.lose_stream(ops),
            Ok(bytes) => self.typed(&bytes),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.lose_stream(ops),
        }
    }

    fn typed(&mut self, bytes: &[u8]) {
        let Source::Terminal(_, filter) = &mut self.source else {
            self.waiting.extend(bytes);
            return;
        };
        for escape in filter.filter(bytes, &mut self.waiting) {
            match escape {
                Escape::Quit => self.shared.remote.quit(Cause::HostUi),
                Escape::Help => {
                    let _ = io::stderr().write_all(ESCAPE_HELP.as_bytes());
                }
            }
        }
    }

    /// The end of the input: a listener waits for the next client, anything else is finished.
    fn lose_stream(&mut self, ops: &mut EventOps) {
        if let Some(fd) = self.stream().map(|fd| fd.as_raw_fd())
            && std::mem::take(&mut self.watching)
        {
            let _ = ops.remove(Events::empty_raw(fd));
        }
        match &mut self.source {
            Source::Listener(_, client, ours) => {
                *ours = None;
                *client.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            source => *source = Source::None,
        }
    }

    /// Takes a client if there is none; a further one is turned away.
    fn accept(&mut self) {
        let Source::Listener(listener, client, ours) = &mut self.source else {
            return;
        };
        let Ok((stream, _)) = listener.accept() else { return };
        if ours.is_none()
            && let Ok(copy) = stream.try_clone()
        {
            *client.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
            *ours = Some(stream);
        }
    }

    /// Gives the guest as much as it takes now.
    fn feed(&mut self) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = serial.enqueue(self.waiting.make_contiguous());
        self.waiting.drain(..taken);
    }
}

impl MutEventSubscriber for SerialFeed {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let listener = match &self.source {
            Source::Listener(listener, ..) => Some(listener.as_raw_fd()),
            _ => None,
        };
        if events.fd() == self.room.as_raw_fd() {
            let _ = self.room.read();
        } else if Some(events.fd()) == listener {
            self.accept();
        } else {
            self.receive(ops);
        }
        self.feed();
        self.watch(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Registering a fresh descriptor fails only when the kernel is out of memory; then nothing can be typed.
        let _ = ops.add(Events::new(&self.room, EventSet::IN));
        if let Source::Listener(listener, ..) = &self.source {
            let _ = ops.add(Events::new(listener, EventSet::IN));
        }
        self.watch(ops);
    }
}
