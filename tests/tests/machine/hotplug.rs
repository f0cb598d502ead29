//! Devices that come and go while a guest runs, by the ports of the ACPI hotplug controller.

use std::sync::mpsc::{self, Receiver};

use devices::virtio::options::Pairs;
use devices::virtio::virtq::testing::Buffer;
use pci::Address;
use tests::driver::machine::SCI;
use tests::driver::{Driver, Machine, PciDevice, Way, block, entropy};
use vmm::config::DeviceConfig;
use vmm::machine::events::Event;
use vmm::machine::inventory::UnplugError;

use crate::image::{Image, sector};

/// Registers of the controller.
const UP: u16 = 0xae00;
const DOWN: u16 = 0xae04;
const EJECT: u16 = 0xae08;
const REMOVABLE: u16 = 0xae0c;
/// Status and enable bytes of the general-purpose events.
const GPE_STATUS: u16 = 0xafe0;
const GPE_ENABLE: u16 = 0xafe2;
/// The event of the controller.
const HOTPLUG: u64 = 1 << 1;

/// Where a guest puts the BARs of what it finds.
const PORTS: u64 = 0xd000;
const MEMORY: u64 = 0xe000_0000;

fn slot(device: u8) -> Address {
    Address::new(0, device, 0).unwrap()
}

fn hot_plug(machine: &Machine, name: &str, options: &str) {
    let config = DeviceConfig::parse(name, options, None);
    machine.inventory().hot_plug(&config).unwrap();
}

/// The vendor that a slot shows.
fn vendor(machine: &Machine, device: u8) -> u32 {
    let address = slot(device);
    PciDevice { machine, address }.read(0, 2)
}

/// Brings up what was plugged into a slot, as a guest's hotplug code does.
fn bring_up(machine: &Machine, device: u8, way: Way) -> Driver<'_> {
    let address = slot(device);
    PciDevice { machine, address }.place_all(PORTS, MEMORY);
    let mut driver = Driver::bind(machine, address, way);
    driver.start();
    driver
}

fn eject(machine: &Machine, device: u8) {
    machine.set_port(EJECT, 4, 1 << device);
}

fn events(machine: &Machine) -> Receiver<Event> {
    let (sender, receiver) = mpsc::channel();
    machine
        .inventory()
        .events()
        .subscribe(move |event| sender.send(event.clone()).is_ok());
    receiver
}

/// What QEMU says of a device that is gone: the virtio device and the function that it was behind.
fn deleted(id: &str) -> [Event; 2] {
    let path = format!("/machine/peripheral/{id}");
    let gone = |id, path| Event::DeviceDeleted {
        id,
        path,
        references: Pairs::default(),
    };
    let backend = gone(None, format!("{path}/virtio-backend"));
    [backend, gone(Some(id.to_owned()), path)]
}

#[test]
fn a_device_that_comes_is_announced_and_works_each_way() {
    for way in Way::ALL {
        let image = Image::new(64);
        let machine = Machine::new(&[]).unwrap();
        machine.set_port(GPE_ENABLE, 1, HOTPLUG);
        assert_eq!((machine.port(UP, 4), machine.line(SCI).high), (0, false));
        hot_plug(&machine, "virtio-blk-pci", &image.options(",id=disk,addr=6"));
        assert_eq!(vendor(&machine, 6), 0x1af4, "at once");
        assert!(machine.line(SCI).high);
        assert_eq!(machine.port(GPE_STATUS, 1), HOTPLUG);
        machine.set_port(GPE_STATUS, 1, HOTPLUG);
        assert!(!machine.line(SCI).high);
        assert_eq!((machine.port(UP, 4), machine.port(UP, 4)), (1 << 6, 0));
        let mut driver = bring_up(&machine, 6, way);
        assert_eq!(block::read(&mut driver, 3, 512), sector(3), "{way:?}");
    }
}

#[test]
fn what_was_there_at_the_start_is_not_announced() {
    let machine = Machine::new(&[("virtio-rng-pci", "addr=4")]).unwrap();
    assert_eq!((machine.port(UP, 4), machine.port(GPE_STATUS, 1)), (0, 0));
    assert_eq!(machine.port(REMOVABLE, 4), 0xffff_fffc, "all but the chipset");
}

#[test]
fn a_device_works_until_the_guest_lets_go_of_it() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",id=disk,addr=6"))]).unwrap();
    let happened = events(&machine);
    let mut driver = Driver::of_first(&machine, Way::Modern);
    machine.inventory().unplug("disk").unwrap();
    machine.inventory().unplug("disk").unwrap();
    assert_eq!(machine.port(DOWN, 4), 1 << 6);
    assert_eq!(machine.port(GPE_STATUS, 1), HOTPLUG);
    assert_eq!(block::read(&mut driver, 3, 512), sector(3));
    assert!(happened.try_recv().is_err());
    eject(&machine, 6);
    assert_eq!(happened.try_iter().collect::<Vec<_>>(), deleted("disk"));
    assert_eq!((machine.port(DOWN, 4), vendor(&machine, 6)), (0, 0xffff));
    assert!(machine.inventory().list().is_empty());
    let not_found = UnplugError::NotFound("disk".into());
    assert_eq!(machine.inventory().unplug("disk"), Err(not_found));
    // Its id, its slot and the lock on its image are free.
    hot_plug(&machine, "virtio-blk-pci", &image.options(",id=disk,addr=6"));
    let mut driver = bring_up(&machine, 6, Way::Modern);
    assert_eq!(block::read(&mut driver, 5, 512), sector(5));
}

