//! The devices of a guest: virtio devices and the fixed devices of a PC. Knows the PCI bus and guest memory; knows nothing of KVM.

pub mod chardev;
pub mod io_thread;
pub mod memory;
pub mod platform;
pub mod sys;
pub mod threads;
pub mod timer;
pub mod virtio;
