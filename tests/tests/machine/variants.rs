//! The faces that the user can leave out or add, and who places BARs.

use pci::config_space::register;
use tests::driver::bus::{VENDOR, virtio_devices};
use tests::driver::modern::Modern;
use tests::driver::{Driver, Machine, Way, block, entropy, machine};
use vmm::config::PciResources;

/// A device, its ids, and the ways to it.
struct Variant {
    name: &'static str,
    options: &'static str,
    id: u32,
    ways: &'static [Way],
}

const MODERN: &[Way] = &[Way::Modern, Way::Window];
const LEGACY: &[Way] = &[Way::Legacy];

const VARIANTS: [Variant; 8] = [
    variant("virtio-blk-pci", "", 0x1001, &Way::ALL),
    variant("virtio-blk-pci", "disable-legacy=on", 0x1042, MODERN),
    variant("virtio-blk-pci", "disable-modern=on", 0x1001, LEGACY),
    variant("virtio-blk-pci", "disable-modern=on,vectors=0", 0x1001, LEGACY),
    variant("virtio-blk-pci", "modern-pio-notify=on", 0x1001, &Way::ALL),
    variant(
        "virtio-blk-pci",
        "disable-legacy=on,modern-pio-notify=on,vectors=0",
        0x1042,
        MODERN,
    ),
    variant("virtio-blk-pci-transitional", "", 0x1001, &Way::ALL),
    variant("virtio-blk-pci-non-transitional", "", 0x1042, MODERN),
];

const fn variant(name: &'static str, options: &'static str, id: u32, ways: &'static [Way]) -> Variant {
    Variant {
        name,
        options,
        id,
        ways,
    }
}

#[test]
fn each_variant_works_by_the_ways_that_it_has_and_no_other() {
    for variant in VARIANTS {
        let options = format!("path=null-co://,{}", variant.options);
        let machine = Machine::new(&[(variant.name, options.trim_end_matches(','))]).unwrap();
        let device = virtio_devices(&machine)[0];
        assert_eq!(device.read(register::DEVICE_ID, 2), variant.id, "{options}");
        assert_eq!(device.bar(0).is_io, variant.ways.contains(&Way::Legacy), "{options}");
        assert_eq!(
            Modern::of(device).is_some(),
            variant.ways.contains(&Way::Modern),
            "{options}"
        );
        for &way in variant.ways {
            let mut driver = Driver::of_first(&machine, way);
            block::read(&mut driver, 0, 512);
            driver.wait_for_line();
            assert_eq!(driver.transport.isr(), 1, "{options}, {way:?}");
        }
    }
}

#[test]
fn a_doorbell_port_is_announced_first_and_used() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://,modern-pio-notify=on")]).unwrap();
    let device = virtio_devices(&machine)[0];
    let modern = Modern::of(device).unwrap();
    assert_eq!((modern.doorbells().bar, device.bar(2).is_io), (2, true));
    assert_eq!(device.capabilities(VENDOR).len(), 6);
}

#[test]
fn a_guest_places_bars_that_nobody_placed() {
    let devices = [("virtio-blk-pci", "path=null-co://"), ("virtio-rng-pci", "")];
    let machine = Machine::with(machine::ram().unwrap(), PciResources::Guest, &devices).unwrap();
    let (mut ports, mut memory) = (0xd000, 0xe000_0000);
    for device in virtio_devices(&machine) {
        assert_eq!((device.bar(0).base, device.read(register::COMMAND, 2)), (0, 0));
        device.place_all(ports, memory);
        (ports, memory) = (ports + 0x400, memory + 0x10_0000);
    }
    let [disk, entropy] = machine.devices()[..] else {
        panic!()
    };
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, disk, way);
        driver.start();
        block::read(&mut driver, 0, 512);
        let mut driver = Driver::bind(&machine, entropy, way);
        driver.start();
        entropy::fill(&mut driver, 16);
    }
}

#[test]
fn a_guest_places_bars_above_4_gib() {
    let devices = [("virtio-blk-pci", "path=null-co://")];
    let machine = Machine::with(machine::ram().unwrap(), PciResources::Guest, &devices).unwrap();
    let device = virtio_devices(&machine)[0];
    device.place_all(0xd000, 0xe000_0000);
    device.place(4, 0x40_0000_0000);
    let mut driver = Driver::of_first(&machine, Way::Modern);
    block::read(&mut driver, 0, 512);
    assert_eq!(device.bar(4).base, 0x40_0000_0000);
}
