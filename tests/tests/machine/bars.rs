//! BARs that move, overlap, vanish and come back.

use pci::config_space::{command, register};
use tests::driver::bus::bar_register;
use tests::driver::legacy::Legacy;
use tests::driver::{Driver, Machine, PciDevice, Transport, Way, block};

use crate::image::{Image, sector};

const DISK: (&str, &str) = ("virtio-blk-pci", "path=null-co://");
const DECODE: u16 = command::IO | command::MEMORY;

/// Where nothing is.
const FREE_PORTS: u64 = 0xe000;
const FREE_MEMORY: u64 = 0xd000_0000;

fn bar_of(way: Way) -> u8 {
    if way == Way::Legacy { 0 } else { 4 }
}

fn first<'m>(machine: &'m Machine) -> PciDevice<'m> {
    PciDevice {
        machine,
        address: machine.devices()[0],
    }
}

/// What is read where the device's status register is if the BAR is at `base`.
fn status_at(machine: &Machine, way: Way, base: u64) -> u64 {
    match way {
        Way::Legacy => machine.port((base + 0x12) as u16, 1),
        Way::Modern | Way::Window => machine.load(base + 0x14, 1),
    }
}

fn set_status_at(machine: &Machine, way: Way, base: u64, status: u64) {
    match way {
        Way::Legacy => machine.set_port((base + 0x12) as u16, 1, status),
        Way::Modern | Way::Window => machine.store(base + 0x14, 1, status),
    }
}

#[test]
fn a_bar_that_moves_takes_its_device_along() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        let (bar, home) = (bar_of(way), driver.device.bar(bar_of(way)).base);
        let free = if way == Way::Legacy { FREE_PORTS } else { FREE_MEMORY };
        // With decode on, as careless drivers do it, and off, as Linux does.
        for clear in [0, DECODE] {
            for base in [free, free + 0x10_0000 * u64::from(way != Way::Legacy) + 0x800, home] {
                let base = base & !(driver.device.bar_size(bar) - 1);
                let old = driver.device.bar(bar).base;
                block::post(&mut driver, 0, 0, 5, &[], 512);
                driver.kick(0);
                driver.device.command(0, clear);
                driver.device.place(bar, base);
                driver.device.command(DECODE, 0);
                driver.remap();
                driver.complete(0);
                assert_eq!(block::read(&mut driver, 6, 512), sector(6), "{way:?} at {base:#x}");
                if old != base {
                    assert_eq!(status_at(&machine, way, old), 0xff, "{way:?}: still at {old:#x}");
                }
            }
        }
    }
}

#[test]
fn a_device_works_on_while_its_decode_is_off_and_answers_after() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    for way in [Way::Legacy, Way::Modern] {
        let mut driver = Driver::of_first(&machine, way);
        for round in 0..20 {
            for slot in 0..4 {
                block::post(&mut driver, slot, 0, slot + round, &[], 512);
            }
            driver.kick(0);
            driver.device.command(0, DECODE);
            // Nobody hears these.
            driver.kick(0);
            let base = driver.device.bar(bar_of(way)).base;
            set_status_at(&machine, way, base, 0);
            assert_eq!(status_at(&machine, way, base), 0xff, "{way:?}");
            for _ in 0..4 {
                driver.complete(0);
            }
            driver.device.command(DECODE, 0);
            assert_eq!(driver.transport.status() & 4, 4, "{way:?}: nobody heard the reset");
            assert_eq!(block::read(&mut driver, 9, 512), sector(9), "{way:?}");
        }
    }
}

#[test]
fn the_window_does_not_need_decode() {
    let machine = Machine::new(&[DISK]).unwrap();
    let mut driver = Driver::bind(&machine, machine.devices()[0], Way::Window);
    driver.device.command(0, DECODE);
    driver.start();
    block::read(&mut driver, 0, 512);
}

#[test]
fn a_bar_at_0_or_out_of_reach_is_nowhere_until_it_comes_back() {
    let machine = Machine::new(&[DISK]).unwrap();
    let device = first(&machine);
    for way in [Way::Legacy, Way::Modern] {
        let bar = bar_of(way);
        let home = device.bar(bar).base;
        let nowhere: &[u64] = match way {
            Way::Legacy => &[0, 0x1_c000, 0xffff_ff80, 0xffff_c000],
            _ => &[0, 0xffff_ffff_ffff_c000],
        };
        for &base in nowhere {
            device.place(bar, base);
            assert_eq!(status_at(&machine, way, home), 0xff, "{way:?}: {base:#x}");
            let there = match way {
                Way::Legacy => machine.port(base as u16 | 0x12, 1) & 0xff,
                _ if base == 0 => 0xff,
                _ => machine.load(base + 0x14, 1),
            };
            assert_eq!(there, 0xff, "{way:?}: answers at {base:#x}");
        }
        device.place(bar, home);
        let mut driver = Driver::of_first(&machine, way);
        block::read(&mut driver, 0, 512);
    }
}

#[test]
fn a_bar_over_ram_loses_against_ram() {
    let image = Image::new(64);
    let machine = Machine::new(&[("virtio-blk-pci", &image.options(""))]).unwrap();
    let mut driver = Driver::of_first(&machine, Way::Legacy);
    let home = driver.device.bar(4).base;
    // Over its own data.
    let base = driver.data();
    driver.device.place(4, base);
    assert_eq!(block::read(&mut driver, 3, 512), sector(3));
    driver.device.place(4, home);
    drop(driver);
    block::read(&mut Driver::of_first(&machine, Way::Modern), 3, 512);
}

