//! Network cards: frames, link, addresses, queue pairs. Commands are in `net_control`.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use devices::virtio::net::AnnounceParameters;
use devices::virtio::virtq::testing::Buffer;
use tests::driver::modern::{Modern, common};
use tests::driver::net::{Cable, Card, MRG_RXBUF, RX, TX, control};
use tests::driver::{Driver, LEFT_ALONE, Machine, Way, wait_for};
use vmm_sys_util::tempdir::TempDir;

/// A machine with a card on a cable.
pub fn machine(options: &str) -> (Machine, Cable) {
    let cable = Cable::new().unwrap();
    let options = format!("{},id=net0,{options}", cable.options());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    (machine, cable)
}

/// A frame of `len` bytes that differs from others by `seed`.
pub fn frame(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| seed.wrapping_add(index as u8).wrapping_mul(7))
        .collect()
}

#[test]
fn frames_go_both_ways_each_way() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        for round in 0..4 {
            let there = frame(round, 60 + usize::from(round) * 400);
            card.send(&there);
            assert_eq!(cable.receive(), there, "{way:?}");
            card.post(round.into(), 2048);
            let back = frame(round + 100, 1514);
            cable.send(&back);
            assert_eq!(card.receive(), back, "{way:?}");
        }
    }
}

#[test]
fn a_frame_of_five_bytes_passes_both_ways() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        card.send(b"TEST\0");
        assert_eq!(cable.receive(), b"TEST\0", "{way:?}");
        card.post(0, 64);
        cable.send(b"TEST\0");
        assert_eq!(card.receive(), b"TEST\0", "{way:?}");
    }
}

#[test]
fn without_mergeable_buffers_a_frame_lies_in_one_and_what_is_larger_is_lost() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::without(&machine, way, MRG_RXBUF);
        assert_eq!(card.header(), if way.is_modern() { 12 } else { 10 });
        card.post(0, 1526);
        cable.send(&frame(0, 1526));
        cable.send(&frame(1, 1514));
        assert_eq!(card.receive(), frame(1, 1514), "{way:?}");
        card.send(&frame(2, 60));
        assert_eq!(cable.receive(), frame(2, 60), "{way:?}");
    }
}

#[test]
fn a_large_frame_lies_in_as_many_buffers_as_it_needs() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        (0..48).for_each(|slot| card.post(slot, 1536));
        for (seed, len) in [(0, 1524), (1, 1525), (2, 9000), (3, 60), (4, 40_000)] {
            cable.send(&frame(seed, len));
            assert_eq!(card.receive(), frame(seed, len), "{way:?}, {len} bytes");
        }
    }
}

#[test]
fn a_frame_waits_for_the_buffers_that_it_needs() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        card.post(0, 1500);
        cable.send(&frame(5, 4000));
        // A frame is shown as a whole: the card has read this one as soon as it answers.
        card.send(&frame(6, 60));
        cable.receive();
        assert_eq!(card.take(), None, "{way:?}: a part of a frame");
        card.post(1, 1500);
        card.post(2, 1500);
        assert_eq!(card.receive(), frame(5, 4000), "{way:?}");
    }
}

#[test]
fn frames_wait_with_the_host_until_there_are_buffers() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        (0..8).for_each(|seed| cable.send(&frame(seed, 600)));
        driver.start();
        let mut card = Card::on(driver);
        for seed in 0..8 {
            card.post(seed.into(), 2048);
            assert_eq!(card.receive(), frame(seed, 600), "{way:?}");
        }
    }
}

#[test]
fn a_frame_in_any_number_of_pieces_is_sent_whole() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let header = card.header() as u64;
        let at = card.driver.data();
        card.driver.machine().set_bytes(at, &vec![0; header as usize]);
        card.driver.machine().set_bytes(at + header, &frame(9, 60));
        for piece in [1, 3, 7, 72] {
            let starts = (0..header + 60).step_by(piece);
            let buffers: Vec<Buffer> = starts
                .map(|start| Buffer::readable(at + start, (header + 60 - start).min(piece as u64) as u32))
                .collect();
            assert_eq!(card.driver.request(TX, &buffers).len, 0, "{way:?}");
            assert_eq!(cable.receive(), frame(9, 60), "{way:?}, pieces of {piece}");
        }
    }
}

