//! The backend of one device, whether it is there at the moment or not.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::keeper::Keeper;
use super::place::Place;
use super::session::{Inflight, Session, regions};
use crate::io_thread::IoThread;
use crate::memory::GuestMemory;
use crate::threads;
use crate::virtio::device::QueueStart;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::report::Reporter;
use crate::virtio::vhost::Served;
use crate::virtio::virtq::QueueState;

/// How long a backend may take for an answer. It may have to wait for a slow disk before a queue stands still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Rings that messages can name (VHOST_USER_VRING_IDX_MASK).
const MAX_RINGS: u16 = 256;

/// What a device wants of its backend.
pub(crate) struct Wanted {
    /// What messages call the device.
    pub(crate) name: String,
    /// Queues that the backend serves.
    pub(crate) rings: u16,
    /// The same as the backend counts them: pairs of them for a network card.
    pub(crate) queues: u16,
    /// Features that the device offers to its driver only if the backend has them.
    pub(crate) features: u64,
    /// Protocol features that are of use, beside those that always are.
    pub(crate) protocol: VhostUserProtocolFeatures,
    /// Those of them without which it does not work.
    pub(crate) required: VhostUserProtocolFeatures,
    /// Bytes of device configuration that the backend has.
    pub(crate) config_len: u32,
    /// Descriptors of a queue, if requests in flight are to be found again by the next backend.
    pub(crate) inflight: Option<u16>,
    /// How long an answer may take.
    pub(crate) patience: Duration,
}

impl Wanted {
    /// `rings` queues, which the backend counts as `queues`, and nothing else.
    pub(crate) fn new(name: &str, rings: u16, queues: u16, features: u64) -> Self {
        Self {
            name: name.to_owned(),
            rings,
            queues,
            features,
            protocol: VhostUserProtocolFeatures::empty(),
            required: VhostUserProtocolFeatures::empty(),
            config_len: 0,
            inflight: None,
            patience: PATIENCE,
        }
    }
}

/// What happens to a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// It came, or it has gone.
    Connected(bool),
    /// Its device configuration is another now.
    Config(Vec<u8>),
}

/// Told what happens, from whatever thread; must not wait for anything.
pub(crate) type Listener = Box<dyn Fn(Event) + Send + Sync>;

/// The backend of one device.
pub(crate) struct Remote {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    /// What the first backend can do, and all that come after it.
    features: u64,
}

/// What the device and the [`Keeper`] share.
pub(super) struct Shared {
    pub(super) wanted: Wanted,
    pub(super) thread: IoThread,
    pub(super) listener: Listener,
    /// Wakes the keeper.
    pub(super) wake: EventFd,
    pub(super) ending: AtomicBool,
    /// Whether data is to be carried, by ring.
    wishes: Vec<AtomicBool>,
    /// The connection that the keeper works with, to be cut off in the end.
    current: Mutex<Option<UnixStream>>,
    state: Mutex<State>,
    reporter: Reporter,
}

/// What changes as backends come and go. No I/O thread ever waits for it, so it may be held while one is asked for
/// something.
#[derive(Default)]
pub(super) struct State {
    pub(super) session: Option<Session>,
    rings: Vec<Option<Ring>>,
    pub(super) config: Vec<u8>,
    inflight: Option<Inflight>,
}

struct Ring {
    served: Served,
    /// The last wish that the backend was told.
    enabled: bool,
}

