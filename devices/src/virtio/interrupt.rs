//! The device's side of interrupts: one object that the transport and all queues of a device share.
//!
//! No lock is taken on the way from a used entry to the guest. Whether a vector is masked is an
//! atomic that the transport keeps in step with the MSI-X table.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pci::intx::Intx;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::virtq::NO_VECTOR;

/// Bit 0 of the ISR register: a queue has used entries.
pub const ISR_QUEUE: u8 = 1;
/// Bit 1 of the ISR register: the configuration changed. Bit 0 is set with it, as QEMU does.
pub const ISR_CONFIG: u8 = 2;

/// Sends the message of an MSI-X vector: an irqfd, or in tests a recorder. Masking was looked at
/// already.
pub trait MsixSender: Send + Sync {
    /// Sends the message of `vector`.
    fn send(&self, vector: u16);

    /// What sends the message of `vector` when it is written to, if there is such a thing: for the
    /// kernel, which signals in our place. It stays the same from the first time that there is one.
    fn event(&self, _vector: u16) -> Option<&EventFd> {
        None
    }
}

/// Told what sends the message of a queue; `None` while nothing may send it but
/// [`Interrupts::signal_queue`].
type Follow = Box<dyn Fn(Option<&EventFd>) + Send>;

/// Somebody who signals a queue without us.
struct Follower {
    id: u64,
    queue: u16,
    follow: Follow,
    /// The descriptor that it was told last.
    told: Option<RawFd>,
}

/// Keeps somebody [told](Interrupts::follow) until it is dropped.
#[must_use = "nobody is told any more when it is dropped"]
pub struct Following {
    interrupts: Arc<Interrupts>,
    id: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.interrupts.followers().retain(|follower| follower.id != self.id);
    }
}

/// The gate in front of one MSI-X vector.
#[derive(Debug)]
struct Gate {
    masked: AtomicBool,
    pending: AtomicBool,
}

/// What is left of interrupts when a device stands still, in a form to save. Vectors are saved with
/// the queues, masks and pending messages with the MSI-X table.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct InterruptState {
    isr: u8,
    generation: u32,
    needs_reset: bool,
}

/// Interrupt state of one virtio function.
pub struct Interrupts {
    isr: AtomicU8,
    generation: AtomicU32,
    /// DRIVER_OK is set.
    live: AtomicBool,
    needs_reset: AtomicBool,
    /// The driver accepted VERSION_1, so that it knows DEVICE_NEEDS_RESET.
    modern: AtomicBool,
    msix_enabled: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    gates: Vec<Gate>,
    sender: Arc<dyn MsixSender>,
    intx: Arc<Intx>,
    /// Locked when something about vectors changes, never to send.
    followers: Mutex<Vec<Follower>>,
}

impl Interrupts {
    /// For a function with `queues` queues and `vectors` MSI-X vectors (0: none).
    pub fn new(queues: usize, vectors: usize, sender: Arc<dyn MsixSender>, intx: Arc<Intx>) -> Arc<Self> {
        let gate = |_| Gate {
            masked: AtomicBool::new(true),
            pending: AtomicBool::new(false),
        };
        Arc::new(Self {
            isr: AtomicU8::new(0),
            generation: AtomicU32::new(0),
            live: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            modern: AtomicBool::new(false),
            msix_enabled: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            gates: (0..vectors).map(gate).collect(),
            sender,
            intx,
            followers: Mutex::default(),
        })
    }

