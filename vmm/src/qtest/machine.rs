//! The machine that a test drives: QEMU's `pc` without its processors and interrupt controllers, or only memory.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::platform::fw_cfg::{FwCfg, key};
use devices::platform::{AcpiPm, Gpe, MachineRequest, PmEvents, ResetControl};
use devices::virtio::transport::VirtioPci;
use pci::{Bus, host};
use vmm_sys_util::eventfd::EventFd;

use super::intercept::Inputs;
use super::messages::DmaWiring;
use super::{Output, VirtualClock, memory};
use crate::config::{DeviceConfig, FirmwareConfig, MachineConfig};
use crate::irq::{Input, Lines};
use crate::machine::StartError;
use crate::machine::board::{Board, PM_BLOCK, PM_PORTS};
use crate::machine::inventory::{Inventory, PlugError};
use crate::memory::{Backing, Layout, Ram};
use crate::qemu::backends::Backends;
use crate::qmp::event::{Event, Shutdown, ShutdownCause};
use crate::qmp::link::Monitors;
use crate::qmp::target::{self, About, RunState};

/// The firmware configuration device's first port.
const FW_CFG: u16 = 0x510;
/// What the path of the interrupt controllers' inputs ends with in QEMU's tree of objects.
const IOAPIC: &str = "ioapic";

/// A machine without a processor.
pub struct QtestMachine {
    inventory: Inventory,
    inputs: Arc<Inputs>,
    clock: VirtualClock,
    /// Where the power button is; a machine without a chipset has none.
    power: Option<PmEvents>,
    monitors: Monitors,
    state: Mutex<RunState>,
    ended: EventFd,
    pub(super) about: About,
    pub(super) backends: Mutex<Backends>,
}

impl QtestMachine {
    /// A machine as `config` says, apart from its kernel. QMP's clients are told what `about` and `backends` say, and of what happens
    /// to it through `monitors`.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and what to do, in one line.
    pub fn new(
        config: &MachineConfig,
        about: About,
        backends: Backends,
        monitors: Monitors,
    ) -> Result<Self, StartError> {
        let layout = Layout::new(config.memory).map_err(crate::config::ConfigError::from)?;
        let ram = Ram::new(layout, Backing::Private)?;
        let memory = Arc::new(ram.memory().clone());
        let inputs = Arc::new(Inputs::default());
        let clock = VirtualClock::default();
        let wiring = Arc::new(DmaWiring::new(Arc::clone(&memory)));
        let lines = Lines::new(Arc::clone(&inputs) as _);
        let bus = Bus::new();
        let has_chipset = about.board == target::Board::Pc;
        if has_chipset {
            host::add_to(&bus, config.memory)?;
        }
        let board = Board::new(lines, bus, Some(wiring));
        let power = match has_chipset {
            true => Some(add_platform(&board, config, &clock)?),
            false => None,
        };
        let machine = Self {
            inventory: Inventory::new(Arc::new(board), memory),
            inputs,
            clock,
            power,
            monitors,
            state: Mutex::new(RunState::Running),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(StartError::host("event descriptor"))?,
            about,
            backends: Mutex::new(backends),
        };
        for name in &config.io_threads {
            machine.inventory.add_io_thread(name)?;
        }
        for device in &config.devices {
            machine.inventory.plug(device)?;
        }
        Ok(machine)
    }

