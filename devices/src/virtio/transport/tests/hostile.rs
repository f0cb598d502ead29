//! What a broken or malicious driver does to the transport.

use super::*;
use crate::virtio::virtq::GuestFault;

#[test]
fn a_queue_that_does_not_exist_takes_nothing() {
    for queue in [2, 3, 1024, 0xffff] {
        let mut bench = Bench::new();
        bench.negotiate(VERSION_1 | RING_RESET);
        bench.set_modern(common::QUEUE_SELECT, 2, queue);
        for (register, len, value) in [
            (common::QUEUE_SIZE, 2, 0),
            (common::QUEUE_VECTOR, 2, 0xffff),
            (common::QUEUE_ENABLE, 2, 0),
            (common::QUEUE_DESC, 8, 0),
            (common::QUEUE_DRIVER, 8, 0),
            (common::QUEUE_DEVICE, 8, 0),
            (common::QUEUE_RESET, 2, 0),
        ] {
            bench.set_modern(register, len, 1);
            assert_eq!(bench.modern(register, len), value, "{register:#x}");
        }
        assert!(bench.rules().iter().all(|rule| *rule == "V-TRANSPORT-08"));
        bench.set_port(port::QUEUE_PFN, 4, 0x10);
        assert_eq!(
            (bench.port(port::QUEUE_PFN, 4), bench.port(port::QUEUE_SIZE, 2)),
            (0, 0)
        );
        assert_eq!(bench.rules(), ["V-TRANSPORT-08"]);
        bench.set_status(READY);
        assert!(bench.running().is_empty());
    }
}

#[test]
fn sizes_that_cannot_be_are_ignored() {
    let mut bench = Bench::new();
    for (size, rule) in [
        (0, "V-QUEUE-01"),
        (3, "V-QUEUE-01"),
        (255, "V-QUEUE-01"),
        (512, "V-QUEUE-02"),
        (32768, "V-QUEUE-02"),
    ] {
        bench.set_modern(common::QUEUE_SIZE, 2, size);
        assert_eq!(
            (bench.modern(common::QUEUE_SIZE, 2), bench.rules()),
            (256, vec![rule]),
            "{size}"
        );
    }
    bench.set_modern(common::QUEUE_SIZE, 4, 0x1_0000);
    assert_eq!(bench.modern(common::QUEUE_SIZE, 2), 256);
}

#[test]
fn an_enabled_queue_cannot_be_changed() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_modern(common::QUEUE_SIZE, 2, 64);
    bench.set_up_queue(0, 0x1_0000);
    for running in [false, true] {
        bench.set_modern(common::QUEUE_SIZE, 2, 128);
        bench.set_modern(common::QUEUE_DESC, 4, 0x5_0000);
        bench.set_modern(common::QUEUE_DRIVER, 4, 0x5_0000);
        bench.set_modern(common::QUEUE_DEVICE, 4, 0x5_0000);
        bench.set_modern(common::QUEUE_ENABLE, 2, 1);
        assert_eq!(bench.rules(), ["V-TRANSPORT-09"; 5]);
        assert_eq!(
            (bench.modern(common::QUEUE_SIZE, 2), bench.modern(common::QUEUE_DESC, 8)),
            (64, 0x1_0000)
        );
        bench.set_modern(common::QUEUE_ENABLE, 2, 0);
        assert_eq!(
            (bench.modern(common::QUEUE_ENABLE, 2), bench.rules()),
            (1, vec!["V-TRANSPORT-10"])
        );
        if !running {
            bench.set_status(READY);
        }
        assert_eq!(bench.size_of_running(0), 64);
    }
}

/// Rings that cannot be, and the rule that each breaks.
const BAD_RINGS: [([u64; 3], &str); 7] = [
    ([0, 0, 0], "V-QUEUE-05"),
    ([0x1_0000, 0, 0x1_2000], "V-QUEUE-05"),
    ([0x1_0008, 0x1_1000, 0x1_2000], "V-QUEUE-03"),
    ([0x1_0000, 0x1_1001, 0x1_2000], "V-QUEUE-03"),
    ([0x1_0000, 0x1_1000, 0x1_2002], "V-QUEUE-03"),
    ([0xf_fff0, 0x1_1000, 0x1_2000], "V-QUEUE-04"),
    ([0x1_0000, 0xffff_ffff_ffff_fff0, 0x1_2000], "V-QUEUE-04"),
];