#[test]
fn a_receive_buffer_may_be_in_pieces_too() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let header = card.header() as u32;
        let at = card.driver.data();
        let pieces: Vec<Buffer> = (0..header + 60)
            .map(|byte| Buffer::writable(at + u64::from(byte), 1))
            .collect();
        card.driver.post(RX, &pieces);
        card.driver.kick(RX);
        cable.send(&frame(3, 60));
        assert_eq!(card.driver.complete(RX).len, header + 60);
        let received = machine.bytes(at + u64::from(header), 60);
        assert_eq!(received, frame(3, 60), "{way:?}");
    }
}

#[test]
fn malformed_chains_come_back_and_the_queues_go_on() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let at = card.driver.data();
        let header = card.header() as u32;
        for (what, buffers) in [
            ("no header", vec![Buffer::readable(at, header - 1)]),
            ("nothing behind the header", vec![Buffer::readable(at, header)]),
            ("nothing to read", vec![Buffer::writable(at, 100)]),
            ("not in RAM", vec![Buffer::readable(0xffff_0000_0000, 100)]),
            ("wrapping around", vec![Buffer::readable(u64::MAX - 8, 100)]),
        ] {
            assert_eq!(card.driver.request(TX, &buffers).len, 0, "{way:?}: {what}");
        }
        for (what, buffers) in [
            ("smaller than a header", vec![Buffer::writable(at, header - 1)]),
            ("nothing to write", vec![Buffer::readable(at, 100)]),
            ("not in RAM", vec![Buffer::writable(0xffff_0000_0000, 100)]),
        ] {
            card.driver.post(RX, &buffers);
            card.driver.kick(RX);
            cable.send(&frame(1, 60));
            assert_eq!(card.driver.complete(RX).len, 0, "{way:?}: {what}");
            card.post(1, 2048);
            assert_eq!(card.receive(), frame(1, 60), "{way:?}: {what}");
        }
        card.send(&frame(2, 60));
        assert_eq!(cable.receive(), frame(2, 60), "{way:?}");
    }
}

#[test]
fn a_header_that_asks_for_the_absurd_is_not_looked_at_without_offloads() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let header = card.header() as u32;
        let at = card.driver.data();
        card.driver.machine().set_bytes(at, &[0xff; 12]);
        card.driver.machine().set_bytes(at + 0x100, &frame(1, 60));
        let buffers = [Buffer::readable(at, header), Buffer::readable(at + 0x100, 60)];
        card.driver.request(TX, &buffers);
        assert_eq!(cable.receive(), frame(1, 60), "{way:?}");
    }
}

/// QEMU's test of the same name: 65 descriptors with almost 4 GiB, or with what just no backend
/// carries.
#[test]
fn a_huge_frame_is_lost_and_its_chain_comes_back() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let at = card.driver.data();
        let part = 4 << 20;
        let over: Vec<Buffer> = (0..65).map(|_| Buffer::readable(at, 0xc_0000)).collect();
        assert_eq!(card.driver.request(TX, &over).len, 0, "{way:?}");
        let huge: Vec<Buffer> = (0..65).map(|_| Buffer::readable(0x10_0000, part)).collect();
        assert_eq!(card.driver.request(TX, &huge).len, 0, "{way:?}");
        let large: Vec<Buffer> = (0..65).map(|_| Buffer::readable(at, 1100)).collect();
        assert_eq!(card.driver.request(TX, &large).len, 0, "{way:?}");
        card.send(&frame(1, 60));
        assert_eq!(cable.receive(), frame(1, 60), "{way:?}");
    }
}

#[test]
fn with_the_cable_out_frames_are_lost_both_ways() {
    let (machine, mut cable) = machine("");
    let control = control(&machine);
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        assert_eq!(card.driver.transport.config(6, 2), 1, "{way:?}: link up");
        card.post(0, 2048);
        control.set_link(false);
        wait_for("a change", || (card.driver.transport.isr() & 2 != 0).then_some(()));
        assert!(!control.link());
        assert_eq!(card.driver.transport.config(6, 2), 0, "{way:?}: link down");
        card.send(&frame(1, 60));
        cable.send(&frame(2, 60));
        // What was in the cable is gone once the card has read it.
        wait_for("the card to read", || cable.is_empty().then_some(()));
        control.set_link(true);
        assert_eq!(card.driver.transport.config(6, 2), 1, "{way:?}: link up again");
        // It may still be reading what is lost, until it has sent something.
        card.send(&frame(4, 60));
        assert_eq!(cable.receive(), frame(4, 60), "{way:?}");
        cable.send(&frame(3, 60));
        assert_eq!(card.receive(), frame(3, 60), "{way:?}");
    }
}

