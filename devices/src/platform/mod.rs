//! The fixed devices of a PC: what a kernel finds at well-known I/O ports, without a bus to enumerate.
//!
//! Every device here is a state machine behind [`PortDevice`]. None knows KVM: interrupts leave through an event descriptor
//! or a [`pci::InterruptLine`], and what concerns the whole machine (reset, power-off) is returned as a [`MachineRequest`].

#![deny(unsafe_code)]

mod acpi_pm;
mod calendar;
mod cmos;
mod debug_exit;
pub mod fw_cfg;
mod i8042;
mod pci_hotplug;
mod port92;
mod reset_control;
mod serial;
mod serial_output;

pub use acpi_pm::{AcpiPm, ApmControl, Gpe, PmEvents};
pub use cmos::{Cmos, MemorySize};
pub use debug_exit::DebugExit;
pub use fw_cfg::FwCfg;
pub use i8042::I8042;
pub use pci_hotplug::{HotplugSlots, PciHotplug};
pub use port92::Port92;
pub use reset_control::ResetControl;
pub use serial::{Serial, SerialStats};

use std::time::Duration;

/// A device behind fixed I/O ports.
pub trait PortDevice: Send {
    /// Reads at `offset` from the device's first port; `data.len()` is 1, 2 or 4.
    fn read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes at `offset` from the device's first port; returns what the guest asked of the machine by it, if anything.
    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest>;
    /// Returns to the state after a machine reset.
    fn reset(&mut self);
}

/// What a guest can ask of the whole machine through a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineRequest {
    /// Start again from the firmware's state.
    Reset,
    /// Switch off (ACPI S5).
    PowerOff,
    /// The value written to the debug-exit port; the exit status is `(value << 1) | 1`, as QEMU's isa-debug-exit.
    DebugExit(u32),
    /// Take what is in this slot of the PCI bus out; the guest does not use it any more.
    Eject {
        /// The slot, 0 to 31.
        slot: u8,
    },
}

/// A source of time: the duration since a fixed point that the device names. Tests put in their own.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// What a port that nobody drives reads as.
const FLOATING: u8 = 0xff;

/// Reads a block of byte-wide registers: a wider access is that many byte accesses, lowest port first, as on an ISA bus.
fn read_bytes(offset: u16, data: &mut [u8], mut read: impl FnMut(u16) -> u8) {
    data.fill(FLOATING);
    for (port, byte) in (offset..=u16::MAX).zip(data) {
        *byte = read(port);
    }
}

/// Writes a block of byte-wide registers, lowest port first; returns the first request that the bytes make.
fn write_bytes(
    offset: u16,
    data: &[u8],
    mut write: impl FnMut(u16, u8) -> Option<MachineRequest>,
) -> Option<MachineRequest> {
    let mut request = None;
    for (port, byte) in (offset..=u16::MAX).zip(data) {
        request = request.or(write(port, *byte));
    }
    request
}

#[cfg(test)]
mod testing {
    //! What the devices' tests share: byte accesses, a clock that tests move, a line that remembers its level.
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::{Clock, MachineRequest, PortDevice};

    pub fn inb(device: &mut dyn PortDevice, offset: u16) -> u8 {
        let mut byte = [0];
        device.read(offset, &mut byte);
        byte[0]
    }

    pub fn outb(device: &mut dyn PortDevice, offset: u16, value: u8) -> Option<MachineRequest> {
        device.write(offset, &[value])
    }

    pub fn inw(device: &mut dyn PortDevice, offset: u16) -> u16 {
        let mut word = [0; 2];
        device.read(offset, &mut word);
        u16::from_le_bytes(word)
    }

    pub fn outw(device: &mut dyn PortDevice, offset: u16, value: u16) -> Option<MachineRequest> {
        device.write(offset, &value.to_le_bytes())
    }

    pub fn inl(device: &mut dyn PortDevice, offset: u16) -> u32 {
        let mut double = [0; 4];
        device.read(offset, &mut double);
        u32::from_le_bytes(double)
    }

    #[derive(Clone, Default)]
    pub struct TestClock(Arc<AtomicU64>);

    impl TestClock {
        pub fn at(nanoseconds: u64) -> Self {
            Self(Arc::new(AtomicU64::new(nanoseconds)))
        }

        pub fn advance(&self, by: Duration) {
            self.0
                .fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
        }

        pub fn clock(&self) -> Clock {
            let nanoseconds = Arc::clone(&self.0);
            Box::new(move || Duration::from_nanos(nanoseconds.load(Ordering::SeqCst)))
        }
    }

    #[derive(Default)]
    pub struct TestLine(AtomicBool);

    impl TestLine {
        pub fn level(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl pci::InterruptLine for TestLine {
        fn set_level(&self, asserted: bool) {
            self.0.store(asserted, Ordering::SeqCst);
        }
    }

    /// An event descriptor and the end that the test keeps.
    pub fn event() -> (EventFd, EventFd) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let kept = event.try_clone().unwrap();
        (event, kept)
    }

    /// How many times the event was signalled since the last look.
    pub fn signals(event: &EventFd) -> u64 {
        event.read().unwrap_or(0)
    }

    #[derive(Clone, Debug)]
    pub enum Access {
        Read(u16, usize),
        Write(u16, Vec<u8>),
        Reset,
    }

    /// Accesses of every width, mostly at the device's ports, sometimes anywhere.
    pub fn accesses(ports: u16) -> impl Strategy<Value = Vec<Access>> {
        let offset = prop_oneof![8 => 0..ports, 1 => any::<u16>(), 1 => Just(u16::MAX)];
        let width = prop_oneof![Just(1_usize), Just(2), Just(4)];
        let access = (offset, width, any::<[u8; 4]>(), 0..40_u8).prop_map(|(offset, width, bytes, kind)| match kind {
            0 => Access::Reset,
            1..20 => Access::Read(offset, width),
            _ => Access::Write(offset, bytes[..width].to_vec()),
        });
        prop::collection::vec(access, 0..200)
    }

    pub fn perform(device: &mut dyn PortDevice, accesses: &[Access]) {
        for access in accesses {
            match access {
                Access::Read(offset, width) => device.read(*offset, &mut [0; 4][..*width]),
                Access::Write(offset, bytes) => {
                    device.write(*offset, bytes);
                }
                Access::Reset => device.reset(),
            }
        }
    }
}
