//! What the tests share: kernels and initial RAM disks to boot, what a guest says of itself, and drivers for a machine
//! without a guest.

pub mod checksum;
pub mod driver;
pub mod guest;
pub mod network;
pub mod process;
pub mod program;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod resources;
pub mod vhost_user;

/// What can go wrong while a test sets its guest up; the test fails with it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
