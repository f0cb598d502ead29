//! The board: I/O ports, the PCI bus and what sits on them. Knows interrupts only as lines, so it works without KVM.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use devices::platform::{MachineRequest, PortDevice};
use pci::bus::BusChanges;
use pci::mechanism1::ConfigPorts;
use pci::{Address, Bus, Change, Space};

use super::wiring::Wiring;
use crate::irq::Lines;

/// A port device as several owners share it.
pub type SharedPortDevice = Arc<Mutex<dyn PortDevice>>;

/// First port of configuration mechanism #1.
const CONFIG_PORTS: std::ops::RangeInclusive<u16> = 0xcf8..=0xcff;

struct PortRange {
    name: &'static str,
    first: u16,
    count: u16,
    device: SharedPortDevice,
    accesses: AtomicU64,
}

impl PortRange {
    fn contains(&self, port: u16) -> bool {
        port.checked_sub(self.first).is_some_and(|offset| offset < self.count)
    }
}

/// Everything that answers to a port or to a memory address without RAM.
pub struct Board {
    /// In ascending order of their first port; they do not overlap.
    ports: RwLock<Vec<PortRange>>,
    pci: Bus,
    mechanism1: Mutex<ConfigPorts>,
    lines: Arc<Lines>,
    wiring: Option<Arc<dyn Wiring>>,
    config_accesses: AtomicU64,
    bar_accesses: AtomicU64,
}

impl Board {
    /// A board with the functions of `bus`, whose interrupts go to `lines`. Without `wiring` every kick is an access to its function.
    pub fn new(lines: Arc<Lines>, bus: Bus, wiring: Option<Arc<dyn Wiring>>) -> Self {
        Self {
            ports: RwLock::default(),
            pci: bus,
            mechanism1: Mutex::default(),
            lines,
            wiring,
            config_accesses: AtomicU64::new(0),
            bar_accesses: AtomicU64::new(0),
        }
    }

    /// Puts `device` behind `count` ports from `first` on. Ports that something sits on already stay with it.
    pub fn add_ports(&self, name: &'static str, first: u16, count: u16, device: SharedPortDevice) {
        let mut ports = write(&self.ports);
        let index = ports.partition_point(|range| range.first < first);
        ports.insert(
            index,
            PortRange {
                name,
                first,
                count,
                device,
                accesses: AtomicU64::new(0),
            },
        );
    }

    /// The PCI bus.
    pub fn pci(&self) -> &Bus {
        &self.pci
    }

