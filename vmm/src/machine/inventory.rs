//! What is plugged into a machine: devices on its bus, what sits on the buses of those, and the I/O threads that serve them. It is the
//! same with and without KVM.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use devices::io_thread::{IoThread, IoThreads, PollPolicy};
use devices::memory::GuestMemory;
use devices::virtio::info::{CHILDREN, ChildInfo, Control, DeviceInfo, Host, Order};
use devices::virtio::interrupt::MsixSender;
use devices::virtio::net::Networks;
use devices::virtio::options::{ConfigError, Options, Pairs};
use devices::virtio::transport::VirtioPci;
use pci::bus::BusError;
use pci::intx::pirq;
use pci::{Address, Pin, host};

use super::board::Board;
use super::events::Events;
use crate::config::{DeviceConfig, MachineConfig};
use crate::irq::Input;

/// The name of the I/O thread that is there when the user names none.
const DEFAULT_IO_THREAD: &str = "io0";

/// Why a device cannot be plugged in, or an I/O thread not be made
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// What the user wrote, or the backend
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The place on the bus
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The host
    #[error("the host gives no I/O thread: {0}; it may be short of memory or of descriptors (ulimit -n)")]
    IoThread(io::Error),
}

/// A device that is plugged in.
pub struct Plugged {
    id: Option<String>,
    path: String,
    config: DeviceConfig,
    options: Options,
    place: Place,
}

/// Where a device is.
pub enum Place {
    /// On the machine's bus.
    Slot(Slot),
    /// On the bus of another device.
    Child {
        /// Its row of the table.
        info: &'static ChildInfo,
        /// The device whose bus it is on.
        parent: Arc<Plugged>,
    },
}

/// A slot of the bus, and what is in it.
pub struct Slot {
    /// Which function it is.
    pub address: Address,
    /// Its row of the table.
    pub info: &'static DeviceInfo,
    /// The function.
    pub function: Arc<Mutex<VirtioPci>>,
    /// What can be asked of the device.
    pub control: Control,
}

impl Slot {
    /// Locks the function.
    pub fn lock(&self) -> MutexGuard<'_, VirtioPci> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugged {
    /// What the user calls it.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Its path in QEMU's tree of objects: `/machine/peripheral/ID`, or `/machine/peripheral-anon/device[N]` for the device number N
    /// without an id.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the user wrote.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The options as read.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// QEMU's name of its kind.
    pub fn driver(&self) -> &'static str {
        match &self.place {
            Place::Slot(slot) => slot.info.name,
            Place::Child { info, .. } => info.name,
        }
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its slot, if it is on the machine's bus.
    pub fn slot(&self) -> Option<&Slot> {
        match &self.place {
            Place::Slot(slot) => Some(slot),
            Place::Child { .. } => None,
        }
    }

    /// What can be asked of the device. Of what sits on the bus of another device, that device is asked.
    pub fn control(&self) -> Control {
        match &self.place {
            Place::Slot(slot) => slot.control.clone(),
            Place::Child { parent, .. } => parent.control(),
        }
    }
}

impl fmt::Debug for Plugged {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.path, self.driver())
    }
}

/// All that is plugged into one machine.
pub struct Inventory {
    board: Arc<Board>,
    memory: Arc<GuestMemory>,
    events: Events,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In the order in which they came.
    plugged: Vec<Arc<Plugged>>,
    /// Devices without an id so far.
    nameless: usize,
    io_threads: Vec<IoThread>,
    /// For devices of a machine whose user named no thread.
    default_thread: Option<IoThread>,
    networks: Networks,
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
            state: Mutex::default(),
        }
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
        let (options, place) = match CHILDREN.iter().find(|child| child.name == config.name) {
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
        state.plugged.push(Arc::clone(&plugged));
        Ok(plugged)
    }

    /// Puts a device of the table into a slot.
    fn insert(&self, state: &mut State, name: &str, pairs: &Pairs) -> Result<(Options, Place), PlugError> {
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
        Ok((order.options().clone(), Place::Slot(slot)))
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
    fn attach(
        &self,
        state: &mut State,
        info: &'static ChildInfo,
        pairs: &Pairs,
    ) -> Result<(Options, Place), PlugError> {
        let options = info.read_options(pairs)?;
        state.check_id(&options)?;
        let parent = state.parent(info, &options)?;
        let _detach = (info.attach)(&options, &parent.control(), &state.host(&self.memory)?)?;
        Ok((options, Place::Child { info, parent }))
    }

    /// Everything that is plugged in, in the order in which it came.
    pub fn list(&self) -> Vec<Arc<Plugged>> {
        self.state().plugged.clone()
    }

    /// The device that the user calls `id`.
    pub fn find(&self, id: &str) -> Option<Arc<Plugged>> {
        self.state().find(|plugged| plugged.id() == Some(id))
    }

    /// The device at `address`.
    pub fn at(&self, address: Address) -> Option<Arc<Plugged>> {
        self.state()
            .find(|plugged| plugged.slot().is_some_and(|slot| slot.address == address))
    }

    /// What can be asked of the device that the user calls `id`.
    pub fn control(&self, id: &str) -> Option<Control> {
        Some(self.find(id)?.control())
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
        let thread = IoThread::spawn(name, PollPolicy::default()).map_err(PlugError::IoThread)?;
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
                None => IoThread::spawn(DEFAULT_IO_THREAD, PollPolicy::default()).map_err(PlugError::IoThread)?,
            };
            threads.push(self.default_thread.insert(default).clone());
        }
        let io_threads = IoThreads::new(threads).ok_or_else(|| PlugError::IoThread(io::ErrorKind::NotFound.into()))?;
        Ok(Host {
            memory: Arc::clone(memory),
            io_threads,
            networks: self.networks.clone(),
        })
    }
}

