//! The state machine of the transport: device status, features, queues, vectors. There is one of
//! it, whatever face the driver uses.
//!
//! What should run follows from the registers. Each change of a register that matters ends in
//! [`State::follow`], which starts and stops queues until what runs is what should.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::fault::{FaultLog, TransportFault};
use super::features::{BAD_FEATURE, Offered};
use super::registers::{Face, Register};
use crate::memory::GuestMemory;
use crate::virtio::device::{ConfigInterrupt, Device, Negotiated, QueueInterrupt, QueueStart};
use crate::virtio::interrupt::{InterruptState, Interrupts};
use crate::virtio::virtq::{NO_VECTOR, QueueConfig, QueueState, RingFeatures, Virtq};

/// Bits of the device status register (virtio 1.3, 2.1).
pub mod status {
    use super::*;

    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    /// The guest has a driver for it.
    pub const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
    /// The device cannot go on; only the device sets it.
    pub const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    /// The driver has given up.
    pub const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

    /// What a driver may set.
    pub(super) const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// What the driver wrote that is not about one queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) status: u8,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    /// As written; what is agreed on is [`State::negotiated`].
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) config_vector: u16,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
        }
    }
}

/// One queue: what the driver wrote, and how far it has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub(super) config: QueueConfig,
    /// Where the queue goes on when it is started (again).
    progress: QueueState,
    /// Set up by its page number, as legacy drivers do.
    legacy: bool,
    /// It could not be started, and will not be until the driver sets it up anew.
    refused: bool,
}

impl QueueRegisters {
    fn new(size: u16) -> Self {
        Self {
            config: QueueConfig::new(size),
            progress: QueueState::default(),
            legacy: false,
            refused: false,
        }
    }
}

struct Queue {
    registers: QueueRegisters,
    kick: Arc<EventFd>,
    running: bool,
}

/// The transport in a form to save, queues standing still.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TransportState {
    registers: Registers,
    queues: Vec<QueueRegisters>,
    interrupts: InterruptState,
}

/// What driver and device have come to, for people to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransportView {
    /// The device status, bits of [`status`].
    pub status: u8,
    /// The ISR register.
    pub isr: u8,
    /// Feature bits that are offered on one face or the other.
    pub offered: u64,
    /// Feature bits that the driver took.
    pub negotiated: u64,
    /// The queue that the driver looks at.
    pub queue_select: u16,
    /// All queues.
    pub queues: Vec<QueueView>,
}

/// A queue as its driver set it up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueView {
    /// Its geometry.
    pub config: QueueConfig,
    /// Is it being served?
    pub running: bool,
}

/// The saved device has another number of queues, or other queues
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the saved device has other queues than this one")]
pub struct TransportStateError;

/// What a transport is made of.
pub(super) struct Parts {
    /// What the user calls the device.
    pub(super) name: String,
    pub(super) device: Box<dyn Device>,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) offered: Offered,
    /// Bytes of device configuration.
    pub(super) config_len: u32,
}

/// The transport of one device.
pub(super) struct State {
    name: String,
    device: Box<dyn Device>,
    memory: Arc<GuestMemory>,
    interrupts: Arc<Interrupts>,
    offered: Offered,
    config_len: u32,
    registers: Registers,
    /// As many as the device ever has; those from `visible_queues` on are not there for this
    /// driver.
    queues: Vec<Queue>,
    visible_queues: u16,
    /// What the device was activated with.
    activated: Option<Negotiated>,
    /// Bus Master of the command register.
    bus_master: bool,
    paused: bool,
    faults: FaultLog,
}

