//! Commands of the driver to its network card (virtio 1.3, 5.1.6.5), and what they do to frames.

use devices::virtio::virtq::testing::Buffer;
use tests::driver::modern::{Modern, common};
use tests::driver::net::{Cable, Card, RX, control};
use tests::driver::{Driver, LEFT_ALONE, Machine, Way};

use crate::net::{frame, machine};

const OK: u8 = 0;
const ERR: u8 = 1;

/// Classes of commands.
const MODE: u32 = 0;
const MAC: u32 = 1;
const VLAN: u32 = 2;
const ANNOUNCE: u32 = 3;
const PAIRS: u32 = 4;
const OFFLOADS: u32 = 5;

/// Numbers within their class.
const PROMISC: u32 = 0;
const TABLE: u32 = 0;
const ADDRESS: u32 = 1;
const ADD: u32 = 0;
const DELETE: u32 = 1;

const OWN: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x99];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 9];
const ALL: [u8; 6] = [0xff; 6];

/// A frame to `destination`, with `payload` from its type on.
fn to(destination: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&destination[..], &[2; 6], payload, &[0x55; 60]].concat()
}

/// Which of the frames pass: after each one comes another that does in any case.
fn passing<const N: usize>(card: &mut Card<'_>, cable: &mut Cable, frames: [&[u8]; N]) -> [bool; N] {
    let marker = to(ALL, &[0x12, 0x34]);
    frames.map(|frame| {
        card.post(0, 2048);
        card.post(1, 2048);
        cable.send(frame);
        cable.send(&marker);
        let first = card.receive();
        if first == marker {
            // The other buffer is still there; use it up.
            cable.send(&marker);
            card.receive();
            return false;
        }
        assert_eq!(first, frame);
        assert_eq!(card.receive(), marker);
        true
    })
}

/// A table of addresses of single cards and one of groups.
fn tables(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let table = |addresses: &[[u8; 6]]| [&(addresses.len() as u32).to_le_bytes()[..], &addresses.concat()].concat();
    [table(unicast), table(multicast)].concat()
}

#[test]
fn receive_modes_let_through_what_they_say() {
    let (machine, mut cable) = machine("");
    let frames = [OWN, OTHER, GROUP].map(|destination| to(destination, &[8, 0]));
    let frames: [&[u8]; 3] = [&frames[0], &frames[1], &frames[2]];
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        assert_eq!(passing(&mut card, &mut cable, frames), [true; 3], "{way:?}");
        assert_eq!(card.command(MODE, PROMISC, &[0]), OK);
        assert_eq!(passing(&mut card, &mut cable, frames), [true, false, false], "{way:?}");
        for (mode, passes) in [
            (1, [true, false, true]),
            (2, [true, true, false]),
            (3, [true, false, false]),
            (4, [false, false, false]),
        ] {
            assert_eq!(card.command(MODE, mode, &[1]), OK);
            assert_eq!(passing(&mut card, &mut cable, frames), passes, "{way:?}: mode {mode}");
            assert_eq!(card.command(MODE, mode, &[0]), OK);
        }
        assert_eq!(card.command(MODE, 5, &[1]), OK);
        assert!(control(&machine).filter().modes.nobcast);
        for (number, data) in [(6, &[1][..]), (PROMISC, &[]), (255, &[0])] {
            assert_eq!(card.command(MODE, number, data), ERR, "{way:?}: {number}");
        }
    }
}

#[test]
fn addresses_of_the_tables_pass_and_too_many_let_all_pass() {
    let (machine, mut cable) = machine("");
    let frames = [OTHER, GROUP].map(|destination| to(destination, &[8, 0]));
    let frames: [&[u8]; 2] = [&frames[0], &frames[1]];
    let many: Vec<[u8; 6]> = (0..65).map(|last| [2, 0, 0, 0, 1, last]).collect();
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        card.command(MODE, PROMISC, &[0]);
        for (unicast, multicast, passes) in [
            (&[][..], &[][..], [false, false]),
            (&[OTHER], &[], [true, false]),
            (&[OTHER], &[GROUP], [true, true]),
            (&many, &[], [true, false]),
            (&[], &many, [false, true]),
            (&many[..64], &[GROUP], [false, true]),
            (&[], &[], [false, false]),
        ] {
            assert_eq!(card.command(MAC, TABLE, &tables(unicast, multicast)), OK);
            assert_eq!(passing(&mut card, &mut cable, frames), passes, "{way:?}");
        }
        card.command(MAC, TABLE, &tables(&[OTHER], &[GROUP]));
        let whole = tables(&[OTHER], &[GROUP]);
        let too_long = [&whole[..], &[0]].concat();
        let beyond = [&[0xff; 4][..], &OTHER].concat();
        for wrong in [
            &whole[..whole.len() - 1],
            &whole[..12],
            &whole[..3],
            &[],
            &too_long,
            &beyond,
        ] {
            assert_eq!(card.command(MAC, TABLE, wrong), ERR, "{way:?}: {} bytes", wrong.len());
        }
        assert_eq!(
            passing(&mut card, &mut cable, frames),
            [true, true],
            "{way:?}: nothing changed"
        );
    }
}