impl Remote {
    /// Meets the backend that `options` name, and waits for it.
    ///
    /// # Errors
    /// It cannot be reached, is not what is `wanted`, or cannot be given guest memory.
    pub(crate) fn open(
        options: &Options,
        wanted: Wanted,
        memory: &GuestMemory,
        thread: &IoThread,
        listener: Listener,
    ) -> Result<Self, ConfigError> {
        let place = Place::from_options(options)?;
        if wanted.rings > MAX_RINGS {
            let problem = format!("vhost-user serves up to {MAX_RINGS} queues of a device");
            return Err(options.refused(problem, "give fewer queues="));
        }
        let problem = |error: &dyn fmt::Display| format!("vhost-user={}: {error}", place.path().display());
        regions(memory).map_err(|error| {
            let remedy =
                "start the machine with the device, or with -machine memory-backend=ID of a memory-backend-memfd";
            options.refused(problem(&error), remedy)
        })?;
        let remedy = |error: &io::Error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "start the backend first, or add reconnect=1",
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => "choose another path",
            _ => "see what the backend says",
        };
        Self::at(place.clone(), wanted, thread.clone(), listener)
            .map_err(|error| options.refused(problem(&error), remedy(&error)))
    }

    fn at(place: Place, wanted: Wanted, thread: IoThread, listener: Listener) -> io::Result<Self> {
        let rings = usize::from(wanted.rings);
        let shared = Arc::new(Shared {
            thread,
            listener,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            ending: AtomicBool::new(false),
            wishes: (0..rings).map(|_| AtomicBool::new(true)).collect(),
            current: Mutex::default(),
            state: Mutex::new(State {
                rings: (0..rings).map(|_| None).collect(),
                ..State::default()
            }),
            reporter: Reporter::default(),
            wanted,
        });
        let mut keeper = Keeper::new(Arc::clone(&shared), place.meet()?)?;
        let features = keeper.meet_first()?;
        let keeper = threads::spawn(format!("vu-{}", shared.wanted.name), move || keeper.run())?;
        Ok(Self {
            shared,
            keeper: Some(keeper),
            features,
        })
    }

    /// The features that can be offered to the driver: those among `bits` that the backend has, and all that are none
    /// of its business.
    pub(crate) fn features(&self) -> u64 {
        self.features | !self.shared.wanted.features
    }

    /// Changes the device configuration; without a backend nothing changes.
    pub(crate) fn write_config(&self, offset: u32, bytes: &[u8]) {
        let state = &mut *self.shared.state();
        let Some(session) = &mut state.session else { return };
        match session.write_config(offset, bytes) {
            Ok(()) => {
                let held = state.config.iter_mut().skip(offset as usize);
                held.zip(bytes).for_each(|(to, from)| *to = *from);
            }
            Err(error) => self.shared.lose(state, &error),
        }
    }

    /// Whether there is a backend now.
    pub(crate) fn is_connected(&self) -> bool {
        self.shared.state().session.is_some()
    }

    /// Gives the backend a queue to serve, or the next one if there is none now. Interrupts come by way of `thread`.
    ///
    /// # Errors
    /// The host gives no more descriptors.
    pub(crate) fn start(&self, index: u16, start: QueueStart, thread: &IoThread) -> io::Result<()> {
        let served = Served::new(start, thread)?;
        let next_avail = served.next_avail();
        let state = &mut *self.shared.state();
        let slot = state.rings.get_mut(usize::from(index)).ok_or(io::ErrorKind::NotFound)?;
        *slot = Some(Ring { served, enabled: false });
        if let Err(error) = self.shared.start_ring(state, index, |_| next_avail) {
            self.shared.lose(state, &error);
        }
        Ok(())
    }

    /// Takes a queue back; `None` when it was not given away.
    pub(crate) fn stop(&self, index: u16) -> Option<QueueState> {
        let state = &mut *self.shared.state();
        let ring = state.rings.get_mut(usize::from(index))?.take()?;
        let next_avail = match state.session.as_mut().map(|session| session.stop_ring(index)) {
            Some(Ok(next_avail)) => Some(next_avail),
            Some(Err(error)) => {
                self.shared.lose(state, &error);
                None
            }
            None => None,
        };
        Some(ring.served.finish(next_avail))
    }

    /// The driver starts from nothing: what was in flight is forgotten.
    pub(crate) fn reset(&self) {
        let state = &mut *self.shared.state();
        state.inflight = None;
        if let Some(session) = &mut state.session {
            session.forget_inflight();
        }
    }

    /// Whether data is to be carried on a ring; the backend is told soon. Never waits.
    pub(crate) fn enable(&self, index: u16, enabled: bool) {
        let Some(wish) = self.shared.wishes.get(usize::from(index)) else {
            return;
        };
        if wish.swap(enabled, Ordering::AcqRel) != enabled {
            self.shared.wake();
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(socket) = &*self.shared.current() {
            // One that has no far end any more is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("{}: the thread of its backend panicked", self.shared.wanted.name);
        }
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// The keeper works with this connection from now on, or with none.
    pub(super) fn set_current(&self, socket: Option<UnixStream>) {
        *self.current() = socket;
    }

    fn wake(&self) {
        // It fails only when the keeper has every reason to be awake.
        let _ = self.wake.write(1);
    }

    pub(super) fn report(&self, line: fmt::Arguments<'_>) {
        self.reporter.warn(format_args!("{}: {line}", self.wanted.name));
    }

    /// Has the backend serve a ring from where `next_avail` says.
    fn start_ring(&self, state: &mut State, index: u16, next_avail: impl Fn(&Served) -> u16) -> io::Result<()> {
        let ring = state.rings.get_mut(usize::from(index)).and_then(Option::as_mut);
        let (Some(session), Some(ring)) = (&mut state.session, ring) else {
            return Ok(());
        };
        let next_avail = next_avail(&ring.served);
        session.prepare(&ring.served, &self.wanted, &mut state.inflight)?;
        // First, because a ring that runs and is not enabled loses what the driver sends.
        ring.enabled = self.wish(index);
        session.enable_ring(index, ring.enabled)?;
        session.start_ring(index, &ring.served, next_avail)?;
        ring.served.kick();
        Ok(())
    }

    fn wish(&self, index: u16) -> bool {
        let wish = self.wishes.get(usize::from(index));
        wish.is_some_and(|wish| wish.load(Ordering::Acquire))
    }

    /// Gives a backend that has come just now all rings, where the last one left them.
    pub(super) fn start_rings(&self, state: &mut State) -> io::Result<()> {
        (0..self.wanted.rings).try_for_each(|index| self.start_ring(state, index, Served::completed))
    }

    /// Tells the backend the wishes that it does not know yet.
    pub(super) fn tell_wishes(&self) {
        let state = &mut *self.state();
        let Some(session) = &mut state.session else { return };
        let mut told = Ok(());
        for (index, ring) in (0..).zip(state.rings.iter_mut()) {
            let (Some(ring), wish) = (ring, self.wish(index)) else {
                continue;
            };
            if ring.enabled != wish && told.is_ok() {
                ring.enabled = wish;
                told = session.enable_ring(index, wish);
            }
        }
        if let Err(error) = told {
            self.lose(state, &error);
        }
    }

    /// The backend has gone, or is as good as gone.
    pub(super) fn lose(&self, state: &mut State, error: &io::Error) {
        if state.session.take().is_none() {
            return;
        }
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "the vhost-user backend has gone".to_owned()
            }
            _ => format!("the vhost-user backend is cut off: {error}"),
        };
        if !self.is_ending() {
            self.report(format_args!("{what}; the device stands still until there is another"));
        }
        (self.listener)(Event::Connected(false));
        self.wake();
    }
}
