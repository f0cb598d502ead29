//! What a broken or malicious driver does to the transport, by ports, in memory and through the window. A disk that has
//! been through it answers the next driver.

use devices::virtio::transport::status;
use devices::virtio::virtq::testing::DriverRing;
use devices::virtio::virtq::{LEGACY_PAGE_SIZE, QueueConfig};
use pci::config_space::command;
use tests::driver::bus::MSIX;
use tests::driver::legacy::{Legacy, port};
use tests::driver::machine::{HIGH_RAM, HIGH_RAM_SIZE, LOW_RAM_END, RAM_SEAM};
use tests::driver::modern::{Modern, common, window};
use tests::driver::{Driver, Machine, PciDevice, Way, block, wait_for};

use crate::image::{Image, sector};

const QUEUES: u16 = 2;
const QUEUE_SIZE: u64 = 64;
const MODERN: [Way; 2] = [Way::Modern, Way::Window];

/// Does `test` with a fresh disk each of these ways, and then sees that the disk works every way.
fn with_disk(ways: &[Way], test: impl Fn(&mut Driver<'_>)) {
    for &way in ways {
        let image = Image::new(64);
        let options = image.options(",queues=2,queue-size=64");
        let machine = Machine::new(&[("virtio-blk-pci", &options)]).unwrap();
        test(&mut Driver::bind(&machine, machine.devices()[0], way));
        for next in [way, Way::Legacy, Way::Modern, Way::Window] {
            let mut driver = Driver::bind(&machine, machine.devices()[0], next);
            driver.use_line();
            driver.start();
            assert_eq!(block::read(&mut driver, 3, 512), sector(3), "{way:?}, then {next:?}");
            driver.wait_for_line();
        }
    }
}

fn modern_face<'m>(driver: &Driver<'m>) -> Modern<'m> {
    match driver.way {
        Way::Window => Modern::through_window(driver.device).unwrap(),
        _ => Modern::of(driver.device).unwrap(),
    }
}

fn works(driver: &mut Driver<'_>) {
    assert_eq!(block::read(driver, 3, 512), sector(3), "{:?}", driver.way);
}

/// That the driver was caught breaking exactly these rules since the last time, however often.
fn assert_broken(driver: &Driver<'_>, rules: &[&str]) {
    let mut broken = driver.machine().rules(driver.device.address);
    broken.sort_unstable();
    broken.dedup();
    assert_eq!(broken, rules, "{:?}", driver.way);
}

/// Queue numbers that no disk here has.
const ABSENT: [u64; 6] = [2, 3, 63, 1024, 0x8000, 0xffff];

#[test]
fn queues_past_the_end_have_no_registers() {
    with_disk(&MODERN, |driver| {
        driver.start();
        let face = modern_face(driver);
        for queue in ABSENT {
            face.write(common::QUEUE_SELECT, 2, queue);
            for (register, width, value) in [
                (common::QUEUE_SIZE, 2, 0),
                (common::QUEUE_VECTOR, 2, 0xffff),
                (common::QUEUE_ENABLE, 2, 0),
                (common::QUEUE_DESC, 4, 0),
                (common::QUEUE_DESC + 4, 4, 0),
                (common::QUEUE_DRIVER, 4, 0),
                (common::QUEUE_DEVICE, 4, 0),
                (common::QUEUE_RESET, 2, 0),
            ] {
                face.write(register, width, 1);
                assert_eq!(face.read(register, width), value, "queue {queue}, {register:#x}");
            }
        }
        assert_broken(driver, &["V-TRANSPORT-08"]);
        works(driver);
    });
    with_disk(&[Way::Legacy], |driver| {
        driver.start();
        let face = Legacy::of(driver.device).unwrap();
        for queue in ABSENT {
            face.write(port::QUEUE_SEL, 2, queue);
            face.write(port::QUEUE_PFN, 4, 0x100);
            let registers = (face.read(port::QUEUE_PFN, 4), face.read(port::QUEUE_NUM, 2));
            assert_eq!(registers, (0, 0), "queue {queue}");
        }
        assert_broken(driver, &["V-TRANSPORT-08"]);
        works(driver);
    });
}

