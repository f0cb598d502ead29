//! A queue in the hands of somebody else.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::Error as UserError;
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::io_thread::{IoThread, Source, Worker, WorkerHandle};
use crate::memory::GuestMemory;
use crate::virtio::device::{Negotiated, QueueInterrupt, QueueStart};
use crate::virtio::interrupt::Following;
use crate::virtio::virtq::{QueueState, Virtq};

/// A queue that we have given away, until [`Self::finish`]. It can be handed over any number of times: to one who
/// serves it after another has gone.
pub(crate) struct Served {
    ring: Virtq,
    kick: Arc<EventFd>,
    call: EventFd,
    error: EventFd,
    negotiated: Negotiated,
    interrupt: QueueInterrupt,
    following: Option<Following>,
    signals: WorkerHandle<Signals>,
    broken: Arc<AtomicBool>,
}

impl Served {
    /// The queue `start`. Its interrupts come by way of `thread`.
    ///
    /// # Errors
    /// The host gives no more descriptors.
    pub(crate) fn new(start: QueueStart, thread: &IoThread) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (call, error) = (event()?, event()?);
        let broken = Arc::new(AtomicBool::new(start.ring.is_broken()));
        let signals = thread.add(Signals {
            call: call.try_clone()?,
            error: error.try_clone()?,
            interrupt: start.interrupt.clone(),
            broken: Arc::clone(&broken),
        })?;
        Ok(Self {
            ring: start.ring,
            kick: start.kick,
            call,
            error,
            negotiated: start.negotiated,
            interrupt: start.interrupt,
            following: None,
            signals,
            broken,
        })
    }

    /// What was agreed on with the driver.
    pub(crate) fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// The memory that the ring is in.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        self.ring.memory()
    }

    /// Where it goes on after a stop in good order.
    pub(crate) fn next_avail(&self) -> u16 {
        self.ring.state().next_avail
    }

    /// Where it goes on when who served it has gone without a word: behind the last used entry. What was under way is
    /// done once more.
    pub(crate) fn completed(&self) -> u16 {
        self.ring.used_index()
    }

    /// Tells `backend`, which knows the memory already, all about the queue, which is its number `index`. Addresses
    /// are those of the guest.
    ///
    /// # Errors
    /// What the backend says, or that it does not.
    pub(crate) fn hand_over(&self, backend: &impl VhostBackend, index: usize, next_avail: u16) -> vhost::Result<()> {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = self.ring.addresses();
        let size = self.ring.size();
        backend.set_vring_num(index, size)?;
        backend.set_vring_base(index, next_avail)?;
        backend.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: size,
                queue_size: size,
                desc_table_addr,
                avail_ring_addr,
                used_ring_addr,
                ..VringConfigData::default()
            },
        )?;
        backend.set_vring_err(index, &self.error)?;
        backend.set_vring_call(index, &self.call)?;
        // With this it starts.
        backend.set_vring_kick(index, &self.kick)
    }

    /// Has who serves it interrupt the driver itself: `set` tells it, now and at each change, what to signal by; what
    /// comes to us while a vector is masked or there is none, else what sends the message.
    ///
    /// # Errors
    /// The host gives no more descriptors.
    pub(crate) fn follow_interrupts(&mut self, set: impl Fn(&EventFd) + Send + 'static) -> io::Result<()> {
        let call = self.call.try_clone()?;
        let follow = move |event: Option<&EventFd>| set(event.unwrap_or(&call));
        self.following = Some(self.interrupt.follow(follow));
        Ok(())
    }

    /// Has it look at the ring: for a kick from before that somebody has heard already.
    pub(crate) fn kick(&self) {
        // It fails only when it is readable already.
        let _ = self.kick.write(1);
    }

    /// Takes the queue back from one who is done with it and took the available entries up to `next_avail`; `None`
    /// when nobody can say.
    pub(crate) fn finish(self, next_avail: Option<u16>) -> QueueState {
        drop(self.following);
        // What was signalled last is passed on.
        drop(self.signals);
        let next_avail = next_avail.unwrap_or_else(|| self.ring.used_index());
        QueueState {
            broken: self.broken.load(Ordering::Acquire),
            ..self.ring.stop_after_others(next_avail)
        }
    }
}

