//! Starting, stopping, waiting, failing.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex};

use crate::virtio::block::request::Op;
use crate::virtio::block::transfer::Transfer;

use super::*;

/// A disk that finishes a transfer when the test lets it, and fails where the test wants it to.
#[derive(Default)]
struct Gated {
    state: Mutex<Gates>,
    changed: Condvar,
}

#[derive(Default)]
struct Gates {
    /// Sectors whose requests may finish; all of them when it is `None`.
    open: Option<Vec<u64>>,
    waiting: Vec<u64>,
    /// Requests for these sectors fail, and all that are carried out together with them.
    bad: Vec<u64>,
    panic: bool,
    data: BTreeMap<u64, Vec<u8>>,
}

impl Gated {
    fn closed() -> Arc<Self> {
        let gated = Self::default();
        gated.state.lock().unwrap().open = Some(Vec::new());
        Arc::new(gated)
    }

    fn change(&self, change: impl FnOnce(&mut Gates)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn open(&self, sector: u64) {
        self.change(|gates| gates.open.get_or_insert_default().push(sector));
    }

    fn wait_for(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |gates| gates.waiting.len() < count)
                .unwrap(),
        );
    }
}

impl Image for Gated {
    fn bytes(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }

    fn execute(&self, transfer: &mut Transfer) {
        let sector = transfer.range().offset / 512;
        let mut state = self.state.lock().unwrap();
        state.waiting.push(sector);
        self.changed.notify_all();
        let closed = |gates: &mut Gates| gates.open.as_ref().is_some_and(|open| !open.contains(&sector));
        let mut state = self.changed.wait_while(state, closed).unwrap();
        if state.panic {
            drop(state);
            panic!("as the test asked");
        }
        let bad = transfer
            .requests()
            .any(|(range, _)| state.bad.contains(&(range.offset / 512)));
        if transfer.op() == Op::Write && !bad {
            for (range, chain) in transfer.requests() {
                let mut data = vec![0; range.len as usize];
                let mut reader = chain.reader();
                reader.skip(16).unwrap();
                reader.read_exact(&mut data).unwrap();
                state.data.insert(range.offset / 512, data);
            }
        }
        let error = || io::Error::from_raw_os_error(libc::EIO);
        transfer.finish(if bad { Err(error()) } else { Ok(()) });
    }