#[test]
fn where_bars_overlap_one_answers_and_both_do_again_when_they_part() {
    let machine = Machine::new(&[DISK, ("virtio-blk-pci", "path=null-co://,size=3M")]).unwrap();
    let devices = machine.devices();
    let [disk, other] = [devices[0], devices[1]].map(|address| PciDevice {
        machine: &machine,
        address,
    });
    for way in [Way::Legacy, Way::Modern] {
        let (ours, theirs) = (disk.bar(bar_of(way)).base, other.bar(bar_of(way)).base);
        disk.place(bar_of(way), theirs);
        let mut driver = Driver::bind(&machine, other.address, way);
        assert_eq!(
            driver.transport.config(0, 4),
            1 << 21,
            "{way:?}: the lower slot answers"
        );
        disk.place(bar_of(way), ours);
        driver.start();
        assert_eq!(driver.transport.config(0, 4), 3 << 11, "{way:?}");
        block::read(&mut driver, 0, 512);
        block::read(&mut Driver::of_first(&machine, way), 0, 512);
    }
    // A BAR of the same function: the lower one answers.
    let (table, structures) = (disk.bar(1).base, disk.bar(4).base);
    machine.store(table, 4, 0xfee0_1000);
    let register = machine.load(structures, 4);
    disk.place(1, structures);
    assert_eq!(machine.load(structures, 4), 0xfee0_1000);
    disk.place(1, table);
    assert_eq!(machine.load(structures, 4), register);
    block::read(&mut Driver::of_first(&machine, Way::Modern), 0, 512);
}

#[test]
fn ports_of_the_machine_stay_with_it() {
    let machine = Machine::new(&[DISK]).unwrap();
    let device = first(&machine);
    let home = device.bar(0).base;
    device.place(0, 0xc80);
    assert_eq!(device.bar(0).base, 0xc80, "mechanism #1 still answers at 0xcf8");
    device.place(0, home);
    block::read(&mut Driver::of_first(&machine, Way::Legacy), 0, 512);
}

#[test]
fn a_half_written_64_bit_bar_is_where_its_halves_say() {
    let machine = Machine::new(&[DISK]).unwrap();
    let device = first(&machine);
    let home = device.bar(4).base;
    let low = bar_register(4);
    let target = 0x12_3456_8000u64;
    for order in [[0, 4], [4, 0]] {
        for offset in order {
            device.write(low + offset, 4, (target >> (8 * offset)) as u32);
            let base = device.bar(4).base;
            assert_eq!(status_at(&machine, Way::Modern, base), 0, "{base:#x}");
        }
        assert_eq!(device.bar(4).base, target);
        let mut driver = Driver::of_first(&machine, Way::Modern);
        block::read(&mut driver, 0, 512);
        driver.reset();
        drop(driver);
        // A byte at a time.
        for byte in 0..8 {
            device.write(low + byte, 1, (home >> (8 * byte)) as u32 & 0xff);
        }
        assert_eq!(device.bar(4).base, home);
    }
    block::read(&mut Driver::of_first(&machine, Way::Modern), 0, 512);
}

#[test]
fn sizing_with_decode_on_does_no_harm() {
    let machine = Machine::new(&[DISK]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        for index in 0..6 {
            let register = bar_register(index);
            let before = driver.device.read(register, 4);
            driver.device.write(register, 4, 0xffff_ffff);
            driver.device.read(register, 4);
            driver.device.write(register, 4, before);
            block::read(&mut driver, 0, 512);
        }
        assert_eq!(driver.device.bar_size(4), 0x4000, "{way:?}");
        assert_eq!(driver.device.bar_size(0), 0x80, "{way:?}");
        assert_eq!(driver.device.bar_size(1), 0x1000, "{way:?}");
        assert_eq!([2, 3].map(|index| driver.device.bar_size(index)), [0, 0], "{way:?}");
        block::read(&mut driver, 0, 512);
    }
}

#[test]
fn accesses_that_straddle_bars_are_split() {
    let machine = Machine::new(&[DISK, ("virtio-rng-pci", "")]).unwrap();
    let [disk, other] = machine.devices()[..] else { panic!() };
    let [disk, other] = [disk, other].map(|address| PciDevice {
        machine: &machine,
        address,
    });
    let base = disk.bar(0).base as u16;
    other.place(0, u64::from(base) + 0x80);
    // The last bytes of the first are beyond its configuration, the first ones of the second its features.
    let straddling = machine.port(base + 0x7e, 4) >> 16;
    assert_eq!(straddling, machine.port(base + 0x80, 2));
    assert_eq!(straddling, Legacy::of(other).unwrap().offered() & 0xffff);
}

#[test]
fn a_machine_reset_takes_everything_back() {
    let machine = Machine::new(&[DISK]).unwrap();
    for way in Way::ALL {
        let mut driver = Driver::of_first(&machine, way);
        let base = driver.device.bar(bar_of(way)).base;
        for slot in 0..16 {
            block::post(&mut driver, slot, 0, 0, &[], 512);
        }
        driver.kick(0);
        driver.device.place(bar_of(way), 0);
        driver.device.write(register::INTERRUPT_LINE, 1, 3);
        machine.reset().unwrap();
        assert_eq!(driver.device.bar(bar_of(way)).base, base);
        assert_eq!(driver.device.read(register::COMMAND, 2) as u16 & command::MASTER, 0);
        driver.device.enable();
        driver.remap();
        driver.start();
        block::read(&mut driver, 0, 512);
        driver.wait_for_line();
    }
}
