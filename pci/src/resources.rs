//! The part of the firmware that gives devices their addresses and interrupts, placed as SeaBIOS places them
//! (src/fw/pciinit.c): sizes come from the sizing protocol through ordinary configuration accesses, larger BARs come
//! first.
//!
//! Bridges are left alone: the board's functions have [`host::FIRMWARE_WRITES`], which are to be done before, because
//! they route the interrupts that are noted in the devices here.

use std::ops::Range;

use crate::address::Address;
use crate::bar::COUNT;
use crate::bus::{Bus, BusChanges};
use crate::config_space::{command, register};
use crate::host;
use crate::intx::{Pin, pirq};

/// The least that a memory BAR is given, a page, so that it can be mapped on its own.
const MEMORY_GRANULE: u64 = 0x1000;

/// What SeaBIOS switches on in every function.
const COMMAND: u16 = command::IO | command::MEMORY | command::SERR;

/// The interrupt line of a function whose interrupt goes nowhere (PCI Local Bus 3.0, section 6.2.4).
const NO_INTERRUPT: u8 = 0xff;

/// Base class of bridges.
const BRIDGE: u8 = 0x06;

/// Where addresses may be given out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Windows {
    /// Ports, from below. The start is a multiple of the largest I/O BAR.
    pub io: Range<u64>,
    /// Memory below 4 GiB, from above.
    pub memory: Range<u64>,
    /// Memory above 4 GiB, from below, for 64-bit BARs: used for all of them when the window below 4 GiB is too small.
    pub memory64: Option<Range<u64>>,
}

impl Windows {
    /// The windows of a pc whose RAM below 4 GiB ends at `low_ram_end`: ports from 0xc000, memory up to the IOAPIC at
    /// 0xfec00000.
    pub fn pc(low_ram_end: u64) -> Self {
        let start = match low_ram_end {
            ..=0x8000_0000 => 0x8000_0000,
            0x8000_0001..=0xc000_0000 => 0xc000_0000,
            _ => low_ram_end,
        };
        Self {
            io: 0xc000..0x1_0000,
            memory: start..0xfec0_0000,
            memory64: None,
        }
    }
}

/// A window is too small for the devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResourceError {
    /// The I/O ports don't suffice
    #[error(
        "the devices need {needed:#x} I/O ports, but there are {available:#x}; use fewer devices, or disable-legacy=on"
    )]
    Io {
        /// Ports that the BARs take together.
        needed: u64,
        /// Ports of the window.
        available: u64,
    },
    /// The memory addresses don't suffice
    #[error(
        "the devices need {needed:#x} bytes of PCI memory addresses, but there are {available:#x}; use fewer devices"
    )]
    Memory {
        /// Bytes that the BARs take together.
        needed: u64,
        /// Bytes of the window.
        available: u64,
    },
}

/// Which window a BAR is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Io,
    Memory,
    Prefetchable,
}

/// A BAR that a function turned out to have.
#[derive(Clone, Copy, Debug)]
struct Found {
    address: Address,
    bar: u8,
    kind: Kind,
    is_64: bool,
    /// Size, and with it alignment.
    size: u64,
}

/// A BAR and the address that it gets.
type Placed = (Found, u64);

