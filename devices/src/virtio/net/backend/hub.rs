//! Hubs: what one card of the process sends, all others on the same hub receive. QEMU's `hubport`
//! (net/hub.c).

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Backend, Endpoint, Opened, Wanted};
use crate::io_thread::Source;
use crate::virtio::info::Host;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

/// Frames that wait at a port whose card does not take them, at most; further ones are lost.
const MAX_FRAMES: usize = 1024;
/// Bytes of them.
const MAX_BYTES: usize = 4 << 20;

/// The hubs of a machine by their numbers. A hub is there as long as a card is on it.
#[derive(Clone, Default)]
pub(in crate::virtio::net) struct Hubs(Arc<Mutex<BTreeMap<u64, Weak<Hub>>>>);

impl Hubs {
    fn get(&self, number: u64) -> Arc<Hub> {
        let mut hubs = lock(&self.0);
        let found = hubs.get(&number).and_then(Weak::upgrade);
        found.unwrap_or_else(|| {
            let hub = Arc::new(Hub {
                number,
                ports: Mutex::default(),
            });
            hubs.insert(number, Arc::downgrade(&hub));
            hub
        })
    }
}

struct Hub {
    number: u64,
    ports: Mutex<Vec<Arc<Port>>>,
}

/// Where a card is plugged in.
struct Port {
    waiting: Mutex<Waiting>,
    wake: EventFd,
}

/// Frames for the card.
#[derive(Default)]
struct Waiting {
    frames: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

impl Port {
    fn put(&self, frame: &Arc<[u8]>) {
        let mut waiting = lock(&self.waiting);
        if waiting.frames.len() < MAX_FRAMES && waiting.bytes + frame.len() <= MAX_BYTES {
            waiting.bytes += frame.len();
            waiting.frames.push_back(frame.clone());
            drop(waiting);
            // It fails only when it is readable already.
            let _ = self.wake.write(1);
        }
    }

    fn take(&self) -> Option<Arc<[u8]>> {
        let mut waiting = lock(&self.waiting);
        let frame = waiting.frames.pop_front()?;
        waiting.bytes -= frame.len();
        Some(frame)
    }
}

/// `hub=NUMBER`.
pub(super) fn open(options: &Options, host: &Host) -> Result<Opened, ConfigError> {
    let hub = host.networks.hubs.get(options.number("hub").unwrap_or(0));
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| {
        let problem = format!("hub={}: {error}", hub.number);
        options.refused(problem, "raise the limit of open files (ulimit -n)")
    })?;
    let port = Arc::new(Port {
        waiting: Mutex::default(),
        wake,
    });
    lock(&hub.ports).push(port.clone());
    Ok(Opened::one(HubBackend(hub.clone()), HubEndpoint { hub, port }))
}

struct HubBackend(Arc<Hub>);

impl Backend for HubBackend {
    fn describe(&self) -> String {
        format!("hub {}, {} ports", self.0.number, lock(&self.0.ports).len())
    }
}

struct HubEndpoint {
    hub: Arc<Hub>,
    port: Arc<Port>,
}

impl HubEndpoint {
    /// Gives a frame to all other ports.
    fn spread(&self, frame: Arc<[u8]>) {
        let ports = lock(&self.hub.ports);
        let others = ports.iter().filter(|port| !Arc::ptr_eq(port, &self.port));
        others.for_each(|port| port.put(&frame));
    }
}

impl Endpoint for HubEndpoint {
    fn sources(&self, wanted: Wanted) -> Vec<Source> {
        let input = Wanted { send: false, ..wanted };
        input.watch(&self.port.wake, 0)
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        match self.port.take() {
            Some(frame) => Ok(buffers.copy_from(&frame)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        let mut bytes = vec![0; frame.bytes()];
        frame.copy_to(&mut bytes);
        self.spread(bytes.into());
        Ok(())
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        self.spread(frame.into());
    }
}

impl Drop for HubEndpoint {
    fn drop(&mut self) {
        lock(&self.hub.ports).retain(|port| !Arc::ptr_eq(port, &self.port));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
