//! Who tells whom, and when: interrupts and kicks, with flags and with event indices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::super::testing::{Buffer, DriverRing};
use super::super::{QueueState, RingFeatures, Virtq};
use super::{EVENT_IDX, FLAGS, Pair, memory};

const BUFFER: [Buffer; 1] = [Buffer {
    address: 0x2_0000,
    len: 8,
    writable: true,
}];

fn pair(features: RingFeatures) -> Pair {
    Pair::on(DriverRing::modern(memory(), 0x1000, 8), features)
}

/// Serves `count` chains as one batch. Returns whether the driver is interrupted.
fn serve(pair: &mut Pair, count: usize) -> bool {
    for _ in 0..count {
        pair.driver.post(&BUFFER).unwrap();
    }
    for _ in 0..count {
        let chain = pair.pop();
        pair.queue.push(chain, 8);
    }
    let interrupt = pair.queue.publish();
    assert_eq!(pair.driver.drain_used().len(), count);
    interrupt
}

#[test]
fn a_batch_becomes_visible_at_once() {
    let mut pair = pair(FLAGS);
    for _ in 0..4 {
        pair.driver.post(&BUFFER).unwrap();
    }
    while let Some(chain) = pair.queue.pop().unwrap() {
        pair.queue.push(chain, 8);
        assert_eq!(pair.driver.used_index(), 0);
    }
    assert!(pair.queue.publish());
    assert_eq!(pair.driver.used_index(), 4);
    assert!(!pair.queue.publish());
}

#[test]
fn verify_2_7_7_2_no_interrupt_flag_suppresses_interrupts() {
    let mut pair = pair(FLAGS);
    assert!(serve(&mut pair, 1));
    pair.driver.set_avail_flags(1);
    assert!(!serve(&mut pair, 1));
    // Only bit 0 has a meaning.
    pair.driver.set_avail_flags(0xfffe);
    assert!(serve(&mut pair, 1));
    pair.driver.set_avail_flags(0xffff);
    assert!(!serve(&mut pair, 1));
}

#[test]
fn verify_2_7_7_2_with_event_idx_the_flag_is_ignored() {
    let mut pair = pair(EVENT_IDX);
    pair.driver.set_avail_flags(1);
    assert!(serve(&mut pair, 1));
    pair.driver.set_used_event(1);
    assert!(serve(&mut pair, 1));
}

#[test]
fn verify_2_7_7_2_interrupt_when_used_event_is_passed() {
    let mut pair = pair(EVENT_IDX);
    pair.driver.set_used_event(0);
    assert!(serve(&mut pair, 1));
    pair.driver.set_used_event(2);
    assert!(!serve(&mut pair, 1)); // 1 -> 2
    assert!(serve(&mut pair, 1)); // 2 -> 3 passes 2
    pair.driver.set_used_event(5);
    assert!(serve(&mut pair, 4)); // 3 -> 7 passes 5
    assert!(!serve(&mut pair, 4)); // 5 is behind
}

#[test]
fn verify_2_7_7_2_used_event_far_away_is_not_passed() {
    let mut pair = pair(EVENT_IDX);
    serve(&mut pair, 1);
    for event in [0x8000, 0xffff, 0, 2] {
        pair.driver.set_used_event(event);
        assert!(!serve(&mut pair, 1), "used_event {event:#x}");
        // Stay at index 1 modulo the checks: a fresh pair for each would do the same.
        pair = self::pair(EVENT_IDX);
        serve(&mut pair, 1);
    }
}

#[test]
fn the_first_publication_after_a_start_always_interrupts() {
    let mut pair = pair(EVENT_IDX);
    pair.driver.set_used_event(0x4000);
    assert!(serve(&mut pair, 1));
    assert!(!serve(&mut pair, 1));
    let (config, state) = (pair.driver.config().clone(), pair.queue.state());
    let memory = Arc::clone(pair.driver.memory());
    pair.queue = Virtq::new(memory, &config, EVENT_IDX, state).unwrap();
    assert!(serve(&mut pair, 1));
    assert!(!serve(&mut pair, 1));
}