#[test]
fn a_ring_that_cannot_be_needs_a_reset_and_hurts_no_other_queue() {
    for (addresses, rule) in BAD_RINGS {
        let mut bench = Bench::new();
        bench.negotiate(VERSION_1 | RING_RESET);
        bench.set_up_queue(1, 0x2_0000);
        bench.set_modern(common::QUEUE_SELECT, 2, 0);
        for (register, address) in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE]
            .iter()
            .zip(addresses)
        {
            bench.set_modern(*register, 8, address);
        }
        bench.set_modern(common::QUEUE_ENABLE, 2, 1);
        bench.set_status(READY);
        assert_eq!(
            (bench.status(), bench.running()),
            (READY | status::NEEDS_RESET, vec![1]),
            "{addresses:x?}"
        );
        assert_eq!((bench.rules(), bench.modern(common::ISR, 1)), (vec![rule], 3));
        bench.bring_up();
        assert_eq!((bench.status(), bench.running()), (READY, vec![0, 1]));
    }
}

#[test]
fn a_legacy_ring_outside_ram_does_not_start_and_says_nothing() {
    // RAM ends at page 0x100; a ring of 256 takes three pages.
    for page in [0xfe, 0x100, 0xf_ffff, 0xffff_ffff] {
        let mut bench = Bench::new();
        bench.set_legacy_status(ACKNOWLEDGED);
        bench.set_port(port::QUEUE_PFN, 4, page);
        bench.set_legacy_status(LEGACY_READY);
        assert_eq!(
            (bench.running(), bench.legacy_status()),
            (vec![], LEGACY_READY),
            "{page:#x}"
        );
        assert_eq!((bench.rules(), bench.port(port::ISR, 1)), (vec!["V-QUEUE-04"], 0));
        bench.set_port(port::QUEUE_PFN, 4, 0xfd);
        assert_eq!(bench.running(), [0]);
    }
}

#[test]
fn kicks_go_nowhere_or_wait() {
    let mut bench = Bench::new();
    bench.set_modern(common::NOTIFY, 2, 0);
    assert_eq!(bench.rules(), ["V-TRANSPORT-13"]);
    for offset in [8, 0x7fc, 0xffc] {
        bench.set_modern(common::NOTIFY + offset, 4, 0);
        assert_eq!(bench.rules(), ["V-TRANSPORT-12"], "{offset:#x}");
    }
    for queue in [2, 0x7fff, 0x8000, 0xffff] {
        bench.set_port(port::QUEUE_NOTIFY, 2, queue);
        bench.set_port(port::QUEUE_NOTIFY, 4, queue << 16);
        assert_eq!(
            bench.rules(),
            ["V-TRANSPORT-12", "V-TRANSPORT-15", "V-TRANSPORT-12"],
            "{queue:#x}"
        );
    }
    assert_eq!(bench.kicks(0), 1, "the early kick waits");
    bench.bring_up();
    bench.set_status(READY | status::FAILED);
    bench.set_modern(common::NOTIFY, 2, 0);
    bench.set_status(0);
    bench.set_modern(common::NOTIFY, 2, 0);
    assert!(bench.running().is_empty());
}

#[test]
fn a_doorbell_full_of_kicks_takes_more() {
    let mut bench = Bench::new();
    bench.pci.doorbells()[0].event.write(u64::MAX - 1).unwrap();
    (0..3).for_each(|_| bench.set_modern(common::NOTIFY, 2, 0));
    bench.bring_up();
    assert_eq!(bench.running(), [0, 1]);
}

#[test]
fn status_bits_out_of_order_cleared_or_reserved() {
    let mut bench = Bench::new();
    bench.set_status(status::DRIVER_OK);
    assert_eq!(
        (bench.status(), bench.rules()),
        (status::DRIVER_OK, vec!["V-TRANSPORT-07"])
    );
    bench.set_status(status::ACKNOWLEDGE);
    assert_eq!(bench.rules(), ["V-TRANSPORT-05"]);
    bench.set_status(status::ACKNOWLEDGE | 0x30 | status::NEEDS_RESET);
    assert_eq!(bench.rules(), ["V-TRANSPORT-06"]);
    assert_eq!(bench.status(), status::ACKNOWLEDGE | 0x30);
    bench.set_status(0xff);
    assert!(bench.running().is_empty());
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
}

