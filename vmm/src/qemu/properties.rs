//! Properties of QEMU's devices, made into options of ours.

use devices::virtio::options::{ConfigError, Pairs};

use super::backends::{Backends, Named};
use crate::config::DeviceConfig;

/// The device with its references resolved.
pub(super) fn translate(device: &str, mut pairs: Pairs, backends: &Backends) -> Result<DeviceConfig, ConfigError> {
    for (key, named) in [
        ("drive", &backends.drives),
        ("netdev", &backends.netdevs),
        ("chardev", &backends.chardevs),
    ] {
        if let Some(id) = pairs.take(key) {
            let inline = referred(device, key, &id, named)?;
            pairs.extend(inline.clone());
        }
    }
    Ok(DeviceConfig::new(device, pairs))
}

/// What `key=id` of `device` refers to.
fn referred<'a>(device: &str, key: &str, id: &str, named: &'a Named) -> Result<&'a Pairs, ConfigError> {
    named.get(id).ok_or_else(|| {
        let remedy = match key {
            "drive" => format!("add -drive if=none,id={id},... or -blockdev node-name={id},..."),
            "rng" | "iothread" => format!("add -object ...,id={id}"),
            _ => format!("add -{key} ...,id={id}"),
        };
        ConfigError::refused(
            device,
            format_args!("{key}={id}: there is nothing of that name"),
            remedy,
        )
    })
}
