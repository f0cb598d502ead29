//! What the user may ask of a network card.

#![forbid(unsafe_code)]

use virtio_bindings::virtio_net::*;

use super::config::OFFLOADS;
use super::mac::MacAddress;
use crate::virtio::options::{BOOT_INDEX, ConfigError, IO_THREAD, OptionKind, OptionSpec, Options};
use crate::virtio::vhost::user::OPTIONS as VHOST_USER;

/// The most descriptors of a queue (QEMU's VIRTQUEUE_MAX_SIZE).
const MAX_QUEUE_SIZE: u64 = 1024;
/// The fewest, which is what there always were (QEMU's VIRTIO_NET_RX_QUEUE_MIN_SIZE).
const MIN_QUEUE_SIZE: u64 = 256;
/// The most queue pairs: with the control queue, there are fewer than 1024 queues (QEMU's
/// VIRTIO_QUEUE_MAX).
const MAX_PAIRS: u64 = 511;

const QUEUE_SIZE: OptionKind = OptionKind::Number {
    min: MIN_QUEUE_SIZE,
    max: MAX_QUEUE_SIZE,
};

const PAIRS: OptionKind = OptionKind::Number { min: 1, max: MAX_PAIRS };

const NUMBER: OptionKind = OptionKind::Number {
    min: 0,
    max: i32::MAX as u64,
};

const SPEED: OptionKind = NUMBER;

const MTU: OptionKind = OptionKind::Number {
    min: 0,
    max: u16::MAX as u64,
};

const QUEUE_SIZE_DEFAULT: u16 = 256;

/// A speed or duplex that the user did not give (QEMU, include/net/eth.h and Linux' ethtool.h).
const SPEED_UNKNOWN: u32 = u32::MAX;
const DUPLEX_HALF: u8 = 0;
const DUPLEX_FULL: u8 = 1;
const DUPLEX_UNKNOWN: u8 = u8::MAX;

/// A feature that the user can switch, by QEMU's name.
struct FeatureSwitch {
    name: &'static str,
    bit: u32,
    default: bool,
    help: &'static str,
}

const fn on(name: &'static str, bit: u32, help: &'static str) -> FeatureSwitch {
    FeatureSwitch {
        name,
        bit,
        default: true,
        help,
    }
}

const fn off(name: &'static str, bit: u32, help: &'static str) -> FeatureSwitch {
    FeatureSwitch {
        default: false,
        ..on(name, bit, help)
    }
}