#[test]
fn an_address_that_was_set_is_the_cards_own_until_a_reset() {
    let (machine, mut cable) = machine("");
    let frames = [OWN, OTHER].map(|destination| to(destination, &[8, 0]));
    let frames: [&[u8]; 2] = [&frames[0], &frames[1]];
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        card.command(MODE, PROMISC, &[0]);
        assert_eq!(card.command(MAC, ADDRESS, &OTHER), OK);
        assert_eq!(card.driver.transport.config(5, 1), 0x99, "{way:?}");
        assert_eq!(passing(&mut card, &mut cable, frames), [false, true], "{way:?}");
        for wrong in [&OTHER[..5], &[], &[0; 7]] {
            assert_eq!(card.command(MAC, ADDRESS, wrong), ERR, "{way:?}");
        }
        assert_eq!(card.command(MAC, 2, &OTHER), ERR, "{way:?}");
        let mut card = Card::of_first(&machine, way);
        assert_eq!(card.driver.transport.config(5, 1), 0x56, "{way:?}");
        assert_eq!(passing(&mut card, &mut cable, frames), [true; 2], "{way:?}");
    }
}

#[test]
fn vlans_pass_that_the_driver_has_added() {
    let (machine, mut cable) = machine("");
    let frames = [5u16, 6].map(|id| to(OWN, &[&[0x81, 0][..], &(id | 0x2000).to_be_bytes(), &[8, 0]].concat()));
    let frames: [&[u8]; 2] = [&frames[0], &frames[1]];
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        card.command(MODE, PROMISC, &[0]);
        assert_eq!(passing(&mut card, &mut cable, frames), [false; 2], "{way:?}");
        assert_eq!(card.command(VLAN, ADD, &[5, 0]), OK);
        assert_eq!(passing(&mut card, &mut cable, frames), [true, false], "{way:?}");
        assert_eq!(card.command(VLAN, ADD, &[6, 0]), OK);
        assert_eq!(card.command(VLAN, DELETE, &[5, 0]), OK);
        assert_eq!(passing(&mut card, &mut cable, frames), [false, true], "{way:?}");
        assert_eq!(control(&machine).filter().vlans.iter().collect::<Vec<_>>(), [6]);
        for (number, data) in [
            (ADD, &[0, 0x10][..]),
            (ADD, &[0xff, 0xff]),
            (ADD, &[5]),
            (2, &[5, 0]),
            (DELETE, &[]),
        ] {
            assert_eq!(card.command(VLAN, number, data), ERR, "{way:?}: {number} {data:?}");
        }
        // A driver that does not filter VLANs gets all of them.
        let mut card = Card::without(&machine, way, 19);
        card.command(MODE, PROMISC, &[0]);
        assert_eq!(passing(&mut card, &mut cable, frames), [true; 2], "{way:?}");
    }
}

#[test]
fn an_announcement_is_acknowledged_once() {
    let (machine, _cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        assert_eq!(card.command(ANNOUNCE, 0, &[]), ERR, "{way:?}: nobody asked");
        control(&machine).announce(Default::default());
        tests::driver::wait_for("the request", || {
            (card.driver.transport.config(6, 2) == 3).then_some(())
        });
        assert_eq!(card.command(ANNOUNCE, 1, &[]), ERR, "{way:?}");
        assert_eq!(card.command(ANNOUNCE, 0, &[]), OK, "{way:?}");
        control(&machine).announce(devices::virtio::net::AnnounceParameters {
            rounds: 0,
            ..Default::default()
        });
        card.driver.reset();
        assert_eq!(card.driver.transport.config(6, 2), 1, "{way:?}: a reset forgets it");
    }
}

#[test]
fn pairs_and_offloads_that_nobody_agreed_on_are_refused() {
    let (machine, _cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        for number in 0..4 {
            assert_eq!(card.command(PAIRS, number, &[1, 0]), ERR, "{way:?}");
        }
        // Without a header in the host's frames there is nothing to leave to the guest.
        assert_eq!(card.command(OFFLOADS, 0, &[0; 8]), ERR, "{way:?}");
        assert_eq!(card.command(OFFLOADS, 0, &[0; 7]), ERR, "{way:?}");
    }
}

#[test]
fn unknown_commands_are_refused_and_the_next_is_heard() {
    let (machine, _cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        for class in 0..=255 {
            assert_eq!(card.command(class, 99, &[0; 16]), ERR, "{way:?}: class {class}");
        }
        assert_eq!(card.command(MODE, PROMISC, &[1]), OK, "{way:?}");
    }
}

