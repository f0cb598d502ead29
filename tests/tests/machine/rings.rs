//! What a broken or malicious driver does to its rings, by ports, in memory and through the window: a chain that is
//! malformed comes back with length 0 and its queue goes on, a ring that is malformed stands still until the next reset.

use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::transport::status;
use devices::virtio::virtq::testing::{INDIRECT, NEXT, RawDescriptor, WRITE};
use tests::driver::block::{UNANSWERED, header};
use tests::driver::machine::{HIGH_RAM, LOW_RAM_END, RAM_SEAM};
use tests::driver::{Driver, Machine, Way, block, entropy, wait_for};

use crate::image::{Image, sector};

const SIZE: u16 = 64;
const FIRST_SECTOR: u64 = 1;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const BAD_FEATURE: u64 = 1 << 30;

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It is a request like any other, and has been answered with this status.
    Answered(u8),
    /// The chain comes back with length 0.
    Empty,
    /// The ring is broken.
    Broken,
}
use Outcome::{Answered, Broken, Empty};

const OK: Outcome = Answered(0);
const IOERR: Outcome = Answered(1);

/// A mistake and its outcome.
struct Case {
    name: &'static str,
    make: fn(&mut Stage<'_, '_>),
    outcome: Outcome,
}

const fn case(name: &'static str, outcome: Outcome, make: fn(&mut Stage<'_, '_>)) -> Case {
    Case { name, make, outcome }
}

/// A queue that nothing was posted in yet. There is a header of a read request, and room for data and status.
struct Stage<'d, 'm> {
    driver: &'d mut Driver<'m>,
    header: u64,
    data: u64,
    status: u64,
    table: u64,
}

impl<'d, 'm> Stage<'d, 'm> {
    fn new(driver: &'d mut Driver<'m>) -> Self {
        let base = driver.data();
        let stage = Self {
            driver,
            header: base,
            data: base + 0x1000,
            status: base + 0x800,
            table: base + 0x8_0000,
        };
        let machine = stage.driver.machine();
        machine.set_bytes(stage.header, &header(0, FIRST_SECTOR));
        machine.set_bytes(stage.status, &[UNANSWERED]);
        stage
    }

    fn at(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.driver.rings[0].set_descriptor(index, RawDescriptor::new(address, len, flags, next));
    }

    fn in_table(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.driver.rings[0].set_indirect(self.table, index, RawDescriptor::new(address, len, flags, next));
    }

    fn offer(&mut self, head: u16) {
        self.driver.rings[0].offer(head);
    }

    /// Header, one data buffer, status; and offers it.
    fn read_into(&mut self, address: u64, len: u32) {
        self.at(0, self.header, 16, NEXT, 1);
        self.at(1, address, len, NEXT | WRITE, 2);
        self.at(2, self.status, 1, WRITE, 0);
        self.offer(0);
    }

    /// A good request of `entries` descriptors in a table.
    fn fill_table(&self, entries: u16) {
        self.in_table(0, self.header, 16, NEXT, 1);
        for index in 1..entries - 1 {
            self.in_table(index, self.data, 512, NEXT | WRITE, index + 1);
        }
        self.in_table(entries - 1, self.status, 1, WRITE, 0);
    }

    /// A descriptor that names a table, and offers it.
    fn offer_table(&mut self, len: u32, flags: u16) {
        self.at(0, self.table, len, INDIRECT | flags, 1);
        self.offer(0);
    }
}

