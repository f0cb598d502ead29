//! virtio-serial (device id 3): a bus of consoles and plain ports. Virtio 1.3, section 5.3; QEMU, hw/char/virtio-serial-bus.c.
//!
//! [`port`] says what a port is, [`control`] adds and removes them while the device runs, [`device`] is what the transport
//! sees. All queues of a device are served by one worker, the [`hub`]: it passes [messages](message) about ports on, and
//! each port's bytes go through its [`lane`], straight between guest memory and the port's
//! [far end](crate::chardev::Chardev). Whoever wants something of the hub leaves it in its [mailbox](mailbox).

#![forbid(unsafe_code)]

pub mod control;
mod device;
mod hub;
mod lane;
mod mailbox;
pub mod message;
pub mod port;
mod queue;

pub use control::{SerialControl, SerialEvent};
pub use device::{INFO, Serial};
pub use message::Size;
pub use port::{PortConfig, PortKind, VIRTCONSOLE, VIRTSERIALPORT};
