//! QEMU's tongue: its command line, and what its options and its QMP commands have in common. What comes out is the
//! same configuration that the native command line makes.

pub mod args;
pub mod backends;
pub mod board;
mod collect;
mod drive;
pub mod help;
pub mod invocation;
pub mod keyval;
mod lines;
mod network;
pub mod objects;
pub mod properties;
mod readconfig;
#[cfg(test)]
mod tests;
mod vhost_user;
