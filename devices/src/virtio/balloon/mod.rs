//! virtio-balloon (device id 5): takes memory from a guest that can spare it, and gives it back.
//! Virtio 1.3, section 5.5.
//!
//! The driver names pages on the inflate queue and the device gives them back to the host; on the
//! deflate queue it takes them out of the balloon again. [`queue`] serves these and the queues of
//! free pages ([`pages`], [`free`]), a batch of chains at a time, [`stats`] that of statistics.
//! What the queues, the driver's configuration and management share is [`shared`]; [`control`] is
//! the side of management, [`device`] that of the transport, [`config`] what the driver reads.

pub mod config;
pub mod control;
pub mod device;
pub mod fault;
mod free;
mod page_set;
mod pages;
mod queue;
mod shared;
pub mod stats;

#[cfg(test)]
mod tests;

pub use control::{BalloonControl, GivenBack};
pub use device::{Balloon, INFO};
pub use stats::{GuestStats, Stat};

/// Bytes of a page of the balloon, whatever the page size of the guest (virtio 1.3, 5.5.6).
pub const PAGE: u64 = crate::memory::PAGE;
