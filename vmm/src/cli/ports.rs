//! `--console` and `--port`: what leads out of the guest without a network.

use devices::virtio::info::{ChildInfo, DeviceInfo};
use devices::virtio::options::Pairs;
use devices::virtio::{console, info};

use crate::config::DeviceConfig;

/// The bus that consoles and ports sit on.
const BUS: &DeviceInfo = &console::INFO;
/// Ports that a bus has if the user does not say, as in QEMU; the first is for a console.
const DEFAULT_PORTS: usize = 31;

/// Reads where a console leads to.
///
/// # Errors
/// In one line, what can be said instead.
pub(super) fn parse_console(text: &str) -> Result<Pairs, String> {
    let pairs = far_end(Pairs::parse(text, None));
    match pairs.get("backend") {
        Some(_) => Ok(pairs),
        None => Err("use stdio, null, pty, file=PATH, socket=PATH or fd=N".into()),
    }
}

/// Reads a port.
///
/// # Errors
/// In one line, what can be said instead.
pub(super) fn parse_port(text: &str) -> Result<Pairs, String> {
    let pairs = far_end(Pairs::parse(text, Some("name")));
    match pairs.get("name") {
        Some(_) => Ok(pairs),
        None => Err(
            "use name=NAME and where it leads to: socket=PATH, pty, file=PATH, fd=N or null, such as \
             name=org.qemu.guest_agent.0,socket=agent.sock"
                .into(),
        ),
    }
}

/// Whether it is this process' own terminal.
pub(super) fn is_stdio(console: &Pairs) -> bool {
    console.get("backend") == Some("stdio")
}

/// Our short words for far ends, made into the options that there are.
fn far_end(pairs: Pairs) -> Pairs {
    let mut options = Pairs::default();
    for (key, value) in pairs {
        match (key.as_str(), value.as_str()) {
            ("stdio" | "null" | "pty", "on") => options.push("backend", key),
            ("file", _) => {
                options.push("backend", "file");
                options.push("path", value);
            }
            ("socket", _) => {
                options.push("backend", "socket");
                options.push("path", value);
                options.push("server", "on");
                options.push("wait", "off");
            }
            ("fd", _) => {
                options.push("backend", "fd");
                options.push("fd", value);
            }
            _ => options.push(key, value),
        }
    }
    options
}

/// Adds consoles and ports to `devices`. If a bus is needed and the user has asked for none, there is one, in front of
/// everything that was named by its name, which is `devices` from `named` on. On a `terminal` its size is told, and Ctrl-A is an
/// escape.
pub(super) fn add_to(
    devices: &mut Vec<DeviceConfig>,
    named: usize,
    consoles: &[Pairs],
    ports: &[Pairs],
    terminal: bool,
) {
    let is_child = |device: &&DeviceConfig| {
        let row = info::CHILDREN.iter().find(|row: &&&ChildInfo| row.name == device.name);
        row.is_some_and(|row| std::ptr::eq(row.parent, BUS))
    };
    let is_bus = |device: &DeviceConfig| info::find(&device.name).is_ok_and(|(row, _)| std::ptr::eq(row, BUS));
    let children = devices.iter().filter(is_child).count() + consoles.len() + ports.len();
    if children > 0 && !devices.iter().any(is_bus) {
        let mut options = Pairs::default();
        // One more, because the first is for a console.
        if children >= DEFAULT_PORTS {
            options.push("max_ports", (children + 1).to_string());
        }
        if terminal && consoles.iter().any(is_stdio) {
            options.push("console-size", "on");
        }
        devices.insert(named.min(devices.len()), DeviceConfig::new(BUS.name, options));
    }
    for console in consoles {
        let mut options = console.clone();
        if terminal && is_stdio(console) {
            options.push("escapes", "on");
        }
        devices.push(DeviceConfig::new(console::VIRTCONSOLE.name, options));
    }
    let plain = |options: &Pairs| DeviceConfig::new(console::VIRTSERIALPORT.name, options.clone());
    devices.extend(ports.iter().map(plain));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(devices: &[DeviceConfig]) -> Vec<String> {
        let line = |device: &DeviceConfig| format!("{},{}", device.name, device.options);
        devices.iter().map(line).collect()
    }

    #[test]
    fn short_words_become_the_options_of_ports() {
        let console = parse_console("stdio").unwrap();
        let agent = parse_port("name=org.qemu.guest_agent.0,socket=/run/agent.sock").unwrap();
        let pty = parse_port("org.example.x,pty,nr=5").unwrap();
        let mut devices = vec![DeviceConfig::parse("virtio-blk-pci", "path=a", None)];
        add_to(&mut devices, 1, &[console], &[agent, pty], true);
        assert_eq!(
            lines(&devices),
            [
                "virtio-blk-pci,path=a",
                "virtio-serial-pci,console-size=on",
                "virtconsole,backend=stdio,escapes=on",
                "virtserialport,name=org.qemu.guest_agent.0,backend=socket,path=/run/agent.sock,server=on,wait=off",
                "virtserialport,name=org.example.x,backend=pty,nr=5",
            ]
        );
    }

    #[test]
    fn a_bus_is_made_only_when_it_is_needed_and_large_enough() {
        let mut none = vec![DeviceConfig::parse("virtio-rng-pci", "", None)];
        add_to(&mut none, 0, &[], &[], false);
        assert_eq!(none.len(), 1);
        let named = |name: &str| DeviceConfig::parse(name, "", None);
        let mut theirs = vec![named("virtio-serial"), named("virtserialport")];
        add_to(&mut theirs, 0, &[], &[], false);
        assert_eq!(theirs.len(), 2);
        let mut alone = vec![named("virtserialport")];
        add_to(&mut alone, 0, &[], &[], false);
        assert_eq!(lines(&alone), ["virtio-serial-pci,", "virtserialport,"]);
        let mut many = Vec::new();
        let port = |number: usize| parse_port(&format!("name=p{number},null")).unwrap();
        add_to(&mut many, 0, &[], &(0..40).map(port).collect::<Vec<_>>(), false);
        assert_eq!(lines(&many)[0], "virtio-serial-pci,max_ports=41");
    }

    #[test]
    fn what_is_no_far_end_is_refused() {
        assert!(parse_console("tty").unwrap_err().contains("socket=PATH"));
        assert!(parse_port("socket=/run/x").unwrap_err().contains("name=NAME"));
    }
}
