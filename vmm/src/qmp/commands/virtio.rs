//! The insides of virtio devices: what driver and device have agreed on, their queues, their descriptors.

use devices::virtio::transport::{QueueView, TransportView, status};
use vm_memory::{Bytes, GuestAddress};

use super::{Command, Context, command};
use crate::machine::inventory::Slot;
use crate::qmp::error::Error;
use crate::qmp::features;
use crate::qmp::schema::{Nothing, structures};
use crate::qmp::target::{RunState, Shown};

pub(super) static COMMANDS: &[Command] = &[
    command!("x-query-virtio", x_query_virtio),
    command!("x-query-virtio-status", x_query_virtio_status),
    command!("x-query-virtio-queue-status", x_query_virtio_queue_status),
    command!("x-query-virtio-queue-element", x_query_virtio_queue_element),
    command!("x-query-virtio-vhost-queue-status", x_query_virtio_vhost_queue_status),
];

structures! {
    /// A virtio device.
    pub struct VirtioInfo {
        /// Where it is.
        path: String,
        /// What it is.
        name: String,
    }
    /// Which device.
    pub struct OfDevice {
        /// Its path.
        path: String,
    }
    /// Which queue.
    pub struct OfQueue {
        /// The device's path.
        path: String,
        /// The queue's index.
        queue: u16,
    }
    /// Which entry of the available ring.
    pub struct OfElement {
        /// The device's path.
        path: String,
        /// The queue's index.
        queue: u16,
        /// The entry; that which comes next if not given.
        index: Option<u16>,
    }
    /// Feature bits by their names.
    pub struct VirtioDeviceFeatures {
        /// Those of ring and transport.
        transports: Vec<String>,
        /// Those of the device.
        dev_features as "dev-features": Option<Vec<String>>,
        /// Those without a name.
        unknown_dev_features as "unknown-dev-features": Option<u64>,
    }
    /// Bits of the device status by their names.
    pub struct VirtioDeviceStatus {
        /// The names.
        statuses: Vec<String>,
        /// Bits without one.
        unknown_statuses as "unknown-statuses": Option<u8>,
    }
    /// The state of a device.
    pub struct VirtioStatus {
        /// What it is.
        name: String,
        /// Its virtio id.
        device_id as "device-id": u16,
        /// Is another process or the kernel serving it?
        vhost_started as "vhost-started": bool,
        /// Byte order of its fields.
        device_endian as "device-endian": String,
        /// What the driver took.
        guest_features as "guest-features": VirtioDeviceFeatures,
        /// What is offered.
        host_features as "host-features": VirtioDeviceFeatures,
        /// What a backend took.
        backend_features as "backend-features": VirtioDeviceFeatures,
        /// Number of queues.
        num_vqs as "num-vqs": i64,
        /// The device status.
        status: VirtioDeviceStatus,
        /// The ISR register.
        isr: u8,
        /// The queue that the driver looks at.
        queue_sel as "queue-sel": u16,
        /// Does the machine run?
        vm_running as "vm-running": bool,
        /// Does it need a reset?
        broken: bool,
        /// Is it switched off?
        disabled: bool,
        /// QEMU's own.
        use_started as "use-started": bool,
        /// Has the driver started it?
        started: bool,
        /// QEMU's own.
        start_on_kick as "start-on-kick": bool,
        /// QEMU's own.
        disable_legacy_check as "disable-legacy-check": bool,
        /// QEMU's own.
        bus_name as "bus-name": String,
        /// QEMU's own.
        use_guest_notifier_mask as "use-guest-notifier-mask": bool,
    }
    /// The state of a queue.
    pub struct VirtQueueStatus {
        /// The device's name.
        name: String,
        /// Its index.
        queue_index as "queue-index": u16,
        /// Chains that the driver has made available and not got back.
        inuse: u32,
        /// Descriptors.
        vring_num as "vring-num": u32,
        /// Descriptors that the device offers.
        vring_num_default as "vring-num-default": u32,
        /// Alignment of the used ring in the legacy layout.
        vring_align as "vring-align": u32,
        /// Guest-physical address of the descriptor table.
        vring_desc as "vring-desc": u64,
        /// Of the available ring.
        vring_avail as "vring-avail": u64,
        /// Of the used ring.
        vring_used as "vring-used": u64,
        /// The device's index into the used ring.
        used_idx as "used-idx": u16,
        /// Up to where the driver was told.
        signalled_used as "signalled-used": u16,
        /// Does that mean anything?
        signalled_used_valid as "signalled-used-valid": bool,
    }
    /// A descriptor.
    pub struct VirtioRingDesc {
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        len: u32,
        /// Flags by their names.
        flags: Vec<String>,
    }
    /// The available ring.
    pub struct VirtioRingAvail {
        /// Its flags.
        flags: u16,
        /// Its index.
        idx: u16,
        /// The entry.
        ring: u16,
    }
    /// The used ring.
    pub struct VirtioRingUsed {
        /// Its flags.
        flags: u16,
        /// Its index.
        idx: u16,
    }
    /// A chain.
    pub struct VirtioQueueElement {
        /// The device's name.
        name: String,
        /// Its head.
        index: u32,
        /// Its descriptors.
        descs: Vec<VirtioRingDesc>,
        /// The available ring.
        avail: VirtioRingAvail,
        /// The used ring.
        used: VirtioRingUsed,
    }
    /// The state of a queue that vhost serves, as QEMU has it. Nothing is to be seen of such queues yet.
    pub struct VirtVhostQueueStatus {
        /// The device's name.
        name: String,
        /// Descriptor of the doorbell.
        kick: i64,
        /// Descriptor of the interrupt.
        call: i64,
        /// Descriptor table in our address space.
        desc: u64,
        /// Available ring in our address space.
        avail: u64,
        /// Used ring in our address space.
        used: u64,
        /// Descriptors.
        num: i64,
        /// Guest-physical address of the descriptor table.
        desc_phys as "desc-phys": u64,
        /// Its bytes.
        desc_size as "desc-size": u64,
        /// Guest-physical address of the available ring.
        avail_phys as "avail-phys": u64,
        /// Its bytes.
        avail_size as "avail-size": u64,
        /// Guest-physical address of the used ring.
        used_phys as "used-phys": u64,
        /// Its bytes.
        used_size as "used-size": u64,
    }
}

