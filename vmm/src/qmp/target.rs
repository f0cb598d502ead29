//! The machine as management sees it. QMP asks nothing else of it, so that it can be tested without one.

use std::sync::Mutex;

use devices::virtio::info;
use devices::virtio::options::Pairs;
use pci::{Address, Bus};

use super::error::Error;
use super::schema::enumerations;
use crate::config::DeviceConfig;
use crate::qemu::backends::Backends;

enumerations! {
    /// What a machine is doing.
    pub enum RunState {
        /// Its CPUs wait for the first `cont`.
        Prelaunch = "prelaunch",
        /// Its CPUs run.
        Running = "running",
        /// Its CPUs wait for `cont`.
        Paused = "paused",
        /// The guest has switched itself off, and the machine was told to stay.
        Shutdown = "shutdown",
        /// The guest panicked.
        GuestPanicked = "guest-panicked",
        /// The host failed.
        InternalError = "internal-error",
        /// A disk's backend failed.
        IoError = "io-error",
    }
}

/// Which of QEMU's machines it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Board {
    /// Nothing but memory.
    None,
    /// The i440FX.
    #[default]
    Pc,
}

impl Board {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Pc, Self::None];

    /// Its whole name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pc => "pc-i440fx-7.2",
        }
    }
}

/// A CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cpu {
    /// The host's thread that runs it; that of the process where it has none.
    pub thread: i64,
    /// Its place among sockets, among the socket's cores, and among the core's threads.
    pub place: [u32; 3],
}

/// An I/O thread.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IoThreadView {
    /// Its name.
    pub id: String,
    /// The host's number for it.
    pub thread: i64,
    /// Nanoseconds that it looks for work before it sleeps, at most.
    pub poll_max_ns: u64,
}

/// What does not change while a machine lives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct About {
    /// The user's name for it.
    pub name: Option<String>,
    /// Its UUID, in the usual spelling.
    pub uuid: Option<String>,
    /// Which machine.
    pub board: Board,
    /// Does KVM run its CPUs? Else nothing does.
    pub kvm: bool,
    /// Its CPU's model, `host` or `max`.
    pub cpu_model: String,
    /// Its CPUs.
    pub cpus: Vec<Cpu>,
    /// Bytes of guest memory.
    pub memory: u64,
    /// May other processes map that memory?
    pub memory_shared: bool,
    /// The object that it comes from, if the user named one.
    pub memory_backend: Option<String>,
    /// Its I/O threads.
    pub io_threads: Vec<IoThreadView>,
}

/// A device that management can name.
#[derive(Clone)]
pub struct DeviceView {
    /// The name that the user added it by, as `virtio-blk-pci`.
    pub driver: String,
    /// The user's name for it.
    pub id: Option<String>,
    /// Its place in the tree of objects: `/machine/peripheral/ID`, or `/machine/peripheral-anon/device[N]`.
    pub path: String,
    /// Its place on the bus, unless it sits on another device.
    pub address: Option<Address>,
    /// The path of the device that it sits on.
    pub parent: Option<String>,
    /// Its options as the user wrote them, references resolved.
    pub options: Pairs,
    /// What can be asked of it.
    pub control: info::Control,
    /// Was it added while the machine ran?
    pub hotplugged: bool,
}

impl DeviceView {
    /// What messages call it: its id, or its path.
    pub fn label(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.path)
    }

    /// The path of the virtio device behind its transport.
    pub fn backend_path(&self) -> String {
        format!("{}/virtio-backend", self.path)
    }
}

/// What a machine can be told to do at any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// CPUs and devices stand still.
    Stop,
    /// They run.
    Cont,
    /// Back to the state at power-on.
    Reset,
    /// The guest is asked to switch itself off.
    Powerdown,
    /// It ends at once.
    Quit,
    /// Every CPU gets a non-maskable interrupt.
    Nmi,
}

/// A machine.
pub trait Target: Send + Sync {
    /// What does not change.
    fn about(&self) -> About;

    /// What it is doing.
    fn run_state(&self) -> RunState;

    /// Tells it to do something. Events come when it is done.
    ///
    /// # Errors
    /// It cannot be done now.
    fn order(&self, order: Order) -> Result<(), Error>;

    /// Its PCI bus, if it has one.
    fn pci(&self) -> Option<&Bus>;

    /// All devices that the user added, in their order.
    fn devices(&self) -> Vec<DeviceView>;

    /// Adds a device.
    ///
    /// # Errors
    /// What the user got wrong, or the host refused.
    fn plug(&self, device: DeviceConfig) -> Result<(), Error>;

    /// Asks the guest to let the device at `path` go, or takes it away if the guest has no say.
    ///
    /// # Errors
    /// It cannot be removed.
    fn unplug(&self, path: &str) -> Result<(), Error>;

    /// What devices can refer to.
    fn backends(&self) -> &Mutex<Backends>;
}