#[test]
fn a_guest_may_let_go_unasked_and_of_devices_only() {
    let machine = Machine::new(&[("virtio-rng-pci", "id=rng,addr=4")]).unwrap();
    let happened = events(&machine);
    for fixed in [0, 1, 9, 31] {
        eject(&machine, fixed);
    }
    assert_eq!((vendor(&machine, 0), vendor(&machine, 1)), (0x8086, 0x8086));
    assert!(happened.try_recv().is_err());
    // The lowest bit counts.
    machine.set_port(EJECT, 4, 1 << 4 | 1 << 5);
    assert_eq!(happened.try_iter().collect::<Vec<_>>(), deleted("rng"));
    assert_eq!(vendor(&machine, 4), 0xffff);
}

#[test]
fn a_reset_takes_out_what_the_guest_was_asked_for() {
    let machine = Machine::new(&[("virtio-rng-pci", "id=a,addr=4"), ("virtio-rng-pci", "id=b,addr=5")]).unwrap();
    let happened = events(&machine);
    machine.inventory().unplug("/machine/peripheral/a").unwrap();
    machine.reset().unwrap();
    assert_eq!(happened.try_iter().collect::<Vec<_>>(), deleted("a"));
    assert_eq!((vendor(&machine, 4), vendor(&machine, 5)), (0xffff, 0x1af4));
    assert_eq!((machine.port(DOWN, 4), machine.port(GPE_STATUS, 1)), (0, 0));
    machine.reset().unwrap();
    assert!(happened.try_recv().is_err());
    let mut driver = Driver::bind(&machine, slot(5), Way::Legacy);
    driver.start();
    assert_eq!(entropy::fill(&mut driver, 16).len(), 16);
}

#[test]
fn what_sits_on_a_device_goes_at_once_or_with_the_device() {
    let machine = Machine::new(&[
        ("virtio-serial-pci", "id=serial,addr=5"),
        ("virtserialport", "id=first"),
    ])
    .unwrap();
    let happened = events(&machine);
    hot_plug(&machine, "virtserialport", "id=second,bus=serial.0");
    machine.inventory().unplug("second").unwrap();
    let port = |id: &str| Event::DeviceDeleted {
        id: Some(id.to_owned()),
        path: format!("/machine/peripheral/{id}"),
        references: Pairs::default(),
    };
    assert_eq!(happened.try_iter().collect::<Vec<_>>(), [port("second")]);
    assert_eq!(
        (machine.port(UP, 4), machine.port(DOWN, 4)),
        (0, 0),
        "the bus knows nothing of it"
    );
    eject(&machine, 5);
    let [backend, function] = deleted("serial");
    assert_eq!(
        happened.try_iter().collect::<Vec<_>>(),
        [port("first"), backend, function]
    );
    assert!(machine.inventory().list().is_empty());
}

#[test]
fn a_device_that_is_busy_finishes_before_it_goes() {
    let image = Image::new(1024);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",id=disk,addr=6"))]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Modern);
    for at in 0..8 {
        let data = vec![0xa0 | at as u8; 512];
        block::post(&mut driver, at, 1, at, &data, 0);
    }
    driver.kick(0);
    eject(&machine, 6);
    let after = machine.bytes(driver.data(), 4096);
    let written = image.bytes();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(machine.bytes(driver.data(), 4096), after, "nothing is written later");
    assert_eq!(image.bytes(), written);
}

#[test]
fn a_device_that_goes_lets_go_of_its_interrupt_line() {
    let machine = Machine::new(&[("virtio-rng-pci", "id=rng,addr=4")]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Legacy);
    let data = driver.data();
    driver.request(0, &[Buffer::writable(data, 16)]);
    driver.wait_for_line();
    let gsi = driver.device.interrupt_line();
    assert!(machine.line(gsi).high);
    eject(&machine, 4);
    assert!(!machine.line(gsi).high);
}

#[test]
fn what_is_plugged_into_a_machine_that_stands_still_runs_when_the_machine_does() {
    let machine = Machine::new(&[]).unwrap();
    machine.inventory().pause();
    hot_plug(&machine, "virtio-rng-pci", "id=rng,addr=4");
    let mut driver = bring_up(&machine, 4, Way::Modern);
    let data = driver.data();
    driver.post(0, &[Buffer::writable(data, 16)]);
    driver.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(machine.bytes(data, 16), [0; 16], "it stands still");
    machine.inventory().resume();
    driver.complete(0);
    assert_ne!(machine.bytes(data, 16), [0; 16]);
}

#[test]
fn devices_come_and_go_many_times() {
    let image = Image::new(64);
    let machine = Machine::new(&[]).unwrap();
    for round in 0..20 {
        let way = Way::ALL[round % Way::ALL.len()];
        hot_plug(&machine, "virtio-blk-pci", &image.options(",id=disk,addr=6"));
        hot_plug(&machine, "virtio-rng-pci", "id=rng,addr=7");
        let mut disk = bring_up(&machine, 6, way);
        assert_eq!(block::read(&mut disk, 1, 512), sector(1), "round {round}");
        machine.inventory().unplug("disk").unwrap();
        eject(&machine, 6);
        let mut rng = bring_up(&machine, 7, way);
        assert_eq!(entropy::fill(&mut rng, 8).len(), 8, "round {round}");
        eject(&machine, 7);
    }
    assert!(machine.inventory().list().is_empty());
}
