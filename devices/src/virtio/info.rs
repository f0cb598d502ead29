//! The table of devices: one row for each that there is, the mirror of QEMU's `virtio_info`. The
//! command line, QMP, the machine and the manual know devices from here only.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::balloon;
use super::block;
use super::console;
use super::device::Device;
use super::id::DeviceId;
use super::interrupt::MsixSender;
use super::net;
use super::options::{ConfigError, OptionKind, OptionSpec, Options, Pairs, nearest};
use super::rng;
use super::transport::features::FaceDifferences;
use super::transport::{Settings, Variant, VirtioPci, settings};
use crate::io_thread::IoThreads;
use crate::memory::GuestMemory;
use crate::timer::Timers;

/// All devices, in the order of their virtio ids.
pub static DEVICES: &[&DeviceInfo] = &[
    &net::INFO,
    &block::INFO,
    &block::vhost_user::INFO,
    &console::INFO,
    &rng::INFO,
    &balloon::INFO,
];

/// PCI class codes, base class and subclass, that QEMU gives virtio devices
/// (include/hw/pci/pci_ids.h).
pub mod class {
    /// A SCSI storage controller, which is what QEMU says of disks too.
    pub const STORAGE_SCSI: u16 = 0x0100;
    /// An Ethernet controller.
    pub const NETWORK_ETHERNET: u16 = 0x0200;
    /// A communication controller of no other kind.
    pub const COMMUNICATION_OTHER: u16 = 0x0780;
    /// Nothing that has a class.
    pub const OTHERS: u16 = 0x00ff;
}

/// How many MSI-X vectors a device has if the user does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultVectors {
    /// So many; 0 is no MSI-X.
    Fixed(u16),
    /// One for each queue and one for configuration changes.
    PerQueue,
}

impl DefaultVectors {
    /// The number for a device with `queues` queues.
    pub fn count(self, queues: usize) -> u16 {
        match self {
            Self::Fixed(count) => count,
            Self::PerQueue => u16::try_from(queues.saturating_add(1)).unwrap_or(u16::MAX),
        }
    }
}

/// What the machine has to offer to a device that is being built.
#[derive(Clone)]
pub struct Host {
    /// Guest RAM.
    pub memory: Arc<GuestMemory>,
    /// The I/O threads that serve devices.
    pub io_threads: IoThreads,
    /// What the network cards of this machine share.
    pub networks: net::Networks,
    /// Timers on the machine's clock.
    pub timers: Timers,
}

impl Host {
    /// All I/O threads, or only the one that the device `subject` names with `iothread=`.
    ///
    /// # Errors
    /// There is no thread of that name.
    pub fn io_threads(&self, subject: &str, name: Option<&str>) -> Result<IoThreads, ConfigError> {
        let Some(name) = name else {
            return Ok(self.io_threads.clone());
        };
        let problem = || format!("iothread={name}: there is no such I/O thread");
        let remedy = || format!("add --iothread {name}");
        let found = self.io_threads.named(name);
        found.ok_or_else(|| ConfigError::refused(subject, problem(), remedy()))
    }
}

/// A device as it comes from its row of the table.
pub struct Built {
    /// For the transport.
    pub device: Box<dyn Device>,
    /// For management.
    pub control: Control,
}

impl Built {
    /// A device of which management can ask nothing.
    pub fn plain(device: impl Device + 'static) -> Self {
        Self {
            device: Box::new(device),
            control: Control::None,
        }
    }
}

/// What can be asked of a device from outside while it runs.
#[derive(Clone)]
pub enum Control {
    /// Nothing.
    None,
    /// Of a network card.
    Net(net::NetControl),
    /// Of a disk.
    Block(block::BlockControl),
    /// Of a bus of consoles and ports.
    Serial(console::SerialControl),
    /// Of a balloon.
    Balloon(balloon::BalloonControl),
}

/// Makes a device as the user wants it.
pub type Build = fn(&Options, &Host) -> Result<Built, ConfigError>;

/// Takes something off the bus of its device again.
pub type Detach = Box<dyn FnOnce() + Send>;

/// A row of the table of what sits on the bus of a device, as a port does on virtio-serial.
pub struct ChildInfo {
    /// QEMU's name.
    pub name: &'static str,
    /// The device whose bus it sits on.
    pub parent: &'static DeviceInfo,
    /// Its options; `id` and `bus` come on top.
    pub options: &'static [OptionSpec],
    /// Attaches one, as the user wants it, to the device with this control.
    pub attach: fn(&Options, &Control, &Host) -> Result<Detach, ConfigError>,
}

impl ChildInfo {
    /// Reads the options of one, `id` and `bus` among them.
    ///
    /// # Errors
    /// It does not take these options.
    pub fn read_options(&self, pairs: &Pairs) -> Result<Options, ConfigError> {
        Options::read(self.name, pairs, &[self.options, CHILD_OPTIONS])
    }
}

/// The options of everything that sits on the bus of a device.
pub const CHILD_OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("id", OptionKind::Text, "its name for QMP"),
    OptionSpec::new(
        "bus",
        OptionKind::Text,
        "the id of the device it sits on with .0 behind it; the first of that kind if not given",
    ),
];

/// What sits on the bus of a device.
pub static CHILDREN: &[&ChildInfo] = &[&console::VIRTCONSOLE, &console::VIRTSERIALPORT];