/// What went wrong, without the library's own words around it.
pub(crate) fn reason(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error) | vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        vhost::Error::VhostUserProtocol(error) => match error {
            UserError::SocketError(error)
            | UserError::SocketConnect(error)
            | UserError::SocketBroken(error)
            | UserError::ReqHandlerError(error) => error,
            UserError::Disconnected | UserError::PartialMessage => io::ErrorKind::UnexpectedEof.into(),
            UserError::BackendInternalError => io::Error::other("it refused a request"),
            other => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}

const CALL: u32 = 0;
const ERROR: u32 = 1;

/// Passes on what is signalled.
struct Signals {
    /// There are used entries.
    call: EventFd,
    /// The ring is malformed.
    error: EventFd,
    interrupt: QueueInterrupt,
    broken: Arc<AtomicBool>,
}

impl Worker for Signals {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(&self.call, CALL), Source::input(&self.error, ERROR)]
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self, token: u32) {
        match token {
            ERROR => {
                self.broken.store(true, Ordering::Release);
                self.interrupt.broken();
            }
            _ => self.interrupt.signal(),
        }
    }

    fn drain(&mut self) {
        // One too many does no harm.
        self.interrupt.signal();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use pci::intx::Intx;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::io_thread::PollPolicy;
    use crate::virtio::interrupt::{Interrupts, MsixSender};
    use crate::virtio::virtq::RingFeatures;
    use crate::virtio::virtq::testing::DriverRing;

    struct Recorder(Sender<u16>);

    impl MsixSender for Recorder {
        fn send(&self, vector: u16) {
            let _ = self.0.send(vector);
        }
    }

    #[test]
    fn what_is_signalled_reaches_the_driver() {
        let (sender, vectors) = channel();
        let interrupts = Interrupts::new(1, 1, Arc::new(Recorder(sender)), Arc::new(Intx::new()));
        interrupts.set_msix_enabled(true);
        interrupts.set_live(true);
        interrupts.set_modern(true);
        interrupts.set_queue_vector(0, 0);
        interrupts.set_masked(0, false);
        let (call, error) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        let broken = Arc::new(AtomicBool::new(false));
        let thread = IoThread::spawn("vhost", PollPolicy::default()).unwrap();
        let signals = thread
            .add(Signals {
                call: call.try_clone().unwrap(),
                error: error.try_clone().unwrap(),
                interrupt: QueueInterrupt::new(Arc::clone(&interrupts), 0),
                broken: Arc::clone(&broken),
            })
            .unwrap();
        for _ in 0..3 {
            call.write(1).unwrap();
            assert_eq!(vectors.recv_timeout(Duration::from_secs(10)), Ok(0));
        }
        assert!(!interrupts.needs_reset());
        error.write(1).unwrap();
        let told = (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            interrupts.needs_reset()
        });
        assert!(told && broken.load(Ordering::Acquire));
        drop(signals);
        let last = vectors.recv_timeout(Duration::from_secs(10));
        assert_eq!(last, Ok(0), "the last one comes through");
    }

    #[test]
    fn a_queue_goes_on_where_who_served_it_stopped_or_behind_the_last_used_entry() {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let mut driver = DriverRing::modern(Arc::clone(&memory), 0x1000, 8);
        let start = |driver: &DriverRing| {
            let features = RingFeatures::from_negotiated(1 << 32);
            Virtq::new(Arc::clone(&memory), driver.config(), features, QueueState::default()).unwrap()
        };
        let ring = start(&driver);
        driver.start_at(7, 5);
        let state = ring.stop_after_others(6);
        let expected = QueueState {
            next_avail: 6,
            next_used: 5,
            broken: false,
        };
        assert_eq!(state, expected);
        assert_eq!(start(&driver).used_index(), 5);
    }
}