/// All virtio devices, the last one first, as in QEMU.
pub(super) fn x_query_virtio(context: &Context<'_>, _: Nothing) -> Result<Vec<VirtioInfo>, Error> {
    let devices = context.target.inventory().list().into_iter().rev();
    let info = |plugged: std::sync::Arc<crate::machine::inventory::Plugged>| {
        let slot = plugged.slot()?;
        Some(VirtioInfo {
            path: plugged.backend_path(),
            name: name(slot),
        })
    };
    Ok(devices.filter_map(info).collect())
}

/// QEMU's name of a virtio device, without the bus.
fn name(slot: &Slot) -> String {
    slot.info.name.trim_end_matches("-pci").to_owned()
}

/// Looks at the device at `path` with `look`.
fn at<T>(
    context: &Context<'_>,
    path: &str,
    look: impl FnOnce(&Slot, &TransportView) -> Result<T, Error>,
) -> Result<T, Error> {
    let devices = context.target.inventory().list();
    let found = devices.iter().find(|plugged| plugged.backend_path() == path);
    let slot = found.and_then(|plugged| plugged.slot());
    let slot = slot.ok_or_else(|| Error::new(format_args!("Path {path} is not a VirtIODevice")))?;
    let view = slot.lock().view();
    look(slot, &view)
}

pub(super) fn x_query_virtio_status(context: &Context<'_>, arguments: OfDevice) -> Result<VirtioStatus, Error> {
    let running = context.target.run_state() == RunState::Running;
    at(context, &arguments.path, |slot, view| {
        let named = |bits| {
            let named = features::name(slot.info.id, bits);
            VirtioDeviceFeatures {
                transports: named.transport,
                dev_features: Some(named.device),
                unknown_dev_features: Some(named.unknown).filter(|bits| *bits != 0),
            }
        };
        let (statuses, unknown) = features::name_status(view.status);
        Ok(VirtioStatus {
            name: name(slot),
            device_id: slot.info.id.number(),
            vhost_started: false,
            device_endian: "little".to_owned(),
            guest_features: named(view.negotiated),
            host_features: named(view.offered),
            backend_features: named(0),
            num_vqs: view.queues.len() as i64,
            status: VirtioDeviceStatus {
                statuses,
                unknown_statuses: Some(unknown).filter(|bits| *bits != 0),
            },
            isr: view.isr,
            queue_sel: view.queue_select,
            vm_running: running,
            broken: view.status & status::NEEDS_RESET != 0,
            disabled: false,
            use_started: true,
            started: view.status & status::DRIVER_OK != 0,
            start_on_kick: false,
            disable_legacy_check: false,
            bus_name: String::new(),
            use_guest_notifier_mask: true,
        })
    })
}

