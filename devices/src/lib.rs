//! devices
pub mod platform;
