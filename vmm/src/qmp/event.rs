//! What happens without being asked for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use super::schema::{EMPTY, Qapi, Type, enumerations, structures};

enumerations! {
    /// Why a machine was reset or shut down.
    pub enum ShutdownCause {
        /// Nobody knows.
        None = "none",
        /// The host failed.
        HostError = "host-error",
        /// QMP's quit.
        HostQmpQuit = "host-qmp-quit",
        /// QMP's system_reset.
        HostQmpSystemReset = "host-qmp-system-reset",
        /// A signal.
        HostSignal = "host-signal",
        /// A window that was closed.
        HostUi = "host-ui",
        /// The guest switched itself off.
        GuestShutdown = "guest-shutdown",
        /// The guest reset itself, where that ends it.
        GuestReset = "guest-reset",
        /// The guest panicked.
        GuestPanic = "guest-panic",
        /// A reset of a part.
        SubsystemReset = "subsystem-reset",
        /// A snapshot is loaded.
        SnapshotLoad = "snapshot-load",
    }
    /// Which way a disk's request went.
    pub enum IoOperation {
        /// From the disk.
        Read = "read",
        /// To the disk.
        Write = "write",
    }
    /// What is done about a disk's error.
    pub enum ErrorAction {
        /// Nothing.
        Ignore = "ignore",
        /// The guest is told.
        Report = "report",
        /// The machine stops.
        Stop = "stop",
    }
}

structures! {
    /// Data of SHUTDOWN and RESET.
    pub struct Shutdown {
        /// Was it the guest?
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    }
    /// Data of DEVICE_DELETED.
    pub struct DeviceDeleted {
        /// Its id, if it has one.
        device: Option<String>,
        /// Where it was.
        path: String,
    }
    /// Data of BALLOON_CHANGE.
    pub struct BalloonChange {
        /// Bytes of memory that the guest has now.
        actual: u64,
    }
    /// Data of VSERPORT_CHANGE.
    pub struct VserportChange {
        /// The port's id.
        id: String,
        /// Does the guest have it open?
        open: bool,
    }
    /// Data of NIC_RX_FILTER_CHANGED.
    pub struct NicRxFilterChanged {
        /// The card's id.
        name: Option<String>,
        /// Where it is.
        path: String,
    }
    /// Data of BLOCK_IO_ERROR.
    pub struct BlockIoError {
        /// The drive.
        device: String,
        /// Its node.
        node_name as "node-name": Option<String>,
        /// Which way.
        operation: IoOperation,
        /// What is done.
        action: ErrorAction,
        /// Is it for want of space?
        nospace: Option<bool>,
        /// What the host says.
        reason: String,
    }
}

/// An event as the schema knows it.
pub struct EventInfo {
    /// Its name.
    pub name: &'static str,
    /// Its data.
    pub data: Type,
}

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident $(($data:ty))? = $name:literal),* $(,)?) => {
        /// An event.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Event {
            $($(#[$doc])* $variant $(($data))?,)*
        }

        /// All events.
        pub static EVENTS: &[EventInfo] = &[$(EventInfo { name: $name, data: events!(@type $($data)?) }),*];

        impl Event {
            /// Its name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(events!(@pattern $variant $($data)?) => $name,)*
                }
            }
        }
    };
    (@type) => { Type::Object(&EMPTY) };
    (@type $data:ty) => { <$data as Qapi>::TYPE };
    (@pattern $variant:ident) => { Self::$variant };
    (@pattern $variant:ident $data:ty) => { Self::$variant(_) };
}

events! {
    /// The machine is about to end.
    Shutdown(Shutdown) = "SHUTDOWN",
    /// The machine was reset.
    Reset(Shutdown) = "RESET",
    /// CPUs and devices stand still.
    Stop = "STOP",
    /// They run again.
    Resume = "RESUME",
    /// The guest was asked to switch itself off.
    Powerdown = "POWERDOWN",
    /// A device is gone, and its id and backends are free.
    DeviceDeleted(DeviceDeleted) = "DEVICE_DELETED",
    /// The balloon's size changed.
    BalloonChange(BalloonChange) = "BALLOON_CHANGE",
    /// The guest opened or closed a serial port.
    VserportChange(VserportChange) = "VSERPORT_CHANGE",
    /// The guest changed what a network card lets through.
    NicRxFilterChanged(NicRxFilterChanged) = "NIC_RX_FILTER_CHANGED",
    /// A disk's backend failed.
    BlockIoError(BlockIoError) = "BLOCK_IO_ERROR",
}

impl Event {
    /// Its data; `None` when it has none.
    fn data(&self) -> Option<Value> {
        fn value(data: &impl Serialize) -> Option<Value> {
            serde_json::to_value(data).ok()
        }
        match self {
            Self::Shutdown(data) | Self::Reset(data) => value(data),
            Self::Stop | Self::Resume | Self::Powerdown => None,
            Self::DeviceDeleted(data) => value(data),
            Self::BalloonChange(data) => value(data),
            Self::VserportChange(data) => value(data),
            Self::NicRxFilterChanged(data) => value(data),
            Self::BlockIoError(data) => value(data),
        }
    }

    /// What clients get, with the time that is now.
    pub fn message(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        let mut message = json!({"timestamp": timestamp, "event": self.name()});
        if let Some(data) = self.data() {
            message["data"] = data;
        }
        message
    }

    /// How often clients are told at most of what a guest can make happen as often as it likes, and of which thing; of those between
    /// only the last is told (QEMU, monitor/monitor.c, `monitor_qapi_event_conf`).
    pub(super) fn limit(&self) -> Option<(Duration, String)> {
        const SECOND: Duration = Duration::from_secs(1);
        match self {
            Self::BalloonChange(_) => Some((SECOND, String::new())),
            Self::VserportChange(data) => Some((SECOND, data.id.clone())),
            // QEMU has no limit for it. Of a full disk every write fails, and one event says so.
            Self::BlockIoError(data) => Some((SECOND, format!("{:?} {:?}", data.node_name, data.operation))),
            _ => None,
        }
    }
}
