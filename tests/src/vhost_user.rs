//! A vhost-user backend for tests: a process of its own in spirit, a thread in fact. It maps guest memory from the
//! descriptors that it is given, and reflects frames or serves a disk in memory.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a backend that is not treated as it should be fails its test"
)]

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::memory::GuestMemory;
use devices::virtio::virtq::{QueueConfig, QueueState, RingFeatures, Virtq};
use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_blk::*;
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempfile::TempFile;

use crate::driver::wait_for;

/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Requests (QEMU, docs/interop/vhost-user.rst), and the flags in their headers.
const SET_BACKEND_REQ_FD: u32 = 21;
const CONFIG_CHANGE: u32 = 2;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What a backend serves.
#[derive(Clone, Debug)]
pub enum Serves {
    /// Frames come back as they went.
    Frames,
    /// A disk of these bytes, shared by all backends that are given it.
    Disk(Arc<Mutex<Vec<u8>>>),
}

/// What a backend is like.
#[derive(Clone, Debug)]
pub struct Nature {
    /// What it serves.
    pub serves: Serves,
    /// Features of virtio and of the device.
    pub features: u64,
    /// Features of the protocol.
    pub protocol: VhostUserProtocolFeatures,
    /// What it answers to GET_QUEUE_NUM.
    pub queues: u64,
    /// Leaves requests where they are.
    pub idle: bool,
}

impl Nature {
    /// Reflects frames; understands VERSION_1, indirect descriptors, event indices and mergeable buffers.
    pub fn frames() -> Self {
        Self {
            serves: Serves::Frames,
            features: PROTOCOL_FEATURES | 1 << 32 | 1 << 28 | 1 << 29 | 1 << 15 | 1 << 22,
            protocol: VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK,
            queues: 2,
            idle: false,
        }
    }

    /// A disk of so many sectors.
    pub fn disk(sectors: usize) -> Self {
        let bytes = (0..sectors).flat_map(|number| [number as u8; 512]).collect();
        Self {
            serves: Serves::Disk(Arc::new(Mutex::new(bytes))),
            features: PROTOCOL_FEATURES
                | 1 << 32
                | 1 << VIRTIO_BLK_F_FLUSH
                | 1 << VIRTIO_BLK_F_MQ
                | 1 << VIRTIO_BLK_F_CONFIG_WCE,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            queues: 4,
            idle: false,
        }
    }
}

/// A backend that is connected.
pub struct Backend {
    shared: Arc<Mutex<Inner>>,
    connection: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Connects to a device that listens at `path`, as soon as it does.
    ///
    /// # Panics
    /// It never does.
    pub fn connect(path: &Path, nature: Nature) -> Self {
        let socket = wait_for("a device that listens", || UnixStream::connect(path).ok());
        Self::over(socket, nature)
    }

    /// Serves over `socket`.
    ///
    /// # Panics
    /// The host has no threads.
    pub fn over(socket: UnixStream, nature: Nature) -> Self {
        let shared = Arc::new(Mutex::new(Inner::new(nature)));
        let connection = socket.try_clone().expect("a descriptor");
        let handler = BackendReqHandler::from_stream(socket, Arc::clone(&shared));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(handler, &of_thread));
        Self {
            shared,
            connection,
            thread: Some(thread),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.shared)
    }

    /// Features that it was told the driver has; 0 before that.
    pub fn told(&self) -> u64 {
        self.inner().told
    }

    /// Rings that it serves, and from which entry on each was begun.
    pub fn rings(&self) -> BTreeMap<u32, u16> {
        let inner = self.inner();
        inner
            .rings
            .iter()
            .filter_map(|(index, ring)| Some((*index, ring.begun?)))
            .collect()
    }

    /// Rings on which it carries data.
    pub fn enabled(&self) -> Vec<u32> {
        let inner = self.inner();
        let enabled = inner
            .rings
            .iter()
            .filter(|(_, ring)| ring.enabled && ring.begun.is_some());
        enabled.map(|(index, _)| *index).collect()
    }

    /// The write cache as it was set last.
    pub fn write_cache(&self) -> Option<u8> {
        self.inner().write_cache
    }

    /// The number of the file for requests in flight that it was given last, and how many it has made.
    pub fn inflight(&self) -> Option<(u64, u32)> {
        let inner = self.inner();
        Some((inner.inflight?, inner.made))
    }

    /// Gives the disk another size, and says so.
    ///
    /// # Panics
    /// It has no disk, or no way to say so.
    pub fn resize(&self, sectors: usize) {
        let inner = self.inner();
        let Serves::Disk(bytes) = &inner.nature.serves else {
            panic!("no disk")
        };
        lock(bytes).resize(sectors * 512, 0);
        let mut requests = inner
            .requests
            .as_ref()
            .and_then(|requests| requests.try_clone().ok())
            .expect("a channel");
        drop(inner);
        // A request without a body that wants an answer.
        let request = [CONFIG_CHANGE, VERSION | NEED_REPLY, 0].map(u32::to_le_bytes).concat();
        requests.write_all(&request).expect("a front end that reads");
        let mut answer = [0; 20];
        requests.read_exact(&mut answer).expect("a front end that answers");
        assert_eq!(answer[12..], [0; 8], "it refuses");
    }

    /// Dies.
    pub fn die(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.connection.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Whether the device has hung up.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers requests and serves rings until the other side hangs up.
fn serve(mut handler: BackendReqHandler<Mutex<Inner>>, shared: &Mutex<Inner>) {
    let connection = handler.try_clone_connection().expect("a descriptor");
    loop {
        let kicks = lock(shared).kicks();
        let mut watched = vec![PollFd::new(&connection, PollFlags::IN)];
        watched.extend(kicks.iter().map(|(_, kick)| PollFd::new(kick, PollFlags::IN)));
        poll(&mut watched, None).expect("events");
        let ready: Vec<_> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        for ((index, _), _) in kicks.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            lock(shared).kicked(*index);
        }
        if !ready[0] {
            continue;
        }
        if let Some(requests) = take_requests(&connection) {
            lock(shared).requests = Some(requests);
        } else if handler.handle_request().is_err() {
            return;
        }
    }
}

