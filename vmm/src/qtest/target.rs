//! The machine as QMP sees it.

use std::sync::Mutex;

use pci::Bus;

use super::QtestMachine;
use crate::config::DeviceConfig;
use crate::machine::inventory::{Place, Plugged};
use crate::qemu::backends::Backends;
use crate::qmp::error::Error;
use crate::qmp::event::ShutdownCause;
use crate::qmp::target::{About, Board, DeviceView, Order, RunState, Target};

impl Target for QtestMachine {
    fn about(&self) -> About {
        self.about.clone()
    }

    fn run_state(&self) -> RunState {
        self.run_state()
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        match order {
            Order::Stop => self.stop(),
            Order::Cont => self.go_on(),
            Order::Reset => self.reset(ShutdownCause::HostQmpSystemReset),
            Order::Powerdown => self.power_down(),
            Order::Quit => self.end(ShutdownCause::HostQmpQuit),
            Order::Nmi => return Err(Error::new("this machine has no CPU that runs")),
        }
        Ok(())
    }

    fn pci(&self) -> Option<&Bus> {
        (self.about.board == Board::Pc).then(|| self.inventory().board().pci())
    }

    fn devices(&self) -> Vec<DeviceView> {
        self.inventory().list().iter().map(|plugged| view(plugged)).collect()
    }

    fn plug(&self, device: DeviceConfig) -> Result<(), Error> {
        if self.about.board == Board::None {
            // In QEMU's words.
            return Err(Error::new(format_args!(
                "No 'PCI' bus found for device '{}'",
                device.name
            )));
        }
        self.plug(&device).map_err(Error::new)
    }

    fn unplug(&self, path: &str) -> Result<(), Error> {
        Err(Error::device_not_found(path))
    }

    fn backends(&self) -> &Mutex<Backends> {
        &self.backends
    }
}

fn view(plugged: &Plugged) -> DeviceView {
    let parent = match plugged.place() {
        Place::Slot(_) => None,
        Place::Child { parent, .. } => Some(parent.path().to_owned()),
    };
    DeviceView {
        driver: plugged.config().name.clone(),
        id: plugged.id().map(str::to_owned),
        path: plugged.path().to_owned(),
        address: plugged.slot().map(|slot| slot.address),
        parent,
        options: plugged.config().options.clone(),
        control: plugged.control(),
        hotplugged: false,
    }
}
