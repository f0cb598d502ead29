//! What the project's commands are made of, and what the guest tests share with them: Debian packages
//! fetched into a cache, initramfs archives written without outside tools, and the *lab*, an emulated Linux
//! whose `/dev/kvm` is a real hardware-type KVM.

pub mod cache;
pub mod error;
pub mod initramfs;
pub mod kernel;
pub mod lab;
pub mod load;
pub mod modules;
pub mod packages;
pub mod resources;
pub mod shared_libraries;
pub mod tool;

pub use error::{Error, Result};
