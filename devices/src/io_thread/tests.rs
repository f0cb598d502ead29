#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// What a [`Probe`] was asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Started,
    Ready(u32),
    Drained,
    Panicked,
    Dropped,
}

/// A worker that reports each call and panics on request.
struct Probe {
    source: Arc<EventFd>,
    edge: bool,
    panic: Arc<AtomicBool>,
    calls: Sender<(Call, ThreadId)>,
    number: u32,
}

impl Probe {
    fn say(&self, call: Call) {
        let _ = self.calls.send((call, std::thread::current().id()));
    }
}

impl Worker for Probe {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(&self.source, 7)]
    }

    fn edge_triggered(&self) -> bool {
        self.edge
    }

    fn started(&mut self) {
        self.say(Call::Started);
    }

    fn ready(&mut self, token: u32) {
        if self.panic.load(Ordering::Relaxed) {
            panic!("as the test asked");
        }
        if !self.edge {
            self.source.read().unwrap();
        }
        self.number += 1;
        self.say(Call::Ready(token));
    }

    fn drain(&mut self) {
        self.say(Call::Drained);
    }

    fn panicked(&mut self) {
        self.say(Call::Panicked);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.say(Call::Dropped);
    }
}

struct Probed {
    handle: WorkerHandle<Probe>,
    source: Arc<EventFd>,
    panic: Arc<AtomicBool>,
    calls: Receiver<(Call, ThreadId)>,
}

impl Probed {
    fn next(&self) -> Call {
        self.calls.recv().unwrap().0
    }
}

fn probe(thread: &IoThread, edge: bool) -> Probed {
    let source = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let panic = Arc::new(AtomicBool::new(false));
    let (sender, calls) = channel();
    let worker = Probe {
        source: Arc::clone(&source),
        edge,
        panic: Arc::clone(&panic),
        calls: sender,
        number: 0,
    };
    let handle = thread.add(worker).unwrap();
    let probed = Probed {
        handle,
        source,
        panic,
        calls,
    };
    assert_eq!(probed.next(), Call::Started);
    probed
}

#[test]
fn a_worker_is_started_woken_drained_and_handed_back() {
    for policy in [PollPolicy::default(), PollPolicy::OFF] {
        let thread = IoThread::spawn("test", policy).unwrap();
        let probed = probe(&thread, false);
        for _ in 0..3 {
            probed.source.write(1).unwrap();
            assert_eq!(probed.next(), Call::Ready(7));
        }
        let worker = probed.handle.stop().unwrap();
        assert_eq!(worker.number, 3);
        assert_eq!(probed.calls.recv().unwrap().0, Call::Drained);
        // No longer watched.
        probed.source.write(1).unwrap();
        let other = probe(&thread, false);
        other.source.write(1).unwrap();
        assert_eq!(other.next(), Call::Ready(7));
        assert!(probed.calls.try_recv().is_err());
    }
}

#[test]
fn edges_wake_without_being_read_and_a_signal_before_the_start_counts() {
    let thread = IoThread::spawn("test", PollPolicy::OFF).unwrap();
    let source = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    source.write(1).unwrap();
    let (sender, calls) = channel();
    let worker = Probe {
        source: Arc::clone(&source),
        edge: true,
        panic: Arc::default(),
        calls: sender,
        number: 0,
    };
    let handle = thread.add(worker).unwrap();
    assert_eq!(calls.recv().unwrap().0, Call::Started);
    for _ in 0..5 {
        assert_eq!(calls.recv().unwrap().0, Call::Ready(7));
        source.write(1).unwrap();
    }
    handle.stop().unwrap();
}

#[test]
fn all_calls_come_on_the_thread() {
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    let Probed {
        handle, source, calls, ..
    } = probe(&thread, false);
    source.write(1).unwrap();
    let on = calls.recv().unwrap().1;
    assert_ne!(on, std::thread::current().id());
    handle.stop().unwrap();
    assert_eq!(calls.recv().unwrap(), (Call::Drained, on));
}

#[test]
fn a_panic_is_contained_and_reported() {
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    let bystander = probe(&thread, false);
    let victim = probe(&thread, false);
    victim.panic.store(true, Ordering::Relaxed);
    assert!(!victim.handle.has_failed());
    victim.source.write(1).unwrap();
    assert_eq!([victim.next(), victim.next()], [Call::Panicked, Call::Dropped]);
    assert!(victim.handle.has_failed());
    assert_eq!(victim.handle.stop().err(), Some(WorkerFailed));
    bystander.source.write(1).unwrap();
    assert_eq!(bystander.next(), Call::Ready(7));
    assert_eq!(bystander.handle.stop().unwrap().number, 1);
}

/// Panics when it is called, and has another worker of its own.
struct Owner {
    kick: EventFd,
    _owned: WorkerHandle<Probe>,
}

impl Worker for Owner {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(&self.kick, 0)]
    }

    fn ready(&mut self, _token: u32) {
        panic!("the owner fails");
    }
}

#[test]
fn a_worker_that_fails_takes_those_with_it_that_it_had_on_its_thread() {
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    let Probed { handle, calls, .. } = probe(&thread, false);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    kick.write(1).unwrap();
    let owner = Owner { kick, _owned: handle };
    let owner = thread.add(owner).unwrap();
    let on_thread = |call| calls.iter().any(|(made, _)| made == call);
    assert!(on_thread(Call::Dropped));
    assert_eq!(owner.stop().err(), Some(WorkerFailed));
    assert_eq!(thread.call(|_| ()), Some(()));
}

