//! What devices refer to by name, coming and going: networks, disks, character devices, objects.

use devices::virtio::block::backend::NULL_PREFIX;
use devices::virtio::options::Pairs;
use serde_json::{Map, Value};

use super::{Command, Context, command};
use crate::qmp::error::Error;
use crate::qmp::options as types;
use crate::qmp::pairs;
use crate::qmp::schema::{Checked, Nothing, structures};
use crate::qmp::target::Shown;

pub(super) static COMMANDS: &[Command] = &[
    command!("netdev_add", netdev_add),
    command!("netdev_del", netdev_del),
    command!("chardev-add", chardev_add),
    command!("chardev-remove", chardev_remove),
    command!("query-chardev", query_chardev),
    command!("object-add", object_add),
    command!("object-del", object_del),
    command!("blockdev-add", blockdev_add),
    command!("blockdev-del", blockdev_del),
];

structures! {
    struct Id {
        id: String,
    }
    struct NodeName {
        node_name as "node-name": String,
    }
    struct ChardevInfo {
        label: String,
        filename: String,
        frontend_open as "frontend-open": bool,
    }
    struct ChardevAdd {
        id: String,
        backend: ChardevBackend,
    }
    struct ChardevReturn {
        pty: Option<String>,
    }
}

/// A union of QEMU's, checked, on its way to where it is understood.
type ChardevBackend = Checked<types::ChardevBackend>;

/// Does a device refer to `name` by `property`?
pub(super) fn is_used(context: &Context<'_>, property: &str, name: &str) -> bool {
    let devices = context.target.inventory().list();
    devices.iter().any(|plugged| plugged.reference(property) == Some(name))
}

fn netdev_add(context: &Context<'_>, arguments: Checked<types::Netdev>) -> Result<Nothing, Error> {
    let mut members = arguments.members;
    let id = id_of(&members, "id")?;
    let mut backends = context.backends();
    if backends.netdevs.contains_key(&id) {
        return Err(Error::new(format_args!("Duplicate ID '{id}'")));
    }
    let mut pairs = Pairs::default();
    // Lists of strings in wrappers, which the command line says by repeating the option.
    for name in types::STRING_LISTS {
        for text in strings(members.remove(name)) {
            pairs.push(name, text);
        }
    }
    pairs.extend(pairs::flatten(members));
    backends.add_netdev(pairs)?;
    Ok(Nothing {})
}

/// The strings of `[{"str": ...}, ...]`.
fn strings(list: Option<Value>) -> Vec<String> {
    let Some(Value::Array(elements)) = list else {
        return Vec::new();
    };
    let text = |element: &Value| element.get("str")?.as_str().map(str::to_owned);
    elements.iter().filter_map(text).collect()
}

fn id_of(members: &Map<String, Value>, name: &str) -> Result<String, Error> {
    let id = members.get(name).and_then(Value::as_str).unwrap_or_default();
    pairs::check_id(name, id)?;
    Ok(id.to_owned())
}

fn netdev_del(context: &Context<'_>, arguments: Id) -> Result<Nothing, Error> {
    let removed = context.backends().netdevs.remove(&arguments.id);
    removed
        .map(|_| Nothing {})
        .ok_or_else(|| Error::device_not_found(&arguments.id))
}

fn chardev_add(context: &Context<'_>, arguments: ChardevAdd) -> Result<ChardevReturn, Error> {
    pairs::check_id("id", &arguments.id)?;
    let id = arguments.id;
    let exists = context.monitors.views().iter().any(|monitor| monitor.label == id);
    let mut backends = context.backends();
    if exists || backends.chardevs.contains_key(&id) {
        return Err(Error::new(format_args!("Chardev with id '{id}' already exists")));
    }
    let mut members = arguments.backend.members;
    let kind = members
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if kind == "pty" {
        let remedy =
            "A pty is made for its device when the machine starts; give it on the command line, or use a socket";
        return Err(Error::new(remedy));
    }
    let mut pairs = Pairs::default();
    pairs.push("backend", kind.as_str());
    pairs.push("id", id);
    let data = members.remove("data");
    if let Some(Value::Object(data)) = data {
        pairs.extend(chardev_options(&kind, data));
    }
    backends.add_chardev(pairs)?;
    Ok(ChardevReturn { pty: None })
}

/// The options of `-chardev` for what QMP has in structures of its own.
fn chardev_options(kind: &str, mut data: Map<String, Value>) -> Pairs {
    let renamed = match kind {
        "file" => Some(("out", "path")),
        "pipe" => Some(("device", "path")),
        _ => None,
    };
    if let Some((from, to)) = renamed
        && let Some(value) = data.remove(from)
    {
        data.insert(to.to_owned(), value);
    }
    if let Some(Value::Object(address)) = data.remove("addr")
        && let Some(Value::Object(parts)) = address.get("data")
    {
        data.extend(parts.clone());
    }
    pairs::flatten(data)
}

