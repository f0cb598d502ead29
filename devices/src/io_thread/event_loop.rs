//! The loop that an I/O thread runs.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::pacer::{Pacer, PollPolicy};
use super::{AnyWorker, Interest, Source, WorkerId};

/// While there is always work in the rings, descriptors are looked at every so many rounds.
const ROUNDS_BETWEEN_LOOKS: u32 = 32;

/// Something to be done on the thread, between two rounds.
type Action = Box<dyn FnOnce(&mut EventLoop) + Send>;

/// Where others leave actions for the thread.
pub(super) struct Mailbox {
    actions: Mutex<Actions>,
    /// There are actions; spares a polling thread the lock.
    pending: AtomicBool,
    wake: EventFd,
}

#[derive(Default)]
struct Actions {
    waiting: Vec<Action>,
    /// The thread is gone and takes no more.
    closed: bool,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            actions: Mutex::default(),
            pending: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Leaves an action and wakes the thread. It is dropped if the thread is gone, so that nobody waits for it.
    pub(super) fn post(&self, action: Action) {
        let mut actions = self.actions();
        if actions.closed {
            return;
        }
        actions.waiting.push(action);
        drop(actions);
        self.pending.store(true, Ordering::Release);
        // It only fails when the counter is at its end, and then the thread has every reason to be
        // awake.
        let _ = self.wake.write(1);
    }

    fn actions(&self) -> MutexGuard<'_, Actions> {
        self.actions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody looks into it any more.
    fn close(&self) {
        let mut actions = self.actions();
        actions.closed = true;
        let left = std::mem::take(&mut actions.waiting);
        drop(actions);
        drop(left);
    }

    fn has_mail(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    fn take(&self) -> Vec<Action> {
        if !self.pending.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut self.actions().waiting)
    }
}

