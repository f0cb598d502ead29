//! Configuration mechanism #1: the guest names a register at port 0xcf8 and accesses it at ports 0xcfc to 0xcff (PCI
//! Local Bus 3.0, section 3.2.2.3.2), with QEMU's answers (hw/pci/pci_host.c) where the specification leaves them
//! open.
//!
//! A byte access to port 0xcf9 belongs to the reset control register, not to us: the machine decodes it before it
//! comes here.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::bus::{Bus, BusChanges};

/// The ports of the mechanism.
pub const PORTS: RangeInclusive<u16> = CONFIG_ADDRESS..=0xcff;

/// CONFIG_ADDRESS, a register of 4 bytes.
const CONFIG_ADDRESS: u16 = 0xcf8;

/// CONFIG_DATA, a window of 4 bytes.
const CONFIG_DATA: u16 = 0xcfc;

/// The bit of CONFIG_ADDRESS that lets CONFIG_DATA reach a register.
const ENABLE: u32 = 1 << 31;

/// The two ports' registers; what CONFIG_ADDRESS holds is all their state.
///
/// An access that is not aligned to its own width is taken as several that are, as QEMU's ports do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigPorts {
    config_address: u32,
}

impl ConfigPorts {
    /// As after reset: no register is reached.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `data.len()` bytes at `port`. What nobody answers reads as ones.
    pub fn read(&self, bus: &Bus, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let mut rest = data;
        for (port, width) in aligned_parts(port, rest.len()) {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(width);
            self.read_part(bus, port, part);
            rest = behind;
        }
    }

    /// Writes `data` at `port`; says what changed outside.
    pub fn write(&mut self, bus: &Bus, port: u16, data: &[u8]) -> BusChanges {
        let mut changes = BusChanges::new();
        let mut rest = data;
        for (port, width) in aligned_parts(port, rest.len()) {
            let (part, behind) = rest.split_at(width);
            changes.extend(self.write_part(bus, port, part));
            rest = behind;
        }
        changes
    }

    /// CONFIG_ADDRESS reads the same at each of its ports: a narrow read gives the low bytes.
    fn read_part(&self, bus: &Bus, port: u16, data: &mut [u8]) {
        if (CONFIG_ADDRESS..CONFIG_DATA).contains(&port) {
            let bytes = self.config_address.to_le_bytes();
            data.copy_from_slice(&bytes[..data.len().min(4)]);
        } else if let Some((address, offset)) = self.register(port) {
            bus.read_config(address, offset, data);
        }
    }

    /// CONFIG_ADDRESS takes only whole dwords; Linux probes for that (arch/x86/pci/direct.c, `pci_check_type1`).
    fn write_part(&mut self, bus: &Bus, port: u16, data: &[u8]) -> BusChanges {
        if port == CONFIG_ADDRESS {
            if let Ok(bytes) = data.try_into() {
                self.config_address = u32::from_le_bytes(bytes);
            }
        } else if let Some((address, offset)) = self.register(port) {
            let changes = bus.write_config(address, offset, data);
            return changes.into_iter().map(|change| (address, change)).collect();
        }
        BusChanges::new()
    }

    /// The function and the offset that `port` of CONFIG_DATA reaches. The low two bits of the offset may stand in
    /// CONFIG_ADDRESS as well as in the port: QEMU keeps them, and its test clients always use port 0xcfc.
    fn register(&self, port: u16) -> Option<(Address, u16)> {
        if self.config_address & ENABLE == 0 || !(CONFIG_DATA..=*PORTS.end()).contains(&port) {
            return None;
        }
        let [offset, devfn, bus, _] = self.config_address.to_le_bytes();
        Some((Address::from_devfn(bus, devfn), u16::from(offset) | port & 3))
    }
}