#[test]
fn sizes_that_cannot_be_are_not_taken() {
    with_disk(&MODERN, |driver| {
        driver.negotiate(!(1 << 29));
        let face = modern_face(driver);
        for queue in 0..QUEUES {
            face.write(common::QUEUE_SELECT, 2, queue.into());
            for size in [0, 3, 63, 65, 128, 0x8000, 0xffff] {
                face.write(common::QUEUE_SIZE, 2, size);
                assert_eq!(face.read(common::QUEUE_SIZE, 2), QUEUE_SIZE, "{size}");
            }
        }
        assert_broken(driver, &["V-QUEUE-01", "V-QUEUE-02"]);
    });
}

#[test]
fn a_queue_that_runs_keeps_its_geometry() {
    with_disk(&MODERN, |driver| {
        driver.start();
        let face = modern_face(driver);
        for _ in 0..4 {
            face.write(common::QUEUE_SELECT, 2, 0);
            face.write(common::QUEUE_SIZE, 2, 4);
            face.write_address(common::QUEUE_DESC, 0xffff_ffff_ffff_fff0);
            face.write_address(common::QUEUE_DRIVER, 0);
            face.write_address(common::QUEUE_DEVICE, 1);
            face.write(common::QUEUE_ENABLE, 2, 0);
            assert_eq!(face.read(common::QUEUE_SIZE, 2), QUEUE_SIZE);
            assert_eq!(face.read(common::QUEUE_ENABLE, 2), 1);
            works(driver);
        }
        assert_broken(driver, &["V-TRANSPORT-09", "V-TRANSPORT-10"]);
    });
}

/// Addresses of descriptor table, available and used ring that cannot be.
const BAD_RINGS: [[u64; 3]; 11] = [
    [0, 0, 0],
    [0x20_0000, 0, 0x20_2000],
    [0x20_0000, 0x20_1000, 0],
    [0x20_0008, 0x20_1000, 0x20_2000],
    [0x20_0000, 0x20_1001, 0x20_2000],
    [0x20_0000, 0x20_1000, 0x20_2002],
    [LOW_RAM_END - 16, 0x20_1000, 0x20_2000],
    [0x20_0000, LOW_RAM_END, 0x20_2000],
    [0x20_0000, 0x20_1000, 0xfebf_0000],
    [0x20_0000, 0xffff_ffff_ffff_fffe, 0x20_2000],
    [HIGH_RAM + HIGH_RAM_SIZE - 16, 0x20_1000, 0x20_2000],
];

#[test]
fn a_ring_that_cannot_be_needs_a_reset_and_leaves_the_other_queue_alone() {
    for [descriptors, available, used] in BAD_RINGS {
        with_disk(&MODERN, |driver| {
            driver.negotiate(!(1 << 29));
            driver.set_up_queues();
            let face = modern_face(driver);
            face.write(common::QUEUE_SELECT, 2, 1);
            face.write(common::QUEUE_RESET, 2, 1);
            let mut config = QueueConfig::new(64);
            (config.descriptors, config.available, config.used) = (descriptors, available, used);
            driver.set_up_queue_at(1, &config);
            driver.set_status(status::DRIVER_OK);
            driver.wait_until_broken();
            wait_for("the configuration interrupt", || {
                (driver.transport.isr() & 2 != 0).then_some(())
            });
            works(driver);
            driver.kick(1);
            driver.reset();
            assert_eq!(driver.transport.status(), 0);
        });
    }
}

