//! The PCI function of a virtio device, as QEMU lays it out (hw/virtio/virtio-pci.c): ids, BARs,
//! capabilities, doorbells.

#![forbid(unsafe_code)]

use std::sync::Arc;

use pci::bar::BarError;
use pci::capability::msix::{MsixLayout, VectorState};
use pci::capability::{Capability, CapabilityError, vendor};
use pci::config_space::{command, register};
use pci::endpoint::LayoutError;
use pci::{Bar, BarKind, Change, Changes, Endpoint, EndpointLayout, Function, Header, InterruptLine, Pin, Region};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::config_access::{self, Window};
use super::fault::FaultLog;
use super::features::Offered;
use super::legacy;
use super::modern::{self, Structure};
use super::settings::{Faces, Settings};
use super::state::{Parts, State, TransportState, TransportStateError, TransportView, status};
use crate::memory::GuestMemory;
use crate::virtio::device::Device;
use crate::virtio::id::PCI_VENDOR;
use crate::virtio::info::DeviceInfo;
use crate::virtio::interrupt::{Interrupts, MsixSender};
use crate::virtio::options::ConfigError;

/// BAR of the MSI-X table.
const MSIX_BAR: u8 = 1;

/// Subsystem id of functions without the legacy face (QEMU, include/hw/pci/pci.h,
/// `PCI_SUBDEVICE_ID_QEMU`).
const MODERN_SUBSYSTEM: u16 = 0x1100;

/// Where the first capability goes.
const FIRST_CAPABILITY: u8 = 0x40;

/// A way of a driver to kick a queue that needs no help of ours: a write to this place may be made
/// to signal `event` by the machine (an ioeventfd), while the BAR is decoded. Writes that reach the
/// function nevertheless do the same.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// The queue.
    pub queue: u16,
    /// The BAR.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u64,
    /// Bytes of the write; `None` for any.
    pub width: Option<u8>,
    /// The value that is written; `None` for any.
    pub data: Option<u16>,
    /// What is signalled.
    pub event: Arc<EventFd>,
}

/// The changeable part of the function, in a form to save.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VirtioPciState {
    endpoint: pci::endpoint::EndpointState,
    transport: TransportState,
}

