//! A machine: QEMU's `pc` with its PCI bus, from configuration to end.

pub mod board;
pub mod clock;
pub mod console;
pub mod control;
mod cpu;
pub mod events;
mod fixed;
pub mod inventory;
mod main_loop;
pub mod remote;
mod serial_feed;
mod stats;
mod terminal_keys;
pub mod wiring;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use devices::platform::Serial;
use devices::threads;
use devices::virtio::balloon::GivenBack;
use devices::virtio::info::Control as DeviceControl;
use vmm_sys_util::eventfd::EventFd;

pub use control::RunState;
pub use fixed::FIXED_FUNCTIONS;
pub use stats::{ExitKind, Stats};
pub use terminal_keys::serial_buses;

use self::board::Board;
use self::clock::KvmClock;
use self::console::Console;
use self::events::Cause;
use self::fixed::Platform;
use self::inventory::{Inventory, PlugError, Plugged};
use self::main_loop::MainLoop;
use self::remote::{Policy, Remote};
use self::stats::ExitCounters;
use self::wiring::KvmWiring;
use crate::boot::{BootConfig, BootError, Image, tables};
use crate::config::{ConfigError, MachineConfig};
use crate::irq::{Lines, RouteError};
use crate::kvm::probe::{self, Ring0};
use crate::kvm::vcpu::{self, EntryState, Vcpu};
use crate::kvm::{self, KvmError, OpenError, Vm, cpuid};
use crate::memory::{Backing, Layout, Ram, RamError};

/// How a machine ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself, and the configuration says to end there.
    Reset,
    /// A CPU met an exception while it handled a double fault.
    TripleFault,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
    /// The user ended it.
    Quit,
    /// Something of the host failed, in one line.
    Failed(String),
}