/// Takes SET_BACKEND_REQ_FD, if that comes next: the library's end of that channel does not say that a configuration
/// has changed.
fn take_requests(mut connection: &UnixStream) -> Option<UnixStream> {
    let mut header = [0u8; 12];
    // SAFETY: the kernel writes up to 12 bytes into a buffer of 12.
    let read = unsafe {
        libc::recv(
            connection.as_raw_fd(),
            header.as_mut_ptr().cast(),
            header.len(),
            libc::MSG_PEEK,
        )
    };
    if read != 12 || header[..4] != SET_BACKEND_REQ_FD.to_le_bytes() {
        return None;
    }
    let (_, file) = connection.recv_with_fd(&mut header).expect("a message");
    if header[4] & NEED_REPLY as u8 != 0 {
        let answer = [SET_BACKEND_REQ_FD, VERSION | REPLY, 8, 0, 0]
            .map(u32::to_le_bytes)
            .concat();
        connection.write_all(&answer).expect("a front end that reads");
    }
    Some(OwnedFd::from(file?).into())
}

#[derive(Default)]
struct Ring {
    size: u16,
    parts: [u64; 3],
    base: u16,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    enabled: bool,
    /// While it is served.
    virtq: Option<Virtq>,
    begun: Option<u16>,
}

struct Inner {
    nature: Nature,
    told: u64,
    memory: Option<Arc<GuestMemory>>,
    rings: BTreeMap<u32, Ring>,
    frames: VecDeque<Vec<u8>>,
    write_cache: Option<u8>,
    /// The file for requests in flight that it was given last.
    inflight: Option<u64>,
    /// How many it has made.
    made: u32,
    /// Where it may ask something of the device.
    requests: Option<UnixStream>,
}

impl Inner {
    fn new(nature: Nature) -> Self {
        Self {
            nature,
            told: 0,
            memory: None,
            rings: BTreeMap::new(),
            frames: VecDeque::new(),
            write_cache: None,
            inflight: None,
            made: 0,
            requests: None,
        }
    }

    fn ring(&mut self, index: u32) -> &mut Ring {
        self.rings.entry(index).or_default()
    }

    fn kicks(&self) -> Vec<(u32, OwnedFd)> {
        let running = self.rings.iter().filter(|(_, ring)| ring.virtq.is_some());
        let kick = |(index, ring): (&u32, &Ring)| {
            let kick = devices::sys::fd::duplicate(ring.kick.as_ref()?).expect("a descriptor");
            Some((*index, kick))
        };
        running.filter_map(kick).collect()
    }

    fn kicked(&mut self, index: u32) {
        if let Some(kick) = &self.ring(index).kick {
            let _ = kick.read();
        }
        if self.nature.idle {
            return;
        }
        match self.nature.serves.clone() {
            Serves::Frames => self.reflect(index / 2),
            Serves::Disk(bytes) => self.answer(index, &mut lock(&bytes)),
        }
    }

    /// Takes what the transmit queue of a pair has, and fills its receive queue with it.
    fn reflect(&mut self, pair: u32) {
        let transmit = self.rings.entry(2 * pair + 1).or_default();
        if let Some(virtq) = &mut transmit.virtq {
            while let Ok(Some(chain)) = virtq.pop() {
                let mut frame = vec![0; chain.readable_bytes()];
                chain.reader().read(&mut frame);
                virtq.push(chain, 0);
                if transmit.enabled {
                    self.frames.push_back(frame);
                }
            }
            transmit.publish();
        }
        let modern = self.told & (1 << 32 | 1 << 15) != 0;
        let receive = self.rings.entry(2 * pair).or_default();
        if let Some(virtq) = receive.virtq.as_mut().filter(|_| receive.enabled) {
            while let Some(frame) = self.frames.front_mut() {
                let Ok(Some(chain)) = virtq.pop() else { break };
                if modern && let Some(buffers) = frame.get_mut(10) {
                    *buffers = 1;
                }
                let written = chain.writer().write(frame);
                virtq.push(chain, written as u32);
                self.frames.pop_front();
            }
            receive.publish();
        }
    }

