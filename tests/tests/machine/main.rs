//! The PCI bus with its devices in this process, without a processor and without KVM, driven by small drivers of our
//! own: what works on real guests works here too, and what no real guest does is done here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod balloon;
mod bars;
mod block;
mod devices;
mod hotplug;
mod image;
mod interrupts;
mod life;
mod mechanism1;
mod net;
mod net_control;
mod random;
mod rings;
mod serial;
mod transport;
mod variants;
mod vhost_user;