/// Gives each device on `bus` addresses from `windows`, notes its interrupt in it and switches it on. Returns what
/// changed.
///
/// # Errors
/// The windows are too small; nothing is switched on then.
pub fn assign(bus: &Bus, windows: &Windows) -> Result<BusChanges, ResourceError> {
    let devices: Vec<_> = bus
        .addresses()
        .into_iter()
        .filter(|address| !is_bridge(bus, *address))
        .collect();
    let mut changes = BusChanges::new();
    let mut found = Vec::new();
    for &device in &devices {
        let mut write = |offset, data: &[u8]| {
            let more = bus.write_config(device, offset, data);
            changes.extend(more.into_iter().map(|change| (device, change)));
        };
        let decode_off = read_u16(bus, device, register::COMMAND) & !(command::IO | command::MEMORY);
        write(register::COMMAND, &decode_off.to_le_bytes());
        found.extend(size_bars(bus, device));
    }
    // Stable: of one size, in the order of the bus.
    found.sort_by_key(|bar| std::cmp::Reverse(bar.size));

    for (bar, base) in place_all(&found, windows)? {
        let bytes = if bar.is_64 { 8 } else { 4 };
        bus.write_config(bar.address, bar_offset(bar.bar), &base.to_le_bytes()[..bytes]);
    }
    for &device in &devices {
        set_interrupt_line(bus, device);
        let command = read_u16(bus, device, register::COMMAND) | COMMAND;
        let more = bus.write_config(device, register::COMMAND, &command.to_le_bytes());
        changes.extend(more.into_iter().map(|change| (device, change)));
    }
    Ok(changes)
}

/// Finds the BARs of a function by writing ones and reading back which of them took. Leaves the registers as they were.
fn size_bars(bus: &Bus, address: Address) -> Vec<Found> {
    let mut found = Vec::new();
    let mut bars = 0..COUNT;
    while let Some(bar) = bars.next() {
        let offset = bar_offset(bar);
        let flags = read_u32(bus, address, offset);
        let (kind, is_64, flag_bits) = match flags {
            io if io & 1 != 0 => (Kind::Io, false, 0x3),
            memory if memory & 8 != 0 => (Kind::Prefetchable, memory & 6 == 4, 0xf),
            memory => (Kind::Memory, memory & 6 == 4, 0xf),
        };
        let low = u64::from(writable_bits(bus, address, offset)) & !flag_bits;
        let high = match is_64.then(|| bars.next()).flatten() {
            Some(upper) => u64::from(writable_bits(bus, address, bar_offset(upper))),
            None if low == 0 => 0,
            None => u64::from(u32::MAX),
        };
        // Of a BAR that is not there no bit took, and the size comes out as 0.
        let size = (!(high << 32 | low)).wrapping_add(1);
        if size.is_power_of_two() {
            found.push(Found {
                address,
                bar,
                kind,
                is_64,
                size,
            });
        }
    }
    found
}

/// What a dword reads as after ones were written to it; it is put back.
fn writable_bits(bus: &Bus, address: Address, offset: u16) -> u32 {
    let before = read_u32(bus, address, offset);
    bus.write_config(address, offset, &[0xff; 4]);
    let bits = read_u32(bus, address, offset);
    bus.write_config(address, offset, &before.to_le_bytes());
    bits
}

/// Chooses the addresses of BARs that are sorted by size, the largest first.
fn place_all(found: &[Found], windows: &Windows) -> Result<Vec<Placed>, ResourceError> {
    let of = |kind| found.iter().copied().filter(|bar| bar.kind == kind).collect::<Vec<_>>();
    let (io, memory, prefetchable) = (of(Kind::Io), of(Kind::Memory), of(Kind::Prefetchable));

    let (needed, available) = (sum(&io), windows.io.end.saturating_sub(windows.io.start));
    if needed > available {
        return Err(ResourceError::Io { needed, available });
    }
    let mut placed = upwards(&io, windows.io.start);
    placed.extend(place_memory(memory, prefetchable, windows)?);
    Ok(placed)
}

