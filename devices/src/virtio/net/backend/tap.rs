//! A tap interface of the host, by its name or as descriptors that somebody else has opened.
//!
//! Each queue pair has a descriptor of its own (IFF_MULTI_QUEUE with more than one). Frames carry a
//! `virtio_net_hdr` of the length that the driver uses, so they go between the guest's memory and
//! the kernel as they are.

#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;

use super::{Backend, Capabilities, Endpoint, Offloads, Opened, Wanted};
use crate::io_thread::Source;
use crate::sys::{fd, tun};
use crate::virtio::info::Host;
use crate::virtio::net::data_path::DataPath;
use crate::virtio::net::options::descriptors;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::net::vhost::VhostPair;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

/// Where interfaces come from.
const DEVICE: &str = "/dev/net/tun";

/// What every interface of ours is: Ethernet, without the kernel's own packet information, with a
/// `virtio_net_hdr`.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Bytes of the header of a legacy driver without mergeable buffers, with which an interface begins.
const LEGACY_HEADER: usize = 10;

/// Bytes of the longest header.
const MODERN_HEADER: usize = 12;

/// `tap=NAME`: an interface that is there, or a new one that goes when we do.
pub(super) fn open(options: &Options, host: &Host) -> Result<Opened, ConfigError> {
    let name = options.required("tap")?;
    let queues = options.number("queues").unwrap_or(1);
    let files = open_queues(name, queues).map_err(|error| {
        let (problem, remedy) = explain(name, queues, &error);
        options.refused(format!("tap={name}: {problem}"), remedy)
    })?;
    let vhost = vhost_pairs(&files, options, host)?;
    connect(files, vhost).map_err(|error| {
        let problem = format!("tap={name}: {error}");
        options.refused(problem, "its kernel is too old for a header in front of frames")
    })
}

/// `tap-fd=N[,N...]`: one descriptor for each queue pair; `queues=` need not say how many.
pub(super) fn open_inherited(options: &Options, host: &Host) -> Result<Opened, ConfigError> {
    let list = options.required("tap-fd")?;
    let numbers: Result<Vec<i32>, _> = descriptors(list).map(str::parse).collect();
    let numbers = numbers.map_err(|_| options.invalid("tap-fd", list, "descriptors such as 3 or 3,4"))?;
    let queues = options.number("queues").unwrap_or(1);
    if queues > 1 && queues != numbers.len() as u64 {
        let problem = format!("tap-fd={list} and queues={queues} are not the same number");
        return Err(options.refused(problem, "give a descriptor for each queue pair, or leave out queues="));
    }
    let mut files: Vec<File> = Vec::new();
    for number in numbers {
        let refused = |problem: String, remedy: &str| options.refused(format!("tap-fd={number}: {problem}"), remedy);
        let file = fd::inherited(number).map(File::from).map_err(|error| {
            let remedy = "open it before innkeeper starts, as with '3<>/dev/tapN' in a shell";
            refused(error.to_string(), remedy)
        })?;
        let interface = tun::interface(&file).map_err(|_| {
            let remedy = "give one that TUNSETIFF has made a queue of a tap interface";
            refused("is no tap interface".to_owned(), remedy)
        })?;
        for flag in [libc::IFF_TAP, libc::IFF_NO_PI, libc::IFF_VNET_HDR] {
            if !interface.has(flag) {
                let problem = format!("interface '{}' is not as it has to be", interface.name);
                let remedy = "open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
                return Err(refused(problem, remedy));
            }
        }
        files.push(file);
    }
    let vhost = vhost_pairs(&files, options, host)?;
    connect(files, vhost)
        .map_err(|error| options.refused(format!("tap-fd={list}: {error}"), "give queues of one interface"))
}

/// Opens the descriptors of `name`, which is made if there is no such interface.
fn open_queues(name: &str, queues: u64) -> io::Result<Vec<File>> {
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut files = Vec::new();
    let mut name = name.to_owned();
    for _ in 0..queues {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)?;
        name = match tun::attach(&file, &name, FLAGS | several) {
            // One that was made for several queues takes one only if it is told so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && queues == 1 => {
                tun::attach(&file, &name, FLAGS | libc::IFF_MULTI_QUEUE).map_err(|_| error)?
            }
            attached => attached?,
        };
        files.push(file);
    }
    Ok(files)
}

