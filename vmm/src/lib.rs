//! vmm

pub mod boot;
pub mod memory;
