//! Pages in and out of the balloon, the target, and what is wrong about them.

use super::*;

#[test]
fn an_inflated_run_goes_back_to_the_host_with_one_call() {
    let mut driver = Driver::new();
    driver.touch();
    // As Linux lists pages: the one that was allocated last comes first.
    driver.pages(INFLATE, (FIRST..FIRST + 256).rev());
    let given_back = driver.control.given_back();
    assert_eq!((given_back.inflated.bytes, given_back.inflated.calls), (MIB, 1));
    assert_eq!((given_back.reported.bytes, driver.control.held()), (0, MIB));
    assert!(driver.is_kept(FIRST - 1 + 257) && !driver.is_kept(FIRST) && !driver.is_kept(FIRST + 255));
    assert_eq!(driver.broken(), []);
}

#[test]
fn resident_memory_falls_and_rises_again() {
    let mut driver = Driver::new();
    driver.touch();
    let before = driver.resident_kib();
    assert_eq!(before, 16 << 10);
    let high = (HIGH / PAGE) as u32;
    driver.pages(INFLATE, high..high + 2048);
    assert_eq!(driver.resident_kib(), before - (8 << 10));
    driver.pages(DEFLATE, high..high + 2048);
    assert_eq!(driver.resident_kib(), before - (8 << 10), "not before it is touched");
    driver.touch();
    assert_eq!((driver.resident_kib(), driver.control.held()), (before, 0));
}

#[test]
fn chains_that_come_together_are_merged() {
    let mut driver = Driver::new();
    driver.touch();
    // Even pages, then odd ones: no two of a chain meet.
    let even = driver.place_pages(BUFFERS, (0..512).map(|n| FIRST + 2 * n));
    let odd = driver.place_pages(BUFFERS + 4096, (0..512).map(|n| FIRST + 2 * n + 1));
    let state = driver.device.stop_queue(INFLATE).unwrap();
    driver.post(INFLATE, &[even]);
    driver.post(INFLATE, &[odd]);
    driver.start(INFLATE, state);
    driver.kick(INFLATE);
    driver.complete(INFLATE);
    driver.complete(INFLATE);
    let inflated = driver.control.given_back().inflated;
    assert_eq!((inflated.bytes, inflated.calls), (4 * MIB, 1));
}

#[test]
fn an_array_in_pieces_is_an_array() {
    let mut driver = Driver::new();
    driver.touch();
    driver.place_pages(BUFFERS, FIRST..FIRST + 4);
    let pieces: Vec<_> = (0..16).map(|byte| Buffer::readable(BUFFERS + byte, 1)).collect();
    driver.request(INFLATE, &pieces);
    assert_eq!(driver.control.held(), 4 * PAGE);
    assert!(!driver.is_kept(FIRST + 3) && driver.is_kept(FIRST + 4));
}

#[test]
fn runs_end_where_a_mapping_ends_and_go_on_in_the_next() {
    let mut driver = Driver::new();
    driver.touch();
    let seam = (16 * MIB / PAGE) as u32;
    driver.pages(INFLATE, seam - 8..seam + 8);
    let inflated = driver.control.given_back().inflated;
    assert_eq!(inflated.bytes, 16 * PAGE);
    for page in [seam - 8, seam - 1, seam, seam + 7] {
        assert!(!driver.is_kept(page), "{page:#x}");
    }
}

#[test]
fn pages_outside_ram_are_reported_and_the_others_taken() {
    let mut driver = Driver::new();
    driver.touch();
    let hole = (32 * MIB / PAGE) as u32;
    let high_end = ((HIGH + 16 * MIB) / PAGE) as u32;
    let pages = [hole, FIRST, 0xf_ffff, high_end, u32::MAX, high_end - 1, hole - 1];
    driver.pages(INFLATE, pages);
    assert_eq!(driver.control.given_back().inflated.bytes, 3 * PAGE);
    assert_eq!(driver.broken(), [("V-BALLOON-01", 4)]);
    driver.pages(DEFLATE, pages);
    assert_eq!(driver.broken(), [("V-BALLOON-01", 8)]);
}

#[test]
fn a_page_that_is_in_the_balloon_is_not_given_back_again() {
    let mut driver = Driver::new();
    driver.touch();
    driver.pages(INFLATE, [FIRST, FIRST, FIRST + 1]);
    assert_eq!(driver.broken(), [("V-BALLOON-02", 1)]);
    driver.touch();
    driver.pages(INFLATE, FIRST..FIRST + 4);
    assert_eq!(driver.broken(), [("V-BALLOON-02", 3)]);
    assert!(driver.is_kept(FIRST) && driver.is_kept(FIRST + 1));
    assert!(!driver.is_kept(FIRST + 2) && !driver.is_kept(FIRST + 3));
    driver.pages(DEFLATE, [FIRST]);
    driver.pages(INFLATE, [FIRST]);
    assert!(!driver.is_kept(FIRST));
    driver.pages(DEFLATE, [FIRST, FIRST, FIRST + 100]);
    assert_eq!(driver.broken(), [("V-BALLOON-02", 3), ("V-BALLOON-03", 2)]);
}