/// All of them, with QEMU's defaults.
const SWITCHES: &[FeatureSwitch] = &[
    on("csum", VIRTIO_NET_F_CSUM, "the host completes checksums"),
    on("guest_csum", VIRTIO_NET_F_GUEST_CSUM, "the guest completes checksums"),
    on("gso", VIRTIO_NET_F_GSO, "segmentation, as the oldest drivers name it"),
    on(
        "guest_tso4",
        VIRTIO_NET_F_GUEST_TSO4,
        "the guest takes large TCP over IPv4",
    ),
    on(
        "guest_tso6",
        VIRTIO_NET_F_GUEST_TSO6,
        "the guest takes large TCP over IPv6",
    ),
    on(
        "guest_ecn",
        VIRTIO_NET_F_GUEST_ECN,
        "the guest takes large TCP with ECN",
    ),
    on(
        "guest_ufo",
        VIRTIO_NET_F_GUEST_UFO,
        "the guest takes large UDP, to be fragmented",
    ),
    off(
        "guest_uso4",
        VIRTIO_NET_F_GUEST_USO4,
        "the guest takes large UDP over IPv4",
    ),
    off(
        "guest_uso6",
        VIRTIO_NET_F_GUEST_USO6,
        "the guest takes large UDP over IPv6",
    ),
    on(
        "guest_announce",
        VIRTIO_NET_F_GUEST_ANNOUNCE,
        "the guest can be asked to announce itself",
    ),
    on(
        "host_tso4",
        VIRTIO_NET_F_HOST_TSO4,
        "the host takes large TCP over IPv4",
    ),
    on(
        "host_tso6",
        VIRTIO_NET_F_HOST_TSO6,
        "the host takes large TCP over IPv6",
    ),
    on("host_ecn", VIRTIO_NET_F_HOST_ECN, "the host takes large TCP with ECN"),
    on(
        "host_ufo",
        VIRTIO_NET_F_HOST_UFO,
        "the host takes large UDP, to be fragmented",
    ),
    off("host_uso", VIRTIO_NET_F_HOST_USO, "the host takes large UDP"),
    on(
        "mrg_rxbuf",
        VIRTIO_NET_F_MRG_RXBUF,
        "frames may lie in several receive buffers",
    ),
    on("status", VIRTIO_NET_F_STATUS, "the guest sees whether there is a link"),
    on("ctrl_vq", VIRTIO_NET_F_CTRL_VQ, "there is a control queue"),
    on("ctrl_rx", VIRTIO_NET_F_CTRL_RX, "receive modes"),
    on("ctrl_vlan", VIRTIO_NET_F_CTRL_VLAN, "a filter for VLANs"),
    on("ctrl_rx_extra", VIRTIO_NET_F_CTRL_RX_EXTRA, "more receive modes"),
    on(
        "ctrl_mac_addr",
        VIRTIO_NET_F_CTRL_MAC_ADDR,
        "the address is set by a command",
    ),
    on(
        "ctrl_guest_offloads",
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        "what the guest takes can be switched",
    ),
];

/// Options other than the features.
const OTHERS: &[OptionSpec] = &[
    OptionSpec::new("none", OptionKind::Flag, "the cable is out"),
    OptionSpec::new(
        "user",
        OptionKind::Flag,
        "user-mode network without privilege, by way of passt",
    ),
    OptionSpec::new(
        "hostfwd",
        OptionKind::Texts,
        "with user: a port of the host for the guest, tcp|udp:[HOSTADDR:]HOSTPORT-:GUESTPORT",
    ),
    OptionSpec::new(
        "socket",
        OptionKind::Text,
        "frames over a stream: listen:ADDR, connect:ADDR or fd=N",
    ),
    OptionSpec::new(
        "dgram",
        OptionKind::Text,
        "frames as datagrams, from this address or fd=N",
    ),
    OptionSpec::new("remote", OptionKind::Text, "where the datagrams of dgram= go"),
    OptionSpec::new("hub", NUMBER, "joins all cards of this process with the same number"),
    OptionSpec::new(
        "tap",
        OptionKind::Text,
        "a tap interface of the host by its name, made if there is none",
    ),
    OptionSpec::new(
        "tap-fd",
        OptionKind::Text,
        "open descriptors of a tap interface, 3 or 3,4, one for each queue pair",
    ),
    OptionSpec::new(
        "vhost",
        OptionKind::Choice(&["on", "off", "auto"]),
        "whether the kernel carries the frames of a tap interface",
    )
    .or("off"),
    VHOST_USER[0],
    VHOST_USER[1],
    OptionSpec::new(
        "capture",
        OptionKind::Text,
        "a file for what the guest sends and receives, pcapng if it ends so, else pcap",
    ),
    OptionSpec::new(
        "mac",
        OptionKind::Text,
        "hardware address; 52:54:00:12:34:56 and up if not given",
    ),
    OptionSpec::new("queues", PAIRS, "queue pairs").or("1"),
    OptionSpec::new(
        "mq",
        OptionKind::Flag,
        "several queue pairs; on if queues= or tap-fd= gives several",
    ),
    OptionSpec::new(
        "offload",
        OptionKind::Flag,
        "checksums and segmentation are left to the other side",
    )
    .or("on"),
    OptionSpec::new(
        "mtu",
        MTU,
        "what the guest is told of the largest packet, 0 for nothing",
    ),
    OptionSpec::new("host_mtu", MTU, "the same as QEMU has it"),
    OptionSpec::new("speed", SPEED, "what the guest is told of the speed, in Mbit/s"),
    OptionSpec::new(
        "duplex",
        OptionKind::Choice(&["half", "full"]),
        "what the guest is told of duplex",
    ),
    OptionSpec::new("rx-queue-size", QUEUE_SIZE, "descriptors of a receive queue"),
    OptionSpec::new("rx_queue_size", QUEUE_SIZE, "the same as QEMU has it"),
    OptionSpec::new("tx-queue-size", QUEUE_SIZE, "descriptors of a transmit queue"),
    OptionSpec::new("tx_queue_size", QUEUE_SIZE, "the same as QEMU has it"),
    BOOT_INDEX,
    IO_THREAD,
];

