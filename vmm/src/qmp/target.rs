//! The machine as management sees it. QMP asks nothing else of it, so that machines without a processor answer too, and tests.

use std::sync::{Arc, Mutex};

use devices::virtio::options::Pairs;

use super::error::Error;
use super::schema::enumerations;
use crate::machine::inventory::{Inventory, Place, Plugged};
use crate::qemu::backends::Backends;

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

    /// Its type in QEMU's object model.
    pub fn type_name(self) -> String {
        format!("{}-machine", self.name())
    }
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
    /// The place of each CPU among sockets, among the socket's cores, and among the core's threads.
    pub cpus: Vec<[u32; 3]>,
    /// Bytes of guest memory.
    pub memory: u64,
    /// May other processes map that memory?
    pub memory_shared: bool,
    /// The object that it comes from, if the user named one.
    pub memory_backend: Option<String>,
}

impl About {
    /// A machine of `cpus` CPUs, cores of one socket as QEMU has them by default, and `memory` bytes.
    pub fn new(cpus: u32, memory: u64) -> Self {
        Self {
            kvm: true,
            cpu_model: "host".to_owned(),
            cpus: (0..cpus).map(|core| [0, core, 0]).collect(),
            memory,
            ..Self::default()
        }
    }
}

enumerations! {
    /// What a machine is doing.
    pub enum RunState {
        /// Its CPUs wait for the first `cont`.
        Prelaunch = "prelaunch",
        /// It runs.
        Running = "running",
        /// It stands still until `cont`.
        Paused = "paused",
        /// The guest has switched itself off, and the machine was told to stay.
        Shutdown = "shutdown",
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
    fn about(&self) -> &About;

    /// What it is doing.
    fn run_state(&self) -> RunState;

    /// Tells it to do something. Events come when it is done.
    ///
    /// # Errors
    /// It cannot be done now.
    fn order(&self, order: Order) -> Result<(), Error>;

    /// What is plugged in.
    fn inventory(&self) -> &Inventory;

    /// What devices can refer to.
    fn backends(&self) -> &Mutex<Backends>;
}

/// The device that management calls `name`: its id, its path, or the path of the virtio device behind its transport.
///
/// # Errors
/// There is none.
pub fn find_device(target: &dyn Target, name: &str) -> Result<Arc<Plugged>, Error> {
    let path = name.strip_suffix(BEHIND_TRANSPORT).unwrap_or(name);
    let named = |plugged: &Arc<Plugged>| plugged.id() == Some(name) || plugged.path() == path;
    let found = target.inventory().list().into_iter().find(named);
    found.ok_or_else(|| Error::device_not_found(name))
}

/// Where the virtio device is below its transport.
const BEHIND_TRANSPORT: &str = "/virtio-backend";

/// What management says of a device.
pub trait Shown {
    /// What messages call it: its id, or its path.
    fn label(&self) -> &str;
    /// The path of the virtio device: behind the transport of a function.
    fn backend_path(&self) -> String;
    /// The name of the thing that `property` refers to.
    fn reference(&self, property: &str) -> Option<&str>;
    /// Its options as the user wrote them.
    fn pairs(&self) -> &Pairs;
}

impl Shown for Plugged {
    fn label(&self) -> &str {
        self.id().unwrap_or(self.path())
    }

    fn backend_path(&self) -> String {
        match self.place() {
            Place::Slot(_) => format!("{}{BEHIND_TRANSPORT}", self.path()),
            Place::Child { .. } => self.path().to_owned(),
        }
    }

    fn reference(&self, property: &str) -> Option<&str> {
        self.config().references.get(property)
    }

    fn pairs(&self) -> &Pairs {
        &self.config().options
    }
}