#[test]
fn odd_arrays_are_reported_and_read_as_far_as_they_go() {
    let mut driver = Driver::new();
    driver.touch();
    driver.place_pages(BUFFERS, FIRST..FIRST + 2);
    driver.request(INFLATE, &[Buffer::readable(BUFFERS, 7)]);
    assert_eq!(
        (driver.control.held(), driver.broken()),
        (PAGE, vec![("V-BALLOON-04", 1)])
    );
    driver.request(INFLATE, &[Buffer::readable(BUFFERS, 3)]);
    driver.request(INFLATE, &[Buffer::writable(BUFFERS, 4096)]);
    assert_eq!(
        (driver.control.held(), driver.broken()),
        (PAGE, vec![("V-BALLOON-04", 3)])
    );
    // The same memory over and over, as an array of 2^28 numbers.
    let huge = Buffer::readable(BUFFERS, 8 << 20);
    driver.request(INFLATE, &vec![huge; 127]);
    assert_eq!(driver.control.broken_rules().get("V-BALLOON-05"), Some(&1));
}

#[test]
fn pages_of_a_ring_may_be_in_the_balloon() {
    let mut driver = Driver::new();
    // The driver shot itself in the foot; the device is none the worse.
    driver.touch();
    let ring = (driver.rings[0].config().descriptors / PAGE) as u32;
    let buffer = driver.place_pages(BUFFERS, ring..ring + 16);
    driver.post(INFLATE, &[buffer]);
    driver.kick(INFLATE);
    wait_for("the pages", || (driver.control.held() == 16 * PAGE).then_some(()));
    driver.pages(DEFLATE, [ring]);
}

#[test]
fn the_target_is_told_and_the_guests_answer_is_heard() {
    let mut driver = Driver::new();
    let changed = driver.control.subscribe().unwrap();
    assert_eq!(
        (driver.control.ram(), driver.control.target(), driver.control.actual()),
        (ALL_RAM, ALL_RAM, ALL_RAM)
    );
    driver.control.set_target(32 * MIB).unwrap();
    assert_eq!(driver.vectors.recv_timeout(Duration::from_secs(30)), Ok(0));
    assert_eq!(driver.config().num_pages, (16 * MIB / PAGE) as u32);
    assert_eq!((driver.control.target(), driver.control.actual()), (32 * MIB, ALL_RAM));
    assert!(changed.read().is_err(), "nothing has happened yet");
    driver.device.write_config(4, &2048u32.to_le_bytes());
    assert_eq!((driver.control.actual(), driver.config().actual), (40 * MIB, 2048));
    assert_eq!(changed.read().unwrap(), 1);
    driver.device.write_config(4, &2048u32.to_le_bytes());
    assert!(changed.read().is_err(), "it is the same");
    driver.control.set_target(u64::MAX).unwrap();
    assert_eq!(driver.config().num_pages, 0);
    assert!(driver.control.set_target(0).is_err());
}

#[test]
fn what_the_driver_claims_is_bounded_by_ram() {
    let mut driver = Driver::new();
    driver.device.write_config(4, &u32::MAX.to_le_bytes());
    assert_eq!(
        (driver.control.actual(), driver.broken()),
        (0, vec![("V-BALLOON-10", 1)])
    );
    // All but its own fields are read-only.
    driver.device.write_config(0, &[0xff; 4]);
    driver.device.write_config(8, &[0xff; 4]);
    driver.device.write_config(14, &[0xff; 4]);
    let config = driver.config();
    assert_eq!((config.num_pages, config.hint_command, config.poison), (0, 0, 0));
}

#[test]
fn after_a_reset_the_guest_has_all_memory_and_the_same_target() {
    let mut driver = Driver::new();
    driver.touch();
    driver.control.set_target(40 * MIB).unwrap();
    driver.pages(INFLATE, FIRST..FIRST + 256);
    driver.device.write_config(4, &256u32.to_le_bytes());
    for queue in 0..5 {
        driver.device.stop_queue(queue);
    }
    driver.device.reset();
    assert_eq!((driver.control.actual(), driver.control.held()), (ALL_RAM, 0));
    assert_eq!(driver.control.target(), 40 * MIB);
    driver.touch();
    driver.start(
        INFLATE,
        QueueState {
            next_avail: 1,
            next_used: 1,
            broken: false,
        },
    );
    driver.pages(INFLATE, FIRST..FIRST + 256);
    assert!(!driver.is_kept(FIRST));
    assert_eq!(driver.broken(), []);
}

#[test]
fn a_target_from_the_start_is_there_before_the_driver() {
    let config = BalloonConfig {
        target: Some(16 * MIB),
        ..BalloonConfig::default()
    };
    let driver = Driver::with(&config, !0);
    assert_eq!(driver.config().num_pages, (32 * MIB / PAGE) as u32);
}
