//! A balloon, each way: pages, configuration, statistics, reports, hints, and drivers that err.

use std::time::Duration;

use devices::virtio::balloon::Stat;
use devices::virtio::virtq::testing::Buffer;
use tests::driver::balloon::{DEFLATE, INFLATE, PAGE, STATS, array, control, name_pages};
use tests::driver::machine::{HIGH_RAM, HIGH_RAM_SIZE, LOW_RAM_END, RAM_SEAM};
use tests::driver::{Driver, Machine, Way, wait_for};

const NAME: &str = "virtio-balloon-pci";
/// Pages that nothing else lies in.
const FIRST: u32 = (12 << 20) / PAGE as u32;
const ALL_RAM: u64 = LOW_RAM_END + HIGH_RAM_SIZE;

const REPORTING: &str = "free-page-reporting=on";
const HINTS_AND_REPORTS: &str = "free-page-hint=on,free-page-reporting=on";

fn each_way(options: &str, test: impl Fn(&mut Driver<'_>)) {
    for way in Way::ALL {
        let machine = Machine::new(&[(NAME, options)]).unwrap();
        test(&mut Driver::of_first(&machine, way));
    }
}

fn fill(driver: &Driver<'_>) {
    let from = u64::from(FIRST) * PAGE;
    driver
        .machine()
        .set_bytes(from, &vec![0xa5; (LOW_RAM_END - from) as usize]);
    driver
        .machine()
        .set_bytes(HIGH_RAM, &vec![0xa5; HIGH_RAM_SIZE as usize]);
}

fn is_kept(driver: &Driver<'_>, page: u32) -> bool {
    let bytes = driver.machine().bytes(u64::from(page) * PAGE, PAGE as usize);
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "half a page");
    bytes[0] == 0xa5
}

fn broken(driver: &Driver<'_>) -> Vec<(&'static str, u64)> {
    control(driver).broken_rules().into_iter().collect()
}

#[test]
fn queues_features_and_configuration_are_qemus() {
    for (options, features, sizes, config) in [
        ("", 0x12, &[128, 128, 128][..], 16),
        ("deflate-on-oom=on", 0x16, &[128, 128, 128], 16),
        (REPORTING, 0x32, &[128, 128, 128, 32], 16),
        (HINTS_AND_REPORTS, 0x3a, &[128, 128, 128, 1024, 32], 16),
        ("free-page-hint=on,page-poison=off", 0xa, &[128, 128, 128, 1024], 12),
        ("page-poison=off", 0x2, &[128, 128, 128], 8),
    ] {
        each_way(options, |driver| {
            assert_eq!(driver.transport.offered() & 0xff_ffff, features, "{options}");
            let offered: Vec<_> = driver.rings.iter().map(|ring| ring.config().size).collect();
            assert_eq!(offered, sizes, "{options}");
            for offset in (0..config).step_by(4) {
                assert_eq!(driver.transport.config(offset, 4), 0, "{options}: {offset}");
            }
        });
    }
}

#[test]
fn pages_go_into_the_balloon_and_out_again() {
    each_way("", |driver| {
        fill(driver);
        let balloon = control(driver);
        name_pages(driver, INFLATE, (FIRST..FIRST + 256).rev());
        driver.wait_for_line();
        assert_eq!(driver.transport.isr(), 1);
        assert!(!is_kept(driver, FIRST) && !is_kept(driver, FIRST + 255) && is_kept(driver, FIRST + 256));
        let inflated = balloon.given_back().inflated;
        assert_eq!((inflated.bytes, inflated.calls), (1 << 20, 1));
        name_pages(driver, DEFLATE, FIRST..FIRST + 256);
        assert_eq!(balloon.held(), 0);
        fill(driver);
        assert!(is_kept(driver, FIRST));
        assert_eq!(broken(driver), []);
    });
}

#[test]
fn the_driver_hears_of_a_target_and_says_how_far_it_is() {
    each_way("", |driver| {
        let balloon = control(driver);
        let changed = balloon.subscribe().unwrap();
        balloon.set_target(ALL_RAM - (1 << 20)).unwrap();
        driver.wait_for_line();
        assert_eq!(driver.transport.isr(), 3);
        assert_eq!(driver.transport.config(0, 4), 256);
        driver.transport.set_config(4, 4, 100);
        assert_eq!(changed.read().unwrap(), 1);
        assert_eq!(balloon.actual(), ALL_RAM - 100 * PAGE);
        // Byte by byte, as slow drivers do.
        for (at, byte) in [(4, 0x34), (5, 0x02), (6, 0), (7, 0)] {
            driver.transport.set_config(at, 1, byte);
        }
        assert_eq!(
            (driver.transport.config(4, 4), balloon.actual()),
            (0x234, ALL_RAM - 0x234 * PAGE)
        );
        driver.transport.set_config(0, 4, 7);
        assert_eq!(driver.transport.config(0, 4), 256, "the target is not the driver's");
        driver.transport.set_config(4, 4, 0xffff_ffff);
        assert_eq!((balloon.actual(), broken(driver)), (0, vec![("V-BALLOON-10", 1)]));
        driver.start();
        assert_eq!((driver.transport.config(0, 4), driver.transport.config(4, 4)), (256, 0));
        assert_eq!(balloon.actual(), ALL_RAM);
    });
}