#[test]
fn commands_without_room_for_an_answer_change_nothing_and_come_back() {
    let (machine, _cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let at = card.driver.data();
        machine.set_bytes(at, &[MODE as u8, PROMISC as u8, 0, 0]);
        let queue = card.control();
        for (what, buffers) in [
            ("no room", vec![Buffer::readable(at, 3)]),
            ("no command", vec![Buffer::writable(at + 0x100, 1)]),
            (
                "half a header",
                vec![Buffer::readable(at, 1), Buffer::writable(at + 0x100, 1)],
            ),
            (
                "not in RAM",
                vec![Buffer::readable(at, 3), Buffer::writable(0xffff_0000_0000, 1)],
            ),
            (
                "the wrong way round",
                vec![Buffer::writable(at + 0x100, 1), Buffer::readable(at, 3)],
            ),
        ] {
            assert_eq!(card.driver.request(queue, &buffers).len, 0, "{way:?}: {what}");
        }
        assert!(control(&machine).filter().modes.promisc, "{way:?}");
        let pieces: Vec<Buffer> = (0..3).map(|byte| Buffer::readable(at + byte, 1)).collect();
        let all = [&pieces[..], &[Buffer::writable(at + 0x100, 1)]].concat();
        assert_eq!(card.driver.request(queue, &all).len, 1, "{way:?}: in pieces");
        assert!(!control(&machine).filter().modes.promisc, "{way:?}");
    }
}

#[test]
fn a_change_of_the_filter_is_told_once_until_somebody_asks_for_it() {
    let (machine, _cable) = machine("");
    let (sender, changes) = std::sync::mpsc::channel();
    control(&machine).on_filter_change(move || sender.send(()).unwrap());
    let mut card = Card::of_first(&machine, Way::Modern);
    let told = || changes.try_iter().count();
    assert_eq!(told(), 0);
    assert_eq!(card.command(MODE, 77, &[1]), ERR);
    assert_eq!(told(), 0, "a command that is refused changes nothing");
    for _ in 0..3 {
        assert_eq!(card.command(MODE, PROMISC, &[0]), OK);
    }
    assert_eq!(told(), 1);
    for (class, number, data) in [(VLAN, ADD, vec![5, 0]), (MAC, TABLE, tables(&[OTHER], &[GROUP]))] {
        let _ = control(&machine).filter();
        assert_eq!(card.command(class, number, &data), OK);
        assert_eq!(told(), 1);
    }
}

#[test]
fn a_reset_brings_back_what_the_driver_changed() {
    let (machine, mut cable) = machine("");
    let mut card = Card::of_first(&machine, Way::Modern);
    card.command(MODE, PROMISC, &[0]);
    card.command(MODE, 4, &[1]);
    card.command(MAC, TABLE, &tables(&[OTHER], &[GROUP]));
    card.command(VLAN, ADD, &[5, 0]);
    card.driver.reset();
    let filter = control(&machine).filter();
    assert!(filter.modes.promisc && !filter.modes.nouni);
    assert!(filter.unicast.addresses.is_empty() && filter.multicast.addresses.is_empty());
    assert_eq!(filter.vlans.iter().count(), 0);
    let mut card = Card::of_first(&machine, Way::Legacy);
    card.post(0, 2048);
    cable.send(&frame(1, 60));
    assert_eq!(card.receive(), frame(1, 60));
}

#[test]
fn the_control_queue_is_the_third_for_a_driver_without_pairs() {
    let (machine, _cable) = machine("mq=on");
    let mut driver = Driver::bind(&machine, machine.devices()[0], Way::Modern);
    driver.start_with(!(LEFT_ALONE | 1 << 22));
    assert_eq!(driver.rings.len(), 3);
    let mut card = Card::on(driver);
    assert_eq!(card.command(PAIRS, 0, &[1, 0]), ERR);
    let mut card = Card::of_first(&machine, Way::Modern);
    assert_eq!(card.command(PAIRS, 0, &[1, 0]), OK);
    for pairs in [[0, 0], [2, 0], [0, 0x80], [1, 0x80]] {
        assert_eq!(card.command(PAIRS, 0, &pairs), ERR, "{pairs:?}");
    }
    let modern = Modern::of(card.driver.device).unwrap();
    assert_eq!(modern.read(common::NUM_QUEUES, 2), 3);
    assert_eq!(card.driver.rings[usize::from(RX)].config().size, 256);
}

/// Machines with a tap take privileges; the sizes and places of queues take none.
#[test]
fn a_machine_says_where_its_queues_are() {
    let machine = Machine::new(&[("virtio-net-pci", "none,rx-queue-size=1024,tx-queue-size=512")]).unwrap();
    for way in Way::ALL {
        let card = Card::of_first(&machine, way);
        let sizes: Vec<u16> = card.driver.rings.iter().map(|ring| ring.config().size).collect();
        assert_eq!(sizes, [1024, 512, 64], "{way:?}");
    }
}
