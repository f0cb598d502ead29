//! The balloon.

use devices::virtio::balloon::BalloonControl;
use devices::virtio::info::Control;

use super::{Command, Context, command};
use crate::qmp::error::{Error, ErrorClass};
use crate::qmp::schema::{Nothing, structures};

pub(super) static COMMANDS: &[Command] = &[command!("query-balloon", query_balloon), command!("balloon", balloon)];

structures! {
    struct BalloonInfo {
        actual: u64,
    }
    struct BalloonTarget {
        value: i64,
    }
}

/// The machine's balloon, the first if there are several.
pub(super) fn find(context: &Context<'_>) -> Result<BalloonControl, Error> {
    let devices = context.target.inventory().list();
    let balloon = devices.iter().find_map(|plugged| match plugged.control() {
        Control::Balloon(control) => Some(control),
        _ => None,
    });
    balloon.ok_or_else(|| Error::with_class(ErrorClass::DeviceNotActive, "No balloon device has been activated"))
}

fn query_balloon(context: &Context<'_>, _: Nothing) -> Result<BalloonInfo, Error> {
    let actual = find(context)?.actual();
    Ok(BalloonInfo { actual })
}

fn balloon(context: &Context<'_>, arguments: BalloonTarget) -> Result<Nothing, Error> {
    let control = find(context)?;
    match u64::try_from(arguments.value) {
        Ok(bytes) if bytes > 0 => control.set_target(bytes).map_err(Error::new)?,
        _ => return Err(Error::new("Parameter 'target' expects a size")),
    }
    Ok(Nothing {})
}
