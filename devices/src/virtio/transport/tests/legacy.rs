//! Every register of the legacy face.

use super::*;

#[test]
fn ports_after_reset() {
    let mut bench = Bench::new();
    for (offset, len, value) in [
        (port::DEVICE_FEATURES, 4, 0x7900_6e54),
        (port::DRIVER_FEATURES, 4, 0),
        (port::QUEUE_PFN, 4, 0),
        (port::QUEUE_SIZE, 2, 256),
        (port::QUEUE_SELECT, 2, 0),
        (port::QUEUE_NOTIFY, 2, 0xffff),
        (port::STATUS, 1, 0),
        (port::ISR, 1, 0),
    ] {
        assert_eq!(bench.port(offset, len), value, "{offset:#x}");
    }
}

#[test]
fn queues_are_selected_with_any_width() {
    let mut bench = Bench::new();
    for (len, queue, size) in [(2, 1, 8), (1, 0, 256), (1, 1, 8)] {
        bench.set_port(port::QUEUE_SELECT, len, queue);
        assert_eq!(
            (bench.port(port::QUEUE_SELECT, 2), bench.port(port::QUEUE_SIZE, 2)),
            (queue, size)
        );
    }
    bench.set_port(port::QUEUE_SELECT, 2, 2);
    assert_eq!(
        (bench.port(port::QUEUE_SIZE, 2), bench.port(port::QUEUE_PFN, 4)),
        (0, 0)
    );
}

#[test]
fn a_page_sets_a_queue_up_and_reads_back() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    assert_eq!((bench.running(), bench.size_of_running(1)), (vec![0, 1], 8));
    assert_eq!(
        (bench.port(port::QUEUE_PFN, 4), bench.legacy_status()),
        (0x20, LEGACY_READY)
    );
    assert_eq!(bench.rules(), [] as [&str; 0]);
}

#[test]
fn page_zero_resets_the_device() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    bench.events();
    bench.set_port(port::QUEUE_PFN, 4, 0);
    assert_eq!(bench.events(), [Event::Stopped(0), Event::Stopped(1), Event::Reset]);
    assert_eq!((bench.port(port::STATUS, 1), bench.port(port::QUEUE_SELECT, 2)), (0, 0));
}

#[test]
fn the_same_page_again_changes_nothing_and_another_one_starts_anew() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    bench.events();
    bench.set_port(port::QUEUE_PFN, 4, 0x20);
    assert_eq!(bench.events(), []);
    bench.set_port(port::QUEUE_PFN, 4, 0x30);
    assert_eq!(bench.events(), [Event::Stopped(1), Event::Started(1)]);
}

#[test]
fn a_queue_runs_from_its_page_on_and_one_that_comes_after_driver_ok_too() {
    let mut bench = Bench::new();
    bench.set_legacy_status(ACKNOWLEDGED);
    bench.set_port(port::QUEUE_PFN, 4, 0x10);
    assert_eq!(bench.running(), [0]);
    bench.set_legacy_status(LEGACY_READY);
    bench.set_port(port::QUEUE_SELECT, 2, 1);
    bench.set_port(port::QUEUE_PFN, 4, 0x20);
    assert_eq!(
        bench.events(),
        [Event::Activated(0), Event::Started(0), Event::Started(1)]
    );
}

#[test]
fn no_queue_runs_for_a_driver_that_did_not_say_it_is_one() {
    let mut bench = Bench::new();
    bench.set_port(port::QUEUE_PFN, 4, 0x10);
    assert!(bench.running().is_empty());
    bench.set_legacy_status(status::DRIVER_OK);
    assert_eq!(bench.running(), [0]);
}

#[test]
fn a_kick_by_value_reaches_its_doorbell() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    bench.forget_kicks();
    bench.set_port(port::QUEUE_NOTIFY, 2, 1);
    bench.set_port(port::QUEUE_NOTIFY, 4, 1);
    assert_eq!((bench.kicks(0), bench.kicks(1)), (0, 2));
    bench.set_port(port::QUEUE_NOTIFY, 2, 2);
    assert_eq!(bench.faults().last(), Some(&TransportFault::KickNowhere { queue: 2 }));
}

