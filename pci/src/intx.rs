//! Interrupt pins and lines.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An interrupt pin, INTA# to INTD#.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pin {
    /// INTA#, 1 in the interrupt pin register.
    A = 1,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl Pin {
    /// The pin that the interrupt pin register names; `None` for 0 (no pin) and for values that mean nothing.
    pub const fn from_register(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            4 => Some(Self::D),
            _ => None,
        }
    }
}

/// A level-triggered interrupt input that somebody outside provides. Setting the level that it has already is cheap.
pub trait InterruptLine: Send + Sync {
    /// Drives the line: `true` asserts.
    fn set_level(&self, asserted: bool);
}

/// The PIRQ, A to D as 0 to 3, that a pin of the device in slot `device` of bus 0 is wired to: each slot is turned by
/// one against its neighbour, and INTA# of slot 1 is PIRQ A (QEMU, hw/i386/pc_piix.c, `pc_pci_slot_get_pirq`).
pub const fn pirq(device: u8, pin: Pin) -> u8 {
    let pin = pin as u8 - Pin::A as u8;
    (device % 4 + 3 + pin) % 4
}

/// INTx# of one function: shared by its configuration space, which can disable it, and whoever raises and lowers it.
///
/// The line is asserted while the function wants it and Interrupt Disable is clear. Line and state change together,
/// so that two threads can't leave the line at a level that the state contradicts.
#[derive(Default)]
pub struct Intx {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    wanted: bool,
    disabled: bool,
    line: Option<Arc<dyn InterruptLine>>,
}

impl State {
    fn level(&self) -> bool {
        self.wanted && !self.disabled
    }

    fn drive(&self) {
        if let Some(line) = &self.line {
            line.set_level(self.level());
        }
    }
}

impl Intx {
    /// A pin that is not wired to anything yet, not asserted, not disabled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wires the pin to `line` and gives the line its level.
    pub fn connect(&self, line: Arc<dyn InterruptLine>) {
        let mut state = self.lock();
        state.line = Some(line);
        state.drive();
    }

    /// Says whether the function wants its interrupt; this is Interrupt Status of the status register.
    pub fn set(&self, wanted: bool) {
        let mut state = self.lock();
        if state.wanted != wanted {
            state.wanted = wanted;
            state.drive();
        }
    }

    /// Interrupt Disable of the command register.
    pub fn set_disabled(&self, disabled: bool) {
        let mut state = self.lock();
        if state.disabled != disabled {
            state.disabled = disabled;
            state.drive();
        }
    }

    /// Whether the function wants its interrupt.
    pub fn wanted(&self) -> bool {
        self.lock().wanted
    }

    /// Whether Interrupt Disable holds it back.
    pub fn disabled(&self) -> bool {
        self.lock().disabled
    }

    /// The level that the line has, asserted or not.
    pub fn level(&self) -> bool {
        self.lock().level()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Wire(AtomicBool);

    impl InterruptLine for Wire {
        fn set_level(&self, asserted: bool) {
            self.0.store(asserted, Ordering::Relaxed);
        }
    }

    #[test]
    fn slots_are_wired_as_on_the_reference_machine() {
        let routing = [10, 10, 11, 11];
        for (slot, irq) in [(2, 10), (3, 11), (4, 11), (5, 10), (6, 10), (7, 11), (8, 11), (9, 10)] {
            assert_eq!(routing[usize::from(pirq(slot, Pin::A))], irq, "slot {slot}");
        }
        assert_eq!(pirq(1, Pin::A), 0);
        assert_eq!(pirq(1, Pin::D), 3);
        assert_eq!(pirq(0, Pin::A), 3);
        assert_eq!(pirq(31, Pin::C), 0);
    }

    #[test]
    fn line_follows_what_is_wanted_unless_disabled() {
        let wire = Arc::new(Wire::default());
        let level = || wire.0.load(Ordering::Relaxed);
        let intx = Intx::new();
        intx.set(true);
        intx.connect(wire.clone());
        assert!(level(), "a line that is connected late has the level at once");
        intx.set_disabled(true);
        assert!(!level() && intx.wanted());
        intx.set_disabled(false);
        assert!(level());
        intx.set(false);
        assert!(!level());
    }
}