/// What is wrong, and what to do about it.
fn explain(name: &str, queues: u64, error: &io::Error) -> (String, String) {
    let for_queues = if queues > 1 { " multi_queue" } else { "" };
    let any = name.is_empty() || name.contains('%');
    let make = format!(
        "'sudo ip tuntap add {} mode tap user $USER{for_queues}'",
        if any { "tap0" } else { name }
    );
    let exists = exists(name);
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => (
            format!("{DEVICE}: {error}"),
            "load it with 'sudo modprobe tun'".to_owned(),
        ),
        Some(libc::EACCES) => (
            format!("{DEVICE}: {error}"),
            format!("allow it with 'sudo chmod 666 {DEVICE}'"),
        ),
        Some(libc::EPERM) if exists => (
            "it belongs to another user".to_owned(),
            format!("delete it and make it yours with {make}"),
        ),
        Some(libc::EPERM) if any => (
            "to make an interface takes root".to_owned(),
            format!("make one once with {make}, and say tap0"),
        ),
        Some(libc::EPERM) => (
            "there is no such interface, and to make one takes root".to_owned(),
            format!("make it once with {make}"),
        ),
        Some(libc::EBUSY) => ("it is in use".to_owned(), "end who uses it, or take another".to_owned()),
        Some(libc::EINVAL) if exists => (
            "it takes one queue pair, or is no tap interface".to_owned(),
            format!("delete it and make it with {make}"),
        ),
        Some(libc::E2BIG) => ("it has no more queues".to_owned(), "lower queues=".to_owned()),
        _ => (
            error.to_string(),
            format!("a name has at most {} letters", tun::NAME_MAX),
        ),
    }
}

/// Whether there is an interface of that name.
fn exists(name: &str) -> bool {
    // One line each, behind two of a table's head: "  eth0: 1234 ...".
    let interfaces = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let mut names = interfaces.lines().filter_map(|line| line.split_once(':'));
    names.any(|(found, _)| found.trim_start() == name)
}

/// The kernel's data path for each of these queues, if the user wants it.
fn vhost_pairs(files: &[File], options: &Options, host: &Host) -> Result<Vec<Box<dyn DataPath>>, ConfigError> {
    let is_optional = match options.text("vhost") {
        Some("on") => false,
        Some("auto") => true,
        _ => return Ok(Vec::new()),
    };
    let pair = |file: &File| -> io::Result<Box<dyn DataPath>> {
        Ok(Box::new(VhostPair::open(&host.memory, file.try_clone()?)?))
    };
    let pairs: io::Result<Vec<_>> = files.iter().map(pair).collect();
    pairs.or_else(|error| {
        if is_optional {
            tracing::warn!(
                "{}: no vhost-net ({error}): frames go through this process",
                options.subject()
            );
            return Ok(Vec::new());
        }
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "load it with 'sudo modprobe vhost_net', or use vhost=auto",
            io::ErrorKind::PermissionDenied => "allow it with 'sudo chmod 666 /dev/vhost-net', or use vhost=auto",
            _ => "use vhost=auto",
        };
        Err(options.refused(format!("vhost=on: /dev/vhost-net: {error}"), remedy))
    })
}

/// Makes the backend of open descriptors.
fn connect(files: Vec<File>, data_paths: Vec<Box<dyn DataPath>>) -> io::Result<Opened> {
    let first = files.first().ok_or(io::ErrorKind::InvalidInput)?;
    let interface = tun::interface(first)?;
    let has = |offloads| tun::set_offloads(first, offloads).is_ok();
    let capabilities = Capabilities {
        vnet_header: true,
        ufo: has(libc::TUN_F_CSUM | libc::TUN_F_UFO),
        uso: has(libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6),
    };
    let header_len = Arc::new(AtomicUsize::new(LEGACY_HEADER));
    let queues: io::Result<Vec<Queue>> = files.iter().map(Queue::of).collect();
    let tap = Tap {
        name: interface.name,
        capabilities,
        queues: Mutex::new(queues?),
        header_len: Arc::clone(&header_len),
        in_kernel: !data_paths.is_empty(),
    };
    tap.set_header_len(LEGACY_HEADER)?;
    tap.set_offloads(Offloads::default())?;
    tap.set_active_pairs(1)?;
    let endpoint = |file| -> Box<dyn Endpoint> {
        let header_len = Arc::clone(&header_len);
        Box::new(TapQueue { file, header_len })
    };
    Ok(Opened {
        endpoints: files.into_iter().map(endpoint).collect(),
        backend: Arc::new(tap),
        data_paths,
        link: true,
    })
}

