//! Routes of message-signalled interrupts: a message (address and data) gets a GSI above the IOAPIC's pins, on which an irqfd can fire it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use super::Gsi;

/// Pins of the IOAPIC; messages take the numbers above.
const IOAPIC_PINS: Gsi = 24;
/// The most routes that KVM takes (KVM_MAX_IRQ_ROUTES).
const MAX_ROUTES: Gsi = 4096;

/// The address and data that a function writes to signal an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiMessage {
    /// Address, in the local APICs' window on x86.
    pub address: u64,
    /// Data: vector and delivery mode.
    pub data: u32,
}

/// A route could not be set
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// All GSIs are taken
    #[error("the machine has no interrupt route left ({MAX_ROUTES} at most); give its devices fewer vectors")]
    Full,
    /// KVM refused the table
    #[error("KVM refused the interrupt routes: {0}")]
    Kvm(kvm_ioctls::Error),
    /// No event descriptor is left
    #[error("no event descriptor for an interrupt: {0}; raise the limit of open files (ulimit -n)")]
    Event(std::io::Error),
}

/// The route table of one machine: the fixed routes of the PIC and the IOAPIC, and one for each message.
pub struct MsiRoutes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<Gsi, Option<MsiMessage>>>,
}

impl MsiRoutes {
    /// A table without messages, set at once: KVM's own has the timer on pin 0 of the IOAPIC, where a PC has it on pin 2.
    ///
    /// # Errors
    /// KVM refused the table.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, RouteError> {
        let routes = Self {
            vm,
            messages: Mutex::default(),
        };
        routes.commit(&routes.lock())?;
        Ok(routes)
    }

    /// Reserves the lowest free GSI; it has no message yet, and an interrupt on it goes nowhere.
    ///
    /// # Errors
    /// [`RouteError::Full`].
    pub fn reserve(&self) -> Result<Gsi, RouteError> {
        let mut messages = self.lock();
        let gsi = (IOAPIC_PINS..MAX_ROUTES)
            .find(|gsi| !messages.contains_key(gsi))
            .ok_or(RouteError::Full)?;
        messages.insert(gsi, None);
        Ok(gsi)
    }

    /// Gives reserved GSIs back.
    ///
    /// # Errors
    /// KVM refused the table.
    pub fn release(&self, gsis: impl IntoIterator<Item = Gsi>) -> Result<(), RouteError> {
        let mut messages = self.lock();
        let had_message = |gsi| matches!(messages.remove(&gsi), Some(Some(_)));
        match gsis.into_iter().map(had_message).fold(false, |any, had| any | had) {
            true => self.commit(&messages),
            false => Ok(()),
        }
    }

    /// Sets the message of a reserved GSI, or takes it away. Nothing happens when it is that already.
    ///
    /// # Errors
    /// KVM refused the table.
    pub fn set(&self, gsi: Gsi, message: Option<MsiMessage>) -> Result<(), RouteError> {
        let mut messages = self.lock();
        match messages.get_mut(&gsi) {
            Some(slot) if *slot != message => *slot = message,
            _ => return Ok(()),
        }
        self.commit(&messages)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Gsi, Option<MsiMessage>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, messages: &BTreeMap<Gsi, Option<MsiMessage>>) -> Result<(), RouteError> {
        let messages = messages.iter().filter_map(|(gsi, message)| Some((*gsi, (*message)?)));
        let entries: Vec<_> = chip_routes()
            .chain(messages.map(|(gsi, message)| message_route(gsi, message)))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| RouteError::Full)?;
        self.vm.set_gsi_routing(&table).map_err(RouteError::Kvm)
    }
}

/// The wiring of a PC: GSI 0 to 15 to the PICs (2 is the cascade), and every GSI to its IOAPIC pin, the timer's (0) to pin 2, as the
/// firmware tables say.
fn chip_routes() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..16).filter(|gsi| *gsi != 2).map(|gsi| {
        let chip = if gsi < 8 {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        chip_route(gsi, chip, gsi % 8)
    });
    let ioapic = (0..IOAPIC_PINS)
        .filter(|gsi| *gsi != 2)
        .map(|gsi| chip_route(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    pic.chain(ioapic)
}

fn chip_route(gsi: Gsi, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn message_route(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chip_routes_leave_the_cascade_out_and_move_the_timer() {
        let routes: Vec<_> = chip_routes().collect();
        assert_eq!(routes.len(), 15 + 23);
        assert!(routes.iter().all(|route| route.gsi != 2));
        // SAFETY: chip routes are of the irqchip kind.
        let timer: Vec<_> = routes
            .iter()
            .filter(|r| r.gsi == 0)
            .map(|r| unsafe { r.u.irqchip.pin })
            .collect();
        assert_eq!(timer, [0, 2]);
    }
}
