//! The worker of a queue pair: its receive queue, its transmit queue, and the endpoint of the
//! backend that belongs to them.
//!
//! It lives as long as the card. Queues come and go; while there is none, the endpoint keeps its
//! connections, and frames wait with the host.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::announce::{self, Announcement};
use super::backend::{Endpoint, Event, Wanted};
use super::card::Card;
use super::coalescing::Coalescing;
use super::data_path::DataPath;
use super::filter::Filter;
use super::published::Copied;
use super::rx::{self, Received, RxQueue};
use super::tx::{Sent, TxQueue};
use crate::io_thread::{IoThread, Source, Worker};
use crate::virtio::device::QueueStart;
use crate::virtio::virtq::{GuestFault, QueueState};

/// Tokens of our own; those of the endpoint are below.
const RX_KICK: u32 = 1 << 16;
pub(super) const TX_KICK: u32 = RX_KICK + 1;
const NUDGE: u32 = RX_KICK + 2;
const TIMER: u32 = RX_KICK + 3;
pub(super) const LOOK: u32 = RX_KICK + 4;

/// Frames of each direction in one round, so that neither starves the other nor other workers
/// (QEMU's TX_BURST).
const BURST: usize = 256;

/// Looks at the transmit queue without a kick.
struct Looks {
    coalescing: Coalescing,
    timer: TimerFd,
}

impl Looks {
    fn new() -> io::Result<Self> {
        Ok(Self {
            coalescing: Coalescing::default(),
            timer: TimerFd::new()?,
        })
    }

    /// Takes the next look after `wait`, if there is to be one.
    fn take_after(&mut self, wait: Option<Duration>) {
        if let Some(wait) = wait
            && let Err(error) = self.timer.reset(wait, None)
        {
            tracing::error!("virtio-net: a timer does not start, frames are sent at kicks: {error}");
            self.coalescing = Coalescing::default();
        }
    }
}

/// See the [module](self).
pub(super) struct Pair {
    /// Which pair of the card.
    number: u16,
    card: Arc<Card>,
    filter: Copied<Filter>,
    endpoint: Box<dyn Endpoint>,
    /// Serves the queues in our place, if it is there.
    data_path: Option<Box<dyn DataPath>>,
    rx: Option<RxQueue>,
    tx: Option<TxQueue>,
    spill: Box<[u8]>,
    nudge: Arc<EventFd>,
    timer: TimerFd,
    announcement: Option<Announcement>,
    /// Where the thread shares the guest's CPU.
    looks: Option<Looks>,
    wanted: Wanted,
    /// What is watched has to change.
    changed: bool,
    /// The endpoint may have frames: it has said so, and has not said since that there are none.
    readable: bool,
}

impl Pair {
    /// The worker of pair `number`, on a thread that shares the guest's CPU or has another.
    pub(super) fn new(
        number: u16,
        card: Arc<Card>,
        endpoint: Box<dyn Endpoint>,
        data_path: Option<Box<dyn DataPath>>,
        nudge: Arc<EventFd>,
        shares_cpu: bool,
    ) -> io::Result<Self> {
        let looks = (shares_cpu && data_path.is_none()).then(Looks::new).transpose()?;
        Ok(Self {
            number,
            filter: card.filter.copy(),
            card,
            endpoint,
            data_path,
            rx: None,
            tx: None,
            spill: rx::new_spill(),
            nudge,
            timer: TimerFd::new().map_err(io::Error::from)?,
            announcement: None,
            looks,
            wanted: Wanted {
                receive: true,
                send: false,
            },
            changed: false,
            readable: true,
        })
    }

    /// Takes a queue of the pair in, while the worker is with no thread. `thread` is the one that it
    /// comes to.
    pub(super) fn attach(&mut self, start: QueueStart, thread: &IoThread) -> io::Result<()> {
        if let Some(path) = &mut self.data_path {
            return path.start(start, thread);
        }
        let header = self.card.header();
        if start.index.is_multiple_of(2) {
            self.rx = Some(RxQueue::new(start, header));
        } else {
            self.tx = Some(TxQueue::new(start, header));
            if let Some(looks) = &mut self.looks {
                looks.coalescing = Coalescing::default();
            }
        }
        // It may have been dropped for want of a queue.
        self.wanted.receive = true;
        self.readable = true;
        Ok(())
    }

