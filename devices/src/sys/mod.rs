//! System calls that no crate we use has, as safe functions.

pub mod fd;
#[cfg(test)]
pub mod testing;
pub mod tun;
