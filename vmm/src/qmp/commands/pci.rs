//! The PCI bus.

use pci::{Address, Bar, BarKind, Region};

use super::{Command, Context, command};
use crate::qmp::error::Error;
use crate::qmp::schema::{Nothing, structures};

pub(super) static COMMANDS: &[Command] = &[command!("query-pci", query_pci)];

structures! {
    /// A bus.
    pub struct PciInfo {
        /// Its number.
        bus: i64,
        /// What is on it.
        devices: Vec<PciDeviceInfo>,
    }
    /// A function.
    pub struct PciDeviceInfo {
        /// Its bus.
        bus: i64,
        /// Its slot.
        slot: i64,
        /// Its number in the slot.
        function: i64,
        /// What it is.
        class_info: PciDeviceClass,
        /// Whose it is.
        id: PciDeviceId,
        /// The interrupt that firmware wrote there.
        irq: Option<i64>,
        /// INTA# is 1; 0 is none.
        irq_pin: i64,
        /// The user's name for it.
        qdev_id: String,
        /// Its BARs.
        regions: Vec<PciMemoryRegion>,
    }
    /// What a function is.
    pub struct PciDeviceClass {
        /// In words.
        desc: Option<String>,
        /// Base class and subclass.
        class: i64,
    }
    /// Whose a function is.
    pub struct PciDeviceId {
        /// Device id.
        device: i64,
        /// Vendor id.
        vendor: i64,
        /// Subsystem id.
        subsystem: Option<i64>,
        /// Subsystem vendor id.
        subsystem_vendor as "subsystem-vendor": Option<i64>,
    }
    /// A BAR.
    pub struct PciMemoryRegion {
        /// Its index.
        bar: i64,
        /// `io` or `memory`.
        of as "type": String,
        /// Where it is decoded; -1 is nowhere.
        address: i64,
        /// Bytes.
        size: i64,
        /// Reading has no side effects.
        prefetch: Option<bool>,
        /// It takes two registers.
        mem_type_64: Option<bool>,
    }
}

/// Offsets in configuration space (PCI Local Bus 3.0, section 6.1).
mod register {
    pub(super) const VENDOR: u16 = 0x00;
    pub(super) const DEVICE: u16 = 0x02;
    pub(super) const CLASS: u16 = 0x0a;
    pub(super) const SUBSYSTEM_VENDOR: u16 = 0x2c;
    pub(super) const SUBSYSTEM: u16 = 0x2e;
    pub(super) const INTERRUPT_LINE: u16 = 0x3c;
    pub(super) const INTERRUPT_PIN: u16 = 0x3d;
}

/// QEMU's words for classes that occur here (hw/pci/pci.c, `pci_class_descriptions`).
const CLASSES: [(u16, &str); 6] = [
    (0x0100, "SCSI controller"),
    (0x0101, "IDE controller"),
    (0x0200, "Ethernet controller"),
    (0x0600, "Host bridge"),
    (0x0601, "ISA bridge"),
    (0x0680, "Bridge"),
];

fn query_pci(context: &Context<'_>, _: Nothing) -> Result<Vec<PciInfo>, Error> {
    buses(context)
}

/// All buses, which is one, or none on a machine without any function.
pub(super) fn buses(context: &Context<'_>) -> Result<Vec<PciInfo>, Error> {
    let bus = context.target.inventory().board().pci();
    let addresses = bus.addresses();
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let devices = addresses.into_iter().filter_map(|address| function(context, address));
    Ok(vec![PciInfo {
        bus: 0,
        devices: devices.collect(),
    }])
}

/// The function at `address`, unless it is gone by now.
fn function(context: &Context<'_>, address: Address) -> Option<PciDeviceInfo> {
    let inventory = context.target.inventory();
    let function = inventory.board().pci().get(address)?;
    let mut function = pci::bus::lock(&function);
    let mut byte = |offset: u16| {
        let mut data = [0];
        function.read_config(offset, &mut data);
        u16::from(data[0])
    };
    let mut word = |offset: u16| byte(offset) | byte(offset + 1) << 8;
    let class = word(register::CLASS);
    let id = PciDeviceId {
        device: word(register::DEVICE).into(),
        vendor: word(register::VENDOR).into(),
        subsystem: Some(word(register::SUBSYSTEM).into()),
        subsystem_vendor: Some(word(register::SUBSYSTEM_VENDOR).into()),
    };
    let (pin, line) = (byte(register::INTERRUPT_PIN), byte(register::INTERRUPT_LINE));
    let decoded = function.regions();
    let regions = function.bars().iter().map(|bar| region(bar, &decoded)).collect();
    drop(function);
    let plugged = inventory.at(address);
    Some(PciDeviceInfo {
        bus: address.bus().into(),
        slot: address.device().into(),
        function: address.function().into(),
        class_info: PciDeviceClass {
            desc: CLASSES
                .iter()
                .find(|(of, _)| *of == class)
                .map(|(_, text)| (*text).to_owned()),
            class: class.into(),
        },
        id,
        irq: (pin != 0).then(|| line.into()),
        irq_pin: pin.into(),
        qdev_id: plugged
            .as_ref()
            .and_then(|plugged| plugged.id())
            .unwrap_or_default()
            .to_owned(),
        regions,
    })
}

fn region(bar: &Bar, decoded: &[Region]) -> PciMemoryRegion {
    let base = decoded
        .iter()
        .find(|region| region.bar == bar.index())
        .map(|region| region.base);
    let (of, attributes) = match bar.kind() {
        BarKind::Io => ("io", None),
        BarKind::Memory32 { prefetchable } => ("memory", Some((prefetchable, false))),
        BarKind::Memory64 { prefetchable } => ("memory", Some((prefetchable, true))),
    };
    PciMemoryRegion {
        bar: bar.index().into(),
        of: of.to_owned(),
        address: base.map_or(-1, u64::cast_signed),
        size: bar.size().cast_signed(),
        prefetch: attributes.map(|(prefetchable, _)| prefetchable),
        mem_type_64: attributes.map(|(_, wide)| wide),
    }
}