#[test]
fn notify_on_empty_interrupts_against_the_flag_when_all_is_done() {
    let features = RingFeatures {
        notify_on_empty: true,
        ..FLAGS
    };
    let mut pair = pair(features);
    pair.driver.set_avail_flags(1);
    assert!(serve(&mut pair, 2));

    pair.driver.post(&BUFFER).unwrap();
    pair.driver.post(&BUFFER).unwrap();
    let (first, second) = (pair.pop(), pair.pop());
    pair.queue.push(first, 8);
    assert!(!pair.queue.publish(), "one chain is still in flight");
    pair.queue.push(second, 8);
    pair.driver.post(&BUFFER).unwrap();
    assert!(!pair.queue.publish(), "another chain is available");
}

#[test]
fn verify_2_7_10_2_kicks_are_suppressed_by_the_flag_without_event_idx() {
    let mut pair = pair(FLAGS);
    assert!(pair.driver.must_kick(false, 0));
    pair.queue.disable_notify();
    assert!(!pair.driver.must_kick(false, 0));
    assert!(!pair.queue.enable_notify());
    assert!(pair.driver.must_kick(false, 0));
}

#[test]
fn verify_2_7_10_2_kicks_are_suppressed_by_avail_event_with_event_idx() {
    let mut pair = pair(EVENT_IDX);
    serve(&mut pair, 3);
    pair.queue.disable_notify();
    assert_eq!(pair.driver.used_flags(), 0);
    pair.driver.post(&BUFFER).unwrap();
    assert!(!pair.driver.must_kick(true, 3));
    let chain = pair.pop();
    pair.queue.push(chain, 0);
    assert!(!pair.queue.enable_notify());
    assert_eq!(pair.driver.avail_event(), 4);
    pair.driver.post(&BUFFER).unwrap();
    assert!(pair.driver.must_kick(true, 4));
}

#[test]
fn enabling_kicks_tells_of_chains_that_came_meanwhile() {
    for features in [FLAGS, EVENT_IDX] {
        let mut pair = pair(features);
        pair.queue.disable_notify();
        assert!(pair.queue.pop().unwrap().is_none());
        pair.driver.post(&BUFFER).unwrap();
        assert!(pair.queue.enable_notify());
        assert!(pair.queue.has_available());
    }
}

/// Two threads that sleep whenever the rules allow it. A wake-up that is lost leaves both asleep,
/// which the long timeout turns into a failure.
#[test]
fn no_wake_up_is_lost_between_two_sleepers() {
    const CHAINS: usize = 20_000;
    const LOST: Duration = Duration::from_secs(60);

    for features in [FLAGS, EVENT_IDX] {
        let Pair { mut driver, mut queue } = pair(features);
        let (kick, kicked) = mpsc::channel::<()>();
        let (interrupt, interrupted) = mpsc::channel::<()>();
        let device = thread::spawn(move || {
            let mut served = 0;
            while served < CHAINS {
                queue.disable_notify();
                while let Some(chain) = queue.pop().unwrap() {
                    queue.push(chain, 8);
                    served += 1;
                }
                if queue.publish() {
                    interrupt.send(()).unwrap();
                }
                if !queue.enable_notify() && served < CHAINS {
                    kicked.recv_timeout(LOST).expect("a kick is lost");
                }
            }
            queue.stop()
        });

        let (mut posted, mut done) = (0, 0);
        while done < CHAINS {
            let before = driver.avail_index();
            while posted < CHAINS && driver.post(&BUFFER).is_some() {
                posted += 1;
            }
            if driver.avail_index() != before && driver.must_kick(features.event_idx, before) {
                // The device may have finished and gone when the last chains were seen without a
                // kick.
                let _ = kick.send(());
            }
            done += driver.drain_used().len();
            if done == posted && done < CHAINS {
                continue;
            }
            if done < CHAINS && !wants_to_run(&mut driver, done) {
                interrupted.recv_timeout(LOST).expect("an interrupt is lost");
            }
        }
        let indices = CHAINS as u16;
        let state = QueueState {
            next_avail: indices,
            next_used: indices,
            broken: false,
        };
        assert_eq!(device.join().unwrap(), state);
    }
}