#[test]
fn a_change_of_the_link_is_told_once() {
    let (machine, _cable) = machine("");
    let control = control(&machine);
    let card = Card::of_first(&machine, Way::Modern);
    control.set_link(true);
    assert_eq!(card.driver.transport.isr(), 0);
    control.set_link(false);
    assert_eq!(card.driver.transport.isr(), 3);
    control.set_link(false);
    assert_eq!(card.driver.transport.isr(), 0);
}

#[test]
fn a_card_without_a_cable_shows_no_link_and_one_without_a_network_does() {
    for (options, link) in [("none", 0), ("", 1)] {
        let machine = Machine::new(&[("virtio-net-pci", options)]).unwrap();
        for way in Way::ALL {
            let mut card = Card::of_first(&machine, way);
            assert_eq!(card.driver.transport.config(6, 2), link, "{options}");
            card.send(&frame(1, 60));
        }
    }
}

#[test]
fn the_configuration_ends_where_the_features_say() {
    for (options, len) in [
        ("", 8),
        ("mq=on", 10),
        ("mtu=1400", 12),
        ("speed=1000", 17),
        ("status=off", 6),
    ] {
        let (machine, _cable) = machine(options);
        let driver = Driver::bind(&machine, machine.devices()[0], Way::Modern);
        let bytes: Vec<u64> = (0..20).map(|offset| driver.transport.config(offset, 1)).collect();
        assert_eq!(bytes[..6], [0x52, 0x54, 0, 0x12, 0x34, 0x56], "{options}");
        assert!(bytes[len..].iter().all(|byte| *byte == 0xff), "{options}: {bytes:x?}");
    }
    let (machine, _cable) = machine("mtu=1400,speed=1000,duplex=full,mac=52:54:00:aa:bb:cc");
    let config = Driver::bind(&machine, machine.devices()[0], Way::Modern).transport;
    assert_eq!((config.config(4, 2), config.config(10, 2)), (0xccbb, 1400));
    assert_eq!((config.config(12, 4), config.config(16, 1)), (1000, 1));
}

#[test]
fn features_are_those_of_qemu_without_a_header() {
    let (machine, _cable) = machine("");
    let offered = |way| Driver::bind(&machine, machine.devices()[0], way).transport.offered();
    assert_eq!(offered(Way::Modern), 0x101_30bf_8024);
    assert_eq!(offered(Way::Legacy), 0x79bf_8064);
}

#[test]
fn cards_get_addresses_in_their_order() {
    let machine = Machine::new(&[
        ("virtio-net-pci", "none"),
        ("virtio-net-pci", "none,mac=52:54:00:12:34:57"),
        ("virtio-net-pci", "none"),
    ])
    .unwrap();
    let last = |index: usize| {
        let driver = Driver::bind(&machine, machine.devices()[index], Way::Modern);
        driver.transport.config(5, 1)
    };
    assert_eq!([last(0), last(1), last(2)], [0x56, 0x57, 0x58]);
}

#[test]
fn a_legacy_driver_without_the_command_writes_its_address() {
    let (machine, _cable) = machine("");
    let mut driver = Driver::bind(&machine, machine.devices()[0], Way::Legacy);
    driver.start_with(!(LEFT_ALONE | 1 << 23));
    for (offset, byte) in [2, 4, 6, 8, 10, 12].into_iter().enumerate() {
        driver.transport.set_config(offset as u32, 1, byte);
    }
    assert_eq!(driver.transport.config(0, 4), 0x0806_0402);
    assert_eq!(control(&machine).mac().to_string(), "02:04:06:08:0a:0c");
    driver.start();
    assert_eq!(
        driver.transport.config(5, 1),
        0x56,
        "a reset brings back the first address"
    );
    driver.transport.set_config(5, 1, 0x99);
    assert_eq!(
        driver.transport.config(5, 1),
        0x56,
        "with the command, the space is read-only"
    );
    let mut modern = Driver::bind(&machine, machine.devices()[0], Way::Modern);
    modern.start_with(!(LEFT_ALONE | 1 << 23));
    modern.transport.set_config(5, 1, 0x99);
    assert_eq!(modern.transport.config(5, 1), 0x56, "and on the modern face always");
}

