//! Devices do their work whichever way their driver comes.

use std::collections::HashSet;

use devices::virtio::virtq::testing::Buffer;
use tests::driver::{Driver, Machine, Way, block, entropy};

use crate::image::{Image, sector};

#[test]
fn a_disk_is_read_and_written_each_way() {
    for way in Way::ALL {
        let image = Image::new(64);
        let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
        let mut driver = Driver::of_first(&machine, way);
        assert_eq!(driver.transport.config(0, 4), 64, "{way:?}: capacity");
        for number in [0, 1, 63] {
            assert_eq!(block::read(&mut driver, number, 512), sector(number), "{way:?}");
        }
        block::write(&mut driver, 7, &[0xc3; 1024]);
        assert_eq!(block::read(&mut driver, 6, 512), sector(6), "{way:?}");
        assert_eq!(block::read(&mut driver, 7, 1024), [0xc3; 1024], "{way:?}");
        assert_eq!(image.bytes()[7 * 512..9 * 512], [0xc3; 1024], "{way:?}");
        assert_eq!(image.bytes()[9 * 512..10 * 512], sector(9), "{way:?}");
    }
}

#[test]
fn a_disk_without_storage_answers_each_way() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://,size=1M,read-zeroes=on")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        block::write(&mut driver, 2047, &[1; 512]);
        assert_eq!(block::read(&mut driver, 0, 4096), [0; 4096], "{way:?}");
    }
}

#[test]
fn randomness_comes_each_way() {
    let machine = Machine::new(&[("virtio-rng-pci", "")]).unwrap();
    let mut seen = HashSet::new();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        for _ in 0..4 {
            assert!(
                seen.insert(entropy::fill(&mut driver, 32)),
                "{way:?}: bytes that came before"
            );
        }
    }
}

#[test]
fn every_queue_of_a_disk_serves() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",queues=4,queue-size=64"))]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        assert_eq!(driver.rings.len(), 4, "{way:?}");
        for queue in 0..4 {
            // Another queue's requests are this one's with the rings exchanged.
            driver.rings.swap(0, queue);
            let head = block::post(&mut driver, 0, 0, queue as u64, &[], 512);
            driver.kick(queue as u16);
            assert_eq!(driver.complete(0).head, u32::from(head));
            driver.rings.swap(0, queue);
            assert_eq!(block::status(&driver, 0), 0, "{way:?}, queue {queue}");
        }
    }
}

#[test]
fn many_requests_are_in_flight_and_each_comes_back_once() {
    let image = Image::new(256);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        for round in 0..8 {
            let mut heads: HashSet<u32> = (0..block::SLOTS.min(80))
                .map(|slot| block::post(&mut driver, slot, 0, slot + round, &[], 512).into())
                .collect();
            driver.kick(0);
            while !heads.is_empty() {
                let used = driver.complete(0);
                assert!(heads.remove(&used.head), "{way:?}: {} came back twice", used.head);
            }
            for slot in 0..80 {
                assert_eq!(block::status(&driver, slot), 0, "{way:?}, slot {slot}");
                let data = driver.machine().bytes(driver.data() + 0x2000 * slot + 0x1000, 512);
                assert_eq!(data, sector(slot + round), "{way:?}, slot {slot}");
            }
        }
    }
}

#[test]
fn indices_wrap_at_their_end() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://")]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Modern);
    let mut done = 0u32;
    while done < 70_000 {
        for slot in 0..64 {
            block::post(&mut driver, slot, 0, 0, &[], 512);
        }
        driver.kick(0);
        for _ in 0..64 {
            driver.complete(0);
        }
        done += 64;
    }
    assert_eq!(u32::from(driver.rings[0].used_index()), done % 0x1_0000);
    block::read(&mut driver, 0, 512);
}

#[test]
fn huge_buffers_get_a_bounded_part_of_randomness() {
    const LARGEST: u32 = 64 << 10;
    let machine = Machine::new(&[("virtio-rng-pci", "")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        for _ in 0..4 {
            // Almost 3 MiB in four buffers that lie on each other.
            let part = Buffer::writable(driver.data(), 0xb_0000);
            assert_eq!(driver.request(0, &[part; 4]).len, LARGEST, "{way:?}");
        }
        entropy::fill(&mut driver, 16);
    }
}
