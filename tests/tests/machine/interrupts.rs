//! Interrupts: messages, the line, and a line that two devices share.

use pci::config_space::command;
use tests::driver::bus::MSIX;
use tests::driver::{Driver, Machine, Way, block, entropy};

const DISK: (&str, &str) = ("virtio-blk-pci", "path=null-co://");
const ENTROPY: (&str, &str) = ("virtio-rng-pci", "");

#[test]
fn each_completion_sends_the_message_of_its_queue() {
    for device in [DISK, ENTROPY] {
        let machine = Machine::new(&[device]).unwrap();
        for way in Way::ALL {
            let mut driver = Driver::bind(&machine, machine.devices()[0], way);
            driver.use_msix();
            driver.start();
            for _ in 0..3 {
                machine.messages(driver.device.address);
                work(device, &mut driver);
                driver.wait_for_message(1);
            }
            assert_eq!(driver.line().raised, 0, "{way:?}: the line beside messages");
        }
    }
}

#[test]
fn the_line_is_high_until_isr_is_read() {
    for device in [DISK, ENTROPY] {
        let machine = Machine::new(&[device]).unwrap();
        for way in Way::ALL {
            let mut driver = Driver::of_first(&machine, way);
            for _ in 0..3 {
                work(device, &mut driver);
                driver.wait_for_line();
                assert_eq!(driver.transport.isr(), 1, "{way:?}");
                assert!(!driver.line().high, "{way:?}");
                assert_eq!(driver.transport.isr(), 0, "{way:?}");
            }
            assert!(machine.messages(driver.device.address).is_empty(), "{way:?}");
        }
        assert_eq!(machine.line(10).raised, 9);
    }
}

fn work(device: (&str, &str), driver: &mut Driver<'_>) {
    if device == DISK {
        block::read(driver, 0, 512);
    } else {
        entropy::fill(driver, 16);
    }
}

#[test]
fn a_shared_line_falls_when_the_last_device_was_asked() {
    // Slots 2 and 6 have the same PIRQ, 2 and 5 different ones that the firmware routes to one interrupt.
    for other in ["addr=6", "addr=5"] {
        let machine = Machine::new(&[DISK, ("virtio-rng-pci", other)]).unwrap();
        let [disk, entropy] = machine.devices()[..] else {
            panic!()
        };
        for (first, second) in [(Way::Legacy, Way::Modern), (Way::Window, Way::Legacy)] {
            let mut disk = Driver::bind(&machine, disk, first);
            let mut entropy = Driver::bind(&machine, entropy, second);
            assert_eq!(disk.device.interrupt_line(), entropy.device.interrupt_line(), "{other}");
            disk.start();
            entropy.start();
            block::read(&mut disk, 0, 512);
            disk.wait_for_line();
            entropy::fill(&mut entropy, 16);
            // The line says nothing of the second device: its status register does.
            wait_for_interrupt_status(&entropy);
            assert_eq!(disk.transport.isr(), 1);
            assert!(entropy.line().high, "{other}: the other device still wants it");
            assert_eq!(entropy.transport.isr(), 1);
            assert!(!entropy.line().high, "{other}");
        }
    }
}

/// Interrupt Status of the PCI status register.
fn wait_for_interrupt_status(driver: &Driver<'_>) {
    tests::driver::wait_for("Interrupt Status", || {
        (driver.device.read(0x06, 2) & 1 << 3 != 0).then_some(())
    });
}

#[test]
fn a_line_that_nobody_acknowledges_stops_nothing() {
    for way in Way::ALL {
        let machine = Machine::new(&[DISK]).unwrap();
        let mut driver = Driver::of_first(&machine, way);
        for _ in 0..500 {
            block::read(&mut driver, 0, 512);
        }
        driver.wait_for_line();
        assert_eq!(driver.line().raised, 1, "{way:?}: it never fell");
        assert_eq!(driver.transport.isr(), 1, "{way:?}");
    }
}

