//! The device as its transport sees it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::control::SerialControl;
use super::hub::Hub;
use super::mailbox::{Mailbox, Request};
use super::port::HIGHEST_PORT;
use crate::io_thread::WorkerHandle;
use crate::virtio::device::{ConfigInterrupt, Device, HostError, Negotiated, QueueStart};
use crate::virtio::id::DeviceId;
use crate::virtio::info::{Built, Control, DefaultVectors, DeviceInfo, Host, class};
use crate::virtio::listeners::Listeners;
use crate::virtio::options::{ConfigError, IO_THREAD, OptionKind, OptionSpec, Options};
use crate::virtio::transport::features::FaceDifferences;
use crate::virtio::virtq::QueueState;

/// The row of the table.
pub static INFO: DeviceInfo = DeviceInfo {
    name: "virtio-serial-pci",
    id: DeviceId::Console,
    class: class::COMMUNICATION_OTHER,
    transitional_id: Some(0x1003),
    vectors: DefaultVectors::Fixed(2),
    config_len: CONFIG_BYTES,
    differences: FaceDifferences::NONE,
    options: &[
        OptionSpec::new(
            "max_ports",
            OptionKind::Number {
                min: 1,
                max: HIGHEST_PORT + 1,
            },
            "numbers for ports, one of them for a console",
        )
        .or("31"),
        OptionSpec::new(
            "emergency-write",
            OptionKind::Flag,
            "offers VIRTIO_CONSOLE_F_EMERG_WRITE",
        )
        .or("on"),
        OptionSpec::new("console-size", OptionKind::Flag, "offers VIRTIO_CONSOLE_F_SIZE").or("off"),
        IO_THREAD,
    ],
    build: |options, host| {
        let serial = Serial::new(options, host)?;
        let control = Control::Serial(serial.control());
        Ok(Built {
            device: Box::new(serial),
            control,
        })
    },
};

/// Feature bits (include/uapi/linux/virtio_console.h).
mod feature {
    /// Columns and rows are valid.
    pub(super) const SIZE: u32 = 0;
    /// There are several ports, and messages about them.
    pub(super) const MULTIPORT: u32 = 1;
    /// A character can be written without a queue.
    pub(super) const EMERG_WRITE: u32 = 2;
}

/// Offset of `emerg_wr` in configuration, and the bytes in front of it, which are always there.
const EMERG_WR: u32 = 8;
/// Bytes of configuration with it.
const CONFIG_BYTES: u32 = 12;

/// Sizes of queues, as QEMU has them (hw/char/virtio-serial-bus.c).
const PORT_QUEUE: u16 = 128;
const MESSAGE_QUEUE: u16 = 32;

/// virtio-serial.
pub struct Serial {
    mailbox: Arc<Mailbox>,
    control: SerialControl,
    max_ports: u32,
    features: u64,
    /// Ends with the device.
    _hub: WorkerHandle<Hub>,
}

impl Serial {
    /// A device without ports, as `options` have it.
    ///
    /// # Errors
    /// An I/O thread that there is not, or no descriptors.
    pub fn new(options: &Options, host: &Host) -> Result<Self, ConfigError> {
        let threads = host.io_threads(options.subject(), options.text("iothread"))?;
        let max_ports = options
            .number("max_ports")
            .and_then(|ports| u32::try_from(ports).ok())
            .unwrap_or(1);
        let failed = |error: std::io::Error| options.refused(error, "raise the limit on descriptors (ulimit -n)");
        let mailbox = Arc::new(Mailbox::new().map_err(failed)?);
        let listeners = Arc::new(Listeners::default());
        let hub = Hub::new(Arc::clone(&mailbox), Arc::clone(&listeners), max_ports).map_err(failed)?;
        let hub = threads.for_queue(0).add(hub).map_err(failed)?;
        let offered = [
            (feature::SIZE, options.flag("console-size")),
            (feature::MULTIPORT, max_ports > 1),
            (feature::EMERG_WRITE, options.flag("emergency-write")),
        ];
        Ok(Self {
            control: SerialControl::new(Arc::clone(&mailbox), listeners, max_ports),
            mailbox,
            max_ports,
            features: offered.iter().map(|(bit, on)| u64::from(*on) << bit).sum(),
            _hub: hub,
        })
    }

    /// What management holds on to while the device belongs to its transport.
    pub fn control(&self) -> SerialControl {
        self.control.clone()
    }

    fn has_emergency_write(&self) -> bool {
        self.features & 1 << feature::EMERG_WRITE != 0
    }
}

impl Device for Serial {
    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let pair = |size| [size; 2];
        let others = (1..self.max_ports).flat_map(|_| pair(PORT_QUEUE));
        let first = pair(PORT_QUEUE).into_iter().chain(pair(MESSAGE_QUEUE));
        first.chain(others).collect()
    }

    fn config_len(&self) -> Option<u32> {
        Some(if self.has_emergency_write() {
            CONFIG_BYTES
        } else {
            EMERG_WR
        })
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let size = self.control.size();
        let mut config = [0; CONFIG_BYTES as usize];
        config[..2].copy_from_slice(&size.columns.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4..8].copy_from_slice(&self.max_ports.to_le_bytes());
        let asked = config.get(offset as usize..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(asked) {
            *to = *from;
        }
    }

    /// Only `emerg_wr` can be written: its low byte is a character, whatever is agreed on and even before anything is.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let byte = EMERG_WR
            .checked_sub(offset)
            .and_then(|index| data.get(index as usize))
            .filter(|_| self.has_emergency_write());
        if let Some(&byte) = byte.filter(|byte| **byte != 0) {
            self.mailbox.emergency(byte);
        }
    }

    fn connect(&mut self, config: ConfigInterrupt) {
        self.control.connect(config);
    }

    fn activate(&mut self, negotiated: Negotiated) {
        let multiport = negotiated.has(feature::MULTIPORT);
        // A hub that has failed has told the driver so.
        let _ = self.mailbox.ask(|done| Request::Activate { multiport, done });
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), HostError> {
        self.mailbox.post(Request::Start(Box::new(start)));
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.mailbox.ask(|answer| Request::Stop(index, answer)).flatten()
    }

    fn reset(&mut self) {
        let _ = self.mailbox.ask(Request::Reset);
    }
}
