//! Virtio: the rings that every device shares, the transport that drivers reach devices by, and the devices themselves.

pub mod balloon;
pub mod block;
pub mod console;
pub mod device;
pub mod id;
pub mod info;
pub mod interrupt;
mod listeners;
pub mod net;
pub mod options;
pub mod report;
pub mod rng;
pub mod transport;
mod vhost;
pub mod virtq;
