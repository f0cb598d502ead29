//! Reports of free pages, and hints at them.

use super::*;

fn page(page: u32) -> u64 {
    u64::from(page) * PAGE
}

#[test]
fn reported_pages_go_back_to_the_host() {
    let mut driver = Driver::new();
    driver.touch();
    let buffers = [
        Buffer::writable(HIGH, 4 << 20),
        Buffer::writable(page(FIRST), 2 << 20),
        Buffer::writable(HIGH + 4 * MIB, 4 << 20),
    ];
    driver.request(REPORT, &buffers);
    let reported = driver.control.given_back().reported;
    assert_eq!(reported.bytes, 10 * MIB);
    assert_eq!(driver.resident_kib(), 8 << 10);
    assert!(!driver.is_kept(FIRST) && !driver.is_kept(FIRST + 511) && driver.is_kept(FIRST + 512));
    assert_eq!((driver.control.held(), driver.broken()), (0, vec![]));
}

#[test]
fn reports_that_are_no_whole_pages_or_no_ram_are_left_alone() {
    let mut driver = Driver::new();
    driver.touch();
    driver.request(
        REPORT,
        &[
            Buffer::writable(page(FIRST) + 1, 4096),
            Buffer::writable(page(FIRST) + 8192, 4095),
            Buffer::writable(page(FIRST + 8), 4096),
        ],
    );
    assert!(driver.is_kept(FIRST) && driver.is_kept(FIRST + 1) && driver.is_kept(FIRST + 2));
    assert!(!driver.is_kept(FIRST + 8));
    assert_eq!(driver.broken(), [("V-BALLOON-06", 2)]);
    // Into the hole: the chain as a whole is refused.
    driver.request(
        REPORT,
        &[
            Buffer::writable(page(FIRST + 9), 4096),
            Buffer::writable(32 * MIB - 4096, 8192),
        ],
    );
    assert!(driver.is_kept(FIRST + 9) && driver.is_kept((32 * MIB / PAGE) as u32 - 1));
    assert_eq!(driver.control.broken_rules().get("V-RING-10"), Some(&1));
}

#[test]
fn a_report_over_two_mappings_is_given_back_in_both() {
    let mut driver = Driver::new();
    driver.touch();
    driver.request(REPORT, &[Buffer::writable(15 * MIB, 2 << 20)]);
    let reported = driver.control.given_back().reported;
    assert_eq!((reported.bytes, driver.broken()), (2 * MIB, vec![]));
    assert!(!driver.is_kept((15 * MIB / PAGE) as u32) && !driver.is_kept((17 * MIB / PAGE) as u32 - 1));
}

#[test]
fn readable_buffers_report_nothing() {
    let mut driver = Driver::new();
    driver.touch();
    driver.request(REPORT, &[Buffer::readable(page(FIRST), 4096)]);
    assert!(driver.is_kept(FIRST));
}

#[test]
fn poisoned_pages_keep_their_poison() {
    for (poison, kept) in [(0u32, false), (0xa5a5_a5a5, true)] {
        let mut driver = Driver::with(&BalloonConfig::default(), !0);
        driver.touch();
        driver.device.write_config(12, &poison.to_le_bytes());
        driver.request(REPORT, &[Buffer::writable(page(FIRST), 4096)]);
        assert_eq!(driver.is_kept(FIRST), kept, "{poison:#x}");
    }
    // Poison of a driver that did not agree on it means nothing.
    let mut driver = Driver::new();
    driver.touch();
    driver.device.write_config(12, &1u32.to_le_bytes());
    driver.request(REPORT, &[Buffer::writable(page(FIRST), 4096)]);
    assert!(!driver.is_kept(FIRST));
}

fn command(driver: &mut Driver, command: u32) {
    driver.place(BUFFERS, &command.to_le_bytes());
    driver.request(HINT, &[Buffer::readable(BUFFERS, 4)]);
}

#[test]
fn a_round_of_hints_is_counted_and_ends() {
    let mut driver = Driver::new();
    driver.touch();
    assert_eq!(driver.config().hint_command, 0);
    driver.control.start_hints();
    assert_eq!(driver.vectors.recv_timeout(Duration::from_secs(30)), Ok(0));
    let round = driver.config().hint_command;
    assert!(round > 1 && driver.control.is_hinting());
    let pages = [Buffer::writable(HIGH, 4 << 20)];
    driver.request(HINT, &pages);
    assert_eq!(driver.control.hinted(), 0, "before the command");
    command(&mut driver, round);
    driver.request(HINT, &pages);
    driver.request(HINT, &pages);
    assert_eq!((driver.control.hinted(), driver.control.is_hinting()), (8 * MIB, true));
    command(&mut driver, 0);
    assert!(!driver.control.is_hinting());
    driver.request(HINT, &pages);
    assert_eq!((driver.control.hinted(), driver.config().hint_command), (8 * MIB, 0));
    driver.control.end_hints();
    assert_eq!(driver.config().hint_command, 1);
    // They may be in use again by now, so they are not touched.
    assert!(driver.is_kept((HIGH / PAGE) as u32));
    assert_eq!(driver.control.given_back(), Default::default());
}

#[test]
fn hints_for_an_earlier_round_do_not_count() {
    let mut driver = Driver::new();
    driver.control.start_hints();
    let first = driver.config().hint_command;
    command(&mut driver, first);
    driver.control.start_hints();
    let pages = [Buffer::writable(HIGH, 4 << 20)];
    driver.request(HINT, &pages);
    command(&mut driver, 0);
    assert_eq!((driver.control.hinted(), driver.control.is_hinting()), (0, true));
    let second = driver.config().hint_command;
    assert_ne!(first, second);
    command(&mut driver, second);
    driver.request(HINT, &pages);
    assert_eq!(driver.control.hinted(), 4 * MIB);
    driver.request(HINT, &[Buffer::readable(BUFFERS, 3)]);
    driver.request(HINT, &[Buffer::readable(BUFFERS, 8)]);
    assert_eq!(driver.broken(), [("V-BALLOON-07", 2)]);
}