/// The interface.
struct Tap {
    name: String,
    capabilities: Capabilities,
    /// Never empty.
    queues: Mutex<Vec<Queue>>,
    /// Shared with the endpoints.
    header_len: Arc<AtomicUsize>,
    /// The kernel serves the guest's queues too.
    in_kernel: bool,
}

/// A queue, for its settings; frames go through its [`TapQueue`].
struct Queue {
    file: File,
    attached: bool,
}

impl Queue {
    fn of(file: &File) -> io::Result<Self> {
        let (file, attached) = (file.try_clone()?, true);
        Ok(Self { file, attached })
    }

    /// The kernel spreads frames over the queues that are attached.
    fn attach(&mut self, attached: bool) -> io::Result<()> {
        if self.attached != attached {
            tun::set_attached(&self.file, attached)?;
            self.attached = attached;
        }
        Ok(())
    }
}

impl Tap {
    /// Calls `set` with the first queue, which is always attached; what is set holds for all.
    fn with_first<T>(&self, set: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        set(&queues.first().ok_or(io::ErrorKind::NotFound)?.file)
    }
}

impl Backend for Tap {
    fn describe(&self) -> String {
        format!("tap interface {}", self.name)
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// vhost-net does not know that a queue can be reset, and QEMU does not offer it then either.
    fn features(&self) -> u64 {
        if self.in_kernel {
            !(1 << VIRTIO_F_RING_RESET)
        } else {
            u64::MAX
        }
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        let bytes = c_int::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.with_first(|file| tun::set_header_len(file, bytes))?;
        self.header_len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.with_first(|file| tun::set_offloads(file, tun_offloads(offloads)))
    }

    fn set_active_pairs(&self, pairs: u16) -> io::Result<()> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let active = usize::from(pairs.max(1));
        let mut numbered = queues.iter_mut().enumerate();
        numbered.try_for_each(|(index, queue)| queue.attach(index < active))
    }
}

/// The bits of TUNSETOFFLOAD. Those that the kernel refuses without another are left out without
/// it; a driver may have asked for such a set.
fn tun_offloads(offloads: Offloads) -> u32 {
    if !offloads.csum {
        return 0;
    }
    let tso = offloads.tso4 || offloads.tso6;
    let bits = [
        (true, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (tso && offloads.ecn, libc::TUN_F_TSO_ECN),
        (offloads.ufo, libc::TUN_F_UFO),
        (offloads.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    let wanted = bits.iter().filter(|(wanted, _)| *wanted);
    wanted.fold(0, |all, (_, bit)| all | bit)
}

/// One queue of the interface.
struct TapQueue {
    file: File,
    header_len: Arc<AtomicUsize>,
}

impl Endpoint for TapQueue {
    fn sources(&self, wanted: Wanted) -> Vec<Source> {
        wanted.watch(&self.file, 0)
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        buffers.read_from(&self.file).map_err(detached_is_idle)
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        frame.write(self.file.as_fd()).map(drop)
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        let len = self.header_len.load(Ordering::Relaxed).min(MODERN_HEADER);
        let header = [0; MODERN_HEADER];
        let pieces = [header.get(..len).unwrap_or_default(), frame].map(IoSlice::new);
        // It may be lost.
        let _ = (&self.file).write_vectored(&pieces);
    }
}

/// A queue that does not take part, or whose interface is gone, answers EBADFD: nothing comes.
fn detached_is_idle(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EBADFD) => io::ErrorKind::WouldBlock.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