const CHAINS: &[Case] = &[
    case("next is itself", Empty, |stage| {
        stage.at(0, stage.header, 16, NEXT, 0);
        stage.offer(0);
    }),
    case("a cycle of two", Empty, |stage| {
        stage.at(0, stage.header, 16, NEXT, 1);
        stage.at(1, stage.header, 16, NEXT, 0);
        stage.offer(1);
    }),
    case("as long as the queue", OK, |stage| {
        stage.at(0, stage.header, 16, NEXT, 1);
        (1..SIZE - 1).for_each(|index| stage.at(index, stage.data, 512, NEXT | WRITE, index + 1));
        stage.at(SIZE - 1, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
    case("one longer than the queue", Empty, |stage| {
        stage.at(0, stage.header, 16, NEXT, 1);
        (1..SIZE).for_each(|index| stage.at(index, stage.data, 512, NEXT | WRITE, (index + 1) % SIZE));
        stage.offer(0);
    }),
    case("next is the size of the table", Empty, |stage| {
        stage.at(0, stage.header, 16, NEXT, SIZE);
        stage.offer(0);
    }),
    case("next is 65535", Empty, |stage| {
        stage.at(0, stage.header, 16, NEXT, 0xffff);
        stage.offer(0);
    }),
    case("next without NEXT is nothing", OK, |stage| {
        stage.at(0, stage.header, 16, NEXT, 1);
        stage.at(1, stage.data, 512, NEXT | WRITE, 2);
        stage.at(2, stage.status, 1, WRITE, 0xffff);
        stage.offer(0);
    }),
    case("flags of the future", OK, |stage| {
        stage.at(0, stage.header, 16, NEXT | 0xfff8, 1);
        stage.at(1, stage.data, 512, NEXT | WRITE | 0xff00, 2);
        stage.at(2, stage.status, 1, WRITE | 0x80, 0);
        stage.offer(0);
    }),
];

const INDIRECTS: &[Case] = &[
    case("a table", OK, |stage| {
        stage.fill_table(3);
        stage.offer_table(48, 0);
    }),
    case("WRITE on the table's descriptor", OK, |stage| {
        stage.fill_table(3);
        stage.offer_table(48, WRITE);
    }),
    case("a table at an odd address", OK, |stage| {
        stage.table += 1;
        stage.fill_table(3);
        stage.offer_table(48, 0);
    }),
    case("a table across two mappings of RAM", OK, |stage| {
        stage.table = RAM_SEAM - 24;
        stage.fill_table(3);
        stage.offer_table(48, 0);
    }),
    case("a table behind a header", OK, |stage| {
        stage.at(5, stage.header, 16, NEXT, 0);
        stage.at(0, stage.table, 32, INDIRECT, 0);
        stage.in_table(0, stage.data, 512, NEXT | WRITE, 1);
        stage.in_table(1, stage.status, 1, WRITE, 0);
        stage.offer(5);
    }),
    case("more entries than the queue", OK, |stage| {
        stage.fill_table(SIZE + 40);
        stage.offer_table(16 * (u32::from(SIZE) + 40), 0);
    }),
    case("entries behind the end of the chain", OK, |stage| {
        stage.fill_table(3);
        stage.offer_table(16 * 32768, 0);
    }),
    case("as many entries as a chain may have", OK, |stage| {
        stage.fill_table(1024);
        stage.offer_table(16 * 1024, 0);
    }),
    case("one more", Empty, |stage| {
        stage.fill_table(1025);
        stage.offer_table(16 * 1025, 0);
    }),
    case("a table in a table", Empty, |stage| {
        stage.fill_table(3);
        stage.in_table(1, stage.table, 48, INDIRECT, 0);
        stage.offer_table(48, 0);
    }),
    case("a table and NEXT", Empty, |stage| {
        stage.fill_table(3);
        stage.at(1, stage.status, 1, WRITE, 0);
        stage.offer_table(48, NEXT);
    }),
    case("two tables", Empty, |stage| {
        stage.fill_table(3);
        stage.at(1, stage.table, 48, INDIRECT, 0);
        stage.offer_table(48, NEXT);
    }),
    case("a table of 0 bytes", Empty, |stage| stage.offer_table(0, 0)),
    case("a table of 47 bytes", Empty, |stage| {
        stage.fill_table(3);
        stage.offer_table(47, 0);
    }),
    case("a table of 1 byte", Empty, |stage| stage.offer_table(1, 0)),
    case("a huge table", Empty, |stage| stage.offer_table(0xffff_fff0, 0)),
    case("a table of 32769 entries", Empty, |stage| {
        stage.offer_table(16 * 32769, 0)
    }),
    case("a table behind RAM", Empty, |stage| {
        stage.table = LOW_RAM_END;
        stage.offer_table(48, 0);
    }),
    case("a table across the end of RAM", Empty, |stage| {
        stage.table = LOW_RAM_END - 48;
        stage.fill_table(3);
        stage.table = LOW_RAM_END - 32;
        stage.offer_table(48, 0);
    }),
    case("a table at the end of all addresses", Empty, |stage| {
        stage.table = u64::MAX - 15;
        stage.offer_table(48, 0);
    }),
    case("next leaves the table", Empty, |stage| {
        stage.fill_table(3);
        stage.in_table(0, stage.header, 16, NEXT, 3);
        stage.offer_table(48, 0);
    }),
    case("a loop in a table", Empty, |stage| {
        stage.fill_table(3);
        stage.in_table(0, stage.header, 16, NEXT, 0);
        stage.offer_table(48, 0);
    }),
];

const BUFFERS: &[Case] = &[
    case("length 0", Empty, |stage| stage.read_into(stage.data, 0)),
    case("address 0, which is RAM", OK, |stage| stage.read_into(0, 512)),
    case("above 4 GiB, where RAM is", OK, |stage| stage.read_into(HIGH_RAM, 512)),
    case("across two mappings of RAM", OK, |stage| {
        stage.read_into(RAM_SEAM - 100, 512)
    }),
    case("behind RAM", Empty, |stage| stage.read_into(LOW_RAM_END, 512)),
    case("across the end of RAM", Empty, |stage| {
        stage.read_into(LOW_RAM_END - 511, 512)
    }),
    case("in the PCI hole", Empty, |stage| stage.read_into(0xe000_0000, 512)),
    case("in its own MSI-X table", Empty, |stage| {
        let table = stage.driver.device.bar(1).base;
        stage.read_into(table, 512);
    }),
    case("in its own registers", Empty, |stage| {
        let registers = stage.driver.device.bar(4).base;
        stage.read_into(registers, 512);
    }),
    case("in the middle of nowhere", Empty, |stage| {
        stage.read_into(0xdead_beef_0000, 512)
    }),
    case("wrapping around 64 bits", Empty, |stage| {
        stage.read_into(u64::MAX - 100, 512)
    }),
    case("4 GiB less one byte", Empty, |stage| {
        stage.read_into(stage.data, u32::MAX)
    }),
    case("lengths that add up to more than 4 GiB", Empty, |stage| {
        stage.in_table(0, stage.header, 16, NEXT, 1);
        (1..600).for_each(|index| stage.in_table(index, 0, RAM_SEAM as u32, NEXT | WRITE, index + 1));
        stage.in_table(600, stage.status, 1, WRITE, 0);
        stage.offer_table(16 * 601, 0);
    }),
    case("overlapping", OK, |stage| {
        stage.at(0, stage.header, 16, NEXT, 1);
        stage.at(1, stage.data, 512, NEXT | WRITE, 2);
        stage.at(2, stage.data + 256, 512, NEXT | WRITE, 3);
        stage.at(3, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
    case("readable after writable", Empty, |stage| {
        stage.at(0, stage.data, 512, NEXT | WRITE, 1);
        stage.at(1, stage.header, 16, NEXT, 2);
        stage.at(2, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
    case("the status is readable", Empty, |stage| {
        stage.at(0, stage.header, 16, NEXT, 1);
        stage.at(1, stage.data, 512, NEXT | WRITE, 2);
        stage.at(2, stage.status, 1, 0, 0);
        stage.offer(0);
    }),
    case("nothing is writable", Empty, |stage| {
        stage.at(0, stage.header, 16, 0, 0);
        stage.offer(0);
    }),
    case("no header", IOERR, |stage| {
        stage.at(0, stage.data, 512, NEXT | WRITE, 1);
        stage.at(1, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
    case("a header of 15 bytes", IOERR, |stage| {
        stage.at(0, stage.header, 15, NEXT, 1);
        stage.at(1, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
    case("the header is writable", IOERR, |stage| {
        stage.at(0, stage.header, 16, NEXT | WRITE, 1);
        stage.at(1, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
    case("the header in pieces", OK, |stage| {
        (0..16).for_each(|byte| stage.at(byte, stage.header + u64::from(byte), 1, NEXT, byte + 1));
        stage.at(16, stage.data, 511, NEXT | WRITE, 17);
        stage.at(17, stage.data + 511, 1, NEXT | WRITE, 18);
        stage.at(18, stage.status, 1, WRITE, 0);
        stage.offer(0);
    }),
];

const RINGS: &[Case] = &[
    case("a head behind the table", Broken, |stage| stage.offer(SIZE)),
    case("head 65535", Broken, |stage| stage.offer(0xffff)),
    case("the same head twice", Broken, |stage| {
        stage.read_into(stage.data, 512);
        let ring = &mut stage.driver.rings[0];
        ring.set_avail_index(0);
        (0..2).for_each(|_| ring.stage(0));
        ring.set_avail_index(2);
    }),
    case("the index jumps by one more than the size", Broken, |stage| {
        stage.driver.rings[0].set_avail_index(SIZE + 1);
    }),
    case("the index jumps by 32768", Broken, |stage| {
        stage.driver.rings[0].set_avail_index(0x8000);
    }),
    case("the index goes back", Broken, |stage| {
        stage.driver.rings[0].set_avail_index(0xffff);
    }),
    case("garbage in flags and events", OK, |stage| {
        let ring = &stage.driver.rings[0];
        ring.set_avail_flags(0xfffe);
        ring.set_used_event(0x8000);
        stage.read_into(stage.data, 512);
    }),
];

/// Brings a driver up `ways` the case's queue, does it, and sees what comes of it.
fn run(driver: &mut Driver<'_>, case: &Case, understood: u64) {
    let what = format!("{}, {:?}, {understood:#x}", case.name, driver.way);
    driver.start_with(understood);
    // A request before, so that the queue is not fresh.
    if case.outcome != Broken {
        block::read(driver, 0, 512);
    }
    let used_before = driver.rings[0].used_index();
    let mut stage = Stage::new(driver);
    (case.make)(&mut stage);
    let status_byte = stage.status;
    driver.kick(0);
    let machine = driver.machine();
    match case.outcome {
        Answered(expected) => {
            let used = wait_for(&what, || driver.rings[0].next_used());
            assert_eq!(machine.bytes(status_byte, 1), [expected], "{what}");
            assert!(used.len > 0, "{what}");
        }
        Empty => {
            let used = wait_for(&what, || driver.rings[0].next_used());
            assert_eq!(
                (used.len, machine.bytes(status_byte, 1)),
                (0, vec![UNANSWERED]),
                "{what}"
            );
        }
        Broken => {
            wait_for(&what, || is_broken(driver).then_some(()));
            if driver.way.is_modern() {
                driver.wait_until_broken();
                wait_for("the configuration interrupt", || {
                    (driver.transport.isr() & 2 != 0).then_some(())
                });
            }
            (0..10).for_each(|_| driver.kick(0));
        }
    }
    let needs_reset = driver.transport.status() & status::NEEDS_RESET != 0;
    assert_eq!(needs_reset, case.outcome == Broken && driver.way.is_modern(), "{what}");
    if case.outcome != Broken {
        assert_eq!(block::read(driver, 3, 512), sector(3), "{what}: the queue goes on");
    } else {
        let ring = driver.rings.remove(0);
        driver.reset();
        assert_eq!(
            ring.used_index(),
            used_before,
            "{what}: something came back from a broken ring"
        );
    }
    driver.start();
    assert_eq!(block::read(driver, 3, 512), sector(3), "{what}: after a reset");
}

/// Whether the device has given the first queue up, which a legacy driver cannot see.
fn is_broken(driver: &Driver<'_>) -> bool {
    let (machine, address) = (driver.machine(), driver.device.address);
    let state = serde_json::to_value(machine.pause_and_save(address)).unwrap();
    machine.resume(address);
    state["transport"]["queues"][0]["progress"]["broken"].as_bool().unwrap()
}

/// All `cases`, each way, with flags and with event indices.
fn run_all(cases: &[Case]) {
    let image = Image::new(2048);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",queue-size=64"))]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        for case in cases {
            for understood in [!(EVENT_IDX | BAD_FEATURE), !BAD_FEATURE] {
                run(&mut driver, case, understood);
            }
        }
    }
}

#[test]
fn chains_that_loop_or_leave_the_table() {
    run_all(CHAINS);
}

#[test]
fn indirect_tables() {
    run_all(INDIRECTS);
}

#[test]
fn buffers() {
    run_all(BUFFERS);
}

#[test]
fn rings_that_cannot_be_trusted() {
    run_all(RINGS);
}

#[test]
fn a_table_without_the_feature_comes_back() {
    let image = Image::new(2048);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",queue-size=64"))]).unwrap();
    let without = case("a table that was not agreed on", Empty, |stage| {
        stage.fill_table(3);
        stage.offer_table(48, 0);
    });
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, machine.devices()[0], way);
        run(&mut driver, &without, !(BAD_FEATURE | INDIRECT_DESC | EVENT_IDX));
    }
}

#[test]
fn a_broken_ring_of_one_queue_leaves_the_others_alone() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://,queues=2")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        driver.rings[1].set_avail_index(0x8000);
        driver.kick(1);
        if way.is_modern() {
            driver.wait_until_broken();
        }
        block::read(&mut driver, 0, 512);
        driver.start();
        block::read(&mut driver, 0, 512);
    }
}

/// A source of randomness, whose driver gave it its own ring as a buffer, or two rings in one place.
#[test]
fn a_ring_that_is_overwritten_hurts_its_driver_only() {
    let machine = Machine::new(&[("virtio-rng-pci", ""), ("virtio-blk-pci", "path=null-co://")]).unwrap();
    let [source, disk] = machine.devices()[..] else {
        panic!()
    };
    let mut disk = Driver::bind(&machine, disk, Way::Modern);
    disk.start();
    for way in Way::ALL {
        let mut driver = Driver::bind(&machine, source, way);
        for round in 0..30 {
            driver.start();
            let config = driver.rings[0].config().clone();
            let target = [config.descriptors, config.available, config.used][round % 3];
            driver.post(0, &[devices::virtio::virtq::testing::Buffer::writable(target, 0x100)]);
            (0..5).for_each(|_| driver.kick(0));
            block::read(&mut disk, 0, 512);
        }
        driver.start();
        entropy::fill(&mut driver, 16);
    }
}

#[test]
fn a_driver_that_writes_the_used_ring_fools_only_itself() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        for round in 1..20u16 {
            let used = driver.rings[0].config().used;
            machine.set_bytes(used + 2, &[0x55; 64]);
            block::post(&mut driver, 0, 0, 0, &[], 512);
            driver.kick(0);
            wait_for("the true index", || {
                (driver.rings[0].used_index() == round).then_some(())
            });
            driver.complete(0);
            assert_eq!(block::status(&driver, 0), 0, "{way:?}");
        }
    }
}

#[test]
fn kicks_without_work_do_nothing() {
    let machine = Machine::new(&[("virtio-blk-pci", "path=null-co://")]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        (0..500).for_each(|_| driver.kick(0));
        assert_eq!(
            (driver.rings[0].used_index(), driver.transport.isr()),
            (0, 0),
            "{way:?}"
        );
        block::read(&mut driver, 0, 512);
        assert_eq!(driver.rings[0].used_index(), 1, "{way:?}");
    }
}

#[test]
fn a_driver_that_adds_faster_than_we_drain_is_served_to_the_end() {
    let image = Image::new(256);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",queue-size=64"))]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        let (mut posted, mut done) = (0u64, 0u64);
        // 21 chains of three descriptors fill the table; each that comes back is replaced at once.
        while done < 3000 {
            while posted - done < 21 {
                block::post(&mut driver, posted, 0, posted % 256, &[], 512);
                posted += 1;
                driver.kick(0);
            }
            driver.complete(0);
            done += 1;
        }
        while done < posted {
            driver.complete(0);
            done += 1;
        }
    }
}

#[test]
fn descriptors_that_change_under_the_device_are_read_once() {
    let image = Image::new(256);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(",queue-size=64"))]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        let config = driver.rings[0].config().clone();
        let data = driver.data();
        (0..SIZE)
            .for_each(|index| driver.rings[0].set_descriptor(index, RawDescriptor::new(data, 512, NEXT, index + 1)));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Lengths, flags and next of every descriptor, and the headers, turn to garbage and back.
                let mut noise = 0x9e37_79b9_7f4a_7c15u64;
                while !stop.load(Ordering::Relaxed) {
                    for index in 0..u64::from(SIZE) {
                        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let descriptor = config.descriptors + 16 * index;
                        machine.store(descriptor + [0, 8, 12, 14][(noise >> 60) as usize % 4], 2, noise >> 33);
                    }
                    machine.store(data + (noise >> 40 & 0xfff8), 8, noise);
                }
            });
            for _ in 0..2000 {
                driver.rings[0].offer(0);
                driver.kick(0);
                driver.complete(0);
            }
            stop.store(true, Ordering::Relaxed);
        });
        driver.start();
        block::read(&mut driver, 3, 512);
    }
}