#[test]
fn nobody_waits_for_a_thread_that_is_gone() {
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    let probed = probe(&thread, false);
    thread.call(|_| -> () { panic!("the thread goes") });
    assert_eq!(probed.handle.stop().err(), Some(WorkerFailed));
    assert_eq!(thread.call(|_| ()), None);
}

#[test]
fn a_dropped_handle_stops_the_worker() {
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    let Probed { handle, calls, .. } = probe(&thread, false);
    drop(handle);
    assert_eq!(calls.try_recv().unwrap().0, Call::Drained);
    assert_eq!(calls.try_recv().unwrap().0, Call::Dropped);
}

#[test]
fn the_last_handle_ends_the_thread_and_the_workers_keep_it_alive() {
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    let probed = probe(&thread, false);
    drop(thread);
    probed.source.write(1).unwrap();
    assert_eq!(probed.next(), Call::Ready(7));
    probed.handle.stop().unwrap();
}

#[test]
fn a_descriptor_that_cannot_be_watched_is_an_error() {
    struct Deaf;
    impl Worker for Deaf {
        fn sources(&self) -> Vec<Source> {
            vec![Source::input(&-1, 0)]
        }
        fn ready(&mut self, _token: u32) {}
    }
    let thread = IoThread::spawn("test", PollPolicy::default()).unwrap();
    assert!(thread.add(Deaf).is_err());
    probe(&thread, false).handle.stop().unwrap();
}

/// Work that comes without any descriptor: it is seen by polling, and by the look before the sleep.
struct Shared {
    work: Arc<AtomicU32>,
    done: Sender<u32>,
}

impl Worker for Shared {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    fn ready(&mut self, _token: u32) {}
    fn poll(&mut self) -> bool {
        let work = self.work.swap(0, Ordering::AcqRel);
        if work > 0 {
            let _ = self.done.send(work);
        }
        work > 0
    }
    fn before_sleep(&mut self) -> bool {
        self.work.load(Ordering::Acquire) > 0
    }
}

#[test]
fn work_found_when_notifications_are_armed_is_done_before_the_sleep() {
    for policy in [PollPolicy::default(), PollPolicy::OFF] {
        let thread = IoThread::spawn("test", policy).unwrap();
        let (done, results) = channel();
        let work = Arc::new(AtomicU32::new(3));
        let handle = thread
            .add(Shared {
                work: Arc::clone(&work),
                done,
            })
            .unwrap();
        assert_eq!(results.recv().unwrap(), 3);
        handle.stop().unwrap();
    }
}

#[test]
fn a_worker_that_is_always_busy_does_not_starve_the_others() {
    struct Busy;
    impl Worker for Busy {
        fn sources(&self) -> Vec<Source> {
            Vec::new()
        }
        fn ready(&mut self, _token: u32) {}
        fn poll(&mut self) -> bool {
            true
        }
        fn before_sleep(&mut self) -> bool {
            true
        }
    }
    for policy in [PollPolicy::default(), PollPolicy::OFF] {
        let thread = IoThread::spawn("test", policy).unwrap();
        let busy = thread.add(Busy).unwrap();
        let probed = probe(&thread, false);
        probed.source.write(1).unwrap();
        assert_eq!(probed.next(), Call::Ready(7));
        probed.handle.stop().unwrap();
        busy.stop().unwrap();
    }
}

#[test]
fn queues_go_round_the_threads_and_a_named_thread_takes_them_all() {
    let spawn = |name| IoThread::spawn(name, PollPolicy::OFF).unwrap();
    let threads = IoThreads::new(vec![spawn("a"), spawn("b")]).unwrap();
    let names = |threads: &IoThreads| {
        (0..3)
            .map(|q| threads.for_queue(q).name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&threads), ["a", "b", "a"]);
    assert_eq!(names(&threads.named("b").unwrap()), ["b", "b", "b"]);
    assert!(threads.named("c").is_none());
    assert!(IoThreads::new(Vec::new()).is_none());
}

/// Counts what comes from `first` until something comes from there, then only what comes from `second`, and at last
/// whether `second` can be written.
struct Switching {
    first: EventFd,
    second: EventFd,
    stage: u32,
    changed: bool,
    seen: Sender<u32>,
}

impl Worker for Switching {
    fn sources(&self) -> Vec<Source> {
        match self.stage {
            0 => vec![Source::input(&self.first, 1)],
            1 => vec![Source::input(&self.second, 2)],
            _ => vec![Source::input(&self.second, 3).with(Interest::Output)],
        }
    }
    fn sources_changed(&self) -> bool {
        self.changed
    }
    fn sources_taken(&mut self) {
        self.changed = false;
    }
    fn edge_triggered(&self) -> bool {
        true
    }
    fn ready(&mut self, token: u32) {
        self.stage += 1;
        self.changed = true;
        self.seen.send(token).unwrap();
    }
}

#[test]
fn a_worker_watches_what_it_names_at_the_time() {
    let (seen, tokens) = channel();
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let (first, second) = (event(), event());
    let worker = Switching {
        first: first.try_clone().unwrap(),
        second: second.try_clone().unwrap(),
        stage: 0,
        changed: false,
        seen,
    };
    let thread = IoThread::spawn("switching", PollPolicy::OFF).unwrap();
    let handle = thread.add(worker).unwrap();
    second.write(1).unwrap();
    first.write(1).unwrap();
    let next = || tokens.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!((next(), next(), next()), (1, 2, 3));
    let worker = handle.stop().unwrap();
    assert!(!worker.changed);
}
