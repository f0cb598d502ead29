//! What is on its way to clients: one link for each monitor, and all monitors for what concerns everybody.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::event::Event;
use super::json::Style;

/// Bytes that wait for a client to read them, from which on no more of its commands are taken.
pub const FULL: usize = 64 << 10;
/// Bytes that wait for a client to read them, from which on events are not kept for it.
pub const EVENTS_END: usize = 4 << 20;

/// The way to one client.
pub struct Link {
    style: Style,
    state: Mutex<State>,
    wake: EventFd,
}

#[derive(Default)]
struct State {
    connected: bool,
    /// The client has said qmp_capabilities.
    negotiated: bool,
    waiting: Vec<u8>,
    /// Events that were not kept.
    lost: u64,
}

impl Link {
    /// A link without a client.
    ///
    /// # Errors
    /// No event descriptor is left.
    pub fn new(style: Style) -> io::Result<Self> {
        Ok(Self {
            style,
            state: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// A client comes or goes; nothing of the last one is left.
    pub fn set_connected(&self, connected: bool) {
        *self.state() = State {
            connected,
            ..State::default()
        };
    }

    /// Is somebody there?
    pub fn is_connected(&self) -> bool {
        self.state().connected
    }

    /// Has the client negotiated capabilities?
    pub fn is_negotiated(&self) -> bool {
        self.state().negotiated
    }

    /// The client has; from now on it gets events.
    pub fn set_negotiated(&self) {
        self.state().negotiated = true;
    }

    /// Queues a response.
    pub fn send(&self, value: &serde_json::Value) {
        let text = self.style.line(value);
        self.state().waiting.extend(text);
        self.wake();
    }

    /// Queues a text as it is.
    pub fn send_text(&self, text: &str) {
        self.state().waiting.extend(text.as_bytes());
        self.wake();
    }

    /// Readable when there may be something to send.
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// Makes the one who waits for [`Self::wake_fd`] look.
    pub fn wake(&self) {
        // The counter would have to be at its maximum for this to fail, and then the descriptor is readable anyway.
        let _ = self.wake.write(1);
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Lets `write` take bytes from the front of what waits.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn drain(&self, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        let mut state = self.state();
        let written = write(&state.waiting)?.min(state.waiting.len());
        state.waiting.drain(..written);
        if state.waiting.is_empty() {
            state.waiting.shrink_to(FULL);
        }
        Ok(())
    }

    fn send_event(&self, message: &serde_json::Value) {
        let mut state = self.state();
        if !state.connected || !state.negotiated {
            return;
        }
        if state.waiting.len() >= EVENTS_END {
            state.lost += 1;
            if state.lost == 1 {
                tracing::warn!("a QMP client does not read; events are not kept for it any more");
            }
            return;
        }
        state.lost = 0;
        state.waiting.extend(self.style.line(message));
        drop(state);
        self.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A monitor as `query-chardev` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorView {
    /// The name of its character device.
    pub label: String,
    /// Where that leads.
    pub filename: String,
    /// Is a client there?
    pub connected: bool,
}

struct Entry {
    label: String,
    filename: String,
    link: Weak<Link>,
}

/// All monitors of a machine; clones are the same. Made before the machine, so that it can say what happens to it.
#[derive(Clone, Default)]
pub struct Monitors(Arc<Inner>);

#[derive(Default)]
struct Inner {
    entries: Mutex<Vec<Entry>>,
    limits: Mutex<Limits>,
}

#[derive(Default)]
struct Limits {
    by_subject: BTreeMap<(&'static str, String), Limited>,
    /// A thread waits to tell what is held.
    teller: bool,
}

/// An event of which clients are not told each time.
struct Limited {
    told: Instant,
    interval: Duration,
    /// The last one since.
    held: Option<Event>,
}

impl Monitors {
    /// Tells every client that has negotiated.
    pub fn emit(&self, event: Event) {
        let Some((interval, subject)) = event.limit() else {
            return self.0.broadcast(&event);
        };
        let now = Instant::now();
        let mut limits = lock(&self.0.limits);
        match limits.by_subject.get_mut(&(event.name(), subject.clone())) {
            Some(limited) if now < limited.told + limited.interval => limited.held = Some(event),
            _ => {
                self.0.broadcast(&event);
                let limited = Limited {
                    told: now,
                    interval,
                    held: None,
                };
                limits.by_subject.insert((event.name(), subject), limited);
                return;
            }
        }
        if !std::mem::replace(&mut limits.teller, true) {
            drop(limits);
            self.tell_later();
        }
    }

    /// Tells what is held when its time has come, on a thread that lives as long as something is held.
    fn tell_later(&self) {
        let inner = Arc::downgrade(&self.0);
        let tell = move || {
            while let Some(next) = inner.upgrade().and_then(|inner| inner.tell_held(Instant::now())) {
                std::thread::sleep(next);
            }
        };
        if std::thread::Builder::new()
            .name("qmp-events".into())
            .spawn(tell)
            .is_err()
        {
            // The event waits for the next one.
            lock(&self.0.limits).teller = false;
        }
    }

    /// Adds a monitor; it is one as long as its link lives.
    pub fn add(&self, label: &str, filename: &str, link: &Arc<Link>) {
        let mut entries = lock(&self.0.entries);
        entries.retain(|entry| entry.link.strong_count() > 0);
        entries.push(Entry {
            label: label.to_owned(),
            filename: filename.to_owned(),
            link: Arc::downgrade(link),
        });
    }

    /// All there are.
    pub fn views(&self) -> Vec<MonitorView> {
        let entries = lock(&self.0.entries);
        let view = |entry: &Entry| {
            Some(MonitorView {
                label: entry.label.clone(),
                filename: entry.filename.clone(),
                connected: entry.link.upgrade()?.is_connected(),
            })
        };
        entries.iter().filter_map(view).collect()
    }
}

impl Inner {
    fn broadcast(&self, event: &Event) {
        let message = event.message();
        for entry in lock(&self.entries).iter() {
            if let Some(link) = entry.link.upgrade() {
                link.send_event(&message);
            }
        }
    }

    /// Tells the held events whose time has come; how long until the next, if one is left.
    fn tell_held(&self, now: Instant) -> Option<Duration> {
        let mut limits = lock(&self.limits);
        let over = |limited: &Limited| now >= limited.told + limited.interval;
        limits
            .by_subject
            .retain(|_, limited| limited.held.is_some() || !over(limited));
        for limited in limits.by_subject.values_mut().filter(|limited| over(limited)) {
            if let Some(event) = limited.held.take() {
                limited.told = now;
                self.broadcast(&event);
            }
        }
        let held = limits.by_subject.values().filter(|limited| limited.held.is_some());
        let next = held
            .map(|limited| (limited.told + limited.interval).saturating_duration_since(now))
            .min();
        limits.teller = next.is_some();
        next
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
