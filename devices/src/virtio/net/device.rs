//! A network card as its transport sees it.

#![forbid(unsafe_code)]

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GSO, VIRTIO_NET_F_MAC};

use super::backend::{self, Opened};
use super::options;
use crate::virtio::device::{Device, HostError, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{Built, Control, DefaultVectors, DeviceInfo, class};
use crate::virtio::transport::features::FaceDifferences;
use crate::virtio::virtq::QueueState;

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "virtio-net-pci",
    id: DeviceId::Network,
    class: class::NETWORK_ETHERNET,
    transitional_id: Some(0x1000),
    vectors: DefaultVectors::PerQueue,
    config_len: 8,
    differences: FaceDifferences {
        legacy_only: 1 << VIRTIO_NET_F_GSO,
        ..FaceDifferences::NONE
    },
    options: options::OPTIONS,
    build: |options, host| {
        let opened = backend::open(options, host)?;
        Ok(Built {
            device: Box::new(Net { opened }),
            control: Control::Net(NetControl {}),
        })
    },
};

/// virtio-net.
struct Net {
    #[expect(dead_code, reason = "queues are served by the workers to come")]
    opened: Opened,
}

/// What management can ask of a network card.
#[derive(Clone)]
pub struct NetControl {}

impl Device for Net {
    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 256, 64]
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn start_queue(&mut self, _start: QueueStart) -> Result<(), HostError> {
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        None
    }

    fn reset(&mut self) {}
}
