//! The ACPI hotplug controller of a PCI bus: which slots something came into, which are to be emptied, and the port by which the guest
//! empties one. QEMU, docs/specs/acpi_pci_hotplug.rst and hw/acpi/pcihp.c.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{MachineRequest, PmEvents, PortDevice};

/// The general-purpose event that says that a slot changed (QEMU, include/hw/acpi/acpi.h, `ACPI_PCI_HOTPLUG_STATUS`).
const EVENT: u8 = 1;

/// Buses that can be selected (`ACPI_PCIHP_MAX_HOTPLUG_BUS`); there is only bus 0.
const BUSES: u32 = 256;

/// Registers of 32 bits, a bit for each slot but in the last two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    /// Something was plugged in; reading clears.
    Up,
    /// To be emptied.
    Down,
    /// Writing empties the lowest slot whose bit is set.
    Eject,
    /// Can be emptied.
    Removable,
    /// The bus that the others are about.
    Select,
    /// The firmware's number of the device in a slot; no device here has one.
    Index,
}

/// In the order of their ports.
const REGISTERS: [Register; 6] = [
    Register::Up,
    Register::Down,
    Register::Eject,
    Register::Removable,
    Register::Select,
    Register::Index,
];

/// Bytes of a register, and of an access to one; others are not answered.
const WIDTH: usize = 4;

#[derive(Default)]
struct State {
    up: u32,
    down: u32,
    selected: u32,
}

/// The controller of bus 0: 24 ports, at 0xae00 on QEMU's `pc`.
pub struct PciHotplug {
    state: Arc<Mutex<State>>,
    fixed: u32,
    events: PmEvents,
}

impl PciHotplug {
    /// The controller's size in ports.
    pub const PORTS: u16 = (REGISTERS.len() * WIDTH) as u16;

    /// A controller whose event is one of `events`. The slots of `fixed`, a bit each, cannot be emptied.
    pub fn new(fixed: u32, events: PmEvents) -> Self {
        let state = Arc::default();
        Self { state, fixed, events }
    }

    /// A handle for who plugs things in.
    pub fn slots(&self) -> HotplugSlots {
        HotplugSlots {
            state: Arc::clone(&self.state),
            events: self.events.clone(),
        }
    }
}

/// The register that an access of `len` bytes at `offset` reaches.
fn register_at(offset: u16, len: usize) -> Option<Register> {
    let offset = usize::from(offset);
    let whole = len == WIDTH && offset.is_multiple_of(WIDTH);
    REGISTERS.get(offset / WIDTH).copied().filter(|_| whole)
}

impl PortDevice for PciHotplug {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        let mut state = lock(&self.state);
        let here = state.selected == 0;
        let value = match register_at(offset, data.len()) {
            _ if state.selected >= BUSES => 0,
            Some(Register::Up) if here => std::mem::take(&mut state.up),
            Some(Register::Down) if here => state.down,
            Some(Register::Removable) if here => !self.fixed,
            Some(Register::Removable) => u32::MAX,
            Some(Register::Select) => state.selected,
            _ => 0,
        };
        // Wider accesses than a register read as zeros, too.
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(byte, value)| *byte = value);
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Option<MachineRequest> {
        let value = u32::from_le_bytes(data.try_into().ok()?);
        let mut state = lock(&self.state);
        match register_at(offset, data.len())? {
            Register::Select => state.selected = value,
            Register::Eject if state.selected == 0 && value != 0 => {
                let slot = value.trailing_zeros() as u8;
                let kept = !(1 << slot);
                (state.up, state.down) = (state.up & kept, state.down & kept);
                return Some(MachineRequest::Eject { slot });
            }
            _ => {}
        }
        None
    }

    fn reset(&mut self) {
        *lock(&self.state) = State::default();
    }
}

/// What happens to slots, said from any thread.
#[derive(Clone)]
pub struct HotplugSlots {
    state: Arc<Mutex<State>>,
    events: PmEvents,
}

impl HotplugSlots {
    /// Something was plugged into `slot`.
    pub fn plugged(&self, slot: u8) {
        self.change(|state| state.up |= bit(slot));
    }

    /// Asks the guest to let go of what is in `slot`.
    pub fn ask_for(&self, slot: u8) {
        self.change(|state| state.down |= bit(slot));
    }

    /// The slots that the guest was asked for, a bit each, and has not emptied. It is not asked any more.
    pub fn take_asked_for(&self) -> u32 {
        std::mem::take(&mut lock(&self.state).down)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.events.raise_general_event(EVENT);
    }
}

