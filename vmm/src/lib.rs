//! Innkeeper, a virtual machine monitor for Linux guests on x86-64 KVM: the library behind the `innkeeper` command.

pub mod boot;
pub mod cli;
pub mod config;
pub mod irq;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod qemu;
pub mod qmp;
pub mod qtest;
pub mod signals;
