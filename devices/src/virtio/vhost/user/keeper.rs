//! The thread that looks after the connection to a backend.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::place::{Meeting, Way};
use super::remote::{Event, Shared, State};
use super::session::Session;
use crate::sys::fd;

/// Between a backend that would not do and the next: so that one that comes again and again costs little.
const PAUSE: Duration = Duration::from_millis(100);

/// See the [module](self).
pub(super) struct Keeper {
    shared: Arc<Shared>,
    meeting: Meeting,
    /// Readable when somebody wants us.
    wake: OwnedFd,
    /// What the first backend could do, of what the driver may have been offered.
    promised: u64,
}

/// What there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// Nothing in this time.
    Nothing,
    /// Somebody has woken us.
    Woken,
    /// The descriptor of this number is ready.
    Ready(usize),
}

impl Keeper {
    /// # Errors
    /// The host gives no more descriptors.
    pub(super) fn new(shared: Arc<Shared>, meeting: Meeting) -> io::Result<Self> {
        Ok(Self {
            wake: fd::duplicate(&shared.wake)?,
            shared,
            meeting,
            promised: 0,
        })
    }

    /// Waits for the first backend that will do; says what it can.
    ///
    /// # Errors
    /// The only one will not do, or is not there.
    pub(super) fn meet_first(&mut self) -> io::Result<u64> {
        if let Way::Accept(_) = self.meeting.next() {
            let path = self.meeting.path().display();
            tracing::info!(
                "{}: waiting for a vhost-user backend at {path}",
                self.shared.wanted.name
            );
        }
        loop {
            let (socket, again) = match self.meeting.next() {
                Way::Accept(listener) => (listener.accept().map(|(socket, _)| socket), Some(PAUSE)),
                Way::Connect(after) => (self.meeting.connect(), Some(after)),
                Way::None => (self.connect_in_turn(), None),
            };
            match (socket.and_then(|socket| self.begin(socket)), again) {
                (Ok(features), _) => {
                    self.promised = features & self.shared.wanted.features;
                    return Ok(features);
                }
                (Err(error), None) => return Err(error),
                (Err(error), Some(after)) => {
                    self.refuse(&error);
                    std::thread::sleep(after);
                }
            }
        }
    }

