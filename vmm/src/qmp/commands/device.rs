//! Devices that come and go.

use super::{Command, Context, command};
use crate::qmp::error::Error;
use crate::qmp::pairs;
use crate::qmp::schema::{Checked, Member, Nothing, Object, Qapi, Type, structures};
use crate::qmp::target::DeviceView;

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
                Member::required("driver", Type::Any),
                Member::optional("bus", Type::Any),
                Member::optional("id", Type::Any),
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
        let taken = context
            .target
            .devices()
            .iter()
            .any(|device| device.id.as_deref() == Some(id));
        if taken {
            return Err(Error::new(format_args!("Duplicate device ID '{id}'")));
        }
    }
    let config = {
        let backends = context.target.backends().lock();
        let backends = backends.unwrap_or_else(std::sync::PoisonError::into_inner);
        backends.resolve(&driver, pairs)?
    };
    context.target.plug(config).map(|()| Nothing {})
}

/// The device that management calls `name`: its id, or its path.
pub(super) fn find(context: &Context<'_>, name: &str) -> Result<DeviceView, Error> {
    let devices = context.target.devices();
    let named = |device: &DeviceView| {
        device.id.as_deref() == Some(name) || device.path == name || device.backend_path() == name
    };
    let found = devices.into_iter().find(named);
    found.ok_or_else(|| Error::device_not_found(name))
}

fn device_del(context: &Context<'_>, arguments: DeviceId) -> Result<Nothing, Error> {
    let device = find(context, &arguments.id)?;
    context.target.unplug(&device.path).map(|()| Nothing {})
}
