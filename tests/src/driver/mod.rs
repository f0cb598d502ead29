//! A machine without a processor, and drivers for it: all of the PCI bus and the devices, in this process, without KVM.
//!
//! [`Machine`] is RAM and a board; whoever calls it is the CPU. [`bus`] finds functions and their BARs as Linux does,
//! through configuration mechanism #1. [`Driver`] brings a virtio device up by one of three [`Way`]s ([`legacy`],
//! [`modern`], or modern through the PCI_CFG window) and passes it buffers; [`block`], [`entropy`], [`serial`]
//! and [`balloon`] know what a disk, a source of randomness, a bus of ports and a balloon are asked. All are
//! well-behaved unless they are told otherwise.
//!
//! Registers are written down here once more, so that a mistake in the tables of the devices shows.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a driver that does not find what it needs fails its test"
)]

use std::time::{Duration, Instant};

pub mod balloon;
pub mod block;
pub mod bus;
mod device;
pub mod entropy;
pub mod legacy;
pub mod machine;
pub mod modern;
pub mod net;
pub mod serial;

pub use bus::PciDevice;
pub use device::{Driver, LEFT_ALONE, Way};
pub use machine::{Line, Machine};

/// How long a device may take for what it was asked. Whoever waits that long waits for nothing.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks again and again until there is an answer.
///
/// # Panics
/// There is none for a minute and a half; `what` says what did not come.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    let mut asked = 0u32;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        asked = asked.saturating_add(1);
        if asked < 50 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// What the two views of a device's registers have in common.
pub trait Transport {
    /// Feature bits that the device offers here.
    fn offered(&self) -> u64;

    /// Accepts features; returns whether the device agrees.
    fn accept(&self, features: u64) -> bool;

    /// Device status.
    fn status(&self) -> u8;

    /// Writes device status.
    fn set_status(&self, status: u8);

    /// The size that the device proposes for a queue; 0 when there is no such queue.
    fn queue_size(&self, queue: u16) -> u16;

    /// Tells the device where a queue is and lets it go. Returns whether the device took the `vector`.
    fn set_up_queue(&self, queue: u16, ring: &devices::virtio::virtq::QueueConfig, vector: Option<u16>) -> bool;

    /// Whether the three parts of a ring may lie anywhere; otherwise they have the legacy layout.
    fn places_parts(&self) -> bool;

    /// Sets the vector of configuration changes; returns whether the device took it.
    fn set_config_vector(&self, vector: u16) -> bool;

    /// Kicks a queue.
    fn kick(&self, queue: u16);

    /// Reads the ISR register, which clears it.
    fn isr(&self) -> u8;

    /// Reads device configuration.
    fn config(&self, offset: u32, width: usize) -> u64;

    /// Writes device configuration.
    fn set_config(&self, offset: u32, width: usize, value: u64);
}
