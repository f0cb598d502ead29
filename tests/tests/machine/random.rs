//! Random accesses to everything on the board, by drivers that go mad at any moment.

use devices::virtio::virtq::testing::{Buffer, RawDescriptor};
use proptest::prelude::*;
use proptest::sample::select;
use tests::driver::bus::MSIX;
use tests::driver::{Driver, Machine, PciDevice, Way, balloon, block, entropy, serial};

const DEVICES: [(&str, &str); 7] = [
    ("virtio-blk-pci", "path=null-co://,queues=2"),
    ("virtio-rng-pci", ""),
    ("virtio-blk-pci", "path=null-co://,disable-modern=on"),
    ("virtio-rng-pci-non-transitional", "modern-pio-notify=on"),
    ("virtio-blk-pci", "path=null-co://,vectors=0,read-zeroes=on"),
    ("virtio-balloon-pci", "free-page-hint=on,free-page-reporting=on"),
    ("virtio-serial-pci", "max_ports=2"),
];

const WAYS: [&[Way]; 7] = [
    &Way::ALL,
    &Way::ALL,
    &[Way::Legacy],
    &[Way::Modern, Way::Window],
    &Way::ALL,
    &Way::ALL,
    &Way::ALL,
];

#[derive(Clone, Debug)]
enum Step {
    Port(u16, usize, Option<u64>),
    Memory(u64, usize, Option<u64>),
    Config(u8, u16, usize, Option<u32>),
    /// An access to a BAR of a device: device, BAR, offset, width, value.
    Bar(usize, u8, u64, usize, Option<u64>),
    /// A driver brings a device up, after a reset of the machine or through the window, and leaves a chain with it.
    Start(usize, Start),
    Place(usize, u8, u64),
    Poke(u64, u64),
    Pause(usize),
    Reset,
}

#[derive(Clone, Debug)]
struct Start {
    way: usize,
    machine_reset: bool,
    msix: bool,
    /// Address, length, flags, next.
    chain: Vec<(u64, u32, u16, u16)>,
    head: u16,
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..0x10u64,
        2 => select(vec![0xff, 0x80, 0xffff, 0x8000, 0x2_00, 0x1_0000, 0x20_0000, 0xffff_ffff, 0xfebf_0000]),
        1 => any::<u64>(),
    ]
}

fn written() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![1 => Just(None), 2 => value().prop_map(Some)]
}

/// Offsets where something is, and some where nothing is.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..0x40u64,
        2 => (0..4u64, 0..0x48u64).prop_map(|(structure, offset)| 0x1000 * structure + offset),
        1 => 0..0x4000u64,
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0x20_0000..0x70_0000u64,
        1 => 0xfebe_0000..0xfec0_0000u64,
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let device = || 0..DEVICES.len();
    let port = prop_oneof![3 => 0xc000..0xc200u16, 2 => 0xcf0..0xd08u16, 1 => any::<u16>()];
    let base = prop_oneof![
        3 => select(vec![0, 0xc000, 0xc080, 0xd000, 0xe000_0000, 0xfebf_0000, 0x20_0000, 0x1_c000, u64::MAX]),
        1 => any::<u64>(),
    ];
    let descriptor = (
        address(),
        prop_oneof![3 => 0..0x1000u32, 1 => any::<u32>()],
        0..8u16,
        0..12u16,
    );
    let chain = prop::collection::vec(descriptor, 1..12);
    let start = (0..3usize, any::<bool>(), any::<bool>(), chain, 0..12u16).prop_map(
        |(way, machine_reset, msix, chain, head)| Start {
            way,
            machine_reset,
            msix,
            chain,
            head,
        },
    );
    prop_oneof![
        2 => (port, 1..=8usize, written()).prop_map(|(port, width, value)| Step::Port(port, width, value)),
        2 => (address(), 1..=8usize, written()).prop_map(|(address, width, value)| Step::Memory(address, width, value)),
        3 => (0..0x60u8, 0..0x100u16, 1..=4usize, written())
            .prop_map(|(devfn, offset, width, value)| Step::Config(devfn, offset, width, value.map(|value| value as u32))),
        12 => (device(), select(vec![0u8, 0, 1, 2, 4, 4, 4]), offset(), 1..=8usize, written())
            .prop_map(|(device, bar, offset, width, value)| Step::Bar(device, bar, offset, width, value)),
        6 => (device(), start).prop_map(|(device, start)| Step::Start(device, start)),
        1 => (device(), 0..6u8, base).prop_map(|(device, bar, base)| Step::Place(device, bar, base)),
        2 => (0x20_0000..0x70_0000u64, value()).prop_map(|(address, value)| Step::Poke(address, value)),
        1 => device().prop_map(Step::Pause),
        1 => Just(Step::Reset),
    ]
}

