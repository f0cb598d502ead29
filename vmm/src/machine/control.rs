//! The life of a running machine: who may run, who waits, and how it ended.
//!
//! The machine's own thread decides; CPU threads and the user ask. A CPU thread looks at the phase only when it was kicked or asked for
//! something itself, so running costs nothing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::platform::MachineRequest;
use vmm_sys_util::eventfd::EventFd;

use super::Outcome;
use crate::kvm::vcpu::Kick;

/// How long to wait for CPUs before kicking them again: a signal may come just before a blocking system call.
const KICK_AGAIN: Duration = Duration::from_millis(10);

/// What a CPU thread is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Run the guest; the CPU's state is to be reset first when the number is not that of its last pass.
    Run {
        /// Counts the starts of the machine.
        epoch: u64,
    },
    /// Leave the thread.
    Leave,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    /// CPUs wait, the machine's thread works.
    Held,
    Over,
}

struct State {
    phase: Phase,
    epoch: u64,
    cpus: usize,
    waiting: usize,
    reset_wanted: bool,
    outcome: Option<Outcome>,
}

/// Shared by all threads of one machine.
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    kicks: Mutex<Vec<Kick>>,
    wake: EventFd,
    end_at_reset: bool,
}

impl Control {
    /// For a machine of `cpus` CPU threads that is about to start. With `end_at_reset`, a guest's reset ends it.
    ///
    /// # Errors
    /// No event descriptor could be had.
    pub fn new(cpus: usize, end_at_reset: bool) -> std::io::Result<Self> {
        let state = State {
            phase: Phase::Held,
            epoch: 0,
            cpus,
            waiting: 0,
            reset_wanted: false,
            outcome: None,
        };
        Ok(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            kicks: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            end_at_reset,
        })
    }

    /// Becomes readable when the machine's thread has something to do.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Lets the CPU threads be kicked. Each calls it once, before its first [`Self::gate`].
    pub fn add_kick(&self, kick: Kick) {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner).push(kick);
    }

    /// Nobody is kicked any more. Called when every CPU thread is about to leave, before it is joined.
    pub fn forget_kicks(&self) {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What the guest asked for by a port write.
    pub fn request(&self, request: MachineRequest) {
        match request {
            MachineRequest::PowerOff => self.end(Outcome::PowerOff),
            MachineRequest::DebugExit(value) => self.end(Outcome::DebugExit(value)),
            MachineRequest::Reset if self.end_at_reset => self.end(Outcome::Reset),
            MachineRequest::Reset => {
                self.lock().reset_wanted = true;
                self.hold();
            }
        }
    }

    /// Ends the machine. The first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.outcome.get_or_insert(outcome);
        state.phase = Phase::Over;
        drop(state);
        self.notify();
    }

    /// Makes the CPUs wait at the gate.
    fn hold(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Held;
        }
        drop(state);
        self.notify();
    }

    fn notify(&self) {
        self.changed.notify_all();
        self.kick();
        // A full counter is readable, too.
        let _ = self.wake.write(1);
    }

    fn kick(&self) {
        self.kicks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(Kick::kick);
    }

    /// A CPU thread waits here until it may run or must leave.
    pub fn gate(&self) -> Gate {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.phase == Phase::Held {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.phase == Phase::Over {
            return Gate::Leave;
        }
        state.waiting -= 1;
        Gate::Run { epoch: state.epoch }
    }

    /// The machine's thread waits here until every CPU waits at the gate or has left. CPUs that are elsewhere are kicked.
    pub fn wait_for_cpus(&self) {
        let mut state = self.lock();
        while state.waiting < state.cpus {
            state = self
                .changed
                .wait_timeout(state, KICK_AGAIN)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.waiting < state.cpus {
                drop(state);
                self.kick();
                state = self.lock();
            }
        }
    }

    /// Takes the guest's wish for a reset.
    pub fn take_reset(&self) -> bool {
        std::mem::take(&mut self.lock().reset_wanted)
    }

    /// Starts the CPUs anew, each from its state at power-on.
    pub fn start(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Held {
            state.phase = Phase::Running;
            state.epoch += 1;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// How the machine ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// Is it over?
    pub fn is_over(&self) -> bool {
        self.lock().phase == Phase::Over
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn the_first_outcome_counts() {
        let control = Control::new(0, false).unwrap();
        control.request(MachineRequest::PowerOff);
        control.end(Outcome::TripleFault);
        assert_eq!(control.outcome(), Some(Outcome::PowerOff));
    }

    #[test]
    fn a_reset_ends_a_machine_that_does_not_reboot() {
        let control = Control::new(0, true).unwrap();
        control.request(MachineRequest::Reset);
        assert_eq!(control.outcome(), Some(Outcome::Reset));
    }

    #[test]
    fn a_reset_holds_the_cpus_and_starts_them_in_a_new_epoch() {
        let control = Arc::new(Control::new(1, false).unwrap());
        let cpu = {
            let control = Arc::clone(&control);
            thread::spawn(move || {
                let mut epochs = Vec::new();
                while let Gate::Run { epoch } = control.gate() {
                    epochs.push(epoch);
                    if epochs.len() == 1 {
                        control.request(MachineRequest::Reset);
                    } else {
                        control.request(MachineRequest::PowerOff);
                    }
                }
                epochs
            })
        };
        control.wait_for_cpus();
        control.start();
        while !control.take_reset() {
            thread::yield_now();
        }
        control.wait_for_cpus();
        control.start();
        assert_eq!(cpu.join().unwrap(), [1, 2]);
        assert_eq!(control.outcome(), Some(Outcome::PowerOff));
    }
}