    /// Calls `follow` at once, and each time that the answer changes, with what sends the message
    /// of `queue`: nothing while it has no vector or that is masked. Whoever signals then without
    /// us does so by [`Self::signal_queue`].
    ///
    /// It is called by whoever changes vectors and may not do so itself.
    pub fn follow(self: &Arc<Self>, queue: u16, follow: impl Fn(Option<&EventFd>) + Send + 'static) -> Following {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let id = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut followers = self.followers();
        let event = self.event_of_queue(queue);
        follow(event);
        followers.push(Follower {
            id,
            queue,
            follow: Box::new(follow),
            told: event.map(AsRawFd::as_raw_fd),
        });
        drop(followers);
        Following {
            interrupts: Arc::clone(self),
            id,
        }
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Follower>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who follow what has changed for them.
    fn tell_followers(&self) {
        for follower in self.followers().iter_mut() {
            let event = self.event_of_queue(follower.queue);
            let descriptor = event.map(AsRawFd::as_raw_fd);
            if descriptor != follower.told {
                (follower.follow)(event);
                follower.told = descriptor;
            }
        }
    }

    /// What sends the message of a queue, if it may be sent.
    fn event_of_queue(&self, queue: u16) -> Option<&EventFd> {
        if !self.msix_enabled.load(Ordering::SeqCst) {
            return None;
        }
        let vector = self.queue_vectors.get(usize::from(queue))?.load(Ordering::SeqCst);
        let gate = self.gates.get(usize::from(vector))?;
        if gate.masked.load(Ordering::SeqCst) {
            return None;
        }
        self.sender.event(vector)
    }

    /// A queue has used entries that the driver wants to hear of.
    ///
    /// With MSI-X the ISR bit is set too, as in QEMU: Windows drivers poll it when they write a
    /// crash dump.
    pub fn signal_queue(&self, queue: u16) {
        if self.msix_enabled.load(Ordering::Acquire) {
            let vector = self
                .queue_vectors
                .get(usize::from(queue))
                .map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
            self.set_isr(ISR_QUEUE);
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
            self.set_isr(ISR_QUEUE | ISR_CONFIG);
            self.signal_vector(self.config_vector.load(Ordering::Acquire));
        } else {
            self.signal_line(ISR_QUEUE | ISR_CONFIG);
        }
    }

    /// The device cannot go on until the driver resets it. A driver that accepted VERSION_1 sees it
    /// in the status register, and is told.
    pub fn signal_needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) && self.modern.load(Ordering::Acquire) {
            self.signal_config();
        }
    }

    /// Whether the status register shows that the device has asked for a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire) && self.modern.load(Ordering::Acquire)
    }

    /// Sets ISR bits. Mostly they are set already, and then the cache line stays shared.
    fn set_isr(&self, bits: u8) {
        if self.isr.load(Ordering::Acquire) & bits != bits {
            self.isr.fetch_or(bits, Ordering::AcqRel);
        }
    }

    fn signal_line(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::AcqRel);
        self.intx.set(true);
        // MSI-X may have been switched on meanwhile, and with it the line is low.
        if self.msix_enabled.load(Ordering::Acquire) {
            self.intx.set(false);
        }
    }

    fn signal_vector(&self, vector: u16) {
        let Some(gate) = self.gates.get(usize::from(vector)) else {
            return;
        };
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
        let Some(gate) = self.gates.get(usize::from(vector)) else {
            return;
        };
        gate.masked.store(masked, Ordering::SeqCst);
        self.tell_followers();
        if !masked && gate.pending.swap(false, Ordering::SeqCst) {
            self.sender.send(vector);
        }
    }

    /// Is a message of this vector held back?
    pub fn is_pending(&self, vector: u16) -> bool {
        self.gates
            .get(usize::from(vector))
            .is_some_and(|gate| gate.pending.load(Ordering::SeqCst))
    }

    /// MSI-X was switched on or off.
    pub fn set_msix_enabled(&self, enabled: bool) {
        self.msix_enabled.store(enabled, Ordering::SeqCst);
        self.tell_followers();
    }

    /// Sets the vector of the configuration interrupt.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(vector, Ordering::Release);
    }

    /// Sets the vector of a queue.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(vector, Ordering::SeqCst);
        }
        self.tell_followers();
    }

    /// The driver set DRIVER_OK, or took it away.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    /// The driver accepted VERSION_1, or did not.
    pub fn set_modern(&self, modern: bool) {
        self.modern.store(modern, Ordering::Release);
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.gates.len()).unwrap_or(u16::MAX)
    }

    /// What is to be saved.
    pub fn state(&self) -> InterruptState {
        InterruptState {
            isr: self.isr.load(Ordering::Acquire),
            generation: self.generation.load(Ordering::Acquire),
            needs_reset: self.needs_reset.load(Ordering::Acquire),
        }
    }

    /// Takes back what [`Self::state`] gave.
    pub fn restore(&self, state: InterruptState) {
        self.isr.store(state.isr, Ordering::Release);
        self.generation.store(state.generation, Ordering::Release);
        self.needs_reset.store(state.needs_reset, Ordering::Release);
    }

    /// Notes that a message of this vector was held back; it goes when the vector is unmasked.
    pub fn set_pending(&self, vector: u16) {
        if let Some(gate) = self.gates.get(usize::from(vector)) {
            gate.pending.store(true, Ordering::SeqCst);
        }
    }

    /// The ISR register as it stands; looking does not clear it.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
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

    /// A device reset: no vectors, nothing pending, line low. Masks stay as the MSI-X table has
    /// them.
    pub fn reset(&self) {
        self.live.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.modern.store(false, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.queue_vectors
            .iter()
            .for_each(|vector| vector.store(NO_VECTOR, Ordering::SeqCst));
        self.tell_followers();
        self.gates
            .iter()
            .for_each(|gate| gate.pending.store(false, Ordering::SeqCst));
        self.isr.store(0, Ordering::Release);
        self.intx.set(false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::channel;

    use super::*;

    /// Vectors 1 and up have an event.
    struct Sent(Mutex<Vec<u16>>, EventFd);

    impl Default for Sent {
        fn default() -> Self {
            Self(Mutex::default(), EventFd::new(0).unwrap())
        }
    }

    impl MsixSender for Sent {
        fn send(&self, vector: u16) {
            self.0.lock().unwrap().push(vector);
        }

        fn event(&self, vector: u16) -> Option<&EventFd> {
            (vector > 0).then_some(&self.1)
        }
    }

    struct Bench {
        sent: Arc<Sent>,
        intx: Arc<Intx>,
        interrupts: Arc<Interrupts>,
    }

    impl Bench {
        fn new() -> Self {
            let (sent, intx) = (Arc::new(Sent::default()), Arc::new(Intx::new()));
            let interrupts = Interrupts::new(2, 3, sent.clone(), intx.clone());
            Self { sent, intx, interrupts }
        }

        fn with_msix() -> Self {
            let bench = Self::new();
            bench.interrupts.set_msix_enabled(true);
            bench.interrupts.set_config_vector(0);
            bench.interrupts.set_queue_vector(0, 1);
            (0..3).for_each(|vector| bench.interrupts.set_masked(vector, false));
            bench
        }

        fn sent(&self) -> Vec<u16> {
            std::mem::take(&mut self.sent.0.lock().unwrap())
        }
    }

    #[test]
    fn without_msix_the_line_is_up_until_isr_is_read() {
        let bench = Bench::new();
        bench.interrupts.signal_queue(0);
        assert!(bench.intx.level());
        assert_eq!(bench.interrupts.take_isr(), ISR_QUEUE);
        assert!(!bench.intx.level());
        assert_eq!((bench.interrupts.take_isr(), bench.sent()), (0, vec![]));
    }

    #[test]
    fn a_configuration_change_sets_both_bits_once_the_driver_is_ready() {
        let bench = Bench::new();
        bench.interrupts.signal_config();
        assert_eq!((bench.interrupts.take_isr(), bench.interrupts.generation()), (0, 1));
        bench.interrupts.set_live(true);
        bench.interrupts.signal_config();
        assert_eq!((bench.interrupts.take_isr(), bench.interrupts.generation()), (3, 2));
    }

    #[test]
    fn with_msix_messages_go_and_the_line_stays_low() {
        let bench = Bench::with_msix();
        bench.interrupts.set_live(true);
        bench.interrupts.signal_queue(0);
        bench.interrupts.signal_queue(1);
        bench.interrupts.signal_config();
        assert_eq!(bench.sent(), [1, 0]);
        assert_eq!((bench.intx.wanted(), bench.interrupts.take_isr()), (false, 3));
    }

    #[test]
    fn a_masked_message_waits_and_goes_once() {
        let bench = Bench::with_msix();
        bench.interrupts.set_masked(1, true);
        bench.interrupts.signal_queue(0);
        bench.interrupts.signal_queue(0);
        assert!(bench.interrupts.is_pending(1) && bench.sent().is_empty());
        bench.interrupts.set_masked(1, false);
        bench.interrupts.set_masked(1, false);
        assert_eq!((bench.sent(), bench.interrupts.is_pending(1)), (vec![1], false));
    }

    #[test]
    fn only_a_modern_driver_hears_that_the_device_needs_a_reset() {
        let bench = Bench::new();
        bench.interrupts.set_live(true);
        bench.interrupts.signal_needs_reset();
        assert_eq!(
            (bench.interrupts.needs_reset(), bench.interrupts.take_isr()),
            (false, 0)
        );
        bench.interrupts.reset();
        bench.interrupts.set_modern(true);
        bench.interrupts.set_live(true);
        bench.interrupts.signal_needs_reset();
        assert_eq!((bench.interrupts.needs_reset(), bench.interrupts.take_isr()), (true, 3));
    }

    #[test]
    fn reset_forgets_vectors_and_what_waits() {
        let bench = Bench::with_msix();
        bench.interrupts.set_masked(1, true);
        bench.interrupts.signal_queue(0);
        bench.interrupts.reset();
        bench.interrupts.set_masked(1, false);
        bench.interrupts.signal_queue(0);
        assert!(bench.sent().is_empty());
    }

    #[test]
    fn unmasking_beside_signalling_loses_no_message() {
        let bench = Bench::with_msix();
        for _ in 0..2000 {
            bench.interrupts.set_masked(1, true);
            let interrupts = bench.interrupts.clone();
            let signaller = std::thread::spawn(move || interrupts.signal_queue(0));
            bench.interrupts.set_masked(1, false);
            signaller.join().unwrap();
            assert_eq!(bench.sent(), [1]);
        }
    }
    #[test]
    fn who_signals_without_us_is_told_of_every_change_and_of_nothing_else() {
        let bench = Bench::with_msix();
        let (sender, told) = channel();
        let follow = move |event: Option<&EventFd>| sender.send(event.is_some()).unwrap();
        let following = bench.interrupts.follow(0, follow);
        let expect = |changes: &[bool]| assert_eq!(told.try_iter().collect::<Vec<_>>(), changes);
        expect(&[true]);
        bench.interrupts.set_masked(2, true);
        bench.interrupts.set_masked(1, false);
        bench.interrupts.set_queue_vector(1, 2);
        expect(&[]);
        bench.interrupts.set_masked(1, true);
        bench.interrupts.set_masked(1, false);
        expect(&[false, true]);
        bench.interrupts.set_queue_vector(0, 0);
        bench.interrupts.set_queue_vector(0, 1);
        expect(&[false, true]);
        bench.interrupts.set_msix_enabled(false);
        bench.interrupts.set_msix_enabled(true);
        bench.interrupts.reset();
        expect(&[false, true, false]);
        drop(following);
        bench.interrupts.set_queue_vector(0, 1);
        expect(&[]);
    }
}
