//! The transport: how a driver reaches a virtio device over PCI.
//!
//! There is one state machine (`state`), with two faces. The legacy face is a handful of I/O
//! ports, the modern one four structures in memory that can also be reached through a window in
//! configuration space. Each face is a table of registers; what a register does is said once.
//!
//! ```text
//! BAR 0 ──> legacy ─┐
//! BAR 4 ──> modern ─┼─> access (named registers) ──> state ──> Device
//! PCI_CFG ─> window ┘
//! ```

#![forbid(unsafe_code)]

mod access;
mod config_access;
pub mod fault;
pub mod features;
mod legacy;
mod modern;
mod pci;
pub mod registers;
pub mod settings;
mod state;
#[cfg(test)]
mod tests;

pub use pci::{Doorbell, VirtioPci, VirtioPciState, VirtioPciStateError};
pub use settings::{Faces, Settings, Variant};
pub use state::{QueueView, TransportState, TransportStateError, TransportView, status};