#[test]
fn rings_may_lie_across_mappings_of_ram_above_4_gib_and_on_each_other() {
    with_disk(&MODERN, |driver| {
        let base = driver.ring_base(0);
        for (descriptors, available, used) in [
            (HIGH_RAM, HIGH_RAM + 0x1000, HIGH_RAM + 0x2000),
            (HIGH_RAM + HIGH_RAM_SIZE - 0x400, base, base + 0x1000),
            (base, base + 0x400, base + 0x484),
        ] {
            let mut config = QueueConfig::new(64);
            (config.descriptors, config.available, config.used) = (descriptors, available, used);
            driver.negotiate(!(1 << 29));
            let ring = DriverRing::on(driver.machine().memory().clone(), config);
            driver.set_up_queue_at(0, ring.config());
            driver.rings.push(ring);
            driver.set_status(status::DRIVER_OK);
            works(driver);
        }
        // All three parts at one place: whatever happens, it happens to the driver only.
        for (available, used) in [(base, base), (base + 2, base + 4), (base + 0x100, base)] {
            let mut config = QueueConfig::new(64);
            (config.descriptors, config.available, config.used) = (base, available, used);
            driver.negotiate(!(1 << 29));
            driver.machine().set_bytes(base, &[1; 0x2000]);
            driver.set_up_queue_at(0, &config);
            driver.set_status(status::DRIVER_OK);
            (0..10).for_each(|_| driver.kick(0));
        }
    });
}

#[test]
fn a_legacy_ring_ends_with_ram_or_does_not_run() {
    with_disk(&[Way::Legacy], |driver| {
        driver.negotiate(!(1 << 29));
        driver.set_status(status::DRIVER_OK);
        let face = Legacy::of(driver.device).unwrap();
        for page in [
            LOW_RAM_END / LEGACY_PAGE_SIZE - 1,
            LOW_RAM_END / LEGACY_PAGE_SIZE,
            0xffff_ffff,
            0xf_ec00,
        ] {
            face.write(port::QUEUE_SEL, 2, 0);
            face.write(port::QUEUE_PFN, 4, page);
            driver.kick(0);
            assert_eq!(driver.transport.isr(), 0, "{page:#x}");
        }
        // The last that fits: descriptors and available ring in one page, the used ring in the next.
        let page = LOW_RAM_END / LEGACY_PAGE_SIZE - 2;
        let ring = DriverRing::legacy(driver.machine().memory().clone(), page as u32, 64);
        driver.transport.set_up_queue(0, ring.config(), None);
        driver.rings.push(ring);
        works(driver);
        // A ring across two mappings of RAM.
        let page = RAM_SEAM / LEGACY_PAGE_SIZE - 1;
        driver.rings[0] = DriverRing::legacy(driver.machine().memory().clone(), page as u32, 64);
        driver.transport.set_up_queue(0, driver.rings[0].config(), None);
        works(driver);
    });
}

#[test]
fn page_0_resets_the_device() {
    with_disk(&[Way::Legacy], |driver| {
        for queue in [0, 1, 0xffff] {
            driver.start();
            works(driver);
            let face = Legacy::of(driver.device).unwrap();
            face.write(port::QUEUE_SEL, 2, queue);
            face.write(port::QUEUE_PFN, 4, 0);
            assert_eq!((driver.transport.status(), face.read(port::QUEUE_SEL, 2)), (0, 0));
        }
    });
}

#[test]
fn kicks_at_the_wrong_time_or_place_do_nothing() {
    with_disk(&Way::ALL, |driver| {
        let kick_everything = |driver: &Driver<'_>| {
            for queue in [0, 1, 2, 3, 0x3ff] {
                driver.kick(queue);
            }
            if !driver.way.is_modern() {
                for queue in [0x7fff, 0x8000, 0xffff] {
                    driver.kick(queue);
                }
            }
        };
        driver.reset();
        kick_everything(driver);
        driver.negotiate(!(1 << 29));
        kick_everything(driver);
        driver.set_up_queues();
        kick_everything(driver);
        driver.set_status(status::DRIVER_OK);
        kick_everything(driver);
        works(driver);
        driver.set_status(status::FAILED);
        let mut ring = driver.rings.remove(0);
        kick_everything(driver);
        driver.reset();
        kick_everything(driver);
        assert_eq!(ring.next_used(), None);
    });
}

