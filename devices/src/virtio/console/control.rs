//! What management can do with a virtio-serial device while it runs.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::mailbox::{Mailbox, Request};
use super::message::Size;
use super::port::{Port, PortConfig, PortKind};
use crate::chardev::{Chardev, ChardevConfig, Escape, RingBuffer};
use crate::virtio::device::ConfigInterrupt;
use crate::virtio::listeners::Listeners;
use crate::virtio::options::ConfigError;

/// Something that happened to a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SerialEvent {
    /// The guest has opened or closed a port: QMP's VSERPORT_CHANGE.
    PortChange {
        /// Number of the port.
        port: u32,
        /// What the user calls it.
        id: Option<String>,
        /// Opened or closed.
        open: bool,
    },
    /// The person at a console's terminal wants something of us.
    Escape(Escape),
}

impl SerialEvent {
    pub(super) fn opened(port: &Port, open: bool) -> Self {
        Self::PortChange {
            port: port.number,
            id: port.id.clone(),
            open,
        }
    }
}

/// A port as management sees it.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Console or not.
    pub kind: PortKind,
    /// What the user calls it.
    pub id: Option<String>,
    /// What the guest finds it by.
    pub name: Option<String>,
    /// What it leads to, for people; of a pseudo-terminal the file to open.
    pub far: Option<String>,
    /// It leads to this process' standard input and output.
    pub on_stdio: bool,
    /// The bytes that went to it, if it leads to a ring.
    pub ring: Option<RingBuffer>,
}

/// The handle of management. Copies are handles of the same device.
#[derive(Clone)]
pub struct SerialControl(Arc<Shared>);

struct Shared {
    mailbox: Arc<Mailbox>,
    listeners: Arc<Listeners<SerialEvent>>,
    interrupt: OnceLock<ConfigInterrupt>,
    /// Only management takes this lock.
    ports: Mutex<BTreeMap<u32, PortInfo>>,
    max_ports: u32,
    /// Columns and rows of port 0, as configuration has them.
    size: AtomicU32,
}

impl SerialControl {
    pub(super) fn new(mailbox: Arc<Mailbox>, listeners: Arc<Listeners<SerialEvent>>, max_ports: u32) -> Self {
        Self(Arc::new(Shared {
            mailbox,
            listeners,
            interrupt: OnceLock::new(),
            ports: Mutex::default(),
            max_ports,
            size: AtomicU32::new(0),
        }))
    }

    pub(super) fn connect(&self, interrupt: ConfigInterrupt) {
        // Once, says the trait; a second one would be the same.
        let _ = self.0.interrupt.set(interrupt);
    }

    /// Columns and rows of port 0.
    pub(super) fn size(&self) -> Size {
        let packed = self.0.size.load(Ordering::Relaxed);
        Size {
            columns: packed as u16,
            rows: (packed >> 16) as u16,
        }
    }

    /// How many ports there can be.
    pub fn max_ports(&self) -> u32 {
        self.0.max_ports
    }

    /// The ports that there are, by their numbers.
    pub fn ports(&self) -> BTreeMap<u32, PortInfo> {
        self.lock().clone()
    }

    /// Adds a port, before the guest starts or while it runs. Opens its far end. Returns its number.
    ///
    /// # Errors
    /// The number or the name is taken, there is no number left, or the far end cannot be opened.
    pub fn add_port(&self, config: PortConfig) -> Result<u32, ConfigError> {
        let subject = config.subject();
        let mut ports = self.lock();
        let number = choose_number(&config, &ports, self.0.max_ports)?;
        if let Some(name) = &config.name
            && ports.values().any(|port| port.name.as_ref() == Some(name))
        {
            let problem = format_args!("there is a port of the name '{name}' already");
            return Err(ConfigError::refused(&subject, problem, "give each a name of its own"));
        }
        let far = config.far.as_ref();
        let far = far.map(|far| Chardev::open(far, &subject)).transpose()?;
        let info = PortInfo {
            kind: config.kind,
            id: config.id.clone(),
            name: config.name.clone(),
            far: far.as_ref().map(|far| far.description().to_owned()),
            on_stdio: matches!(config.far, Some(ChardevConfig::Stdio { .. })),
            ring: far.as_ref().and_then(Chardev::ring),
        };
        let port = Box::new(Port::new(config, number, far));
        let added = self.0.mailbox.ask(|done| Request::Add(port, done));
        added
            .ok_or_else(|| ConfigError::refused(&subject, "its device is gone", "look into the log for the reason"))?;
        ports.insert(number, info);
        drop(ports);
        self.tell_config();
        Ok(number)
    }