#[test]
fn a_card_is_announced_in_several_rounds() {
    let (machine, mut cable) = machine("");
    let control = control(&machine);
    let quick = AnnounceParameters {
        initial: Duration::from_millis(1),
        step: Duration::from_millis(1),
        ..AnnounceParameters::default()
    };
    // Without a driver too.
    for way in [None, Some(Way::Legacy), Some(Way::Modern)] {
        let card = way.map(|way| Card::of_first(&machine, way));
        control.announce(quick);
        for _ in 0..5 {
            let frame = cable.receive();
            assert_eq!((frame.len(), &frame[12..14]), (60, &[0x80, 0x35][..]));
            assert_eq!(frame[6..12], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        }
        if let Some(card) = card {
            assert_eq!(card.driver.transport.config(6, 2), 3, "the driver is asked too");
            assert_eq!(card.driver.transport.isr() & 2, 2);
        }
    }
}

#[test]
fn an_announcement_ends_when_it_is_told_to() {
    let (machine, mut cable) = machine("");
    let control = control(&machine);
    let slow = AnnounceParameters {
        initial: Duration::from_secs(3600),
        max: Duration::from_secs(3600),
        ..AnnounceParameters::default()
    };
    control.announce(slow);
    cable.receive();
    control.announce(AnnounceParameters { rounds: 0, ..slow });
    let mut card = Card::of_first(&machine, Way::Modern);
    card.send(&frame(1, 60));
    assert_eq!(cable.receive(), frame(1, 60));
}

#[test]
fn queue_pairs_are_there_for_a_driver_that_knows_them() {
    let machine = Machine::new(&[("virtio-net-pci", "none,queues=1,mq=on")]).unwrap();
    let driver = Driver::bind(&machine, machine.devices()[0], Way::Modern);
    assert_eq!(driver.transport.offered() >> 22 & 1, 1);
    assert_eq!(driver.transport.config(8, 2), 1);
    let modern = Modern::of(driver.device).unwrap();
    assert_eq!(modern.read(common::NUM_QUEUES, 2), 3);
}

#[test]
fn a_listening_card_takes_one_client_after_the_other() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("net");
    let options = format!("socket=listen:{}", path.display());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        // Nobody is there, and it is lost.
        card.send(&frame(0, 60));
        for round in 1..4 {
            let far = UnixStream::connect(&path).unwrap();
            let mut cable = Cable::over(far).unwrap();
            card.post(round.into(), 2048);
            cable.send(&frame(round, 100));
            assert_eq!(card.receive(), frame(round, 100), "{way:?}");
            card.send(&frame(round, 60));
            assert_eq!(cable.receive(), frame(round, 60), "{way:?}");
        }
    }
    drop(machine);
    assert!(!path.exists(), "the socket goes with the card");
}

#[test]
fn a_card_connects_to_who_listens() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("net");
    let options = format!("socket=connect:{}", path.display());
    let missing = Machine::new(&[("virtio-net-pci", &options)]).err().unwrap().to_string();
    assert!(missing.contains("start what listens there first"), "{missing}");
    let listener = UnixListener::bind(&path).unwrap();
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    let mut cable = Cable::over(listener.accept().unwrap().0).unwrap();
    let mut card = Card::of_first(&machine, Way::Modern);
    card.send(&frame(1, 60));
    assert_eq!(cable.receive(), frame(1, 60));
}

#[test]
fn a_client_that_speaks_another_language_is_sent_away() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("net");
    let options = format!("socket=listen:{}", path.display());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    let mut card = Card::of_first(&machine, Way::Modern);
    card.post(0, 2048);
    for _ in 0..3 {
        let mut wrong = Cable::over(UnixStream::connect(&path).unwrap()).unwrap();
        wrong.send_raw(&[0xff; 100]);
        assert!(wrong.is_closed());
    }
    let mut right = Cable::over(UnixStream::connect(&path).unwrap()).unwrap();
    right.send(&frame(1, 60));
    assert_eq!(card.receive(), frame(1, 60));
}

#[test]
fn frames_that_come_in_pieces_are_put_together() {
    let (machine, mut cable) = machine("");
    let mut card = Card::of_first(&machine, Way::Modern);
    (0..20).for_each(|slot| card.post(slot, 2048));
    let mut bytes = Vec::new();
    for seed in 0..20 {
        let frame = frame(seed, 100 + usize::from(seed));
        bytes.extend((frame.len() as u32).to_be_bytes());
        bytes.extend(frame);
    }
    bytes.chunks(7).for_each(|piece| cable.send_raw(piece));
    for seed in 0..20 {
        assert_eq!(card.receive(), frame(seed, 100 + usize::from(seed)));
    }
}