#[test]
fn a_request_before_driver_ok_is_answered_at_the_latest_with_it() {
    // Drivers of Linux before 3.18 read the partition table before they say DRIVER_OK, and wait for it.
    with_disk(&[Way::Legacy], |driver| {
        driver.negotiate(!(1 << 29));
        driver.set_up_queues();
        works(driver);
        driver.set_status(status::DRIVER_OK);
        works(driver);
    });
    with_disk(&MODERN, |driver| {
        driver.negotiate(!(1 << 29));
        driver.set_up_queues();
        block::post(driver, 0, 0, 3, &[], 512);
        driver.kick(0);
        assert_eq!(driver.transport.isr(), 0);
        driver.set_status(status::DRIVER_OK);
        driver.complete(0);
        assert_eq!(block::status(driver, 0), 0);
    });
}

#[test]
fn status_bits_in_any_order_do_no_harm() {
    with_disk(&Way::ALL, |driver| {
        driver.start();
        for value in (0..=0xff).rev().chain([0x0f, 0x03, 0x0b, 0x80, 0x0f, 0x40, 0xff]) {
            if driver.way == Way::Legacy || value != 0 {
                driver.transport.set_status(value);
            }
            driver.kick(0);
        }
        driver.reset();
        // Ready without a queue, without features, without anything.
        driver.set_status(status::DRIVER_OK);
        driver.kick(0);
        driver.start();
        works(driver);
    });
}

#[test]
fn features_that_were_not_offered_are_not_agreed_on() {
    with_disk(&MODERN, |driver| {
        let face = modern_face(driver);
        let offered = driver.transport.offered();
        let with_version_1 = offered & !(1 << 29);
        assert!(offered & 1 << 32 != 0 && offered & (1 << 30 | 1 << 24 | 1 << 27) == 0);
        for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
            driver.reset();
            driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
            assert!(!driver.transport.accept(with_version_1 | 1 << bit), "bit {bit}");
        }
        driver.reset();
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
        assert!(
            !driver.transport.accept(with_version_1 & !(1 << 32)),
            "without VERSION_1"
        );
        // Words beyond the second are empty, and take nothing.
        for select in [2, 3, 0xffff_ffff] {
            face.write(common::DEVICE_FEATURE_SELECT, 4, select);
            face.write(common::DRIVER_FEATURE_SELECT, 4, select);
            face.write(common::DRIVER_FEATURE, 4, 0xffff_ffff);
            let words = (
                face.read(common::DEVICE_FEATURE, 4),
                face.read(common::DRIVER_FEATURE, 4),
            );
            assert_eq!(words, (0, 0), "{select}");
        }
        // What was agreed on stays so.
        driver.start();
        face.write(common::DRIVER_FEATURE_SELECT, 4, 0);
        let before = face.read(common::DRIVER_FEATURE, 4);
        face.write(common::DRIVER_FEATURE, 4, 0);
        assert_eq!(face.read(common::DRIVER_FEATURE, 4), before);
        works(driver);
    });
}

#[test]
fn a_legacy_driver_that_accepts_everything_gets_what_was_offered() {
    with_disk(&[Way::Legacy], |driver| {
        assert_ne!(driver.transport.offered() & 1 << 30, 0, "the trap");
        for accepted in [0xffff_ffff, 1 << 30, 0xbfff_ffff] {
            driver.negotiate(0);
            driver.transport.accept(accepted);
            driver.set_up_queues();
            driver.set_status(status::DRIVER_OK);
            let face = Legacy::of(driver.device).unwrap();
            let taken = face.read(port::GUEST_FEATURES, 4);
            assert_eq!(taken & !driver.transport.offered(), 0, "{accepted:#x}");
            works(driver);
        }
    });
}

#[test]
fn vectors_past_the_table_read_back_as_none() {
    with_disk(&Way::ALL, |driver| {
        driver.use_msix();
        driver.start();
        for vector in [3, 4, 0x7ff, 0x800, 0xfffe] {
            assert!(!driver.transport.set_config_vector(vector), "{vector:#x}");
            let ring = driver.rings[0].config().clone();
            assert!(!driver.transport.set_up_queue(0, &ring, Some(vector)), "{vector:#x}");
        }
        works(driver);
        assert!(driver.transport.set_config_vector(2));
        driver.use_line();
    });
}