#[test]
fn a_queue_that_starts_is_kicked_once_so_that_nothing_is_left_lying() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    assert_eq!((bench.kicks(0), bench.kicks(1)), (1, 1));
}

#[test]
fn features_ok_is_not_for_legacy_drivers() {
    let mut bench = Bench::new();
    bench.set_legacy_status(AGREED);
    assert_eq!(bench.legacy_status(), ACKNOWLEDGED);
    assert_eq!(bench.rules(), ["V-TRANSPORT-06"]);
}

#[test]
fn device_configuration_moves_when_msix_is_enabled() {
    let mut bench = Bench::new();
    assert_eq!(
        (bench.port(0x14, 4), bench.port(0x14, 8)),
        (0x0302_0100, 0x0706_0504_0302_0100)
    );
    bench.set_config(0x9a, 2, 0x8000);
    assert_eq!(
        (bench.port(0x14, 2), bench.port(0x16, 2), bench.port(0x18, 4)),
        (0xffff, 0xffff, 0x0302_0100)
    );
    bench.set_port(0x14, 2, 0);
    bench.set_port(0x16, 2, 1);
    assert_eq!((bench.port(0x14, 2), bench.port(0x16, 2)), (0, 1));
    bench.set_config(0x9a, 2, 0);
    assert_eq!(bench.port(0x14, 4), 0x0302_0100);
}

#[test]
fn vectors_past_the_table_read_back_as_none() {
    let mut bench = Bench::new();
    bench.set_config(0x9a, 2, 0x8000);
    for vector in [3, 0x7fff, 0xffff] {
        bench.set_port(0x14, 2, vector);
        bench.set_port(0x16, 2, vector);
        assert_eq!(
            (bench.port(0x14, 2), bench.port(0x16, 2)),
            (0xffff, 0xffff),
            "{vector:#x}"
        );
    }
    bench.set_port(0x14, 2, 2);
    assert_eq!(bench.port(0x14, 2), 2);
}

#[test]
fn device_configuration_is_read_and_written_as_wide_as_it_is_and_not_behind_its_end() {
    let mut bench = Bench::new();
    bench.set_port(0x14 + 32, 1, 0);
    assert_eq!(bench.port(0x14 + 31, 2), 31);
    assert_eq!(bench.port(0x14 + 56, 4), 0x3b3a_3938);
    assert_eq!((bench.port(0x14 + 60, 1), bench.port(0x14 + 60, 8)), (0xff, u64::MAX));
    bench.set_port(0x14 + 60, 4, 0);
    assert_eq!(bench.shared.config.lock().unwrap().len(), 60);
}

#[test]
fn odd_accesses_are_answered_as_by_qemu() {
    let mut bench = Bench::new();
    // Wider than the register: the register, then zeroes; in its middle: nothing.
    assert_eq!(bench.port(port::QUEUE_SIZE, 4), 256);
    assert_eq!(bench.port(0x01, 1), 0xff);
    assert_eq!(bench.port(0x02, 2), 0xffff);
    assert_eq!(bench.port(port::DEVICE_FEATURES, 1), 0x54);
    // Straddling: status with a zero behind it, then two bytes of configuration.
    bench.set_legacy_status(1);
    assert_eq!(bench.port(port::STATUS, 4), 0x0100_0001);
    assert_eq!(bench.port(port::DEVICE_FEATURES, 8), 0x7900_6e54);
    assert_eq!(bench.port(port::DEVICE_FEATURES, 3), 0xff_6e54);
    bench.set_port(0x0d, 1, 0xff);
    assert_eq!(bench.port(port::QUEUE_SIZE, 2), 256);
    assert!(bench.rules().iter().all(|rule| *rule == "V-TRANSPORT-15"));
}

#[test]
fn old_linux_leaves_bus_mastering_off_and_it_is_switched_on_for_it() {
    let mut bench = Bench::new();
    bench.set_config(0x04, 2, 3);
    bench.bring_up_legacy();
    assert_eq!((bench.config(0x04, 2), bench.running()), (7, vec![0, 1]));
}
