//! Which frames the driver wants to receive: receive modes, table of addresses, VLANs. Virtio 1.3,
//! 5.1.6.5.1 to 5.1.6.5.3; decisions as in QEMU (hw/net/virtio-net.c, `receive_filter`).

#![forbid(unsafe_code)]

use super::mac::{MAC_BYTES, MacAddress};

/// Addresses that the table holds, of both kinds together (QEMU's MAC_TABLE_ENTRIES). A list that
/// does not fit overflows: then all addresses of its kind pass.
pub const TABLE_ENTRIES: usize = 64;

/// VLAN ids that there are (802.1Q).
pub const VLANS: u16 = 1 << 12;

/// Bytes at the beginning of a frame that the filter looks at: both addresses, type, VLAN tag.
pub const LOOKED_AT: usize = 16;

/// Where the type of a frame is, and the type that says that a VLAN tag follows.
const TYPE: usize = 2 * MAC_BYTES;
const TYPE_VLAN: u16 = 0x8100;

/// The receive modes, each switched by a command of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Modes {
    /// Everything passes.
    pub promisc: bool,
    /// All multicast passes.
    pub allmulti: bool,
    /// All unicast passes.
    pub alluni: bool,
    /// No multicast passes.
    pub nomulti: bool,
    /// No unicast passes.
    pub nouni: bool,
    /// No broadcast passes.
    pub nobcast: bool,
}

impl Default for Modes {
    /// After a reset everything passes, for drivers that know nothing of filters.
    fn default() -> Self {
        Self {
            promisc: true,
            allmulti: false,
            alluni: false,
            nomulti: false,
            nouni: false,
            nobcast: false,
        }
    }
}

/// The addresses of one kind that pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AddressList {
    /// The addresses, if they fitted.
    pub addresses: Vec<MacAddress>,
    /// There were too many: all of the kind pass.
    pub overflow: bool,
}

impl AddressList {
    fn passes(&self, address: MacAddress) -> bool {
        self.overflow || self.addresses.contains(&address)
    }
}

/// A set of VLAN ids.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; VLANS as usize / 64]);

impl VlanSet {
    /// No VLAN.
    pub const NONE: Self = Self([0; VLANS as usize / 64]);
    /// Every VLAN.
    pub const ALL: Self = Self([u64::MAX; VLANS as usize / 64]);

    /// Puts `id` in, or takes it out. Returns whether there is such a VLAN.
    pub fn set(&mut self, id: u16, member: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(id / 64)) else {
            return false;
        };
        let bit = 1 << (id % 64);
        *word = if member { *word | bit } else { *word & !bit };
        true
    }

    /// Whether `id` is in.
    pub fn contains(&self, id: u16) -> bool {
        let word = self.0.get(usize::from(id / 64));
        word.is_some_and(|word| word & 1 << (id % 64) != 0)
    }

    /// All that are in, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..VLANS).filter(|id| self.contains(*id))
    }
}

/// What the driver wants to receive.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    /// The card's own address.
    pub mac: MacAddress,
    /// The modes.
    pub modes: Modes,
    /// Further addresses of single cards.
    pub unicast: AddressList,
    /// Groups.
    pub multicast: AddressList,
    /// VLANs.
    pub vlans: VlanSet,
}

