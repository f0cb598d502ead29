//! What happens to a machine, told to whoever wants to know.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::virtio::options::Pairs;

/// Why a machine was reset or switched off: QEMU's `ShutdownCause` (qapi/run-state.json), as far as it can come about here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The monitor's `quit`.
    HostQmpQuit,
    /// The monitor's `system_reset`.
    HostQmpSystemReset,
    /// A signal.
    HostSignal,
    /// The user at the console.
    HostUi,
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest reset itself.
    GuestReset,
}

impl Cause {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostQmpQuit => "host-qmp-quit",
            Self::HostQmpSystemReset => "host-qmp-system-reset",
            Self::HostSignal => "host-signal",
            Self::HostUi => "host-ui",
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
        }
    }

    /// Was it the guest?
    pub fn is_guest(self) -> bool {
        matches!(self, Self::GuestShutdown | Self::GuestReset)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Something that happened to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It stands still from now on.
    Stop,
    /// It is about to run (again).
    Resume,
    /// It was reset.
    Reset(Cause),
    /// It is being switched off.
    Shutdown(Cause),
    /// Its power button was pressed.
    PowerDown,
    /// A device is gone; its id and its backend are free again.
    DeviceDeleted {
        /// What the user called it.
        id: Option<String>,
        /// Its path in the tree of objects.
        path: String,
        /// What its options referred to by name; nothing of what is only a part of a device.
        references: Pairs,
    },
}

/// Takes an event; says whether it wants more of them.
type Subscriber = Box<dyn FnMut(&Event) -> bool + Send>;

/// The subscribers of one machine.
#[derive(Default)]
pub struct Events(Mutex<Vec<Subscriber>>);

impl Events {
    /// Calls `subscriber` with everything that happens from now on, until it returns false. It is called by any thread, that of a CPU
    /// too: it must not wait, and not ask anything of the machine.
    pub fn subscribe(&self, subscriber: impl FnMut(&Event) -> bool + Send + 'static) {
        self.subscribers().push(Box::new(subscriber));
    }

    /// Tells everyone.
    pub fn emit(&self, event: &Event) {
        self.subscribers().retain_mut(|subscriber| subscriber(event));
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_subscriber_is_called_in_order_until_it_has_enough() {
        let events = Events::default();
        let (sender, receiver) = mpsc::channel();
        events.emit(&Event::Resume);
        events.subscribe(move |event| {
            sender.send(event.clone()).unwrap();
            *event != Event::Stop
        });
        for event in [Event::PowerDown, Event::Stop, Event::Resume] {
            events.emit(&event);
        }
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [Event::PowerDown, Event::Stop]);
    }
}
