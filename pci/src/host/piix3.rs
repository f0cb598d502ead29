//! The ISA bridge of 82371SB, PIIX3 (8086:7000), as in QEMU's hw/isa/piix3.c. It routes the PCI interrupts PIRQ A to
//! D to ISA interrupts; the reset control register at port 0xcf9 is not in configuration space and not here.

use crate::config_space::{Header, status};
use crate::endpoint::{Endpoint, EndpointState, EndpointStateError};
use crate::function::{Change, Changes, Function};

/// Routing of PIRQ A to D, 1 byte each: the ISA interrupt, or 16 and more (bit 7 in the data sheet) for none.
pub const PIRQ_ROUTING: u16 = 0x60;

/// Registers that are not 0 after reset (QEMU, hw/isa/piix3.c, `piix3_reset`).
const DEFAULTS: &[(u16, &[u8])] = &[
    (0x4c, &[0x4d, 0x00, 0x03, 0x00]),
    (PIRQ_ROUTING, &[0x80; 4]),
    (0x69, &[0x02]),
    (0x70, &[0x80]),
    (0x76, &[0x0c, 0x0c, 0x02]),
    (0xa0, &[0x08]),
    (0xa8, &[0x0f]),
];

/// The ISA bridge.
pub struct Piix3 {
    endpoint: Endpoint,
}

impl Piix3 {
    /// The ISA bridge after reset: nothing is routed.
    pub fn new() -> Self {
        let mut endpoint = Endpoint::plain(&Header {
            vendor: 0x8086,
            device: 0x7000,
            class: 0x0601,
            status: status::DEVSEL_MEDIUM,
            multi_function: true,
            ..Header::default()
        });
        for (offset, data) in DEFAULTS {
            endpoint.config_mut().set_default(*offset, data);
        }
        Self { endpoint }
    }

    /// The ISA interrupt that each of PIRQ A to D is routed to now.
    pub fn routing(&self) -> [Option<u8>; 4] {
        let mut routing = [0; 4];
        self.endpoint.config().read(PIRQ_ROUTING, &mut routing);
        routing.map(|irq| (irq < 16).then_some(irq))
    }

    /// What it holds now.
    pub fn state(&self) -> EndpointState {
        self.endpoint.state()
    }

    /// Takes back what [`state`](Self::state) gave, and says which routes that changed.
    ///
    /// # Errors
    /// The state is of another function.
    pub fn restore(&mut self, state: &EndpointState) -> Result<Changes, EndpointStateError> {
        let before = self.routing();
        let changes = self.endpoint.restore(state)?;
        Ok(self.rerouted(&before, changes))
    }

    /// `changes` and the routes that are not as `before`.
    fn rerouted(&self, before: &[Option<u8>; 4], mut changes: Changes) -> Changes {
        for (pirq, (before, irq)) in (0..).zip(before.iter().zip(self.routing())) {
            if *before != irq {
                changes.push(Change::PirqRouted { pirq, irq });
            }
        }
        changes
    }
}

impl Default for Piix3 {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for Piix3 {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.endpoint.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes {
        let before = self.routing();
        let changes = self.endpoint.write_config(offset, data);
        self.rerouted(&before, changes)
    }

    fn reset(&mut self) -> Changes {
        let before = self.routing();
        let changes = self.endpoint.reset();
        self.rerouted(&before, changes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn routed(pirq: u8, irq: Option<u8>) -> Change {
        Change::PirqRouted { pirq, irq }
    }

    #[test]
    fn nothing_is_routed_after_reset() {
        let mut bridge = Piix3::new();
        assert_eq!(bridge.routing(), [None; 4]);
        bridge.write_config(0x60, &[5]);
        assert_eq!(bridge.reset(), [routed(0, None)]);
    }

    #[test]
    fn each_route_that_changes_is_returned() {
        let mut bridge = Piix3::new();
        let dword = bridge.write_config(0x60, &[10, 10, 11, 0x80]);
        assert_eq!(dword, [routed(0, Some(10)), routed(1, Some(10)), routed(2, Some(11))]);
        assert_eq!(bridge.write_config(0x62, &[11]), []);
        assert_eq!(bridge.write_config(0x61, &[0x8a]), [routed(1, None)]);
        assert_eq!(bridge.write_config(0x61, &[0x10]), [], "16 is none, as 0x8a was");
    }

    #[test]
    fn restored_routes_are_returned() {
        let mut bridge = Piix3::new();
        bridge.write_config(0x63, &[11]);
        assert_eq!(Piix3::new().restore(&bridge.state()).unwrap(), [routed(3, Some(11))]);
    }
}
