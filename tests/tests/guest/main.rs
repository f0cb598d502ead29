//! Real kernels on real KVM: they boot, see the machine that QEMU's `pc` is, and end as they should.
//!
//! Run by `cargo xtask test`, which provides the kernels and a KVM that runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Tests that are to hold on each of Debian's kernels: `name(kernel) { ... }` becomes `cloud::name` and `generic::name`.
macro_rules! each_kernel {
    ($($name:ident($kernel:ident) $body:block)*) => {
        mod cloud {
            #[allow(unused_imports)]
            use super::*;
            $(#[test] fn $name() { let $kernel = "cloud"; $body })*
        }
        mod generic {
            #[allow(unused_imports)]
            use super::*;
            $(#[test] fn $name() { let $kernel = "generic"; $body })*
        }
    };
}

mod balloon;
mod boot;
mod command_lines;
mod disk;
#[cfg(feature = "long")]
mod filesystem;
mod hotplug;
mod life;
mod management;
mod network;
mod program;
mod rng;
mod serial;
mod table;
mod yardstick;
