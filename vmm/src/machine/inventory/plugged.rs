//! One device that is plugged in, or cannot be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use devices::virtio::info::{ChildInfo, Control, DeviceInfo};
use devices::virtio::options::{ConfigError, Options};
use devices::virtio::transport::VirtioPci;
use pci::Address;
use pci::bus::BusError;

use crate::config::DeviceConfig;

/// Why a device cannot be plugged in, or an I/O thread not be made
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// What the user wrote, or the backend
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The place on the bus
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The host
    #[error("the host gives no I/O thread: {0}; it may be short of memory or of descriptors (ulimit -n)")]
    IoThread(io::Error),
}

/// A device that is plugged in.
pub struct Plugged {
    pub(super) id: Option<String>,
    pub(super) path: String,
    pub(super) config: DeviceConfig,
    pub(super) options: Options,
    pub(super) place: Place,
}

/// Where a device is.
pub enum Place {
    /// On the machine's bus.
    Slot(Slot),
    /// On the bus of another device.
    Child {
        /// Its row of the table.
        info: &'static ChildInfo,
        /// The device whose bus it is on.
        parent: Arc<Plugged>,
    },
}

/// A slot of the bus, and what is in it.
pub struct Slot {
    /// Which function it is.
    pub address: Address,
    /// Its row of the table.
    pub info: &'static DeviceInfo,
    /// The function.
    pub function: Arc<Mutex<VirtioPci>>,
    /// What can be asked of the device.
    pub control: Control,
}

impl Slot {
    /// Locks the function.
    pub fn lock(&self) -> MutexGuard<'_, VirtioPci> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugged {
    /// What the user calls it.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Its path in QEMU's tree of objects: `/machine/peripheral/ID`, or `/machine/peripheral-anon/device[N]` for the device number N
    /// without an id.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the user wrote.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The options as read.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// QEMU's name of its kind.
    pub fn driver(&self) -> &'static str {
        match &self.place {
            Place::Slot(slot) => slot.info.name,
            Place::Child { info, .. } => info.name,
        }
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its slot, if it is on the machine's bus.
    pub fn slot(&self) -> Option<&Slot> {
        match &self.place {
            Place::Slot(slot) => Some(slot),
            Place::Child { .. } => None,
        }
    }

    /// What can be asked of the device. Of what sits on the bus of another device, that device is asked.
    pub fn control(&self) -> Control {
        match &self.place {
            Place::Slot(slot) => slot.control.clone(),
            Place::Child { parent, .. } => parent.control(),
        }
    }
}

impl fmt::Debug for Plugged {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.path, self.driver())
    }
}
