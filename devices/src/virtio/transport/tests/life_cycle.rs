//! From power-on through reset to the next driver, in every order.

use super::*;

const STOP_AND_RESET: [Event; 3] = [Event::Stopped(0), Event::Stopped(1), Event::Reset];

#[test]
fn a_device_that_was_never_activated_is_reset() {
    let mut bench = Bench::new();
    bench.set_status(0);
    bench.set_legacy_status(0);
    bench.pci.reset();
    assert_eq!(bench.events(), [Event::Reset; 3]);
}

#[test]
fn each_way_to_reset_stops_an_active_device() {
    let ways: [fn(&mut Bench); 4] = [
        |bench| bench.set_status(0),
        |bench| bench.set_legacy_status(0),
        |bench| bench.set_port(port::QUEUE_PFN, 4, 0),
        |bench| drop(bench.pci.reset()),
    ];
    for way in ways {
        let mut bench = Bench::new();
        bench.bring_up();
        bench.events();
        way(&mut bench);
        assert_eq!((bench.events(), bench.status()), (STOP_AND_RESET.to_vec(), 0));
        assert_eq!(bench.modern(common::QUEUE_ENABLE, 2), 0);
        assert_eq!(bench.modern(common::QUEUE_DESC, 8), 0);
        bench.set_config(0x04, 2, 7);
        bench.bring_up();
        assert_eq!((bench.running(), bench.status()), (vec![0, 1], READY));
    }
}

#[test]
fn reset_in_a_loop_changes_nothing_more() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.bring_up();
        bench.set_status(0);
        bench.bring_up_legacy();
        bench.set_legacy_status(0);
    }
    assert_eq!((bench.running(), bench.rules()), (vec![], vec![]));
}

#[test]
fn kicks_before_a_reset_are_not_for_the_driver_after_it() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.set_modern(common::NOTIFY, 2, 0);
    bench.set_status(0);
    assert_eq!(bench.kicks(0), 0);
}

#[test]
fn a_firmware_driver_hands_over_to_one_of_the_other_face() {
    let mut bench = Bench::new();
    bench.bring_up_legacy();
    bench.bring_up();
    assert_eq!((bench.status(), bench.running()), (READY, vec![0, 1]));
    bench.bring_up_legacy();
    assert_eq!(bench.legacy_status(), LEGACY_READY);
    assert_eq!((bench.running(), bench.rules()), (vec![0, 1], vec![]));
}

#[test]
fn driver_ok_can_be_taken_back_and_given_again() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.events();
    bench.set_status(AGREED);
    assert_eq!((bench.running(), bench.status()), (vec![], AGREED));
    bench.set_status(READY);
    assert_eq!(
        bench.events(),
        [0, 1]
            .map(Event::Stopped)
            .into_iter()
            .chain([0, 1].map(Event::Started))
            .collect::<Vec<_>>()
    );
    assert_eq!(bench.rules(), ["V-TRANSPORT-05"]);
}

#[test]
fn a_queue_that_was_stopped_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.bring_up();
    // Three chains at head 0, 1, 2, of one buffer each.
    for head in 0..3u16 {
        let descriptor = 0x1_0000 + 16 * u64::from(head);
        bench.poke(descriptor, 0x8000);
        bench.poke(descriptor + 8, 64);
        bench.poke(0x1_1004 + 2 * u64::from(head), head);
    }
    bench.poke(0x1_1002, 3);
    bench.serve();
    bench.set_status(AGREED);
    bench.set_status(READY);
    let expected = QueueState {
        next_avail: 3,
        next_used: 3,
        broken: false,
    };
    assert_eq!(bench.shared.queues.lock().unwrap()[&0].ring.state(), expected);
    bench.bring_up();
    let fresh = QueueState::default();
    assert_eq!(bench.shared.queues.lock().unwrap()[&0].ring.state(), fresh);
}

#[test]
fn a_driver_that_fails_stops_the_device_until_it_resets_it() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.set_status(READY | status::FAILED);
    assert_eq!((bench.running(), bench.status()), (vec![], READY | status::FAILED));
    bench.bring_up();
    assert_eq!(bench.running(), [0, 1]);
}

#[test]
fn bus_mastering_switched_off_stops_the_device() {
    let mut bench = Bench::new();
    bench.bring_up();
    bench.set_config(0x04, 2, 3);
    assert_eq!((bench.running(), bench.status()), (vec![], AGREED));
    bench.set_config(0x04, 2, 7);
    assert!(bench.running().is_empty());
    bench.set_status(READY);
    assert_eq!(bench.running(), [0, 1]);
}

#[test]
fn a_modern_driver_without_bus_mastering_waits_for_it() {
    let mut bench = Bench::new();
    bench.set_config(0x04, 2, 2);
    bench.bring_up();
    assert_eq!((bench.running(), bench.config(0x04, 2)), (vec![], 2));
    bench.set_config(0x04, 2, 6);
    assert_eq!(bench.running(), [0, 1]);
}

#[test]
fn a_pause_stops_queues_where_they_are() {
    let mut bench = Bench::new();
    bench.bring_up();
    let next = QueueState {
        next_avail: 5,
        next_used: 5,
        broken: false,
    };
    bench.pci.pause();
    let saved = bench.pci.save();
    let text = serde_json::to_string(&saved)
        .unwrap()
        .replace("\"next_avail\":0,\"next_used\":0", "\"next_avail\":5,\"next_used\":5");
    bench.pci.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    bench.pci.resume();
    let states: Vec<_> = bench
        .shared
        .queues
        .lock()
        .unwrap()
        .values()
        .map(|start| start.ring.state())
        .collect();
    assert_eq!(states, [next; 2]);
}

#[test]
fn a_saved_device_goes_on_as_another_one() {
    let mut first = Bench::new();
    first.set_config(0x9a, 2, 0x8000);
    first.bring_up();
    first.set_modern(common::QUEUE_SELECT, 2, 1);
    first.set_modern(common::QUEUE_VECTOR, 2, 2);
    first.signal_queue(1);
    first.signal_config();
    first.pci.pause();
    let state = first.pci.save();

    let mut second = Bench::new();
    second.pci.restore(&state).unwrap();
    assert_eq!((second.status(), second.running()), (READY, vec![0, 1]));
    assert_eq!(
        (
            second.modern(common::QUEUE_VECTOR, 2),
            second.modern(common::GENERATION, 1)
        ),
        (2, 1)
    );
    assert_eq!(second.read(1, 0x800, 8), 4, "the message still waits");
    second.write(1, 0x2c, 4, 0);
    assert_eq!(second.sent(), [2]);
    assert_eq!(second.modern(common::ISR, 1), 3);
    second.pci.pause();
    second.shared.sent.lock().unwrap().clear();

    let mut other = Bench::of(&BLOCK, 0, &[256], "").unwrap();
    assert!(other.pci.restore(&state).is_err());
}

#[test]
fn a_device_that_goes_away_stops_its_queues() {
    let mut bench = Bench::new();
    bench.bring_up();
    let shared = bench.shared.clone();
    drop(bench);
    assert!(shared.queues.lock().unwrap().is_empty());
}
