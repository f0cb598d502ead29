//! Lives of a device: reset at any moment, started again, handed from one driver to another, saved and restored.

use std::collections::HashSet;

use devices::virtio::transport::status;
use devices::virtio::virtq::testing::Buffer;
use tests::driver::legacy::{Legacy, port};
use tests::driver::machine::ram;
use tests::driver::{Driver, Machine, Transport, Way, balloon, block, entropy, machine};
use vmm::config::PciResources;

use crate::image::{Image, sector};

/// A device and what it can be asked.
struct Subject {
    device: (&'static str, &'static str),
    /// A request and its answer.
    work: fn(&mut Driver<'_>),
    /// A request that is left with the device.
    post: fn(&mut Driver<'_>, u64),
}

const DISK: Subject = Subject {
    device: ("virtio-blk-pci", "path=null-co://,read-zeroes=on"),
    work: |driver| assert_eq!(block::read(driver, 0, 4096), [0; 4096]),
    post: |driver, slot| {
        block::post(driver, slot, 0, slot, &[], 4096);
    },
};

const ENTROPY: Subject = Subject {
    device: ("virtio-rng-pci", ""),
    work: |driver| drop(entropy::fill(driver, 64)),
    post: |driver, slot| {
        let at = driver.data() + 0x2000 * slot + 0x1000;
        driver.post(0, &[Buffer::writable(at, 4096)]);
    },
};

/// Without `vectors=`, there is no MSI-X.
const BALLOON: Subject = Subject {
    device: ("virtio-balloon-pci", "vectors=2"),
    work: |driver| {
        // What was left with the device lies elsewhere.
        let first = (machine::HIGH_RAM / balloon::PAGE) as u32;
        let begun = balloon::control(driver).given_back().inflated.bytes;
        balloon::name_pages(driver, balloon::INFLATE, first..first + 64);
        balloon::name_pages(driver, balloon::DEFLATE, first..first + 64);
        let inflated = balloon::control(driver).given_back().inflated.bytes - begun;
        assert_eq!(inflated, 64 * balloon::PAGE);
    },
    post: |driver, slot| {
        let at = driver.data() + 0x2000 * slot + 0x1000;
        let page = (machine::HIGH_RAM / balloon::PAGE + 128 + slot) as u32;
        driver.machine().set_bytes(at, &page.to_le_bytes());
        driver.post(0, &[Buffer::readable(at, 4)]);
    },
};

/// Requests that are left with a device, fewer than any queue has room for.
const LEFT: u64 = 8;

impl Subject {
    fn machine(&self) -> Machine {
        Machine::new(&[self.device]).unwrap()
    }

    fn leave(&self, driver: &mut Driver<'_>) {
        (0..LEFT).for_each(|slot| (self.post)(driver, slot));
        driver.kick(0);
    }

    fn never_activated(&self) {
        drop(self.machine());
        let machine = self.machine();
        for way in Way::ALL {
            let mut driver = Driver::bind(&machine, machine.devices()[0], way);
            assert_eq!((driver.transport.status(), driver.transport.isr()), (0, 0), "{way:?}");
            driver.kick(0);
            driver.reset();
            assert_eq!((driver.transport.status(), driver.line().high), (0, false), "{way:?}");
        }
    }

    fn active(&self) {
        let machine = self.machine();
        for way in Way::ALL {
            let mut driver = Driver::of_first(&machine, way);
            (0..10).for_each(|_| (self.work)(&mut driver));
            driver.wait_for_line();
        }
        // It goes away while its last driver still has it.
    }

    fn reset_while_busy(&self) {
        let machine = self.machine();
        for way in Way::ALL {
            let mut driver = Driver::bind(&machine, machine.devices()[0], way);
            for round in 0..50 {
                driver.start();
                self.leave(&mut driver);
                let ring = driver.rings.remove(0);
                driver.reset();
                // The device has let go of everything: nothing moves any more, not even when its queue runs again.
                assert!(!driver.line().high, "{way:?}, round {round}");
                let done = ring.used_index();
                assert!(u64::from(done) <= LEFT, "{way:?}, round {round}: {done}");
                let behind = driver.data() + 0x2000;
                let marks = vec![0x5a; 0x2000 * (LEFT as usize - 1)];
                machine.set_bytes(behind, &marks);
                driver.start();
                (self.work)(&mut driver);
                assert_eq!(machine.bytes(behind, marks.len()), marks, "{way:?}, round {round}");
            }
        }
    }

    fn activated_again(&self) {
        let machine = self.machine();
        for round in 0..30 {
            let way = Way::ALL[round % 3];
            let mut driver = Driver::of_first(&machine, way);
            (self.work)(&mut driver);
            driver.wait_for_line();
            assert_eq!(driver.transport.isr(), 1, "{way:?}");
        }
    }

    fn saved_and_restored(&self) {
        for way in Way::ALL {
            for msix in [false, true] {
                let memory = ram().unwrap();
                let make = || Machine::with(memory.clone(), PciResources::Firmware, &[self.device]).unwrap();
                let (first, second) = (make(), make());
                let address = first.devices()[0];
                let mut driver = Driver::bind(&first, address, way);
                if msix {
                    driver.use_msix();
                }
                driver.start();
                (self.work)(&mut driver);
                if !msix {
                    driver.wait_for_line();
                }
                self.leave(&mut driver);
                let state = first.pause_and_save(address);

                second.restore_and_resume(address, &state).unwrap();
                let mut driver = driver.move_to(&second);
                let mut back: HashSet<_> = (0..LEFT).map(|_| driver.complete(0).head).collect();
                assert_eq!(back.len() as u64, LEFT, "{way:?}");
                back.clear();
                if msix {
                    (self.work)(&mut driver);
                    driver.wait_for_message(1);
                } else {
                    driver.wait_for_line();
                    assert_eq!(driver.transport.isr(), 1, "{way:?}");
                    (self.work)(&mut driver);
                }
                assert_eq!(first.pause_and_save(address), state, "{way:?}: the first went on");
                driver.start();
                (self.work)(&mut driver);
            }
        }
    }
}

/// The life-cycle tests of a device: a line each.
macro_rules! life_cycle {
    ($($device:ident: $subject:expr;)*) => {$(
        mod $device {
            use super::*;

            #[test]
            fn never_activated() {
                $subject.never_activated();
            }

            #[test]
            fn active() {
                $subject.active();
            }

            #[test]
            fn reset_while_busy() {
                $subject.reset_while_busy();
            }

            #[test]
            fn activated_again() {
                $subject.activated_again();
            }

            #[test]
            fn saved_and_restored() {
                $subject.saved_and_restored();
            }
        }
    )*};
}

life_cycle! {
    disk: DISK;
    entropy_source: ENTROPY;
    memory_balloon: BALLOON;
}

#[test]
fn a_reset_waits_for_writes_that_are_on_their_way() {
    for way in Way::ALL {
        let image = Image::new(1024);
        let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        for round in 1..=20u8 {
            driver.start();
            for slot in 0..32 {
                block::post(&mut driver, slot, 1, 8 * slot, &[round; 4096], 0);
            }
            driver.kick(0);
            let done = driver.complete(0);
            driver.reset();
            // A request that came back before the reset is on the disk; none comes to it later.
            let after = image.bytes();
            let slot = done.head as usize / 3;
            assert_eq!(
                after[8 * 512 * slot..8 * 512 * (slot + 1)],
                [round; 4096],
                "{way:?}, round {round}"
            );
            driver.start();
            block::read(&mut driver, 0, 512);
            assert!(
                image.bytes() == after,
                "{way:?}, round {round}: written after the reset"
            );
        }
    }
}

#[test]
fn a_device_is_handed_from_driver_to_driver() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    let address = machine.devices()[0];
    // As firmware leaves it: through the window, through ports, with and without a reset; then a kernel comes.
    for (before, after) in [
        (Way::Legacy, Way::Modern),
        (Way::Modern, Way::Legacy),
        (Way::Window, Way::Legacy),
        (Way::Window, Way::Modern),
        (Way::Legacy, Way::Window),
        (Way::Legacy, Way::Legacy),
    ] {
        for msix in [false, true] {
            let mut first = Driver::of_first(&machine, before);
            assert_eq!(block::read(&mut first, 5, 512), sector(5));
            for slot in 0..20 {
                block::post(&mut first, slot, 0, slot, &[], 512);
            }
            first.kick(0);
            let mut second = Driver::bind(&machine, address, after);
            if msix {
                second.use_msix();
            }
            second.start();
            assert_eq!(second.features >> 32 & 1 == 1, after.is_modern());
            assert_eq!(block::read(&mut second, 6, 512), sector(6), "{before:?} to {after:?}");
            second.use_line();
        }
    }
}

#[test]
fn one_driver_may_use_both_faces() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Modern);
    let ports = Legacy::of(driver.device).unwrap();
    assert_eq!(ports.status(), driver.transport.status(), "it is one device");
    // The other face's doorbell, status and configuration are the same ones.
    block::post(&mut driver, 0, 0, 7, &[], 512);
    ports.kick(0);
    driver.complete(0);
    assert_eq!(block::status(&driver, 0), 0);
    driver.wait_for_line();
    assert_eq!((ports.isr(), driver.transport.isr()), (1, 0));
    assert_eq!(ports.config(0, 4), driver.transport.config(0, 4));
    // Selecting here selects there, and page 0 resets everything.
    ports.write(port::QUEUE_SEL, 2, 0);
    ports.write(port::QUEUE_PFN, 4, 0);
    assert_eq!(driver.transport.status(), 0);
    driver.start();
    assert_eq!(block::read(&mut driver, 7, 512), sector(7));
}

