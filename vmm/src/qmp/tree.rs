//! The tree of objects as far as there is one: the machine, what the user plugged into it, objects and character devices.

use std::sync::Arc;
use std::time::Duration;

use devices::virtio::balloon::{BalloonControl, Stat};
use devices::virtio::info::Control;
use devices::virtio::options::Pairs;
use serde_json::{Map, Value, json};

use super::commands::Context;
use super::error::Error;
use super::target::{Shown, find_device};
use super::types;
use crate::machine::inventory::{Place, Plugged};

/// A place in the tree.
pub enum Node {
    /// `/`.
    Root,
    /// `/machine`.
    Machine,
    /// A node that only has others below it.
    Container(Shelf),
    /// A device, or the virtio device behind its transport.
    Device {
        /// The device.
        plugged: Arc<Plugged>,
        /// The latter?
        behind: bool,
    },
    /// Something with a name and options.
    Named {
        /// Its type.
        kind: String,
        /// Its options.
        pairs: Pairs,
    },
}

/// Nodes that only have others below them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shelf {
    /// Devices that have an id.
    Peripheral,
    /// Devices that have none.
    Anonymous,
    /// What `object-add` makes.
    Objects,
    /// What `chardev-add` makes.
    Chardevs,
}

impl Shelf {
    const ALL: [Self; 4] = [Self::Peripheral, Self::Anonymous, Self::Objects, Self::Chardevs];

    fn path(self) -> &'static str {
        match self {
            Self::Peripheral => "/machine/peripheral",
            Self::Anonymous => "/machine/peripheral-anon",
            Self::Objects => "/objects",
            Self::Chardevs => "/chardevs",
        }
    }
}

/// A property as `qom-list` shows it.
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Its value.
    value: Value,
}

fn property(name: impl Into<String>, kind: impl Into<String>, value: impl Into<Value>) -> Property {
    Property {
        name: name.into(),
        kind: kind.into(),
        value: value.into(),
    }
}

/// The property that leads to another node.
fn child(name: &str, kind: &str, path: String) -> Property {
    property(name, format!("child<{kind}>"), path)
}

/// The node at `path`; a path without a slash at the front may be a name that only one node has.
///
/// # Errors
/// There is none.
pub fn find(context: &Context<'_>, path: &str) -> Result<Node, Error> {
    let shelf = Shelf::ALL.iter().find(|shelf| shelf.path() == path);
    match path {
        "/" | "" => return Ok(Node::Root),
        "/machine" | "machine" => return Ok(Node::Machine),
        _ => {}
    }
    if let Some(shelf) = shelf {
        return Ok(Node::Container(*shelf));
    }
    let name = |shelf: Shelf| {
        let below = path.strip_prefix(shelf.path()).and_then(|rest| rest.strip_prefix('/'));
        below.or_else(|| Some(path).filter(|path| !path.starts_with('/')))
    };
    for (shelf, kind_of) in [(Shelf::Objects, "qom-type"), (Shelf::Chardevs, "backend")] {
        let backends = context.backends();
        let named = if shelf == Shelf::Objects {
            &backends.objects
        } else {
            &backends.chardevs
        };
        if let Some(pairs) = name(shelf).and_then(|name| named.get(name)) {
            let kind = pairs.get(kind_of).unwrap_or_default();
            let kind = if shelf == Shelf::Chardevs {
                format!("chardev-{kind}")
            } else {
                kind.to_owned()
            };
            let pairs = pairs.clone();
            return Ok(Node::Named { kind, pairs });
        }
    }
    let plugged = find_device(context.target, path)?;
    let behind = plugged.slot().is_some() && path == plugged.backend_path();
    Ok(Node::Device { plugged, behind })
}

/// QEMU's name of the virtio device behind a transport.
fn behind_type(plugged: &Plugged) -> String {
    format!("{}-device", plugged.driver().trim_end_matches("-pci"))
}

impl Node {
    /// Its type.
    pub fn kind(&self, context: &Context<'_>) -> String {
        match self {
            Self::Root | Self::Container(_) => "container".to_owned(),
            Self::Machine => context.target.about().board.type_name(),
            Self::Device { plugged, behind: true } => behind_type(plugged),
            Self::Device { plugged, .. } => plugged.driver().to_owned(),
            Self::Named { kind, .. } => kind.clone(),
        }
    }

    /// Its properties, values included.
    pub fn properties(&self, context: &Context<'_>) -> Vec<Property> {
        let mut all = vec![property("type", "string", self.kind(context))];
        match self {
            Self::Root => {
                all.push(child(
                    "machine",
                    &context.target.about().board.type_name(),
                    "/machine".into(),
                ));
                all.push(child("objects", "container", "/objects".into()));
                all.push(child("chardevs", "container", "/chardevs".into()));
            }
            Self::Machine => {
                for shelf in [Shelf::Peripheral, Shelf::Anonymous] {
                    let name = shelf.path().trim_start_matches("/machine/");
                    all.push(child(name, "container", shelf.path().into()));
                }
            }
            Self::Container(shelf) => all.extend(contents(context, *shelf)),
            Self::Device { plugged, behind } => all.extend(device(plugged, *behind)),
            Self::Named { pairs, .. } => {
                let told = pairs.iter().filter(|(key, _)| !["qom-type", "backend"].contains(key));
                all.extend(told.map(|(key, value)| property(key, "string", value)));
            }
        }
        all
    }

