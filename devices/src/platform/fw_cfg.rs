//! QEMU's firmware configuration device (docs/specs/fw_cfg.rst): a key selects an item, and each read gives its next byte.
//! The interface is ports only, without DMA.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{MachineRequest, PortDevice};

/// Keys of items (QEMU, include/standard-headers/linux/qemu_fw_cfg.h and hw/nvram/fw_cfg.h).
pub mod key {
    /// The text "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// What the interface can do, 4 bytes: bit 0 for the ports, bit 1 for DMA.
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Bytes of guest memory, 8 bytes.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1 when there is no display, 2 bytes.
    pub const NO_GRAPHIC: u16 = 0x04;
    /// CPUs at the start, 2 bytes.
    pub const CPUS: u16 = 0x05;
    /// Number of NUMA nodes, node of each CPU, size of each node; 8 bytes each.
    pub const NUMA: u16 = 0x0d;
    /// 1 when firmware shall offer a menu, 2 bytes.
    pub const BOOT_MENU: u16 = 0x0e;
    /// One more than the highest APIC id, 2 bytes.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files.
    pub const FILE_DIRECTORY: u16 = 0x19;
    /// The first file; others follow.
    pub const FIRST_FILE: u16 = 0x20;
}

/// The bit of a selected key that asks to write; QEMU ignores it.
const WRITE_CHANNEL: u16 = 0x4000;
/// Bytes of a name in the directory, with the zero at its end.
const NAME_BYTES: usize = 56;

/// What firmware may ask about the machine.
#[derive(Default, Debug)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    /// Keys of files by their names.
    files: BTreeMap<String, u16>,
    selected: u16,
    /// How many bytes of the selected item were read.
    position: usize,
}

impl FwCfg {
    /// Ports that it decodes, from 0x510 on: the key, and the data.
    pub const PORTS: u16 = 2;

    /// A device that says what it is, and nothing else yet.
    pub fn new() -> Self {
        Self::default()
            .item(key::SIGNATURE, *b"QEMU")
            .item(key::ID, 1_u32.to_le_bytes())
            .item(key::FILE_DIRECTORY, 0_u32.to_be_bytes())
    }

    /// With an item; numbers are little-endian.
    #[must_use]
    pub fn item(mut self, key: u16, value: impl Into<Vec<u8>>) -> Self {
        self.items.insert(key, value.into());
        self
    }

    /// With a file. Of a name, the first 55 bytes count.
    #[must_use]
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        let next = || key::FIRST_FILE.saturating_add(u16::try_from(self.files.len()).unwrap_or(u16::MAX));
        let key = self.files.get(name).copied().unwrap_or_else(next);
        self.files.insert(name.to_owned(), key);
        let device = self.item(key, content);
        let directory = device.directory();
        device.item(key::FILE_DIRECTORY, directory)
    }

    /// The number of files, then size, key and name of each, in big-endian.
    fn directory(&self) -> Vec<u8> {
        let count = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let mut bytes = count.to_be_bytes().to_vec();
        for (name, key) in &self.files {
            let size = self.items.get(key).map_or(0, Vec::len);
            bytes.extend(u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend(key.to_be_bytes());
            bytes.extend([0; 2]);
            let mut field = [0; NAME_BYTES];
            let room = field.len() - 1;
            field
                .iter_mut()
                .take(room)
                .zip(name.bytes())
                .for_each(|(to, from)| *to = from);
            bytes.extend(field);
        }
        bytes
    }

    /// The next byte of the selected item; 0 behind its end, and of one that is not there.
    fn next_byte(&mut self) -> u8 {
        let item = self.items.get(&self.selected);
        let Some(byte) = item.and_then(|item| item.get(self.position)) else {
            return 0;
        };
        self.position += 1;
        *byte
    }
}

impl PortDevice for FwCfg {
    /// Both ports give data, a byte at a time; wider reads are refused, and read as zeros.
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.next_byte(),
            _ => data.fill(0),
        }
    }

    /// A word selects an item. Bytes would be data, which nothing takes.
    fn write(&mut self, _offset: u16, data: &[u8]) -> Option<MachineRequest> {
        if let Ok(key) = data.try_into() {
            self.selected = u16::from_le_bytes(key) & !WRITE_CHANNEL;
            self.position = 0;
        }
        None
    }

    fn reset(&mut self) {
        self.selected = key::SIGNATURE;
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, inb, inw, outb, outw, perform};
    use super::*;
    use proptest::prelude::*;

    fn read(device: &mut FwCfg, key: u16, count: usize) -> Vec<u8> {
        outw(device, 0, key);
        (0..count).map(|_| inb(device, 1)).collect()
    }

    #[test]
    fn an_item_is_read_from_its_start_each_time_it_is_selected() {
        let mut device = FwCfg::new().item(key::RAM_SIZE, (128_u64 << 20).to_le_bytes());
        for key in [key::RAM_SIZE, key::RAM_SIZE | WRITE_CHANNEL] {
            assert_eq!(read(&mut device, key, 8), (128_u64 << 20).to_le_bytes());
        }
        assert_eq!(read(&mut device, key::SIGNATURE, 4), b"QEMU");
    }

    #[test]
    fn behind_the_end_of_an_item_there_are_zeros() {
        let mut device = FwCfg::new();
        assert_eq!(read(&mut device, key::SIGNATURE, 6), *b"QEMU\0\0");
        assert_eq!(read(&mut device, 0x7777, 3), [0; 3]);
    }

    #[test]
    fn files_are_found_through_the_directory() {
        let mut device = FwCfg::new()
            .file("etc/b", [1, 2])
            .file("etc/a", [3])
            .file("etc/b", [4; 5]);
        let directory = read(&mut device, key::FILE_DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 1, 0, 0x21, 0, 0]);
        assert_eq!(directory[12..18], *b"etc/a\0");
        assert_eq!(directory[68..76], [0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert_eq!(read(&mut device, 0x20, 6), [4, 4, 4, 4, 4, 0]);
    }

    #[test]
    fn only_a_word_selects_and_only_a_byte_reads() {
        let mut device = FwCfg::new();
        outb(&mut device, 0, 1);
        assert_eq!(inw(&mut device, 0), 0);
        assert_eq!(inb(&mut device, 1), b'Q');
        device.reset();
        assert_eq!(inb(&mut device, 1), b'Q');
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(accesses in accesses(2)) {
            perform(&mut FwCfg::new().file("name", [1, 2, 3]), &accesses);
        }
    }
}
