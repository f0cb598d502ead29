//! Devices that come and go.

use super::{Command, Context, command};
use crate::machine::inventory::UnplugError;
use crate::qmp::error::Error;
use crate::qmp::pairs;
use crate::qmp::schema::{Checked, Member, Nothing, Object, Qapi, Type, structures};
use crate::qmp::target::{Board, find_device};
use crate::qmp::watch::watch;

pub(super) static COMMANDS: &[Command] = &[command!("device_add", device_add), command!("device_del", device_del)];

structures! {
    struct DeviceId {
        id: String,
    }
}

/// The arguments of `device_add`: three that every device has, and the device's own.
struct DeviceAdd;

impl Qapi for DeviceAdd {
    const TYPE: Type = {
        static OBJECT: Object = Object {
            members: &[
                Member::required("driver", Type::Str),
                Member::optional("bus", Type::Str),
                Member::optional("id", Type::Str),
            ],
            variants: None,
            open: true,
        };
        Type::Object(&OBJECT)
    };
}

fn device_add(context: &Context<'_>, arguments: Checked<DeviceAdd>) -> Result<Nothing, Error> {
    let mut pairs = pairs::flatten(arguments.members);
    let driver = pairs.take("driver").unwrap_or_default();
    if let Some(id) = pairs.get("id") {
        pairs::check_id("id", id)?;
        if context.target.inventory().find(id).is_some() {
            return Err(Error::new(format_args!("Duplicate device ID '{id}'")));
        }
    }
    if context.target.about().board == Board::None {
        return Err(Error::new(format_args!("No 'PCI' bus found for device '{driver}'")));
    }
    let config = context.backends().resolve(&driver, pairs)?;
    let inventory = context.target.inventory();
    let plugged = inventory.hot_plug(&config).map_err(Error::new)?;
    watch(&plugged, inventory, &context.backends(), context.monitors);
    Ok(Nothing {})
}

fn device_del(context: &Context<'_>, arguments: DeviceId) -> Result<Nothing, Error> {
    let device = find_device(context.target, &arguments.id)?;
    match context.target.inventory().unplug(device.path()) {
        Ok(()) => Ok(Nothing {}),
        Err(UnplugError::NotFound(_)) => Err(Error::device_not_found(&arguments.id)),
        Err(error @ UnplugError::NoHotplug) => Err(Error::new(error)),
    }
}
