//! Disks.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use devices::virtio::block::{BlockControl, DiskStats, Done};
use devices::virtio::info::Control;
use devices::virtio::options::{Options, Pairs};

use super::{Command, Context, command};
use crate::machine::inventory::Plugged;
use crate::qmp::error::{Error, ErrorClass};
use crate::qmp::schema::{Nothing, enumerations, structures};
use crate::qmp::target::Shown;

pub(super) static COMMANDS: &[Command] = &[
    command!("query-block", query_block),
    command!("query-blockstats", query_blockstats),
    command!("query-named-block-nodes", query_named_block_nodes),
    command!("block_resize", block_resize),
    command!("block_set_io_throttle", block_set_io_throttle),
];

enumerations! {
    /// Whether requests wait for somebody to mend something.
    pub enum IoStatus {
        /// No.
        Ok = "ok",
    }
    /// Whether writes of zeroes are looked for.
    pub enum DetectZeroes {
        /// No.
        Off = "off",
        /// Yes.
        On = "on",
        /// Yes, and they free storage.
        Unmap = "unmap",
    }
}

structures! {
    /// A disk.
    pub struct BlockInfo {
        /// The drive's name.
        device: String,
        /// The device that shows it to the guest.
        qdev: Option<String>,
        /// QEMU's own.
        of as "type": String,
        /// Can its medium be taken out?
        removable: bool,
        /// Is it kept in?
        locked: bool,
        /// Its medium.
        inserted: Option<BlockDeviceInfo>,
        /// Does it wait for somebody?
        io_status as "io-status": Option<IoStatus>,
    }
    /// A medium.
    pub struct BlockDeviceInfo {
        /// Its file.
        file: String,
        /// Its node's name.
        node_name as "node-name": Option<String>,
        /// Can it not be written?
        ro: bool,
        /// Its format.
        drv: String,
        /// Images below it.
        backing_file_depth: i64,
        /// Is it encrypted?
        encrypted: bool,
        /// Are writes of zeroes looked for?
        detect_zeroes: DetectZeroes,
        /// Limit of bytes a second; 0 is none.
        bps: i64,
        /// Of those read.
        bps_rd: i64,
        /// Of those written.
        bps_wr: i64,
        /// Limit of requests a second; 0 is none.
        iops: i64,
        /// Of reads.
        iops_rd: i64,
        /// Of writes.
        iops_wr: i64,
        /// The image.
        image: ImageInfo,
        /// How it is cached.
        cache: BlockdevCacheInfo,
        /// QEMU's own.
        write_threshold: i64,
    }
    /// An image.
    pub struct ImageInfo {
        /// Its file.
        filename: String,
        /// Its format.
        format: String,
        /// Was it not closed properly?
        dirty_flag as "dirty-flag": Option<bool>,
        /// Bytes that it takes on the host.
        actual_size as "actual-size": Option<u64>,
        /// Bytes that the guest sees.
        virtual_size as "virtual-size": u64,
    }
    /// How a medium is cached.
    pub struct BlockdevCacheInfo {
        /// Completed writes need a flush to be safe.
        writeback: bool,
        /// The host's page cache is left out.
        direct: bool,
        /// Flushes are not done.
        no_flush as "no-flush": bool,
    }
    struct WithNodes {
        query_nodes as "query-nodes": Option<bool>,
    }
    struct BlockStats {
        device: Option<String>,
        qdev: Option<String>,
        node_name as "node-name": Option<String>,
        stats: BlockDeviceStats,
    }
    struct BlockDeviceStats {
        rd_bytes: u64,
        wr_bytes: u64,
        unmap_bytes: u64,
        rd_operations: u64,
        wr_operations: u64,
        flush_operations: u64,
        unmap_operations: u64,
        rd_total_time_ns: i64,
        wr_total_time_ns: i64,
        flush_total_time_ns: i64,
        unmap_total_time_ns: i64,
        wr_highest_offset: i64,
        rd_merged: u64,
        wr_merged: u64,
        unmap_merged: u64,
        failed_rd_operations: u64,
        failed_wr_operations: u64,
        failed_flush_operations: u64,
        failed_unmap_operations: u64,
        invalid_rd_operations: u64,
        invalid_wr_operations: u64,
        invalid_flush_operations: u64,
        invalid_unmap_operations: u64,
        account_invalid: bool,
        account_failed: bool,
        timed_stats: Vec<Nothing>,
    }
    struct NodesFlat {
        flat: Option<bool>,
    }
    struct Resize {
        device: Option<String>,
        node_name as "node-name": Option<String>,
        size: i64,
    }
    struct Throttle {
        device: Option<String>,
        id: Option<String>,
        bps: i64,
        bps_rd: i64,
        bps_wr: i64,
        iops: i64,
        iops_rd: i64,
        iops_wr: i64,
        bps_max: Option<i64>,
        bps_rd_max: Option<i64>,
        bps_wr_max: Option<i64>,
        iops_max: Option<i64>,
        iops_rd_max: Option<i64>,
        iops_wr_max: Option<i64>,
        bps_max_length: Option<i64>,
        bps_rd_max_length: Option<i64>,
        bps_wr_max_length: Option<i64>,
        iops_max_length: Option<i64>,
        iops_rd_max_length: Option<i64>,
        iops_wr_max_length: Option<i64>,
        iops_size: Option<i64>,
        group: Option<String>,
    }
}

