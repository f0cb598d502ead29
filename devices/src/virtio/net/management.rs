//! What can be asked of a card from outside while it runs.

#![forbid(unsafe_code)]

use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_CTRL_VLAN;

use super::announce::AnnounceParameters;
use super::card::Card;
use super::filter::Filter;
use super::mac::MacAddress;

/// Changes to a card from outside, and questions: the mechanism of QMP's `set_link`,
/// `announce-self` and `query-rx-filter`.
#[derive(Clone)]
pub struct NetControl {
    card: Arc<Card>,
}

impl NetControl {
    pub(super) fn new(card: Arc<Card>) -> Self {
        Self { card }
    }

    /// The address that the card has at present.
    pub fn mac(&self) -> MacAddress {
        self.card.mac()
    }

    /// What the card is plugged into, in a line.
    pub fn describe_backend(&self) -> String {
        self.card.backend.describe()
    }

    /// Whether the cable is in, as [`Self::set_link`] had it last.
    pub fn link(&self) -> bool {
        self.card.is_plugged()
    }

    /// Puts the cable in or pulls it. The guest is told; while it is out, frames are lost both
    /// ways.
    pub fn set_link(&self, up: bool) {
        self.card.set_plugged(up);
    }

    /// Announces the card to its network, in several rounds; see [`AnnounceParameters`]. A driver
    /// that can do so is asked to announce its addresses too.
    pub fn announce(&self, parameters: AnnounceParameters) {
        self.card.announce(parameters);
    }

    /// What the driver wants to receive. Its next change is told to those of [`Self::on_filter_change`].
    pub fn filter(&self) -> Arc<Filter> {
        self.card.tell_next_filter_change();
        self.card.filter.get()
    }

    /// Calls `listener` when the driver has changed what it wants to receive, for the first time from now on and then once
    /// after each [`Self::filter`], so that a driver that changes it all the time is no burden (QEMU, `rxfilter_notify`). It
    /// is called on an I/O thread: it must not wait for anything.
    pub fn on_filter_change(&self, listener: impl Fn() + Send + 'static) {
        self.card.on_filter_change(listener);
    }

    /// Whether the driver filters VLANs; if not, all pass.
    pub fn filters_vlans(&self) -> bool {
        self.card.negotiated().has(VIRTIO_NET_F_CTRL_VLAN)
    }
}