fn chardev_remove(context: &Context<'_>, arguments: Id) -> Result<Nothing, Error> {
    let id = &arguments.id;
    let is_monitor = context.monitors.views().iter().any(|monitor| monitor.label == *id);
    if is_monitor || is_used(context, "chardev", id) {
        return Err(Error::new(format_args!("Chardev '{id}' is busy")));
    }
    let removed = context.backends().chardevs.remove(id);
    removed
        .map(|_| Nothing {})
        .ok_or_else(|| Error::new(format_args!("Chardev '{id}' not found")))
}

fn query_chardev(context: &Context<'_>, _: Nothing) -> Result<Vec<ChardevInfo>, Error> {
    let backends = context.backends();
    let named = backends.chardevs.iter().map(|(label, pairs)| ChardevInfo {
        label: label.clone(),
        filename: chardev_filename(pairs),
        frontend_open: is_used(context, "chardev", label),
    });
    let mut all: Vec<_> = named.collect();
    for monitor in context.monitors.views() {
        all.retain(|chardev| chardev.label != monitor.label);
        let filename = if monitor.connected {
            monitor.filename
        } else {
            format!("disconnected:{}", monitor.filename)
        };
        all.push(ChardevInfo {
            label: monitor.label,
            filename,
            frontend_open: true,
        });
    }
    Ok(all)
}

/// What a character device leads to, as QEMU writes it.
fn chardev_filename(pairs: &Pairs) -> String {
    let kind = pairs.get("backend").unwrap_or_default();
    let server = match pairs.get("server") {
        Some("on" | "yes" | "true" | "y") => ",server=on",
        _ => "",
    };
    match (kind, pairs.get("path"), pairs.get("port")) {
        ("socket", Some(path), _) => format!("unix:{path}{server}"),
        ("socket", None, Some(port)) => format!("tcp:{}:{port}{server}", pairs.get("host").unwrap_or("0.0.0.0")),
        _ => kind.to_owned(),
    }
}

fn object_add(context: &Context<'_>, arguments: Checked<types::ObjectOptions>) -> Result<Nothing, Error> {
    let id = id_of(&arguments.members, "id")?;
    let pairs = pairs::flatten(arguments.members);
    let mut backends = context.backends();
    if backends.objects.contains_key(&id) {
        return Err(Error::new(format_args!(
            "attempt to add duplicate property '{id}' to object (type 'container')"
        )));
    }
    match pairs.get("qom-type") {
        Some("iothread") => context.target.inventory().add_io_thread(&id).map_err(Error::new)?,
        Some(kind) if kind.starts_with("memory-backend-") => {
            return Err(Error::new(
                "Memory cannot be added to a machine that is there; give it on the command line",
            ));
        }
        _ => {}
    }
    backends.add_object(pairs)?;
    Ok(Nothing {})
}

fn object_del(context: &Context<'_>, arguments: Id) -> Result<Nothing, Error> {
    let id = &arguments.id;
    let mut backends = context.backends();
    let Some(pairs) = backends.objects.get(id) else {
        return Err(Error::new(format_args!("object '{id}' not found")));
    };
    let kind = pairs.get("qom-type").unwrap_or_default();
    let used = ["rng", "iothread"]
        .iter()
        .any(|property| is_used(context, property, id))
        || kind.starts_with("memory-");
    if used {
        return Err(Error::new(format_args!("object '{id}' is in use, can not be deleted")));
    }
    if kind == "iothread" {
        context.target.inventory().remove_io_thread(id).map_err(Error::new)?;
    }
    backends.objects.remove(id);
    Ok(Nothing {})
}

fn blockdev_add(context: &Context<'_>, arguments: Checked<types::BlockdevOptions>) -> Result<Nothing, Error> {
    let members = arguments.members;
    if !members.contains_key("node-name") {
        return Err(Error::new("'node-name' must be specified for the root node"));
    }
    let name = members
        .get("node-name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let mut backends = context.backends();
    if backends.drives.contains_key(&name) {
        return Err(Error::new(format_args!("Duplicate nodes with node-name='{name}'")));
    }
    backends.add_blockdev(pairs::flatten(members))?;
    let path = backends
        .drives
        .get(&name)
        .and_then(|drive| drive.get("path"))
        .unwrap_or_default();
    let unreadable = match path.starts_with(NULL_PREFIX) {
        true => None,
        false => std::fs::metadata(path)
            .err()
            .map(|error| format!("Could not open '{path}': {error}")),
    };
    match unreadable {
        None => Ok(Nothing {}),
        Some(problem) => {
            backends.drives.remove(&name);
            Err(Error::new(problem))
        }
    }
}

fn blockdev_del(context: &Context<'_>, arguments: NodeName) -> Result<Nothing, Error> {
    let name = &arguments.node_name;
    if is_used(context, "drive", name) {
        return Err(Error::new(format_args!("Node {name} is in use")));
    }
    if context.backends().remove_drive(name) {
        Ok(Nothing {})
    } else {
        Err(Error::new(format_args!("Failed to find node with node-name='{name}'")))
    }
}