/// A disk that a device shows to the guest.
struct ShownDisk {
    plugged: Arc<Plugged>,
    control: BlockControl,
}

impl ShownDisk {
    /// The name that the user gave the drive; none where the device has its disk among its own options.
    fn drive(&self) -> Option<&str> {
        self.plugged.reference("drive")
    }
}

fn disks(context: &Context<'_>) -> Vec<ShownDisk> {
    let devices = context.target.inventory().list().into_iter();
    let disk = |plugged: Arc<Plugged>| match plugged.control() {
        Control::Block(control) if plugged.slot().is_some() => Some(ShownDisk { plugged, control }),
        _ => None,
    };
    devices.filter_map(disk).collect()
}

/// Drives that no device has, with the options that it would have.
fn idle_drives(context: &Context<'_>, disks: &[ShownDisk]) -> Vec<(String, Pairs)> {
    let backends = context.backends();
    let drives = backends.drives.iter();
    let idle = drives.filter(|(name, _)| !disks.iter().any(|disk| disk.drive() == Some(name.as_str())));
    idle.map(|(name, pairs)| (name.clone(), pairs.clone())).collect()
}

/// What a disk's options, which are those of the device that shows it, say of its medium.
fn medium(name: &str, pairs: &Pairs, control: Option<&BlockControl>) -> BlockDeviceInfo {
    let mut own = Pairs::default();
    let table = devices::virtio::block::options::OPTIONS;
    own.extend(
        pairs
            .iter()
            .filter(|(key, _)| table.iter().any(|spec| spec.name == *key))
            .collect::<Pairs>(),
    );
    let options = Options::read("drive", &own, &[table]).ok();
    let text = |key: &str| {
        options
            .as_ref()
            .and_then(|options| options.text(key))
            .unwrap_or_default()
            .to_owned()
    };
    let file = text("path");
    let metadata = std::fs::metadata(&file).ok();
    let drv = match (text("format").as_str(), file.starts_with("null-co:")) {
        (_, true) => "null-co",
        ("qcow2", _) => "qcow2",
        // What is found without being told is qcow2 too, but who asks can tell raw data from that by the size.
        _ => "raw",
    }
    .to_owned();
    let virtual_size = match control {
        Some(control) => control.disk().sectors() * devices::virtio::block::SECTOR,
        None => metadata.as_ref().map_or(0, std::fs::Metadata::len),
    };
    let cache = text("cache");
    BlockDeviceInfo {
        file: file.clone(),
        node_name: Some(name.to_owned()).filter(|name| !name.is_empty()),
        ro: options.as_ref().is_some_and(|options| options.flag("readonly")),
        drv: drv.clone(),
        backing_file_depth: 0,
        encrypted: false,
        detect_zeroes: match text("detect-zeroes").as_str() {
            "on" => DetectZeroes::On,
            "unmap" => DetectZeroes::Unmap,
            _ => DetectZeroes::Off,
        },
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image: ImageInfo {
            filename: file,
            format: drv,
            dirty_flag: Some(false),
            // The host counts storage in units of 512 bytes, whatever its blocks are (stat(2)).
            actual_size: metadata.map(|metadata| metadata.blocks() * 512),
            virtual_size,
        },
        cache: BlockdevCacheInfo {
            writeback: !matches!(cache.as_str(), "writethrough" | "directsync"),
            direct: matches!(cache.as_str(), "none" | "directsync"),
            no_flush: cache == "unsafe",
        },
        write_threshold: 0,
    }
}

fn query_block(context: &Context<'_>, _: Nothing) -> Result<Vec<BlockInfo>, Error> {
    Ok(all(context))
}