#[test]
fn a_ring_moves_to_another_page_while_its_device_is_up() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Legacy);
    for queue in [1, 3, 0] {
        let size = driver.rings[0].config().size;
        let ring = driver.make_ring(queue, size);
        driver.transport.set_up_queue(0, ring.config(), None);
        driver.rings[0] = ring;
        assert_eq!(block::read(&mut driver, 2, 512), sector(2));
    }
    assert_eq!(driver.transport.status() & status::DRIVER_OK, status::DRIVER_OK);
}

#[test]
fn one_queue_is_reset_and_the_others_go_on() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",queues=2"))]).unwrap();
    for way in [Way::Modern, Way::Window] {
        let mut driver = Driver::of_first(&machine, way);
        let modern = match way {
            Way::Window => tests::driver::modern::Modern::through_window(driver.device),
            _ => tests::driver::modern::Modern::of(driver.device),
        }
        .unwrap();
        for _ in 0..10 {
            for slot in 0..8 {
                block::post(&mut driver, slot, 0, slot, &[], 512);
            }
            driver.kick(0);
            modern.write(tests::driver::modern::common::QUEUE_SELECT, 2, 0);
            modern.write(tests::driver::modern::common::QUEUE_RESET, 2, 1);
            assert_eq!(modern.read(tests::driver::modern::common::QUEUE_ENABLE, 2), 0);
            driver.rings.swap(0, 1);
            let head = block::post(&mut driver, 9, 0, 9, &[], 512);
            driver.kick(1);
            assert_eq!(driver.complete(0).head, u32::from(head), "{way:?}: the other queue");
            driver.rings.swap(0, 1);
            let size = driver.rings[0].config().size;
            driver.rings[0] = driver.make_ring(0, size);
            driver.transport.set_up_queue(0, driver.rings[0].config(), None);
            assert_eq!(block::read(&mut driver, 3, 512), sector(3), "{way:?}");
        }
    }
}
