//! A machine of ours as QMP sees it, with CPUs or without.

use std::sync::{Arc, Mutex, PoisonError};

use super::error::Error;
use super::event::{DeviceDeleted, Event, Shutdown, ShutdownCause};
use super::link::Monitors;
use super::target::{About, Order, RunState, Target};
use super::watch::watch;
use crate::machine::control;
use crate::machine::events::{self, Cause};
use crate::machine::inventory::Inventory;
use crate::machine::remote::Remote;
use crate::qemu::backends::Backends;

/// A machine, and what QMP's clients are told of it.
pub struct Managed {
    remote: Arc<Remote>,
    about: About,
    backends: Arc<Mutex<Backends>>,
}

impl Managed {
    /// The machine behind `remote`. Clients are told what `about` and `backends` say, and through `monitors` what happens to it.
    pub fn new(remote: Arc<Remote>, about: About, backends: Backends, monitors: &Monitors) -> Self {
        let told = monitors.clone();
        let backends = Arc::new(Mutex::new(backends));
        let drives = Arc::clone(&backends);
        remote.events().subscribe(move |event| {
            if let events::Event::DeviceDeleted { references, .. } = event
                && let Some(drive) = references.get("drive")
            {
                drives.lock().unwrap_or_else(PoisonError::into_inner).leave_drive(drive);
            }
            told.emit(as_told(event));
            true
        });
        for plugged in remote.inventory().list() {
            let backends = backends.lock().unwrap_or_else(PoisonError::into_inner);
            watch(&plugged, remote.inventory(), &backends, monitors);
        }
        Self {
            remote,
            about,
            backends,
        }
    }
}

impl Target for Managed {
    fn about(&self) -> &About {
        &self.about
    }

    fn run_state(&self) -> RunState {
        match self.remote.run_state() {
            control::RunState::Prelaunch => RunState::Prelaunch,
            control::RunState::Running => RunState::Running,
            control::RunState::Paused => RunState::Paused,
            control::RunState::Shutdown => RunState::Shutdown,
        }
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        match order {
            Order::Stop => self.remote.pause(),
            Order::Cont => self.remote.resume().map_err(Error::new)?,
            Order::Reset => self.remote.reset(),
            Order::Powerdown => self.remote.press_power_button(),
            Order::Quit => self.remote.quit(Cause::HostQmpQuit),
            Order::Nmi => self.remote.inject_nmi(),
        }
        Ok(())
    }

    fn inventory(&self) -> &Inventory {
        self.remote.inventory()
    }

    fn backends(&self) -> &Mutex<Backends> {
        &self.backends
    }
}

/// An event of the machine as clients are told of it.
fn as_told(event: &events::Event) -> Event {
    match event {
        events::Event::Stop => Event::Stop,
        events::Event::Resume => Event::Resume,
        events::Event::Reset(cause) => Event::Reset(shutdown(*cause)),
        events::Event::Shutdown(cause) => Event::Shutdown(shutdown(*cause)),
        events::Event::PowerDown => Event::Powerdown,
        events::Event::DeviceDeleted { id, path, .. } => Event::DeviceDeleted(DeviceDeleted {
            device: id.clone(),
            path: path.clone(),
        }),
    }
}

fn shutdown(cause: Cause) -> Shutdown {
    let reason = match cause {
        Cause::HostQmpQuit => ShutdownCause::HostQmpQuit,
        Cause::HostQmpSystemReset => ShutdownCause::HostQmpSystemReset,
        Cause::HostSignal => ShutdownCause::HostSignal,
        Cause::HostUi => ShutdownCause::HostUi,
        Cause::GuestShutdown => ShutdownCause::GuestShutdown,
        Cause::GuestReset => ShutdownCause::GuestReset,
    };
    Shutdown {
        guest: cause.is_guest(),
        reason,
    }
}