#[test]
fn the_msix_table_is_accessed_by_any_width() {
    with_disk(&[Way::Modern], |driver| {
        driver.use_msix();
        driver.start();
        let (machine, base) = (driver.machine(), driver.device.bar(1).base);
        for width in 1..=8 {
            for offset in 0..0x40 {
                machine.store(base + offset, width, u64::MAX);
                machine.load(base + offset, width);
            }
        }
        let capability = driver.device.capabilities(MSIX)[0];
        let pending = base + u64::from(driver.device.read(capability + 8, 4) & !7);
        for (offset, width) in [(0, 8), (0, 4), (4, 4), (1, 2), (7, 1), (0, 1)] {
            machine.store(pending + offset, width, u64::MAX);
        }
        assert_eq!(machine.load(pending, 8), 0, "pending bits are the device's");
        // Aligned double words and quad words are what counts.
        machine.store(base, 8, 0xfee0_0000);
        machine.store(base + 8, 4, 0x1234);
        machine.store(base + 12, 4, 0);
        assert_eq!(
            (machine.load(base, 8), machine.load(base + 8, 8)),
            (0xfee0_0000, 0x1234)
        );
        driver.use_msix();
        driver.start();
        works(driver);
        driver.wait_for_message(1);
        driver.use_line();
    });
}

#[test]
fn legacy_configuration_moves_with_msix() {
    with_disk(&[Way::Legacy], |driver| {
        let (machine, base) = (driver.machine(), driver.device.bar(0).base as u16);
        let capability = driver.device.capabilities(MSIX)[0];
        let control = driver.device.read(capability + 2, 2);
        driver.start();
        for _ in 0..10 {
            assert_eq!(machine.port(base + port::CONFIG, 4), 64);
            driver.device.write(capability + 2, 2, control | 0x8000);
            assert_eq!(machine.port(base + port::CONFIG_WITH_MSIX, 4), 64);
            // As in QEMU an access is to one register, however wide it is.
            assert_eq!(machine.port(base + port::CONFIG_VECTOR, 4), 0xffff, "no vector yet");
            assert_eq!(machine.port(base + port::QUEUE_VECTOR, 2), 0xffff, "no vector yet");
            // Across the border between vectors and configuration.
            assert_eq!(machine.port(base + 0x16, 4), 64 << 16 | 0xffff);
            driver.device.write(capability + 2, 2, control);
            works(driver);
        }
    });
}

#[test]
fn accesses_of_any_width_to_any_register_do_no_harm() {
    with_disk(&[Way::Legacy], |driver| {
        let (machine, base) = (driver.machine(), driver.device.bar(0).base as u16);
        for value in [0, u64::MAX, 0x0101_0101_0101_0101, 0x8000_0000_8000_0000] {
            driver.start();
            for width in 1..=8 {
                for offset in 0..0x80 {
                    machine.port(base + offset, width);
                    machine.set_port(base + offset, width, value);
                }
            }
        }
    });
    with_disk(&[Way::Modern], |driver| {
        let (machine, base) = (driver.machine(), driver.device.bar(4).base);
        for value in [0, u64::MAX, 0x0101_0101_0101_0101, 0x8000_0000_8000_0000] {
            driver.start();
            for width in 1..=8 {
                for structure in 0..4 {
                    for offset in (0..0x48).chain(0xff8..0x1000) {
                        machine.load(base + 0x1000 * structure + offset, width);
                        machine.store(base + 0x1000 * structure + offset, width, value);
                    }
                }
            }
        }
    });
}

