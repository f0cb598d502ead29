//! The fixed devices of a PC: what a kernel finds at well-known I/O ports, without a bus to enumerate.
//!
//! Every device here is a state machine behind [`PortDevice`]. None knows KVM: interrupts leave through an event descriptor
//! or a [`pci::InterruptLine`], and what concerns the whole machine (reset, power-off) is returned as a [`MachineRequest`].

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
}
