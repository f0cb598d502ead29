//! What every machine has at fixed places: the functions of the chipset and the devices behind well-known ports.

use std::sync::{Arc, Mutex};

use devices::platform::{
    AcpiPm, ApmControl, Cmos, DebugExit, Gpe, I8042, MemorySize, PmEvents, Port92, ResetControl, Serial,
};
use pci::{Bus, host};
use vmm_sys_util::eventfd::EventFd;

use super::StartError;
use super::board::{Board, PM_BLOCK, PM_PORTS};
use super::console::{Console, Input};
use super::wiring::Wiring;
use crate::config::{MachineConfig, PciResources};
use crate::irq::{Gsi, Input as LineInput, Lines};
use crate::kvm::{KvmError, Vm};
use crate::memory::{Layout, address};

/// Level-triggered ISA interrupts, a bit each, as SeaBIOS sets them: the SCI and those of PIRQ A to D.
pub(super) const ELCR: u16 = 1 << 9 | 1 << 10 | 1 << 11;

/// The chipset's functions, as `innkeeper devices` prints them.
pub const FIXED_FUNCTIONS: [&str; 3] = [
    "00:00.0  8086:1237  class 0600  i440FX host bridge",
    "00:01.0  8086:7000  class 0601  PIIX3 ISA bridge",
    "00:01.3  8086:7113  class 0680  PIIX4 power management",
];

/// ISA interrupts of the devices here, the same on every PC.
mod irq {
    use super::Gsi;
    pub const KEYBOARD: Gsi = 1;
    pub const COM1: Gsi = 4;
    pub const RTC: Gsi = 8;
    pub const SCI: Gsi = 9;
}

/// First ports of the devices here. The power management block is moved by a PCI register.
mod port {
    pub const KEYBOARD: u16 = 0x60;
    pub const CMOS: u16 = 0x70;
    pub const SYSTEM_CONTROL: u16 = 0x92;
    pub const APM: u16 = 0xb2;
    pub const COM1: u16 = 0x3f8;
    pub const RESET_CONTROL: u16 = 0xcf9;
    pub const GPE: u16 = 0xafe0;
}

/// The devices, and what the machine's thread needs to serve them.
pub(super) struct Platform {
    pub serial: Arc<Mutex<Serial>>,
    /// Signalled when the serial port can take input again.
    pub serial_room: EventFd,
    pub cmos: Arc<Mutex<Cmos>>,
    pub input: Input,
    /// The power button and the other ACPI events.
    pub events: PmEvents,
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

/// An event that raises ISA interrupt `gsi`, an edge each time.
fn edge(vm: &Vm, gsi: Gsi) -> Result<EventFd, StartError> {
    let event = event()?;
    vm.fd()
        .register_irqfd(&event, gsi)
        .map_err(KvmError::at("tie an event to an interrupt"))?;
    Ok(event)
}

fn event() -> Result<EventFd, StartError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(StartError::host("event descriptor"))
}

fn memory_size(layout: &Layout) -> MemorySize {
    MemorySize {
        below_4g: layout.low_end(),
        above_4g: layout.high_end() - address::FOUR_GIB,
    }
}

impl Platform {
    /// Makes the devices, and puts them on a new board.
    pub fn new(
        config: &MachineConfig,
        layout: &Layout,
        vm: &Vm,
        lines: Arc<Lines>,
        wiring: Arc<dyn Wiring>,
        console: Console,
    ) -> Result<(Self, Board), StartError> {
        let Console { output, input, .. } = console;
        let mut serial =
            Serial::new(edge(vm, irq::COM1)?, output).map_err(StartError::host("thread for the serial port"))?;
        let serial_room = event()?;
        serial.set_room_event(serial_room.try_clone().map_err(StartError::host("event descriptor"))?);
        let cmos = Cmos::new(memory_size(layout), edge(vm, irq::RTC)?).map_err(StartError::host("timer descriptor"))?;
        let Some(sci) = lines.source(LineInput::Gsi(irq::SCI)) else {
            return Err(StartError::host("interrupt line")(
                std::io::ErrorKind::Unsupported.into(),
            ));
        };
        let pm = AcpiPm::new(sci);

        let bus = Bus::new();
        host::add_to(&bus, config.memory)?;
        let platform = Self {
            serial: shared(serial),
            serial_room,
            cmos: shared(cmos),
            input,
            events: pm.events(),
        };
        let board = Board::new(lines, bus, Some(wiring));
        board.add_ports(
            "keyboard controller",
            port::KEYBOARD,
            I8042::PORTS,
            shared(I8042::new(edge(vm, irq::KEYBOARD)?)),
        );
        board.add_ports("real-time clock", port::CMOS, Cmos::PORTS, platform.cmos.clone());
        board.add_ports("system control", port::SYSTEM_CONTROL, 1, shared(Port92::default()));
        board.add_ports("APM control", port::APM, ApmControl::PORTS, shared(pm.apm_control()));
        if config.serial_port {
            board.add_ports("serial port", port::COM1, Serial::PORTS, platform.serial.clone());
        }
        board.add_ports("reset control", port::RESET_CONTROL, 1, shared(ResetControl::default()));
        board.add_ports("ACPI events", port::GPE, Gpe::PORTS, shared(pm.gpe()));
        board.add_ports(PM_BLOCK, host::PM_BASE, PM_PORTS, shared(pm));
        if let Some(first) = config.debug_exit {
            board.add_ports("debug exit", first, 1, shared(DebugExit));
        }
        Ok((platform, board))
    }
}

/// What a BIOS does before it hands over: the chipset's registers, and the BARs of the devices unless the guest is to place them.
pub(super) fn firmware_setup(board: &Board, layout: &Layout, resources: PciResources) -> Result<(), StartError> {
    board.apply_all(host::play_firmware(board.pci()));
    if resources == PciResources::Firmware {
        let windows = pci::resources::Windows::pc(layout.low_end());
        board.apply_all(pci::resources::assign(board.pci(), &windows)?);
    }
    Ok(())
}