    /// Gives a queue back, while the worker is with no thread.
    pub(super) fn detach(&mut self, index: u16) -> Option<QueueState> {
        if let Some(path) = &mut self.data_path {
            return path.stop(index);
        }
        if index.is_multiple_of(2) {
            self.rx.take().map(RxQueue::into_state)
        } else {
            self.tx.take().map(TxQueue::into_state)
        }
    }

    /// Whether the pair carries frames, as the driver has it.
    fn is_active(&self) -> bool {
        self.number < self.card.active_pairs()
    }

    /// Does what can be done without waiting, up to a burst in each direction. Returns whether
    /// there was anything.
    fn pass(&mut self) -> bool {
        while let Some(Event::Link(up)) = self.endpoint.take_event() {
            self.card.set_carrier(up);
        }
        let link = self.card.link_is_up();
        let active = self.is_active();
        if let Some(path) = &mut self.data_path
            && let Err(error) = path.set_state(self.card.is_plugged(), active)
        {
            tracing::error!("{}: vhost: {error}", self.card.name);
        }
        let sent = active && self.transmit(link);
        let received = self.receive(link, active);
        if self.wanted.send && self.endpoint.sources_changed() {
            // The far end that took nothing may have gone, as what it sent last has shown.
            self.flush();
        }
        sent || received
    }

    /// Sends what the driver has posted; with the cable out it is lost, as in QEMU.
    fn transmit(&mut self, link: bool) -> bool {
        if self.wanted.send && self.flush() && link {
            return false;
        }
        let Some(tx) = &mut self.tx else { return false };
        if !tx.has_work() {
            return false;
        }
        tx.disarm();
        let (card, index) = (&self.card, tx.index);
        let mut report = |fault| report(card, index, &fault);
        let mut blocked = false;
        let mut frames = 0;
        for _ in 0..BURST {
            let endpoint = link.then_some(self.endpoint.as_mut());
            match tx.send(endpoint, &mut report) {
                Sent::One => frames += 1,
                Sent::Nothing => break,
                Sent::Blocked => {
                    blocked = true;
                    break;
                }
            }
        }
        tx.publish();
        if !self.flush() {
            self.want_to_send(blocked);
        }
        // Of several pairs another may have the answers.
        if let Some(looks) = self.looks.as_mut().filter(|_| self.card.active_pairs() == 1) {
            let wait = looks.coalescing.sent(frames);
            looks.take_after(wait);
        }
        true
    }

    /// Whether a frame of the driver would go, or be lost for want of a `link`.
    fn may_send(&self, link: bool) -> bool {
        !self.wanted.send || !link
    }

    /// Whether frames of the driver are looked for by the clock.
    fn sends_by_the_clock(&self) -> bool {
        self.looks.as_ref().is_some_and(|looks| looks.coalescing.is_on())
    }

    /// Sends what has come since the last look.
    fn look(&mut self) {
        self.pass();
        if let Some(looks) = &mut self.looks {
            let wait = looks.coalescing.looked();
            looks.take_after(wait);
        }
    }

    /// Sends what the endpoint kept back. Returns whether some of it has to wait.
    fn flush(&mut self) -> bool {
        let waits = self
            .endpoint
            .flush()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.want_to_send(waits);
        waits
    }

    fn want_to_send(&mut self, send: bool) {
        self.changed |= self.wanted.send != send;
        self.wanted.send = send;
    }

    /// Receives what the host has; with the cable out it is lost, as in QEMU.
    fn receive(&mut self, link: bool, active: bool) -> bool {
        if !self.readable {
            return false;
        }
        let mut frames = 0;
        let mut outcome = Received::One;
        if !link {
            if let Some(rx) = &mut self.rx {
                rx.lose_landed();
            }
            for _ in 0..BURST {
                outcome = rx::discard(self.endpoint.as_mut(), &mut self.spill);
                if outcome != Received::One {
                    break;
                }
            }
        } else if let Some(rx) = self.rx.as_mut().filter(|_| active) {
            let (card, index) = (&self.card, rx.index);
            let mut report = |fault| report(card, index, &fault);
            let filter = self.filter.latest(&self.card.filter);
            rx.disarm();
            for _ in 0..BURST {
                outcome = rx.receive(self.endpoint.as_mut(), &mut self.spill, filter, &mut report);
                if outcome != Received::One {
                    break;
                }
                frames += 1;
            }
            rx.publish();
            if frames > 0
                && let Some(looks) = &mut self.looks
            {
                looks.coalescing.received(frames);
            }
        } else {
            return false;
        }
        self.readable = outcome != Received::Nothing;
        if outcome != Received::NoRoom && !self.wanted.receive {
            self.wanted.receive = true;
            self.changed = true;
        }
        frames > 0 || !link && outcome == Received::One
    }

