//! What is plugged into a machine: devices on its bus, what sits on the buses of those, and the I/O threads that serve them. It is the
//! same with and without KVM.

mod hotplug;
mod plugged;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::io_thread::{IoThread, IoThreads, PollPolicy};
use devices::memory::GuestMemory;
use devices::platform::HotplugSlots;
use devices::timer::Timers;
use devices::virtio::info::{CHILDREN, ChildInfo, Control, Detach, Host, Order};
use devices::virtio::interrupt::MsixSender;
use devices::virtio::net::Networks;
use devices::virtio::options::{ConfigError, Options, Pairs};
use pci::bus::BusError;
use pci::intx::pirq;
use pci::{Address, Pin, host};

pub use hotplug::UnplugError;
pub use plugged::{Place, PlugError, Plugged, Slot};

use super::board::Board;
use super::events::Events;
use crate::config::{DeviceConfig, MachineConfig};
use crate::irq::Input;

/// What is known of a device that was added: its options, where it is, and what takes it off the bus of another.
type Added = (Options, Place, Option<Detach>);

/// The row of what sits on the bus of another device and is called `name`.
fn child_info(name: &str) -> Option<&'static ChildInfo> {
    CHILDREN.iter().find(|child| child.name == name).copied()
}

/// The name of the I/O thread that is there when the user names none.
const DEFAULT_IO_THREAD: &str = "io0";

/// All that is plugged into one machine.
pub struct Inventory {
    board: Arc<Board>,
    memory: Arc<GuestMemory>,
    events: Events,
    hotplug: Option<HotplugSlots>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In the order in which they came.
    plugged: Vec<Arc<Plugged>>,
    /// What takes devices off the buses of others, by their paths.
    detach: BTreeMap<String, Detach>,
    /// Devices without an id so far.
    nameless: usize,
    io_threads: Vec<IoThread>,
    /// For devices of a machine whose user named no thread.
    default_thread: Option<IoThread>,
    networks: Networks,
    timers: Timers,
    /// Queues stand still.
    paused: bool,
}

impl Inventory {
    /// Nothing is plugged into `board` yet. Devices reach the guest's RAM, `memory`.
    pub fn new(board: Arc<Board>, memory: Arc<GuestMemory>) -> Self {
        Self {
            board,
            memory,
            events: Events::default(),
            hotplug: None,
            state: Mutex::default(),
        }
    }

    /// Timers of devices are on another clock than the host's.
    #[must_use]
    pub fn with_timers(self, timers: Timers) -> Self {
        self.state().timers = timers;
        self
    }

