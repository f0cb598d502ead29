//! The gate of a machine's CPUs: who may run, who waits, and how it ended.
//!
//! A CPU thread looks at the gate only when it was kicked or asked for something itself, so running costs nothing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Outcome;
use super::events::Cause;
use crate::kvm::vcpu::Kick;

/// How long to wait for CPUs before kicking them again: a signal may come just before a blocking system call.
const KICK_AGAIN: Duration = Duration::from_millis(10);

/// What a machine is doing, by QEMU's names (qapi/run-state.json, `RunState`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// It has not run since it was started or reset.
    Prelaunch,
    /// Its CPUs run.
    Running,
    /// The user stopped it.
    Paused,
    /// The guest switched itself off, and the machine is kept. It runs again only after a reset.
    Shutdown,
}

impl RunState {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What happened while a CPU was elsewhere. A number that has changed since its last pass says what it has to do first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pass {
    /// Starts of the machine: the CPU's state is to be that of power-on.
    pub epoch: u64,
    /// Pauses: the guest is to be told, lest its watchdogs bark.
    pub pauses: u64,
    /// Non-maskable interrupts: it is to get one.
    pub nmis: u64,
}

/// What a CPU thread is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Run the guest.
    Run(Pass),
    /// Leave the thread.
    Leave,
}

/// What the machine's thread was asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Wishes {
    /// Stand still, because the guest switched itself off.
    pub halt: bool,
    /// Reset.
    pub reset: Option<Cause>,
}

impl Wishes {
    fn is_empty(self) -> bool {
        self == Self::default()
    }
}

struct State {
    run: RunState,
    /// CPUs wait because the machine's thread works, or has a wish to fulfil.
    held: bool,
    over: bool,
    /// The user was told that the guest is being switched off, and that has not come about yet.
    announced: bool,
    pass: Pass,
    cpus: usize,
    waiting: usize,
    wishes: Wishes,
    outcome: Option<Outcome>,
}

/// Shared by all threads of one machine.
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    kicks: Mutex<Vec<Kick>>,
    wake: EventFd,
}

impl Control {
    /// For a machine of `cpus` CPU threads that is about to start.
    ///
    /// # Errors
    /// No event descriptor could be had.
    pub fn new(cpus: usize) -> std::io::Result<Self> {
        let state = State {
            run: RunState::Prelaunch,
            held: true,
            over: false,
            announced: false,
            pass: Pass::default(),
            cpus,
            waiting: 0,
            wishes: Wishes::default(),
            outcome: None,
        };
        Ok(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            kicks: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
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

    /// What the machine is doing.
    pub fn run_state(&self) -> RunState {
        self.lock().run
    }

    /// Says whether this is the first to announce the machine's end.
    pub fn announce_end(&self) -> bool {
        !std::mem::replace(&mut self.lock().announced, true)
    }

    /// Ends the machine. The first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        self.change(|state| {
            state.outcome.get_or_insert(outcome);
            state.over = true;
        });
    }

    /// Makes the CPUs wait at the gate until the machine's thread has done what `wish` adds to its wishes.
    pub fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        self.change(|state| {
            wish(&mut state.wishes);
            state.held = true;
        });
    }

    /// Takes the wishes that there are.
    pub fn take_wishes(&self) -> Wishes {
        std::mem::take(&mut self.lock().wishes)
    }

    /// The machine's thread is done with what it took: CPUs may go on, unless there are new wishes.
    pub fn release(&self) {
        self.change(|state| state.held = !state.wishes.is_empty());
    }

    /// Lets every CPU begin at its state at power-on. A machine that does not run is as it was before its launch.
    pub fn start_over(&self) {
        let mut state = self.lock();
        state.pass.epoch += 1;
        state.announced = false;
        if state.run != RunState::Running {
            state.run = RunState::Prelaunch;
        }
    }

    /// Lets the CPUs run.
    pub fn run(&self) {
        self.change(|state| state.run = RunState::Running);
    }

    /// Makes the CPUs wait at the gate, in the state `why`. Says whether they ran before.
    pub fn stop_running(&self, why: RunState) -> bool {
        self.change(|state| {
            let ran = state.run == RunState::Running;
            if ran {
                state.run = why;
                state.pass.pauses += 1;
                state.announced = false;
            }
            ran
        })
    }

    /// Gives every CPU a non-maskable interrupt when it next runs.
    pub fn inject_nmi(&self) {
        self.change(|state| state.pass.nmis += 1);
    }

    /// Changes the state, and makes everyone look at it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        self.kick();
        // A full counter is readable, too.
        let _ = self.wake.write(1);
        result
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
        while !state.over && (state.held || state.run != RunState::Running) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.over {
            return Gate::Leave;
        }
        state.waiting -= 1;
        Gate::Run(state.pass)
    }

    /// A CPU thread will not come to the gate any more.
    pub fn lose_cpu(&self) {
        self.lock().waiting += 1;
        self.changed.notify_all();
    }

    /// Waits until every CPU waits at the gate or has left. CPUs that are elsewhere are kicked. Not for CPU threads.
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

    /// How the machine ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// Is it over?
    pub fn is_over(&self) -> bool {
        self.lock().over
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
        let control = Control::new(0).unwrap();
        control.end(Outcome::PowerOff);
        control.end(Outcome::TripleFault);
        assert_eq!(control.outcome(), Some(Outcome::PowerOff));
        assert!(control.is_over());
    }

    #[test]
    fn a_cpu_learns_at_the_gate_what_it_missed() {
        let control = Arc::new(Control::new(1).unwrap());
        let cpu = {
            let control = Arc::clone(&control);
            thread::spawn(move || {
                let mut passes = Vec::new();
                while let Gate::Run(pass) = control.gate() {
                    passes.push(pass);
                    control.wish(|wishes| wishes.halt = true);
                }
                passes
            })
        };
        control.wait_for_cpus();
        control.start_over();
        control.release();
        control.run();
        let wait_for_wish = || {
            while !control.take_wishes().halt {
                thread::yield_now();
            }
            control.wait_for_cpus();
        };
        wait_for_wish();
        assert!(control.stop_running(RunState::Paused));
        assert!(!control.stop_running(RunState::Shutdown), "it did not run");
        assert_eq!(control.run_state(), RunState::Paused);
        control.inject_nmi();
        control.release();
        control.run();
        wait_for_wish();
        control.end(Outcome::Quit);
        let pass = |pauses, nmis| Pass { epoch: 1, pauses, nmis };
        assert_eq!(cpu.join().unwrap(), [pass(0, 0), pass(1, 1)]);
    }

    #[test]
    fn a_wish_that_comes_while_the_last_is_fulfilled_holds_the_cpus_on() {
        let control = Control::new(0).unwrap();
        control.wish(|wishes| wishes.halt = true);
        control.take_wishes();
        control.wish(|wishes| wishes.reset = Some(Cause::GuestReset));
        control.release();
        assert!(control.lock().held);
        control.take_wishes();
        control.release();
        assert!(!control.lock().held);
    }
}
