//! What a virtio device is to its transport, and what a transport gives a device. There is no PCI,
//! no KVM and no register here.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{Following, Interrupts};
use super::virtq::{QueueState, Virtq};

/// A backend failed: the host's part, in one line for the user. The guest sees its own device's
/// error status.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct HostError {
    /// Which backend, and what it was doing.
    pub what: String,
    /// Why.
    pub source: io::Error,
}

impl HostError {
    /// The failure `source` of the backend `what`.
    pub fn new(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        Self { what, source }
    }
}

/// What driver and device agreed on when the device started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Accepted feature bits, those of the ring and the transport too.
    pub features: u64,
}

impl Negotiated {
    /// Was feature bit `bit` accepted?
    pub fn has(self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// Is it a legacy driver, one that never accepted VIRTIO_F_VERSION_1 (bit 32)? Then fields are
    /// in guest byte order, which is ours on x86, and the legacy layout rules hold.
    pub fn is_legacy(self) -> bool {
        !self.has(virtio_bindings::virtio_config::VIRTIO_F_VERSION_1)
    }
}

/// A queue that is about to run, with its two notifications.
pub struct QueueStart {
    /// Index of the queue.
    pub index: u16,
    /// The ring, geometry frozen.
    pub ring: Virtq,
    /// Readable when the driver kicked. It may be readable without new entries; it is never lost.
    pub kick: Arc<EventFd>,
    /// Interrupts the driver.
    pub interrupt: QueueInterrupt,
    /// What was agreed on.
    pub negotiated: Negotiated,
}

/// The interrupt of one queue: its MSI-X vector, or the interrupt line.
#[derive(Clone)]
pub struct QueueInterrupt {
    interrupts: Arc<Interrupts>,
    queue: u16,
}

impl QueueInterrupt {
    /// The interrupt of queue `queue`.
    pub fn new(interrupts: Arc<Interrupts>, queue: u16) -> Self {
        Self { interrupts, queue }
    }

    /// Tells the driver that there are used entries. Callable from any thread; takes no lock that a
    /// CPU holds while it works.
    pub fn signal(&self) {
        self.interrupts.signal_queue(self.queue);
    }

    /// Keeps somebody who signals in our place, the kernel, told what to write to instead of calling
    /// [`Self::signal`], as [`Interrupts::follow`] has it.
    pub fn follow(&self, follow: impl Fn(Option<&EventFd>) + Send + 'static) -> Following {
        self.interrupts.follow(self.queue, follow)
    }

    /// Tells the driver and the transport that this queue's ring is malformed: DEVICE_NEEDS_RESET
    /// on the modern face.
    pub fn broken(&self) {
        self.interrupts.signal_needs_reset();
    }
}

/// Tells the driver that the device's configuration changed. Devices keep it for changes that come
/// from outside (a disk that grew).
#[derive(Clone)]
pub struct ConfigInterrupt {
    interrupts: Arc<Interrupts>,
}

impl ConfigInterrupt {
    /// The configuration interrupt behind `interrupts`.
    pub fn new(interrupts: Arc<Interrupts>) -> Self {
        Self { interrupts }
    }

    /// Tells it, if the driver is far enough to hear (DRIVER_OK); bumps the configuration
    /// generation in any case.
    pub fn signal(&self) {
        self.interrupts.signal_config();
    }
}

/// A virtio device: what one chapter of the specification says, and nothing of how it is reached.
///
/// All calls come from one thread at a time, with the transport's lock held; the queues run
/// elsewhere, on I/O threads. `start_queue` is called for each enabled queue when the driver sets
/// DRIVER_OK (or enables a queue after RING_RESET; or gives a legacy queue its page, because
/// drivers before Linux 3.18 use queues before DRIVER_OK), `stop_queue` for each running one before
/// a reset, a RING_RESET or a pause. Stopping drains: when it returns, the device touches neither
/// the ring nor guest memory, and no completion comes later. A stopped queue may be started again
/// without a reset.
pub trait Device: Send {
    /// Feature bits of this device type that are offered (0 to 23 and 50 up). Those of ring and
    /// transport are the transport's.
    fn features(&self) -> u64;

    /// Features, of the device and of ring and transport, that can be offered at all. All, for a
    /// device that serves its queues itself; one whose queues somebody else serves can offer only
    /// what that somebody knows.
    fn possible_features(&self) -> u64 {
        u64::MAX
    }

    /// The largest size of each queue.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The same for a driver that has accepted `features` so far; at most as many queues. For a
    /// device whose queues depend on what its driver understands.
    fn queue_sizes_for(&self, _features: u64) -> Vec<u16> {
        self.queue_sizes()
    }

    /// Bytes of device configuration, where it depends on the options; else the table's row says.
    fn config_len(&self) -> Option<u32> {
        None
    }

    /// Reads device configuration; bytes behind its end are left as they are.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// The driver writes device configuration. Ignored where the specification has it read-only.
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    /// Gives the device its way to announce configuration changes. Called once, before anything
    /// else.
    fn connect(&mut self, _config: ConfigInterrupt) {}

    /// The driver accepted `negotiated` (FEATURES_OK, or the first queue or DRIVER_OK of a legacy
    /// driver). Called before any queue starts, and again, with all queues stopped, when a legacy
    /// driver writes its features later.
    fn activate(&mut self, _negotiated: Negotiated) {}

    /// Starts a queue.
    ///
    /// # Errors
    /// The host cannot serve it; the transport sets DEVICE_NEEDS_RESET.
    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError>;

    /// Stops a queue, drained, and gives its state back; `None` when it was not running.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;

    /// Back to the state after power-on, all queues stopped before.
    fn reset(&mut self);
}
