//! devices
pub mod memory;
pub mod platform;
pub mod virtio;