const COUNT: usize = OTHERS.len() + SWITCHES.len();

const fn all_options() -> [OptionSpec; COUNT] {
    let mut all = [OTHERS[0]; COUNT];
    let mut index = 0;
    while index < COUNT {
        all[index] = if index < OTHERS.len() {
            OTHERS[index]
        } else {
            let switch = &SWITCHES[index - OTHERS.len()];
            let default = if switch.default { "on" } else { "off" };
            OptionSpec::new(switch.name, OptionKind::Flag, switch.help).or(default)
        };
        index += 1;
    }
    all
}

/// What the user may write.
pub static OPTIONS: &[OptionSpec] = &all_options();

/// A network card as the user wants it, without what it is plugged into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NetConfig {
    /// What messages call it.
    pub(super) name: String,
    pub(super) mac: Option<MacAddress>,
    /// Features to offer if the backend has what they take.
    pub(super) features: u64,
    pub(super) rx_queue_size: u16,
    pub(super) tx_queue_size: u16,
    /// 0 where the guest is told nothing.
    pub(super) mtu: u16,
    /// In Mbit/s.
    pub(super) speed: u32,
    pub(super) duplex: u8,
}

impl NetConfig {
    /// What `options`, read by [`OPTIONS`], ask for.
    ///
    /// # Errors
    /// A value, or two together, that cannot be.
    pub(super) fn from_options(options: &Options) -> Result<Self, ConfigError> {
        let number = |names: [&str; 2]| names.into_iter().find_map(|name| options.number(name));
        let mtu = number(["mtu", "host_mtu"]).unwrap_or(0) as u16;
        let speed = options.number("speed").and_then(|speed| u32::try_from(speed).ok());
        let duplex = options.text("duplex");
        let several = options.number("queues").is_some_and(|queues| queues > 1)
            || options.text("tap-fd").is_some_and(|list| descriptors(list).count() > 1);
        let chosen = SWITCHES.iter().filter(|switch| options.flag(switch.name));
        let mut features = chosen.fold(0, |features, switch| features | 1 << switch.bit);
        for (wanted, bit) in [
            (mtu > 0, VIRTIO_NET_F_MTU),
            (speed.is_some() || duplex.is_some(), VIRTIO_NET_F_SPEED_DUPLEX),
            (options.given_flag("mq").unwrap_or(several), VIRTIO_NET_F_MQ),
        ] {
            features |= u64::from(wanted) << bit;
        }
        if !options.flag("offload") {
            features &= !OFFLOADS;
        }
        let name = options.text("id").unwrap_or(options.subject());
        Ok(Self {
            name: name.to_owned(),
            mac: options.text("mac").map(|text| read_mac(options, text)).transpose()?,
            features,
            rx_queue_size: queue_size(options, ["rx-queue-size", "rx_queue_size"])?,
            // QEMU takes no more than 256 for backends in its own process (`virtio_net_max_tx_queue_size`); ours have no such limit.
            tx_queue_size: queue_size(options, ["tx-queue-size", "tx_queue_size"])?,
            mtu,
            speed: speed.unwrap_or(SPEED_UNKNOWN),
            duplex: match duplex {
                Some("half") => DUPLEX_HALF,
                Some(_) => DUPLEX_FULL,
                None => DUPLEX_UNKNOWN,
            },
        })
    }
}

