//! What can be asked of a machine from outside: what a monitor's commands come down to. It is the same with and without CPUs.
//!
//! Whoever asks gets back when it is done, but for a reset and for the end, which the machine's own thread brings about.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::platform::{MachineRequest, PmEvents};
use vmm_sys_util::eventfd::EventFd;

use super::Outcome;
use super::clock::Clockwork;
use super::control::{Control, RunState};
use super::events::{Cause, Event, Events};
use super::inventory::Inventory;

/// What the machine does of its own accord.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Policy {
    /// A reset ends the machine.
    pub end_at_reset: bool,
    /// A guest that switches itself off leaves the machine standing.
    pub keep_at_shutdown: bool,
    /// A CPU that meets an exception while it handles a double fault resets the machine, as in a PC; else that ends it.
    pub reset_at_triple_fault: bool,
}

/// Why a machine cannot run
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Resetting the Virtual Machine is required")]
pub struct ResetRequired;

/// A hand on one machine. Every thread may use it but those of its CPUs, which have [`Self::request`] alone.
pub struct Remote {
    pub(super) control: Control,
    inventory: Arc<Inventory>,
    power: PmEvents,
    clockwork: Option<Box<dyn Clockwork>>,
    policy: Policy,
    /// Held by who stops, starts or resets the machine.
    turn: Mutex<()>,
}

impl Remote {
    /// For a machine of `cpus` CPU threads with this inventory, whose ACPI events are `power`. It has not started.
    ///
    /// # Errors
    /// No event descriptor could be had.
    pub fn new(cpus: usize, inventory: Arc<Inventory>, power: PmEvents, policy: Policy) -> std::io::Result<Self> {
        Ok(Self {
            control: Control::new(cpus)?,
            inventory,
            power,
            clockwork: None,
            policy,
            turn: Mutex::default(),
        })
    }

    /// Makes `clockwork` stand still when the machine does.
    #[must_use]
    pub fn with_clockwork(self, clockwork: impl Clockwork + 'static) -> Self {
        let clockwork: Option<Box<dyn Clockwork>> = Some(Box::new(clockwork));
        Self { clockwork, ..self }
    }