/// Why a machine cannot start
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A figure of the configuration
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel, the initial RAM disk or the command line
    #[error(transparent)]
    Boot(#[from] BootError),
    /// /dev/kvm
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A call to KVM
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The host's KVM interprets kernel code
    #[error("{0}")]
    Ring0(Ring0),
    /// The table of interrupt routes
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// A device, or an I/O thread
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// A chip's place on the bus
    #[error(transparent)]
    Bus(#[from] pci::bus::BusError),
    /// A device's BARs
    #[error(transparent)]
    Resources(#[from] pci::resources::ResourceError),
    /// A descriptor or a thread
    #[error("the host gives no {what}: {source}; it may be short of memory or of descriptors (ulimit -n)")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl StartError {
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    /// Is it the user's to mend, by another command line or another file?
    pub fn is_users(&self) -> bool {
        match self {
            Self::Config(_) | Self::Boot(_) | Self::Bus(_) | Self::Resources(_) => true,
            Self::Plug(error) => !matches!(error, PlugError::IoThread(_)),
            _ => false,
        }
    }
}

/// What all threads of a machine share.
struct Shared {
    remote: Arc<Remote>,
    serial: Arc<Mutex<Serial>>,
    /// Registers for the boot CPU; set before every start.
    entry: Mutex<Option<EntryState>>,
    created: Instant,
    first_run: OnceLock<Instant>,
    resets: AtomicU64,
    exits: Vec<ExitCounters>,
    /// What balloons gave back, once they are gone.
    given_back: OnceLock<Vec<(String, GivenBack)>>,
}

/// A machine that has not started: memory, CPUs and devices are there.
pub struct Machine {
    shared: Arc<Shared>,
    vcpus: Vec<Vcpu>,
    main_loop: MainLoop,
}

impl Machine {
    /// Makes a machine as `config` says, with its first serial port on `serial`.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and what to do, in one line.
    pub fn new(config: MachineConfig, serial: Console) -> Result<Self, StartError> {
        let created = Instant::now();
        config.validate()?;
        let layout = Layout::new(config.memory).map_err(ConfigError::from)?;
        let boot = boot_config(&config, &layout)?;
        let kvm = kvm::open()?;
        let vm = Vm::new(&kvm)?;
        let ram = Ram::new(layout, Backing::of(&config))?;
        vm.map(ram.memory())?;
        let vcpus = create_cpus(&kvm, &vm, &ram, config.cpus)?;

        let lines = Lines::new(Arc::clone(vm.fd()) as _);
        let wiring = Arc::new(KvmWiring::new(Arc::clone(vm.fd()))?);
        let (platform, board) = Platform::new(&config, ram.layout(), &vm, lines, wiring, serial)?;
        let inventory = Inventory::new(Arc::new(board), Arc::new(ram.memory().clone()));
        let inventory = Arc::new(inventory.with_hotplug(platform.events.clone()));
        inventory.populate(&config)?;
        let policy = Policy {
            end_at_reset: config.end_at_reset,
            keep_at_shutdown: config.keep_at_shutdown,
            reset_at_triple_fault: config.reset_at_triple_fault,
        };
        let remote = Remote::new(vcpus.len(), inventory, platform.events.clone(), policy)
            .map_err(StartError::host("event descriptor"))?
            .with_clockwork(KvmClock::new(Arc::clone(vm.fd())));
        let remote = Arc::new(remote);
        terminal_keys::obey(&remote);
        let shared = Arc::new(Shared {
            remote,
            serial: Arc::clone(&platform.serial),
            entry: Mutex::default(),
            created,
            first_run: OnceLock::new(),
            resets: AtomicU64::new(0),
            exits: vcpus.iter().map(|_| ExitCounters::default()).collect(),
            given_back: OnceLock::new(),
        });
        let main_loop = MainLoop {
            shared: Arc::clone(&shared),
            vm,
            ram,
            boot,
            sregs: vcpus.first().map(Vcpu::power_on_sregs).unwrap_or_default(),
            pci_resources: config.pci_resources,
            start_paused: config.start_paused,
            platform,
        };
        Ok(Self {
            shared,
            vcpus,
            main_loop,
        })
    }

    /// What is plugged in.
    pub fn inventory(&self) -> &Inventory {
        self.shared.remote.inventory()
    }

    /// What can be asked of it once it runs.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.shared.remote
    }

    /// Loads the kernel and lets the CPUs run.
    ///
    /// # Errors
    /// The kernel does not fit, or the host gives no threads.
    pub fn start(mut self) -> Result<Running, StartError> {
        vcpu::install_kick_handler().map_err(|error| StartError::host("signal handler")(error.into()))?;
        self.main_loop.power_on()?;
        let ended =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(StartError::host("event descriptor"))?;
        let announce = ended.try_clone().map_err(StartError::host("event descriptor"))?;
        let mut cpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in self.vcpus {
            let shared = Arc::clone(&self.shared);
            let name = format!("cpu{}", vcpu.index());
            let thread = threads::spawn(name, move || {
                let index = vcpu.index() as usize;
                match shared.exits.get(index) {
                    Some(counters) => cpu::run(vcpu, &shared, counters),
                    None => vcpu,
                }
            });
            match thread {
                Ok(thread) => cpus.push(thread),
                Err(source) => {
                    self.shared.remote.control.end(Outcome::Quit);
                    return Err(StartError::Host {
                        what: "thread for a CPU",
                        source,
                    });
                }
            }
        }
        let main_loop = self.main_loop;
        let announce = Announce(announce);
        let thread = threads::spawn("machine", move || {
            let _announce = announce;
            main_loop.run(cpus);
        });
        let thread = thread.map_err(StartError::host("thread for the machine"))?;
        Ok(Running {
            shared: self.shared,
            thread: Some(thread),
            ended,
        })
    }
}

fn boot_config(config: &MachineConfig, layout: &Layout) -> Result<BootConfig, StartError> {
    Ok(BootConfig {
        kernel: Image::kernel(config.kernel.as_ref().ok_or(ConfigError::NoKernel)?)?,
        initrd: config.initrd.as_ref().map(Image::initrd).transpose()?,
        command_line: config.command_line.clone(),
        layout: *layout,
        platform: tables::Platform {
            keyboard: true,
            serial: config.serial_port,
            ..tables::Platform::new(config.cpus, layout)
        },
    })
}

/// Creates the CPUs, and sees on the first of them that this host's KVM can boot a kernel at all.
fn create_cpus(kvm: &kvm_ioctls::Kvm, vm: &Vm, ram: &Ram, count: u32) -> Result<Vec<Vcpu>, StartError> {
    let supported = cpuid::supported(kvm)?;
    let msrs = vcpu::resettable_msrs(kvm)?;
    let mut vcpus = Vec::with_capacity(count as usize);
    for index in 0..count {
        let mut vcpu = Vcpu::new(vm, index, &supported, count, &msrs)?;
        if index == 0 {
            match probe::ring0(vcpu.fd(), ram.memory())? {
                Ring0::Hardware { .. } => {}
                other => return Err(StartError::Ring0(other)),
            }
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Says that the machine's thread is done, whichever way it goes.
struct Announce(EventFd);

impl Drop for Announce {
    fn drop(&mut self) {
        // The counter was zero: the write cannot fail.
        let _ = self.0.write(1);
    }
}

/// A machine whose guest runs. Dropping it ends the guest.
pub struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    ended: EventFd,
}

impl Running {
    /// Ends the guest, as pulling the plug does. [`Self::wait`] says when that is done.
    pub fn stop(&self) {
        self.shared.remote.quit(Cause::HostSignal);
    }

    /// What can be asked of it.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.shared.remote
    }

    /// Readable when the guest has ended.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn ended(&self) -> io::Result<EventFd> {
        self.ended.try_clone()
    }

    /// The figures so far.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Waits until the guest has ended and everything of it is put away.
    pub fn wait(mut self) -> (Outcome, Stats) {
        self.join();
        let outcome = self.shared.remote.outcome().unwrap_or(Outcome::Quit);
        (outcome, self.shared.stats())
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.remote.control.end(Outcome::Failed(
                "the machine's thread panicked; this is a defect in Innkeeper".into(),
            ));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.remote.control.end(Outcome::Quit);
        self.join();
    }
}

impl Shared {
    fn board(&self) -> &Board {
        self.remote.inventory().board()
    }

    fn set_entry(&self, entry: EntryState) {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        stats.devices = self.board().accesses();
        stats.interrupts = self.board().lines().raised();
        stats.messages = self.board().messages();
        for counters in &self.exits {
            stats.add_exits(counters);
        }
        if let Some(first_run) = self.first_run.get() {
            stats.first_run = Some(first_run.duration_since(self.created));
            stats.running = first_run.elapsed();
            let first_byte = self
                .serial
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .stats()
                .first_byte;
            stats.first_console_byte = first_byte.map(|at| at.duration_since(*first_run));
        }
        stats.resets = self.resets.load(Ordering::Relaxed);
        stats.given_back = self.given_back.get().cloned().unwrap_or_else(|| self.balloons());
        stats
    }

    /// What each balloon has given back, by its name.
    fn balloons(&self) -> Vec<(String, GivenBack)> {
        let given_back = |plugged: Arc<Plugged>| {
            let name = plugged.id().unwrap_or(plugged.driver()).to_owned();
            match plugged.control() {
                DeviceControl::Balloon(balloon) => Some((name, balloon.given_back())),
                _ => None,
            }
        };
        self.remote
            .inventory()
            .list()
            .into_iter()
            .filter_map(given_back)
            .collect()
    }

    /// The devices are about to go: what they say of themselves is kept for [`Self::stats`].
    fn keep_given_back(&self) {
        // Once, because devices go once.
        let _ = self.given_back.set(self.balloons());
    }
}