#[test]
fn a_far_end_that_does_not_read_blocks_and_loses_nothing() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        let mut posted = 0u32;
        // Two descriptors each, until the ring is full.
        while let Some(at) = (posted < 120).then_some(card.driver.data()) {
            let buffers = [
                Buffer::readable(at, card.header() as u32),
                Buffer::readable(at + 0x1000, 60_000),
            ];
            card.driver.post(TX, &buffers);
            posted += 1;
        }
        card.driver.kick(TX);
        for _ in 0..posted {
            assert_eq!(cable.receive().len(), 60_000, "{way:?}");
        }
        (0..posted).for_each(|_| assert_eq!(card.driver.complete(TX).len, 0));
    }
}

/// Sends 120 large frames, for which a far end that does not read has no room; one is gone.
fn block(card: &mut Card<'_>) {
    let at = card.driver.data();
    for _ in 0..120 {
        let buffers = [
            Buffer::readable(at, card.header() as u32),
            Buffer::readable(at + 0x1000, 60_000),
        ];
        card.driver.post(TX, &buffers);
    }
    card.driver.kick(TX);
    card.driver.complete(TX);
}

#[test]
fn a_far_end_that_goes_without_having_read_blocks_nothing() {
    let (machine, mut cable) = machine("");
    let mut card = Card::of_first(&machine, Way::Modern);
    card.post(0, 2048);
    block(&mut card);
    // It is what is received that ends the connection.
    cable.send_raw(&[0xff; 100]);
    (1..120).for_each(|_| assert_eq!(card.driver.complete(TX).len, 0));
}

#[test]
fn what_a_blocked_far_end_did_not_take_is_lost_with_the_cable() {
    let (machine, mut cable) = machine("");
    let mut card = Card::of_first(&machine, Way::Modern);
    block(&mut card);
    let control = control(&machine);
    control.set_link(false);
    (1..120).for_each(|_| assert_eq!(card.driver.complete(TX).len, 0));
    control.set_link(true);
    card.post_frame(&frame(1, 60));
    while cable.receive() != frame(1, 60) {}
}

#[test]
fn frames_that_were_sent_before_the_far_end_went_are_received() {
    let (machine, mut cable) = machine("");
    let mut card = Card::of_first(&machine, Way::Modern);
    (0..3).for_each(|seed| cable.send(&frame(seed, 100)));
    drop(cable);
    card.send(&frame(9, 60));
    for seed in 0..3 {
        card.post(seed.into(), 2048);
        assert_eq!(card.receive(), frame(seed, 100));
    }
}

#[test]
fn a_client_that_went_makes_room_for_the_next_when_nothing_can_be_received() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("net");
    let options = format!("socket=listen:{}", path.display());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    let mut card = Card::of_first(&machine, Way::Modern);
    drop(UnixStream::connect(&path).unwrap());
    let mut next = UnixStream::connect(&path).unwrap();
    next.set_nonblocking(true).unwrap();
    let mut bytes = [0; 64];
    wait_for("a frame", || {
        card.send(&frame(1, 60));
        next.read_exact(&mut bytes).ok()
    });
    assert_eq!(bytes[4..], frame(1, 60));
}

#[test]
fn a_client_is_not_hidden_by_one_that_came_and_went_before_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("net");
    let options = format!("socket=listen:{}", path.display());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    let mut card = Card::of_first(&machine, Way::Modern);
    let connect = || UnixStream::connect(&path).unwrap();
    for round in 0..200 {
        drop(connect());
        let mut cable = Cable::over(connect()).unwrap();
        card.post(round % 64, 2048);
        cable.send(&frame(round as u8, 100));
        assert_eq!(card.receive(), frame(round as u8, 100));
    }
}

#[test]
fn a_card_without_a_network_is_captured_too() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("sent.pcap");
    let options = format!("capture={}", path.display());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    let mut card = Card::of_first(&machine, Way::Modern);
    card.send(&frame(1, 60));
    assert!(std::fs::read(&path).unwrap().ends_with(&frame(1, 60)));
}

