//! Network cards.

use tests::driver::net::{Cable, Card, MRG_RXBUF};
use tests::driver::{Machine, Way};

/// A machine with a card on a cable.
fn machine(options: &str) -> (Machine, Cable) {
    let cable = Cable::new().unwrap();
    let options = format!("{},{options}", cable.options());
    let machine = Machine::new(&[("virtio-net-pci", &options)]).unwrap();
    (machine, cable)
}

/// A frame of `len` bytes that differs from others by `seed`.
fn frame(seed: u8, len: usize) -> Vec<u8> {
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
fn without_mergeable_buffers_a_frame_lies_in_one() {
    let (machine, mut cable) = machine("");
    for way in Way::ALL {
        let mut card = Card::with(&machine, way, !(1 << MRG_RXBUF | 1 << 29));
        assert_eq!(card.header(), if way.is_modern() { 12 } else { 10 });
        card.post(0, 1526);
        cable.send(&frame(1, 1514));
        assert_eq!(card.receive(), frame(1, 1514), "{way:?}");
        card.send(&frame(2, 60));
        assert_eq!(cable.receive(), frame(2, 60), "{way:?}");
    }
}