#[test]
fn interrupt_disable_holds_the_line_and_lets_it_go() {
    let machine = Machine::new(&[DISK]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Modern);
    driver.device.command(command::INTX_DISABLE, 0);
    block::read(&mut driver, 0, 512);
    wait_for_interrupt_status(&driver);
    assert!(!driver.line().high);
    driver.device.command(0, command::INTX_DISABLE);
    assert!(driver.line().high);
    driver.reset();
    assert!(!driver.line().high, "a reset takes it down");
}

#[test]
fn a_masked_message_waits_in_the_pending_bits() {
    let machine = Machine::new(&[DISK]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        driver.use_msix();
        driver.start();
        let address = driver.device.address;
        machine.messages(address);
        let capability = driver.device.capabilities(MSIX)[0];
        let pending = driver.device.bar(1).base + u64::from(driver.device.read(capability + 8, 4) & !7);
        let control = driver.device.bar(1).base + 16 + 12;
        machine.store(control, 4, 1);
        block::read(&mut driver, 0, 512);
        tests::driver::wait_for("the pending bit", || (machine.load(pending, 8) == 2).then_some(()));
        assert!(machine.messages(address).is_empty(), "{way:?}");
        // Pending bits are the device's.
        machine.store(pending, 8, 0);
        assert_eq!(machine.load(pending, 4), 2, "{way:?}");
        machine.store(control, 4, 0);
        assert_eq!(
            (machine.messages(address), machine.load(pending, 4)),
            (vec![1], 0),
            "{way:?}"
        );
        // The same by the function's mask.
        let message_control = driver.device.read(capability + 2, 2);
        driver.device.write(capability + 2, 2, message_control | 1 << 14);
        block::read(&mut driver, 0, 512);
        tests::driver::wait_for("the pending bit", || (machine.load(pending, 8) == 2).then_some(()));
        driver.device.write(capability + 2, 2, message_control);
        assert_eq!(machine.messages(address), [1], "{way:?}");
        driver.use_line();
    }
}

#[test]
fn without_vectors_there_is_no_capability_and_the_line_works() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://,vectors=0")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        assert!(driver.device.capabilities(MSIX).is_empty(), "{way:?}");
        assert_eq!(driver.device.bar_size(1), 0, "{way:?}");
        block::read(&mut driver, 0, 512);
        driver.wait_for_line();
        assert_eq!(driver.transport.isr(), 1, "{way:?}");
    }
}

#[test]
fn fewer_vectors_than_queues_are_shared() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://,queues=3,vectors=2")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        driver.use_msix();
        driver.start();
        for queue in 0..3 {
            driver.rings.swap(0, queue);
            block::post(&mut driver, 0, 0, 0, &[], 512);
            driver.kick(queue as u16);
            driver.complete(0);
            driver.rings.swap(0, queue);
            driver.wait_for_message(1);
        }
    }
}

#[test]
fn a_driver_that_suppresses_interrupts_gets_none() {
    const EVENT_IDX: u64 = 1 << 29;
    for (understood, way) in [
        (!(1 << 30 | 1 << 24), Way::Modern),
        (!(1 << 30 | 1 << 24 | EVENT_IDX), Way::Legacy),
    ] {
        let machine = Machine::new(&[DISK]).unwrap();
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        driver.start_with(understood);
        let event_idx = driver.features & EVENT_IDX != 0;
        assert_eq!(event_idx, way == Way::Modern);
        block::read(&mut driver, 0, 512);
        // The first publication interrupts whatever the driver says.
        if event_idx {
            driver.wait_for_line();
            driver.transport.isr();
            driver.rings[0].set_used_event(0x8000);
        } else {
            driver.wait_for_line();
            driver.transport.isr();
            driver.rings[0].set_avail_flags(1);
        }
        for _ in 0..20 {
            block::read(&mut driver, 0, 512);
        }
        // A stop of the queue ends whatever the device has begun: an interrupt would be there now.
        let address = driver.device.address;
        machine.pause_and_save(address);
        assert_eq!((driver.transport.isr(), driver.line().raised), (0, 1), "{way:?}");
    }
}
