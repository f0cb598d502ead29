//! The commands, by subject. One table: what it holds is dispatched, listed by `query-commands` and described by `query-qmp-schema`.

mod backend;
mod balloon;
mod block;
mod command_line;
pub mod control;
mod device;
mod hmp;
mod machine;
mod net;
mod pci;
mod qom;
mod run;
mod virtio;

use std::sync::{MutexGuard, PoisonError};

use serde_json::Value;

use super::error::Error;
use super::link::{Link, Monitors};
use super::schema::{self, Arguments, Qapi, Returned, Type};
use super::target::Target;
use crate::qemu::backends::Backends;

pub use self::hmp::answer_line;

/// What commands work with.
pub struct Context<'a> {
    /// The machine.
    pub target: &'a dyn Target,
    /// The way to the client that asks.
    pub link: &'a Link,
    /// All monitors.
    pub monitors: &'a Monitors,
}

impl Context<'_> {
    /// What devices can refer to.
    pub(super) fn backends(&self) -> MutexGuard<'_, Backends> {
        self.target.backends().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub arguments: Type,
    /// What it returns.
    pub returns: Type,
    /// Reads the arguments and does it.
    pub run: fn(&Context<'_>, Value) -> Result<Value, Error>,
}

/// A row of a table of commands: its name, and the function that does it, from which the types come.
macro_rules! command {
    ($name:expr, $function:path) => {
        $crate::qmp::commands::Command {
            name: $name,
            arguments: $crate::qmp::commands::arguments_of(&$function),
            returns: $crate::qmp::commands::returns_of(&$function),
            run: |context, arguments| $crate::qmp::commands::run($function, context, arguments),
        }
    };
}
use command;

const fn arguments_of<A: Arguments, R: Returned, F: Fn(&Context<'_>, A) -> Result<R, Error>>(_: &F) -> Type {
    <A as Qapi>::TYPE
}

const fn returns_of<A: Arguments, R: Returned, F: Fn(&Context<'_>, A) -> Result<R, Error>>(_: &F) -> Type {
    <R as Qapi>::TYPE
}

fn run<A: Arguments, R: Returned>(
    function: impl Fn(&Context<'_>, A) -> Result<R, Error>,
    context: &Context<'_>,
    arguments: Value,
) -> Result<Value, Error> {
    let result = function(context, schema::read(arguments)?)?;
    serde_json::to_value(result).map_err(Error::new)
}

/// The tables of all subjects.
static TABLES: &[&[Command]] = &[
    control::COMMANDS,
    machine::COMMANDS,
    command_line::COMMANDS,
    run::COMMANDS,
    qom::COMMANDS,
    device::COMMANDS,
    backend::COMMANDS,
    pci::COMMANDS,
    block::COMMANDS,
    net::COMMANDS,
    balloon::COMMANDS,
    virtio::COMMANDS,
    hmp::COMMANDS,
];

/// All commands.
pub fn all() -> impl Iterator<Item = &'static Command> {
    TABLES.iter().copied().flatten()
}

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    all().find(|command| command.name == name)
}

#[cfg(test)]
mod tests;