    /// The board.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What happens to the machine.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Makes the I/O threads and plugs in the devices of `config`.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn populate(&self, config: &MachineConfig) -> Result<(), PlugError> {
        config.io_threads.iter().try_for_each(|name| self.add_io_thread(name))?;
        config.devices.iter().try_for_each(|device| self.plug(device).map(drop))
    }

    /// Builds a device and plugs it in. Its queues run when the guest's driver says so.
    ///
    /// # Errors
    /// [`PlugError`] says in one line what is wrong and what to do.
    pub fn plug(&self, config: &DeviceConfig) -> Result<Arc<Plugged>, PlugError> {
        let pairs = &config.options;
        let mut state = self.state();
        let (options, place, detach) = match child_info(&config.name) {
            Some(info) => self.attach(&mut state, info, pairs)?,
            None => self.insert(&mut state, &config.name, pairs)?,
        };
        let id = options.text("id").map(str::to_owned);
        let plugged = Arc::new(Plugged {
            path: state.path(id.as_deref()),
            id,
            config: config.clone(),
            options,
            place,
        });
        if let Some(detach) = detach {
            state.detach.insert(plugged.path.clone(), detach);
        }
        state.plugged.push(Arc::clone(&plugged));
        Ok(plugged)
    }

    /// Puts a device of the table into a slot.
    fn insert(&self, state: &mut State, name: &str, pairs: &Pairs) -> Result<Added, PlugError> {
        let order = Order::read(name, pairs)?;
        state.check_id(order.options())?;
        let address = self.address(order.options())?;
        let wiring = self.board.wiring();
        let sender = wiring.map_or_else(|| Arc::new(Nowhere) as _, |wiring| wiring.sender(address));
        let built = state
            .host(&self.memory)
            .and_then(|host| Ok(order.build(&host, sender)?));
        let created = built.inspect_err(|_| self.untie(address))?;
        if let Some(line) = self.board.lines().source(Input::Pirq(pirq(address.device(), Pin::A))) {
            created.function.connect_intx(line);
        }
        if let Some(wiring) = wiring {
            wiring.tie(address, created.function.doorbells());
        }
        let mut function = created.function;
        if state.paused {
            function.pause();
        }
        let function = Arc::new(Mutex::new(function));
        let added = self.board.pci().add(address, Arc::clone(&function) as _);
        added.inspect_err(|_| self.untie(address))?;
        let slot = Slot {
            address,
            info: order.info(),
            function,
            control: created.control,
        };
        Ok((order.options().clone(), Place::Slot(slot), None))
    }

    fn untie(&self, address: Address) {
        if let Some(wiring) = self.board.wiring() {
            wiring.untie(address);
        }
    }

    /// Where a device with these options goes.
    fn address(&self, options: &Options) -> Result<Address, PlugError> {
        let wanted = options.slot("addr");
        // No function here says that its slot has several, and a kernel's scan does not look behind function 0 then.
        if wanted.is_some_and(|slot| slot.function != 0) {
            let remedy = "give each device a slot of its own, such as addr=4";
            return Err(options.refused("addr= names a function other than 0", remedy).into());
        }
        let slot = wanted
            .map(|slot| slot.device)
            .or_else(|| self.board.pci().first_free_slot(host::FIRST_DEVICE_SLOT));
        let address = slot
            .and_then(|device| Address::new(0, device, 0))
            .ok_or_else(|| options.refused("the bus has no free slot", "use fewer devices"))?;
        match self.board.pci().get(address) {
            Some(_) => Err(BusError::Taken(address).into()),
            None => Ok(address),
        }
    }

    /// Puts what the table has as `info` on the bus of another device.
    fn attach(&self, state: &mut State, info: &'static ChildInfo, pairs: &Pairs) -> Result<Added, PlugError> {
        let options = info.read_options(pairs)?;
        state.check_id(&options)?;
        let parent = state.parent(info, &options)?;
        let detach = (info.attach)(&options, &parent.control(), &state.host(&self.memory)?)?;
        Ok((options, Place::Child { info, parent }, Some(detach)))
    }

    /// Everything that is plugged in, in the order in which it came.
    pub fn list(&self) -> Vec<Arc<Plugged>> {
        self.state().plugged.clone()
    }

    /// The device with this id or this path.
    pub fn find(&self, name: &str) -> Option<Arc<Plugged>> {
        self.state()
            .find(|plugged| plugged.id() == Some(name) || plugged.path() == name)
    }

    /// The device at `address`.
    pub fn at(&self, address: Address) -> Option<Arc<Plugged>> {
        self.state()
            .find(|plugged| plugged.slot().is_some_and(|slot| slot.address == address))
    }

    /// What can be asked of the device with this id or this path.
    pub fn control(&self, name: &str) -> Option<Control> {
        Some(self.find(name)?.control())
    }

    /// Makes an I/O thread that devices can name.
    ///
    /// # Errors
    /// There is one of that name, or the host gives no more.
    pub fn add_io_thread(&self, name: &str) -> Result<(), PlugError> {
        let mut state = self.state();
        if state.io_threads.iter().any(|thread| thread.name() == name) {
            let refused = ConfigError::refused("iothread", format_args!("duplicate id '{name}'"), "choose another");
            return Err(refused.into());
        }
        let thread = IoThread::spawn(name, PollPolicy::for_this_host()).map_err(PlugError::IoThread)?;
        state.io_threads.push(thread);
        Ok(())
    }

    /// Ends an I/O thread.
    ///
    /// # Errors
    /// There is none of that name, or a device may run on it.
    pub fn remove_io_thread(&self, name: &str) -> Result<(), PlugError> {
        let mut state = self.state();
        let refused =
            |problem: &str, remedy: &str| ConfigError::refused(format_args!("iothread '{name}'"), problem, remedy);
        let index = state.io_threads.iter().position(|thread| thread.name() == name);
        let index = index.ok_or_else(|| refused("there is no such I/O thread", "see the list of I/O threads"))?;
        if state.io_threads.get(index).is_some_and(IoThread::is_shared) {
            return Err(refused("it is in use", "unplug the devices that run on it first").into());
        }
        state.io_threads.remove(index);
        Ok(())
    }

    /// The I/O threads that the user named.
    pub fn io_threads(&self) -> Vec<IoThread> {
        self.state().io_threads.clone()
    }

    /// What the machine's network cards share.
    pub fn networks(&self) -> Networks {
        self.state().networks.clone()
    }

    /// Stops the queues of all devices, drained, until [`Self::resume`]; also those of devices that are plugged in meanwhile.
    pub fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        state.slots().for_each(|slot| slot.lock().pause());
    }

    /// Lets queues go on after [`Self::pause`].
    pub fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        state.slots().for_each(|slot| slot.lock().resume());
    }

    /// Takes everything out. Queues are stopped and drained, and backends closed, when this returns.
    pub fn clear(&self) {
        let mut state = self.state();
        std::mem::take(&mut state.detach)
            .into_values()
            .for_each(|detach| detach());
        let plugged = std::mem::take(&mut state.plugged);
        for slot in plugged.iter().rev().filter_map(|plugged| plugged.slot()) {
            self.board.remove(slot.address);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.plugged.iter().filter_map(|plugged| plugged.slot())
    }

    fn find(&self, wanted: impl Fn(&Plugged) -> bool) -> Option<Arc<Plugged>> {
        self.plugged.iter().find(|plugged| wanted(plugged)).cloned()
    }

    /// An id is a word that nothing else is called (QEMU, util/id.c, `id_wellformed`).
    fn check_id(&self, options: &Options) -> Result<(), ConfigError> {
        let Some(id) = options.text("id") else { return Ok(()) };
        let inner = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
        if !id.starts_with(|first: char| first.is_ascii_alphabetic()) || !id.chars().all(inner) {
            return Err(options.invalid(
                "id",
                id,
                "an identifier: a letter, then letters, digits, '-', '.' or '_'",
            ));
        }
        match self.find(|plugged| plugged.id() == Some(id)) {
            Some(_) => Err(options.refused(format_args!("duplicate device id '{id}'"), "choose another")),
            None => Ok(()),
        }
    }

    /// The path of a device that is about to be added.
    fn path(&mut self, id: Option<&str>) -> String {
        if let Some(id) = id {
            return format!("/machine/peripheral/{id}");
        }
        let number = self.nameless;
        self.nameless += 1;
        format!("/machine/peripheral-anon/device[{number}]")
    }

    /// The device whose bus `options` name, or the first of the kind that `info` sits on.
    fn parent(&self, info: &ChildInfo, options: &Options) -> Result<Arc<Plugged>, ConfigError> {
        let fits = |plugged: &Plugged| {
            let slot = plugged.slot();
            slot.is_some_and(|slot| std::ptr::eq(slot.info, info.parent))
        };
        let kind = info.parent.name;
        match options.text("bus") {
            None => self
                .find(fits)
                .ok_or_else(|| options.refused("there is no bus for it", format_args!("add a {kind} before it"))),
            Some(bus) => {
                let id = bus.strip_suffix(".0");
                let found = self.find(|plugged| fits(plugged) && id.is_some() && plugged.id() == id);
                found.ok_or_else(|| options.invalid("bus", bus, format_args!("ID.0 with the id of a {kind}")))
            }
        }
    }

    /// What a device is built with. The first device of a machine without I/O threads gets one made.
    fn host(&mut self, memory: &Arc<GuestMemory>) -> Result<Host, PlugError> {
        let mut threads = self.io_threads.clone();
        if threads.is_empty() {
            let default = match self.default_thread.take() {
                Some(thread) => thread,
                None => IoThread::spawn(DEFAULT_IO_THREAD, PollPolicy::for_this_host()).map_err(PlugError::IoThread)?,
            };
            threads.push(self.default_thread.insert(default).clone());
        }
        let io_threads = IoThreads::new(threads).ok_or_else(|| PlugError::IoThread(io::ErrorKind::NotFound.into()))?;
        Ok(Host {
            memory: Arc::clone(memory),
            io_threads,
            networks: self.networks.clone(),
            timers: self.timers.clone(),
        })
    }
}

/// Where the messages of a machine without interrupt controllers go.
struct Nowhere;

impl MsixSender for Nowhere {
    fn send(&self, _vector: u16) {}
}