#[test]
fn reads_of_the_wrong_width_are_cut_or_filled_as_in_qemu() {
    with_disk(&[Way::Modern], |driver| {
        driver.start();
        let (machine, base) = (driver.machine(), driver.device.bar(4).base);
        // A quad word is two double words; the middle of a register is nothing.
        machine.store(base, 8, 1);
        let high_features = machine.load(base + 4, 4);
        assert_eq!(
            (machine.load(base, 4), high_features & 1),
            (1, 1),
            "VERSION_1 is in the second word"
        );
        assert_eq!(machine.load(base, 8), high_features << 32 | 1);
        assert_eq!(machine.load(base + 1, 1), 0);
        works(driver);
    });
}

#[test]
fn a_window_that_points_nowhere_moves_nothing() {
    with_disk(&[Way::Window], |driver| {
        driver.start();
        let device = driver.device;
        let at = window(device).unwrap();
        let point = |bar: u32, offset: u32, len: u32| {
            device.write(at + 4, 1, bar);
            device.write(at + 8, 4, offset);
            device.write(at + 12, 4, len);
        };
        for (bar, offset, len) in [
            (0, 0x12, 1),
            (1, 0, 4),
            (2, 0, 2),
            (3, 0, 4),
            (5, 0x14, 1),
            (6, 0x14, 1),
            (0xff, 0x14, 1),
            (4, 0x14, 0),
            (4, 0x14, 3),
            (4, 0x10, 8),
            (4, 0x14, 0x1_0001),
            (4, 0x14, 0xffff_ffff),
            (4, 0x13, 2),
            (4, 0x4000, 4),
            (4, 0x3ffe, 4),
            (4, 0xffff_fffc, 4),
        ] {
            for width in [1, 2, 4] {
                point(bar, offset, len);
                device.write(at + 16, width, 0);
                device.read(at + 16, width);
            }
            assert_ne!(
                driver.transport.status() & status::DRIVER_OK,
                0,
                "reset through {bar}, {offset:#x}, {len}"
            );
        }
        assert_broken(driver, &["V-TRANSPORT-17"]);
        // Odd accesses to the window itself.
        point(4, 0x14, 1);
        for offset in 0..20 {
            device.read(at + offset, 1);
        }
        for offset in [13, 14, 15, 17, 18, 19] {
            driver.machine().port(0xcfc, 8);
            device.write(at + offset, 1, 0xff);
        }
        works(driver);
    });
}

#[test]
fn a_legacy_driver_that_forgets_bus_mastering_is_served_and_a_modern_one_is_not() {
    with_disk(&[Way::Legacy], |driver| {
        driver.device.command(0, command::MASTER);
        driver.start();
        works(driver);
    });
    with_disk(&MODERN, |driver| {
        driver.device.command(0, command::MASTER);
        driver.start();
        block::post(driver, 0, 0, 3, &[], 512);
        driver.kick(0);
        let machine = driver.machine();
        // Neither then nor when it would have been stopped.
        machine.pause_and_save(driver.device.address);
        assert_eq!(driver.rings[0].used_index(), 0);
        machine.resume(driver.device.address);
        driver.device.command(command::MASTER, 0);
        driver.complete(0);
        // Taken away while the device works, as a kernel does that goes down.
        for _ in 0..10 {
            block::post(driver, 0, 0, 3, &[], 512);
            driver.kick(0);
            driver.device.command(0, command::MASTER);
            assert_eq!(driver.transport.status() & status::DRIVER_OK, 0);
            driver.device.command(command::MASTER, 0);
            driver.start();
            works(driver);
        }
    });
}

#[test]
fn registers_of_the_device_that_are_only_read_stay_as_they_are() {
    with_disk(&Way::ALL, |driver| {
        driver.start();
        let device = PciDevice {
            machine: driver.machine(),
            address: driver.device.address,
        };
        let before: Vec<_> = (0..0x40).map(|offset| device.read(offset, 1)).collect();
        for offset in [0, 2, 8, 9, 10, 11, 14, 0x2c, 0x2e, 0x34, 0x3d] {
            device.write(offset, 1, 0xff ^ before[usize::from(offset)]);
            assert_eq!(device.read(offset, 1), before[usize::from(offset)], "{offset:#x}");
        }
        works(driver);
    });
}
