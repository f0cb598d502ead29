//! Another process carries the frames (vhost-user): DPDK, passt, or a switch of the user's own.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GSO, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Backend, Capabilities, Endpoint, Event, Opened, Wanted};
use crate::io_thread::{IoThread, Source};
use crate::virtio::device::QueueStart;
use crate::virtio::info::Host;
use crate::virtio::net::config::{OFFLOADS, bits};
use crate::virtio::net::data_path::DataPath;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::vhost::user::{self, Remote};
use crate::virtio::virtq::{GuestIoVec, QueueState};

/// What the guest is offered only if the backend has it (QEMU, hw/net/vhost_net.c, `user_feature_bits`). The rest is
/// between the driver and us.
const FEATURES: u64 = OFFLOADS
    | bits([
        VIRTIO_F_NOTIFY_ON_EMPTY,
        VIRTIO_F_ANY_LAYOUT,
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_RESET,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_NET_F_GSO,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
        VIRTIO_NET_F_MQ,
    ]);

/// Queues of a pair.
const QUEUES: u16 = 2;

/// `vhost-user=PATH`.
pub(super) fn open(options: &Options, host: &Host) -> Result<Opened, ConfigError> {
    let pairs = options.number("queues").map_or(1, |queues| queues as u16);
    let threads = host.io_threads(options.subject(), options.text("iothread"))?;
    let carrier = Arc::new(Carrier::new().map_err(|error| {
        let remedy = "raise the limit of open files (ulimit -n)";
        options.refused(format!("no events: {error}"), remedy)
    })?);
    let seen = Arc::clone(&carrier);
    let listener = Box::new(move |event| {
        if let user::Event::Connected(connected) = event {
            seen.set(connected);
        }
    });
    let wanted = user::Wanted::new(options.subject(), pairs * QUEUES, pairs, FEATURES);
    let remote = Remote::open(options, wanted, &host.memory, threads.for_queue(0), listener)?;
    let remote = Arc::new(remote);
    let endpoint = |pair| -> Box<dyn Endpoint> {
        Box::new(Cable {
            carrier: (pair == 0).then(|| Arc::clone(&carrier)),
            known: true,
        })
    };
    let path = |pair| -> Box<dyn DataPath> {
        Box::new(UserPair {
            remote: Arc::clone(&remote),
            first: pair * QUEUES,
        })
    };
    Ok(Opened {
        endpoints: (0..pairs).map(endpoint).collect(),
        data_paths: (0..pairs).map(path).collect(),
        backend: Arc::new(VhostUser {
            name: options.text("vhost-user").unwrap_or_default().to_owned(),
            remote,
        }),
        link: true,
    })
}

struct VhostUser {
    name: String,
    remote: Arc<Remote>,
}

impl Backend for VhostUser {
    fn describe(&self) -> String {
        let state = if self.remote.is_connected() {
            "connected"
        } else {
            "not connected"
        };
        format!("vhost-user, {}, {state}", self.name)
    }

    /// As QEMU has it; what the backend cannot do, its features take away again.
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vnet_header: true,
            ufo: true,
            uso: true,
        }
    }

    fn features(&self) -> u64 {
        self.remote.features()
    }
}

/// Whether there is a backend.
struct Carrier {
    connected: AtomicBool,
    changed: EventFd,
}

impl Carrier {
    fn new() -> io::Result<Self> {
        Ok(Self {
            connected: AtomicBool::new(true),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    fn set(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
        // It fails only when it is readable already.
        let _ = self.changed.write(1);
    }
}

/// The endpoint of a pair: no frames come this way, only news of the cable, by the first of them.
struct Cable {
    carrier: Option<Arc<Carrier>>,
    /// What the card knows of it.
    known: bool,
}

impl Endpoint for Cable {
    fn sources(&self, _wanted: Wanted) -> Vec<Source> {
        let carrier = self.carrier.iter();
        carrier.map(|carrier| Source::input(&carrier.changed, 0)).collect()
    }

    fn take_event(&mut self) -> Option<Event> {
        let connected = self.carrier.as_ref()?.connected.load(Ordering::Acquire);
        let changed = std::mem::replace(&mut self.known, connected) != connected;
        changed.then_some(Event::Link(connected))
    }

    fn receive(&mut self, _buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, _frame: &GuestIoVec) -> io::Result<()> {
        Ok(())
    }

    /// There is no way to hand a backend a frame of ours: an announcement is the driver's to make.
    fn send_bytes(&mut self, _frame: &[u8]) {}
}

/// The queues of a pair, in the hands of the backend.
struct UserPair {
    remote: Arc<Remote>,
    /// The backend's number of the receive queue.
    first: u16,
}

impl DataPath for UserPair {
    fn start(&mut self, start: QueueStart, thread: &IoThread) -> io::Result<()> {
        self.remote.start(start.index, start, thread)
    }

    fn set_state(&mut self, link: bool, active: bool) -> io::Result<()> {
        for queue in 0..QUEUES {
            self.remote.enable(self.first + queue, link && active);
        }
        Ok(())
    }

    fn stop(&mut self, index: u16) -> Option<QueueState> {
        self.remote.stop(index)
    }
}