    /// Answers the requests to a disk that a ring has.
    fn answer(&mut self, index: u32, disk: &mut [u8]) {
        let ring = self.ring(index);
        let Some(virtq) = &mut ring.virtq else { return };
        while let Ok(Some(chain)) = virtq.pop() {
            let mut request = vec![0; chain.readable_bytes()];
            chain.reader().read(&mut request);
            let (header, data) = request.split_at(16);
            let kind = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
            let sector = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
            let room = chain.writable_bytes() - 1;
            let first = usize::try_from(sector).unwrap_or(usize::MAX).saturating_mul(512);
            let mut writer = chain.writer();
            let status = match kind {
                VIRTIO_BLK_T_IN => disk
                    .get(first..first.saturating_add(room))
                    .map(|from| writer.write(from)),
                VIRTIO_BLK_T_OUT => {
                    let to = disk.get_mut(first..first.saturating_add(data.len()));
                    to.map(|to| to.copy_from_slice(data)).map(|()| 0)
                }
                _ => Some(0),
            };
            let status = if status.is_some() {
                VIRTIO_BLK_S_OK
            } else {
                VIRTIO_BLK_S_IOERR
            };
            writer.write(&[status as u8]);
            let written = writer.written();
            virtq.push(chain, written);
        }
        ring.publish();
    }

    /// Serves a ring of which all is known, as far as nobody did.
    fn begin(&mut self, index: u32) {
        let (memory, told) = (self.memory.clone().expect("guest memory"), self.told);
        let ring = self.ring(index);
        let [descriptors, available, used] = ring.parts;
        let config = QueueConfig {
            descriptors,
            available,
            used,
            enabled: true,
            ..QueueConfig::new(ring.size)
        };
        let state = QueueState {
            next_avail: ring.base,
            ..QueueState::default()
        };
        let features = RingFeatures::from_negotiated(told);
        let idle = Virtq::new(memory.clone(), &config, features, state).expect("a ring");
        let state = QueueState {
            next_used: idle.used_index(),
            ..state
        };
        ring.virtq = Virtq::new(memory, &config, features, state).ok();
        ring.begun = Some(ring.base);
    }
}

impl Ring {
    fn publish(&mut self) {
        if let (Some(virtq), Some(call)) = (&mut self.virtq, &self.call)
            && virtq.publish()
        {
            let _ = call.write(1);
        }
    }
}

fn event(file: Option<File>) -> Option<EventFd> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor was received just now and belongs to nobody else.
    file.map(|file| unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What no front end of ours asks.
fn unasked<T>() -> Result<T> {
    Err(Error::InvalidOperation("not here"))
}

impl VhostUserBackendReqHandlerMut for Inner {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        unasked()
    }

    fn reset_device(&mut self) -> Result<()> {
        unasked()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.nature.features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        assert_eq!(features & !self.nature.features, 0, "features that were not offered");
        self.told = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let region = |(region, file): (&VhostUserMemoryRegion, File)| {
            // They are packed.
            let (offset, size, start) = (region.mmap_offset, region.memory_size, region.guest_phys_addr);
            assert_eq!({ region.user_addr }, start, "addresses of the other process");
            let mapping = MmapRegion::from_file(FileOffset::new(file, offset), size as usize).expect("a mapping");
            GuestRegionMmap::new(mapping, GuestAddress(start)).expect("a region")
        };
        let regions = regions.iter().zip(files).map(region).collect();
        self.memory = Some(Arc::new(GuestMemory::from_regions(regions).expect("memory")));
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index).size = num as u16;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.ring(index).parts = [descriptor, available, used];
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index).base = base as u16;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index);
        let base = ring.virtq.take().map_or(ring.base, |virtq| virtq.state().next_avail);
        *ring = Ring::default();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(index.into()).kick = event(file);
        self.begin(index.into());
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(index.into()).call = event(file);
        Ok(())
    }

    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.nature.protocol)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        assert_eq!(
            features & !self.nature.protocol.bits(),
            0,
            "features that were not offered"
        );
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.nature.queues)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index).enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let Serves::Disk(bytes) = &self.nature.serves else {
            return unasked();
        };
        let mut config = vec![0; (offset + size) as usize];
        let sectors = lock(bytes).len() as u64 / 512;
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        Ok(config.split_off(offset as usize))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], flags: VhostUserConfigFlags) -> Result<()> {
        assert!(flags.is_empty(), "that is for migration");
        assert_eq!((offset, bytes.len()), (32, 1), "only the write cache can be set");
        self.write_cache = bytes.first().copied();
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unasked()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unasked()
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let file = TempFile::new().expect("a file").into_file();
        self.made += 1;
        Ok((
            VhostUserInflight::new(0x1000, 0, asked.num_queues, asked.queue_size),
            file,
        ))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, file: File) -> Result<()> {
        self.inflight = Some(file.metadata().expect("a number").ino());
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unasked()
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        unasked()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unasked()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unasked()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unasked()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unasked()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unasked()
    }
}