/// A row of the table.
pub struct DeviceInfo {
    /// QEMU's name.
    pub name: &'static str,
    /// Which virtio device it is.
    pub id: DeviceId,
    /// PCI class, one of [`class`] or another.
    pub class: u16,
    /// PCI device id with the legacy face; `None` for a device that never had one.
    pub transitional_id: Option<u16>,
    /// MSI-X vectors.
    pub vectors: DefaultVectors,
    /// Bytes of device configuration, where [`Device::config_len`] does not say.
    pub config_len: u32,
    /// What the faces show differently.
    pub differences: FaceDifferences,
    /// Its own options; those of the transport come on top.
    pub options: &'static [OptionSpec],
    /// Makes one.
    pub build: Build,
}

impl DeviceInfo {
    /// Its own options and those of the transport.
    pub fn all_options(&self) -> impl Iterator<Item = &'static OptionSpec> {
        self.options.iter().chain(settings::OPTIONS)
    }

    /// The names under which the user finds it: QEMU's, and the same without `-pci`.
    fn names(&self) -> [&'static str; 2] {
        [self.name, self.name.trim_end_matches("-pci")]
    }
}

impl fmt::Display for DeviceInfo {
    /// A line of the table that [`Table`] prints.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transitional = self
            .transitional_id
            .map_or("-".to_owned(), |id| format!("1af4:{id:04x}"));
        let (number, modern) = (self.id.number(), self.id.modern_pci_id());
        let row = format!(
            "{:<20} {number:>3}  {transitional:<10} 1af4:{modern:04x}  {:04x}   {}",
            self.name, self.class, self.id
        );
        formatter.write_str(&row)
    }
}

/// The table as the user reads it, each row with its options.
pub struct Table;

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:<20} {:>3}  {:<10} {:<10} {:<6} device",
            "name", "id", "PCI id", "modern", "class"
        )?;
        for info in DEVICES {
            writeln!(formatter, "{info}")?;
            info.options
                .iter()
                .try_for_each(|option| writeln!(formatter, "    {option}"))?;
        }
        for child in CHILDREN {
            writeln!(formatter, "{} (on {})", child.name, child.parent.name)?;
            let mut options = child.options.iter().chain(CHILD_OPTIONS);
            options.try_for_each(|option| writeln!(formatter, "    {option}"))?;
        }
        writeln!(formatter, "every device")?;
        settings::OPTIONS
            .iter()
            .try_for_each(|option| writeln!(formatter, "    {option}"))
    }
}

/// The device that the user calls `name`: a name of the table, alone or with `-transitional` or
/// `-non-transitional` behind it.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<(&'static DeviceInfo, Variant), ConfigError> {
    let plain = |name: &str| DEVICES.iter().find(|info| info.names().contains(&name)).copied();
    // The longer suffix first, because the shorter one is its end.
    for variant in [Variant::NonTransitional, Variant::Transitional, Variant::Plain] {
        let info = name.strip_suffix(variant.suffix()).and_then(plain);
        if let Some(info) = info.filter(|info| variant == Variant::Plain || info.transitional_id.is_some()) {
            return Ok((info, variant));
        }
    }
    let names = DEVICES.iter().map(|info| info.name);
    let remedy = match nearest(name, names) {
        Some(known) => format!("did you mean '{known}'?"),
        None => "'innkeeper devices' lists all".to_owned(),
    };
    Err(ConfigError::refused(name, "there is no such device", remedy))
}

/// A device that the user asked for, options read and nothing opened yet.
pub struct Order {
    info: &'static DeviceInfo,
    variant: Variant,
    options: Options,
}

impl Order {
    /// Reads what the user wrote: the device called `name` with the options `pairs`.
    ///
    /// # Errors
    /// There is no such device, or it does not take these options.
    pub fn read(name: &str, pairs: &Pairs) -> Result<Self, ConfigError> {
        let (info, variant) = find(name)?;
        let options = Options::read(name, pairs, &[info.options, settings::OPTIONS])?;
        Ok(Self { info, variant, options })
    }

    /// The row of the table.
    pub fn info(&self) -> &'static DeviceInfo {
        self.info
    }

    /// The options as read; `id` and `addr` are the machine's.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Builds the device. Messages of MSI-X go to `sender`.
    ///
    /// # Errors
    /// What the user asked for does not fit together, or the host refused it.
    pub fn build(&self, host: &Host, sender: Arc<dyn MsixSender>) -> Result<Created, ConfigError> {
        let (info, options) = (self.info, &self.options);
        let settings = Settings::read(options, self.variant, info.transitional_id.is_some())?;
        let Built { device, control } = (info.build)(options, host)?;
        let function = VirtioPci::new(info, options.subject(), &settings, device, host.memory.clone(), sender)?;
        Ok(Created { function, control })
    }
}

/// A device on its transport.
pub struct Created {
    /// For the bus.
    pub function: VirtioPci,
    /// For management.
    pub control: Control,
}

/// Builds the device that the user calls `name` with the options `pairs`. Messages of MSI-X go to
/// `sender`.
///
/// # Errors
/// Whatever the user got wrong, or the host refused.
pub fn create(name: &str, pairs: &Pairs, host: &Host, sender: Arc<dyn MsixSender>) -> Result<Created, ConfigError> {
    Order::read(name, pairs)?.build(host, sender)
}
