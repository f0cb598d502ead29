//! The bus as a kernel sees it: configuration mechanism #1 and nothing else.

use pci::Address;
use pci::config_space::{command, register};

use super::Machine;

/// CONFIG_ADDRESS.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// CONFIG_DATA.
pub const CONFIG_DATA: u16 = 0xcfc;

/// Capability id of MSI-X.
pub const MSIX: u8 = 0x11;
/// Capability id of vendor-specific structures.
pub const VENDOR: u8 = 0x09;

/// Whether there is configuration mechanism #1, found out as Linux does (arch/x86/pci/direct.c, `pci_check_type1`).
pub fn has_mechanism1(machine: &Machine) -> bool {
    machine.set_port(0xcfb, 1, 0x01);
    let before = machine.port(CONFIG_ADDRESS, 4);
    machine.set_port(CONFIG_ADDRESS, 4, 0x8000_0000);
    let works = machine.port(CONFIG_ADDRESS, 4) == 0x8000_0000;
    machine.set_port(CONFIG_ADDRESS, 4, before);
    works
}

/// Looks into all slots of bus 0, and into functions beyond the first where the header says that there are some.
pub fn scan(machine: &Machine) -> Vec<PciDevice<'_>> {
    let mut found = Vec::new();
    for slot in 0..32 {
        let mut functions = 1;
        for number in 0..8 {
            let Some(address) = Address::new(0, slot, number).filter(|_| number < functions) else {
                break;
            };
            let device = PciDevice { machine, address };
            let vendor = device.read(register::VENDOR_ID, 4);
            if matches!(vendor, 0xffff_ffff | 0 | 0xffff | 0xffff_0000) {
                continue;
            }
            if number == 0 && device.read(register::HEADER_TYPE, 1) & 0x80 != 0 {
                functions = 8;
            }
            found.push(device);
        }
    }
    found
}

/// The virtio functions that a scan finds.
pub fn virtio_devices(machine: &Machine) -> Vec<PciDevice<'_>> {
    let is_virtio = |device: &PciDevice<'_>| {
        let id = device.read(register::VENDOR_ID, 4);
        id & 0xffff == 0x1af4 && (0x1000..0x1080).contains(&(id >> 16))
    };
    scan(machine).into_iter().filter(is_virtio).collect()
}

/// A BAR as its registers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarValue {
    /// Ports, not memory.
    pub is_io: bool,
    /// Takes two registers.
    pub is_64: bool,
    /// Where it is.
    pub base: u64,
}

/// A function on the bus.
#[derive(Clone, Copy)]
pub struct PciDevice<'m> {
    /// The machine that it is in.
    pub machine: &'m Machine,
    /// Where it is.
    pub address: Address,
}

impl PciDevice<'_> {
    fn select(&self, offset: u16) -> u16 {
        let address = u32::from(self.address.devfn()) << 8 | u32::from(offset & 0xfc);
        self.machine.set_port(CONFIG_ADDRESS, 4, (0x8000_0000 | address).into());
        CONFIG_DATA + (offset & 3)
    }

    /// Reads 1, 2 or 4 bytes of configuration space.
    pub fn read(&self, offset: u16, width: usize) -> u32 {
        let port = self.select(offset);
        self.machine.port(port, width) as u32
    }

    /// Writes 1, 2 or 4 bytes of configuration space.
    pub fn write(&self, offset: u16, width: usize, value: u32) {
        let port = self.select(offset);
        self.machine.set_port(port, width, value.into());
    }

    /// Sets and clears bits of the command register.
    pub fn command(&self, set: u16, clear: u16) {
        let command = self.read(register::COMMAND, 2) as u16;
        self.write(register::COMMAND, 2, (command & !clear | set).into());
    }

    /// Switches decode of both spaces, and bus mastering, on.
    pub fn enable(&self) {
        self.command(command::IO | command::MEMORY | command::MASTER, 0);
    }

    /// The offsets of all capabilities with this id, in their order.
    pub fn capabilities(&self, id: u8) -> Vec<u16> {
        let mut found = Vec::new();
        let mut at = self.read(register::CAPABILITIES, 1) as u16 & 0xfc;
        // A list that loops ends here too.
        for _ in 0..48 {
            if at < 0x40 {
                break;
            }
            if self.read(at, 1) == u32::from(id) {
                found.push(at);
            }
            at = self.read(at + 1, 1) as u16 & 0xfc;
        }
        found
    }

    /// What the registers of a BAR hold.
    pub fn bar(&self, index: u8) -> BarValue {
        let low = self.read(bar_register(index), 4);
        if low & 1 != 0 {
            return BarValue {
                is_io: true,
                is_64: false,
                base: u64::from(low & !3),
            };
        }
        let is_64 = low & 6 == 4;
        let high = if is_64 {
            self.read(bar_register(index + 1), 4)
        } else {
            0
        };
        BarValue {
            is_io: false,
            is_64,
            base: u64::from(high) << 32 | u64::from(low & !0xf),
        }
    }

    /// Bytes of a BAR, found by writing ones; 0 when there is no BAR. Decode is off meanwhile, as in Linux.
    pub fn bar_size(&self, index: u8) -> u64 {
        let command = self.read(register::COMMAND, 2);
        self.command(0, command::IO | command::MEMORY);
        let bar = self.bar(index);
        let low = self.size_register(index) & if bar.is_io { !3 } else { !0xf };
        let high = if bar.is_64 {
            self.size_register(index + 1)
        } else {
            u32::MAX
        };
        self.write(register::COMMAND, 2, command);
        if low == 0 && (!bar.is_64 || high == 0) {
            return 0;
        }
        (!(u64::from(high) << 32 | u64::from(low))).wrapping_add(1)
    }

    fn size_register(&self, index: u8) -> u32 {
        let before = self.read(bar_register(index), 4);
        self.write(bar_register(index), 4, u32::MAX);
        let ones = self.read(bar_register(index), 4);
        self.write(bar_register(index), 4, before);
        ones
    }

    /// Places a BAR.
    pub fn place(&self, index: u8, base: u64) {
        self.write(bar_register(index), 4, base as u32);
        if self.bar(index).is_64 {
            self.write(bar_register(index + 1), 4, (base >> 32) as u32);
        }
    }

    /// Places all BARs as a kernel does that finds them empty: ports from `ports`, memory from `memory` up.
    pub fn place_all(&self, ports: u64, memory: u64) {
        let (mut ports, mut memory) = (ports, memory);
        let mut index = 0;
        while index < 6 {
            let (bar, size) = (self.bar(index), self.bar_size(index));
            if size > 0 {
                let next = if bar.is_io { &mut ports } else { &mut memory };
                let base = next.next_multiple_of(size);
                self.place(index, base);
                *next = base + size;
            }
            index += if bar.is_64 { 2 } else { 1 };
        }
    }

    /// The interrupt that the firmware noted.
    pub fn interrupt_line(&self) -> u32 {
        self.read(register::INTERRUPT_LINE, 1)
    }
}

/// Offset of a BAR's register.
pub fn bar_register(index: u8) -> u16 {
    register::BAR0 + 4 * u16::from(index)
}
