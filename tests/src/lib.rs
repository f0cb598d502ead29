//! What the tests share: kernels and initial RAM disks to boot, and what a guest says of itself.

pub mod guest;
pub mod qemu;
pub mod report;
pub mod resources;

/// What can go wrong while a test sets its guest up; the test fails with it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