/// Cuts an access of `len` bytes at `port` into parts of 1, 2 or 4 bytes that are aligned to their width. Ports don't
/// wrap.
fn aligned_parts(port: u16, len: usize) -> impl Iterator<Item = (u16, usize)> {
    let mut next = Some(port);
    let mut left = len;
    std::iter::from_fn(move || {
        let port = next.filter(|_| left > 0)?;
        let fits = |width: &u16| port.is_multiple_of(*width) && usize::from(*width) <= left;
        let width = [4, 2, 1].into_iter().find(fits)?;
        next = port.checked_add(width);
        left -= usize::from(width);
        Some((port, usize::from(width)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::function::Change;
    use crate::host;
    use crate::testing::{Scratch, address};

    /// The host functions and a device in slot 2, and the ports.
    fn machine() -> (Bus, ConfigPorts) {
        let bus = Bus::new();
        host::add_to(&bus, 512 << 20).unwrap();
        bus.add_function(address(2), Scratch::new(0)).unwrap();
        (bus, ConfigPorts::new())
    }

    fn outl(ports: &mut ConfigPorts, bus: &Bus, port: u16, value: u32) -> BusChanges {
        ports.write(bus, port, &value.to_le_bytes())
    }

    fn inl(ports: &ConfigPorts, bus: &Bus, port: u16) -> u32 {
        let mut data = [0; 4];
        ports.read(bus, port, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn linux_finds_mechanism_1() {
        let (bus, mut ports) = machine();
        ports.write(&bus, 0xcfb, &[1]);
        let before = inl(&ports, &bus, 0xcf8);
        outl(&mut ports, &bus, 0xcf8, 0x8000_0000);
        assert_eq!(inl(&ports, &bus, 0xcf8), 0x8000_0000);
        assert_eq!(inl(&ports, &bus, 0xcfc), 0x1237_8086);
        outl(&mut ports, &bus, 0xcf8, before);
        assert_eq!(inl(&ports, &bus, 0xcf8), 0);
    }

    #[test]
    fn narrow_writes_leave_config_address() {
        let (bus, mut ports) = machine();
        outl(&mut ports, &bus, 0xcf8, 0x8000_0800);
        ports.write(&bus, 0xcf8, &[0xff]);
        ports.write(&bus, 0xcf8, &[0xff; 2]);
        ports.write(&bus, 0xcfa, &[0xff; 2]);
        ports.write(&bus, 0xcf9, &[0xff; 3]);
        assert_eq!(inl(&ports, &bus, 0xcf8), 0x8000_0800);
    }

    #[test]
    fn data_is_reached_in_every_width_and_place() {
        let (bus, mut ports) = machine();
        outl(&mut ports, &bus, 0xcf8, 0x8000_0800);
        for (port, expected) in [
            (0xcfc, &[0x86][..]),
            (0xcfd, &[0x80]),
            (0xcfe, &[0x00, 0x70]),
            (0xcfd, &[0x80, 0x00]),
        ] {
            let mut data = vec![0; expected.len()];
            ports.read(&bus, port, &mut data);
            assert_eq!(data, expected, "{port:#x}");
        }
        outl(&mut ports, &bus, 0xcf8, 0x8000_080a);
        let mut class = [0; 2];
        ports.read(&bus, 0xcfc, &mut class);
        assert_eq!(class, [0x01, 0x06], "low bits of the offset in CONFIG_ADDRESS");
    }

    #[test]
    fn disabled_or_absent_reads_ones_and_writes_nothing() {
        let (bus, mut ports) = machine();
        for config_address in [0x0000_1004, 0x8000_1804, 0x8000_1104, 0x8001_1004] {
            outl(&mut ports, &bus, 0xcf8, config_address);
            assert_eq!(outl(&mut ports, &bus, 0xcfc, 7), [], "{config_address:#x}");
            assert_eq!(inl(&ports, &bus, 0xcfc), 0xffff_ffff, "{config_address:#x}");
        }
        outl(&mut ports, &bus, 0xcf8, 0x8000_1004);
        assert_eq!(inl(&ports, &bus, 0xcfc) & 0xffff, 0);
    }

    #[test]
    fn changes_come_back_with_the_function_that_they_concern() {
        let (bus, mut ports) = machine();
        outl(&mut ports, &bus, 0xcf8, 0x8000_0860);
        let changes = ports.write(&bus, 0xcfe, &[11]);
        let routed = Change::PirqRouted { pirq: 2, irq: Some(11) };
        assert_eq!(changes, [(host::ISA_BRIDGE, routed)]);
    }

    #[test]
    fn access_across_both_registers_is_cut() {
        let (bus, mut ports) = machine();
        outl(&mut ports, &bus, 0xcf8, 0x8000_0000);
        assert_eq!(inl(&ports, &bus, 0xcfa), 0x8086_0000);
        assert_eq!(inl(&ports, &bus, 0xcfe), 0xffff_1237);
        assert_eq!(inl(&ports, &bus, 0xfffe), 0xffff_ffff);
    }

    #[derive(Clone, Debug)]
    enum Access {
        Select(u32),
        Write(u16, Vec<u8>),
        Read(u16, usize),
        Config(u8, u16, Vec<u8>),
        Bar(bool, u64, Vec<u8>),
    }

    fn access() -> impl Strategy<Value = Access> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..9);
        prop_oneof![
            (any::<bool>(), 0u32..0x1_0000)
                .prop_map(|(enable, register)| Access::Select(u32::from(enable) << 31 | register)),
            any::<u32>().prop_map(Access::Select),
            (0xcf0u16..0xd08, bytes()).prop_map(|(port, data)| Access::Write(port, data)),
            (0xcf0u16..0xd08, 0usize..9).prop_map(|(port, len)| Access::Read(port, len)),
            (any::<u8>(), 0u16..0x200, bytes()).prop_map(|(devfn, offset, data)| Access::Config(devfn, offset, data)),
            (any::<bool>(), any::<u64>(), bytes()).prop_map(|(io, addr, data)| Access::Bar(io, addr, data)),
        ]
    }

    /// What must be the same before and after anything that a guest does: the identity of every function, present or
    /// not.
    fn identities(bus: &Bus) -> Vec<[u8; 4]> {
        let identity = |devfn| {
            let mut data = [0; 4];
            bus.read_config(Address::from_devfn(0, devfn), 0, &mut data);
            data
        };
        (0..=255).map(identity).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// 100 machines of 100 accesses each.
        #[test]
        fn ten_thousand_random_accesses_leave_what_is_read_only_and_absent(
            accesses in prop::collection::vec(access(), 100),
        ) {
            let (bus, mut ports) = machine();
            let before = identities(&bus);
            for access in accesses {
                match access {
                    Access::Select(register) => {
                        outl(&mut ports, &bus, 0xcf8, register);
                        prop_assert_eq!(inl(&ports, &bus, 0xcf8), register);
                    }
                    Access::Write(port, data) => {
                        ports.write(&bus, port, &data);
                    }
                    Access::Read(port, len) => {
                        let mut data = vec![0; len];
                        ports.read(&bus, port, &mut data);
                        if !PORTS.contains(&port) && len == 1 {
                            prop_assert_eq!(data, [0xff]);
                        }
                    }
                    Access::Config(devfn, offset, data) => {
                        let address = Address::from_devfn(0, devfn);
                        bus.write_config(address, offset, &data);
                        bus.read_config(address, offset, &mut data.clone());
                    }
                    Access::Bar(io, addr, data) => {
                        let space = if io { crate::Space::Io } else { crate::Space::Memory };
                        bus.write(space, addr % 0x1_0000_0000, &data);
                        bus.read(space, addr, &mut data.clone());
                    }
                }
            }
            prop_assert_eq!(identities(&bus), before);
            let mut status = [0; 2];
            bus.read_config(address(2), 6, &mut status);
            prop_assert_eq!(status, [0x10, 0]);
            bus.reset();
            prop_assert!((0..0x1_0000).all(|port| bus.find(crate::Space::Io, port, 1).is_none()));
        }
    }
}
