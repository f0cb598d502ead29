//! What a driver finds before it touches the device: configuration space, BARs, doorbells.

use pci::Region;

use super::*;
use crate::virtio::transport::Doorbell;

const REFERENCE: &str = include_str!("qemu-7.2-config-space.txt");

static NETWORK: DeviceInfo = row("virtio-net-pci", DeviceId::Network, 0x1000, class::NETWORK_ETHERNET, 8);
static SCSI: DeviceInfo = row("virtio-scsi-pci", DeviceId::Scsi, 0x1004, class::STORAGE_SCSI, 36);
static NINE_P: DeviceInfo = row("virtio-9p-pci", DeviceId::NineP, 0x1009, 0x0002, 7);
static VSOCK: DeviceInfo = DeviceInfo {
    transitional_id: None,
    vectors: DefaultVectors::Fixed(3),
    ..row("vhost-vsock-pci", DeviceId::Vsock, 0, class::COMMUNICATION_OTHER, 8)
};

/// Every device of the reference, with its queues.
static ALL: [(&DeviceInfo, &[u16]); 8] = [
    (&BLOCK, &[256]),
    (&NETWORK, &[256, 256, 64]),
    (&crate::virtio::console::INFO, &[128; 64]),
    (&crate::virtio::balloon::INFO, &[128; 3]),
    (&crate::virtio::rng::INFO, &[8]),
    (&SCSI, &[256; 3]),
    (&NINE_P, &[128]),
    (&VSOCK, &[128; 3]),
];

/// Bits that are the guest's or the firmware's: command, cache line and latency, addresses,
/// interrupt line, MSI-X enable.
fn without_guests_bits(space: &[u8; 256]) -> [u8; 256] {
    let mut space = *space;
    space[0x04..0x06].fill(0);
    space[0x0c..0x0e].fill(0);
    for bar in 0..6 {
        let low = space[0x10 + 4 * bar] & 0xf;
        let types = if low & 1 != 0 { low & 3 } else { low };
        space[0x10 + 4 * bar..0x14 + 4 * bar].fill(0);
        space[0x10 + 4 * bar] = types;
    }
    // The high half of a 64-bit BAR has no type bits.
    space[0x24] = 0;
    space[0x3c] = 0;
    let mut at = usize::from(space[0x34]);
    while at != 0 {
        if space[at] == 0x11 {
            space[at + 3] &= !0xc0;
        }
        at = usize::from(space[at + 1]);
    }
    space
}

fn config_space(bench: &mut Bench) -> [u8; 256] {
    let mut space = [0; 256];
    (0..256)
        .step_by(4)
        .for_each(|at| bench.pci.read_config(at as u16, &mut space[at..at + 4]));
    space
}

#[test]
fn configuration_space_is_that_of_qemu() {
    let mut compared = 0;
    for entry in REFERENCE.split("\n= ").skip(1) {
        let mut lines = entry.lines();
        let (options, name) = lines.next().unwrap().split_once(' ').unwrap();
        let mut expected = [0; 256];
        let bytes = lines.flat_map(str::split_whitespace);
        expected
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, byte)| *to = u8::from_str_radix(byte, 16).unwrap());

        let (info, sizes) = ALL.iter().find(|(info, _)| info.name == name).unwrap();
        let mut bench = Bench::of(info, 0, sizes, options.trim_start_matches('-')).unwrap();
        let found = without_guests_bits(&config_space(&mut bench));
        let expected = without_guests_bits(&expected);
        for (row, (found, expected)) in found.chunks(16).zip(expected.chunks(16)).enumerate() {
            assert_eq!(found, expected, "{name} {options} at {:#x}", 16 * row);
        }
        compared += 1;
    }
    assert_eq!(compared, 23);
}

/// Sizes as a guest finds them: writes ones and reads back.
fn bar_size(bench: &mut Bench, bar: u16) -> u32 {
    let at = 0x10 + 4 * bar;
    bench.set_config(at, 4, u32::MAX);
    let mask = bench.config(at, 4);
    let types = if mask & 1 != 0 { 3 } else { 0xf };
    (!(mask & !types)).wrapping_add(1)
}

#[test]
fn bar_sizes_are_those_of_qemu() {
    let ports = [0x80, 0x20, 0x40, 0x40, 0x20, 0x40, 0x20];
    for ((info, sizes), ports) in ALL.iter().zip(ports) {
        let mut bench = Bench::of(info, 0, sizes, "").unwrap();
        let found = [0, 1, 2, 3, 4].map(|bar| bar_size(&mut bench, bar));
        let table = if info.vectors == DefaultVectors::Fixed(0) {
            0
        } else {
            0x1000
        };
        assert_eq!(found, [ports, table, 0, 0, 0x4000], "{}", info.name);
    }
}

#[test]
fn no_vectors_means_no_msix_and_a_smaller_legacy_header() {
    let mut bench = Bench::of(&NETWORK, 0, &[8; 3], "vectors=0").unwrap();
    assert_eq!(bench.config(0x34, 1), 0x84);
    assert_eq!(bar_size(&mut bench, 1), 0);
    assert!(bench.pci.msix_vector(0).is_none());
    let mut legacy = Bench::of(&NETWORK, 0, &[8; 3], "vectors=0,disable-modern=on").unwrap();
    assert_eq!((legacy.config(0x34, 1), legacy.config(0x06, 2)), (0, 0));
}