impl State {
    /// A transport in the state after reset.
    ///
    /// # Errors
    /// The host gives no more eventfds.
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let queue = |size| {
            Ok(Queue {
                registers: QueueRegisters::new(size),
                kick: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
                running: false,
            })
        };
        let sizes = parts.device.queue_sizes();
        let mut state = Self {
            name: parts.name,
            queues: sizes.into_iter().map(queue).collect::<io::Result<_>>()?,
            device: parts.device,
            memory: parts.memory,
            interrupts: parts.interrupts,
            offered: parts.offered,
            config_len: parts.config_len,
            registers: Registers::default(),
            visible_queues: 0,
            activated: None,
            bus_master: false,
            paused: false,
            faults: FaultLog::default(),
        };
        state.lay_out_queues();
        let config = ConfigInterrupt::new(state.interrupts.clone());
        state.device.connect(config);
        Ok(state)
    }

    /// What driver and device have come to.
    pub(super) fn view(&self) -> TransportView {
        let queue = |queue: &Queue| QueueView {
            config: queue.registers.config.clone(),
            running: queue.running,
        };
        TransportView {
            status: self.status(),
            isr: self.interrupts.isr(),
            offered: self.offered.modern | u64::from(self.offered.legacy),
            negotiated: self.negotiated().features,
            queue_select: self.registers.queue_select,
            queues: self.queues.iter().map(queue).collect(),
        }
    }

    pub(super) fn registers(&self) -> &Registers {
        &self.registers
    }

    pub(super) fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    pub(super) fn offered(&self) -> &Offered {
        &self.offered
    }

    pub(super) fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }

    pub(super) fn faults_mut(&mut self) -> &mut FaultLog {
        &mut self.faults
    }

    pub(super) fn fault(&mut self, fault: TransportFault) {
        self.faults.record(fault);
    }

    /// Number of queues, with those that this driver does not see.
    pub(super) fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Number of queues that there are for this driver.
    pub(super) fn visible_queues(&self) -> u16 {
        self.visible_queues
    }

    /// Gives the queues the number and sizes that they have for a driver with the features written
    /// so far. A queue that becomes another one starts from nothing.
    fn lay_out_queues(&mut self) {
        let sizes = self.device.queue_sizes_for(self.negotiated().features);
        self.visible_queues = u16::try_from(sizes.len()).unwrap_or(u16::MAX);
        for (index, size) in (0..self.queue_count()).zip(sizes.into_iter().chain(std::iter::repeat(0))) {
            let differs = |queue: &&Queue| queue.registers.config.max_size != size;
            if self.queues.get(usize::from(index)).filter(differs).is_none() {
                continue;
            }
            self.stop(index);
            self.interrupts.set_queue_vector(index, NO_VECTOR);
            if let Some(queue) = self.queues.get_mut(usize::from(index)) {
                queue.registers = QueueRegisters::new(size);
            }
        }
    }

    /// A queue that there is for this driver.
    fn queue(&self, index: u16) -> Option<&Queue> {
        self.queues
            .get(usize::from(index))
            .filter(|_| index < self.visible_queues)
    }

    /// The same, to be changed.
    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        let visible = index < self.visible_queues;
        self.queues.get_mut(usize::from(index)).filter(|_| visible)
    }

    /// The doorbell of a queue, seen or not.
    pub(super) fn doorbell(&self, queue: u16) -> Option<&Arc<EventFd>> {
        self.queues.get(usize::from(queue)).map(|queue| &queue.kick)
    }

    /// What the driver wrote about the selected queue, if there is such a queue.
    pub(super) fn selected(&self) -> Option<&QueueConfig> {
        let queue = self.queue(self.registers.queue_select)?;
        Some(&queue.registers.config)
    }

    /// The selected queue's configuration, for a write to `register` by a driver that has not
    /// enabled the queue yet. Anything else is a fault.
    pub(super) fn selected_for_setup(&mut self, register: Register) -> Option<&mut QueueConfig> {
        let queue = self.registers.queue_select;
        let visible = queue < self.visible_queues;
        match self.queues.get_mut(usize::from(queue)).filter(|_| visible) {
            Some(found) if !found.registers.config.enabled => Some(&mut found.registers.config),
            Some(_) => {
                self.faults.record(TransportFault::QueueEnabled { register, queue });
                None
            }
            None => {
                self.faults.record(TransportFault::NoSuchQueue { register, queue });
                None
            }
        }
    }

    /// The device status as the driver sees it.
    pub(super) fn status(&self) -> u8 {
        let asked = self.interrupts.needs_reset();
        self.registers.status | if asked { status::NEEDS_RESET } else { 0 }
    }

    fn has(&self, bits: u8) -> bool {
        self.registers.status & bits != 0
    }

    /// What driver and device agree on, as far as they have come.
    pub(super) fn negotiated(&self) -> Negotiated {
        let written = self.registers.driver_features;
        let modern = written & self.offered.modern;
        let legacy = written & u64::from(self.offered.legacy);
        let is_modern = modern & 1 << VIRTIO_F_VERSION_1 != 0;
        Negotiated {
            features: if is_modern { modern } else { legacy },
        }
    }

    /// The driver writes its features on the legacy face.
    pub(super) fn write_legacy_features(&mut self, value: u32) {
        if self.has(status::FEATURES_OK) {
            return self.fault(TransportFault::FeaturesTooLate);
        }
        let bad = value & 1 << BAD_FEATURE != 0;
        let accepted = if bad { self.offered.instead_of_bad } else { value };
        let unknown = accepted & !self.offered.legacy;
        if bad {
            self.fault(TransportFault::BadFeature);
        } else if unknown != 0 {
            self.fault(TransportFault::FeaturesNotOffered { bits: unknown.into() });
        }
        self.registers.driver_features = accepted.into();
        self.lay_out_queues();
        self.follow();
    }

    /// The driver writes 32 bits of its features on the modern face.
    pub(super) fn write_feature_word(&mut self, value: u32) {
        if self.has(status::FEATURES_OK) {
            return self.fault(TransportFault::FeaturesTooLate);
        }
        let select = self.registers.driver_feature_select;
        if select < 2 {
            let shift = 32 * select;
            let other = self.registers.driver_features & !(u64::from(u32::MAX) << shift);
            self.registers.driver_features = other | u64::from(value) << shift;
            self.lay_out_queues();
            self.follow();
        } else if value != 0 {
            // There are 64 feature bits.
            self.fault(TransportFault::FeaturesNotOffered { bits: 0 });
        }
    }

    /// The driver writes the device status.
    pub(super) fn write_status(&mut self, face: Face, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let before = self.registers.status;
        let (cleared, unknown) = (before & !value, value & !status::DRIVERS);
        if cleared != 0 {
            self.fault(TransportFault::StatusBitsCleared { bits: cleared });
        }
        if unknown & !(self.status() & status::NEEDS_RESET) != 0 {
            self.fault(TransportFault::StatusBitsUnknown { bits: unknown });
        }
        let mut value = value & !status::NEEDS_RESET;
        let gained = value & !before;
        if gained & status::FEATURES_OK != 0 && !self.features_acceptable(face) {
            value &= !(status::FEATURES_OK | gained & status::DRIVER_OK);
        }
        if face == Face::Modern && gained & status::DRIVER_OK != 0 && value & status::FEATURES_OK == 0 {
            self.fault(TransportFault::DriverOkTooEarly);
        }
        self.registers.status = value;
        if value & gained & (status::FEATURES_OK | status::DRIVER_OK) != 0 {
            self.activate();
        }
        self.follow();
    }

    /// Whether FEATURES_OK may be set. The legacy face has no such bit.
    fn features_acceptable(&mut self, face: Face) -> bool {
        if face == Face::Legacy {
            self.fault(TransportFault::StatusBitsUnknown {
                bits: status::FEATURES_OK,
            });
            return false;
        }
        let written = self.registers.driver_features;
        let bits = written & !self.offered.modern;
        if written & 1 << VIRTIO_F_VERSION_1 == 0 {
            self.fault(TransportFault::Version1Missing);
            return false;
        }
        if bits != 0 {
            self.fault(TransportFault::FeaturesNotOffered { bits });
        }
        bits == 0
    }

    /// A legacy driver writes the page number of the selected queue; 0 resets the device (QEMU,
    /// hw/virtio/virtio-pci.c, `virtio_ioport_write`).
    pub(super) fn write_pfn(&mut self, pfn: u32) {
        if pfn == 0 {
            return self.reset();
        }
        let index = self.registers.queue_select;
        let Some(queue) = self.queue(index) else {
            let register = Register::QueuePfn;
            return self.fault(TransportFault::NoSuchQueue { register, queue: index });
        };
        if queue.registers.config.enabled && queue.registers.config.legacy_pfn() == pfn {
            return;
        }
        self.stop(index);
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            let mut fresh = QueueRegisters::new(queue.registers.config.max_size);
            fresh.config.vector = queue.registers.config.vector;
            fresh.config.set_legacy_pfn(pfn);
            (fresh.config.enabled, fresh.legacy) = (true, true);
            queue.registers = fresh;
        }
        self.follow();
    }

    /// The driver enables the selected queue.
    pub(super) fn enable_queue(&mut self, value: u32) {
        let (register, queue) = (Register::QueueEnable, self.registers.queue_select);
        if value != 1 {
            return self.fault(TransportFault::NotOne { register, queue, value });
        }
        if let Some(config) = self.selected_for_setup(register) {
            config.enabled = true;
            self.follow();
        }
    }

    /// The driver resets the selected queue (virtio 1.3, 2.6.1).
    pub(super) fn reset_queue(&mut self, value: u32) {
        let (register, queue) = (Register::QueueReset, self.registers.queue_select);
        if value != 1 {
            return self.fault(TransportFault::NotOne { register, queue, value });
        }
        if !self
            .negotiated()
            .has(virtio_bindings::virtio_config::VIRTIO_F_RING_RESET)
        {
            return self.fault(TransportFault::RingResetNotNegotiated { queue });
        }
        self.stop(queue);
        let Some(found) = self.queue_mut(queue) else {
            return self.fault(TransportFault::NoSuchQueue { register, queue });
        };
        found.registers = QueueRegisters::new(found.registers.config.max_size);
        self.interrupts.set_queue_vector(queue, NO_VECTOR);
    }

    /// The driver sets the vector of configuration changes.
    pub(super) fn write_config_vector(&mut self, value: u32) {
        self.registers.config_vector = self.checked_vector(value);
        self.interrupts.set_config_vector(self.registers.config_vector);
    }

    /// The driver sets the vector of the selected queue.
    pub(super) fn write_queue_vector(&mut self, value: u32) {
        let (register, queue) = (Register::QueueVector, self.registers.queue_select);
        let vector = self.checked_vector(value);
        match self.queue_mut(queue) {
            Some(found) => {
                found.registers.config.vector = vector;
                self.interrupts.set_queue_vector(queue, vector);
            }
            None => self.fault(TransportFault::NoSuchQueue { register, queue }),
        }
    }

    /// A vector that there is, or none, which tells the driver that it did not work (virtio 1.3,
    /// 4.1.5.1.2.1).
    fn checked_vector(&mut self, value: u32) -> u16 {
        match u16::try_from(value) {
            Ok(vector) if vector == NO_VECTOR || vector < self.interrupts.vectors() => vector,
            _ => {
                self.fault(TransportFault::NoSuchVector { vector: value });
                NO_VECTOR
            }
        }
    }

    /// The driver kicks a queue by a way that did not end at its doorbell directly. The kick of a
    /// queue that does not run yet waits.
    pub(super) fn kick(&mut self, queue: u32) {
        let doorbell = u16::try_from(queue)
            .ok()
            .and_then(|queue| Some((queue, &self.queue(queue)?.kick)));
        let Some((queue, doorbell)) = doorbell else {
            return self.fault(TransportFault::KickNowhere { queue });
        };
        ring(doorbell);
        if !self.has(status::DRIVER_OK) {
            self.fault(TransportFault::KickTooEarly { queue });
        }
    }

    /// Reads device configuration, as the driver sees it now. Accesses that are not inside it read
    /// as ones, as in QEMU.
    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = self.config_offset(offset, data.len()) {
            self.device.read_config(offset, data);
        }
    }

    /// Writes device configuration; accesses that are not inside it are ignored.
    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = self.config_offset(offset, data.len()) {
            self.device.write_config(offset, data);
        }
    }

    fn config_offset(&self, offset: u64, len: usize) -> Option<u32> {
        let end = offset.checked_add(len as u64)?;
        (end <= self.config_len.into()).then_some(offset as u32)
    }

    /// Bus Master of the command register changed, or was written. Taking it away stops the device
    /// as in QEMU (hw/virtio/virtio-pci.c, `virtio_write_config`).
    pub(super) fn set_bus_master(&mut self, on: bool) {
        self.bus_master = on;
        if !on {
            self.registers.status &= !status::DRIVER_OK;
        }
        self.follow();
    }

    /// Stops all queues, drained, until [`Self::resume`]: for a pause, and before [`Self::save`].
    pub(super) fn pause(&mut self) {
        self.paused = true;
        self.follow();
    }

    /// Goes on after [`Self::pause`].
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.follow();
    }

    /// What it holds. Queues that run are saved as they were when they were started; pause first.
    pub(super) fn save(&self) -> TransportState {
        TransportState {
            registers: self.registers.clone(),
            queues: self.queues.iter().map(|queue| queue.registers.clone()).collect(),
            interrupts: self.interrupts.state(),
        }
    }

    /// Takes back what [`Self::save`] gave.
    pub(super) fn restore(&mut self, state: &TransportState) -> Result<(), TransportStateError> {
        self.stop_all();
        let before = std::mem::replace(&mut self.registers, state.registers.clone());
        self.lay_out_queues();
        let sizes = |registers: &QueueRegisters| registers.config.max_size;
        let ours = self.queues.iter().map(|queue| sizes(&queue.registers));
        if !ours.eq(state.queues.iter().map(sizes)) {
            self.registers = before;
            self.lay_out_queues();
            self.follow();
            return Err(TransportStateError);
        }
        let vectors = self.interrupts.vectors();
        let known = |vector: u16| if vector < vectors { vector } else { NO_VECTOR };
        self.interrupts.restore(state.interrupts);
        self.interrupts.set_config_vector(known(self.registers.config_vector));
        for (index, (queue, saved)) in (0..).zip(self.queues.iter_mut().zip(&state.queues)) {
            queue.registers = saved.clone();
            self.interrupts.set_queue_vector(index, known(saved.config.vector));
        }
        if self.has(status::FEATURES_OK | status::DRIVER_OK) {
            self.activate();
        }
        self.follow();
        Ok(())
    }

    /// Back to the state after power-on. Whatever the device was doing is finished first.
    pub(super) fn reset(&mut self) {
        self.stop_all();
        self.device.reset();
        self.activated = None;
        self.interrupts.reset();
        self.registers = Registers::default();
        self.lay_out_queues();
        for queue in &mut self.queues {
            queue.registers = QueueRegisters::new(queue.registers.config.max_size);
            // A kick of the driver before the reset is not for the one after it.
            let _ = queue.kick.read();
        }
    }

    /// Tells the device what was agreed on, unless it knows.
    fn activate(&mut self) {
        let negotiated = self.negotiated();
        if self.activated != Some(negotiated) {
            self.stop_all();
            self.interrupts.set_modern(!negotiated.is_legacy());
            self.device.activate(negotiated);
            self.activated = Some(negotiated);
        }
    }

    /// Starts and stops queues as the registers say.
    fn follow(&mut self) {
        self.interrupts.set_live(self.has(status::DRIVER_OK));
        let wanted: Vec<bool> = self.queues.iter().map(|queue| self.should_run(queue)).collect();
        if wanted.contains(&true) {
            self.activate();
        }
        for (index, wanted) in (0..).zip(wanted) {
            match wanted {
                true => self.start(index),
                false => self.stop(index),
            }
        }
    }

    /// Whether a queue should run now. One that was set up by its page number runs from then on:
    /// drivers of Linux before 3.18 use their queues before they set DRIVER_OK (a disk's partitions
    /// are read while it is probed), and QEMU serves them.
    fn should_run(&self, queue: &Queue) -> bool {
        let registers = &queue.registers;
        let ready = self.has(status::DRIVER_OK) || registers.legacy && self.has(status::DRIVER);
        let able = self.bus_master && !self.paused && !self.has(status::FAILED);
        ready && able && registers.config.enabled && !registers.refused
    }

    fn start(&mut self, index: u16) {
        let negotiated = self.negotiated();
        let Some(queue) = self.queues.get_mut(usize::from(index)).filter(|queue| !queue.running) else {
            return;
        };
        let features = RingFeatures::from_negotiated(negotiated.features);
        let ring_of = &queue.registers;
        let started = match Virtq::new(self.memory.clone(), &ring_of.config, features, ring_of.progress) {
            Ok(virtq) => {
                let start = QueueStart {
                    index,
                    ring: virtq,
                    kick: queue.kick.clone(),
                    interrupt: QueueInterrupt::new(self.interrupts.clone(), index),
                    negotiated,
                };
                let started = self.device.start_queue(start);
                started
                    .inspect_err(|error| tracing::error!("{}: queue {index} not started: {error}", self.name))
                    .is_ok()
            }
            Err(fault) => {
                self.faults.record(TransportFault::Queue { queue: index, fault });
                false
            }
        };
        (queue.running, queue.registers.refused) = (started, !started);
        if started {
            // What came in before is served without waiting for the next kick.
            ring(&queue.kick);
        } else {
            self.interrupts.signal_needs_reset();
        }
    }

    fn stop(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(usize::from(index)).filter(|queue| queue.running) else {
            return;
        };
        queue.running = false;
        match self.device.stop_queue(index) {
            Some(progress) => queue.registers.progress = progress,
            // Nobody knows how far it had come.
            None => {
                queue.registers.refused = true;
                self.interrupts.signal_needs_reset();
            }
        }
    }

    fn stop_all(&mut self) {
        (0..self.queue_count()).for_each(|index| self.stop(index));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// Makes a doorbell readable. It fails only when it is readable already.
fn ring(doorbell: &EventFd) {
    let _ = doorbell.write(1);
}