/// Closes a mailbox when its thread ends, however it does.
struct Closing(Arc<Mailbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the event manager knows: our own wake-up, and the workers.
enum Subscriber {
    Mailbox(Arc<Mailbox>),
    Worker(Slot),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self {
            // Edge-triggered, so there is nothing to read; the loop looks into the box in any case.
            Self::Mailbox(_) => {}
            Self::Worker(slot) => {
                slot.guard((), |worker| worker.ready(events.data()));
                if slot.sources_changed() {
                    slot.watch(ops);
                    if let Some(error) = slot.refused.take() {
                        tracing::error!("a descriptor of a running worker cannot be watched: {error}");
                    }
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        match self {
            Self::Mailbox(mailbox) => {
                let result = ops.add(Events::new(&mailbox.wake, EventSet::IN | EventSet::EDGE_TRIGGERED));
                if let Err(error) = result {
                    tracing::error!("I/O thread cannot be woken: {error}");
                }
            }
            Self::Worker(slot) => slot.watch(ops),
        }
    }
}

/// A worker in the loop.
struct Slot {
    worker: Box<dyn AnyWorker>,
    /// Panicked; it is not called any more and removed as soon as the manager lets go of it.
    failed: bool,
    /// What the manager watches for it.
    watched: Vec<Source>,
    /// Why its descriptors cannot be watched.
    refused: Option<io::Error>,
}

impl Slot {
    /// Calls into the worker and contains a panic; `otherwise` is the answer of a worker that has
    /// failed.
    fn guard<R>(&mut self, otherwise: R, call: impl FnOnce(&mut dyn AnyWorker) -> R) -> R {
        if self.failed {
            return otherwise;
        }
        // The worker may be left half-way through something; it is only told so and dropped after
        // that.
        let result = catch_unwind(AssertUnwindSafe(|| call(self.worker.as_mut())));
        result.unwrap_or_else(|_| {
            self.failed = true;
            let _ = catch_unwind(AssertUnwindSafe(|| self.worker.panicked()));
            let tell = || tracing::error!("a worker panicked; its queues stand still until the driver resets them");
            let _ = catch_unwind(tell);
            otherwise
        })
    }

    /// What is to be watched otherwise than it is.
    fn difference(&mut self) -> Difference {
        let edge_triggered = self.guard(false, |worker| worker.edge_triggered());
        let wanted = self.guard(Vec::new(), |worker| worker.sources());
        let events = |source: &Source| source.events(edge_triggered);
        let gone = self.watched.iter().filter(|source| !wanted.contains(source));
        let new = wanted.iter().filter(|source| !self.watched.contains(source));
        let difference = Difference {
            gone: gone.map(events).collect(),
            new: new.map(events).collect(),
        };
        self.watched = wanted;
        difference
    }

    fn watch(&mut self, ops: &mut EventOps) {
        let refused = self.difference().apply(ops);
        self.guard((), |worker| worker.sources_taken());
        self.refused = refused;
    }

    fn sources_changed(&mut self) -> bool {
        self.guard(false, |worker| worker.sources_changed())
    }
}

/// Descriptors that the manager is to watch, and those that it is to watch no longer.
struct Difference {
    gone: Vec<Events>,
    new: Vec<Events>,
}

impl Difference {
    /// Brings it about; says why, if something cannot be watched.
    fn apply(self, ops: &mut EventOps) -> Option<io::Error> {
        let mut refused = None;
        for events in self.gone {
            refused = ops.remove(events).err().or(refused);
        }
        for events in self.new {
            refused = ops.add(events).err().or(refused);
        }
        refused.map(io::Error::other)
    }
}

impl Source {
    fn events(self, edge_triggered: bool) -> Events {
        let mut set = match self.interest {
            Interest::Input => EventSet::IN,
            Interest::Output => EventSet::OUT,
            Interest::Both => EventSet::IN | EventSet::OUT,
        };
        set.set(EventSet::EDGE_TRIGGERED, edge_triggered);
        Events::with_data_raw(self.fd, self.token, set)
    }
}

/// An I/O thread from within.
pub(super) struct EventLoop {
    manager: EventManager<Subscriber>,
    mailbox: Arc<Mailbox>,
    workers: BTreeMap<WorkerId, SubscriberId>,
    next_id: WorkerId,
    pacer: Pacer,
    ending: bool,
}

impl EventLoop {
    pub(super) fn new(mailbox: Arc<Mailbox>, policy: PollPolicy) -> io::Result<Self> {
        let mut manager = EventManager::new().map_err(io::Error::other)?;
        manager.add_subscriber(Subscriber::Mailbox(Arc::clone(&mailbox)));
        Ok(Self {
            manager,
            mailbox,
            workers: BTreeMap::new(),
            next_id: 0,
            pacer: Pacer::new(policy),
            ending: false,
        })
    }

    /// Runs until [`Self::end`].
    pub(super) fn run(mut self) {
        let _closing = Closing(Arc::clone(&self.mailbox));
        let mut busy_rounds = 0;
        while !self.run_actions() {
            let began = self.pacer.is_on().then(Instant::now);
            if self.look_for_work(began) || self.prepare_sleep() {
                busy_rounds += 1;
                if busy_rounds % ROUNDS_BETWEEN_LOOKS == 0 {
                    self.follow_all();
                    self.wait(0);
                }
                continue;
            }
            self.wait(-1);
            if let Some(began) = began {
                self.pacer.waited(began.elapsed());
            }
        }
        let left: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in left {
            self.remove(id);
        }
    }

    /// The loop is left after this round.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    /// Takes a worker in.
    pub(super) fn add(&mut self, worker: Box<dyn AnyWorker>) -> io::Result<WorkerId> {
        let slot = Slot {
            worker,
            failed: false,
            watched: Vec::new(),
            refused: None,
        };
        let subscriber = self.manager.add_subscriber(Subscriber::Worker(slot));
        let id = self.next_id;
        self.next_id += 1;
        self.workers.insert(id, subscriber);
        if let Some(error) = self.slot(id).and_then(|slot| slot.refused.take()) {
            self.unlist(id);
            return Err(error);
        }
        self.visit(id, (), |worker| worker.started());
        self.follow_all();
        Ok(id)
    }

    /// Drains a worker and gives it back; `None` if it failed.
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Box<dyn AnyWorker>> {
        self.visit(id, (), |worker| worker.drain());
        let slot = self.unlist(id)?;
        if slot.failed {
            drop_quietly(slot);
            return None;
        }
        Some(slot.worker)
    }

    /// Whether the worker is there and well.
    pub(super) fn has(&self, id: WorkerId) -> bool {
        self.workers.contains_key(&id)
    }

    /// Does what others asked for. Returns whether the thread is to end.
    fn run_actions(&mut self) -> bool {
        for action in self.mailbox.take() {
            action(self);
        }
        self.ending
    }

    /// Polls all workers until one has something to do, mail comes, or the time is up.
    fn look_for_work(&mut self, began: Option<Instant>) -> bool {
        let budget = self.pacer.budget();
        let Some(began) = began.filter(|_| !budget.is_zero()) else {
            return false;
        };
        loop {
            if self.mailbox.has_mail() || self.visit_all(|worker| worker.poll()) {
                return true;
            }
            if began.elapsed() >= budget {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Arms the notifications of all workers. If work has come in meanwhile, it is done, and the
    /// thread does not sleep.
    fn prepare_sleep(&mut self) -> bool {
        let mut awake = self.mailbox.has_mail();
        if self.visit_all(|worker| worker.before_sleep()) {
            self.visit_all(|worker| worker.poll());
            awake = true;
        }
        self.follow_all();
        awake
    }

    /// Watches other descriptors for all workers that have others now.
    fn follow_all(&mut self) {
        if !self.visit_all(|worker| worker.sources_changed()) {
            return;
        }
        let workers: Vec<_> = self.workers.iter().map(|(id, subscriber)| (*id, *subscriber)).collect();
        for (id, subscriber) in workers {
            let Some(slot) = self.slot(id) else { continue };
            if !slot.sources_changed() {
                continue;
            }
            let difference = slot.difference();
            let ops = self.manager.event_ops(subscriber);
            if let Some(error) = ops.ok().and_then(|mut ops| difference.apply(&mut ops)) {
                tracing::error!("a descriptor of a running worker cannot be watched: {error}");
            }
            self.visit(id, (), |worker| worker.sources_taken());
        }
    }

    /// Waits for descriptors, -1 for as long as it takes, and serves them.
    fn wait(&mut self, milliseconds: i32) {
        if let Err(error) = self.manager.run_with_timeout(milliseconds) {
            tracing::error!("I/O thread cannot wait for events: {error}");
        }
        self.drop_failed();
    }

    /// Calls into all workers; says whether one of them said yes.
    fn visit_all(&mut self, mut call: impl FnMut(&mut dyn AnyWorker) -> bool) -> bool {
        let mut any = false;
        let mut failed = false;
        for &subscriber in self.workers.values() {
            if let Ok(Subscriber::Worker(slot)) = self.manager.subscriber_mut(subscriber) {
                any |= slot.guard(false, &mut call);
                failed |= slot.failed;
            }
        }
        if failed {
            self.drop_failed();
        }
        any
    }

    fn visit<R>(&mut self, id: WorkerId, otherwise: R, call: impl FnOnce(&mut dyn AnyWorker) -> R) -> R {
        match self.slot(id) {
            Some(slot) => slot.guard(otherwise, call),
            None => otherwise,
        }
    }

    fn slot(&mut self, id: WorkerId) -> Option<&mut Slot> {
        let subscriber = *self.workers.get(&id)?;
        match self.manager.subscriber_mut(subscriber) {
            Ok(Subscriber::Worker(slot)) => Some(slot),
            _ => None,
        }
    }

    /// Stops watching a worker's descriptors and takes it out of the loop.
    fn unlist(&mut self, id: WorkerId) -> Option<Slot> {
        let subscriber = self.workers.remove(&id)?;
        match self.manager.remove_subscriber(subscriber) {
            Ok(Subscriber::Worker(slot)) => Some(slot),
            _ => None,
        }
    }

    fn drop_failed(&mut self) {
        while let Some(id) = self.first_failed() {
            if let Some(slot) = self.unlist(id) {
                drop_quietly(slot);
            }
        }
    }

    fn first_failed(&mut self) -> Option<WorkerId> {
        let Self { workers, manager, .. } = self;
        let (id, _) = workers.iter().find(|&(_, &subscriber)| {
            matches!(manager.subscriber_mut(subscriber), Ok(Subscriber::Worker(slot)) if slot.failed)
        })?;
        Some(*id)
    }
}

/// Drops a worker that has failed: what panicked once may do so again.
fn drop_quietly(slot: Slot) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(slot)));
}