    /// Whether a pass would find something to do without asking the host.
    fn has_work(&self) -> bool {
        let active = self.is_active();
        let link = self.card.link_is_up();
        let send = active && self.may_send(link) && self.tx.as_ref().is_some_and(TxQueue::has_work);
        let room = active && self.rx.as_ref().is_some_and(RxQueue::has_room);
        send || self.readable && (room || !link)
    }

    /// Begins an announcement that was asked for, or ends one.
    fn look_for_announcement(&mut self) {
        if let Some(announcement) = self.card.take_announcement() {
            self.announcement = Some(announcement).filter(Announcement::is_under_way);
            self.announce();
        }
    }

    /// A round of the announcement that is under way.
    fn announce(&mut self) {
        let Some(announcement) = &mut self.announcement else {
            return;
        };
        match announcement.step() {
            Some(wait) => {
                // No time at all would switch the timer off.
                let set = self.timer.reset(wait.max(Duration::from_millis(1)), None);
                if let Err(error) = set {
                    tracing::error!("{}: no further announcements: {error}", self.card.name);
                }
            }
            None => self.announcement = None,
        }
        if self.card.link_is_up() {
            self.endpoint.send_bytes(&announce::frame(self.card.permanent_mac()));
            self.flush();
        }
        self.card.ask_for_announcement();
    }
}

/// Tells of a fault of the driver.
fn report(card: &Card, queue: u16, fault: &GuestFault) {
    card.report_fault(format_args!(
        "queue {queue}: the driver broke {}: {fault}",
        fault.rule()
    ));
}

impl Worker for Pair {
    fn sources(&self) -> Vec<Source> {
        let mut sources = self.endpoint.sources(self.wanted);
        sources.push(Source::input(&self.nudge, NUDGE));
        if self.number == 0 {
            sources.push(Source::input(&self.timer, TIMER));
        }
        sources.extend(self.looks.iter().map(|looks| Source::input(&looks.timer, LOOK)));
        sources.extend(self.rx.iter().map(|rx| Source::input(&rx.kick, RX_KICK)));
        sources.extend(self.tx.iter().map(|tx| Source::input(&tx.kick, TX_KICK)));
        sources
    }

    fn sources_changed(&self) -> bool {
        self.changed || self.endpoint.sources_changed()
    }

    fn sources_taken(&mut self) {
        self.changed = false;
        self.endpoint.sources_taken();
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn started(&mut self) {
        self.pass();
    }

    fn ready(&mut self, token: u32) {
        match token {
            RX_KICK | TX_KICK => {}
            NUDGE if self.number == 0 => self.look_for_announcement(),
            NUDGE => {}
            TIMER => self.announce(),
            LOOK => return self.look(),
            token => {
                self.endpoint.ready(token);
                if self.readable && self.wanted.receive && !self.has_work() {
                    // It comes again and again while nothing can be taken: not before there is room.
                    self.wanted.receive = false;
                    self.changed = true;
                }
                self.readable = true;
            }
        }
        self.pass();
    }

    fn poll(&mut self) -> bool {
        self.has_work() && self.pass()
    }

    fn before_sleep(&mut self) -> bool {
        if self.has_work() {
            return true;
        }
        let active = self.is_active();
        let send = active && self.may_send(self.card.link_is_up()) && !self.sends_by_the_clock();
        let receive = active && self.readable;
        let sent = self.tx.as_mut().filter(|_| send).is_some_and(TxQueue::arm);
        let room = self.rx.as_mut().filter(|_| receive).is_some_and(RxQueue::arm);
        sent || room
    }

    fn drain(&mut self) {
        // A kick would have come before the end.
        if self.sends_by_the_clock() {
            self.pass();
        }
    }

    fn panicked(&mut self) {
        if let Some(rx) = &self.rx {
            rx.panicked();
        }
        if let Some(tx) = &self.tx {
            tx.panicked();
        }
    }
}
