//! The receive queue of a pair: frames of the host into chains of the driver.
//!
//! Chains are taken ahead, as many as the largest of the latest frames needed, and the host reads the
//! next frame straight into them. What is left over goes to the next frame. A frame that is larger
//! goes on in the spill, a buffer of our own, and is copied from there into further chains as soon
//! as the driver has posted them. A frame that an endpoint has in memory is copied into its chains.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::backend::{Endpoint, MAX_FRAME};
use super::dhcp;
use super::filter::{Filter, LOOKED_AT};
use super::header::{Header, LONG};
use super::receive::ReceiveBuffers;
use crate::virtio::device::{QueueInterrupt, QueueStart};
use crate::virtio::virtq::{Chain, GuestFault, GuestIoVec, QueueState, Virtq};

/// Bytes that a frame is expected to have until a larger one comes: 1514 and a VLAN tag.
const USUAL_FRAME: usize = 1518;

/// After so many frames without a large one, none is expected.
const REMEMBERED: u32 = 64;

/// Entries of a system call that guest buffers take at most; one more is for the spill, and the
/// kernel takes 1024.
const MAX_ENTRIES: usize = 1023;

/// What became of an attempt to receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// A frame was delivered, or dropped for good reason.
    One,
    /// There is none.
    Nothing,
    /// There is no room for one.
    NoRoom,
}

/// A frame that was read and waits for chains to hold the rest of it.
#[derive(Clone, Copy, Debug)]
struct Landed {
    /// Bytes on the guest's side, header and all.
    len: usize,
    /// How many of them are in the spill.
    spilled: usize,
    /// Chains that were filled by the host.
    chains: usize,
}

/// How many bytes the next frame will need. To expect too few costs a copy, too many costs the host a
/// look at chains that it does not fill.
#[derive(Debug)]
struct Expected {
    bytes: usize,
    least: usize,
    /// Of the frames since the last time that less was expected.
    largest: usize,
    frames: u32,
}

impl Expected {
    fn at_least(least: usize) -> Self {
        Self {
            bytes: least,
            least,
            largest: least,
            frames: 0,
        }
    }

    /// A frame needed `len` bytes.
    fn learn(&mut self, len: usize) {
        self.largest = self.largest.max(len);
        self.bytes = self.bytes.max(len);
        self.frames += 1;
        if self.frames == REMEMBERED {
            (self.bytes, self.largest, self.frames) = (self.largest, self.least, 0);
        }
    }
}

/// See the [module](self).
pub(super) struct RxQueue {
    pub(super) index: u16,
    pub(super) kick: Arc<EventFd>,
    ring: Virtq,
    interrupt: QueueInterrupt,
    header: Header,
    /// Taken from the ring, in its order; none is used yet.
    posted: VecDeque<Chain>,
    /// Bytes that they have room for.
    room: usize,
    expected: Expected,
    iovec: GuestIoVec,
    landed: Option<Landed>,
}

impl RxQueue {
    pub(super) fn new(start: QueueStart, header: Header) -> Self {
        Self {
            index: start.index,
            kick: start.kick,
            ring: start.ring,
            interrupt: start.interrupt,
            header,
            posted: VecDeque::new(),
            room: 0,
            expected: Expected::at_least(USUAL_FRAME + header.len()),
            iovec: GuestIoVec::new(),
            landed: None,
        }
    }

    /// How far the queue has come. Chains that no frame has filled go back.
    pub(super) fn into_state(mut self) -> QueueState {
        while let Some(chain) = self.posted.pop_back() {
            self.ring.unpop(chain);
        }
        self.ring.stop()
    }

    pub(super) fn panicked(&self) {
        self.interrupt.broken();
    }

    /// Whether there may be room for a frame, or for the rest of one.
    pub(super) fn has_room(&self) -> bool {
        self.ring.has_available() || (self.landed.is_none() && !self.posted.is_empty())
    }

    /// Wants a kick for the next chain. Returns whether one has come in meanwhile.
    pub(super) fn arm(&mut self) -> bool {
        self.ring.enable_notify()
    }

    /// Wants no kicks: there are chains enough.
    pub(super) fn disarm(&mut self) {
        self.ring.disable_notify();
    }

    /// The cable is out: a frame that waits for chains is lost too, and with it what is in the spill.
    pub(super) fn lose_landed(&mut self) {
        self.landed = None;
    }

