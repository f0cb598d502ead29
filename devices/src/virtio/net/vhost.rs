//! The data path in the kernel (vhost-net): the host's kernel takes frames between the queues of a
//! pair and a queue of a tap interface, and we only set it up and take it down.
//!
//! What we do to frames does not happen then: no receive filter, no capture, no answer to a
//! malformed chain. A malformed ring stands still, as it does with us.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::{VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::io_thread::{IoThread, Source, Worker, WorkerHandle};
use crate::memory::GuestMemory;
use crate::virtio::device::{QueueInterrupt, QueueStart};
use crate::virtio::virtq::{QueueState, Virtq};

/// What the kernel has to be told of what was agreed on, and has to be able to. Others are none of
/// its business, and bit 27 means something else to it (VHOST_NET_F_VIRTIO_NET_HDR; Linux,
/// drivers/vhost/net.c).
const FEATURES: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_F_NOTIFY_ON_EMPTY
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_VERSION_1;

/// The queues of a pair: receive and transmit.
const QUEUES: usize = 2;

/// The kernel's side of one queue pair.
pub struct VhostPair {
    kernel: Net<Arc<GuestMemory>>,
    tap: File,
    running: [Option<Running>; QUEUES],
    /// The cable is in.
    connected: bool,
}

/// A queue that the kernel serves.
struct Running {
    ring: Virtq,
    signals: WorkerHandle<Signals>,
    broken: Arc<AtomicBool>,
}

impl VhostPair {
    /// The kernel's side for `tap`, which is one queue of an interface.
    ///
    /// # Errors
    /// The host has no vhost-net, this user may not have it, or it is too old.
    pub fn open(memory: &Arc<GuestMemory>, tap: File) -> io::Result<Self> {
        let kernel = Net::new(Arc::clone(memory)).map_err(reason)?;
        kernel.set_owner().map_err(reason)?;
        if kernel.get_features().map_err(reason)? & FEATURES != FEATURES {
            return Err(io::Error::other("the kernel's vhost-net is too old"));
        }
        Ok(Self {
            kernel,
            tap,
            running: [None, None],
            connected: true,
        })
    }

    /// Has the kernel serve a queue of the pair. Interrupts come by way of `thread`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(&mut self, start: QueueStart, thread: &IoThread) -> io::Result<()> {
        let queue = usize::from(start.index) % QUEUES;
        let (call, error) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        self.hand_over(queue, &start, &call, &error).map_err(reason)?;
        let broken = Arc::new(AtomicBool::new(start.ring.is_broken()));
        let signals = thread.add(Signals {
            call,
            error,
            interrupt: start.interrupt,
            broken: Arc::clone(&broken),
        })?;
        self.connect(queue).map_err(reason)?;
        // A kick from before that somebody has heard already.
        start.kick.write(1)?;
        if let Some(running) = self.running.get_mut(queue) {
            let ring = start.ring;
            *running = Some(Running { ring, signals, broken });
        }
        Ok(())
    }

    /// Pulls the cable, or puts it in: without it the queues stand still, and go on with it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_connected(&mut self, connected: bool) -> io::Result<()> {
        if self.connected == connected {
            return Ok(());
        }
        self.connected = connected;
        let mut running = self.running.iter().enumerate().filter(|(_, queue)| queue.is_some());
        running.try_for_each(|(queue, _)| self.connect(queue)).map_err(reason)
    }

    /// Joins a queue and the interface, or parts them, whichever is right.
    fn connect(&self, queue: usize) -> vhost::Result<()> {
        self.kernel.set_backend(queue, self.connected.then_some(&self.tap))
    }

    /// Tells the kernel all about a queue.
    fn hand_over(&self, queue: usize, start: &QueueStart, call: &EventFd, error: &EventFd) -> vhost::Result<()> {
        let kernel = &self.kernel;
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = start.ring.addresses();
        kernel.set_features(start.negotiated.features & FEATURES)?;
        kernel.set_mem_table(&regions(start.ring.memory()))?;
        kernel.set_vring_num(queue, start.ring.size())?;
        kernel.set_vring_addr(
            queue,
            &VringConfigData {
                queue_max_size: start.ring.size(),
                queue_size: start.ring.size(),
                desc_table_addr,
                avail_ring_addr,
                used_ring_addr,
                ..VringConfigData::default()
            },
        )?;
        kernel.set_vring_base(queue, start.ring.state().next_avail)?;
        kernel.set_vring_kick(queue, &start.kick)?;
        kernel.set_vring_call(queue, call)?;
        kernel.set_vring_err(queue, error)
    }

    /// Takes a queue back; `None` when the kernel does not serve it. The kernel is done with it
    /// when this returns.
    pub fn stop(&mut self, index: u16) -> Option<QueueState> {
        let queue = usize::from(index) % QUEUES;
        let Running { ring, signals, broken } = self.running.get_mut(queue)?.take()?;
        let stopped = self
            .kernel
            .set_backend(queue, None)
            .and_then(|()| self.kernel.get_vring_base(queue));
        // What the kernel has signalled last is passed on.
        drop(signals);
        let state = match stopped {
            // The upper half is of packed rings.
            Ok(next_avail) => ring.stop_after_others(next_avail as u16),
            Err(error) => {
                tracing::error!("vhost-net: queue {index} cannot be stopped: {error}");
                ring.stop()
            }
        };
        Some(QueueState {
            broken: broken.load(Ordering::Acquire),
            ..state
        })
    }
}

impl Drop for VhostPair {
    fn drop(&mut self) {
        for index in [0, 1] {
            self.stop(index);
        }
    }
}

/// Guest RAM as the kernel is told of it.
fn regions(memory: &GuestMemory) -> Vec<VhostUserMemoryRegionInfo> {
    let region = |region: &<GuestMemory as GuestMemoryBackend>::R| {
        let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
        Some(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host.addr() as u64,
            ..VhostUserMemoryRegionInfo::default()
        })
    };
    memory.iter().filter_map(region).collect()
}

/// What the kernel said, without the library's own words around it.
fn reason(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error) | vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

const CALL: u32 = 0;
const ERROR: u32 = 1;

/// Passes on what the kernel signals.
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
mod tests;