    /// Goes to the only backend, behind others that it has not let in yet.
    fn connect_in_turn(&self) -> io::Result<UnixStream> {
        loop {
            match self.meeting.connect() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
                connected => return connected,
            }
        }
    }

    /// Looks after the connection until the device goes.
    pub(super) fn run(mut self) {
        while !self.shared.is_ending() {
            if self.watched().is_some_and(|watched| self.attend(&watched)) {
                continue;
            }
            self.meet_next();
        }
        // The far end sees it at once.
        self.shared.state().session = None;
    }

    /// A backend that would not do.
    fn refuse(&self, error: &io::Error) {
        if !self.shared.is_ending() {
            let path = self.meeting.path().display();
            self.shared
                .report(format_args!("no vhost-user backend at {path}: {error}"));
        }
    }

    /// Begins a session and gives it the rings.
    fn begin(&self, socket: UnixStream) -> io::Result<u64> {
        let shared = &self.shared;
        shared.set_current(Some(socket.try_clone()?));
        if shared.is_ending() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut session = Session::begin(socket, &shared.wanted, &shared.thread)?;
        let features = session.features();
        let missing = self.promised & !features;
        if missing != 0 {
            let problem = format!("it lacks features {missing:#x}, which the guest has been offered");
            return Err(io::Error::other(problem));
        }
        let config = self.config_of(&mut session)?;
        let state = &mut *shared.state();
        state.session = Some(session);
        // Before anything else can fail: the next backend may have the same, and then it is not told.
        if let Some(config) = take_config(state, config) {
            (shared.listener)(Event::Config(config));
        }
        if let Err(error) = shared.start_rings(state) {
            state.session = None;
            return Err(error);
        }
        (shared.listener)(Event::Connected(true));
        Ok(features)
    }

    fn config_of(&self, session: &mut Session) -> io::Result<Option<Vec<u8>>> {
        let len = self.shared.wanted.config_len;
        (len > 0).then(|| session.read_config(len)).transpose()
    }

    /// The descriptors of the session that is there: the connection, and where requests come in.
    fn watched(&self) -> Option<Vec<OwnedFd>> {
        let state = self.shared.state();
        let session = state.session.as_ref()?;
        let mut watched = vec![fd::duplicate(session.socket()).ok()?];
        if let Some(requests) = session.requests() {
            watched.push(fd::duplicate(&requests.as_raw_fd()).ok()?);
        }
        Some(watched)
    }

    /// Attends to the session with these descriptors until something has happened. `false` when it is over.
    fn attend(&self, watched: &[OwnedFd]) -> bool {
        let mut wanted = Vec::new();
        for (fd, flags) in watched.iter().zip([PollFlags::RDHUP, PollFlags::IN]) {
            wanted.push((fd.as_fd(), flags));
        }
        match self.wait(&wanted, None) {
            Found::Nothing => true,
            Found::Woken => {
                self.shared.tell_wishes();
                true
            }
            Found::Ready(0) => {
                let state = &mut *self.shared.state();
                self.shared.lose(state, &io::ErrorKind::UnexpectedEof.into());
                false
            }
            Found::Ready(_) => self.answer(),
        }
    }

    /// Answers a request of the backend.
    fn answer(&self) -> bool {
        let state = &mut *self.shared.state();
        let Some(session) = &mut state.session else {
            return false;
        };
        let answered = session.answer().and_then(|changed| match changed {
            true => self.config_of(session),
            false => Ok(None),
        });
        match answered {
            Ok(config) => {
                if let Some(config) = take_config(state, config) {
                    (self.shared.listener)(Event::Config(config));
                }
                true
            }
            Err(error) => {
                self.shared.lose(state, &error);
                false
            }
        }
    }

    /// Waits for the next backend, or goes to look for it.
    fn meet_next(&mut self) {
        self.shared.set_current(None);
        let found = match self.meeting.next() {
            Way::Accept(listener) => {
                let found = self.wait(&[(listener.as_fd(), PollFlags::IN)], None);
                (found == Found::Ready(0)).then(|| listener.accept().map(|(socket, _)| socket))
            }
            Way::Connect(after) => (self.wait(&[], Some(after)) == Found::Nothing).then(|| self.meeting.connect()),
            Way::None => {
                self.wait(&[], None);
                None
            }
        };
        let Some(socket) = found else { return };
        match socket.and_then(|socket| self.begin(socket)) {
            Ok(_) => {
                let path = self.meeting.path().display();
                self.shared
                    .report(format_args!("a vhost-user backend is back at {path}"));
            }
            Err(error) => {
                // Nobody is there yet: that was said when it went.
                let nobody = [
                    io::ErrorKind::ConnectionRefused,
                    io::ErrorKind::NotFound,
                    io::ErrorKind::WouldBlock,
                ];
                if !nobody.contains(&error.kind()) {
                    self.refuse(&error);
                }
                self.wait(&[], Some(PAUSE));
            }
        }
    }

    /// Waits until we are woken, one of `sources` is ready, or the time is over.
    fn wait(&self, sources: &[(BorrowedFd<'_>, PollFlags)], time: Option<Duration>) -> Found {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(sources.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        if let Err(error) = poll(&mut polled, time.as_ref()) {
            if error != Errno::INTR {
                std::thread::sleep(PAUSE);
            }
            return Found::Woken;
        }
        let ready = polled.iter().rposition(|polled| !polled.revents().is_empty());
        match ready {
            None => Found::Nothing,
            Some(0) => {
                let _ = self.shared.wake.read();
                Found::Woken
            }
            Some(number) => Found::Ready(number - 1),
        }
    }
}

/// Keeps a configuration that was read; says whether it is another than before.
fn take_config(state: &mut State, config: Option<Vec<u8>>) -> Option<Vec<u8>> {
    let config = config.filter(|config| *config != state.config)?;
    state.config.clone_from(&config);
    Some(config)
}