    /// The value of the property `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn get(&self, context: &Context<'_>, name: &str) -> Result<Value, Error> {
        let found = self
            .properties(context)
            .into_iter()
            .find(|property| property.name == name);
        found
            .map(|property| property.value)
            .ok_or_else(|| self.unknown(context, name))
    }

    /// Sets the property `name`.
    ///
    /// # Errors
    /// There is none of that name, it cannot be set, or not to that.
    pub fn set(&self, context: &Context<'_>, name: &str, value: &Value) -> Result<(), Error> {
        self.get(context, name)?;
        match (self, name) {
            (Self::Device { plugged, .. }, POLLING) => {
                let Control::Balloon(balloon) = plugged.control() else {
                    return Err(self.unknown(context, name));
                };
                set_polling(&balloon, value)
            }
            (Self::Device { plugged, .. }, _) => Err(Error::new(format_args!(
                "Attempt to set property '{name}' on device '{}' (type '{}') after it was realized",
                plugged.label(),
                self.kind(context)
            ))),
            _ => Err(Error::new(format_args!(
                "Property '{}.{name}' is not writable",
                self.kind(context)
            ))),
        }
    }

    fn unknown(&self, context: &Context<'_>, name: &str) -> Error {
        Error::new(format_args!("Property '{}.{name}' not found", self.kind(context)))
    }
}

fn contents(context: &Context<'_>, shelf: Shelf) -> Vec<Property> {
    let path = |name: &str| format!("{}/{name}", shelf.path());
    let backends = context.backends();
    match shelf {
        Shelf::Objects => {
            let objects = backends.objects.iter();
            objects
                .map(|(name, pairs)| child(name, pairs.get("qom-type").unwrap_or_default(), path(name)))
                .collect()
        }
        Shelf::Chardevs => {
            let kind = |pairs: &Pairs| format!("chardev-{}", pairs.get("backend").unwrap_or_default());
            let chardevs = backends.chardevs.iter();
            chardevs
                .map(|(name, pairs)| child(name, &kind(pairs), path(name)))
                .collect()
        }
        Shelf::Peripheral | Shelf::Anonymous => {
            let below = |plugged: &Arc<Plugged>| {
                let name = plugged.path().strip_prefix(shelf.path())?.strip_prefix('/')?;
                Some(child(name, plugged.driver(), plugged.path().to_owned()))
            };
            context.target.inventory().list().iter().filter_map(below).collect()
        }
    }
}

/// What management refers to by name, and shows by that name.
const REFERENCES: [&str; 5] = ["drive", "netdev", "chardev", "rng", "iothread"];
/// How often a balloon asks for statistics, in seconds.
const POLLING: &str = "guest-stats-polling-interval";

fn device(plugged: &Plugged, behind: bool) -> Vec<Property> {
    let mut all = vec![
        property("realized", "bool", true),
        property("hotpluggable", "bool", true),
    ];
    for name in REFERENCES {
        if let Some(id) = plugged.reference(name) {
            all.push(property(name, "str", id));
        }
    }
    let options = types::options_of(plugged.driver()).unwrap_or_default();
    for spec in options
        .into_iter()
        .filter(|spec| plugged.reference(spec.name).is_none())
    {
        if let Some(value) = types::property_value(spec, plugged.pairs()) {
            all.push(property(spec.name, types::property_type(spec.kind), value));
        }
    }
    if let Place::Slot(slot) = plugged.place() {
        all.retain(|property| property.name != "addr");
        all.push(property("addr", "int32", slot.address.devfn()));
        if !behind {
            all.push(child("virtio-backend", &behind_type(plugged), plugged.backend_path()));
        }
    }
    if let Control::Balloon(balloon) = plugged.control() {
        all.push(property(POLLING, "int", balloon.polling_interval().as_secs()));
        all.push(property("guest-stats", "guest statistics", statistics(&balloon)));
    }
    all
}

/// As QEMU writes them: what the guest does not have is all ones.
fn statistics(balloon: &BalloonControl) -> Value {
    let stats = balloon.stats();
    let value = |stat: Stat| (stat.name().to_owned(), json!(stats.get(stat).unwrap_or(u64::MAX)));
    let values: Map<String, Value> = Stat::ALL.into_iter().map(value).collect();
    let at = stats
        .last_update
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    json!({"stats": values, "last-update": at.map_or(0, |at| at.as_secs())})
}

fn set_polling(balloon: &BalloonControl, value: &Value) -> Result<(), Error> {
    let Some(seconds) = value.as_i64() else {
        let problem = format!("Invalid parameter type for '{POLLING}', expected: integer");
        return Err(Error::new(problem));
    };
    let seconds = u32::try_from(seconds).map_err(|_| Error::new("timer value must be from 0 to 4294967295"))?;
    balloon
        .set_polling_interval(Duration::from_secs(seconds.into()))
        .map_err(Error::new)
}
