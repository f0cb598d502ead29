//! What the person at the terminal of a virtio console asks of us.

use std::io::{self, Write};
use std::sync::Arc;

use devices::chardev::Escape;
use devices::virtio::console::{SerialControl, SerialEvent};
use devices::virtio::info::Control;

use super::console::ESCAPE_HELP;
use super::events::Cause;
use super::inventory::Inventory;
use super::remote::Remote;

/// The buses of consoles and ports in `inventory`.
pub fn serial_buses(inventory: &Inventory) -> impl Iterator<Item = SerialControl> {
    let plugged = inventory.list().into_iter();
    plugged.filter_map(|plugged| match &plugged.slot()?.control {
        Control::Serial(control) => Some(control.clone()),
        _ => None,
    })
}

/// Obeys from now on.
pub(super) fn obey(remote: &Arc<Remote>) {
    for control in serial_buses(remote.inventory()) {
        // The machine owns its devices, so they do not own the machine.
        let remote = Arc::downgrade(remote);
        control.subscribe(move |event| match event {
            SerialEvent::Escape(Escape::Quit) => {
                if let Some(remote) = remote.upgrade() {
                    remote.quit(Cause::HostUi);
                }
            }
            SerialEvent::Escape(Escape::Help) => {
                let _ = io::stderr().write_all(ESCAPE_HELP.as_bytes());
            }
            SerialEvent::PortChange { .. } => {}
        });
    }
}
