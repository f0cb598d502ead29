//! Every register of the modern face, in its BAR and through the window in configuration space.

use super::*;

#[derive(Clone, Copy, Debug)]
enum Way {
    Bar,
    Window,
}

const WAYS: [Way; 2] = [Way::Bar, Way::Window];

/// Where the PCI_CFG capability stands.
const WINDOW: u16 = 0x84;

impl Bench {
    fn point_window(&mut self, bar: u32, offset: u64, len: usize) {
        self.set_config(WINDOW + 4, 1, bar);
        self.set_config(WINDOW + 8, 4, offset as u32);
        self.set_config(WINDOW + 12, 4, len as u32);
    }

    fn get(&mut self, way: Way, offset: u64, len: usize) -> u64 {
        match way {
            Way::Bar => self.modern(offset, len),
            Way::Window => {
                self.point_window(4, offset, len);
                u64::from(self.config(WINDOW + 16, len))
            }
        }
    }

    fn set(&mut self, way: Way, offset: u64, len: usize, value: u64) {
        match way {
            Way::Bar => self.set_modern(offset, len, value),
            Way::Window => {
                self.point_window(4, offset, len);
                self.set_config(WINDOW + 16, len, value as u32);
            }
        }
    }
}

#[test]
fn registers_after_reset() {
    for way in WAYS {
        let mut bench = Bench::new();
        for (offset, len, value) in [
            (common::DEVICE_FEATURE_SELECT, 4, 0),
            (common::DEVICE_FEATURE, 4, 0x3000_6e54),
            (common::DRIVER_FEATURE_SELECT, 4, 0),
            (common::DRIVER_FEATURE, 4, 0),
            (common::CONFIG_VECTOR, 2, 0xffff),
            (common::NUM_QUEUES, 2, 2),
            (common::STATUS, 1, 0),
            (common::GENERATION, 1, 0),
            (common::QUEUE_SELECT, 2, 0),
            (common::QUEUE_SIZE, 2, 256),
            (common::QUEUE_VECTOR, 2, 0xffff),
            (common::QUEUE_ENABLE, 2, 0),
            (common::QUEUE_NOTIFY_OFF, 2, 0),
            (common::QUEUE_DESC, 4, 0),
            (common::QUEUE_DESC + 4, 4, 0),
            (common::QUEUE_DRIVER, 4, 0),
            (common::QUEUE_DRIVER + 4, 4, 0),
            (common::QUEUE_DEVICE, 4, 0),
            (common::QUEUE_DEVICE + 4, 4, 0),
            (0x38, 2, 0),
            (common::QUEUE_RESET, 2, 0),
            (0x3c, 4, 0),
            (0xffc, 4, 0),
            (common::ISR, 1, 0),
            (common::CONFIG, 4, 0x0302_0100),
            (common::NOTIFY, 4, 0),
        ] {
            assert_eq!(bench.get(way, offset, len), value, "{way:?} {offset:#x}");
        }
    }
}

#[test]
fn registers_hold_what_is_written() {
    for way in WAYS {
        let mut bench = Bench::new();
        bench.set(way, common::QUEUE_SELECT, 2, 1);
        for (offset, len, value) in [
            (common::DEVICE_FEATURE_SELECT, 4, 1),
            (common::DRIVER_FEATURE_SELECT, 4, 1),
            (common::DRIVER_FEATURE, 4, 0x101),
            (common::CONFIG_VECTOR, 2, 2),
            (common::STATUS, 1, 1),
            (common::QUEUE_SELECT, 2, 1),
            (common::QUEUE_SIZE, 2, 4),
            (common::QUEUE_VECTOR, 2, 1),
            (common::QUEUE_DESC, 4, 0x1234_5670),
            (common::QUEUE_DESC + 4, 4, 0x11),
            (common::QUEUE_DRIVER, 4, 0x2234_5670),
            (common::QUEUE_DRIVER + 4, 4, 0x12),
            (common::QUEUE_DEVICE, 4, 0x3234_5670),
            (common::QUEUE_DEVICE + 4, 4, 0x13),
            (common::QUEUE_ENABLE, 2, 1),
            (common::CONFIG + 4, 4, 0xa5a5_a5a5),
        ] {
            bench.set(way, offset, len, value);
            assert_eq!(bench.get(way, offset, len), value, "{way:?} {offset:#x}");
        }
        assert_eq!(bench.get(way, common::QUEUE_NOTIFY_OFF, 2), 1);
        assert_eq!(bench.rules(), [] as [&str; 0]);
    }
}

#[test]
fn a_wide_access_is_two() {
    let mut bench = Bench::new();
    bench.set_modern(common::QUEUE_DESC, 8, 0x11_2233_4450);
    assert_eq!(bench.modern(common::QUEUE_DESC, 8), 0x11_2233_4450);
    assert_eq!(bench.modern(common::QUEUE_DESC + 4, 4), 0x11);
    assert_eq!(bench.modern(common::CONFIG, 8), 0x0706_0504_0302_0100);
}

#[test]
fn accesses_behind_the_configuration_read_as_ones() {
    for way in WAYS {
        let mut bench = Bench::new();
        assert_eq!(bench.get(way, common::CONFIG + 56, 4), 0x3b3a_3938);
        assert_eq!(bench.get(way, common::CONFIG + 60, 4), 0xffff_ffff);
        assert_eq!(bench.get(way, common::CONFIG + 0xffc, 4), 0xffff_ffff);
    }
}