/// Why a saved state cannot be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VirtioPciStateError {
    /// The function is another one
    #[error(transparent)]
    Endpoint(#[from] pci::endpoint::EndpointStateError),
    /// The device is another one
    #[error(transparent)]
    Transport(#[from] TransportStateError),
}

/// A virtio device on PCI.
pub struct VirtioPci {
    info: &'static DeviceInfo,
    faces: Faces,
    notify_port: bool,
    endpoint: Endpoint,
    window: Option<Window>,
    state: State,
}

impl VirtioPci {
    /// Puts `device`, which is what `info` says and which the user calls `name`, on PCI. Messages
    /// of MSI-X go to `sender`.
    ///
    /// # Errors
    /// The settings ask for something that does not fit, or the host gives no more eventfds.
    pub fn new(
        info: &'static DeviceInfo,
        name: &str,
        settings: &Settings,
        device: Box<dyn Device>,
        memory: Arc<GuestMemory>,
        sender: Arc<dyn MsixSender>,
    ) -> Result<Self, ConfigError> {
        let possible = device.possible_features();
        let faces = settings.faces.with_features(possible).ok_or_else(|| {
            let problem = "who serves its queues knows no VERSION_1, which takes the legacy face";
            ConfigError::refused(name, problem, "leave out disable-legacy=on")
        })?;
        let settings = &Settings { faces, ..*settings };
        let queues = device.queue_sizes().len();
        let vectors = settings.vectors.unwrap_or_else(|| info.vectors.count(queues));
        let modern = settings.faces.modern();
        let config_len = device.config_len().unwrap_or(info.config_len);
        let layout = Layout::new(info, config_len, settings, vectors);
        let built = layout.and_then(|layout| Ok((Endpoint::new(layout.endpoint)?, layout.window)));
        let (endpoint, window) = built.map_err(|error| ConfigError::refused(name, error, "give fewer vectors="))?;
        let interrupts = Interrupts::new(queues, vectors.into(), sender, endpoint.intx().clone());
        let offered = Offered::new(device.features(), possible, settings.ring, &info.differences, modern);
        let parts = Parts {
            name: name.to_owned(),
            device,
            memory,
            interrupts,
            offered,
            config_len,
        };
        let state = State::new(parts).map_err(|error| {
            ConfigError::refused(
                name,
                format_args!("no doorbells: {error}"),
                "raise the limit of open files (ulimit -n)",
            )
        })?;
        Ok(Self {
            info,
            faces: settings.faces,
            notify_port: settings.notify_port,
            endpoint,
            window,
            state,
        })
    }

    /// What kind of device it is.
    pub fn info(&self) -> &'static DeviceInfo {
        self.info
    }

    /// Wires INTA#.
    pub fn connect_intx(&self, line: Arc<dyn InterruptLine>) {
        self.endpoint.intx().connect(line);
    }

    /// The doorbells of all queues. They stay the same as long as the function is there; their
    /// addresses move with the BARs.
    pub fn doorbells(&self) -> Vec<Doorbell> {
        (0..self.state.queue_count())
            .flat_map(|queue| self.doorbells_of(queue))
            .collect()
    }

    fn doorbells_of(&self, queue: u16) -> Vec<Doorbell> {
        let Some(event) = self.state.doorbell(queue) else {
            return Vec::new();
        };
        let doorbell = |bar, offset, by_value: bool| Doorbell {
            queue,
            bar,
            offset,
            width: by_value.then_some(2),
            data: by_value.then_some(queue),
            event: event.clone(),
        };
        let own_place = u64::from(queue) * u64::from(modern::NOTIFY_MULTIPLIER);
        let all = [
            (self.faces.legacy(), doorbell(legacy::BAR, legacy::NOTIFY, true)),
            (
                self.faces.modern(),
                doorbell(modern::BAR, Structure::Notify.offset() + own_place, false),
            ),
            (self.notify_port, doorbell(modern::PIO_BAR, 0, true)),
        ];
        all.into_iter()
            .filter_map(|(there, doorbell)| there.then_some(doorbell))
            .collect()
    }

    /// What driver and device have come to, for people to look at.
    pub fn view(&self) -> TransportView {
        self.state.view()
    }

    /// The last things that the driver did wrong with the transport.
    pub fn faults(&mut self) -> &mut FaultLog {
        self.state.faults_mut()
    }

    /// Stops all queues, drained, until [`Self::resume`].
    pub fn pause(&mut self) {
        self.state.pause();
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&mut self) {
        self.state.resume();
    }

    /// What it holds, apart from the device behind it. Pause it first.
    pub fn save(&mut self) -> VirtioPciState {
        self.show_pending();
        VirtioPciState {
            endpoint: self.endpoint.state(),
            transport: self.state.save(),
        }
    }

    /// Takes back what [`Self::save`] gave, on a function that was made the same way, and says what
    /// that changed outside. Queues start, unless it is paused.
    ///
    /// # Errors
    /// The state is of another function.
    pub fn restore(&mut self, state: &VirtioPciState) -> Result<Changes, VirtioPciStateError> {
        self.state.reset();
        let mut changes = self.endpoint.restore(&state.endpoint)?;
        self.state.set_bus_master(self.endpoint.bus_master());
        self.state.restore(&state.transport)?;
        let vectors = self.state.interrupts().vectors();
        for vector in (0..vectors).filter(|vector| self.endpoint.msix().is_some_and(|msix| msix.is_pending(*vector))) {
            self.state.interrupts().set_pending(vector);
        }
        changes.extend((0..vectors).map(Change::MsixVector));
        self.follow_msix();
        Ok(changes)
    }

    /// Lets the gates in front of vectors follow the MSI-X table.
    fn follow_msix(&self) {
        let interrupts = self.state.interrupts();
        let Some(msix) = self.endpoint.msix() else { return };
        // Whatever is signalled meanwhile finds closed gates and waits there, or the line, which is
        // off while MSI-X is on.
        interrupts.set_msix_enabled(msix.enabled());
        for vector in 0..msix.vectors() {
            self.follow_vector(vector);
        }
    }

    fn follow_vector(&self, vector: u16) {
        let masked = self.msix_vector(vector).is_none_or(|state| state.masked);
        self.state.interrupts().set_masked(vector, masked);
    }

    /// Does on our side what a change of MSI-X means. What it means outside is the caller's.
    fn follow(&self, changes: &Changes) {
        for change in changes {
            match change {
                Change::MsixControl { .. } => self.follow_msix(),
                Change::MsixVector(vector) => self.follow_vector(*vector),
                _ => {}
            }
        }
    }

    /// Copies which messages wait into the pending bits that the driver reads.
    fn show_pending(&mut self) {
        let interrupts = self.state.interrupts().clone();
        let Some(msix) = self.endpoint.msix_mut() else { return };
        for vector in 0..msix.vectors() {
            match interrupts.is_pending(vector) {
                true => msix.set_pending(vector),
                false => msix.clear_pending(vector),
            }
        }
    }

    /// Linux before 2.6.34 drives legacy devices without switching bus mastering on. As in QEMU
    /// that is done for it when it says that there is a driver.
    fn write_legacy(&mut self, offset: u64, data: &[u8]) -> Changes {
        let before = self.state.status();
        legacy::write(&mut self.state, self.endpoint.msix_enabled(), offset, data);
        let gained = self.state.status() & !before;
        if gained & (status::DRIVER | status::DRIVER_OK) == 0 || self.endpoint.bus_master() {
            return Changes::new();
        }
        let command = self.endpoint.config().read_u16(register::COMMAND) | command::MASTER;
        let changes = self.endpoint.write_config(register::COMMAND, &command.to_le_bytes());
        self.state.set_bus_master(true);
        changes
    }
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(window) = self.window.filter(|window| window.is_touched(offset, data.len())) {
            window.fetch(self.endpoint.config_mut(), &mut self.state);
        }
        self.endpoint.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Changes {
        let changes = self.endpoint.write_config(offset, data);
        self.follow(&changes);
        if offset <= register::COMMAND && usize::from(register::COMMAND - offset) < data.len() {
            self.state.set_bus_master(self.endpoint.bus_master());
        }
        if let Some(window) = self.window.filter(|window| window.is_touched(offset, data.len())) {
            window.carry(self.endpoint.config(), &mut self.state);
        }
        changes
    }

    fn bars(&self) -> Vec<Bar> {
        self.endpoint.bars().iter().copied().collect()
    }

    fn regions(&self) -> Vec<Region> {
        self.endpoint.regions().to_vec()
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Changes {
        match bar {
            legacy::BAR if self.faces.legacy() => {
                legacy::read(&mut self.state, self.endpoint.msix_enabled(), offset, data);
            }
            modern::BAR if self.faces.modern() => modern::read(&mut self.state, offset, data),
            MSIX_BAR => {
                self.show_pending();
                if !self.endpoint.read_bar(bar, offset, data) {
                    data.fill(0xff);
                }
            }
            modern::PIO_BAR => data.fill(0),
            _ => data.fill(0xff),
        }
        Changes::new()
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Changes {
        match bar {
            legacy::BAR if self.faces.legacy() => return self.write_legacy(offset, data),
            modern::BAR if self.faces.modern() => modern::write(&mut self.state, offset, data),
            modern::PIO_BAR if self.notify_port => modern::write_port(&mut self.state, offset, data),
            _ => {
                let changes = self.endpoint.write_bar(bar, offset, data).unwrap_or_default();
                self.follow(&changes);
                return changes;
            }
        }
        Changes::new()
    }

    fn reset(&mut self) -> Changes {
        self.state.reset();
        let changes = self.endpoint.reset();
        self.state.set_bus_master(false);
        self.follow_msix();
        changes
    }

    fn msix_vector(&self, vector: u16) -> Option<VectorState> {
        self.endpoint.msix()?.vector(vector)
    }
}

/// What the function consists of.
struct Layout {
    endpoint: EndpointLayout,
    window: Option<Window>,
}

impl Layout {
    fn new(info: &DeviceInfo, config_len: u32, settings: &Settings, vectors: u16) -> Result<Self, LayoutError> {
        let mut space = CapabilitySpace(FIRST_CAPABILITY);
        let mut capabilities = Vec::new();
        let mut window = None;
        if settings.faces.modern() {
            capabilities = modern_capabilities(&mut space, settings.notify_port)?;
            let at = u16::from(space.0);
            let capability = space.vendor(config_access::CAPABILITY_TYPE, &[0; 16], &config_access::WRITABLE)?;
            capabilities.insert(0, capability);
            let notify_port = settings.notify_port;
            window = Some(Window { at, notify_port });
        }
        let msix = (vectors > 0).then(|| MsixLayout::exclusive(space.0, MSIX_BAR, vectors));
        let endpoint = EndpointLayout {
            header: header(info, settings.faces),
            bars: bars(config_len, settings, msix.as_ref())?,
            msix,
            capabilities,
        };
        Ok(Self { endpoint, window })
    }
}

fn header(info: &DeviceInfo, faces: Faces) -> Header {
    let transitional = info.transitional_id.filter(|_| faces.legacy());
    Header {
        vendor: PCI_VENDOR,
        device: transitional.unwrap_or(info.id.modern_pci_id()),
        class: info.class,
        revision: transitional.is_none().into(),
        subsystem_vendor: PCI_VENDOR,
        subsystem: transitional.map_or(MODERN_SUBSYSTEM, |_| info.id.number()),
        pin: Some(Pin::A),
        ..Header::default()
    }
}

fn bars(config_len: u32, settings: &Settings, msix: Option<&MsixLayout>) -> Result<Vec<Bar>, BarError> {
    let table = BarKind::Memory32 { prefetchable: false };
    let structures = BarKind::Memory64 { prefetchable: true };
    let faces = settings.faces;
    let ports = faces
        .legacy()
        .then(|| (legacy::BAR, BarKind::Io, legacy::bar_size(config_len, msix.is_some())));
    let table = msix.map(|msix| (MSIX_BAR, table, msix.bar_size()));
    let doorbell = settings
        .notify_port
        .then_some((modern::PIO_BAR, BarKind::Io, modern::PIO_BAR_SIZE));
    let structures = faces.modern().then_some((modern::BAR, structures, modern::BAR_SIZE));
    let all = [ports, table, doorbell, structures].into_iter().flatten();
    all.map(|(index, kind, size)| Bar::new(index, kind, size)).collect()
}

/// Capabilities of the modern face except PCI_CFG, the last one first, because QEMU puts each in
/// front of the others.
fn modern_capabilities(space: &mut CapabilitySpace, notify_port: bool) -> Result<Vec<Capability>, LayoutError> {
    let place = |bar: u8, offset: u64, len: u64| {
        let mut place = vec![bar, 0, 0, 0];
        place.extend((offset as u32).to_le_bytes());
        place.extend((len as u32).to_le_bytes());
        place
    };
    let mut chain = Vec::new();
    for structure in [Structure::Common, Structure::Isr, Structure::Device, Structure::Notify] {
        let mut content = place(modern::BAR, structure.offset(), modern::STRUCTURE_SIZE);
        if structure == Structure::Notify {
            content.extend(modern::NOTIFY_MULTIPLIER.to_le_bytes());
        }
        chain.insert(0, space.vendor(structure.capability_type(), &content, &[])?);
    }
    if notify_port {
        let mut content = place(modern::PIO_BAR, 0, modern::PIO_BAR_SIZE);
        content.extend([0; 4]);
        chain.insert(0, space.vendor(Structure::Notify.capability_type(), &content, &[])?);
    }
    Ok(chain)
}

/// The next free offset for a capability.
struct CapabilitySpace(u8);

impl CapabilitySpace {
    /// A vendor-specific capability of `cfg_type` (virtio 1.3, 4.1.4, `struct virtio_pci_cap`) at
    /// the next free offset.
    fn vendor(&mut self, cfg_type: u8, content: &[u8], writable: &[u8]) -> Result<Capability, CapabilityError> {
        let offset = self.0;
        let content = [&[cfg_type], content].concat();
        let capability = vendor::capability(offset, &content, writable).ok_or(CapabilityError::TooLong(offset))?;
        // Id and next pointer stand in front of the body.
        self.0 = offset.saturating_add(2 + capability.body.len() as u8);
        Ok(capability)
    }
}
