//! virtio-blk (device id 2): a disk. Virtio 1.3, section 5.2.
//!
//! A chain from the ring becomes a request ([`request`]), adjacent requests become one
//! [`transfer`], and an [`engine`] carries it out on a [`backend`], in whatever order the host
//! finishes. [`queue`] is the worker that does so for one queue on an I/O thread, [`device`] what
//! the transport sees, [`config`] the configuration that the driver reads, [`options`] what the
//! user may ask for.

pub mod backend;
pub mod config;
mod counters;
pub mod device;
pub mod disk;
pub mod engine;
pub mod options;
mod queue;
pub mod request;
pub mod transfer;
pub(super) mod vhost_user;

#[cfg(test)]
mod tests;

pub use counters::{DiskStats, Done};
pub use device::{Block, BlockControl, INFO};
pub use disk::{Disk, DiskFailure};
pub use options::BlockConfig;

/// Bytes of a sector, the unit of all offsets in requests and of the capacity, whatever the block
/// size is.
pub const SECTOR: u64 = 512;
