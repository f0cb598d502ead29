//! virtio-net (device id 1): a network card. Virtio 1.3, section 5.1.
//!
//! A frame goes between a chain of the driver and an endpoint of the [`backend`]: [`rx`] and [`tx`]
//! do so for one queue each, and [`pair`] is the worker that runs both on an I/O thread; where that
//! thread shares the guest's CPU, [`coalescing`] says when it looks for frames. [`control`] answers
//! the driver's commands. What they share is the [`card`]: addresses, link, and the
//! [`filter`] for received frames. [`device`] is what the transport sees, [`management`] what the
//! user can ask for while it runs.

#![forbid(unsafe_code)]

mod announce;
pub mod backend;
mod card;
mod coalescing;
mod config;
mod control;
mod data_path;
mod device;
mod dhcp;
mod filter;
mod header;
mod mac;
mod management;
mod networks;
mod options;
mod pair;
mod published;
mod receive;
mod rx;
#[cfg(test)]
mod tests;
mod tx;
pub mod vhost;

pub use announce::AnnounceParameters;
pub use device::INFO;
pub use filter::{AddressList, Filter, Modes, VlanSet};
pub use mac::{MacAddress, NoMacAddress};
pub use management::NetControl;
pub use networks::Networks;
pub use receive::ReceiveBuffers;