    /// Receives one frame that `filter` lets through.
    pub(super) fn receive(
        &mut self,
        endpoint: &mut dyn Endpoint,
        spill: &mut [u8],
        filter: &Filter,
        report: &mut dyn FnMut(GuestFault),
    ) -> Received {
        if let Some(landed) = self.landed {
            return self.deliver(landed, spill, report);
        }
        self.post(self.expected.bytes, report);
        if self.posted.is_empty() {
            return Received::NoRoom;
        }
        if self.header.added() == self.header.len()
            && let Some(next) = endpoint.next_frame()
        {
            return match next {
                Ok(frame) => self.take(frame, spill, filter, report),
                Err(error) => nothing(&error),
            };
        }
        let chains = self.gather();
        let mut buffers = ReceiveBuffers::new(&mut self.iovec, spill);
        let len = match endpoint.receive(&mut buffers) {
            Ok(len) => len,
            Err(error) => return nothing(&error),
        };
        let in_frame = self.header.len() - self.header.added();
        if len <= in_frame {
            return Received::One;
        }
        if !filter.modes.promisc {
            let mut start = [0; LONG + LOOKED_AT];
            let known = buffers.copy_to(start.get_mut(..len.min(in_frame + LOOKED_AT)).unwrap_or_default());
            if !filter.passes(start.get(in_frame..known).unwrap_or_default()) {
                return Received::One;
            }
        }
        if in_frame > 0 {
            dhcp::complete_checksum(&mut buffers, in_frame, len);
        }
        let spilled = len.saturating_sub(self.iovec.bytes());
        let len = len + self.header.added();
        self.expected.learn(len);
        if !self.header.is_mergeable() && len > self.room {
            // It has no room in its one chain, which waits for the next (QEMU,
            // `virtio_net_receive_rcu`).
            return Received::One;
        }
        self.deliver(Landed { len, spilled, chains }, spill, report)
    }

    /// Gives a frame without a header to the driver, or keeps it until there are chains for all of it.
    fn take(
        &mut self,
        frame: &[u8],
        spill: &mut [u8],
        filter: &Filter,
        report: &mut dyn FnMut(GuestFault),
    ) -> Received {
        if frame.is_empty() || !filter.passes(frame.get(..LOOKED_AT).unwrap_or(frame)) {
            return Received::One;
        }
        let len = self.header.len() + frame.len();
        if self.room < len {
            self.post(len, report);
        }
        if self.room < len {
            let kept = spill.get_mut(..frame.len()).filter(|_| self.header.is_mergeable());
            let Some(kept) = kept else { return Received::One };
            kept.copy_from_slice(frame);
            self.landed = Some(Landed {
                len,
                spilled: frame.len(),
                chains: 0,
            });
            return Received::NoRoom;
        }
        let chains = self.chains_for(len);
        let (_, header, end) = self.header.finish(chains);
        let mut header = header.get(..end).unwrap_or_default();
        let mut rest = frame;
        for index in 0..chains {
            let Some(chain) = self.posted.get(usize::from(index)) else {
                break;
            };
            let mut writer = chain.writer();
            writer.write(std::mem::take(&mut header));
            let copied = writer.write(rest);
            rest = rest.get(copied..).unwrap_or_default();
        }
        self.give_back(chains, len);
        Received::One
    }

    /// Takes chains until they have room for `wanted` bytes; one that can do without others takes
    /// no more.
    fn post(&mut self, wanted: usize, report: &mut dyn FnMut(GuestFault)) {
        while self.room < wanted && (self.header.is_mergeable() || self.posted.is_empty()) {
            match self.ring.pop() {
                Ok(Some(chain)) if chain.writable_bytes() >= self.header.len().max(1) => {
                    self.room += chain.writable_bytes();
                    self.posted.push_back(chain);
                }
                // A header must fit in whichever of them comes to be the first of a frame.
                Ok(Some(chain)) => {
                    let (head, available) = (chain.head(), chain.writable_bytes());
                    self.ring.push(chain, 0);
                    report(GuestFault::BufferTooShort {
                        head,
                        wanted: self.header.len(),
                        available,
                    });
                }
                Ok(None) => break,
                Err(fault) => {
                    self.check_ring();
                    report(fault);
                }
            }
        }
    }

    fn check_ring(&self) {
        if self.ring.is_broken() {
            self.interrupt.broken();
        }
    }

