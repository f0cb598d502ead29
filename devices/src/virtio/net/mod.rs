//! virtio-net (device id 1): a network card. Virtio 1.3, section 5.1.

pub mod backend;
mod device;
mod networks;
mod options;
mod receive;
pub mod vhost;

pub use device::{INFO, NetControl};
pub use networks::Networks;
pub use receive::ReceiveBuffers;
