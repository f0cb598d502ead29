//! What the driver reads of a card: feature bits and configuration space. Virtio 1.3, 5.1.3 and
//! 5.1.4; which bits when, as in QEMU (hw/net/virtio-net.c, `virtio_net_get_features`).

#![forbid(unsafe_code)]

use std::mem::offset_of;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GSO, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS, virtio_net_config,
};

use super::backend::{Capabilities, Offloads};
use super::mac::{MAC_BYTES, MacAddress};

/// The word with these bits.
pub(super) const fn bits<const N: usize>(numbers: [u32; N]) -> u64 {
    let (mut all, mut index) = (0, 0);
    while index < N {
        all |= 1 << numbers[index];
        index += 1;
    }
    all
}

/// What takes frames with a header.
pub(super) const WITH_HEADER: u64 = bits([
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
]);

/// What takes fragmentation of UDP by the host.
pub(super) const WITH_UFO: u64 = bits([VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_UFO]);

/// What takes segmentation of UDP by the host.
pub(super) const WITH_USO: u64 = bits([VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO]);

/// All that is about leaving work to the other side.
pub(super) const OFFLOADS: u64 = WITH_HEADER | WITH_UFO | WITH_USO | bits([VIRTIO_NET_F_GSO]);

/// The offloads that the driver may switch while it runs (VIRTIO_NET_CTRL_GUEST_OFFLOADS).
pub(super) const GUEST_OFFLOADS: u64 = bits([
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
]);

/// What a legacy driver understood that accepted everything without looking: Linux 2.6.25 (QEMU,
/// `virtio_net_bad_features`).
pub(super) const UNDERSTOOD_BY_BAD_DRIVERS: u64 = bits([
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
]);

/// The features to offer of those that the user `wanted`, on a host that can do `can`.
pub(super) fn features(wanted: u64, can: Capabilities) -> u64 {
    let mut features = wanted | 1 << VIRTIO_NET_F_MAC;
    if !can.vnet_header {
        features &= !WITH_HEADER;
    }
    if !(can.vnet_header && can.ufo) {
        features &= !WITH_UFO;
    }
    if !(can.vnet_header && can.uso) {
        features &= !WITH_USO;
    }
    features
}

/// What the host may leave to a driver that has these features, or switched these on.
pub(super) fn offloads(features: u64) -> Offloads {
    let has = |bit: u32| features & 1 << bit != 0;
    Offloads {
        csum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN),
        ufo: has(VIRTIO_NET_F_GUEST_UFO),
        uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

/// Fields of the configuration space, each with where it ends and the features that bring it.
const FIELDS: [(usize, u64); 4] = [
    (offset_of!(virtio_net_config, status) + 2, bits([VIRTIO_NET_F_STATUS])),
    (
        offset_of!(virtio_net_config, max_virtqueue_pairs) + 2,
        bits([VIRTIO_NET_F_MQ]),
    ),
    (offset_of!(virtio_net_config, mtu) + 2, bits([VIRTIO_NET_F_MTU])),
    (
        offset_of!(virtio_net_config, duplex) + 1,
        bits([VIRTIO_NET_F_SPEED_DUPLEX]),
    ),
];

/// Bytes of configuration space: up to the last field that one of the `wanted` features brings.
pub(super) fn config_len(wanted: u64) -> u32 {
    let ends = FIELDS.iter().filter(|(_, features)| wanted & features != 0);
    ends.map(|(end, _)| *end).fold(MAC_BYTES, usize::max) as u32
}

/// What stands in the configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NetSpace {
    pub(super) mac: MacAddress,
    pub(super) status: u16,
    pub(super) pairs: u16,
    pub(super) mtu: u16,
    pub(super) speed: u32,
    pub(super) duplex: u8,
}

impl NetSpace {
    /// Reads at `offset`; bytes that are in no field are left as they are.
    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        let fields: [(usize, &[u8]); 6] = [
            (offset_of!(virtio_net_config, mac), &self.mac.0),
            (offset_of!(virtio_net_config, status), &self.status.to_le_bytes()),
            (
                offset_of!(virtio_net_config, max_virtqueue_pairs),
                &self.pairs.to_le_bytes(),
            ),
            (offset_of!(virtio_net_config, mtu), &self.mtu.to_le_bytes()),
            (offset_of!(virtio_net_config, speed), &self.speed.to_le_bytes()),
            (offset_of!(virtio_net_config, duplex), &[self.duplex]),
        ];
        for (index, byte) in (offset as usize..).zip(data) {
            let held = fields
                .iter()
                .find_map(|(start, field)| field.get(index.checked_sub(*start)?));
            *byte = held.copied().unwrap_or(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's default wishes: bits 0 to 21 without 3, 4, 5 and with 23.
    const DEFAULT: u64 = 0x00bf_ffc7;

    #[test]
    fn features_are_those_of_qemu_for_each_backend() {
        let plain = Capabilities::default();
        assert_eq!(features(DEFAULT, plain), 0x00bf_8064);
        let old = Capabilities {
            vnet_header: true,
            ..plain
        };
        assert_eq!(features(DEFAULT, old), 0x00bf_bbe7);
        assert_eq!(features(DEFAULT, Capabilities { ufo: true, ..old }), 0x00bf_ffe7);
        let only_ufo = Capabilities { ufo: true, ..plain };
        assert_eq!(features(DEFAULT, only_ufo), 0x00bf_8064);
    }

    #[test]
    fn the_space_ends_behind_the_last_field_that_is_there() {
        for (wanted, len) in [
            (0, 6),
            (bits([VIRTIO_NET_F_STATUS]), 8),
            (bits([VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MQ]), 10),
            (bits([VIRTIO_NET_F_MTU]), 12),
            (bits([VIRTIO_NET_F_SPEED_DUPLEX]), 17),
        ] {
            assert_eq!(config_len(wanted), len, "{wanted:#x}");
        }
    }

    #[test]
    fn fields_stand_where_the_specification_has_them() {
        let space = NetSpace {
            mac: MacAddress([1, 2, 3, 4, 5, 6]),
            status: 0x0807,
            pairs: 0x0a09,
            mtu: 0x0c0b,
            speed: 0x100f_0e0d,
            duplex: 0x11,
        };
        let mut all = [0xff; 20];
        space.read(0, &mut all);
        assert_eq!(all[..17], (1..=0x11).collect::<Vec<u8>>());
        assert_eq!(all[17..], [0xff; 3]);
        let mut word = [0; 2];
        space.read(5, &mut word);
        assert_eq!(word, [6, 7]);
    }
}