    /// Gathers the buffers that the host is to fill. Returns of how many chains: of none if the
    /// first alone has more pieces than a system call takes.
    fn gather(&mut self) -> usize {
        self.iovec.clear();
        let mut chains = 0;
        for chain in &self.posted {
            let mut writer = chain.writer();
            let before = self.iovec.entries();
            let added = if chains == 0 { self.header.added() } else { 0 };
            let gathered = writer
                .skip(added)
                .and_then(|()| writer.gather(writer.remaining(), &mut self.iovec));
            if gathered.is_err() || self.iovec.entries() > MAX_ENTRIES {
                self.iovec.truncate(before);
                break;
            }
            chains += 1;
            if self.iovec.bytes() >= self.expected.bytes {
                break;
            }
        }
        chains
    }

    /// Gives the frame to the driver, or keeps it until there are chains for all of it.
    fn deliver(&mut self, landed: Landed, spill: &[u8], report: &mut dyn FnMut(GuestFault)) -> Received {
        self.post(landed.len, report);
        if self.room < landed.len {
            self.landed = Some(landed);
            return Received::NoRoom;
        }
        self.landed = None;
        if landed.spilled > 0 {
            self.copy_spill(landed, spill);
        }
        let chains = self.chains_for(landed.len);
        if let Some(first) = self.posted.front() {
            let (start, header, end) = self.header.finish(chains);
            let mut writer = first.writer();
            // It has room for a header: such chains only are posted.
            let _ = writer.skip(start);
            writer.write(header.get(start..end).unwrap_or_default());
        }
        self.give_back(chains, landed.len);
        Received::One
    }

    /// Uses the first `chains` of those posted, which hold a frame of `len` bytes.
    fn give_back(&mut self, chains: u16, len: usize) {
        let mut left = len;
        for _ in 0..chains {
            let Some(chain) = self.posted.pop_front() else { break };
            let room = chain.writable_bytes();
            let written = room.min(left);
            left -= written;
            self.room -= room;
            self.ring.push(chain, u32::try_from(written).unwrap_or(u32::MAX));
        }
    }

    /// Copies what the host could not put into chains into those behind the ones it filled.
    fn copy_spill(&self, landed: Landed, spill: &[u8]) {
        let mut rest = spill.get(..landed.spilled).unwrap_or_default();
        for (index, chain) in self.posted.iter().enumerate().skip(landed.chains) {
            if rest.is_empty() {
                break;
            }
            let mut writer = chain.writer();
            let added = if index == 0 { self.header.added() } else { 0 };
            let _ = writer.skip(added);
            let copied = writer.write(rest);
            rest = rest.get(copied..).unwrap_or_default();
        }
    }

    /// How many of the posted chains a frame of `len` bytes fills; it is known to fit.
    fn chains_for(&self, len: usize) -> u16 {
        let mut left = len;
        let mut chains = 0;
        while left > 0
            && let Some(chain) = self.posted.get(usize::from(chains))
        {
            left = left.saturating_sub(chain.writable_bytes());
            chains += 1;
        }
        chains
    }

    /// Shows the driver what was delivered.
    pub(super) fn publish(&mut self) {
        if self.ring.publish() {
            self.interrupt.signal();
        }
    }
}

/// Reads one frame and drops it: the cable is out.
pub(super) fn discard(endpoint: &mut dyn Endpoint, spill: &mut [u8]) -> Received {
    let mut none = GuestIoVec::new();
    match endpoint.receive(&mut ReceiveBuffers::new(&mut none, spill)) {
        Ok(_) => Received::One,
        Err(error) => nothing(&error),
    }
}

fn nothing(error: &io::Error) -> Received {
    match error.kind() {
        io::ErrorKind::WouldBlock => {}
        io::ErrorKind::Interrupted => return Received::One,
        _ => tracing::debug!("virtio-net: nothing received: {error}"),
    }
    Received::Nothing
}

/// The buffer behind the guest's: [`MAX_FRAME`] bytes.
pub(super) fn new_spill() -> Box<[u8]> {
    vec![0; MAX_FRAME].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_frame_is_expected_again_but_not_for_ever() {
        let mut expected = Expected::at_least(1530);
        expected.learn(100);
        assert_eq!(expected.bytes, 1530);
        for _ in 0..REMEMBERED {
            expected.learn(100);
            expected.learn(65_000);
            assert_eq!(expected.bytes, 65_000);
        }
        (0..2 * REMEMBERED).for_each(|_| expected.learn(100));
        assert_eq!(expected.bytes, 1530);
    }
}
