//! The machine's own thread: starts it, resets it, feeds its serial port, and puts it away.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::platform::Cmos;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_bindings::kvm_sregs;

use super::fixed::{self, ELCR, Platform};
use super::serial_feed::SerialFeed;
use super::{Outcome, Shared, StartError};
use crate::boot::{self, BootConfig, cpu_state};
use crate::config::PciResources;
use crate::kvm::Vm;
use crate::kvm::vcpu::{EntryState, Vcpu};
use crate::memory::Ram;

/// How long the far end of the serial port may take for the last bytes when the guest has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the machine's thread owns.
pub(super) struct MainLoop {
    pub shared: Arc<Shared>,
    pub vm: Vm,
    pub ram: Ram,
    pub boot: BootConfig,
    /// The boot CPU's system registers at power-on.
    pub sregs: kvm_sregs,
    pub pci_resources: PciResources,
    pub start_paused: bool,
    pub platform: Platform,
}

impl MainLoop {
    /// Brings chips, board and memory into the state in which firmware hands over to the kernel.
    pub(super) fn power_on(&mut self) -> Result<(), StartError> {
        self.vm.reset_chips(ELCR)?;
        self.shared.remote.inventory().reset();
        fixed::firmware_setup(self.shared.board(), self.ram.layout(), self.pci_resources)?;
        let entry = boot::prepare(&self.boot, self.ram.memory())?;
        let regs = cpu_state::registers(&entry);
        let sregs = cpu_state::special_registers(&entry, &self.sregs);
        self.shared.set_entry(EntryState { regs, sregs });
        Ok(())
    }

    /// Serves until the machine is over, then joins the CPU threads.
    pub(super) fn run(mut self, cpus: Vec<JoinHandle<Vcpu>>) {
        self.shared.remote.start(self.start_paused);
        if let Err(error) = self.serve() {
            let failed = Outcome::Failed(format!("event loop: {error}"));
            self.shared.remote.control.end(failed);
        }
        let control = &self.shared.remote.control;
        control.wait_for_cpus();
        control.forget_kicks();
        for cpu in cpus {
            // A panicked thread has ended the machine with a message of its own.
            let _ = cpu.join();
        }
        self.shared.keep_given_back();
        self.shared.remote.inventory().clear();
        lock(&self.platform.serial).close_output(LAST_WORDS);
    }

    fn serve(&mut self) -> Result<(), event_manager::Error> {
        let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
        manager.add_subscriber(Box::new(Wake(self.shared.clone())));
        manager.add_subscriber(Box::new(ClockTimer(self.platform.cmos.clone())));
        if let Some(feed) = SerialFeed::new(&self.shared, &mut self.platform) {
            manager.add_subscriber(Box::new(feed));
        }
        let shared = Arc::clone(&self.shared);
        while !shared.remote.control.is_over() {
            manager.run()?;
            match shared.remote.attend(|| self.power_on()) {
                Ok(false) => {}
                Ok(true) => {
                    shared.resets.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => shared.remote.control.end(Outcome::Failed(error.to_string())),
            }
        }
        Ok(())
    }
}

/// Ends the loop's wait; what to do is in the remote's state.
struct Wake(Arc<Shared>);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.remote.wake().read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Registering a fresh descriptor fails only when the kernel is out of memory; the loop then waits for the other events.
        let _ = ops.add(Events::new(self.0.remote.wake(), EventSet::IN));
    }
}

/// The clock's alarms and periodic interrupts.
struct ClockTimer(Arc<Mutex<Cmos>>);

impl MutEventSubscriber for ClockTimer {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        lock(&self.0).timer_expired();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let fd = lock(&self.0).timer_fd();
        let _ = ops.add(Events::new_raw(fd, EventSet::IN));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