/// Where the messages of a machine without interrupt controllers go.
struct Nowhere;

impl MsixSender for Nowhere {
    fn send(&self, _vector: u16) {}
}

#[cfg(test)]
pub(super) mod testing {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::irq::{Gsi, GsiSink, Lines};
    use vm_memory::GuestAddress;

    struct NoPins;

    impl GsiSink for NoPins {
        fn set_gsi(&self, _: Gsi, _: bool) {}
    }

    /// The inventory of a machine with nothing in it, and without a CPU.
    pub fn inventory() -> Inventory {
        let bus = pci::Bus::new();
        host::add_to(&bus, 1 << 20).unwrap();
        let board = Board::new(Lines::new(Arc::new(NoPins)), bus, None);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Inventory::new(Arc::new(board), Arc::new(memory))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::testing::inventory;
    use super::*;

    fn rng(options: &str) -> DeviceConfig {
        DeviceConfig::parse("virtio-rng-pci", options, None)
    }

    fn refusal(inventory: &Inventory, options: &str) -> String {
        inventory.plug(&rng(options)).unwrap_err().to_string()
    }

    #[test]
    fn devices_are_found_by_id_and_place_and_listed_in_order() {
        let inventory = inventory();
        inventory.plug(&rng("id=a,addr=5")).unwrap();
        inventory.plug(&rng("")).unwrap();
        inventory.plug(&rng("")).unwrap();
        let list = inventory.list();
        assert!(list.iter().all(|plugged| plugged.driver() == "virtio-rng-pci"));
        let paths: Vec<_> = list.iter().map(|plugged| plugged.path()).collect();
        let anonymous = [
            "/machine/peripheral-anon/device[0]",
            "/machine/peripheral-anon/device[1]",
        ];
        assert_eq!(paths, ["/machine/peripheral/a", anonymous[0], anonymous[1]]);
        let slots: Vec<_> = list
            .iter()
            .map(|plugged| plugged.slot().unwrap().address.device())
            .collect();
        assert_eq!(slots, [5, 2, 3]);
        assert_eq!(inventory.find("a").unwrap().config(), &rng("id=a,addr=5"));
        assert!(inventory.find("b").is_none() && inventory.control("b").is_none());
        let at = inventory.at(Address::new(0, 5, 0).unwrap()).unwrap();
        assert_eq!(at.id(), Some("a"));
    }

    #[test]
    fn an_id_is_a_word_and_belongs_to_one_device() {
        let inventory = inventory();
        inventory.plug(&rng("id=rng.0-a_b")).unwrap();
        assert!(refusal(&inventory, "id=rng.0-a_b").contains("duplicate device id 'rng.0-a_b'"));
        for id in ["", "0a", "a b", "-a", "a/b", "ä"] {
            let error = refusal(&inventory, &format!("id={id}"));
            assert!(error.contains("an identifier"), "{error}");
        }
        assert_eq!(inventory.list().len(), 1);
    }

    #[test]
    fn places_that_are_taken_or_not_there_are_refused() {
        let inventory = inventory();
        inventory.plug(&rng("addr=4")).unwrap();
        assert!(refusal(&inventory, "addr=4").contains("already"));
        assert!(refusal(&inventory, "addr=1").contains("already"));
        assert!(refusal(&inventory, "addr=6.1").contains("function other than 0"));
        assert!(refusal(&inventory, "nonsense=1").contains("nonsense"));
        for _ in 0..29 {
            inventory.plug(&rng("")).unwrap();
        }
        assert!(refusal(&inventory, "").contains("no free slot"));
    }

    #[test]
    fn io_threads_can_be_named_until_they_are_removed_and_stay_while_in_use() {
        let inventory = inventory();
        inventory.add_io_thread("a").unwrap();
        inventory.add_io_thread("b").unwrap();
        assert!(inventory.add_io_thread("a").is_err());
        let disk = "path=null-co://,size=1M,iothread=a";
        let disk = |options: &str| DeviceConfig::parse("virtio-blk-pci", &format!("{disk}{options}"), None);
        inventory.plug(&disk("")).unwrap();
        assert!(
            inventory
                .remove_io_thread("a")
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
        inventory.remove_io_thread("b").unwrap();
        assert!(inventory.remove_io_thread("b").is_err());
        let names: Vec<_> = inventory
            .io_threads()
            .iter()
            .map(|thread| thread.name().to_owned())
            .collect();
        assert_eq!(names, ["a"]);
        inventory.clear();
        inventory.remove_io_thread("a").unwrap();
        assert!(inventory.plug(&disk("")).is_err(), "there is no such thread any more");
    }

    #[test]
    fn clearing_takes_devices_off_the_bus() {
        let inventory = inventory();
        inventory.plug(&rng("id=a")).unwrap();
        inventory.clear();
        assert!(inventory.list().is_empty());
        assert_eq!(
            inventory.board().pci().first_free_slot(host::FIRST_DEVICE_SLOT),
            Some(2)
        );
        inventory.plug(&rng("id=a,addr=2")).unwrap();
    }
}
