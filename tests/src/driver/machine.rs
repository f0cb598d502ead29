//! RAM, a board and what is plugged into it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::memory::GuestMemory;
use devices::platform::{AcpiPm, Gpe, MachineRequest};
use devices::virtio::info::Control;
use devices::virtio::interrupt::MsixSender;
use devices::virtio::transport::{Doorbell, VirtioPci, VirtioPciState};
use pci::resources::{self, Windows};
use pci::{Address, Bus, Change, host};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};
use vmm::boot::tables::port;
use vmm::config::{DeviceConfig, PciResources};
use vmm::irq::{Gsi, GsiSink, Input, Lines};
use vmm::machine::board::Board;
use vmm::machine::inventory::Inventory;
use vmm::machine::wiring::Wiring;
use vmm_sys_util::tempfile::TempFile;

use crate::Error;

/// Where RAM below 4 GiB ends.
pub const LOW_RAM_END: u64 = 16 << 20;
/// Where one mapping of RAM ends and the next begins, without a gap for the guest.
pub const RAM_SEAM: u64 = 8 << 20;
/// Where RAM above 4 GiB begins.
pub const HIGH_RAM: u64 = 4 << 30;
/// Bytes of it.
pub const HIGH_RAM_SIZE: u64 = 1 << 20;

/// The interrupt of ACPI events.
pub const SCI: Gsi = 9;

/// The guest's RAM, zeroed.
///
/// # Errors
/// The host has none.
pub fn ram() -> Result<Arc<GuestMemory>, Error> {
    let regions = [
        (0, RAM_SEAM),
        (RAM_SEAM, LOW_RAM_END - RAM_SEAM),
        (HIGH_RAM, HIGH_RAM_SIZE),
    ];
    let regions = regions.map(|(start, size)| (GuestAddress(start), size as usize));
    Ok(Arc::new(GuestMemory::from_ranges(&regions)?))
}

/// The same in a file, so that it can be shared with other processes.
///
/// # Errors
/// The host has none.
pub fn shared_ram() -> Result<Arc<GuestMemory>, Error> {
    let file = Arc::new(TempFile::new()?.into_file());
    file.set_len(LOW_RAM_END + HIGH_RAM_SIZE)?;
    let regions = [
        (0, RAM_SEAM, 0),
        (RAM_SEAM, LOW_RAM_END - RAM_SEAM, RAM_SEAM),
        (HIGH_RAM, HIGH_RAM_SIZE, LOW_RAM_END),
    ];
    let regions = regions.map(|(start, size, offset)| {
        let file = FileOffset::from_arc(Arc::clone(&file), offset);
        (GuestAddress(start), size as usize, Some(file))
    });
    Ok(Arc::new(GuestMemory::from_ranges_with_files(regions)?))
}

/// The inputs of the interrupt controllers, as the board drives them.
#[derive(Default)]
struct Pins(Mutex<[Line; 24]>);

/// One input of the interrupt controllers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Line {
    /// Its level.
    pub high: bool,
    /// How often it went from low to high.
    pub raised: u64,
}

impl GsiSink for Pins {
    fn set_gsi(&self, gsi: Gsi, high: bool) {
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = pins.get_mut(gsi as usize) {
            line.raised += u64::from(high && !line.high);
            line.high = high;
        }
    }
}

/// The vectors whose messages a function sent, in order.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<u16>>>);

impl MsixSender for Messages {
    fn send(&self, vector: u16) {
        lock(&self.0).push(vector);
    }
}

/// Keeps messages, and leaves kicks to the functions.
#[derive(Default)]
struct Recorder(Mutex<BTreeMap<Address, Messages>>);

impl Wiring for Recorder {
    fn sender(&self, address: Address) -> Arc<dyn MsixSender> {
        let messages = Messages::default();
        lock(&self.0).insert(address, messages.clone());
        Arc::new(messages)
    }

    fn tie(&self, _: Address, _: Vec<Doorbell>) {}

    fn untie(&self, address: Address) {
        lock(&self.0).remove(&address);
    }

    fn changed(&self, _: &Bus, _: Address, _: Change) {}

    fn messages(&self) -> u64 {
        lock(&self.0).values().map(|sent| lock(&sent.0).len() as u64).sum()
    }
}

/// QEMU's `pc` without its processors. What it is asked by [`port`](Self::port), [`load`](Self::load) and their
/// counterparts is what a CPU asks by IN, OUT, loads and stores.
pub struct Machine {
    inventory: Inventory,
    recorder: Arc<Recorder>,
    pins: Arc<Pins>,
    resources: PciResources,
}

impl Machine {
    /// A machine with `devices`, each a name and its options as on the command line, whose BARs are placed.
    ///
    /// # Errors
    /// Whatever is wrong with a device.
    pub fn new(devices: &[(&str, &str)]) -> Result<Self, Error> {
        Self::with(ram()?, PciResources::Firmware, devices)
    }

    /// A machine on `memory`, whose BARs are placed or left to the guest.
    ///
    /// # Errors
    /// Whatever is wrong with a device.
    pub fn with(memory: Arc<GuestMemory>, resources: PciResources, devices: &[(&str, &str)]) -> Result<Self, Error> {
        let (pins, recorder) = (Arc::new(Pins::default()), Arc::new(Recorder::default()));
        let bus = Bus::new();
        host::add_to(&bus, LOW_RAM_END + HIGH_RAM_SIZE)?;
        let board = Board::new(Lines::new(pins.clone()), bus, Some(recorder.clone()));
        let acpi = AcpiPm::new(board.lines().source(Input::Gsi(SCI)).ok_or("there is no such line")?);
        let events = acpi.events();
        board.add_ports("ACPI events", port::GPE0, Gpe::PORTS, Arc::new(Mutex::new(acpi.gpe())));
        let machine = Self {
            inventory: Inventory::new(Arc::new(board), memory).with_hotplug(events),
            recorder,
            pins,
            resources,
        };
        for (name, options) in devices {
            machine.inventory.plug(&DeviceConfig::parse(*name, options, None))?;
        }
        machine.firmware()?;
        Ok(machine)
    }

