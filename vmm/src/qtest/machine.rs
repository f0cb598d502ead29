//! The machine that a test drives: QEMU's `pc` without its processors and interrupt controllers, or only memory.

use std::io;
use std::sync::{Arc, Mutex};

use devices::platform::fw_cfg::{FwCfg, key};
use devices::platform::{AcpiPm, Gpe, MachineRequest, ResetControl};
use pci::{Bus, host};
use vmm_sys_util::eventfd::EventFd;

use super::intercept::Inputs;
use super::messages::DmaWiring;
use super::{Output, VirtualClock, memory};
use crate::config::{FirmwareConfig, MachineConfig};
use crate::irq::{Input, Lines};
use crate::machine::StartError;
use crate::machine::board::{Board, PM_BLOCK, PM_PORTS};
use crate::machine::inventory::Inventory;
use crate::memory::{Backing, Layout, Ram};

/// The firmware configuration device's first port.
const FW_CFG: u16 = 0x510;
/// What the path of the interrupt controllers' inputs ends with in QEMU's tree of objects.
const IOAPIC: &str = "ioapic";

/// A machine without a processor.
pub struct QtestMachine {
    inventory: Inventory,
    inputs: Arc<Inputs>,
    clock: VirtualClock,
    ended: EventFd,
}

/// What the machine has besides devices that are plugged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The chipset of the i440FX and its PCI bus.
    Pc,
    /// Memory alone.
    None,
}

impl QtestMachine {
    /// A machine as `config` says, apart from its kernel.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and what to do, in one line.
    pub fn new(kind: Kind, config: &MachineConfig) -> Result<Self, StartError> {
        let layout = Layout::new(config.memory).map_err(crate::config::ConfigError::from)?;
        let ram = Ram::new(layout, Backing::Private)?;
        let memory = Arc::new(ram.memory().clone());
        let inputs = Arc::new(Inputs::default());
        let clock = VirtualClock::default();
        let wiring = Arc::new(DmaWiring::new(Arc::clone(&memory)));
        let lines = Lines::new(Arc::clone(&inputs) as _);
        let bus = Bus::new();
        if kind == Kind::Pc {
            host::add_to(&bus, config.memory)?;
        }
        let board = Board::new(lines, bus, Some(wiring));
        if kind == Kind::Pc {
            add_platform(&board, config, &clock)?;
        }
        let machine = Self {
            inventory: Inventory::new(Arc::new(board), memory),
            inputs,
            clock,
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(StartError::host("event descriptor"))?,
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
            Some(MachineRequest::Reset) => self.reset(),
            Some(MachineRequest::PowerOff | MachineRequest::DebugExit(_)) => self.end(),
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
    pub fn reset(&self) {
        self.inventory.board().reset();
    }

    /// Ends the machine.
    pub fn end(&self) {
        // A full counter is readable, too.
        let _ = self.ended.write(1);
    }

    /// Readable when the machine has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }
}

/// The chipset's ports as far as drivers look at them, on the test's clock, and what firmware would be told.
fn add_platform(board: &Board, config: &MachineConfig, clock: &VirtualClock) -> Result<(), StartError> {
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
    board.add_ports(PM_BLOCK, host::PM_BASE, PM_PORTS, Arc::new(Mutex::new(pm)));
    Ok(())
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
