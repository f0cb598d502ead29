//! Feature words and their negotiation.

use super::*;

/// Both words of the features that the modern face shows.
fn shown(bench: &mut Bench) -> u64 {
    [0, 1].iter().fold(0, |word, select| {
        bench.set_modern(common::DEVICE_FEATURE_SELECT, 4, *select);
        word | bench.modern(common::DEVICE_FEATURE, 4) << (32 * select)
    })
}

#[test]
fn words_are_those_of_qemus_disk() {
    let mut both = Bench::new();
    assert_eq!(both.port(port::DEVICE_FEATURES, 4), 0x7900_6e54);
    assert_eq!(shown(&mut both), 0x101_3000_6e54);
    assert_eq!(shown(&mut Bench::with("disable-legacy=on")), 0x101_3000_6e54);
    let mut legacy = Bench::with("disable-modern=on");
    assert_eq!(legacy.port(port::DEVICE_FEATURES, 4), 0x7100_6ed4);
}

#[test]
fn options_switch_ring_features_off() {
    let mut bench = Bench::with("event_idx=off,indirect_desc=off,queue_reset=off,any_layout=off");
    assert_eq!(bench.port(port::DEVICE_FEATURES, 4), 0x4100_6e54);
    assert_eq!(shown(&mut bench), 0x1_0000_6e54);
}

#[test]
fn selects_past_the_second_word_show_nothing() {
    let mut bench = Bench::new();
    for select in [2, 3, 0xffff_ffff] {
        bench.set_modern(common::DEVICE_FEATURE_SELECT, 4, select);
        bench.set_modern(common::DRIVER_FEATURE_SELECT, 4, select);
        bench.set_modern(common::DRIVER_FEATURE, 4, 0xffff_ffff);
        assert_eq!(bench.modern(common::DEVICE_FEATURE, 4), 0);
        assert_eq!(bench.modern(common::DRIVER_FEATURE, 4), 0);
        assert_eq!(bench.modern(common::DEVICE_FEATURE_SELECT, 4), select);
    }
    assert_eq!(bench.rules(), ["V-TRANSPORT-01"; 3]);
}

#[test]
fn accepted_features_read_back_as_written() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1 | 1 << 9 | 1 << 28);
    for (select, word) in [(0, 1 << 9 | 1 << 28), (1, 1)] {
        bench.set_modern(common::DRIVER_FEATURE_SELECT, 4, select);
        assert_eq!(bench.modern(common::DRIVER_FEATURE, 4), word);
    }
    assert_eq!((bench.status(), bench.rules()), (AGREED, vec![]));
    assert_eq!(
        bench.events(),
        [Event::Reset, Event::Activated(VERSION_1 | 1 << 9 | 1 << 28)]
    );
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let mut bench = Bench::new();
    for (features, rule) in [
        (VERSION_1 | 1, "V-TRANSPORT-01"),
        (VERSION_1 | 1 << 34, "V-TRANSPORT-01"),
        (VERSION_1 | 1 << 24, "V-TRANSPORT-01"),
        (1 << 9, "V-TRANSPORT-02"),
        (0, "V-TRANSPORT-02"),
    ] {
        bench.negotiate(features);
        assert_eq!(bench.status(), ACKNOWLEDGED, "{features:#x}");
        assert_eq!(bench.rules(), [rule], "{features:#x}");
    }
    assert!(!bench.events().iter().any(|event| matches!(event, Event::Activated(_))));
}

#[test]
fn features_are_fixed_after_features_ok() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_modern(common::DRIVER_FEATURE_SELECT, 4, 0);
    bench.set_modern(common::DRIVER_FEATURE, 4, 1 << 9);
    bench.set_port(port::DRIVER_FEATURES, 4, 1 << 9);
    assert_eq!(bench.modern(common::DRIVER_FEATURE, 4), 0);
    assert_eq!(bench.rules(), ["V-TRANSPORT-04"; 2]);
}

#[test]
fn legacy_drivers_have_what_they_accept_of_what_is_offered() {
    let mut bench = Bench::new();
    bench.set_legacy_status(ACKNOWLEDGED);
    bench.set_port(port::DRIVER_FEATURES, 4, 1 << 9 | 1 << 28 | 1);
    assert_eq!(bench.port(port::DRIVER_FEATURES, 4), 1 << 9 | 1 << 28);
    assert_eq!(bench.rules(), ["V-TRANSPORT-01"]);
    bench.set_legacy_status(LEGACY_READY);
    assert_eq!(bench.events(), [Event::Activated(1 << 9 | 1 << 28)]);
}

#[test]
fn a_driver_that_accepts_bit_30_gets_what_it_is_known_to_understand() {
    static CARD: DeviceInfo = DeviceInfo {
        differences: FaceDifferences {
            understood_by_bad_drivers: 1 << 5 | 1 << 3,
            ..FaceDifferences::NONE
        },
        ..row("virtio-net-pci", DeviceId::Network, 0x1000, class::NETWORK_ETHERNET, 8)
    };
    let mut bench = Bench::of(&CARD, 1 << 5 | 1 << 15, &[8; 3], "").unwrap();
    bench.set_legacy_status(ACKNOWLEDGED);
    bench.set_port(port::DRIVER_FEATURES, 4, 0xffff_ffff);
    assert_eq!(bench.port(port::DRIVER_FEATURES, 4), 1 << 5);
    assert_eq!(bench.rules(), ["V-TRANSPORT-03"]);
    assert_eq!(Bench::new().port(port::DRIVER_FEATURES, 4), 0);
}

#[test]
fn a_legacy_driver_that_writes_features_late_is_believed() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    bench.events();
    bench.set_port(port::DRIVER_FEATURES, 4, 1 << 28);
    let restarted = [
        Event::Stopped(0),
        Event::Stopped(1),
        Event::Activated(1 << 28),
        Event::Started(0),
        Event::Started(1),
    ];
    assert_eq!(bench.events(), restarted);
}
