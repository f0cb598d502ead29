//! Network cards and what they are plugged into.

use std::sync::Arc;
use std::time::Duration;

use devices::virtio::info::Control;
use devices::virtio::net::{AnnounceParameters, NetControl};

use super::{Command, Context, command};
use crate::machine::inventory::Plugged;
use crate::qmp::error::Error;
use crate::qmp::schema::{Nothing, enumerations, structures};
use crate::qmp::target::Shown;

pub(super) static COMMANDS: &[Command] = &[
    command!("set_link", set_link),
    command!("announce-self", announce_self),
    command!("query-rx-filter", query_rx_filter),
];

enumerations! {
    enum RxState {
        Normal = "normal",
        None = "none",
        All = "all",
    }
}

structures! {
    struct Link {
        name: String,
        up: bool,
    }
    struct Announce {
        initial: i64,
        max: i64,
        rounds: i64,
        step: i64,
        interfaces: Option<Vec<String>>,
        id: Option<String>,
    }
    struct FilterOf {
        name: Option<String>,
    }
    struct RxFilterInfo {
        name: String,
        promiscuous: bool,
        multicast: RxState,
        unicast: RxState,
        vlan: RxState,
        broadcast_allowed as "broadcast-allowed": bool,
        multicast_overflow as "multicast-overflow": bool,
        unicast_overflow as "unicast-overflow": bool,
        main_mac as "main-mac": String,
        vlan_table as "vlan-table": Vec<i64>,
        unicast_table as "unicast-table": Vec<String>,
        multicast_table as "multicast-table": Vec<String>,
    }
}

/// All network cards.
pub(super) fn cards(context: &Context<'_>) -> Vec<(Arc<Plugged>, NetControl)> {
    let devices = context.target.inventory().list().into_iter();
    let card = |plugged: Arc<Plugged>| match plugged.control() {
        Control::Net(control) if plugged.slot().is_some() => Some((plugged, control)),
        _ => None,
    };
    devices.filter_map(card).collect()
}

/// By the card's name or by that of its network: either end of the cable will do.
fn set_link(context: &Context<'_>, arguments: Link) -> Result<Nothing, Error> {
    let name = arguments.name.as_str();
    let named = |plugged: &Plugged| plugged.label() == name || plugged.reference("netdev") == Some(name);
    let cards = cards(context);
    let found = cards.iter().find(|(plugged, _)| named(plugged));
    let (_, control) = found.ok_or_else(|| Error::device_not_found(name))?;
    control.set_link(arguments.up);
    Ok(Nothing {})
}

/// VLAN ids that there are (802.1Q).
const VLANS: u16 = 1 << 12;

/// The bounds of QEMU's times and rounds (migration/options.c, `migrate_announce_params` and its checks).
const LONGEST: i64 = 100_000;
const MOST_ROUNDS: i64 = 1000;

fn announce_self(context: &Context<'_>, arguments: Announce) -> Result<Nothing, Error> {
    let milliseconds = |name: &str, value: i64| match u64::try_from(value) {
        Ok(value) if value <= LONGEST.cast_unsigned() => Ok(Duration::from_millis(value)),
        _ => Err(Error::new(format_args!(
            "Parameter '{name}' expects a value between 0 and {LONGEST}"
        ))),
    };
    let rounds = u32::try_from(arguments.rounds)
        .ok()
        .filter(|rounds| i64::from(*rounds) <= MOST_ROUNDS);
    let rounds = rounds.ok_or_else(|| {
        Error::new(format_args!(
            "Parameter 'rounds' expects a value between 0 and {MOST_ROUNDS}"
        ))
    })?;
    let parameters = AnnounceParameters {
        initial: milliseconds("initial", arguments.initial)?,
        max: milliseconds("max", arguments.max)?,
        rounds,
        step: milliseconds("step", arguments.step)?,
    };
    let wanted = |plugged: &Plugged| {
        let only = arguments.interfaces.as_ref().filter(|names| !names.is_empty());
        only.is_none_or(|names| names.iter().any(|name| name == plugged.label()))
    };
    for (_, control) in cards(context).iter().filter(|(plugged, _)| wanted(plugged)) {
        control.announce(parameters);
    }
    Ok(Nothing {})
}

fn query_rx_filter(context: &Context<'_>, arguments: FilterOf) -> Result<Vec<RxFilterInfo>, Error> {
    let wanted = |plugged: &Plugged| arguments.name.as_deref().is_none_or(|name| plugged.label() == name);
    let cards = cards(context).into_iter().filter(|(plugged, _)| wanted(plugged));
    let filters: Vec<_> = cards.map(|(plugged, control)| filter(&plugged, &control)).collect();
    match arguments.name {
        Some(name) if filters.is_empty() => Err(Error::new(format_args!("invalid net client name: {name}"))),
        _ => Ok(filters),
    }
}

fn filter(plugged: &Plugged, control: &NetControl) -> RxFilterInfo {
    let filter = control.filter();
    let modes = filter.modes;
    let state = |none: bool, all: bool| match (none, all) {
        (true, _) => RxState::None,
        (false, true) => RxState::All,
        (false, false) => RxState::Normal,
    };
    let filters_vlans = control.filters_vlans();
    // Without the feature every VLAN passes, and QEMU lists them all; from the highest.
    let vlans: Vec<_> = (0..VLANS)
        .rev()
        .filter(|id| !filters_vlans || filter.vlans.contains(*id))
        .map(i64::from)
        .collect();
    RxFilterInfo {
        name: plugged.label().to_owned(),
        promiscuous: modes.promisc,
        multicast: state(modes.nomulti, modes.allmulti),
        unicast: state(modes.nouni, modes.alluni),
        vlan: state(vlans.is_empty(), !filters_vlans),
        broadcast_allowed: !modes.nobcast,
        multicast_overflow: filter.multicast.overflow,
        unicast_overflow: filter.unicast.overflow,
        main_mac: filter.mac.to_string(),
        vlan_table: vlans,
        unicast_table: filter.unicast.addresses.iter().map(ToString::to_string).collect(),
        multicast_table: filter.multicast.addresses.iter().map(ToString::to_string).collect(),
    }
}