    /// Removes a port, open or not; what the guest has written there and nobody has taken is lost. Returns whether there
    /// was one.
    pub fn remove_port(&self, number: u32) -> bool {
        let mut ports = self.lock();
        let found = ports.remove(&number).is_some();
        if found {
            // A device that is gone has no port either.
            let _ = self.0.mailbox.ask(|done| Request::Remove(number, done));
        }
        found
    }

    /// A console has another size. Drivers hear of it if the device was made to tell (`console-size=on`).
    pub fn resize(&self, port: u32, size: Size) {
        if port == 0 {
            let packed = u32::from(size.columns) | u32::from(size.rows) << 16;
            self.0.size.store(packed, Ordering::Relaxed);
            self.tell_config();
        }
        // A device that is gone has no size.
        let _ = self.0.mailbox.ask(|done| Request::Resize(port, size, done));
    }

    /// Calls `listener` for each event from now on, on the I/O thread of the device: it must not wait for anything.
    pub fn subscribe(&self, listener: impl Fn(&SerialEvent) + Send + 'static) {
        self.0.listeners.add(listener);
    }

    fn tell_config(&self) {
        if let Some(interrupt) = self.0.interrupt.get() {
            interrupt.signal();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, PortInfo>> {
        self.0.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of a new port, by QEMU's rules (`virtser_port_device_realize`): 0 is for a console, because drivers without
/// MULTIPORT know no other; the first console gets it.
fn choose_number(config: &PortConfig, ports: &BTreeMap<u32, PortInfo>, max_ports: u32) -> Result<u32, ConfigError> {
    let subject = config.subject();
    let console = config.kind == PortKind::Console;
    let lowest = if console && !ports.contains_key(&0) { 0 } else { 1 };
    let free = || (lowest..max_ports).find(|number| !ports.contains_key(number));
    let number = match config.number {
        Some(number) => number,
        None => free().ok_or_else(|| {
            let remedy = "give its virtio-serial-pci a larger max_ports=, or add another";
            ConfigError::refused(&subject, format_args!("all {max_ports} ports are taken"), remedy)
        })?,
    };
    let refused = |problem: &str, remedy: &str| {
        let problem = format_args!("nr={number}: {problem}");
        Err(ConfigError::refused(&subject, problem, remedy))
    };
    if number >= max_ports {
        let remedy = format!("the highest is {}", max_ports.saturating_sub(1));
        return refused("there is no such port", &remedy);
    }
    if ports.contains_key(&number) {
        return refused("there is a port of that number already", "leave nr= out");
    }
    if number == 0 && !console {
        return refused("port 0 is reserved for a console", "leave nr= out");
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn info(kind: PortKind) -> PortInfo {
        PortInfo {
            kind,
            id: None,
            name: None,
            far: None,
            on_stdio: false,
            ring: None,
        }
    }

    #[test]
    fn numbers_follow_qemus_rules() {
        let console = PortConfig::new(PortKind::Console);
        let plain = PortConfig::new(PortKind::Plain);
        let numbered = |config: &PortConfig, number| PortConfig {
            number: Some(number),
            ..config.clone()
        };
        let mut ports = BTreeMap::new();
        let mut choose = |config: &PortConfig| {
            let chosen = choose_number(config, &ports, 4);
            if let Ok(number) = chosen {
                ports.insert(number, info(config.kind));
            }
            chosen.map_err(|error| error.to_string())
        };
        assert_eq!(choose(&plain), Ok(1));
        assert_eq!(choose(&numbered(&console, 3)), Ok(3));
        assert_eq!(choose(&console), Ok(0));
        assert_eq!(choose(&console), Ok(2));
        for (config, complaint) in [
            (plain.clone(), "virtserialport: all 4 ports are taken"),
            (
                numbered(&plain, 0),
                "virtserialport: nr=0: there is a port of that number already",
            ),
            (numbered(&plain, 4), "virtserialport: nr=4: there is no such port"),
        ] {
            let error = choose(&config).unwrap_err();
            assert!(error.starts_with(complaint), "{error}");
        }
        let none = BTreeMap::new();
        assert!(choose_number(&numbered(&plain, 0), &none, 4).is_err());
        assert!(
            choose_number(&plain, &none, 1).is_err(),
            "the only port is for a console"
        );
        assert_eq!(choose_number(&console, &none, 1), Ok(0));
    }
}
