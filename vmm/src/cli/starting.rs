//! Signals that come while a guest is being started: much of that may wait for somebody else, a client or a backend.

use std::io;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::exit;
use crate::signals::Signals;

/// While it lives, a signal ends the process at once. It is to go before the terminal is changed and the guest runs.
pub(super) struct Starting {
    over: EventFd,
    watcher: Option<JoinHandle<()>>,
}

impl Starting {
    /// Begins to watch. `leave` is called before a signal ends the process.
    ///
    /// # Errors
    /// The host has no descriptors or threads left.
    pub(super) fn watch(signals: &Signals, leave: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let over = EventFd::new(EFD_CLOEXEC)?;
        let (signals, heard) = (signals.try_clone()?, over.try_clone()?);
        let watch = move || {
            if let Some(signal) = signals.wait_unless(&heard, || ()) {
                leave();
                std::process::exit(exit::of_signal(signal).into());
            }
        };
        let watcher = thread::Builder::new().name("starting".into()).spawn(watch)?;
        Ok(Self {
            over,
            watcher: Some(watcher),
        })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // An event descriptor that was never written takes a one.
        let _ = self.over.write(1);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}
