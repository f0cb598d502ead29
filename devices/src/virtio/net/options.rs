//! What the user may ask of a network card.

#![forbid(unsafe_code)]

use crate::virtio::options::{OptionKind, OptionSpec};

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

const MTU: OptionKind = OptionKind::Number {
    min: 0,
    max: u16::MAX as u64,
};

/// What the user may write.
pub static OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("none", OptionKind::Flag, "the cable is out"),
    OptionSpec::new(
        "tap",
        OptionKind::Text,
        "a tap interface of the host by its name, made if there is none",
    ),
    OptionSpec::new(
        "tap-fd",
        OptionKind::Text,
        "open descriptors of a tap interface, 3 or 3:4, one for each queue pair",
    ),
    OptionSpec::new(
        "vhost",
        OptionKind::Choice(&["on", "off", "auto"]),
        "whether the kernel carries the frames of a tap interface",
    )
    .or("off"),
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
        "mtu",
        MTU,
        "what the guest is told of the largest packet, 0 for nothing",
    ),
    OptionSpec::new("host_mtu", MTU, "the same as QEMU has it"),
    OptionSpec::new("rx-queue-size", QUEUE_SIZE, "descriptors of a receive queue"),
    OptionSpec::new("rx_queue_size", QUEUE_SIZE, "the same as QEMU has it"),
    OptionSpec::new("tx-queue-size", QUEUE_SIZE, "descriptors of a transmit queue"),
    OptionSpec::new("tx_queue_size", QUEUE_SIZE, "the same as QEMU has it"),
    OptionSpec::new(
        "iothread",
        OptionKind::Text,
        "the I/O thread that serves it; all in turn if not given",
    ),
];