impl Filter {
    /// The filter after a reset, for a card with this address.
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            modes: Modes::default(),
            unicast: AddressList::default(),
            multicast: AddressList::default(),
            vlans: VlanSet::NONE,
        }
    }

    /// Whether a frame passes that begins with `start`: [`LOOKED_AT`] bytes of it, or all there
    /// are.
    ///
    /// Bytes that a frame is too short to have count as zero.
    pub fn passes(&self, start: &[u8]) -> bool {
        if self.modes.promisc {
            return true;
        }
        let byte = |at: usize| start.get(at).copied().unwrap_or(0);
        let word = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
        if word(TYPE) == TYPE_VLAN && !self.vlans.contains(word(TYPE + 2) % VLANS) {
            return false;
        }
        let destination = MacAddress(std::array::from_fn(byte));
        let modes = &self.modes;
        if destination == MacAddress::BROADCAST {
            !modes.nobcast
        } else if destination.is_multicast() {
            !modes.nomulti && (modes.allmulti || self.multicast.passes(destination))
        } else {
            !modes.nouni && (modes.alluni || destination == self.mac || self.unicast.passes(destination))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x57]);
    const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 0, 0, 1]);

    fn frame(to: MacAddress) -> Vec<u8> {
        [&to.0[..], &[0; 6], &[8, 0], &[0x45; 20]].concat()
    }

    fn tagged(to: MacAddress, vlan: u16) -> Vec<u8> {
        // The upper four bits of a tag are its priority.
        [&to.0[..], &[0; 6], &[0x81, 0], &(vlan | 0xe000).to_be_bytes()].concat()
    }

    /// A filter that looks, with these modes on top.
    fn filter(change: impl Fn(&mut Modes)) -> Filter {
        let mut filter = Filter::new(OWN);
        filter.modes.promisc = false;
        change(&mut filter.modes);
        filter
    }

    /// Whether own, other, group and broadcast pass.
    fn passing(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, MacAddress::BROADCAST].map(|to| filter.passes(&frame(to)))
    }

    #[test]
    fn everything_passes_until_the_driver_says_otherwise() {
        let filter = Filter::new(OWN);
        assert_eq!(passing(&filter), [true; 4]);
        assert!(filter.passes(&tagged(OTHER, 5)) && filter.passes(b"TEST\0"));
    }

    #[test]
    fn each_mode_lets_through_what_its_name_says() {
        assert_eq!(passing(&filter(|_| ())), [true, false, false, true]);
        assert_eq!(
            passing(&filter(|modes| modes.allmulti = true)),
            [true, false, true, true]
        );
        assert_eq!(passing(&filter(|modes| modes.alluni = true)), [true, true, false, true]);
        assert_eq!(
            passing(&filter(|modes| modes.nouni = true)),
            [false, false, false, true]
        );
        assert_eq!(
            passing(&filter(|modes| modes.nobcast = true)),
            [true, false, false, false]
        );
        let no_groups = filter(|modes| (modes.allmulti, modes.nomulti) = (true, true));
        assert_eq!(passing(&no_groups), [true, false, false, true]);
    }

    #[test]
    fn addresses_of_the_tables_pass() {
        let mut filter = filter(|_| ());
        filter.unicast.addresses.push(OTHER);
        assert_eq!(passing(&filter), [true, true, false, true]);
        filter.multicast.addresses.push(GROUP);
        assert_eq!(passing(&filter), [true; 4]);
    }

    #[test]
    fn a_table_that_overflowed_lets_all_of_its_kind_through() {
        let mut unicast = filter(|_| ());
        unicast.unicast.overflow = true;
        assert_eq!(passing(&unicast), [true, true, false, true]);
        let mut multicast = filter(|_| ());
        multicast.multicast.overflow = true;
        assert_eq!(passing(&multicast), [true, false, true, true]);
    }

    #[test]
    fn tagged_frames_pass_on_their_vlans_only() {
        let mut filter = filter(|_| ());
        assert!(!filter.passes(&tagged(OWN, 5)));
        assert!(filter.vlans.set(5, true));
        assert!(filter.passes(&tagged(OWN, 5)) && !filter.passes(&tagged(OWN, 6)));
        assert!(!filter.passes(&tagged(OTHER, 5)), "the address counts too");
        filter.vlans = VlanSet::ALL;
        assert!(filter.passes(&tagged(OWN, 4095)));
    }

    #[test]
    fn there_are_4096_vlans() {
        let mut set = VlanSet::NONE;
        assert!(set.set(0, true) && set.set(4095, true) && !set.set(4096, true));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 4095]);
        assert!(set.set(4095, false) && !set.contains(4095) && !set.contains(u16::MAX));
    }

    #[test]
    fn a_frame_shorter_than_an_address_is_judged_by_what_there_is() {
        assert!(!filter(|_| ()).passes(b"T"));
        assert!(!filter(|_| ()).passes(&[]));
    }
}