#[test]
fn vectors_can_be_chosen() {
    for (vectors, table) in [(1, 0x1000), (128, 0x1000), (129, 0x1000), (2048, 0x1_0000)] {
        let mut bench = Bench::of(&NETWORK, 0, &[8; 3], &format!("vectors={vectors}")).unwrap();
        assert_eq!(bench.config(0x9a, 2), vectors - 1);
        assert_eq!(bar_size(&mut bench, 1), table, "{vectors}");
        assert!(bench.pci.msix_vector(vectors as u16 - 1).is_some());
        assert!(bench.pci.msix_vector(vectors as u16).is_none());
    }
    assert!(Bench::of(&NETWORK, 0, &[8; 3], "vectors=2049").is_err());
}

#[test]
fn a_doorbell_port_has_its_bar_and_its_capability() {
    let mut bench = Bench::with("modern-pio-notify=on");
    assert_eq!(bar_size(&mut bench, 2), 4);
    let chain = [
        (0xac, 0x98),
        (0x98, 0x84),
        (0x84, 0x70),
        (0x70, 0x60),
        (0x60, 0x50),
        (0x50, 0x40),
        (0x40, 0),
    ];
    assert_eq!(bench.config(0x34, 1), 0xac);
    for (at, next) in chain {
        assert_eq!(bench.config(at + 1, 1), next, "{at:#x}");
    }
    // A notification structure in BAR 2, of 4 bytes at 0, where the value names the queue.
    assert_eq!(bench.config(0x84 + 3, 1), 2);
    assert_eq!([4, 8, 12, 16].map(|at| bench.config(0x84 + at, 4)), [2, 0, 4, 0]);
    bench.bring_up();
    bench.kicks(1);
    bench.write(2, 0, 2, 1);
    assert_eq!(bench.kicks(1), 1);
    assert_eq!(bench.read(2, 0, 2), 0);
}

#[test]
fn doorbells_say_where_each_queue_is_kicked() {
    let place = |doorbell: &Doorbell| {
        (
            doorbell.queue,
            doorbell.bar,
            doorbell.offset,
            doorbell.width,
            doorbell.data,
        )
    };
    let places = |options| {
        Bench::with(options)
            .pci
            .doorbells()
            .iter()
            .map(place)
            .collect::<Vec<_>>()
    };
    let legacy = [(0, 0, 0x10, Some(2), Some(0)), (1, 0, 0x10, Some(2), Some(1))];
    let modern = [(0, 4, 0x3000, None, None), (1, 4, 0x3004, None, None)];
    let port = [(0, 2, 0, Some(2), Some(0)), (1, 2, 0, Some(2), Some(1))];
    assert_eq!(places(""), [legacy[0], modern[0], legacy[1], modern[1]]);
    assert_eq!(places("disable-legacy=on"), modern);
    assert_eq!(places("disable-modern=on"), legacy);
    assert_eq!(
        places("disable-legacy=on,modern-pio-notify=on"),
        [modern[0], port[0], modern[1], port[1]]
    );
}

#[test]
fn faces_that_are_left_out_do_not_answer() {
    let mut modern = Bench::with("disable-legacy=on");
    assert_eq!(modern.port(port::STATUS, 1), 0xff);
    modern.set_port(port::STATUS, 1, 1);
    assert_eq!(modern.status(), 0);
    let mut legacy = Bench::with("disable-modern=on");
    assert_eq!(legacy.modern(common::STATUS, 1), 0xff);
    legacy.set_status(1);
    assert_eq!(legacy.port(port::STATUS, 1), 0);
}

#[test]
fn decode_follows_the_command_register() {
    let mut bench = Bench::new();
    bench.set_config(0x10, 4, 0xc000);
    let ports = Region {
        bar: 0,
        space: pci::Space::Io,
        base: 0xc000,
        size: 0x80,
    };
    assert_eq!(bench.pci.regions(), [ports]);
    bench.set_config(0x04, 2, 6);
    assert_eq!(bench.pci.regions(), []);
}

#[test]
fn names_lead_to_rows_and_variants() {
    use crate::virtio::info::{Table, find};
    for (name, variant) in [
        ("virtio-rng-pci", Variant::Plain),
        ("virtio-rng", Variant::Plain),
        ("virtio-rng-pci-transitional", Variant::Transitional),
        ("virtio-rng-pci-non-transitional", Variant::NonTransitional),
    ] {
        let (info, found) = find(name).unwrap();
        assert_eq!((info.id, found), (DeviceId::Entropy, variant));
    }
    let error = find("virtio-rgn-pci").err().unwrap().to_string();
    assert_eq!(
        error,
        "virtio-rgn-pci: there is no such device; did you mean 'virtio-rng-pci'?"
    );
    assert!(find("virtio-rng-pci-").is_err() && find("").is_err());
    let table = Table.to_string();
    assert!(
        table.contains("virtio-rng-pci         4  1af4:1005  1af4:1044  00ff   entropy source\n"),
        "{table}"
    );
    assert!(table.contains("max-bytes="));
}
