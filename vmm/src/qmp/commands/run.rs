//! What a machine does, and what it can be told to do.

use super::{Command, Context, command};
use crate::qmp::error::Error;
use crate::qmp::schema::{Nothing, structures};
use crate::qmp::target::{Order, RunState};

pub(super) static COMMANDS: &[Command] = &[
    command!("query-status", query_status),
    command!("stop", stop),
    command!("cont", cont),
    command!("system_reset", system_reset),
    command!("system_powerdown", system_powerdown),
    command!("inject-nmi", inject_nmi),
];

structures! {
    struct StatusInfo {
        running: bool,
        singlestep: bool,
        status: RunState,
    }
}

fn query_status(context: &Context<'_>, _: Nothing) -> Result<StatusInfo, Error> {
    let status = context.target.run_state();
    Ok(StatusInfo {
        running: status == RunState::Running,
        singlestep: false,
        status,
    })
}

fn order(context: &Context<'_>, order: Order) -> Result<Nothing, Error> {
    context.target.order(order).map(|()| Nothing {})
}

fn stop(context: &Context<'_>, _: Nothing) -> Result<Nothing, Error> {
    order(context, Order::Stop)
}

fn cont(context: &Context<'_>, _: Nothing) -> Result<Nothing, Error> {
    order(context, Order::Cont)
}

fn system_reset(context: &Context<'_>, _: Nothing) -> Result<Nothing, Error> {
    order(context, Order::Reset)
}

fn system_powerdown(context: &Context<'_>, _: Nothing) -> Result<Nothing, Error> {
    order(context, Order::Powerdown)
}

fn inject_nmi(context: &Context<'_>, _: Nothing) -> Result<Nothing, Error> {
    order(context, Order::Nmi)
}
