//! What a PCI bus is: configuration space, BARs, capabilities, decode, and the host functions of QEMU's `pc` machine.
#![forbid(unsafe_code)]

pub mod address;
pub mod function;
pub mod intx;

pub use address::Address;
pub use function::{Change, Changes, Function, Region, Space};
pub use intx::{InterruptLine, Pin};
