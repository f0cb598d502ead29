//! Virtqueues: how a driver and a device pass buffers to each other (virtio 1.3, 2.7).
//!
//! Each step of trust has its type:
//!
//! - [`QueueConfig`] is what the driver may write: sizes and addresses, unchecked.
//! - [`Virtq`] is made from it once, when the queue starts, with checked host pointers and a frozen
//!   size. Nothing that the driver writes later changes its geometry.
//! - [`Chain`] is a descriptor chain that was walked once and found good in every respect. A device
//!   reads requests from its [`Reader`] and answers into its [`Writer`], and never sees a
//!   descriptor.
//! - [`GuestFault`] is a rule that the driver broke, with its number and its clause.
//!
//! Values in guest memory are read exactly once. What the queue needs to know about its own past
//! (how far it has taken entries, which heads are in flight) it keeps to itself and never reads
//! back from the guest.
//!
//! `unsafe` in this crate lives in this folder: in `ring` (indices and descriptors), `buffer`
//! (data) and `iovec` (system calls).

mod buffer;
mod chain;
mod config;
mod fault;
mod iovec;
mod queue;
mod ring;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use buffer::{Reader, Writer};
pub use chain::{CHAIN_LIMIT, Chain};
pub use config::{
    LEGACY_PAGE_SIZE, Layout, MAX_QUEUE_SIZE, NO_VECTOR, QueueConfig, RingFeatures, RingPart, check_size,
};
pub use fault::{GuestFault, Severity};
pub use iovec::GuestIoVec;
pub use queue::{QueueState, Virtq};
