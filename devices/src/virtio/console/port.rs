//! What a port is, and how the user says so.

#![forbid(unsafe_code)]

use super::control::SerialControl;
use super::device;
use crate::chardev::{self, Chardev, ChardevConfig};
use crate::virtio::info::{ChildInfo, Control, Detach};
use crate::virtio::options::{ConfigError, OptionKind, OptionSpec, Options, concat};

/// What the guest makes of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A terminal, /dev/hvcN. Whether somebody is at the far end makes no difference to the guest.
    Console,
    /// A channel for programs, /dev/vportNpM. The guest sees the far end come and go.
    Plain,
}

/// The highest number that a port can have: two queues each, and two for messages, of 1024.
pub const HIGHEST_PORT: u64 = 510;

/// A port as the user wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// Console or not.
    pub kind: PortKind,
    /// What the user calls it.
    pub id: Option<String>,
    /// Its number; the lowest free one if not given.
    pub number: Option<u32>,
    /// What the guest finds it by, in /dev/virtio-ports.
    pub name: Option<String>,
    /// What it leads to; nothing if not given.
    pub far: Option<ChardevConfig>,
}

/// Options of both kinds of ports.
const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "nr",
        OptionKind::Number {
            min: 0,
            max: HIGHEST_PORT,
        },
        "its number; the lowest free one if not given",
    ),
    OptionSpec::new(
        "name",
        OptionKind::Text,
        "what the guest finds it by, in /dev/virtio-ports",
    ),
];

/// Those, and the far end's.
const ALL_OPTIONS: [OptionSpec; OPTIONS.len() + chardev::OPTIONS.len()] = concat(OPTIONS, chardev::OPTIONS);

/// The row of a console.
pub static VIRTCONSOLE: ChildInfo = ChildInfo {
    name: "virtconsole",
    parent: &device::INFO,
    options: &ALL_OPTIONS,
    attach: |options, control, _host| attach(PortKind::Console, options, control),
};

/// The row of a plain port.
pub static VIRTSERIALPORT: ChildInfo = ChildInfo {
    name: "virtserialport",
    parent: &device::INFO,
    options: &ALL_OPTIONS,
    attach: |options, control, _host| attach(PortKind::Plain, options, control),
};

fn attach(kind: PortKind, options: &Options, control: &Control) -> Result<Detach, ConfigError> {
    let Control::Serial(serial) = control else {
        return Err(options.refused("its bus is no virtio-serial", "name a virtio-serial-pci with bus=ID.0"));
    };
    let serial: SerialControl = serial.clone();
    let number = serial.add_port(PortConfig::from_options(kind, options)?)?;
    Ok(Box::new(move || {
        serial.remove_port(number);
    }))
}

impl PortConfig {
    /// A port of this kind, of which nothing else is said.
    pub fn new(kind: PortKind) -> Self {
        Self {
            kind,
            id: None,
            number: None,
            name: None,
            far: None,
        }
    }

    /// What `options` say.
    ///
    /// # Errors
    /// Something is wrong with the far end.
    pub fn from_options(kind: PortKind, options: &Options) -> Result<Self, ConfigError> {
        let text = |name| options.text(name).map(str::to_owned);
        Ok(Self {
            kind,
            id: text("id"),
            number: options.number("nr").and_then(|number| u32::try_from(number).ok()),
            name: text("name"),
            far: ChardevConfig::from_options(options)?,
        })
    }

    /// Its name in messages to the user.
    pub(super) fn subject(&self) -> String {
        let kind = match self.kind {
            PortKind::Console => VIRTCONSOLE.name,
            PortKind::Plain => VIRTSERIALPORT.name,
        };
        match self.id.as_ref().or(self.name.as_ref()) {
            Some(name) => format!("{kind} {name}"),
            None => kind.to_owned(),
        }
    }
}

/// A port that there is.
pub(super) struct Port {
    pub(super) kind: PortKind,
    pub(super) number: u32,
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) far: Option<Chardev>,
    /// The guest has it open.
    pub(super) guest_open: bool,
    /// What the guest was told of the far end.
    pub(super) host_open: bool,
}

impl Port {
    pub(super) fn new(config: PortConfig, number: u32, far: Option<Chardev>) -> Self {
        let mut port = Self {
            kind: config.kind,
            number,
            id: config.id,
            name: config.name,
            far,
            guest_open: false,
            host_open: false,
        };
        port.host_open = port.is_host_open();
        port
    }

    /// Whether the guest is to see that somebody is at the far end. Of a console it always looks so, when there is one
    /// (QEMU, hw/char/virtio-console.c, `virtconsole_realize`).
    pub(super) fn is_host_open(&self) -> bool {
        let far = self.far.as_ref();
        far.is_some_and(|far| self.kind == PortKind::Console || far.is_open())
    }

    /// The far end, if bytes go there now.
    pub(super) fn open_far(&mut self) -> Option<&mut Chardev> {
        self.far.as_mut().filter(|_| self.host_open)
    }
}