    fn resize(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn gated(image: &Arc<Gated>) -> Driver {
    Driver::on_image(Arc::clone(image) as Arc<dyn Image>, &raw(Path::new("gated")))
}

#[test]
fn requests_come_back_in_the_order_in_which_they_are_finished() {
    let image = Gated::closed();
    let mut driver = gated(&image);
    let posted: Vec<Posted> = [10, 20, 30]
        .iter()
        .map(|&sector| driver.post(0, IN, sector, &[], 512))
        .collect();
    driver.kick(0);
    image.wait_for(3);
    for (sector, index) in [(30, 2), (10, 0), (20, 1)] {
        image.open(sector);
        assert_eq!(driver.answer(posted[index]).status, OK);
        assert!(driver.answers.is_empty());
    }
}

#[test]
fn stopping_waits_for_what_is_in_flight_and_nothing_comes_later() {
    let image = Gated::closed();
    let mut driver = gated(&image);
    let posted: Vec<Posted> = [10, 20]
        .iter()
        .map(|&sector| driver.post(0, OUT, sector, &[7; 512], 0))
        .collect();
    driver.kick(0);
    image.wait_for(2);
    let state = std::thread::scope(|scope| {
        let device = &mut driver.device;
        let stopping = scope.spawn(move || device.stop_queue(0));
        image.open(20);
        image.open(10);
        stopping.join().unwrap().unwrap()
    });
    assert_eq!(
        state,
        QueueState {
            next_avail: 2,
            next_used: 2,
            broken: false
        }
    );
    assert_eq!(driver.rings[0].used_index(), 2);
    for posted in posted {
        assert_eq!(driver.answer(posted).status, OK);
    }
    // Requests of a stopped queue stay where they are.
    let later = driver.post(0, OUT, 30, &[7; 512], 0);
    driver.kick(0);
    assert!(driver.device.stop_queue(0).is_none());
    assert_eq!(driver.rings[0].used_index(), 2);
    // And are served when it goes on.
    image.open(30);
    driver.start(0, state);
    assert_eq!(driver.answer(later).status, OK);
}

#[test]
fn stopping_drains_io_uring_too() {
    let file = image(8 << 20);
    let mut driver = Driver::open(&with_engine(&file, AioMode::IoUring));
    let mut state = QueueState::default();
    for round in 0..20 {
        let posted: Vec<Posted> = (0..16)
            .map(|n| driver.post(0, OUT, 3 * n, &pattern(512, round), 0))
            .collect();
        driver.kick(0);
        state = driver.device.stop_queue(0).unwrap();
        // Whatever was taken is answered, and no answer is missing.
        assert_eq!(state.next_avail, state.next_used);
        assert_eq!(driver.rings[0].used_index(), state.next_used);
        driver.start(0, state);
        for posted in posted {
            assert_eq!(driver.answer(posted).status, OK);
        }
    }
    assert!(!state.broken);
}

#[test]
fn the_device_starts_again_after_a_reset() {
    let file = image(1 << 20);
    let mut driver = Driver::open(&raw(file.as_path()));
    for _ in 0..10 {
        driver.write(3, &[9; 512]);
        driver.device.stop_queue(0).unwrap();
        driver.device.reset();
        driver.interrupts.set_live(true);
        driver.rings[0] = DriverRing::modern(Arc::clone(&driver.memory), 0x1_0000, QUEUE_SIZE);
        driver.device.activate(Negotiated { features: FEATURES });
        driver.start(0, QueueState::default());
        assert_eq!(driver.read(3, 512), [9; 512]);
    }
}

#[test]
fn only_the_request_to_blame_fails_in_a_merged_transfer() {
    let image = Arc::new(Gated::default());
    image.change(|gates| gates.bad.push(12));
    let mut driver = gated(&image);
    let (sender, failures) = channel();
    let tell = move |failure: &DiskFailure| sender.send((failure.is_read, failure.error.raw_os_error())).unwrap();
    driver.control.disk().on_failure(tell);
    // All of them are there before the queue looks.
    let state = driver.device.stop_queue(0).unwrap();
    let posted: Vec<Posted> = (10..15)
        .map(|sector| driver.post(0, OUT, sector, &[7; 512], 0))
        .collect();
    driver.start(0, state);
    let statuses: Vec<u8> = posted.into_iter().map(|posted| driver.answer(posted).status).collect();
    assert_eq!(statuses, [OK, OK, IOERR, OK, OK]);
    // Once, for the one that failed alone.
    assert_eq!(failures.try_iter().collect::<Vec<_>>(), [(false, Some(libc::EIO))]);
    let state = image.state.lock().unwrap();
    assert_eq!(state.data.keys().copied().collect::<Vec<_>>(), [10, 11, 13, 14]);
    // It was one transfer at first.
    assert_eq!(state.waiting.len(), 6);
}

#[test]
fn a_backend_that_panics_is_an_error_of_the_disk() {
    let image = Arc::new(Gated::default());
    let mut driver = gated(&image);
    image.change(|gates| gates.panic = true);
    assert_eq!(driver.ask(IN, 0, &[], 512).status, IOERR);
    image.change(|gates| gates.panic = false);
    assert_eq!(driver.ask(IN, 0, &[], 512).status, OK);
}

#[test]
fn a_malformed_chain_comes_back_empty_and_a_malformed_ring_stops_the_queue() {
    let file = image(1 << 20);
    let mut driver = Driver::open(&raw(file.as_path()));
    let answer = driver.ask_raw(&[Buffer::readable(MEMORY as u64, 16), Buffer::writable(BUFFERS, 1)]);
    assert_eq!(answer.len, 0);
    assert_eq!(driver.read(0, 512), [1; 512]);
    assert!(!driver.interrupts.needs_reset());

    let index = driver.rings[0].avail_index();
    driver.rings[0].set_avail_index(index.wrapping_add(QUEUE_SIZE + 1));
    driver.kick(0);
    // The configuration interrupt says that the device needs a reset.
    while driver.wait_interrupt() != 0 {}
    assert!(driver.interrupts.needs_reset());
    assert!(driver.device.stop_queue(0).unwrap().broken);
}

#[test]
fn many_requests_are_in_flight_on_several_queues() {
    for aio in ENGINES {
        let file = image(4 << 20);
        let mut driver = Driver::open(&BlockConfig {
            queues: 4,
            ..with_engine(&file, aio)
        });
        assert_eq!(driver.device.queue_sizes(), [QUEUE_SIZE; 4]);
        assert_eq!(driver.device.features() & 1 << 12, 1 << 12);
        for round in 0..20 {
            let mut posted = Vec::new();
            for queue in 0..4 {
                for n in 0..16 {
                    let sector = 16 * (16 * queue as u64 + n);
                    posted.push((
                        sector,
                        driver.post(queue, OUT, sector, &pattern(4096, sector + round), 0),
                    ));
                }
                driver.kick(queue);
            }
            for (_, posted) in &posted {
                assert_eq!(driver.answer(*posted).status, OK);
            }
            for (sector, _) in posted.iter().step_by(7) {
                assert_eq!(driver.read(*sector, 4096), pattern(4096, sector + round));
            }
        }
    }
}

#[test]
fn polling_can_be_off() {
    let file = image(1 << 20);
    let config = raw(file.as_path());
    let mut driver = Driver::open(&config);
    driver.device.stop_queue(0).unwrap();
    let threads = IoThreads::one(PollPolicy::OFF).unwrap();
    driver.device = Block::on(Arc::clone(driver.control.disk()), &config, threads);
    driver.start(0, QueueState::default());
    for sector in 0..20 {
        assert_eq!(driver.read(sector, 512), [sector as u8 + 1; 512]);
    }
}

#[test]
fn a_new_size_reaches_the_driver() {
    let file = image(1 << 20);
    let mut driver = Driver::open(&raw(file.as_path()));
    let capacity = |driver: &Driver| {
        let mut bytes = [0; 8];
        driver.device.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(capacity(&driver), 2048);
    assert_eq!(driver.ask(IN, 2048, &[], 512).status, IOERR);

    let generation = driver.interrupts.generation();
    driver.control.resize(2 << 20).unwrap();
    while driver.wait_interrupt() != 0 {}
    assert_ne!(driver.interrupts.generation(), generation);
    assert_eq!(capacity(&driver), 4096);
    assert_eq!(driver.read(2048, 512), [0; 512]);

    driver.control.resize(512 << 10).unwrap();
    while driver.wait_interrupt() != 0 {}
    assert_eq!(capacity(&driver), 1024);
    assert_eq!(driver.ask(IN, 1024, &[], 512).status, IOERR);

    // Somebody else made the file larger.
    assert!(!driver.control.refresh().unwrap());
    std::fs::OpenOptions::new()
        .write(true)
        .open(file.as_path())
        .unwrap()
        .set_len(3 << 20)
        .unwrap();
    assert!(driver.control.refresh().unwrap());
    assert_eq!(capacity(&driver), 6144);
}

#[test]
fn the_driver_switches_the_write_cache() {
    let file = image(1 << 20);
    let mut driver = Driver::open(&raw(file.as_path()));
    let wce = |driver: &Driver| {
        let mut byte = [0];
        driver.device.read_config(32, &mut byte);
        byte[0]
    };
    assert_eq!(wce(&driver), 1);
    driver.device.write_config(32, &[0]);
    assert_eq!(wce(&driver), 0);
    driver.write(0, &[7; 512]);
    assert_eq!(driver.read(0, 512), [7; 512]);
    // Only that byte, even in a wider write; everything else is read-only.
    driver.device.write_config(28, &[0xff; 8]);
    assert_eq!(wce(&driver), 1);
    driver.device.write_config(0, &[0xff; 8]);
    driver.device.write_config(u32::MAX, &[0]);
    assert_eq!((wce(&driver), driver.control.disk().sectors()), (1, 2048));
    // Who can neither switch nor flush gets none; a reset brings it back.
    driver.device.write_config(32, &[0]);
    driver.device.activate(Negotiated { features: 1 << 9 });
    assert_eq!(wce(&driver), 1);
    driver.device.activate(Negotiated { features: 0 });
    assert_eq!(wce(&driver), 0);
    driver.device.reset();
    assert_eq!(wce(&driver), 1);
}