fn take(machine: &Machine, step: Step) {
    let function = |device: usize| PciDevice {
        machine,
        address: machine.devices()[device],
    };
    match step {
        Step::Port(port, width, None) => drop(machine.port(port, width)),
        Step::Port(port, width, Some(value)) => machine.set_port(port, width, value),
        Step::Memory(address, width, None) => drop(machine.load(address, width)),
        Step::Memory(address, width, Some(value)) => machine.store(address, width, value),
        Step::Config(devfn, offset, width, value) => {
            let address = pci::Address::from_devfn(0, devfn);
            let device = PciDevice { machine, address };
            match value {
                None => drop(device.read(offset, width)),
                Some(value) => device.write(offset, width, value),
            }
        }
        Step::Bar(device, bar, offset, width, value) => {
            let bar = function(device).bar(bar);
            let at = bar.base.wrapping_add(offset);
            match (bar.is_io, value) {
                (true, None) => drop(machine.port(at as u16, width)),
                (true, Some(value)) => machine.set_port(at as u16, width, value),
                (false, None) => drop(machine.load(at, width)),
                (false, Some(value)) => machine.store(at, width, value),
            }
        }
        Step::Start(device, how) => start(machine, device, how),
        Step::Place(device, bar, base) => function(device).place(bar, base),
        Step::Poke(address, value) => machine.set_bytes(address, &value.to_le_bytes()),
        Step::Pause(device) => {
            let address = machine.devices()[device];
            let saved = machine.pause_and_save(address);
            machine.restore_and_resume(address, &saved).unwrap();
        }
        Step::Reset => machine.reset().unwrap(),
    }
}

/// A driver by one of the ways that a device has.
fn driver(machine: &Machine, device: usize, way: usize) -> Driver<'_> {
    let way = WAYS[device][way % WAYS[device].len()];
    Driver::bind(machine, machine.devices()[device], way)
}

/// Brings a device up, wherever its BARs are by now, and posts a chain.
fn start(machine: &Machine, device: usize, how: Start) {
    let mut driver = if how.machine_reset {
        machine.reset().unwrap();
        driver(machine, device, how.way)
    } else if WAYS[device].contains(&Way::Window) {
        Driver::bind(machine, machine.devices()[device], Way::Window)
    } else {
        return;
    };
    if how.msix && how.machine_reset && !driver.device.capabilities(MSIX).is_empty() {
        driver.use_msix();
    }
    driver.start();
    let ring = &mut driver.rings[0];
    let size = ring.config().size;
    for (index, (address, len, flags, next)) in (0..).zip(how.chain) {
        ring.set_descriptor(index % size, RawDescriptor::new(address, len, flags, next));
    }
    ring.offer(how.head);
    driver.kick(0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_machine_works_after_whatever_was_done_to_it(steps in prop::collection::vec(step(), 1..120)) {
        let machine = Machine::new(&DEVICES).unwrap();
        steps.into_iter().for_each(|step| take(&machine, step));
        machine.reset().unwrap();
        for device in 0..DEVICES.len() {
            for way in 0..WAYS[device].len() {
                let mut driver = driver(&machine, device, way);
                driver.start();
                match DEVICES[device].0 {
                    name if name.contains("blk") => drop(block::read(&mut driver, 1, 512)),
                    name if name.contains("rng") => drop(entropy::fill(&mut driver, 16)),
                    name if name.contains("serial") => {
                        let at = driver.data();
                        driver.request(serial::output(0), &[Buffer::readable(at, 16)]);
                    }
                    _ => balloon::name_pages(&mut driver, balloon::INFLATE, [0x10_0000]),
                }
                driver.wait_for_line();
                prop_assert_eq!(driver.transport.isr(), 1);
            }
        }
    }
}
