//! A network card as its transport sees it.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GSO, VIRTIO_NET_F_MQ};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{self, Opened};
use super::card::Card;
use super::config;
use super::control::Controller;
use super::management::NetControl;
use super::networks::Networks;
use super::options::{self, NetConfig};
use super::pair::Pair;
use crate::io_thread::{IoThreads, WorkerHandle};
use crate::threads;
use crate::virtio::device::{ConfigInterrupt, Device, HostError, Negotiated, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{Built, Control, DefaultVectors, DeviceInfo, Host, class};
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::transport::features::FaceDifferences;
use crate::virtio::virtq::QueueState;

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "virtio-net-pci",
    id: DeviceId::Network,
    class: class::NETWORK_ETHERNET,
    transitional_id: Some(0x1000),
    vectors: DefaultVectors::PerQueue,
    config_len: 0,
    differences: FaceDifferences {
        legacy_only: 1 << VIRTIO_NET_F_GSO,
        understood_by_bad_drivers: config::UNDERSTOOD_BY_BAD_DRIVERS,
        ..FaceDifferences::NONE
    },
    options: options::OPTIONS,
    build: |options, host| {
        let net = Net::new(options, host)?;
        let control = Control::Net(net.control());
        Ok(Built {
            device: Box::new(net),
            control,
        })
    },
};

/// Descriptors of the control queue, as QEMU has it.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// virtio-net.
pub(super) struct Net {
    card: Arc<Card>,
    threads: IoThreads,
    /// The workers of the queue pairs; `None` for one that has failed.
    pairs: Vec<Option<WorkerHandle<Pair>>>,
    control: Option<WorkerHandle<Controller>>,
}

impl Net {
    /// A card as `options` have it. It takes part in its network from now on; frames for the guest
    /// wait until there is a driver.
    fn new(options: &Options, host: &Host) -> Result<Self, ConfigError> {
        let config = NetConfig::from_options(options)?;
        let threads = host.io_threads(options.subject(), options.text("iothread"))?;
        let opened = backend::open(options, host)?;
        Self::on(config, opened, threads, &host.networks).map_err(|error| {
            options.refused(
                format!("no queues: {error}"),
                "raise the limit of open files (ulimit -n)",
            )
        })
    }

    /// A card on a backend that is open.
    ///
    /// # Errors
    /// The host gives no more descriptors.
    pub(super) fn on(config: NetConfig, opened: Opened, threads: IoThreads, networks: &Networks) -> io::Result<Self> {
        let Opened {
            backend,
            endpoints,
            data_paths,
            link,
        } = opened;
        let claim = networks.macs.claim(config.mac);
        let nudge = |_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?));
        let nudges: Vec<_> = endpoints.iter().map(nudge).collect::<io::Result<_>>()?;
        let card = Arc::new(Card::new(config, claim, backend, link, nudges.clone()));
        card.reset();
        let mut pairs = Vec::new();
        let mut data_paths = data_paths.into_iter();
        let shares_cpu = threads::share_one_cpu();
        for (number, (endpoint, nudge)) in (0..).zip(endpoints.into_iter().zip(nudges)) {
            let pair = Pair::new(number, card.clone(), endpoint, data_paths.next(), nudge, shares_cpu)?;
            pairs.push(Some(threads.for_queue(number).add(pair)?));
        }
        Ok(Self {
            card,
            threads,
            pairs,
            control: None,
        })
    }

    /// What management holds on to while the device belongs to its transport.
    pub(super) fn control(&self) -> NetControl {
        NetControl::new(self.card.clone())
    }

    /// Index of the control queue: behind all pairs if the driver can use them, else behind the
    /// first (virtio 1.3, 5.1.2).
    fn control_queue(&self) -> u16 {
        let pairs = if self.card.is_multiqueue() {
            self.card.pairs()
        } else {
            1
        };
        pairs.saturating_mul(2)
    }

    /// Lets `change` work on the pair of queue `index`, which is off its thread meanwhile.
    fn change_pair<R>(&mut self, index: u16, change: impl FnOnce(&mut Pair) -> R) -> io::Result<R> {
        let number = index / 2;
        let slot = self.pairs.get_mut(usize::from(number)).ok_or(io::ErrorKind::NotFound)?;
        let mut pair = slot
            .take()
            .ok_or(io::ErrorKind::NotConnected)?
            .stop()
            .map_err(io::Error::other)?;
        let result = change(&mut pair);
        *slot = Some(self.threads.for_queue(number).add(pair)?);
        Ok(result)
    }
}

impl Device for Net {
    fn features(&self) -> u64 {
        self.card.offered()
    }

    fn possible_features(&self) -> u64 {
        self.card.backend.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let config = self.card.config();
        let mut sizes = [config.rx_queue_size, config.tx_queue_size].repeat(self.pairs.len());
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    /// A driver that cannot use several pairs finds the control queue behind the first.
    fn queue_sizes_for(&self, features: u64) -> Vec<u16> {
        let mut sizes = self.queue_sizes();
        if features & 1 << VIRTIO_NET_F_MQ == 0 {
            sizes.drain(2..sizes.len().saturating_sub(1));
        }
        sizes
    }

    fn config_len(&self) -> Option<u32> {
        Some(config::config_len(self.card.config().features))
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        self.card.space().read(offset, data);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.card.write_mac(offset as usize, data);
    }

    fn connect(&mut self, interrupt: ConfigInterrupt) {
        self.card.connect(interrupt);
    }

    fn activate(&mut self, negotiated: Negotiated) {
        self.card.activate(negotiated);
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        let index = start.index;
        let failed = |source| HostError::new(format!("queue {index} cannot be served"), source);
        if index == self.control_queue() {
            let worker = Controller::new(self.card.clone(), start);
            let handle = self.threads.for_queue(0).add(worker).map_err(failed)?;
            self.control = Some(handle);
            return Ok(());
        }
        let thread = self.threads.for_queue(index / 2).clone();
        self.change_pair(index, |pair| pair.attach(start, &thread))
            .flatten()
            .map_err(failed)
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        // Of a worker that failed nothing is known; its queue stands still until the driver resets
        // it.
        let broken = QueueState {
            broken: true,
            ..QueueState::default()
        };
        if index == self.control_queue() {
            let handle = self.control.take()?;
            return Some(handle.stop().map_or(broken, Controller::into_state));
        }
        self.change_pair(index, |pair| pair.detach(index))
            .unwrap_or(Some(broken))
    }

    fn reset(&mut self) {
        self.card.reset();
    }
}
