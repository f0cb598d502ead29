//! How the interrupt pins of PCI slots reach interrupt inputs, as on QEMU's `pc` machine.
//!
//! A pin reaches one of the PIRQ lines A to D of the ISA bridge by its slot ([`pci::intx::pirq`]); SeaBIOS routes the
//! lines to interrupts 10, 10, 11, 11. The IOAPIC's inputs have the same numbers.

use pci::Pin;
use pci::intx::pirq;

/// Slots that have pins; slot 0 is the host bridge.
pub(super) const SLOTS: std::ops::RangeInclusive<u8> = 1..=31;
/// Pins of a slot.
pub(super) const PINS: [Pin; 4] = [Pin::A, Pin::B, Pin::C, Pin::D];
/// The slot of the ISA bridge and of power management, whose INTA# is the SCI.
const PM_SLOT: u8 = 1;
/// The interrupt of ACPI events.
pub(super) const SCI: u8 = 9;
/// The interrupts that firmware routes PIRQ A to D to (registers 0x60 to 0x63 of the ISA bridge).
pub const PIRQ_INTERRUPTS: [u8; 4] = [10, 10, 11, 11];
/// The interrupts that PIRQ lines may be routed to, a bit each.
pub(super) const PIRQ_MASK: u16 = 1 << 10 | 1 << 11;

/// The interrupt of pin `pin` of slot `slot`.
pub(super) fn interrupt(slot: u8, pin: Pin) -> u8 {
    if (slot, pin) == (PM_SLOT, Pin::A) {
        SCI
    } else {
        PIRQ_INTERRUPTS[usize::from(pirq(slot, pin) & 3)]
    }
}

/// The number of a pin in the tables, which count from 0.
pub(super) fn pin_number(pin: Pin) -> u8 {
    pin as u8 - Pin::A as u8
}

/// Every pin of every slot: slot, pin, interrupt.
pub(super) fn pins() -> impl Iterator<Item = (u8, Pin, u8)> {
    SLOTS.flat_map(|slot| PINS.map(|pin| (slot, pin, interrupt(slot, pin))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_rotate_by_slot_as_on_qemu() {
        // What lspci shows in a guest of QEMU's pc machine for INTA# of slots 1 to 9.
        let slots = [1, 2, 3, 4, 5, 6, 7, 8, 9].map(|slot| interrupt(slot, Pin::A));
        assert_eq!(slots, [9, 10, 11, 11, 10, 10, 11, 11, 10]);
        assert_eq!(interrupt(1, Pin::D), 11);
        assert_eq!(pins().count(), 31 * 4);
        assert!(
            pins()
                .filter(|pin| (pin.0, pin.1) != (1, Pin::A))
                .all(|pin| PIRQ_MASK >> pin.2 & 1 == 1)
        );
    }
}
