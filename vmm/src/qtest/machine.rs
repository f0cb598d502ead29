//! The machine that a test drives: QEMU's `pc` without its processors and interrupt controllers, or only memory.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use devices::platform::fw_cfg::key;
use devices::platform::{AcpiPm, FwCfg, Gpe, ResetControl};
use pci::{Bus, host};

use super::intercept::Inputs;
use super::messages::DmaWiring;
use super::{Output, VirtualClock, memory};
use crate::config::{ConfigError, FirmwareConfig, MachineConfig};
use crate::irq::{Input, Lines};
use crate::machine::StartError;
use crate::machine::board::{Board, PM_BLOCK, PM_PORTS};
use crate::machine::inventory::Inventory;
use crate::machine::remote::{Policy, Remote};
use crate::memory::{Backing, Layout, Ram};
use crate::qmp::target;

/// The firmware configuration device's first port.
const FW_CFG: u16 = 0x510;
/// What the path of the interrupt controllers' inputs ends with in QEMU's tree of objects.
const IOAPIC: &str = "ioapic";

/// A machine without a processor.
pub struct QtestMachine {
    remote: Arc<Remote>,
    inputs: Arc<Inputs>,
    clock: VirtualClock,
}

impl QtestMachine {
    /// A machine of this kind as `config` says, apart from its kernel. It has not started.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and what to do, in one line.
    pub fn new(kind: target::Board, config: &MachineConfig) -> Result<Self, StartError> {
        let layout = Layout::new(config.memory).map_err(ConfigError::from)?;
        let memory = Arc::new(Ram::new(layout, Backing::of(config))?.memory().clone());
        let inputs = Arc::new(Inputs::default());
        let clock = VirtualClock::default();
        let lines = Lines::new(Arc::clone(&inputs) as _);
        let bus = Bus::new();
        if kind == target::Board::Pc {
            host::add_to(&bus, config.memory)?;
        }
        let board = Board::new(lines, bus, Some(Arc::new(DmaWiring::new(Arc::clone(&memory)))));
        let power = power_management(&board, &clock)?;
        let power_events = power.events();
        let mut inventory = Inventory::new(Arc::new(board), memory).with_timers(clock.timers());
        if kind == target::Board::Pc {
            add_ports(inventory.board(), config, power);
            inventory = inventory.with_hotplug(power_events.clone());
        }
        let inventory = Arc::new(inventory);
        inventory.populate(config)?;
        let policy = Policy {
            end_at_reset: config.end_at_reset,
            keep_at_shutdown: config.keep_at_shutdown,
            reset_at_triple_fault: config.reset_at_triple_fault,
        };
        let remote = Remote::new(0, inventory, power_events, policy).map_err(StartError::host("event descriptor"))?;
        Ok(Self {
            remote: Arc::new(remote),
            inputs,
            clock,
        })
    }

    /// What can be asked of it from outside.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// The clock, which only the test moves.
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    fn inventory(&self) -> &Inventory {
        self.remote.inventory()
    }

    /// IN.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        self.inventory().board().read_port(port, data);
    }

    /// OUT.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        if let Some(request) = self.inventory().board().write_port(port, data) {
            self.remote.request(request);
        }
    }

    /// Loads of any number of bytes, from RAM and from BARs.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        memory::read(self.inventory().board(), self.inventory().memory(), address, data);
    }

    /// Stores of any number of bytes, to RAM and to BARs.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        memory::write(self.inventory().board(), self.inventory().memory(), address, data);
    }

    /// Tells `listener` of changes of the inputs at `path`; `false` when there is no such thing.
    pub fn intercept(&self, path: &str, listener: &Output) -> bool {
        let found = path.rsplit('/').next() == Some(IOAPIC);
        if found {
            self.inputs.tell(listener.clone());
        }
        found
    }

    /// Does what was asked of the machine's own thread. After a reset everything but RAM is in its state at power-on, and no firmware
    /// runs.
    pub fn attend(&self) {
        let Ok(_) = self.remote.attend(|| {
            self.inventory().reset();
            Ok::<_, Infallible>(())
        });
    }
}

/// The chipset's power management, on the test's clock.
fn power_management(board: &Board, clock: &VirtualClock) -> Result<AcpiPm, StartError> {
    /// The interrupt of ACPI events, the same on every PC.
    const SCI: u32 = 9;
    let sci = board.lines().source(Input::Gsi(SCI));
    let sci = sci.ok_or_else(|| StartError::host("interrupt line")(io::ErrorKind::Unsupported.into()))?;
    Ok(AcpiPm::with_clock(sci, clock.clock()))
}

/// The chipset's ports as far as drivers look at them, and what firmware would be told.
fn add_ports(board: &Board, config: &MachineConfig, power: AcpiPm) {
    const RESET_CONTROL: u16 = 0xcf9;
    const GPE: u16 = 0xafe0;
    let firmware = Arc::new(Mutex::new(fw_cfg(config)));
    board.add_ports("firmware configuration", FW_CFG, FwCfg::PORTS, firmware);
    let reset = Arc::new(Mutex::new(ResetControl::default()));
    board.add_ports("reset control", RESET_CONTROL, 1, reset);
    board.add_ports("ACPI events", GPE, Gpe::PORTS, Arc::new(Mutex::new(power.gpe())));
    board.add_ports(PM_BLOCK, host::PM_BASE, PM_PORTS, Arc::new(Mutex::new(power)));
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