    /// What is plugged in.
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.inventory
    }

    /// What happens to the machine.
    pub fn events(&self) -> &Events {
        self.inventory.events()
    }

    /// What the machine is doing.
    pub fn run_state(&self) -> RunState {
        self.control.run_state()
    }

    /// Stops the CPUs and the devices' queues. They stand still when this returns; a machine that does not run is left as it is.
    pub fn pause(&self) {
        let _turn = self.turn();
        self.stop(RunState::Paused);
    }

    fn stop(&self, why: RunState) {
        if !self.control.stop_running(why) {
            return;
        }
        self.control.wait_for_cpus();
        if let Some(clockwork) = &self.clockwork {
            clockwork.stop();
        }
        self.inventory.pause();
        self.events().emit(&Event::Stop);
    }

    /// Lets the machine run, (again) or for the first time. One that runs is left alone.
    ///
    /// # Errors
    /// The guest has switched itself off.
    pub fn resume(&self) -> Result<(), ResetRequired> {
        let _turn = self.turn();
        match self.control.run_state() {
            RunState::Running => {}
            RunState::Shutdown => return Err(ResetRequired),
            RunState::Prelaunch | RunState::Paused => {
                self.events().emit(&Event::Resume);
                self.inventory.resume();
                if let Some(clockwork) = &self.clockwork {
                    clockwork.go_on();
                }
                self.control.run();
            }
        }
        Ok(())
    }

    /// Resets the machine, soon.
    pub fn reset(&self) {
        self.ask_for_reset(Cause::HostQmpSystemReset);
    }

    fn ask_for_reset(&self, cause: Cause) {
        if self.policy.end_at_reset {
            self.shut_down(cause, Outcome::Reset);
        } else {
            self.control.wish(|wishes| wishes.reset = Some(cause));
        }
    }

    /// Presses the power button: asks the guest to switch itself off. Many guests do nothing.
    pub fn press_power_button(&self) {
        self.events().emit(&Event::PowerDown);
        self.power.press_power_button();
    }

    /// Gives every CPU that listens a non-maskable interrupt.
    pub fn inject_nmi(&self) {
        self.control.inject_nmi();
    }

    /// Ends the machine, as pulling the plug does.
    pub fn quit(&self, cause: Cause) {
        if self.control.announce_end() {
            self.events().emit(&Event::Shutdown(cause));
        }
        self.control.end(Outcome::Quit);
    }

    /// What the guest asked for by a port write. A CPU thread goes to its gate afterwards.
    pub fn request(&self, request: MachineRequest) {
        match request {
            MachineRequest::PowerOff => self.shut_down(Cause::GuestShutdown, Outcome::PowerOff),
            MachineRequest::DebugExit(value) => self.control.end(Outcome::DebugExit(value)),
            MachineRequest::Reset => self.ask_for_reset(Cause::GuestReset),
            MachineRequest::Eject { slot } => self.inventory.eject(slot),
        }
    }

    /// A CPU met an exception while it handled a double fault.
    pub(super) fn triple_fault(&self) {
        if self.policy.reset_at_triple_fault {
            self.ask_for_reset(Cause::GuestReset);
        } else {
            self.control.end(Outcome::TripleFault);
        }
    }

    fn shut_down(&self, cause: Cause, outcome: Outcome) {
        if self.control.announce_end() {
            self.events().emit(&Event::Shutdown(cause));
        }
        if self.policy.keep_at_shutdown {
            self.control.wish(|wishes| wishes.halt = true);
        } else {
            self.control.end(outcome);
        }
    }

    /// Becomes readable when there is something to [attend](Self::attend) to.
    pub fn wake(&self) -> &EventFd {
        self.control.wake()
    }

    /// How the machine ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.control.outcome()
    }

    /// Lets the machine start, after it was brought into its state at power-on; paused if the user wants so.
    pub fn start(&self, paused: bool) {
        self.control.start_over();
        self.control.release();
        if !paused {
            // It has not been shut down.
            let _ = self.resume();
        }
    }

    /// Does what was asked of the machine's own thread since the last call. `power_on` brings everything into its state at power-on.
    /// Says whether there was a reset.
    ///
    /// # Errors
    /// Those of `power_on`.
    pub fn attend<E>(&self, power_on: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        let _ = self.control.wake().read();
        let wishes = self.control.take_wishes();
        let _turn = self.turn();
        if wishes.halt {
            self.stop(RunState::Shutdown);
        }
        if let Some(cause) = wishes.reset {
            self.control.wait_for_cpus();
            if !self.control.is_over() {
                power_on()?;
                self.events().emit(&Event::Reset(cause));
                self.control.start_over();
            }
        }
        if wishes.halt || wishes.reset.is_some() {
            self.control.release();
        }
        Ok(wishes.reset.is_some())
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::inventory::testing;
    use devices::platform::{AcpiPm, PortDevice};
    use std::convert::Infallible;
    use std::sync::mpsc::{self, Receiver};
    use std::thread::{self, JoinHandle};

    use super::super::control::Gate;

    struct NoLine;

    impl pci::InterruptLine for NoLine {
        fn set_level(&self, _: bool) {}
    }

    struct Machine {
        remote: Arc<Remote>,
        pm: AcpiPm,
        events: Receiver<Event>,
        cpu: JoinHandle<()>,
    }

    impl Machine {
        /// A machine of one CPU, which asks for `requests` one after another and then spins.
        fn new(policy: Policy, requests: &[MachineRequest]) -> Self {
            let pm = AcpiPm::new(Arc::new(NoLine));
            let remote = Remote::new(1, Arc::new(testing::inventory()), pm.events(), policy).unwrap();
            let (sender, events) = mpsc::channel();
            remote
                .events()
                .subscribe(move |event| sender.send(event.clone()).is_ok());
            let remote = Arc::new(remote);
            let (cpus, requests) = (Arc::clone(&remote), requests.to_vec());
            let cpu = thread::spawn(move || {
                let mut requests = requests.into_iter();
                while let Gate::Run(_) = cpus.control.gate() {
                    match requests.next() {
                        Some(request) => cpus.request(request),
                        None => thread::yield_now(),
                    }
                }
            });
            Self {
                remote,
                pm,
                events,
                cpu,
            }
        }

        fn start(policy: Policy, requests: &[MachineRequest]) -> Self {
            let machine = Self::new(policy, requests);
            machine.remote.start(false);
            machine
        }

        /// Attends as the machine's thread does, until there is an event, `last`.
        fn events_until(&self, last: &Event) -> Vec<Event> {
            let mut events = Vec::new();
            while events.last() != Some(last) {
                self.attend();
                events.extend(self.events.try_iter());
            }
            events
        }

        fn attend(&self) {
            let Ok(_) = self.remote.attend(|| Ok::<_, Infallible>(()));
        }

        /// Ends it, and says how it ended and what happened last.
        fn end(self) -> (Option<Outcome>, Vec<Event>) {
            self.remote.quit(Cause::HostQmpQuit);
            self.cpu.join().unwrap();
            (self.remote.outcome(), self.events.try_iter().collect())
        }
    }

    #[test]
    fn a_machine_stands_still_and_goes_on() {
        let machine = Machine::start(Policy::default(), &[]);
        let remote = &machine.remote;
        assert_eq!(remote.run_state(), RunState::Running);
        remote.pause();
        remote.pause();
        assert_eq!(remote.run_state(), RunState::Paused);
        remote.resume().unwrap();
        remote.resume().unwrap();
        let events: Vec<_> = machine.events.try_iter().collect();
        assert_eq!(events, [Event::Resume, Event::Stop, Event::Resume]);
        let quit = Event::Shutdown(Cause::HostQmpQuit);
        assert_eq!(machine.end(), (Some(Outcome::Quit), vec![quit]));
    }

    #[test]
    fn a_machine_that_is_started_paused_waits_for_the_word() {
        let machine = Machine::new(Policy::default(), &[MachineRequest::PowerOff]);
        machine.remote.start(true);
        machine.attend();
        assert_eq!(machine.remote.run_state(), RunState::Prelaunch);
        machine.remote.pause();
        assert_eq!(machine.remote.run_state(), RunState::Prelaunch);
        machine.remote.resume().unwrap();
        machine.cpu.join().unwrap();
        assert_eq!(machine.remote.outcome(), Some(Outcome::PowerOff));
        let events: Vec<_> = machine.events.try_iter().collect();
        assert_eq!(events, [Event::Resume, Event::Shutdown(Cause::GuestShutdown)]);
    }

    #[test]
    fn a_reset_leaves_a_running_machine_running_and_a_paused_one_before_its_launch() {
        let machine = Machine::start(Policy::default(), &[MachineRequest::Reset]);
        let reset = Event::Reset(Cause::GuestReset);
        assert_eq!(machine.events_until(&reset), [Event::Resume, reset.clone()]);
        assert_eq!(machine.remote.run_state(), RunState::Running);
        machine.remote.pause();
        machine.remote.reset();
        let reset = Event::Reset(Cause::HostQmpSystemReset);
        assert_eq!(machine.events_until(&reset), [Event::Stop, reset.clone()]);
        assert_eq!(machine.remote.run_state(), RunState::Prelaunch);
        machine.end();
    }

    #[test]
    fn a_reset_ends_a_machine_that_does_not_reboot() {
        let policy = Policy {
            end_at_reset: true,
            ..Policy::default()
        };
        let machine = Machine::start(policy, &[MachineRequest::Reset]);
        machine.cpu.join().unwrap();
        assert_eq!(machine.remote.outcome(), Some(Outcome::Reset));
        let events: Vec<_> = machine.events.try_iter().collect();
        assert_eq!(events, [Event::Resume, Event::Shutdown(Cause::GuestReset)]);
    }

    #[test]
    fn a_machine_that_is_kept_runs_again_only_after_a_reset() {
        let policy = Policy {
            keep_at_shutdown: true,
            ..Policy::default()
        };
        let machine = Machine::start(policy, &[MachineRequest::PowerOff]);
        let expected = [Event::Resume, Event::Shutdown(Cause::GuestShutdown), Event::Stop];
        assert_eq!(machine.events_until(&Event::Stop), expected);
        assert_eq!(machine.remote.run_state(), RunState::Shutdown);
        assert_eq!(machine.remote.resume(), Err(ResetRequired));
        machine.remote.reset();
        machine.events_until(&Event::Reset(Cause::HostQmpSystemReset));
        machine.remote.resume().unwrap();
        assert_eq!(machine.remote.run_state(), RunState::Running);
        machine.remote.quit(Cause::HostQmpQuit);
        machine.cpu.join().unwrap();
        let last = machine.events.try_iter().last();
        assert_eq!(last, Some(Event::Shutdown(Cause::HostQmpQuit)));
    }

    #[test]
    fn the_power_button_is_a_status_bit_and_an_event() {
        let mut machine = Machine::start(Policy::default(), &[]);
        machine.remote.press_power_button();
        let mut status = [0; 2];
        machine.pm.read(0, &mut status);
        assert_eq!(status, [0, 1]);
        assert!(machine.events.try_iter().any(|event| event == Event::PowerDown));
        machine.end();
    }

    #[test]
    fn a_triple_fault_ends_or_resets_the_machine() {
        let machine = Machine::start(Policy::default(), &[]);
        machine.remote.triple_fault();
        machine.cpu.join().unwrap();
        assert_eq!(machine.remote.outcome(), Some(Outcome::TripleFault));
        let policy = Policy {
            reset_at_triple_fault: true,
            ..Policy::default()
        };
        let machine = Machine::start(policy, &[]);
        machine.remote.triple_fault();
        machine.events_until(&Event::Reset(Cause::GuestReset));
        machine.end();
    }
}
