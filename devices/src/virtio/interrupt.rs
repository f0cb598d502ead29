//! The device's side of interrupts: one object that the transport and all queues of a device share.
//!
//! No lock is taken on the way from a used entry to the guest. Whether a vector is masked is an atomic that the transport keeps in
//! step with the MSI-X table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

use pci::intx::Intx;

use super::virtq::NO_VECTOR;

/// Bit 0 of the ISR register: a queue has used entries.
pub const ISR_QUEUE: u8 = 1;
/// Bit 1 of the ISR register: the configuration changed. Bit 0 is set with it, as QEMU does.
pub const ISR_CONFIG: u8 = 2;

/// Sends the message of an MSI-X vector: an irqfd, or in tests a recorder. Masking was looked at already.
pub trait MsixSender: Send + Sync {
    /// Sends the message of `vector`.
    fn send(&self, vector: u16);
}

/// The gate in front of one MSI-X vector.
#[derive(Debug)]
struct Gate {
    masked: AtomicBool,
    pending: AtomicBool,
}

/// Interrupt state of one virtio function.
pub struct Interrupts {
    isr: AtomicU8,
    generation: AtomicU32,
    /// DRIVER_OK is set.
    live: AtomicBool,
    needs_reset: AtomicBool,
    msix_enabled: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    gates: Vec<Gate>,
    sender: Arc<dyn MsixSender>,
    intx: Arc<Intx>,
}

impl Interrupts {
    /// For a function with `queues` queues and `vectors` MSI-X vectors (0: none).
    pub fn new(queues: usize, vectors: usize, sender: Arc<dyn MsixSender>, intx: Arc<Intx>) -> Arc<Self> {
        let gate = |_| Gate { masked: AtomicBool::new(true), pending: AtomicBool::new(false) };
        Arc::new(Self {
            isr: AtomicU8::new(0),
            generation: AtomicU32::new(0),
            live: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            msix_enabled: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            gates: (0..vectors).map(gate).collect(),
            sender,
            intx,
        })
    }

    /// A queue has used entries that the driver wants to hear of.
    pub fn signal_queue(&self, queue: u16) {
        if self.msix_enabled.load(Ordering::Acquire) {
            let vector = self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
            self.signal_vector(vector);
        } else {
            self.signal_line(ISR_QUEUE);
        }
    }

    /// The configuration changed.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if !self.live.load(Ordering::Acquire) {
            return;
        }
        if self.msix_enabled.load(Ordering::Acquire) {
            self.isr.fetch_or(ISR_QUEUE | ISR_CONFIG, Ordering::AcqRel);
            self.signal_vector(self.config_vector.load(Ordering::Acquire));
        } else {
            self.signal_line(ISR_QUEUE | ISR_CONFIG);
        }
    }

    /// The device cannot go on until the driver resets it. The modern face shows it in the status register.
    pub fn signal_needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.signal_config();
        }
    }

    /// Has the device asked for a reset?
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    fn signal_line(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::AcqRel);
        self.intx.set(true);
    }

    fn signal_vector(&self, vector: u16) {
        let Some(gate) = self.gates.get(usize::from(vector)) else { return };
        if !gate.masked.load(Ordering::SeqCst) {
            self.sender.send(vector);
            return;
        }
        gate.pending.store(true, Ordering::SeqCst);
        // The mask may have gone since; whoever takes the pending bit sends.
        if !gate.masked.load(Ordering::SeqCst) && gate.pending.swap(false, Ordering::SeqCst) {
            self.sender.send(vector);
        }
    }

    /// Masks or unmasks a vector; what was pending is sent.
    pub fn set_masked(&self, vector: u16, masked: bool) {
        let Some(gate) = self.gates.get(usize::from(vector)) else { return };
        gate.masked.store(masked, Ordering::SeqCst);
        if !masked && gate.pending.swap(false, Ordering::SeqCst) {
            self.sender.send(vector);
        }
    }

    /// Is a message of this vector held back?
    pub fn is_pending(&self, vector: u16) -> bool {
        self.gates.get(usize::from(vector)).is_some_and(|gate| gate.pending.load(Ordering::SeqCst))
    }

    /// MSI-X was switched on or off.
    pub fn set_msix_enabled(&self, enabled: bool) {
        self.msix_enabled.store(enabled, Ordering::Release);
    }

    /// Sets the vector of the configuration interrupt.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(vector, Ordering::Release);
    }

    /// Sets the vector of a queue.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(vector, Ordering::Release);
        }
    }

    /// The driver set DRIVER_OK, or took it away.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    /// Reads the ISR register: reading clears it and lowers the line.
    pub fn take_isr(&self) -> u8 {
        let isr = self.isr.swap(0, Ordering::AcqRel);
        self.intx.set(false);
        // A queue may have signalled between the two steps; its bit must not stand with a low line.
        if self.isr.load(Ordering::Acquire) != 0 && !self.msix_enabled.load(Ordering::Acquire) {
            self.intx.set(true);
        }
        isr
    }

    /// The configuration generation, as the modern face shows it.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire) as u8
    }

    /// A device reset: no vectors, nothing pending, line low. Masks stay as the MSI-X table has them.
    pub fn reset(&self) {
        self.live.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
        self.gates.iter().for_each(|gate| gate.pending.store(false, Ordering::SeqCst));
        self.isr.store(0, Ordering::Release);
        self.intx.set(false);
    }
}