    fn firmware(&self) -> Result<(), Error> {
        let board = self.board();
        board.apply_all(host::play_firmware(board.pci()));
        if self.resources == PciResources::Firmware {
            let windows = Windows::pc(LOW_RAM_END);
            board.apply_all(resources::assign(board.pci(), &windows)?);
        }
        Ok(())
    }

    /// A reset of everything on the board, and the firmware after it. RAM keeps what it holds.
    ///
    /// # Errors
    /// The BARs do not fit.
    pub fn reset(&self) -> Result<(), Error> {
        self.inventory.reset();
        self.firmware()
    }

    /// What the drivers share with the devices.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.inventory.memory()
    }

    /// The board.
    pub fn board(&self) -> &Board {
        self.inventory.board()
    }

    /// What is plugged in.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Where the devices are, in the order in which they were given.
    pub fn devices(&self) -> Vec<Address> {
        let plugged = self.inventory.list();
        plugged
            .iter()
            .filter_map(|plugged| Some(plugged.slot()?.address))
            .collect()
    }

    /// What management can ask of the device at `address`.
    ///
    /// # Panics
    /// There is no device.
    pub fn control(&self, address: Address) -> Control {
        self.inventory.at(address).expect("a device").control()
    }

    /// IN, `width` bytes.
    pub fn port(&self, port: u16, width: usize) -> u64 {
        let mut data = [0; 8];
        self.board().read_port(port, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    /// OUT, `width` bytes.
    pub fn set_port(&self, port: u16, width: usize, value: u64) {
        let request = self.board().write_port(port, &value.to_le_bytes()[..width]);
        if let Some(MachineRequest::Eject { slot }) = request {
            self.inventory.eject(slot);
        }
    }

    /// A load of `width` bytes. Where there is RAM, RAM answers, whatever a BAR says: so it is under KVM.
    pub fn load(&self, address: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        if self.memory().check_range(GuestAddress(address), width) {
            self.memory()
                .read_slice(&mut data[..width], GuestAddress(address))
                .expect("RAM");
        } else {
            self.board().read_memory(address, &mut data[..width]);
        }
        u64::from_le_bytes(data)
    }

    /// A store of `width` bytes, as [`load`](Self::load).
    pub fn store(&self, address: u64, width: usize, value: u64) {
        let data = &value.to_le_bytes()[..width];
        if self.memory().check_range(GuestAddress(address), width) {
            self.memory().write_slice(data, GuestAddress(address)).expect("RAM");
        } else {
            self.board().write_memory(address, data);
        }
    }

    /// Bytes of RAM.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("RAM");
        bytes
    }

    /// Puts bytes into RAM.
    pub fn set_bytes(&self, address: u64, bytes: &[u8]) {
        self.memory().write_slice(bytes, GuestAddress(address)).expect("RAM");
    }

    /// An input of the interrupt controllers.
    pub fn line(&self, gsi: Gsi) -> Line {
        self.pins.0.lock().unwrap_or_else(PoisonError::into_inner)[gsi as usize]
    }

    /// The vectors whose messages the function at `address` sent since the last call, in order.
    pub fn messages(&self, address: Address) -> Vec<u16> {
        let recorded = lock(&self.recorder.0);
        let sent = recorded.get(&address);
        std::mem::take(&mut lock(&sent.unwrap_or_else(|| nothing_at(address)).0))
    }

    /// Rules of the transport that the driver of the function at `address` broke since the last call.
    pub fn rules(&self, address: Address) -> Vec<&'static str> {
        self.function(address, |function| {
            function.faults().take().iter().map(|fault| fault.rule()).collect()
        })
    }

    /// Stops the function at `address` and saves it.
    pub fn pause_and_save(&self, address: Address) -> VirtioPciState {
        self.function(address, |function| {
            function.pause();
            function.save()
        })
    }

    /// Lets the function at `address` go on.
    pub fn resume(&self, address: Address) {
        self.function(address, VirtioPci::resume);
    }

    /// Gives the function at `address` the state of another, and lets it go on from there.
    ///
    /// # Errors
    /// The state is of another kind of function.
    pub fn restore_and_resume(&self, address: Address, state: &VirtioPciState) -> Result<(), Error> {
        let changes = self.function(address, |function| {
            function.pause();
            let changes = function.restore(state);
            function.resume();
            changes
        })?;
        self.board().pci().update(address, &changes);
        self.board()
            .apply_all(changes.into_iter().map(|change| (address, change)).collect());
        Ok(())
    }

    /// Calls `ask` with the function at `address`.
    fn function<T>(&self, address: Address, ask: impl FnOnce(&mut VirtioPci) -> T) -> T {
        let plugged = self.inventory.at(address);
        let slot = plugged.as_ref().and_then(|plugged| plugged.slot());
        ask(&mut lock(&slot.unwrap_or_else(|| nothing_at(address)).function))
    }
}

fn nothing_at<T>(address: Address) -> T {
    panic!("nothing was plugged at {address}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
