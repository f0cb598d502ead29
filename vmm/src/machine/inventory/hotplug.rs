//! Devices that come and go while the guest runs. A slot is emptied by the guest, asked or not, or by a reset.

use std::sync::{Arc, Mutex};

use devices::platform::{HotplugSlots, PciHotplug, PmEvents};
use devices::virtio::options::ConfigError;
use pci::Address;

use super::{Inventory, Place, PlugError, Plugged, State};
use crate::boot::tables::port;
use crate::config::DeviceConfig;
use crate::machine::events::Event;

/// Why a device cannot be taken out
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnplugError {
    /// There is none of that name
    #[error("Device '{0}' not found")]
    NotFound(String),
    /// Nobody could ask the guest for it
    #[error("Bus 'pci.0' does not support hotplugging")]
    NoHotplug,
}

impl Inventory {
    /// Puts a hotplug controller on the board, which tells the guest by one of the events `acpi`. What is on the bus by now stays there.
    #[must_use]
    pub fn with_hotplug(mut self, acpi: PmEvents) -> Self {
        let fixed = self.board.pci().addresses();
        let fixed = fixed.iter().fold(0, |fixed, address| fixed | 1 << address.device());
        let controller = PciHotplug::new(fixed, acpi);
        self.hotplug = Some(controller.slots());
        let controller = Arc::new(Mutex::new(controller));
        self.board
            .add_ports("PCI hotplug", port::PCI_HOTPLUG, PciHotplug::PORTS, controller);
        self
    }

    fn hotplug(&self) -> Option<&HotplugSlots> {
        self.hotplug.as_ref()
    }

    /// Plugs a device in while the guest runs, and tells the guest. Its BARs are empty; the guest's hotplug code places them.
    ///
    /// # Errors
    /// As [`Self::plug`].
    pub fn hot_plug(&self, config: &DeviceConfig) -> Result<Arc<Plugged>, PlugError> {
        if self.hotplug().is_none() && !is_child(config) {
            let remedy = "give it on the command line";
            return Err(ConfigError::refused(&config.name, UnplugError::NoHotplug, remedy).into());
        }
        let plugged = self.plug(config)?;
        if let (Some(slot), Some(hotplug)) = (plugged.slot(), self.hotplug()) {
            hotplug.plugged(slot.address.device());
        }
        Ok(plugged)
    }

    /// Asks the guest to let go of the device with this id or path; it is taken out when the guest does, and
    /// [`Event::DeviceDeleted`] says so. It may be asked again. What is on the bus of another device is taken out at once.
    ///
    /// # Errors
    /// There is no such device, or the machine has no hotplug controller.
    pub fn unplug(&self, name: &str) -> Result<(), UnplugError> {
        let plugged = self.find(name).ok_or_else(|| UnplugError::NotFound(name.to_owned()))?;
        match (plugged.slot(), self.hotplug()) {
            (None, _) => self.take_out(&plugged),
            (Some(slot), Some(hotplug)) => hotplug.ask_for(slot.address.device()),
            (Some(_), None) => return Err(UnplugError::NoHotplug),
        }
        Ok(())
    }

    /// The guest lets go of what is in `slot`. Its queues are stopped and drained, and its backend closed, when this returns. Slots that
    /// hold nothing, or a part of the board, are left alone.
    pub fn eject(&self, slot: u8) {
        let plugged = Address::new(0, slot, 0).and_then(|address| self.at(address));
        if let Some(plugged) = plugged {
            self.take_out(&plugged);
        }
    }

    /// Brings the board and everything plugged in into its state at power-on. Slots that the guest was asked to empty are emptied.
    pub fn reset(&self) {
        let asked_for = self.hotplug().map_or(0, HotplugSlots::take_asked_for);
        (0..u32::BITS as u8)
            .filter(|slot| asked_for & 1 << slot != 0)
            .for_each(|slot| self.eject(slot));
        self.board.reset();
    }

    /// Takes a device out, what sits on its bus first, and says so.
    fn take_out(&self, plugged: &Arc<Plugged>) {
        let gone = {
            let mut state = self.state();
            let mut gone = state.detach_children(plugged);
            if state.detach(plugged) {
                if let Some(slot) = plugged.slot() {
                    self.board.remove(slot.address);
                }
                gone.push(Arc::clone(plugged));
            }
            gone
        };
        gone.iter().for_each(|plugged| self.announce_deletion(plugged));
    }

    /// As QEMU does: the virtio device behind a function is a device of its own, without an id, and goes first, with what it
    /// referred to.
    fn announce_deletion(&self, plugged: &Plugged) {
        let path = plugged.path().to_owned();
        let mut references = plugged.config().references.clone();
        if plugged.slot().is_some() {
            self.events.emit(&Event::DeviceDeleted {
                id: None,
                path: format!("{path}/virtio-backend"),
                references: std::mem::take(&mut references),
            });
        }
        let id = plugged.id().map(str::to_owned);
        self.events.emit(&Event::DeviceDeleted { id, path, references });
    }
}

impl State {
    /// Takes everything off the bus of `parent`.
    fn detach_children(&mut self, parent: &Arc<Plugged>) -> Vec<Arc<Plugged>> {
        let sits_there = |plugged: &Plugged| match plugged.place() {
            Place::Child { parent: its, .. } => Arc::ptr_eq(its, parent),
            Place::Slot(_) => false,
        };
        let children: Vec<_> = self
            .plugged
            .iter()
            .filter(|plugged| sits_there(plugged))
            .cloned()
            .collect();
        children.into_iter().filter(|child| self.detach(child)).collect()
    }

    /// Strikes a device off the list. Says whether it was on it.
    fn detach(&mut self, plugged: &Arc<Plugged>) -> bool {
        let before = self.plugged.len();
        self.plugged.retain(|other| !Arc::ptr_eq(other, plugged));
        if let Some(detach) = self.detach.remove(plugged.path()) {
            detach();
        }
        self.plugged.len() != before
    }
}

fn is_child(config: &DeviceConfig) -> bool {
    super::child_info(&config.name).is_some()
}
