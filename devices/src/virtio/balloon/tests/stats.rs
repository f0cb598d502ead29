//! Statistics: given, kept, asked for again.

use super::super::Stat;
use super::*;

fn polled(seconds: u32) -> Driver {
    let config = BalloonConfig {
        polling: seconds,
        ..BalloonConfig::default()
    };
    Driver::with(&config, !0)
}

/// Gives a buffer with the free memory of the guest.
fn give(driver: &mut Driver, at: u64, free: u64) {
    let entry = [&4u16.to_le_bytes()[..], &free.to_le_bytes()].concat();
    driver.place(at, &entry);
    driver.post(STATS, &[Buffer::readable(at, entry.len() as u32)]);
    driver.kick(STATS);
}

fn wait_for_free(driver: &Driver, free: u64) {
    wait_for("statistics", || {
        (driver.control.stats().get(Stat::FreeMemory) == Some(free)).then_some(())
    });
}

#[test]
fn the_buffer_is_kept_until_statistics_are_wanted() {
    let mut driver = polled(0);
    give(&mut driver, BUFFERS, 7);
    wait_for_free(&driver, 7);
    assert_eq!(driver.rings[2].next_used(), None);
    assert!(driver.control.stats().last_update.is_some());
    driver.control.set_polling_interval(Duration::from_millis(1)).unwrap();
    for free in 8..20 {
        driver.complete(STATS);
        give(&mut driver, BUFFERS, free);
        wait_for_free(&driver, free);
    }
    assert_eq!(driver.control.polling_interval(), Duration::from_millis(1));
    assert_eq!(driver.broken(), []);
}

#[test]
fn the_guest_is_asked_from_the_start_if_the_user_says_so() {
    let mut driver = polled(1);
    give(&mut driver, BUFFERS, 1);
    driver.complete(STATS);
    give(&mut driver, BUFFERS, 2);
    wait_for_free(&driver, 2);
}

#[test]
fn a_timer_without_a_buffer_waits_for_the_next() {
    let mut driver = polled(0);
    driver.control.set_polling_interval(Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    give(&mut driver, BUFFERS, 3);
    driver.complete(STATS);
    wait_for_free(&driver, 3);
}

#[test]
fn a_second_buffer_sends_the_first_back() {
    let mut driver = polled(0);
    give(&mut driver, BUFFERS, 1);
    wait_for_free(&driver, 1);
    give(&mut driver, BUFFERS + 64, 2);
    assert_eq!(driver.complete(STATS).head, 0);
    wait_for_free(&driver, 2);
    assert_eq!(driver.broken(), [("V-BALLOON-09", 1)]);
}

#[test]
fn a_buffer_that_is_kept_outlives_a_pause() {
    let mut driver = polled(0);
    give(&mut driver, BUFFERS, 1);
    wait_for_free(&driver, 1);
    let state = driver.device.stop_queue(STATS).unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    driver.start(STATS, state);
    driver.kick(STATS);
    driver.control.set_polling_interval(Duration::from_secs(1)).unwrap();
    assert_eq!(driver.complete(STATS).len, 0);
}

#[test]
fn odd_statistics_are_reported_and_read_as_far_as_they_go() {
    let mut driver = polled(0);
    driver.place(BUFFERS, &[4, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1]);
    driver.post(STATS, &[Buffer::readable(BUFFERS, 13)]);
    driver.kick(STATS);
    wait_for_free(&driver, 9);
    assert_eq!(driver.broken(), [("V-BALLOON-08", 1)]);
    driver.post(STATS, &[Buffer::readable(BUFFERS, 8 << 20)]);
    driver.kick(STATS);
    driver.complete(STATS);
}