#[test]
fn read_only_registers_stay_as_they_are() {
    for way in WAYS {
        let mut bench = Bench::new();
        for (offset, len) in [
            (common::DEVICE_FEATURE, 4),
            (common::NUM_QUEUES, 2),
            (common::GENERATION, 1),
            (common::QUEUE_NOTIFY_OFF, 2),
        ] {
            let before = bench.get(way, offset, len);
            bench.set(way, offset, len, 0xdead_beef);
            assert_eq!(bench.get(way, offset, len), before);
        }
        assert_eq!(bench.rules(), ["V-TRANSPORT-16"; 4]);
    }
}

#[test]
fn a_driver_reaches_driver_ok() {
    let mut bench = Bench::new();
    bench.bring_up();
    assert_eq!(
        (bench.status(), bench.running(), bench.rules()),
        (READY, vec![0, 1], vec![])
    );
    let activated = Event::Activated(VERSION_1 | RING_RESET);
    assert_eq!(
        bench.events(),
        [Event::Reset, activated, Event::Started(0), Event::Started(1)]
    );
}

#[test]
fn queues_do_not_run_before_driver_ok() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_up_queue(0, 0x1_0000);
    assert!(bench.running().is_empty());
}

#[test]
fn the_place_of_a_kick_says_which_queue() {
    for way in WAYS {
        let mut bench = Bench::new();
        bench.bring_up();
        bench.forget_kicks();
        bench.set(way, common::NOTIFY + 4, 2, 0xbeef);
        assert_eq!((bench.kicks(0), bench.kicks(1)), (0, 1));
        bench.set(way, common::NOTIFY, 4, 1);
        assert_eq!((bench.kicks(0), bench.kicks(1)), (1, 0));
        bench.set(way, common::NOTIFY + 8, 2, 0);
        assert_eq!(bench.rules(), ["V-TRANSPORT-12"]);
    }
}

#[test]
fn reading_isr_clears_it() {
    for way in WAYS {
        let mut bench = Bench::new();
        bench.bring_up();
        bench.signal_queue(0);
        assert_eq!((bench.get(way, common::ISR, 1), bench.get(way, common::ISR, 1)), (1, 0));
        bench.signal_config();
        assert_eq!((bench.get(way, common::ISR, 1), bench.get(way, common::ISR, 1)), (3, 0));
    }
}

#[test]
fn isr_is_one_register_of_two_faces() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    bench.signal_queue(0);
    assert_eq!((bench.modern(common::ISR, 1), bench.port(port::ISR, 1)), (1, 0));
}

#[test]
fn a_changed_configuration_changes_the_generation() {
    let mut bench = Bench::new();
    bench.signal_config();
    assert_eq!(bench.modern(common::GENERATION, 1), 1);
}

#[test]
fn a_queue_is_reset_alone_and_starts_again() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.events();
    bench.set_modern(common::QUEUE_SELECT, 2, 1);
    bench.set_modern(common::QUEUE_VECTOR, 2, 1);
    bench.set_modern(common::QUEUE_RESET, 2, 1);
    assert_eq!((bench.events(), bench.running()), (vec![Event::Stopped(1)], vec![0]));
    let registers = [
        common::QUEUE_RESET,
        common::QUEUE_ENABLE,
        common::QUEUE_SIZE,
        common::QUEUE_VECTOR,
    ];
    assert_eq!(registers.map(|register| bench.modern(register, 2)), [0, 0, 8, 0xffff]);
    bench.set_modern(common::QUEUE_SIZE, 2, 4);
    bench.set_up_queue(1, 0x3_0000);
    assert_eq!((bench.running(), bench.size_of_running(1)), (vec![0, 1], 4));
    assert_eq!(bench.rules(), [] as [&str; 0]);
}

#[test]
fn the_window_is_read_and_written_like_registers() {
    let mut bench = Bench::new();
    bench.point_window(4, common::CONFIG, 2);
    assert_eq!(bench.config(WINDOW + 4, 4), 4);
    assert_eq!((bench.config(WINDOW + 8, 4), bench.config(WINDOW + 12, 4)), (0x2000, 2));
    // Only the bytes of the length are carried.
    bench.set_config(WINDOW + 16, 4, 0xffff_aaaa);
    assert_eq!(bench.modern(common::CONFIG, 4), 0x0302_aaaa);
}

#[test]
fn a_window_astray_is_ignored() {
    let mut bench = Bench::new();
    for (bar, offset, len) in [
        (0, 0, 4),
        (1, 0, 4),
        (2, 0, 4),
        (6, 0, 4),
        (0xff, 0, 4),
        (4, 0, 0),
        (4, 0, 3),
        (4, 0, 8),
        (4, 1, 2),
        (4, 2, 4),
        (4, 0x4000, 4),
        (4, 0xffff_fffc, 4),
    ] {
        bench.point_window(bar, offset, len);
        bench.set_config(WINDOW + 16, 4, 0x1111_1111);
        let last = TransportFault::WindowAstray {
            bar: bar as u8,
            offset: offset as u32,
            len: len as u32,
        };
        assert_eq!(bench.faults(), [last], "{bar} {offset:#x} {len}");
        assert_eq!(bench.config(WINDOW + 16, 4), 0x1111_1111);
        bench.faults();
    }
    assert_eq!((bench.modern(common::DEVICE_FEATURE_SELECT, 4), bench.status()), (0, 0));
}