#[test]
fn datagrams_carry_a_frame_each() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.as_path().join(name);
    let [near, far] = ["near", "far"].map(|name| path(name).display().to_string());
    let machine = Machine::new(&[("virtio-net-pci", &format!("dgram={near},remote={far}"))]).unwrap();
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        // The far end comes later, and again.
        card.send(&frame(0, 60));
        let socket = std::os::unix::net::UnixDatagram::bind(&far).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        card.send(&frame(1, 1514));
        let mut received = [0; 2000];
        assert_eq!(socket.recv(&mut received).unwrap(), 1514, "{way:?}");
        assert_eq!(received[..1514], frame(1, 1514));
        card.post(0, 2048);
        socket.send_to(&frame(2, 80), &near).unwrap();
        assert_eq!(card.receive(), frame(2, 80), "{way:?}");
        std::fs::remove_file(&far).unwrap();
    }
}

#[test]
fn a_hub_joins_the_cards_of_a_machine() {
    let card = |options: &'static str| ("virtio-net-pci", options);
    let machine = Machine::new(&[card("hub=0"), card("hub=0"), card("hub=1"), card("hub=0")]).unwrap();
    let bring_up = |index: usize, way| {
        let mut driver = Driver::bind(&machine, machine.devices()[index], way);
        driver.start();
        Card::on(driver)
    };
    let [mut a, mut b, mut other, mut c] = [
        bring_up(0, Way::Legacy),
        bring_up(1, Way::Modern),
        bring_up(2, Way::Modern),
        bring_up(3, Way::Modern),
    ];
    for card in [&mut a, &mut b, &mut other, &mut c] {
        card.post(0, 2048);
    }
    a.send(&frame(1, 60));
    assert_eq!((b.receive(), c.receive()), (frame(1, 60), frame(1, 60)));
    c.send(&frame(2, 1514));
    assert_eq!(a.receive(), frame(2, 1514));
    assert_eq!(other.take(), None, "another hub");
}

#[test]
fn a_card_that_nobody_serves_does_not_hold_up_its_hub() {
    let card = |options: &'static str| ("virtio-net-pci", options);
    let machine = Machine::new(&[card("hub=7"), card("hub=7")]).unwrap();
    let mut sender = Card::of_first(&machine, Way::Modern);
    (0..3000u32).for_each(|number| sender.send(&frame(number as u8, 600)));
    let mut driver = Driver::bind(&machine, machine.devices()[1], Way::Modern);
    driver.start();
    let mut late = Card::on(driver);
    late.post(0, 2048);
    assert_eq!(late.receive(), frame(0, 600), "the first frame waited");
}

#[test]
fn two_backends_are_one_too_many() {
    for (options, complaint) in [
        ("none,hub=0", "none= and hub= are two networks"),
        ("hub=0,queues=2", "hub= has one queue pair, and queues=2"),
        ("queues=2", "a card without a network has one queue pair, and queues=2"),
        (
            "hostfwd=tcp:8080-:80",
            "hostfwd= is only for a card with user=; name the network, or leave out hostfwd=",
        ),
        ("hub=0,remote=127.0.0.1:1", "remote= is only for a card with dgram="),
        ("none,vhost=on", "vhost= is only for a card with tap=; leave out vhost="),
        ("hub=0,reconnect=5", "reconnect= is only for a card with vhost-user="),
        ("dgram=fd=0,remote=/x", "dgram=fd=0 has its far end; leave out remote="),
        ("socket=somewhere", "socket=somewhere: expected listen:ADDR"),
        ("socket=fd=9999", "socket=fd=9999: Bad file descriptor"),
        ("dgram=/nowhere/at/all", "dgram=/nowhere/at/all: where to?"),
    ] {
        let error = Machine::new(&[("virtio-net-pci", options)]).err().unwrap().to_string();
        assert!(error.contains(complaint), "{options}: {error}");
    }
}

#[test]
fn resets_under_load_lose_no_worker() {
    let (machine, mut cable) = machine("");
    for round in 0..60u8 {
        let way = Way::ALL[usize::from(round) % 3];
        let mut card = Card::of_first(&machine, way);
        (0..4).for_each(|slot| card.post(slot, 2048));
        (0..4).for_each(|seed| cable.send(&frame(seed, 200)));
        card.post_frame(&frame(round, 60));
        if round % 2 == 0 {
            card.driver.reset();
        }
    }
    // What was under way may come or not; what comes after the last reset does. Buffers are used in order: a slot is posted again
    // only when what came in it was read.
    let mut card = Card::of_first(&machine, Way::Modern);
    (0..64).for_each(|slot| card.post(slot, 2048));
    cable.send(&frame(77, 333));
    let mut read = 0;
    while card.receive() != frame(77, 333) {
        card.post(read % 64, 2048);
        read += 1;
    }
    card.send(&frame(88, 444));
    while cable.receive() != frame(88, 444) {}
}