fn queue(view: &TransportView, index: u16) -> Result<&QueueView, Error> {
    let queue = view.queues.get(usize::from(index));
    queue.ok_or_else(|| Error::new(format_args!("Invalid virtqueue number {index}")))
}

/// The word at `address + offset` of guest memory; 0 where there is none.
fn word(context: &Context<'_>, address: u64, offset: u64) -> u16 {
    let address = GuestAddress(address.saturating_add(offset));
    context.target.inventory().memory().read_obj(address).unwrap_or(0)
}

/// Where rings have their index (virtio 1.3, 2.7.6 and 2.7.8).
const INDEX: u64 = 2;
/// Where the available ring has its entries.
const ENTRIES: u64 = 4;
/// Alignment of the used ring in the legacy layout.
const RING_ALIGNMENT: u32 = 4096;

pub(super) fn x_query_virtio_queue_status(context: &Context<'_>, arguments: OfQueue) -> Result<VirtQueueStatus, Error> {
    at(context, &arguments.path, |slot, view| {
        let config = &queue(view, arguments.queue)?.config;
        let index = |ring: u64| if ring == 0 { 0 } else { word(context, ring, INDEX) };
        let (available, used) = (index(config.available), index(config.used));
        Ok(VirtQueueStatus {
            name: name(slot),
            queue_index: arguments.queue,
            inuse: available.wrapping_sub(used).into(),
            vring_num: config.size.into(),
            vring_num_default: config.max_size.into(),
            vring_align: RING_ALIGNMENT,
            vring_desc: config.descriptors,
            vring_avail: config.available,
            vring_used: config.used,
            used_idx: used,
            signalled_used: used,
            signalled_used_valid: config.used != 0,
        })
    })
}

pub(super) fn x_query_virtio_queue_element(
    context: &Context<'_>,
    arguments: OfElement,
) -> Result<VirtioQueueElement, Error> {
    at(context, &arguments.path, |slot, view| {
        let config = &queue(view, arguments.queue)?.config;
        if config.descriptors == 0 || config.available == 0 || config.used == 0 || config.size == 0 {
            return Err(Error::new("The driver has not set the queue up"));
        }
        let used_index = word(context, config.used, INDEX);
        let entry = arguments.index.unwrap_or(used_index) % config.size;
        let head = word(context, config.available, ENTRIES + 2 * u64::from(entry));
        Ok(VirtioQueueElement {
            name: name(slot),
            index: head.into(),
            descs: chain(context, config.descriptors, config.size, head),
            avail: VirtioRingAvail {
                flags: word(context, config.available, 0),
                idx: word(context, config.available, INDEX),
                ring: head,
            },
            used: VirtioRingUsed {
                flags: word(context, config.used, 0),
                idx: used_index,
            },
        })
    })
}

/// Flags of descriptors (virtio 1.3, 2.7.5) by QEMU's names.
const DESCRIPTOR_FLAGS: [(u16, &str); 3] = [(1, "next"), (2, "write"), (4, "indirect")];
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

/// The descriptors from `head` on, as the guest has them at this moment; at most as many as the queue has.
fn chain(context: &Context<'_>, table: u64, size: u16, head: u16) -> Vec<VirtioRingDesc> {
    let mut descriptors = Vec::new();
    let mut next = Some(head).filter(|head| *head < size);
    while let Some(index) = next.filter(|_| descriptors.len() < usize::from(size)) {
        let address = GuestAddress(table.saturating_add(DESCRIPTOR * u64::from(index)));
        let mut bytes = [0; DESCRIPTOR as usize];
        if context
            .target
            .inventory()
            .memory()
            .read_slice(&mut bytes, address)
            .is_err()
        {
            break;
        }
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        let flags = u16::from_le_bytes([f0, f1]);
        let named = DESCRIPTOR_FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
        descriptors.push(VirtioRingDesc {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: named.map(|(_, name)| (*name).to_owned()).collect(),
        });
        let follows = flags & 1 != 0;
        next = follows
            .then(|| u16::from_le_bytes([n0, n1]))
            .filter(|next| *next < size);
    }
    descriptors
}

fn x_query_virtio_vhost_queue_status(context: &Context<'_>, arguments: OfQueue) -> Result<VirtVhostQueueStatus, Error> {
    at(context, &arguments.path, |_, view| {
        queue(view, arguments.queue)?;
        Err(Error::new("Error: vhost device has not started yet"))
    })
}