#[test]
fn driver_ok_without_queues_is_legal_and_does_nothing() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_status(READY);
    assert_eq!(
        (bench.status(), bench.running(), bench.rules()),
        (READY, vec![], vec![])
    );
}

#[test]
fn a_driver_cannot_take_needs_reset_away_by_writing_it() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.shared.queues.lock().unwrap()[&0].interrupt.broken();
    assert_eq!(
        (bench.status(), bench.modern(common::ISR, 1)),
        (READY | status::NEEDS_RESET, 3)
    );
    bench.set_status(READY);
    bench.set_status(READY | status::NEEDS_RESET);
    assert_eq!((bench.status(), bench.rules()), (READY | status::NEEDS_RESET, vec![]));
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
}

#[test]
fn a_host_that_refuses_shows_as_needs_reset() {
    let mut bench = Bench::new();
    bench.shared.refuse.store(true, Ordering::Relaxed);
    bench.bring_up();
    assert_eq!((bench.status(), bench.running()), (READY | status::NEEDS_RESET, vec![]));
    bench.shared.refuse.store(false, Ordering::Relaxed);
    bench.bring_up();
    assert_eq!((bench.status(), bench.running()), (READY, vec![0, 1]));
}

#[test]
fn a_worker_that_was_lost_shows_as_needs_reset() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.shared.queues.lock().unwrap().remove(&1);
    bench.set_modern(common::QUEUE_SELECT, 2, 1);
    bench.set_status(AGREED);
    bench.set_status(READY);
    assert_eq!(
        (bench.status(), bench.running()),
        (READY | status::NEEDS_RESET, vec![0])
    );
}

#[test]
fn a_ring_reset_that_was_not_agreed_on_is_ignored() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_up_queue(0, 0x1_0000);
    bench.set_status(READY);
    bench.set_modern(common::QUEUE_RESET, 2, 1);
    assert_eq!((bench.running(), bench.rules()), (vec![0], vec!["V-TRANSPORT-11"]));
    bench.bring_up();
    bench.set_modern(common::QUEUE_RESET, 2, 2);
    assert_eq!((bench.running(), bench.rules()), (vec![0, 1], vec!["V-TRANSPORT-10"]));
}

#[test]
fn faces_mixed_on_one_device_stay_one_device() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_port(port::QUEUE_PFN, 4, 0x10);
    bench.set_up_queue(1, 0x2_0000);
    bench.set_legacy_status(READY);
    assert_eq!((bench.status(), bench.running()), (READY, vec![0, 1]));
    assert_eq!(bench.modern(common::QUEUE_SELECT, 2), bench.port(port::QUEUE_SELECT, 2));
    bench.set_port(port::QUEUE_SELECT, 2, 0);
    assert_eq!(bench.modern(common::QUEUE_DEVICE, 8), 0x1_2000);
    bench.set_legacy_status(0);
    assert_eq!((bench.status(), bench.running()), (0, vec![]));
}

#[test]
fn faults_of_rings_carry_queue_and_rule() {
    let mut bench = Bench::new();
    bench.set_modern(common::QUEUE_SELECT, 2, 1);
    bench.set_modern(common::QUEUE_SIZE, 2, 16);
    let fault = GuestFault::QueueSizeAboveMax { size: 16, max: 8 };
    assert_eq!(bench.faults(), [TransportFault::Queue { queue: 1, fault }]);
}

#[test]
fn every_register_stands_every_width() {
    let mut bench = Bench::new();
    for bar in [0, 1, 2, 3, 4, 5, 6, 0xff] {
        for offset in (0..0x90)
            .chain(0xff0..0x1010)
            .chain(0x1ff8..0x2048)
            .chain(0x2ff8..0x3010)
            .chain(0x3ff0..0x4000)
        {
            for len in 1..=8 {
                bench.read(bar, offset, len);
                bench.write(bar, offset, len, 0x0101_0101_0101_0101);
            }
        }
    }
    for offset in (0..0x100).chain([0xfff, 0xffff]) {
        for len in 1..=4 {
            bench.config(offset, len);
            bench.set_config(offset, len, 0x0404_0404);
        }
    }
    bench.pci.reset();
    bench.set_config(0x04, 2, 7);
    bench.bring_up();
    assert_eq!(bench.running(), [0, 1]);
}
