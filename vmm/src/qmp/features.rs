//! Names of feature bits, those of the headers that Linux and virtio-bindings have them in.

use devices::virtio::id::DeviceId;
use devices::virtio::transport::status;
use virtio_bindings::{virtio_blk as block, virtio_config as config, virtio_net as net, virtio_ring as ring};

type Names = &'static [(u32, &'static str)];

macro_rules! names {
    ($($module:ident::{$($name:ident),* $(,)?}),* $(,)?) => {
        &[$($(($module::$name, stringify!($name)),)*)*]
    };
}

const TRANSPORT: Names = names! {
    config::{
        VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_ANY_LAYOUT, VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED,
        VIRTIO_F_IN_ORDER, VIRTIO_F_ORDER_PLATFORM, VIRTIO_F_SR_IOV, VIRTIO_F_RING_RESET,
    },
    ring::{VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX},
};

const BLOCK: Names = names! {
    block::{
        VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_BARRIER,
        VIRTIO_BLK_F_SCSI, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE,
    },
};

const NET: Names = names! {
    net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_UFO,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_UFO,
        VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN,
        VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_MAC_ADDR,
        VIRTIO_NET_F_GSO, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX,
    },
};

/// virtio-bindings has no header of the balloon (virtio 1.3, 5.5.3).
const BALLOON: Names = &[
    (0, "VIRTIO_BALLOON_F_MUST_TELL_HOST"),
    (1, "VIRTIO_BALLOON_F_STATS_VQ"),
    (2, "VIRTIO_BALLOON_F_DEFLATE_ON_OOM"),
    (3, "VIRTIO_BALLOON_F_FREE_PAGE_HINT"),
    (4, "VIRTIO_BALLOON_F_PAGE_POISON"),
    (5, "VIRTIO_BALLOON_F_REPORTING"),
];

/// virtio-bindings has no header of the console either (virtio 1.3, 5.3.3).
const CONSOLE: Names = &[
    (0, "VIRTIO_CONSOLE_F_SIZE"),
    (1, "VIRTIO_CONSOLE_F_MULTIPORT"),
    (2, "VIRTIO_CONSOLE_F_EMERG_WRITE"),
];

const STATUS: [(u8, &str); 6] = [
    (status::ACKNOWLEDGE, "VIRTIO_CONFIG_S_ACKNOWLEDGE"),
    (status::DRIVER, "VIRTIO_CONFIG_S_DRIVER"),
    (status::DRIVER_OK, "VIRTIO_CONFIG_S_DRIVER_OK"),
    (status::FEATURES_OK, "VIRTIO_CONFIG_S_FEATURES_OK"),
    (status::NEEDS_RESET, "VIRTIO_CONFIG_S_NEEDS_RESET"),
    (status::FAILED, "VIRTIO_CONFIG_S_FAILED"),
];

/// Feature bits by their names.
pub struct Named {
    /// Those of ring and transport.
    pub transport: Vec<String>,
    /// Those of the device.
    pub device: Vec<String>,
    /// Bits that have none.
    pub unknown: u64,
}

/// The names of `bits` of a device of this kind.
pub fn name(device: DeviceId, bits: u64) -> Named {
    let own = match device {
        DeviceId::Block => BLOCK,
        DeviceId::Network => NET,
        DeviceId::Balloon => BALLOON,
        DeviceId::Console => CONSOLE,
        _ => &[],
    };
    let named = |names: Names| {
        let there = names.iter().filter(|(bit, _)| bits & 1 << bit != 0);
        there.map(|(_, name)| (*name).to_owned()).collect()
    };
    let known = TRANSPORT.iter().chain(own).fold(0, |known, (bit, _)| known | 1 << bit);
    Named {
        transport: named(TRANSPORT),
        device: named(own),
        unknown: bits & !known,
    }
}

/// The names of bits of the device status, and bits that have none.
pub fn name_status(bits: u8) -> (Vec<String>, u8) {
    let there = STATUS.iter().filter(|(bit, _)| bits & bit != 0);
    let known = STATUS.iter().fold(0, |known, (bit, _)| known | bit);
    (there.map(|(_, name)| (*name).to_owned()).collect(), bits & !known)
}