/// The bit of a slot; none for what is no slot.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::AcpiPm;
    use super::super::testing::{TestLine, accesses, inb, inl, inw, outb, perform};
    use super::*;

    const UP: u16 = 0;
    const DOWN: u16 = 4;
    const EJECT: u16 = 8;
    const REMOVABLE: u16 = 12;
    const SELECT: u16 = 16;
    const INDEX: u16 = 20;

    fn controller() -> (PciHotplug, HotplugSlots, super::super::Gpe) {
        let pm = AcpiPm::new(Arc::new(TestLine::default()));
        let hotplug = PciHotplug::new(0b11, pm.events());
        let slots = hotplug.slots();
        (hotplug, slots, pm.gpe())
    }

    fn outl(device: &mut PciHotplug, offset: u16, value: u32) -> Option<MachineRequest> {
        device.write(offset, &value.to_le_bytes())
    }

    #[test]
    fn what_was_plugged_in_is_said_once_and_by_an_event() {
        let (mut hotplug, slots, mut gpe) = controller();
        assert_eq!(inb(&mut gpe, 0), 0);
        slots.plugged(6);
        slots.plugged(31);
        assert_eq!(inb(&mut gpe, 0), 0x02);
        assert_eq!(inl(&mut hotplug, UP), 1 << 6 | 1 << 31);
        assert_eq!(inl(&mut hotplug, UP), 0);
    }

    #[test]
    fn a_slot_is_asked_for_until_it_is_ejected() {
        let (mut hotplug, slots, mut gpe) = controller();
        slots.ask_for(6);
        slots.ask_for(7);
        assert_eq!(inb(&mut gpe, 0), 0x02);
        assert_eq!((inl(&mut hotplug, DOWN), inl(&mut hotplug, DOWN)), (0xc0, 0xc0));
        assert_eq!(
            outl(&mut hotplug, EJECT, 0xc0),
            Some(MachineRequest::Eject { slot: 6 }),
            "the lowest alone"
        );
        assert_eq!(inl(&mut hotplug, DOWN), 0x80);
        assert_eq!(slots.take_asked_for(), 0x80);
        assert_eq!(inl(&mut hotplug, DOWN), 0);
    }

    #[test]
    fn a_guest_may_eject_without_being_asked() {
        let (mut hotplug, slots, _) = controller();
        slots.plugged(4);
        assert_eq!(
            outl(&mut hotplug, EJECT, 1 << 4),
            Some(MachineRequest::Eject { slot: 4 })
        );
        assert_eq!(inl(&mut hotplug, UP), 0);
        assert_eq!(outl(&mut hotplug, EJECT, 0), None);
    }

    #[test]
    fn other_buses_are_empty() {
        let (mut hotplug, slots, _) = controller();
        slots.plugged(4);
        slots.ask_for(5);
        assert_eq!(inl(&mut hotplug, REMOVABLE), !0b11);
        outl(&mut hotplug, SELECT, 1);
        let read =
            |hotplug: &mut PciHotplug| [UP, DOWN, EJECT, REMOVABLE, SELECT, INDEX].map(|port| inl(hotplug, port));
        assert_eq!(read(&mut hotplug), [0, 0, 0, u32::MAX, 1, 0]);
        assert_eq!(outl(&mut hotplug, EJECT, 1 << 5), None);
        outl(&mut hotplug, SELECT, 256);
        assert_eq!(read(&mut hotplug), [0; 6]);
        outl(&mut hotplug, SELECT, 0);
        assert_eq!(read(&mut hotplug), [1 << 4, 1 << 5, 0, !0b11, 0, 0]);
    }

    #[test]
    fn registers_answer_whole_and_in_their_place_only() {
        let (mut hotplug, slots, _) = controller();
        slots.ask_for(5);
        assert_eq!(
            (inb(&mut hotplug, DOWN), inw(&mut hotplug, DOWN), inl(&mut hotplug, 2)),
            (0, 0, 0)
        );
        assert_eq!(outb(&mut hotplug, EJECT, 0x20), None);
        assert_eq!(outl(&mut hotplug, EJECT + 1, 0x20), None);
        assert_eq!(inl(&mut hotplug, DOWN), 1 << 5);
        hotplug.reset();
        assert_eq!(inl(&mut hotplug, DOWN), 0);
    }

    #[test]
    fn what_is_no_slot_does_no_harm() {
        let (mut hotplug, slots, _) = controller();
        slots.plugged(32);
        slots.ask_for(255);
        assert_eq!((inl(&mut hotplug, UP), inl(&mut hotplug, DOWN)), (0, 0));
    }

    proptest! {
        #[test]
        fn random_accesses_are_survived(accesses in accesses(PciHotplug::PORTS)) {
            let (mut hotplug, slots, _) = controller();
            slots.ask_for(9);
            perform(&mut hotplug, &accesses);
        }
    }
}
