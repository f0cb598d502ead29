//! The PCI_CFG capability: a window in configuration space through which a driver reaches the
//! modern face without mapping its BAR (virtio 1.3, 4.1.4.9). Firmware uses it.

#![forbid(unsafe_code)]

use pci::config_space::ConfigSpace;

use super::fault::TransportFault;
use super::modern;
use super::state::State;

/// Type of the capability (virtio 1.3, 4.1.4, `cfg_type`).
pub(super) const CAPABILITY_TYPE: u8 = 5;

/// Offset of `cap.bar` in the capability.
const BAR: u16 = 4;
/// Offset of `cap.offset`.
const OFFSET: u16 = 8;
/// Offset of `cap.length`.
const LENGTH: u16 = 12;
/// Offset of `pci_cfg_data`, 4 bytes.
const DATA: u16 = 16;

/// Bits that the driver may write, from the fourth byte of the capability on: bar, offset, length,
/// data.
pub(super) const WRITABLE: [u8; 17] = {
    let mut mask = [0xff; 17];
    // cfg_type, id and padding.
    (mask[0], mask[2], mask[3], mask[4]) = (0, 0, 0, 0);
    mask
};

/// The window of a function, whose capability stands at an offset in configuration space.
#[derive(Clone, Copy)]
pub(super) struct Window {
    /// Offset of the capability.
    pub(super) at: u16,
    /// Whether the doorbell port can be reached.
    pub(super) notify_port: bool,
}

/// What the window is pointed at.
struct Target {
    bar: u8,
    offset: u32,
    len: usize,
}

impl Window {
    /// Whether an access of `len` bytes at `offset` of configuration space touches the data.
    pub(super) fn is_touched(self, offset: u16, len: usize) -> bool {
        let data = usize::from(self.at + DATA);
        let start = usize::from(offset);
        start < data + 4 && data < start.saturating_add(len)
    }

    /// The driver is about to read the data: fetches it.
    pub(super) fn fetch(self, config: &mut ConfigSpace, state: &mut State) {
        if let Some(target) = self.target(config, state) {
            let mut data = [0; 4];
            let data = data.get_mut(..target.len).unwrap_or_default();
            if target.bar == modern::BAR {
                modern::read(state, target.offset.into(), data);
            }
            config.put(self.at + DATA, data);
        }
    }

    /// The driver has written the data: carries it on.
    pub(super) fn carry(self, config: &ConfigSpace, state: &mut State) {
        if let Some(target) = self.target(config, state) {
            let data = config.read_u32(self.at + DATA).to_le_bytes();
            let data = data.get(..target.len).unwrap_or_default();
            if target.bar == modern::BAR {
                modern::write(state, target.offset.into(), data);
            } else {
                modern::write_port(state, target.offset.into(), data);
            }
        }
    }

    /// Where the window is pointed at; `None` when that is nothing that another capability
    /// announces, or not aligned.
    fn target(self, config: &ConfigSpace, state: &mut State) -> Option<Target> {
        let (bar, offset) = (config.read_u8(self.at + BAR), config.read_u32(self.at + OFFSET));
        let len = config.read_u32(self.at + LENGTH);
        let size = match bar {
            modern::BAR => modern::BAR_SIZE,
            modern::PIO_BAR if self.notify_port => modern::PIO_BAR_SIZE,
            _ => 0,
        };
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && u64::from(offset) + u64::from(len) <= size;
        if !fits {
            state.fault(TransportFault::WindowAstray { bar, offset, len });
            return None;
        }
        Some(Target {
            bar,
            offset,
            len: len as usize,
        })
    }
}
