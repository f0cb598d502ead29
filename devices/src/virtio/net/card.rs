//! What all parts of a card share: the device, the workers of its queues, and management.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::eventfd::EventFd;

use super::announce::{AnnounceParameters, Announcement};
use super::backend::{Backend, Capabilities};
use super::config::{self, GUEST_OFFLOADS, NetSpace};
use super::filter::{Filter, VlanSet};
use super::header::Header;
use super::mac::{MacAddress, MacClaim};
use super::options::NetConfig;
use super::published::Published;
use crate::virtio::device::{ConfigInterrupt, Negotiated};
use crate::virtio::listeners::Listeners;
use crate::virtio::report::Reporter;

/// Both in one word, so that one load tells whether the link is up.
const PLUGGED: u16 = 1;
const CARRIER: u16 = 2;

/// The state of a card that is not in its queues.
pub(super) struct Card {
    pub(super) name: String,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) filter: Published<Filter>,
    config: NetConfig,
    claim: MacClaim,
    /// The address that the driver set last.
    mac: AtomicU64,
    /// [`PLUGGED`] as management says, [`CARRIER`] as the backend says: the link is up with both.
    link: AtomicU16,
    /// The driver is asked to announce itself, VIRTIO_NET_S_ANNOUNCE or 0.
    announce: AtomicU16,
    features: AtomicU64,
    active_pairs: AtomicU16,
    interrupt: OnceLock<ConfigInterrupt>,
    announcement: Mutex<Option<Announcement>>,
    /// Who wants to know that the driver changed its filter, and whether they are told of the next change.
    filter_listeners: Listeners<()>,
    filter_is_told: AtomicBool,
    reporter: Reporter,
    /// Wake the workers of the queue pairs, to look at all this anew.
    nudges: Vec<Arc<EventFd>>,
}

impl Card {
    /// A card with a worker behind each of `nudges`.
    pub(super) fn new(
        config: NetConfig,
        claim: MacClaim,
        backend: Arc<dyn Backend>,
        carrier: bool,
        nudges: Vec<Arc<EventFd>>,
    ) -> Self {
        let mac = claim.address();
        Self {
            name: config.name.clone(),
            backend,
            filter: Published::new(Filter::new(mac)),
            config,
            claim,
            mac: AtomicU64::new(mac.to_bits()),
            link: AtomicU16::new(PLUGGED | if carrier { CARRIER } else { 0 }),
            announce: AtomicU16::new(0),
            features: AtomicU64::new(0),
            active_pairs: AtomicU16::new(1),
            interrupt: OnceLock::new(),
            announcement: Mutex::default(),
            filter_listeners: Listeners::default(),
            filter_is_told: AtomicBool::new(true),
            reporter: Reporter::default(),
            nudges,
        }
    }

    pub(super) fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Queue pairs that there are.
    pub(super) fn pairs(&self) -> u16 {
        u16::try_from(self.nudges.len()).unwrap_or(u16::MAX)
    }

    /// What the host can do, as far as the user lets it.
    pub(super) fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    /// Features to offer.
    pub(super) fn offered(&self) -> u64 {
        config::features(self.config.features, self.capabilities())
    }

    /// What was agreed on; nothing before that.
    pub(super) fn negotiated(&self) -> Negotiated {
        Negotiated {
            features: self.features.load(Ordering::Acquire),
        }
    }

    /// The header that frames have on the guest's side.
    pub(super) fn header(&self) -> Header {
        let negotiated = self.negotiated();
        Header::new(
            !negotiated.is_legacy(),
            negotiated.has(VIRTIO_NET_F_MRG_RXBUF),
            self.capabilities().vnet_header,
        )
    }

    /// What stands in the configuration space.
    pub(super) fn space(&self) -> NetSpace {
        let link = if self.link_is_up() {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        };
        NetSpace {
            mac: self.mac(),
            status: link | self.announce.load(Ordering::Acquire),
            pairs: self.pairs(),
            mtu: self.config.mtu,
            speed: self.config.speed,
            duplex: self.config.duplex,
        }
    }

    pub(super) fn connect(&self, interrupt: ConfigInterrupt) {
        // Once, says the trait; a second one would be the same.
        let _ = self.interrupt.set(interrupt);
    }

    /// The present address.
    pub(super) fn mac(&self) -> MacAddress {
        MacAddress::from_bits(self.mac.load(Ordering::Acquire))
    }

    /// The address from the user, which holds after a reset.
    pub(super) fn permanent_mac(&self) -> MacAddress {
        self.claim.address()
    }

    pub(super) fn set_mac(&self, mac: MacAddress) {
        self.mac.store(mac.to_bits(), Ordering::Release);
        self.filter.change(|filter| filter.mac = mac);
    }

    /// A driver that has no command for it writes its address into the configuration space, byte by
    /// byte if it likes.
    pub(super) fn write_mac(&self, offset: usize, data: &[u8]) {
        let negotiated = self.negotiated();
        if !negotiated.is_legacy() || negotiated.has(VIRTIO_NET_F_CTRL_MAC_ADDR) {
            return;
        }
        let mut mac = self.mac();
        for (to, from) in mac.0.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
        if mac != self.mac() {
            self.set_mac(mac);
        }
    }

    /// Calls `listener` for changes of the filter that the driver makes by command.
    pub(super) fn on_filter_change(&self, listener: impl Fn() + Send + 'static) {
        self.filter_listeners.add(move |()| listener());
    }

    /// The next change of the filter is told, and then none until somebody calls this again.
    pub(super) fn tell_next_filter_change(&self) {
        self.filter_is_told.store(true, Ordering::Release);
    }