/// All disks: those that devices show, then drives that none does.
pub(super) fn all(context: &Context<'_>) -> Vec<BlockInfo> {
    let disks = disks(context);
    let info = |name: &str, qdev: Option<String>, inserted| BlockInfo {
        device: name.to_owned(),
        of: "unknown".to_owned(),
        // What is in a drive that no device shows can be changed.
        removable: qdev.is_none(),
        qdev,
        locked: false,
        inserted,
        io_status: Some(IoStatus::Ok),
    };
    let shown = disks.iter().map(|disk| {
        let name = disk.drive().unwrap_or_default();
        let medium = medium(name, disk.plugged.pairs(), Some(&disk.control));
        info(name, Some(disk.plugged.backend_path()), Some(medium))
    });
    let idle = idle_drives(context, &disks);
    let idle = idle
        .iter()
        .map(|(name, pairs)| info(name, None, (!pairs.is_empty()).then(|| medium(name, pairs, None))));
    shown.chain(idle).collect()
}

fn query_named_block_nodes(context: &Context<'_>, _: NodesFlat) -> Result<Vec<BlockDeviceInfo>, Error> {
    let media = all(context).into_iter().filter_map(|disk| disk.inserted);
    Ok(media.filter(|medium| medium.node_name.is_some()).collect())
}

fn query_blockstats(context: &Context<'_>, _: WithNodes) -> Result<Vec<BlockStats>, Error> {
    let stats = |disk: &ShownDisk| BlockStats {
        device: Some(disk.drive().unwrap_or_default().to_owned()),
        qdev: Some(disk.plugged.backend_path()),
        node_name: disk.drive().map(str::to_owned),
        stats: device_stats(disk.control.disk().stats()),
    };
    Ok(disks(context).iter().map(stats).collect())
}

fn device_stats(stats: DiskStats) -> BlockDeviceStats {
    let merged = |done: Done| done.requests.saturating_sub(done.transfers);
    BlockDeviceStats {
        rd_bytes: stats.reads.bytes,
        wr_bytes: stats.writes.bytes,
        unmap_bytes: stats.discards.bytes,
        rd_operations: stats.reads.requests,
        wr_operations: stats.writes.requests,
        flush_operations: stats.flushes.requests,
        unmap_operations: stats.discards.requests,
        rd_total_time_ns: 0,
        wr_total_time_ns: 0,
        flush_total_time_ns: 0,
        unmap_total_time_ns: 0,
        wr_highest_offset: 0,
        rd_merged: merged(stats.reads),
        wr_merged: merged(stats.writes),
        unmap_merged: merged(stats.discards),
        failed_rd_operations: stats.reads.failed,
        failed_wr_operations: stats.writes.failed,
        failed_flush_operations: stats.flushes.failed,
        failed_unmap_operations: stats.discards.failed,
        invalid_rd_operations: 0,
        invalid_wr_operations: 0,
        invalid_flush_operations: 0,
        invalid_unmap_operations: 0,
        account_invalid: false,
        account_failed: true,
        timed_stats: Vec::new(),
    }
}

fn block_resize(context: &Context<'_>, arguments: Resize) -> Result<Nothing, Error> {
    let (device, node) = (arguments.device.as_deref(), arguments.node_name.as_deref());
    let disks = disks(context);
    let named = |disk: &&ShownDisk| {
        let drive = disk.drive();
        drive.is_some() && (drive == device || drive == node) || device.is_some() && disk.plugged.id() == device
    };
    let Some(disk) = disks.iter().find(named) else {
        let (device, node) = (device.unwrap_or_default(), node.unwrap_or_default());
        let idle = idle_drives(context, &disks);
        return Err(Error::new(
            match idle.iter().find(|(name, _)| name == device || name == node) {
                Some((name, _)) => format!("'{name}' is not open: no device has it"),
                None => format!("Cannot find device='{device}' nor node-name='{node}'"),
            },
        ));
    };
    let size = u64::try_from(arguments.size).map_err(|_| Error::new("Parameter 'size' expects a >0 size"))?;
    disk.control.resize(size).map_err(Error::new)?;
    Ok(Nothing {})
}

fn block_set_io_throttle(context: &Context<'_>, arguments: Throttle) -> Result<Nothing, Error> {
    let name = arguments.id.as_deref().or(arguments.device.as_deref());
    let name = name.ok_or_else(|| Error::new("Need exactly one of 'device' and 'id'"))?;
    let known =
        |disk: &ShownDisk| disk.drive() == Some(name) || disk.plugged.id() == Some(name) || disk.plugged.path() == name;
    if !disks(context).iter().any(known) {
        return Err(Error::with_class(
            ErrorClass::DeviceNotFound,
            format_args!("Device '{name}' not found"),
        ));
    }
    let Throttle {
        bps,
        bps_rd,
        bps_wr,
        iops,
        iops_rd,
        iops_wr,
        ..
    } = arguments;
    if [bps, bps_rd, bps_wr, iops, iops_rd, iops_wr]
        .iter()
        .any(|limit| *limit != 0)
    {
        return Err(Error::new(
            "There are no limits for disks; limit the process instead, by io.max of its cgroup",
        ));
    }
    Ok(Nothing {})
}