/// The descriptors of `tap-fd=`, as they are written: with commas between them, or with colons as
/// QEMU has it in `fds=`.
pub(super) fn descriptors(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ':'])
}

fn read_mac(options: &Options, text: &str) -> Result<MacAddress, ConfigError> {
    match text.parse::<MacAddress>() {
        Ok(mac) if !mac.is_multicast() => Ok(mac),
        Ok(_) => Err(options.invalid("mac", text, "the address of one card: its first byte is even")),
        Err(error) => Err(options.invalid("mac", text, error)),
    }
}

fn queue_size(options: &Options, names: [&str; 2]) -> Result<u16, ConfigError> {
    let given = names.into_iter().find_map(|name| Some((name, options.number(name)?)));
    let Some((name, size)) = given else {
        return Ok(QUEUE_SIZE_DEFAULT);
    };
    match u16::try_from(size) {
        Ok(size) if size.is_power_of_two() => Ok(size),
        _ => Err(options.invalid(name, size, "a power of two")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::virtio::transport::settings;

    fn config(text: &str) -> Result<NetConfig, ConfigError> {
        NetConfig::from_options(&Options::parse("virtio-net-pci", text, &[OPTIONS, settings::OPTIONS])?)
    }

    #[test]
    fn the_defaults_are_those_of_qemu() {
        let config = config("").unwrap();
        assert_eq!(config.features, 0x00bf_ffc7);
        assert_eq!((config.rx_queue_size, config.tx_queue_size, config.mtu), (256, 256, 0));
        assert_eq!((config.speed, config.duplex, config.mac), (u32::MAX, 0xff, None));
    }

    #[test]
    fn features_follow_what_is_asked_for() {
        let features = |text| config(text).unwrap().features;
        let all = features("");
        assert_eq!(features("mrg_rxbuf=off"), all & !(1 << 15));
        assert_eq!(features("offload=off"), all & !0x7fc3);
        assert_eq!(features("queues=2"), all | 1 << 22);
        assert_eq!(features("queues=2,mq=off"), all);
        assert_eq!(features("mq=on"), all | 1 << 22);
        assert_eq!(features("tap-fd=3"), all);
        assert_eq!(features("tap-fd=3,4"), all | 1 << 22);
        assert_eq!(features("tap-fd=3:4,mq=off"), all);
        assert_eq!(features("mtu=1400"), all | 1 << 3);
        assert_eq!(features("host_mtu=0"), all);
        assert_eq!(features("duplex=full"), all | 1 << 63);
        assert_eq!(features("host_uso=on"), all | 1 << 56);
    }

    #[test]
    fn values_are_taken_by_either_name() {
        let native = config("rx-queue-size=512,tx-queue-size=1024,mtu=9000,speed=1000,duplex=half").unwrap();
        let qemu = config("rx_queue_size=512,tx_queue_size=1024,host_mtu=9000,speed=1000,duplex=half").unwrap();
        assert_eq!(native, qemu);
        assert_eq!((native.rx_queue_size, native.tx_queue_size), (512, 1024));
        assert_eq!((native.mtu, native.speed, native.duplex), (9000, 1000, 0));
    }

    #[test]
    fn the_users_mistakes_are_named() {
        for (text, complaint) in [
            (
                "mac=01:00:00:00:00:00",
                "mac=01:00:00:00:00:00: expected the address of one card",
            ),
            ("mac=me", "mac=me: expected six pairs of hexadecimal digits"),
            ("rx-queue-size=300", "rx-queue-size=300: expected a power of two"),
            (
                "tx_queue_size=128",
                "tx_queue_size=128: expected a number from 256 to 1024",
            ),
            ("queues=512", "queues=512: expected a number from 1 to 511"),
        ] {
            let error = config(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("virtio-net-pci: {complaint}")), "{error}");
        }
    }
}