#[test]
fn statistics_are_given_and_asked_for_again() {
    each_way("", |driver| {
        let balloon = control(driver);
        for round in 1..5u64 {
            let entries = [(4u16, 10 * round), (5, 20 * round), (77, 1)];
            let bytes: Vec<u8> = entries
                .iter()
                .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
                .collect();
            driver.machine().set_bytes(driver.data(), &bytes);
            driver.post(STATS, &[Buffer::readable(driver.data(), bytes.len() as u32)]);
            driver.kick(STATS);
            wait_for("statistics", || {
                (balloon.stats().get(Stat::TotalMemory) == Some(20 * round)).then_some(())
            });
            assert_eq!(balloon.stats().iter().count(), 2);
            balloon.set_polling_interval(Duration::from_millis(1)).unwrap();
            driver.complete(STATS);
        }
    });
}

#[test]
fn free_pages_are_reported_on_the_queue_behind() {
    for (options, queue) in [(REPORTING, 3), (HINTS_AND_REPORTS, 4)] {
        each_way(options, |driver| {
            fill(driver);
            let report = [
                Buffer::writable(u64::from(FIRST) * PAGE, 1 << 20),
                Buffer::writable(HIGH_RAM, HIGH_RAM_SIZE as u32),
            ];
            assert_eq!(driver.request(queue, &report).len, 0);
            assert!(!is_kept(driver, FIRST) && !is_kept(driver, (HIGH_RAM / PAGE) as u32));
            assert_eq!(control(driver).given_back().reported.bytes, (1 << 20) + HIGH_RAM_SIZE);
            // Free pages that are filled with something keep it.
            fill(driver);
            driver.transport.set_config(12, 4, 0xa5a5_a5a5);
            driver.request(queue, &report);
            assert!(is_kept(driver, FIRST));
        });
    }
}

#[test]
fn hints_come_when_they_are_asked_for() {
    each_way("free-page-hint=on", |driver| {
        let balloon = control(driver);
        assert_eq!(driver.transport.config(8, 4), 0);
        balloon.start_hints();
        driver.wait_for_line();
        let round = driver.transport.config(8, 4) as u32;
        let command = array(driver, [round]);
        driver.request(3, &[command]);
        driver.request(3, &[Buffer::writable(HIGH_RAM, HIGH_RAM_SIZE as u32)]);
        let command = array(driver, [0]);
        driver.request(3, &[command]);
        assert_eq!((balloon.hinted(), balloon.is_hinting()), (HIGH_RAM_SIZE, false));
        balloon.end_hints();
        assert_eq!(driver.transport.config(8, 4), 1);
    });
}

#[test]
fn pages_that_are_no_ram_or_in_the_balloon_are_ignored_and_reported() {
    each_way("", |driver| {
        fill(driver);
        let hole = (LOW_RAM_END / PAGE) as u32;
        let bar = (driver.device.bar(4).base / PAGE) as u32;
        let end = ((HIGH_RAM + HIGH_RAM_SIZE) / PAGE) as u32;
        name_pages(driver, INFLATE, [hole, FIRST, bar, 0xf_ffff, end, u32::MAX, FIRST]);
        assert_eq!(broken(driver), [("V-BALLOON-01", 5), ("V-BALLOON-02", 1)]);
        assert_eq!(control(driver).given_back().inflated.bytes, PAGE);
        fill(driver);
        name_pages(driver, INFLATE, [FIRST]);
        assert!(is_kept(driver, FIRST), "touched again");
        let seam = (RAM_SEAM / PAGE) as u32;
        name_pages(driver, INFLATE, [seam, seam - 1]);
        assert_eq!(control(driver).given_back().inflated.bytes, 3 * PAGE);
    });
}

#[test]
fn odd_arrays_come_back_and_the_queue_goes_on() {
    each_way("", |driver| {
        fill(driver);
        let at = driver.data();
        let array = array(driver, FIRST..FIRST + 4);
        for len in [1, 2, 3, 5, 15] {
            assert_eq!(driver.request(INFLATE, &[Buffer::readable(at, len)]).len, 0);
        }
        assert_eq!(driver.request(INFLATE, &[Buffer::writable(at, 16)]).len, 0);
        assert_eq!(driver.request(DEFLATE, &[Buffer::readable(LOW_RAM_END - 4, 8)]).len, 0);
        let pieces: Vec<_> = (0..16).map(|byte| Buffer::readable(array.address + byte, 1)).collect();
        driver.request(DEFLATE, &pieces);
        driver.request(INFLATE, &pieces);
        assert!(!is_kept(driver, FIRST + 3));
    });
}

#[test]
fn a_driver_that_gives_its_own_rings_away_is_on_its_own() {
    each_way(HINTS_AND_REPORTS, |driver| {
        let first = (driver.ring_base(0) / PAGE) as u32;
        let array = array(driver, (first..first + 0x40).chain(0..16));
        driver.post(INFLATE, &[array]);
        driver.kick(INFLATE);
        wait_for("the pages", || (control(driver).held() > 0).then_some(()));
        for queue in 0..5 {
            driver.kick(queue);
        }
        driver.start();
        fill(driver);
        name_pages(driver, INFLATE, [FIRST]);
        assert!(!is_kept(driver, FIRST));
    });
}

#[test]
fn a_statistics_buffer_that_never_comes_back_stops_nothing_else() {
    each_way("guest-stats-polling-interval=1", |driver| {
        driver.post(STATS, &[Buffer::readable(driver.data(), 10)]);
        driver.kick(STATS);
        driver.complete(STATS);
        name_pages(driver, INFLATE, [FIRST]);
        // Two at once: the first comes back at once.
        for _ in 0..2 {
            driver.post(STATS, &[Buffer::readable(driver.data(), 10)]);
        }
        driver.kick(STATS);
        driver.complete(STATS);
        driver.start();
        name_pages(driver, INFLATE, [FIRST]);
    });
}