/// Asks for an interrupt at the next used entry; whether one has come in meanwhile.
fn wants_to_run(driver: &mut DriverRing, done: usize) -> bool {
    driver.set_used_event(done as u16);
    driver.set_avail_flags(0);
    fence(Ordering::SeqCst);
    driver.used_index() != done as u16
}

/// Where two threads meet, spinning, so that what they do next happens at nearly the same time.
struct Meeting(AtomicU32);

impl Meeting {
    /// Comes to the meeting of this number; there is one for each even number from 2 on.
    fn meet(&self, number: u32) {
        self.0.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.0.load(Ordering::Acquire) < number {
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(1_000) {
                thread::yield_now();
            }
        }
    }
}

/// A head start for one side, another one each time, so that the two cross in every way there is.
fn linger(round: u32) {
    for _ in 0..round % 97 {
        std::hint::black_box(());
    }
}

const ROUNDS: u32 = 30_000;

#[test]
fn verify_2_7_7_2_publication_and_used_event_never_miss_each_other() {
    let Pair { mut driver, mut queue } = pair(EVENT_IDX);
    let meeting = Arc::new(Meeting(AtomicU32::new(0)));
    let with_driver = Arc::clone(&meeting);
    let (tell, told) = mpsc::channel();
    let device = thread::spawn(move || {
        for round in 0..ROUNDS {
            with_driver.meet(4 * round + 2);
            let chain = queue.pop().unwrap().unwrap();
            queue.push(chain, 8);
            with_driver.meet(4 * round + 4);
            let interrupt = queue.publish();
            tell.send(interrupt).unwrap();
        }
    });
    for round in 0..ROUNDS {
        driver.post(&BUFFER).unwrap();
        meeting.meet(4 * round + 2);
        meeting.meet(4 * round + 4);
        linger(round);
        driver.set_used_event(round as u16);
        fence(Ordering::SeqCst);
        let seen = driver.used_index() != round as u16;
        let interrupted = told.recv().unwrap();
        assert!(seen || interrupted, "round {round}: both would sleep");
        driver.next_used().unwrap();
    }
    device.join().unwrap();
}

#[test]
fn verify_2_7_10_2_enabled_kicks_and_avail_index_never_miss_each_other() {
    for features in [FLAGS, EVENT_IDX] {
        let Pair { mut driver, mut queue } = pair(features);
        let meeting = Arc::new(Meeting(AtomicU32::new(0)));
        let with_driver = Arc::clone(&meeting);
        let (tell, told) = mpsc::channel();
        let device = thread::spawn(move || {
            for round in 0..ROUNDS {
                queue.disable_notify();
                with_driver.meet(4 * round + 2);
                tell.send(queue.enable_notify()).unwrap();
                with_driver.meet(4 * round + 4);
                let chain = queue.pop().unwrap().unwrap();
                queue.push(chain, 8);
                let _ = queue.publish();
            }
        });
        for round in 0..ROUNDS {
            meeting.meet(4 * round + 2);
            let before = driver.avail_index();
            linger(round);
            driver.post(&BUFFER).unwrap();
            let kicks = driver.must_kick(features.event_idx, before);
            let seen = told.recv().unwrap();
            assert!(seen || kicks, "round {round}: both would sleep");
            meeting.meet(4 * round + 4);
            while driver.next_used().is_none() {
                std::hint::spin_loop();
            }
        }
        device.join().unwrap();
    }
}