    /// The driver changed its filter by command.
    pub(super) fn filter_changed(&self) {
        if self.filter_is_told.swap(false, Ordering::AcqRel) {
            self.filter_listeners.tell(&());
        }
    }

    /// Driver and device agreed (QEMU, `virtio_net_set_features`).
    pub(super) fn activate(&self, negotiated: Negotiated) {
        self.features.store(negotiated.features, Ordering::Release);
        let vlans = if negotiated.has(VIRTIO_NET_F_CTRL_VLAN) {
            VlanSet::NONE
        } else {
            VlanSet::ALL
        };
        self.filter.change(|filter| filter.vlans = vlans);
        self.set_host_up(negotiated.features);
    }

    /// Back to the state after power-on (QEMU, `virtio_net_reset`).
    pub(super) fn reset(&self) {
        let mac = self.permanent_mac();
        self.features.store(0, Ordering::Release);
        self.announce.store(0, Ordering::Release);
        self.mac.store(mac.to_bits(), Ordering::Release);
        self.filter.change(|filter| *filter = Filter::new(mac));
        self.set_host_up(0);
        self.set_active_pairs(1);
    }

    /// The host's side for a driver with these features.
    fn set_host_up(&self, features: u64) {
        if !self.capabilities().vnet_header {
            return;
        }
        let header = self.backend.set_header_len(self.header().len());
        self.report(header, "header length");
        self.set_offloads(features & GUEST_OFFLOADS);
    }

    /// The host may leave to the driver what these bits say. Returns whether it took note.
    pub(super) fn set_offloads(&self, bits: u64) -> bool {
        let set = self.backend.set_offloads(config::offloads(bits));
        self.report(set, "offloads")
    }

    fn report(&self, result: std::io::Result<()>, what: impl fmt::Display) -> bool {
        result
            .inspect_err(|error| tracing::warn!("{}: the host's {what} cannot be set: {error}", self.name))
            .is_ok()
    }

    /// Queue pairs that carry frames now.
    pub(super) fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Ordering::Acquire)
    }

    /// Whether the driver can use more than one queue pair.
    pub(super) fn is_multiqueue(&self) -> bool {
        self.negotiated().has(VIRTIO_NET_F_MQ)
    }

    /// The first `pairs` pairs carry frames from now on, the others none.
    pub(super) fn set_active_pairs(&self, pairs: u16) {
        self.active_pairs.store(pairs, Ordering::Release);
        if self.pairs() > 1 {
            self.report(self.backend.set_active_pairs(pairs), "queue pairs");
        }
        self.nudge();
    }

    /// Whether the guest sees a link.
    pub(super) fn link_is_up(&self) -> bool {
        self.link.load(Ordering::Acquire) == PLUGGED | CARRIER
    }

    /// Whether management has the cable in.
    pub(super) fn is_plugged(&self) -> bool {
        self.link.load(Ordering::Acquire) & PLUGGED != 0
    }

    /// Management pulls the cable or puts it in.
    pub(super) fn set_plugged(&self, plugged: bool) {
        self.set_link_bit(PLUGGED, plugged);
    }

    /// The backend has a far end, or has none.
    pub(super) fn set_carrier(&self, carrier: bool) {
        self.set_link_bit(CARRIER, carrier);
    }

    fn set_link_bit(&self, bit: u16, on: bool) {
        let before = if on {
            self.link.fetch_or(bit, Ordering::AcqRel)
        } else {
            self.link.fetch_and(!bit, Ordering::AcqRel)
        };
        let after = if on { before | bit } else { before & !bit };
        let both = PLUGGED | CARRIER;
        if (before == both) != (after == both) {
            self.signal();
        }
        // Backends have a look at either alone.
        if before != after {
            self.nudge();
        }
    }

    /// Announces the card: to the network, and, if the driver can do it better, by the driver.
    pub(super) fn announce(&self, parameters: AnnounceParameters) {
        let mut announcement = self.announcement.lock().unwrap_or_else(PoisonError::into_inner);
        *announcement = Some(Announcement::new(parameters));
        drop(announcement);
        if let Some(first) = self.nudges.first() {
            wake(first);
        }
    }

    /// The announcement that was asked for since the last call.
    pub(super) fn take_announcement(&self) -> Option<Announcement> {
        self.announcement.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks the driver to announce itself, if it can.
    pub(super) fn ask_for_announcement(&self) {
        let negotiated = self.negotiated();
        if negotiated.has(VIRTIO_NET_F_GUEST_ANNOUNCE) && negotiated.has(VIRTIO_NET_F_CTRL_VQ) {
            self.announce.store(VIRTIO_NET_S_ANNOUNCE as u16, Ordering::Release);
            self.signal();
        }
    }

    /// The driver has announced itself. Returns whether it was asked to.
    pub(super) fn announced(&self) -> bool {
        self.announce.swap(0, Ordering::AcqRel) != 0
    }

    /// Tells the user what the driver did wrong, unless it does so all the time.
    pub(super) fn report_fault(&self, fault: fmt::Arguments<'_>) {
        self.reporter.warn(format_args!("{}: {fault}", self.name));
    }

    fn signal(&self) {
        if let Some(interrupt) = self.interrupt.get() {
            interrupt.signal();
        }
    }

    fn nudge(&self) {
        self.nudges.iter().for_each(|nudge| wake(nudge));
    }
}

/// It fails only when the worker has every reason to be awake.
fn wake(nudge: &EventFd) {
    let _ = nudge.write(1);
}