    /// What is plugged in, and the board.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The clock, which only the test moves.
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    /// IN.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        self.inventory.board().read_port(port, data);
    }

    /// OUT.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        match self.inventory.board().write_port(port, data) {
            None => {}
            Some(MachineRequest::Reset) => self.reset(ShutdownCause::GuestReset),
            Some(MachineRequest::PowerOff | MachineRequest::DebugExit(_)) => self.end(ShutdownCause::GuestShutdown),
        }
    }

    /// Loads of any number of bytes, from RAM and from BARs.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        memory::read(self.inventory.board(), self.inventory.memory(), address, data);
    }

    /// Stores of any number of bytes, to RAM and to BARs.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        memory::write(self.inventory.board(), self.inventory.memory(), address, data);
    }

    /// Tells `listener` of changes of the inputs at `path`; `false` when there is no such thing.
    pub fn intercept(&self, path: &str, listener: &Output) -> bool {
        let found = path.rsplit('/').next() == Some(IOAPIC);
        if found {
            self.inputs.tell(listener.clone());
        }
        found
    }

    /// Brings everything but RAM into its state at power-on. No firmware runs after it.
    pub fn reset(&self, cause: ShutdownCause) {
        self.inventory.board().reset();
        self.monitors.emit(Event::Reset(told(cause)));
    }

    /// Ends the machine.
    pub fn end(&self, cause: ShutdownCause) {
        self.monitors.emit(Event::Shutdown(told(cause)));
        // A full counter is readable, too.
        let _ = self.ended.write(1);
    }

    /// Readable when the machine has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Presses the power button.
    pub(super) fn power_down(&self) {
        if let Some(power) = &self.power {
            power.press_power_button();
        }
        self.monitors.emit(Event::Powerdown);
    }

    /// What it is doing.
    pub(super) fn run_state(&self) -> RunState {
        *self.state()
    }

    /// Lets all devices stand still.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        if *state == RunState::Running {
            self.for_each_function(VirtioPci::pause);
            *state = RunState::Paused;
            self.monitors.emit(Event::Stop);
        }
    }

    /// Lets them go on.
    pub(super) fn go_on(&self) {
        let mut state = self.state();
        if *state == RunState::Paused {
            self.for_each_function(VirtioPci::resume);
            *state = RunState::Running;
            self.monitors.emit(Event::Resume);
        }
    }

    /// Plugs a device in, which stands still if the others do.
    ///
    /// # Errors
    /// As [`Inventory::plug`].
    pub(super) fn plug(&self, device: &DeviceConfig) -> Result<(), PlugError> {
        let state = self.state();
        let plugged = self.inventory.plug(device)?;
        if let Some(slot) = plugged.slot().filter(|_| *state == RunState::Paused) {
            lock(&slot.function).pause();
        }
        Ok(())
    }

    fn for_each_function(&self, act: fn(&mut VirtioPci)) {
        for plugged in self.inventory.list() {
            if let Some(slot) = plugged.slot() {
                act(&mut lock(&slot.function));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, RunState> {
        lock(&self.state)
    }
}

/// What QMP's clients are told of an end or a reset.
fn told(reason: ShutdownCause) -> Shutdown {
    let guest = matches!(reason, ShutdownCause::GuestReset | ShutdownCause::GuestShutdown);
    Shutdown { guest, reason }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The chipset's ports as far as drivers look at them, on the test's clock, and what firmware would be told.
fn add_platform(board: &Board, config: &MachineConfig, clock: &VirtualClock) -> Result<PmEvents, StartError> {
    /// The interrupt of ACPI events, the same on every PC.
    const SCI: u32 = 9;
    const RESET_CONTROL: u16 = 0xcf9;
    const GPE: u16 = 0xafe0;
    let sci = board.lines().source(Input::Gsi(SCI));
    let sci = sci.ok_or_else(|| StartError::host("interrupt line")(io::ErrorKind::Unsupported.into()))?;
    let pm = AcpiPm::with_clock(sci, clock.clock());
    board.add_ports(
        "firmware configuration",
        FW_CFG,
        FwCfg::PORTS,
        Arc::new(Mutex::new(fw_cfg(config))),
    );
    board.add_ports(
        "reset control",
        RESET_CONTROL,
        1,
        Arc::new(Mutex::new(ResetControl::default())),
    );
    board.add_ports("ACPI events", GPE, Gpe::PORTS, Arc::new(Mutex::new(pm.gpe())));
    let events = pm.events();
    board.add_ports(PM_BLOCK, host::PM_BASE, PM_PORTS, Arc::new(Mutex::new(pm)));
    Ok(events)
}

fn fw_cfg(config: &MachineConfig) -> FwCfg {
    let FirmwareConfig {
        uuid,
        no_graphic,
        boot_menu,
        reboot_timeout,
        splash_time,
    } = config.firmware;
    let flag = |on: bool| u16::from(on).to_le_bytes();
    let cpus = u16::try_from(config.cpus).unwrap_or(u16::MAX).to_le_bytes();
    // No nodes, and no CPU is in one.
    let numa = vec![
        0;
        (config.cpus as usize)
            .saturating_add(1)
            .saturating_mul(size_of::<u64>())
    ];
    let device = FwCfg::new()
        .item(key::UUID, uuid)
        .item(key::RAM_SIZE, config.memory.to_le_bytes())
        .item(key::NO_GRAPHIC, flag(no_graphic))
        .item(key::CPUS, cpus)
        .item(key::MAX_CPUS, cpus)
        .item(key::NUMA, numa)
        .item(key::BOOT_MENU, flag(boot_menu))
        .file("etc/boot-fail-wait", reboot_timeout.unwrap_or(-1).to_le_bytes());
    match splash_time {
        Some(time) => device.file("etc/boot-menu-wait", time.to_le_bytes()),
        None => device,
    }
}
