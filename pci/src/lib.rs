//! What a PCI bus is: configuration space, BARs, capabilities, decode, and the host functions of QEMU's `pc` machine.
//!
//! A device is a [`Function`], most easily one that wraps an [`Endpoint`]. A [`Bus`] holds functions and finds the
//! one that an access is for; [`mechanism1`] is the guest's way into configuration space, [`resources`] does the
//! firmware's part. An access returns what it changed outside the function ([`Change`]); nobody is called back.
#![forbid(unsafe_code)]

pub mod address;
pub mod bar;
pub mod bus;
pub mod capability;
pub mod config_space;
mod decode;
pub mod endpoint;
pub mod function;
pub mod host;
pub mod intx;
pub mod mechanism1;
pub mod resources;
#[cfg(test)]
mod testing;

pub use address::Address;
pub use bar::{Bar, BarKind};
pub use bus::Bus;
pub use config_space::Header;
pub use endpoint::{Endpoint, EndpointLayout};
pub use function::{Change, Changes, Function, Region, Space};
pub use intx::{InterruptLine, Intx, Pin};