/// Memory: all below 4 GiB if it fits, otherwise the 64-bit BARs above.
fn place_memory(memory: Vec<Found>, prefetchable: Vec<Found>, windows: &Windows) -> Result<Vec<Placed>, ResourceError> {
    let window = &windows.memory;
    let full = |bars: &[Found], window: &Range<u64>| ResourceError::Memory {
        needed: sum(bars),
        available: window.end.saturating_sub(window.start),
    };
    if let Some(placed) = downwards(&memory, &prefetchable, window) {
        return Ok(placed);
    }
    let (memory_64, memory): (Vec<_>, Vec<_>) = memory.into_iter().partition(|bar| bar.is_64);
    let (prefetchable_64, prefetchable): (Vec<_>, Vec<_>) = prefetchable.into_iter().partition(|bar| bar.is_64);
    let low = [memory.as_slice(), &prefetchable].concat();
    let mut high = [memory_64, prefetchable_64].concat();
    let Some(window_64) = &windows.memory64 else {
        return Err(full(&[low, high].concat(), window));
    };
    let mut placed = downwards(&memory, &prefetchable, window).ok_or_else(|| full(&low, window))?;
    high.sort_by_key(|bar| std::cmp::Reverse(bar.size));
    let start = high
        .first()
        .map_or(Some(window_64.start), |bar| align_up(window_64.start, bar.size));
    let start = start.filter(|start| start.checked_add(sum(&high)).is_some_and(|end| end <= window_64.end));
    placed.extend(upwards(&high, start.ok_or_else(|| full(&high, window_64))?));
    Ok(placed)
}

/// The group with the larger alignment comes lower, below the other one, which ends where the window ends.
fn downwards(memory: &[Found], prefetchable: &[Found], window: &Range<u64>) -> Option<Vec<Placed>> {
    let (lower, upper) = match alignment(memory) < alignment(prefetchable) {
        true => (prefetchable, memory),
        false => (memory, prefetchable),
    };
    let below = |end: u64, bars: &[Found]| Some(end.checked_sub(sum(bars))? & !(alignment(bars) - 1));
    let upper_base = below(window.end, upper)?;
    let lower_base = below(upper_base, lower)?;
    (lower_base >= window.start).then(|| [upwards(lower, lower_base), upwards(upper, upper_base)].concat())
}

/// One after the other from `base`, which is aligned for the first. Each is then aligned for the next, which is no
/// larger.
fn upwards(bars: &[Found], mut base: u64) -> Vec<Placed> {
    let place = |bar: &Found| {
        let at = base;
        base = base.saturating_add(room(bar));
        (*bar, at)
    };
    bars.iter().map(place).collect()
}

fn room(bar: &Found) -> u64 {
    if bar.kind == Kind::Io {
        bar.size
    } else {
        bar.size.max(MEMORY_GRANULE)
    }
}

fn sum(bars: &[Found]) -> u64 {
    bars.iter().map(room).fold(0, u64::saturating_add)
}

/// What the first and largest of `bars` needs.
fn alignment(bars: &[Found]) -> u64 {
    bars.first().map_or(1, room)
}

fn align_up(value: u64, alignment: u64) -> Option<u64> {
    value.checked_next_multiple_of(alignment)
}

/// Notes in a function which interrupt its pin is routed to.
fn set_interrupt_line(bus: &Bus, address: Address) {
    let Some(pin) = Pin::from_register(read_u8(bus, address, register::INTERRUPT_PIN)) else {
        return;
    };
    let route = host::piix3::PIRQ_ROUTING + u16::from(pirq(address.device(), pin));
    let irq = read_u8(bus, host::ISA_BRIDGE, route);
    let line = if irq < 16 { irq } else { NO_INTERRUPT };
    bus.write_config(address, register::INTERRUPT_LINE, &[line]);
}

fn is_bridge(bus: &Bus, address: Address) -> bool {
    read_u8(bus, address, register::CLASS + 2) == BRIDGE
}

fn bar_offset(bar: u8) -> u16 {
    register::BAR0 + 4 * u16::from(bar)
}

fn read_u8(bus: &Bus, address: Address, offset: u16) -> u8 {
    let mut data = [0];
    bus.read_config(address, offset, &mut data);
    data[0]
}

fn read_u16(bus: &Bus, address: Address, offset: u16) -> u16 {
    let mut data = [0; 2];
    bus.read_config(address, offset, &mut data);
    u16::from_le_bytes(data)
}

