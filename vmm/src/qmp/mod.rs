//! QMP, QEMU's machine protocol: JSON over a socket, by which programs watch and steer a machine.
//!
//! [`json`] takes bytes apart, [`protocol`] requests, [`commands`] has a table of what can be asked, [`schema`] what with, [`event`]
//! what is told unasked; [`target`] is the machine as all of that sees it, [`managed`] one of ours as such, and [`server`] the sockets
//! and their threads. [`people`] is the same for people: lines in place of JSON.

pub mod commands;
pub mod error;
pub mod event;
mod features;
pub mod json;
pub mod link;
pub mod managed;
mod options;
mod pairs;
pub mod people;
pub mod protocol;
pub mod schema;
pub mod server;
pub mod target;
#[cfg(test)]
mod testing;
mod threads;
mod tree;
mod types;
mod watch;