    /// The interrupt lines.
    pub fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }

    /// A CPU's IN.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        if let Some((device, offset)) = self.port_device(port) {
            lock(&device).read(offset, data);
        } else if CONFIG_PORTS.contains(&port) {
            self.config_accesses.fetch_add(1, Ordering::Relaxed);
            lock(&self.mechanism1).read(&self.pci, port, data);
        } else {
            self.read_bar(Space::Io, u64::from(port), data);
        }
    }

    /// A CPU's OUT. Says what the guest asked of the machine by it.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<MachineRequest> {
        if let Some((device, offset)) = self.port_device(port) {
            return lock(&device).write(offset, data);
        }
        if CONFIG_PORTS.contains(&port) {
            self.config_accesses.fetch_add(1, Ordering::Relaxed);
            self.write_config_port(port, data);
        } else {
            self.write_bar(Space::Io, u64::from(port), data);
        }
        None
    }

    /// A CPU's load from an address without RAM. All ones where nothing answers.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        self.read_bar(Space::Memory, address, data);
    }

    /// A CPU's store to an address without RAM.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        self.write_bar(Space::Memory, address, data);
    }

    /// Brings everything on the board into its state at power-on.
    pub fn reset(&self) {
        for range in self.ports.read().unwrap_or_else(PoisonError::into_inner).iter() {
            lock(&range.device).reset();
        }
        *lock(&self.mechanism1) = ConfigPorts::new();
        self.apply_all(self.pci.reset());
    }

    /// What ties functions to the outside, if anything does.
    pub fn wiring(&self) -> Option<&Arc<dyn Wiring>> {
        self.wiring.as_ref()
    }

    /// Takes the function at `address` off the bus. Its queues are stopped and drained when this returns, and it is gone unless somebody
    /// else holds it.
    pub fn remove(&self, address: Address) {
        let Some((function, _)) = self.pci.remove(address) else {
            return;
        };
        pci::bus::lock(&function).reset();
        if let Some(wiring) = &self.wiring {
            wiring.untie(address);
        }
    }

    /// Messages of MSI-X sent so far.
    pub fn messages(&self) -> u64 {
        self.wiring.as_ref().map_or(0, |wiring| wiring.messages())
    }

    /// Accesses by device so far.
    pub fn accesses(&self) -> Vec<(String, u64)> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        ports
            .iter()
            .map(|range| {
                (
                    format!("{} at {:#x}", range.name, range.first),
                    range.accesses.load(Ordering::Relaxed),
                )
            })
            .chain([
                ("PCI configuration".into(), self.config_accesses.load(Ordering::Relaxed)),
                (
                    "PCI BARs and unclaimed addresses".into(),
                    self.bar_accesses.load(Ordering::Relaxed),
                ),
            ])
            .collect()
    }

    fn port_device(&self, port: u16) -> Option<(SharedPortDevice, u16)> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let index = ports.partition_point(|range| range.first <= port).checked_sub(1)?;
        let range = ports.get(index).filter(|range| range.contains(port))?;
        range.accesses.fetch_add(1, Ordering::Relaxed);
        Some((Arc::clone(&range.device), port - range.first))
    }

    fn write_config_port(&self, port: u16, data: &[u8]) {
        let mut mechanism1 = lock(&self.mechanism1);
        let changes = mechanism1.write(&self.pci, port, data);
        // Under mechanism #1's lock: two CPUs' writes to one register take effect outside in the order in which they reached it.
        self.apply_all(changes);
    }

    fn read_bar(&self, space: Space, address: u64, data: &mut [u8]) {
        self.bar_accesses.fetch_add(1, Ordering::Relaxed);
        self.apply_all(self.pci.read(space, address, data).unwrap_or_default());
    }

    fn write_bar(&self, space: Space, address: u64, data: &[u8]) {
        self.bar_accesses.fetch_add(1, Ordering::Relaxed);
        self.apply_all(self.pci.write(space, address, data).unwrap_or_default());
    }

    /// Does what changes of functions mean for the rest of the machine.
    pub fn apply_all(&self, changes: BusChanges) {
        changes
            .into_iter()
            .for_each(|(address, change)| self.apply(address, change));
    }

    fn apply(&self, address: Address, change: Change) {
        match change {
            Change::PirqRouted { pirq, irq } => self.lines.route_pirq(pirq, irq),
            Change::PmBase(base) => self.move_ports(PM_BLOCK, base),
            Change::Mapped(_) | Change::Unmapped(_) | Change::MsixControl { .. } | Change::MsixVector(_) => {
                if let Some(wiring) = &self.wiring {
                    wiring.changed(&self.pci, address, change);
                }
            }
            Change::IntxDisabled(_) => {}
        }
    }

    fn move_ports(&self, name: &str, base: Option<u16>) {
        let mut ports = write(&self.ports);
        if let Some(range) = ports.iter_mut().find(|range| range.name == name) {
            // Port 0 with no ports: nothing is decoded.
            (range.first, range.count) = base.map_or((0, 0), |base| (base, PM_PORTS));
        }
        ports.sort_by_key(|range| range.first);
    }
}

/// Name of the port range that PIIX4's power management base register moves.
pub const PM_BLOCK: &str = "acpi-pm";
/// Ports of that block.
pub const PM_PORTS: u16 = 0x40;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
