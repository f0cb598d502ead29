//! One connection to a backend, from the first question to the end of the stream.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::guard::Guard;
use super::remote::Wanted;
use crate::io_thread::IoThread;
use crate::memory::GuestMemory;
use crate::sys::fd;
use crate::virtio::vhost::{Served, reason};

/// What we take part in if the backend does. (The crate has no RARP and no MTU; guest memory has fewer regions than
/// every backend takes at once, so there is no need for CONFIGURE_MEM_SLOTS.)
const ALWAYS: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ.union(VhostUserProtocolFeatures::REPLY_ACK);

/// What an access to the configuration is for: for the driver (VHOST_SET_CONFIG_TYPE_FRONTEND, 0). What the crate calls
/// writable is 1, which is migration to others.
const OF_DRIVER: VhostUserConfigFlags = VhostUserConfigFlags::empty();

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A backend that has introduced itself.
pub(super) struct Session {
    frontend: Frontend,
    socket: UnixStream,
    guard: Guard,
    /// What it can do, bits of the protocol itself among them.
    features: u64,
    protocol: VhostUserProtocolFeatures,
    requests: Option<Requests>,
    /// The driver's features, as it was told them.
    told: Option<u64>,
    /// Guest memory is mapped over there.
    has_memory: bool,
    /// It was given the area for requests in flight.
    has_inflight: bool,
}

/// Where a backend writes down which requests it has begun, so that the next one can finish them.
pub(super) struct Inflight {
    area: VhostUserInflight,
    file: File,
}

