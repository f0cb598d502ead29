//! QEMU's tongue: its command line, and what its options and its QMP commands have in common. What comes out is the same
//! configuration that the native command line makes.

pub mod args;
pub mod backends;
mod drive;
pub mod keyval;
mod properties;
