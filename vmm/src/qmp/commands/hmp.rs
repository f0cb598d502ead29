//! Commands for people: the lines that QEMU's other monitor takes, as far as tools send them.

use std::fmt::{self, Write};

use super::virtio::{OfDevice, OfElement, OfQueue};
use super::{Command, Context, backend, balloon, block, command, net, pci, virtio};
use crate::machine::inventory::{Place, Plugged};
use crate::qemu::keyval;
use crate::qmp::error::Error;
use crate::qmp::schema::{Nothing, structures};
use crate::qmp::target::{Board, Order, Shown};
use crate::qmp::types;

pub(super) static COMMANDS: &[Command] = &[command!("human-monitor-command", human_monitor_command)];

structures! {
    struct Line {
        command_line as "command-line": String,
        cpu_index as "cpu-index": Option<i64>,
    }
}

/// What a line asks for: its words behind the command's own.
type Answer = fn(&Context<'_>, &[&str]) -> Result<String, Error>;

/// Commands by their words, what they take behind them, and what they do.
const LINES: &[(&str, &str, &str, Answer)] = &[
    (
        "drive_add",
        "bus if=none,id=name[,option]",
        "add a drive, which goes with the device that shows it",
        drive_add,
    ),
    ("drive_del", "device", "remove a drive that no device shows", drive_del),
    ("help", "", "show the help", help),
    ("info balloon", "", "show balloon information", info_balloon),
    ("info block", "", "show info of all block devices", info_block),
    ("info network", "", "show the network state", info_network),
    ("info pci", "", "show PCI info", info_pci),
    ("info qtree", "", "show device tree", info_qtree),
    ("info status", "", "show the current VM status", info_status),
    ("info virtio", "", "list all available virtio devices", info_virtio),
    (
        "info virtio-queue-element",
        "path queue [index]",
        "display element of a given virtio queue",
        info_virtio_element,
    ),
    (
        "info virtio-queue-status",
        "path queue",
        "display status of a given virtio queue",
        info_virtio_queue,
    ),
    (
        "info virtio-status",
        "path",
        "display status of a given virtio device",
        info_virtio_status,
    ),
    ("quit", "", "quit the emulator", quit),
    ("stop", "", "stop emulation", stop),
    ("cont", "", "resume emulation", cont),
    ("system_powerdown", "", "send system power down event", system_powerdown),
    ("system_reset", "", "reset the system", system_reset),
];

fn human_monitor_command(context: &Context<'_>, arguments: Line) -> Result<String, Error> {
    Ok(answer_line(context, &arguments.command_line))
}

/// Does what a line says. What went wrong stands in the answer, as in a monitor for people. Its lines end as terminals have it.
pub fn answer_line(context: &Context<'_>, line: &str) -> String {
    let text = answer(context, line).unwrap_or_else(|error| format!("Error: {error}\n"));
    text.replace('\n', "\r\n")
}

fn answer(context: &Context<'_>, line: &str) -> Result<String, Error> {
    let words: Vec<_> = line.split_whitespace().collect();
    let fits = |(name, ..): &&(&str, &str, &str, Answer)| {
        let name: Vec<_> = name.split(' ').collect();
        words.starts_with(&name)
    };
    match LINES.iter().find(fits) {
        Some((name, _, _, run)) => run(context, words.get(name.split(' ').count()..).unwrap_or_default()),
        None if words.is_empty() => Ok(String::new()),
        None if words == ["info"] => Ok(list("info ")),
        None => {
            let shown = if words.first() == Some(&"info") { 2 } else { 1 };
            let name = words.get(..shown).unwrap_or(&words).join(" ");
            Ok(format!("unknown command: '{name}'\n"))
        }
    }
}

fn list(prefix: &str) -> String {
    let mut text = String::new();
    for (name, arguments, help, _) in LINES.iter().filter(|(name, ..)| name.starts_with(prefix)) {
        let _ = writeln!(text, "{name} {arguments} -- {help}");
    }
    text
}

fn help(_: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    Ok(list(""))
}

/// The first word is the bus of a controller, of which there is none.
fn drive_add(context: &Context<'_>, words: &[&str]) -> Result<String, Error> {
    let [_, options] = words else {
        return Err(Error::new("drive_add: write 0 if=none,id=NAME,file=FILE"));
    };
    let mut pairs = keyval::parse("drive_add", options, None)?;
    match pairs.take("if").as_deref() {
        Some("none") => context.backends().add_drive(pairs)?,
        other => {
            let other = other.unwrap_or("ide");
            return Err(Error::new(format_args!(
                "Can't hot-add drive to type {other}: write if=none"
            )));
        }
    }
    Ok("OK\n".to_owned())
}

fn drive_del(context: &Context<'_>, words: &[&str]) -> Result<String, Error> {
    let [name] = words else {
        return Err(Error::new("drive_del: write the drive's name"));
    };
    if backend::is_used(context, "drive", name) {
        return Err(Error::new(format_args!("'{name}' is in use: delete the device first")));
    }
    if !context.backends().is_drive(name) {
        return Err(Error::new(format_args!("Device '{name}' not found")));
    }
    context.backends().remove_drive(name);
    Ok(String::new())
}

fn order(context: &Context<'_>, order: Order) -> Result<String, Error> {
    context.target.order(order).map(|()| String::new())
}

fn quit(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    order(context, Order::Quit)
}

fn stop(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    order(context, Order::Stop)
}

fn cont(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    order(context, Order::Cont)
}

fn system_reset(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    order(context, Order::Reset)
}

fn system_powerdown(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    order(context, Order::Powerdown)
}

fn info_status(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    Ok(format!("VM status: {}\n", context.target.run_state().word()))
}

fn info_balloon(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    Ok(format!("balloon: actual={}\n", balloon::find(context)?.actual() >> 20))
}

/// Writes lines; into memory, which cannot fail.
fn written(write: impl FnOnce(&mut String) -> fmt::Result) -> Result<String, Error> {
    let mut text = String::new();
    write(&mut text).map_err(Error::new)?;
    Ok(text)
}

fn info_block(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    written(|text| {
        for (index, disk) in block::all(context).iter().enumerate() {
            if index > 0 {
                writeln!(text)?;
            }
            let name = [&disk.device, disk.qdev.as_ref().unwrap_or(&disk.device)]
                .into_iter()
                .find(|name| !name.is_empty());
            write!(text, "{}", name.map_or("", String::as_str))?;
            if let Some(medium) = &disk.inserted {
                if let Some(node) = &medium.node_name {
                    write!(text, " ({node})")?;
                }
                let readonly = if medium.ro { ", read-only" } else { "" };
                writeln!(text, ": {} ({}{readonly})", medium.file, medium.drv)?;
                if let Some(qdev) = &disk.qdev {
                    writeln!(text, "    Attached to:      {qdev}")?;
                }
                let cache = &medium.cache;
                let mode = if cache.writeback { "writeback" } else { "writethrough" };
                let direct = if cache.direct { ", direct" } else { "" };
                let no_flush = if cache.no_flush { ", ignore flushes" } else { "" };
                writeln!(text, "    Cache mode:       {mode}{direct}{no_flush}")?;
            }
        }
        Ok(())
    })
}

fn info_network(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    written(|text| {
        for (plugged, control) in net::cards(context) {
            let (label, model, mac) = (plugged.label(), plugged.driver(), control.mac());
            writeln!(text, "{label}: index=0,type=nic,model={model},macaddr={mac}")?;
            let network = plugged.reference("netdev").unwrap_or("network");
            writeln!(text, " \\ {network}: {}", control.describe_backend())?;
        }
        Ok(())
    })
}

fn info_pci(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    let buses = pci::buses(context)?;
    written(|text| {
        for device in buses.iter().flat_map(|bus| &bus.devices) {
            writeln!(
                text,
                "  Bus {:2}, device {:3}, function {}:",
                device.bus, device.slot, device.function
            )?;
            match &device.class_info.desc {
                Some(words) => write!(text, "    {words}")?,
                None => write!(text, "    Class {:04}", device.class_info.class)?,
            }
            let id = &device.id;
            writeln!(text, ": PCI device {:04x}:{:04x}", id.vendor, id.device)?;
            if let (Some(vendor), Some(subsystem)) = (id.subsystem_vendor, id.subsystem) {
                writeln!(text, "      PCI subsystem {vendor:04x}:{subsystem:04x}")?;
            }
            if let Some(irq) = device.irq {
                let pin = char::from(b'A'.saturating_add(u8::try_from(device.irq_pin - 1).unwrap_or(0)));
                writeln!(text, "      IRQ {irq}, pin {pin}")?;
            }
            device.regions.iter().try_for_each(|region| bar(text, region))?;
            writeln!(text, "      id \"{}\"", device.qdev_id)?;
        }
        Ok(())
    })
}

fn bar(text: &mut String, region: &pci::PciMemoryRegion) -> fmt::Result {
    let (base, last) = (region.address, region.address.wrapping_add(region.size - 1));
    write!(text, "      BAR{}: ", region.bar)?;
    if region.of == "io" {
        return writeln!(text, "I/O at 0x{base:04x} [0x{last:04x}].");
    }
    let width = if region.mem_type_64 == Some(true) { 64 } else { 32 };
    let prefetchable = if region.prefetch == Some(true) {
        " prefetchable"
    } else {
        ""
    };
    writeln!(text, "{width} bit{prefetchable} memory at 0x{base:08x} [0x{last:08x}].")
}

fn info_qtree(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    let devices = context.target.inventory().list();
    written(|text| {
        writeln!(text, "bus: main-system-bus\n  type System")?;
        if context.target.about().board == Board::None {
            return Ok(());
        }
        writeln!(text, "  dev: i440FX-pcihost, id \"\"\n    bus: pci.0\n      type PCI")?;
        // The last one first, as in QEMU.
        for plugged in devices.iter().rev().filter(|plugged| plugged.slot().is_some()) {
            qtree_device(text, plugged, 6)?;
            writeln!(text, "        bus: virtio-bus\n          type virtio-pci-bus")?;
            for below in devices.iter().rev().filter(|below| sits_on(below, plugged)) {
                qtree_device(text, below, 10)?;
            }
        }
        Ok(())
    })
}

fn sits_on(plugged: &Plugged, parent: &Plugged) -> bool {
    match plugged.place() {
        Place::Child { parent: actual, .. } => actual.path() == parent.path(),
        Place::Slot(_) => false,
    }
}

fn qtree_device(text: &mut String, plugged: &Plugged, indent: usize) -> fmt::Result {
    let id = plugged.id().unwrap_or_default();
    writeln!(text, "{:indent$}dev: {}, id \"{id}\"", "", plugged.driver())?;
    let inner = indent + 2;
    if let Some(slot) = plugged.slot() {
        let address = slot.address;
        writeln!(
            text,
            "{:inner$}addr = {:02x}.{:x}",
            "",
            address.device(),
            address.function()
        )?;
    }
    for (property, value) in plugged.config().references.iter() {
        writeln!(text, "{:inner$}{property} = \"{value}\"", "")?;
    }
    let options = types::options_of(plugged.driver()).unwrap_or_default();
    for spec in options.into_iter().filter(|spec| !["id", "addr"].contains(&spec.name)) {
        if let Some(value) = types::property_value(spec, plugged.pairs()) {
            writeln!(text, "{:inner$}{} = {value}", "", spec.name)?;
        }
    }
    Ok(())
}

fn info_virtio(context: &Context<'_>, _: &[&str]) -> Result<String, Error> {
    let devices = virtio::x_query_virtio(context, Nothing {})?;
    if devices.is_empty() {
        return Ok("No VirtIO devices\n".to_owned());
    }
    written(|text| {
        devices
            .iter()
            .try_for_each(|device| writeln!(text, "{} [{}]", device.path, device.name))
    })
}

/// The path that comes first, and numbers behind it.
fn path_and_numbers<const N: usize>(words: &[&str]) -> Result<(String, [Option<u16>; N]), Error> {
    let path = words.first().ok_or_else(|| Error::new("a path is missing"))?;
    let mut numbers = [None; N];
    for (number, word) in numbers.iter_mut().zip(words.iter().skip(1)) {
        *number = Some(
            word.parse()
                .map_err(|_| Error::new(format_args!("'{word}' is not a number")))?,
        );
    }
    Ok(((*path).to_owned(), numbers))
}

fn queue_number(number: Option<u16>) -> Result<u16, Error> {
    number.ok_or_else(|| Error::new("a queue is missing"))
}

fn info_virtio_status(context: &Context<'_>, words: &[&str]) -> Result<String, Error> {
    let (path, []) = path_and_numbers(words)?;
    let status = virtio::x_query_virtio_status(context, OfDevice { path: path.clone() })?;
    written(|text| {
        writeln!(text, "{path}:")?;
        for (name, value) in [
            ("device_name", &status.name as &dyn fmt::Display),
            ("device_id", &status.device_id),
            ("vhost_started", &status.vhost_started),
            ("broken", &status.broken),
            ("disabled", &status.disabled),
            ("started", &status.started),
            ("vm_running", &status.vm_running),
            ("num_vqs", &status.num_vqs),
            ("queue_sel", &status.queue_sel),
            ("isr", &status.isr),
            ("endianness", &status.device_endian),
        ] {
            writeln!(text, "  {:<24} {value}", format_args!("{name}:").to_string())?;
        }
        writeln!(text, "  status:")?;
        status
            .status
            .statuses
            .iter()
            .try_for_each(|name| writeln!(text, "\t{name}"))?;
        for (title, features) in [("Guest", &status.guest_features), ("Host", &status.host_features)] {
            writeln!(text, "  {title} features:")?;
            let own = features.dev_features.iter().flatten();
            features
                .transports
                .iter()
                .chain(own)
                .try_for_each(|name| writeln!(text, "\t{name}"))?;
        }
        Ok(())
    })
}

fn info_virtio_queue(context: &Context<'_>, words: &[&str]) -> Result<String, Error> {
    let (path, [queue]) = path_and_numbers(words)?;
    let queue = queue_number(queue)?;
    let status = virtio::x_query_virtio_queue_status(
        context,
        OfQueue {
            path: path.clone(),
            queue,
        },
    )?;
    written(|text| {
        writeln!(text, "{path}:")?;
        for (name, value) in [
            ("device_name", &status.name as &dyn fmt::Display),
            ("queue_index", &status.queue_index),
            ("inuse", &status.inuse),
            ("used_idx", &status.used_idx),
        ] {
            writeln!(text, "  {:<21} {value}", format_args!("{name}:").to_string())?;
        }
        writeln!(text, "  VRing:")?;
        writeln!(text, "    num:          {}", status.vring_num)?;
        writeln!(text, "    num_default:  {}", status.vring_num_default)?;
        writeln!(text, "    align:        {}", status.vring_align)?;
        writeln!(text, "    desc:         0x{:016x}", status.vring_desc)?;
        writeln!(text, "    avail:        0x{:016x}", status.vring_avail)?;
        writeln!(text, "    used:         0x{:016x}", status.vring_used)
    })
}

fn info_virtio_element(context: &Context<'_>, words: &[&str]) -> Result<String, Error> {
    let (path, [queue, index]) = path_and_numbers(words)?;
    let queue = queue_number(queue)?;
    let arguments = OfElement {
        path: path.clone(),
        queue,
        index,
    };
    let element = virtio::x_query_virtio_queue_element(context, arguments)?;
    written(|text| {
        writeln!(
            text,
            "{path}:\n  device_name: {}\n  index:       {}\n  desc:\n    descs:",
            element.name, element.index
        )?;
        for descriptor in &element.descs {
            let flags = descriptor.flags.join(", ");
            writeln!(
                text,
                "        addr 0x{:x} len {} ({flags})",
                descriptor.addr, descriptor.len
            )?;
        }
        let (avail, used) = (&element.avail, &element.used);
        writeln!(
            text,
            "  avail:\n    flags: {}\n    idx:   {}\n    ring:  {}",
            avail.flags, avail.idx, avail.ring
        )?;
        writeln!(text, "  used:\n    flags: {}\n    idx:   {}", used.flags, used.idx)
    })
}