impl Session {
    /// Gets to know the backend at the other end of `socket`: what it can do, and whether that is what is `wanted`.
    ///
    /// # Errors
    /// It does not answer, or it is not what is wanted.
    pub(super) fn begin(socket: UnixStream, wanted: &Wanted, thread: &IoThread) -> io::Result<Self> {
        let mut requests = None;
        let mut sockets = vec![socket.try_clone()?];
        if wanted.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let new = Requests::new()?;
            sockets.push(new.socket()?);
            requests = Some(new);
        }
        let guard = Guard::new(thread, sockets, wanted.patience)?;
        let mut session = Self {
            frontend: Frontend::from_stream(socket.try_clone()?, wanted.rings.into()),
            socket,
            guard,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            requests,
            told: None,
            has_memory: false,
            has_inflight: false,
        };
        session.introduce(wanted)?;
        Ok(session)
    }

    fn introduce(&mut self, wanted: &Wanted) -> io::Result<()> {
        let Self { frontend, guard, .. } = self;
        let (features, offered) = guard.during(|| {
            let features = frontend.get_features().map_err(reason)?;
            if features & PROTOCOL_FEATURES == 0 {
                return Err(io::Error::other(
                    "it does not offer VHOST_USER_F_PROTOCOL_FEATURES (bit 30)",
                ));
            }
            Ok((features, frontend.get_protocol_features().map_err(reason)?))
        })?;
        let protocol = offered & (ALWAYS | wanted.protocol);
        let missing = wanted.required - protocol;
        if !missing.is_empty() {
            return Err(io::Error::other(format!(
                "it lacks protocol features {:#x}",
                missing.bits()
            )));
        }
        (self.features, self.protocol) = (features, protocol);
        if wanted.queues > 1 {
            self.check_queues(wanted.queues)?;
        }
        let Self {
            frontend,
            guard,
            requests,
            ..
        } = self;
        guard.during(|| {
            frontend.set_protocol_features(protocol).map_err(reason)?;
            if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            frontend.set_owner().map_err(reason)?;
            match requests {
                Some(requests) if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) => {
                    requests.give_to(frontend, protocol)
                }
                _ => Ok(()),
            }
        })
    }

    /// Sees that it has as many queues as are wanted. To some kinds of backends these are rings, to others pairs; the
    /// crate takes them for rings and would refuse to name others from then on, so a front end of its own asks.
    fn check_queues(&self, wanted: u16) -> io::Result<()> {
        if !self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            return Err(io::Error::other(format!("it serves one queue, not {wanted}")));
        }
        let socket = self.socket.try_clone()?;
        let has = self.guard.during(|| {
            let mut asking = Frontend::from_stream(socket, 1);
            asking.get_features().map_err(reason)?;
            asking.set_protocol_features(self.protocol).map_err(reason)?;
            asking.get_queue_num().map_err(reason)
        })?;
        if has < u64::from(wanted) {
            return Err(io::Error::other(format!("it serves {has} queues, not {wanted}")));
        }
        Ok(())
    }

    /// What it can do of virtio and of its type of device.
    pub(super) fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    /// The connection, to see its end.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Where its own requests come in, if it may make any.
    pub(super) fn requests(&self) -> Option<BorrowedFd<'_>> {
        let requests = self.requests.as_ref().filter(|requests| requests.given)?;
        Some(requests.watched.as_fd())
    }

    /// Answers a request of the backend; says whether its configuration has changed.
    ///
    /// # Errors
    /// It was no request.
    pub(super) fn answer(&mut self) -> io::Result<bool> {
        let Self { guard, requests, .. } = self;
        let Some(requests) = requests else { return Ok(false) };
        guard.during(|| {
            let answered = requests.handler.handle_request();
            answered.map_err(|error| reason(vhost::Error::VhostUserProtocol(error)))
        })?;
        Ok(requests.notes.config.swap(false, Ordering::AcqRel))
    }

    /// The first `len` bytes of its device configuration.
    ///
    /// # Errors
    /// It does not give them.
    pub(super) fn read_config(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let Self { frontend, guard, .. } = self;
        let empty = vec![0; len as usize];
        guard.during(|| {
            let read = frontend.get_config(0, len, OF_DRIVER, &empty);
            read.map(|(_, bytes)| bytes).map_err(reason)
        })
    }

    /// Changes its device configuration.
    ///
    /// # Errors
    /// It does not take them.
    pub(super) fn write_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let Self { frontend, guard, .. } = self;
        guard.during(|| {
            let written = frontend.set_config(offset, OF_DRIVER, bytes);
            written.map_err(reason)
        })
    }

    /// It gets a new area for requests in flight before the next ring.
    pub(super) fn forget_inflight(&mut self) {
        self.has_inflight = false;
    }

    /// Gives it the area for requests in flight, a new one unless there is one in `inflight`.
    fn give_inflight(&mut self, queues: u16, queue_size: u16, inflight: &mut Option<Inflight>) -> io::Result<()> {
        if !self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) || self.has_inflight {
            return Ok(());
        }
        let Self { frontend, guard, .. } = self;
        guard.during(|| {
            if inflight.is_none() {
                let asked = VhostUserInflight::new(0, 0, queues, queue_size);
                let (area, file) = frontend.get_inflight_fd(&asked).map_err(reason)?;
                *inflight = Some(Inflight { area, file });
            }
            match inflight {
                Some(Inflight { area, file }) => frontend.set_inflight_fd(area, file.as_raw_fd()).map_err(reason),
                None => Ok(()),
            }
        })?;
        self.has_inflight = true;
        Ok(())
    }

    /// Tells it, as far as it does not know, what it has to know before it can serve `ring`: what the driver
    /// understands, and guest memory.
    ///
    /// # Errors
    /// It refuses.
    pub(super) fn prepare(
        &mut self,
        ring: &Served,
        wanted: &Wanted,
        inflight: &mut Option<Inflight>,
    ) -> io::Result<()> {
        let features = ring.negotiated().features & self.features | PROTOCOL_FEATURES;
        let Self { frontend, guard, .. } = self;
        if self.told != Some(features) {
            guard.during(|| frontend.set_features(features).map_err(reason))?;
            self.told = Some(features);
        }
        if !self.has_memory {
            let regions = regions(ring.memory())?;
            guard.during(|| frontend.set_mem_table(&regions).map(drop).map_err(reason))?;
            self.has_memory = true;
        }
        match wanted.inflight {
            Some(size) => self.give_inflight(wanted.rings, size, inflight),
            None => Ok(()),
        }
    }

    /// Has it serve `ring`, its number `index`, from `next_avail` on.
    ///
    /// # Errors
    /// It refuses.
    pub(super) fn start_ring(&mut self, index: u16, ring: &Served, next_avail: u16) -> io::Result<()> {
        let Self { frontend, guard, .. } = self;
        guard.during(|| ring.hand_over(frontend, index.into(), next_avail).map_err(reason))
    }

    /// Has it carry data on a ring, or not, while it serves it.
    ///
    /// # Errors
    /// It refuses.
    pub(super) fn enable_ring(&mut self, index: u16, enabled: bool) -> io::Result<()> {
        let Self { frontend, guard, .. } = self;
        guard.during(|| frontend.set_vring_enable(index.into(), enabled).map_err(reason))
    }

    /// Takes a ring back; says how far it has come. The backend is done with it when this returns.
    ///
    /// # Errors
    /// It does not say.
    pub(super) fn stop_ring(&mut self, index: u16) -> io::Result<u16> {
        let Self { frontend, guard, .. } = self;
        let base = guard.during(|| frontend.get_vring_base(index.into()).map_err(reason))?;
        // The upper half is of packed rings.
        Ok(base as u16)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Others hold descriptors of it.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Guest memory as the backend is told of it: files, and guest-physical addresses in place of ours.
///
/// # Errors
/// It is not shared.
pub(super) fn regions(memory: &GuestMemory) -> io::Result<Vec<VhostUserMemoryRegionInfo>> {
    let region = |region: &<GuestMemory as GuestMemoryBackend>::R| {
        let file = region
            .file_offset()
            .ok_or_else(|| io::Error::other("guest memory is private to this process"))?;
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.start_addr().0,
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd(),
        })
    };
    memory.iter().map(region).collect()
}

/// What a backend may ask of us.
struct Requests {
    handler: FrontendReqHandler<Notes>,
    notes: Arc<Notes>,
    /// The same socket.
    watched: UnixStream,
    given: bool,
}

/// What it has asked.
#[derive(Default)]
struct Notes {
    config: AtomicBool,
}

impl VhostUserFrontendReqHandler for Notes {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.config.store(true, Ordering::Release);
        Ok(0)
    }
}

impl Requests {
    fn new() -> io::Result<Self> {
        let notes = Arc::new(Notes::default());
        let handler = FrontendReqHandler::new(Arc::clone(&notes))
            .map_err(|error| reason(vhost::Error::VhostUserProtocol(error)))?;
        let watched = fd::duplicate(&handler)?.into();
        Ok(Self {
            handler,
            notes,
            watched,
            given: false,
        })
    }

    fn socket(&self) -> io::Result<UnixStream> {
        self.watched.try_clone()
    }

    fn give_to(&mut self, frontend: &mut Frontend, protocol: VhostUserProtocolFeatures) -> io::Result<()> {
        let acknowledged = protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        self.handler.set_reply_ack_flag(acknowledged);
        let theirs = self.handler.get_tx_raw_fd();
        frontend.set_backend_request_fd(&theirs).map_err(reason)?;
        self.given = true;
        Ok(())
    }
}
