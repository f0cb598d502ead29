//! Commands of the monitor itself.

use serde_json::Value;

use super::{Command, Context, all, command};
use crate::qmp::error::{Error, ErrorClass};
use crate::qmp::schema::{Nothing, enumerations, introspect, structures};
use crate::qmp::target::Order;

/// The command that a client has to give first.
pub const NEGOTIATION: &str = "qmp_capabilities";

pub(super) static COMMANDS: &[Command] = &[
    command!(NEGOTIATION, qmp_capabilities),
    command!("query-version", query_version),
    command!("query-commands", query_commands),
    command!("query-qmp-schema", query_qmp_schema),
    command!("quit", quit),
];

enumerations! {
    /// What a client can ask for at the start. Nothing of it is offered.
    enum Capability {
        OutOfBand = "oob",
    }
}

structures! {
    struct Capabilities {
        enable: Option<Vec<Capability>>,
    }
    /// The version that we speak the language of.
    pub struct VersionTriple {
        /// QEMU's.
        major: i64,
        /// QEMU's.
        minor: i64,
        /// QEMU's.
        micro: i64,
    }
    /// Who we are.
    pub struct VersionInfo {
        /// As which QEMU we behave.
        qemu: VersionTriple,
        /// Our own name and version.
        package: String,
    }
    struct CommandInfo {
        name: String,
    }
}

/// As which version of QEMU we behave, and who we are.
pub fn version() -> VersionInfo {
    VersionInfo {
        qemu: VersionTriple {
            major: 7,
            minor: 2,
            micro: 0,
        },
        package: concat!("Innkeeper ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

fn qmp_capabilities(context: &Context<'_>, arguments: Capabilities) -> Result<Nothing, Error> {
    if context.link.is_negotiated() {
        let complete = "Capabilities negotiation is already complete, command ignored";
        return Err(Error::with_class(ErrorClass::CommandNotFound, complete));
    }
    let wanted: Vec<_> = arguments
        .enable
        .iter()
        .flatten()
        .map(|capability| capability.word())
        .collect();
    if !wanted.is_empty() {
        return Err(Error::new(format_args!(
            "Capability {} not available",
            wanted.join(", ")
        )));
    }
    context.link.set_negotiated();
    Ok(Nothing {})
}

fn query_version(_: &Context<'_>, _: Nothing) -> Result<VersionInfo, Error> {
    Ok(version())
}

fn query_commands(_: &Context<'_>, _: Nothing) -> Result<Vec<CommandInfo>, Error> {
    let info = |command: &Command| CommandInfo {
        name: command.name.to_owned(),
    };
    Ok(all().map(info).collect())
}

fn query_qmp_schema(_: &Context<'_>, _: Nothing) -> Result<Vec<Value>, Error> {
    Ok(introspect::describe(all()))
}

fn quit(context: &Context<'_>, _: Nothing) -> Result<Nothing, Error> {
    context.target.order(Order::Quit).map(|()| Nothing {})
}
