//! A machine without a processor, driven from outside over QEMU's qtest protocol: a test makes the accesses to ports and memory that a
//! guest's driver would, and moves the clock. It needs no KVM. QEMU's own device tests are written for it.

mod channel;
mod clock;
mod intercept;
mod machine;
mod memory;
mod messages;
mod request;
mod run;
mod session;

pub use channel::{Channel, ChannelError, Connection, LogTarget, Output};
pub use clock::VirtualClock;
pub use machine::QtestMachine;
pub use run::{QtestConfig, RunError, run};
pub use session::serve;

#[cfg(test)]
mod tests;