fn read_u32(bus: &Bus, address: Address, offset: u16) -> u32 {
    let mut data = [0; 4];
    bus.read_config(address, offset, &mut data);
    u32::from_le_bytes(data)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::endpoint::EndpointLayout;
    use crate::function::{Change, Region, Space};
    use crate::testing::{Scratch, address};

    const LOW_RAM_END: u64 = 256 << 20;

    fn board() -> Bus {
        let bus = Bus::new();
        host::add_to(&bus, LOW_RAM_END).unwrap();
        host::play_firmware(&bus);
        bus
    }

    /// BAR 0 ports and MSI-X of blk, net, serial, balloon, rng, scsi, 9p and vsock, in slots from 2 on.
    const REFERENCE: [(Option<u64>, bool); 8] = [
        (Some(0x80), true),
        (Some(0x20), true),
        (Some(0x40), true),
        (Some(0x40), false),
        (Some(0x20), true),
        (Some(0x40), true),
        (Some(0x20), true),
        (None, true),
    ];

    fn reference_machine() -> Bus {
        let bus = board();
        for (slot, (ports, msix)) in (2..).zip(REFERENCE) {
            bus.add_function(address(slot), Scratch::with_bars(slot, ports, msix))
                .unwrap();
        }
        bus
    }

    #[test]
    fn devices_get_the_addresses_and_interrupts_of_the_reference_machine() {
        let bus = reference_machine();
        assign(&bus, &Windows::pc(LOW_RAM_END)).unwrap();
        // QEMU 7.2 with SeaBIOS: BAR 0, BAR 1, BAR 4, interrupt line, as `lspci -xxx` shows them.
        let expected = [
            (2, 0xc001, 0xfebf_9000, 0xfebd_800c, 10),
            (3, 0xc141, 0xfebf_a000, 0xfebd_c00c, 11),
            (4, 0xc081, 0xfebf_b000, 0xfebe_000c, 11),
            (5, 0xc0c1, 0, 0xfebe_400c, 10),
            (6, 0xc161, 0xfebf_c000, 0xfebe_800c, 10),
            (7, 0xc101, 0xfebf_d000, 0xfebe_c00c, 11),
            (8, 0xc181, 0xfebf_e000, 0xfebf_000c, 11),
            (9, 0, 0xfebf_f000, 0xfebf_400c, 10),
        ];
        for (slot, bar0, bar1, bar4, line) in expected {
            let dword = |offset| read_u32(&bus, address(slot), offset);
            let found = (dword(0x10), dword(0x14), dword(0x20), dword(0x24));
            assert_eq!(found, (bar0, bar1, bar4, 0), "slot {slot}");
            assert_eq!(read_u8(&bus, address(slot), 0x3c), line, "slot {slot}");
            assert_eq!(read_u16(&bus, address(slot), 0x04), 0x0103, "slot {slot}");
        }
    }

    #[test]
    fn everything_is_decoded_and_returned() {
        let bus = reference_machine();
        let changes = assign(&bus, &Windows::pc(LOW_RAM_END)).unwrap();
        let mapped = changes
            .iter()
            .filter(|(_, change)| matches!(change, Change::Mapped(_)))
            .count();
        assert_eq!((mapped, changes.len()), (7 + 7 + 8, 22));
        let first = Region {
            bar: 0,
            space: Space::Io,
            base: 0xc000,
            size: 0x80,
        };
        assert_eq!(changes[0], (address(2), Change::Mapped(first)));
        assert_eq!(bus.find(Space::Memory, 0xfebf_b800, 4).unwrap().address, address(4));
    }

    #[test]
    fn assigning_again_moves_nothing() {
        let bus = reference_machine();
        let windows = Windows::pc(LOW_RAM_END);
        assign(&bus, &windows).unwrap();
        let contents = |slot| {
            (0..64)
                .map(|at| read_u32(&bus, address(slot), 4 * at))
                .collect::<Vec<_>>()
        };
        let before: Vec<_> = (2..10).map(contents).collect();
        assert_eq!(
            assign(&bus, &windows).unwrap().len(),
            44,
            "each region goes and comes back"
        );
        assert_eq!((2..10).map(contents).collect::<Vec<_>>(), before);
    }

    #[test]
    fn bridges_are_left_alone() {
        let bus = board();
        assert_eq!(assign(&bus, &Windows::pc(LOW_RAM_END)), Ok(vec![]));
        assert_eq!(read_u8(&bus, host::POWER_MANAGEMENT, 0x3c), 9);
    }

    #[test]
    fn unrouted_interrupt_is_noted_as_unknown() {
        let bus = Bus::new();
        bus.add_function(address(2), Scratch::new(0)).unwrap();
        assign(&bus, &Windows::pc(LOW_RAM_END)).unwrap();
        assert_eq!(read_u8(&bus, address(2), 0x3c), 0xff);
    }

    #[test]
    fn full_windows_are_said_and_nothing_is_switched_on() {
        let bus = reference_machine();
        let small = Windows {
            io: 0xc000..0xc100,
            ..Windows::pc(LOW_RAM_END)
        };
        let error = ResourceError::Io {
            needed: 0x1a0,
            available: 0x100,
        };
        assert_eq!(assign(&bus, &small), Err(error));
        let small = Windows {
            memory: 0xfebf_0000..0xfec0_0000,
            ..Windows::pc(LOW_RAM_END)
        };
        let error = ResourceError::Memory {
            needed: 0x2_7000,
            available: 0x1_0000,
        };
        assert_eq!(assign(&bus, &small), Err(error));
        assert_eq!(read_u16(&bus, address(2), 0x04), 0);
    }

    #[test]
    fn wide_bars_go_above_4_gib_when_there_is_no_room_below() {
        let bus = reference_machine();
        let high = 0x1_4000_1000..0x1_5000_0000;
        let windows = Windows {
            memory: 0xfebf_0000..0xfec0_0000,
            memory64: Some(high),
            ..Windows::pc(LOW_RAM_END)
        };
        assign(&bus, &windows).unwrap();
        let bar4 = |slot| (read_u32(&bus, address(slot), 0x24), read_u32(&bus, address(slot), 0x20));
        assert_eq!((bar4(2), bar4(9)), ((1, 0x4000_400c), (1, 0x4002_000c)));
        assert_eq!(read_u32(&bus, address(9), 0x14), 0xfebf_f000);
        let none = Windows {
            memory64: Some(0x1_0000_0000..0x1_0000_4000),
            ..windows
        };
        assert!(matches!(
            assign(&bus, &none),
            Err(ResourceError::Memory { available: 0x4000, .. })
        ));
    }

    #[test]
    fn sizing_sees_a_bar_of_4_gib_and_leaves_the_registers() {
        let header = crate::Header {
            vendor: 0x1af4,
            device: 0x1058,
            ..Default::default()
        };
        let bars = vec![crate::Bar::new(2, crate::BarKind::Memory64 { prefetchable: true }, 1 << 32).unwrap()];
        let bus = Bus::new();
        bus.add_function(
            address(2),
            Scratch::of(EndpointLayout {
                header,
                bars,
                ..Default::default()
            }),
        )
        .unwrap();
        bus.write_config(address(2), 0x1c, &[7]);
        let found = size_bars(&bus, address(2));
        assert_eq!(
            found
                .iter()
                .map(|bar| (bar.bar, bar.is_64, bar.size))
                .collect::<Vec<_>>(),
            [(2, true, 1 << 32)]
        );
        assert_eq!(
            (read_u32(&bus, address(2), 0x18), read_u32(&bus, address(2), 0x1c)),
            (0xc, 7)
        );
    }

    #[test]
    fn memory_window_begins_behind_ram() {
        let start = |low_ram_end| Windows::pc(low_ram_end).memory.start;
        assert_eq!(
            [start(32 << 20), start(0x9000_0000), start(0xe000_0000)],
            [0x8000_0000, 0xc000_0000, 0xe000_0000]
        );
    }
}
