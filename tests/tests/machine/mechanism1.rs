//! Configuration mechanism #1 and what a scan through it finds.

use pci::config_space::register;
use tests::driver::Machine;
use tests::driver::bus::{CONFIG_ADDRESS, CONFIG_DATA, has_mechanism1, scan, virtio_devices};

const DEVICES: [(&str, &str); 3] = [
    ("virtio-blk-pci", "path=null-co://"),
    ("virtio-rng-pci", "addr=1f"),
    ("virtio-rng-pci", ""),
];

fn machine() -> Machine {
    Machine::new(&DEVICES).unwrap()
}

/// CONFIG_ADDRESS for a register of the function in `slot`.
fn select(machine: &Machine, slot: u64, offset: u64) {
    machine.set_port(CONFIG_ADDRESS, 4, 0x8000_0000 | slot << 11 | offset);
}

#[test]
fn a_scan_finds_the_board_and_the_devices_in_their_slots() {
    let machine = machine();
    assert!(has_mechanism1(&machine));
    let found: Vec<_> = scan(&machine)
        .iter()
        .map(|device| (device.address.to_string(), device.read(register::VENDOR_ID, 4)))
        .collect();
    let expected = [
        ("00:00.0", 0x1237_8086),
        ("00:01.0", 0x7000_8086),
        ("00:01.3", 0x7113_8086),
        ("00:02.0", 0x1001_1af4),
        ("00:03.0", 0x1005_1af4),
        ("00:1f.0", 0x1005_1af4),
    ];
    assert_eq!(found, expected.map(|(address, id)| (address.to_owned(), id)));
    assert_eq!(virtio_devices(&machine).len(), 3);
}

#[test]
fn every_function_has_an_interrupt_that_the_bridge_routes() {
    let machine = machine();
    for device in virtio_devices(&machine) {
        assert_eq!(device.read(register::INTERRUPT_PIN, 1), 1, "{}", device.address);
        assert!([10, 11].contains(&device.interrupt_line()), "{}", device.address);
    }
}

#[test]
fn narrow_reads_are_parts_of_wide_ones() {
    let machine = machine();
    for offset in (0..0x100).step_by(4) {
        select(&machine, 2, offset);
        let dword = machine.port(CONFIG_DATA, 4);
        let bytes = (0..4)
            .map(|byte| machine.port(CONFIG_DATA + byte, 1) << (8 * byte))
            .sum::<u64>();
        let words = machine.port(CONFIG_DATA, 2) | machine.port(CONFIG_DATA + 2, 2) << 16;
        let unaligned = machine.port(CONFIG_DATA + 1, 2);
        assert_eq!((bytes, words), (dword, dword), "{offset:#x}");
        assert_eq!(unaligned, dword >> 8 & 0xffff, "{offset:#x}");
    }
}

#[test]
fn the_address_register_takes_dwords_only() {
    let machine = machine();
    select(&machine, 2, 0);
    for (port, width) in [(0, 1), (0, 2), (1, 1), (2, 2), (3, 1), (1, 2), (0, 3)] {
        machine.set_port(CONFIG_ADDRESS + port, width, 0);
        assert_eq!(machine.port(CONFIG_ADDRESS, 4), 0x8000_1000, "{width} bytes at {port}");
    }
    assert_eq!(machine.port(CONFIG_DATA, 4), 0x1001_1af4);
}

#[test]
fn odd_widths_reach_neither_beyond_the_window_nor_the_machine() {
    let machine = machine();
    select(&machine, 2, 0x3c);
    machine.set_port(CONFIG_DATA, 1, 0x5);
    // Straddling into CONFIG_ADDRESS's neighbours, past the window's end, and both at once.
    for (port, width) in [
        (0xcf6, 8),
        (0xcfa, 4),
        (0xcfb, 8),
        (0xcfd, 4),
        (0xcff, 8),
        (0xcfe, 3),
        (0xcf5, 8),
    ] {
        let before = machine.port(CONFIG_ADDRESS, 4);
        machine.port(port, width);
        machine.set_port(port, width, u64::MAX);
        machine.set_port(CONFIG_ADDRESS, 4, before);
    }
    select(&machine, 2, 0);
    assert_eq!(machine.port(CONFIG_DATA, 4), 0x1001_1af4);
    assert_eq!(machine.port(CONFIG_DATA, 8) & 0xffff_ffff, 0x1001_1af4);
    assert_eq!(machine.port(CONFIG_DATA, 3), 0x01_1af4);
}

#[test]
fn nothing_is_reached_while_the_enable_bit_is_clear() {
    let machine = machine();
    machine.set_port(CONFIG_ADDRESS, 4, 2 << 11);
    assert_eq!(machine.port(CONFIG_DATA, 4), 0xffff_ffff);
    machine.set_port(CONFIG_DATA, 4, 0);
    select(&machine, 2, 4);
    assert_ne!(machine.port(CONFIG_DATA, 2) & 3, 0, "decode is still on");
}

#[test]
fn absent_functions_and_other_buses_read_ones_and_take_no_writes() {
    let machine = machine();
    for address in [0x8000_f000u64, 0x8000_1100, 0x8001_1000, 0x80ff_ff00] {
        for offset in [0, 0x10, 0xfc] {
            machine.set_port(CONFIG_ADDRESS, 4, address | offset);
            machine.set_port(CONFIG_DATA, 4, 0);
            assert_eq!(machine.port(CONFIG_DATA, 4), 0xffff_ffff, "{address:#x}");
        }
    }
    assert_eq!(scan(&machine).len(), 6);
}
