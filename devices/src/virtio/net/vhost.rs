//! The data path in the kernel (vhost-net): the host's kernel takes frames between the queues of a
//! pair and a queue of a tap interface, and we only set it up and take it down.
//!
//! What we do to frames does not happen then: no receive filter, no capture, no answer to a
//! malformed chain. A malformed ring stands still, as it does with us.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_config::{VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::data_path::DataPath;
use crate::io_thread::IoThread;
use crate::memory::GuestMemory;
use crate::virtio::device::QueueStart;
use crate::virtio::vhost::{Served, reason};
use crate::virtio::virtq::QueueState;

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
    kernel: Arc<Net<Arc<GuestMemory>>>,
    tap: File,
    running: [Option<Served>; QUEUES],
    /// The cable is in.
    connected: bool,
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
            kernel: Arc::new(kernel),
            tap,
            running: [None, None],
            connected: true,
        })
    }

    /// Joins a queue and the interface, or parts them, whichever is right.
    fn connect(&self, queue: usize) -> vhost::Result<()> {
        self.kernel.set_backend(queue, self.connected.then_some(&self.tap))
    }

    /// Tells the kernel all about a queue.
    fn hand_over(&self, queue: usize, served: &Served) -> vhost::Result<()> {
        self.kernel.set_features(served.negotiated().features & FEATURES)?;
        self.kernel.set_mem_table(&regions(served.memory()))?;
        served.hand_over(&*self.kernel, queue, served.next_avail())
    }
}

impl DataPath for VhostPair {
    fn start(&mut self, start: QueueStart, thread: &IoThread) -> io::Result<()> {
        let queue = usize::from(start.index) % QUEUES;
        let mut served = Served::new(start, thread)?;
        self.hand_over(queue, &served).map_err(reason)?;
        let kernel = Arc::clone(&self.kernel);
        served.follow_interrupts(move |call| {
            if let Err(error) = kernel.set_vring_call(queue, call) {
                tracing::error!("vhost-net: interrupts of queue {queue} are lost: {}", reason(error));
            }
        })?;
        // Last: what the kernel serves is in `running`, and so is stopped some day.
        self.connect(queue).map_err(reason)?;
        served.kick();
        if let Some(running) = self.running.get_mut(queue) {
            *running = Some(served);
        }
        Ok(())
    }

    fn set_state(&mut self, link: bool, _active: bool) -> io::Result<()> {
        if self.connected == link {
            return Ok(());
        }
        self.connected = link;
        let mut running = self.running.iter().enumerate().filter(|(_, queue)| queue.is_some());
        running.try_for_each(|(queue, _)| self.connect(queue)).map_err(reason)
    }

    fn stop(&mut self, index: u16) -> Option<QueueState> {
        let queue = usize::from(index) % QUEUES;
        let served = self.running.get_mut(queue)?.take()?;
        let stopped = self
            .kernel
            .set_backend(queue, None)
            .and_then(|()| self.kernel.get_vring_base(queue))
            .inspect_err(|error| tracing::error!("vhost-net: queue {index} cannot be stopped: {error}"));
        // The upper half is of packed rings.
        Some(served.finish(stopped.ok().map(|next_avail| next_avail as u16)))
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

#[cfg(test)]
mod tests;
