//! What a network card is plugged into: the host's side.
//!
//! A [`Backend`] is the whole of it, a tap interface or a socket; for each queue pair it has one
//! [`Endpoint`], which that pair's worker owns and which carries the frames. [`open`] makes both
//! from the user's options: each kind of backend is a row of [`KINDS`].

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::data_path::DataPath;
use super::receive::ReceiveBuffers;
use crate::io_thread::{Interest, Source};
use crate::virtio::info::Host;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

mod capture;
mod datagram;
pub(super) mod hub;
mod none;
mod socket;
pub(super) mod stream;
mod tap;
#[cfg(test)]
pub(super) mod testing;
mod user;
mod vhost_user;

/// The largest frame, with its header, that any backend carries (QEMU's NET_BUFSIZE,
/// include/net/net.h). What is longer is dropped.
pub const MAX_FRAME: usize = 4096 + (64 << 10);

/// What a host can do for the guest with frames that carry a `virtio_net_hdr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Frames carry a `virtio_net_hdr` in front, both ways: checksums and TCP segmentation can be
    /// left to the other side. Without it none of the others counts.
    pub vnet_header: bool,
    /// UDP fragmentation (TUN_F_UFO).
    pub ufo: bool,
    /// UDP segmentation (TUN_F_USO4 and TUN_F_USO6, Linux 6.2).
    pub uso: bool,
}

/// What the driver takes off the host's hands in frames that it receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Incomplete checksums.
    pub csum: bool,
    /// TCP over IPv4, unsegmented.
    pub tso4: bool,
    /// TCP over IPv6, unsegmented.
    pub tso6: bool,
    /// TCP with congestion notification, unsegmented.
    pub ecn: bool,
    /// UDP, not fragmented.
    pub ufo: bool,
    /// UDP, unsegmented.
    pub uso: bool,
}

/// The host's side of a network card as a whole. Called by whoever configures the card, while the
/// [`Endpoint`]s carry frames on other threads.
pub trait Backend: Send + Sync {
    /// One line for the user, as QEMU's `info network` has it: what it is and what it is connected
    /// to.
    fn describe(&self) -> String;

    /// What it can do.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Features that can be offered to the driver, of the card and of its queues. All, for a backend
    /// that leaves the queues to us.
    fn features(&self) -> u64 {
        u64::MAX
    }

    /// Frames carry a header of `len` bytes from now on, 10 or 12. Only called with
    /// [`Capabilities::vnet_header`], and with all queues stopped.
    ///
    /// # Errors
    /// The host cannot.
    fn set_header_len(&self, _len: usize) -> io::Result<()> {
        Ok(())
    }

    /// The host may leave to the guest what `offloads` names, and nothing else. Only called with
    /// [`Capabilities::vnet_header`]; at any time.
    ///
    /// # Errors
    /// The host cannot.
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    /// The first `pairs` queue pairs are in use.
    ///
    /// # Errors
    /// The host cannot.
    fn set_active_pairs(&self, _pairs: u16) -> io::Result<()> {
        Ok(())
    }
}

/// What a worker wants from its endpoint; it decides what is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Frames can be received.
    pub receive: bool,
    /// A frame waits to be sent: the last [`Endpoint::send`] or [`Endpoint::flush`] would have
    /// blocked.
    pub send: bool,
}

impl Wanted {
    /// The one descriptor of an endpoint that has no more of them, watched for what is wanted.
    pub fn watch(self, file: &impl AsRawFd, token: u32) -> Vec<Source> {
        let interest = match (self.receive, self.send) {
            (true, false) => Interest::Input,
            (false, true) => Interest::Output,
            (true, true) => Interest::Both,
            (false, false) => return Vec::new(),
        };
        vec![Source::input(file, token).with(interest)]
    }
}

/// Something that happened to the host's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The cable came out (false) or was put in (true), as far as the guest is concerned.
    Link(bool),
}

/// The host's side of one queue pair. Owned by a worker on an I/O thread; nothing here may block.
///
/// Descriptors are watched edge-triggered: after a call answered `WouldBlock`, the worker calls
/// again when one of [`Self::sources`] is ready.
pub trait Endpoint: Send {
    /// The descriptors to watch. Tokens are the endpoint's own, from 0 to 0xffff.
    fn sources(&self, wanted: Wanted) -> Vec<Source>;

    /// Whether [`Self::sources`] answers otherwise than the last time, for reasons of its own (a
    /// connection came or went). Asked after each call into it.
    fn sources_changed(&self) -> bool {
        false
    }

    /// What [`Self::sources`] answered last is watched, and nothing else: descriptors that are not
    /// needed any more may be closed.
    fn sources_taken(&mut self) {}

    /// A descriptor with this token is ready. The worker tries to receive and to send after it.
    fn ready(&mut self, _token: u32) {}

    /// Something that happened since the last call.
    fn take_event(&mut self) -> Option<Event> {
        None
    }

    /// Receives one frame into `buffers`, with [`ReceiveBuffers::read_from`] (one system call
    /// straight into guest memory) or [`ReceiveBuffers::copy_from`]. Returns its length, which
    /// includes the header if frames carry one; 0 if it turned out to be none.
    ///
    /// # Errors
    /// `WouldBlock` if there is none. Others are reported and taken for `WouldBlock`.
    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize>;

    /// The next frame, if this endpoint has its frames in memory and they carry no header: then it is
    /// copied into the guest's buffers without a list of them for the kernel. `None` if they are to
    /// be [received](Self::receive).
    ///
    /// # Errors
    /// As [`Self::receive`].
    fn next_frame(&mut self) -> Option<io::Result<&[u8]>> {
        None
    }

    /// Sends one frame of at most [`MAX_FRAME`] bytes, the header in front if frames carry one. An
    /// endpoint may keep a copy and send it with others at the next [`Self::flush`].
    ///
    /// # Errors
    /// `WouldBlock` if it was not taken; the worker offers it again later. With any other error it
    /// is lost, which may happen to frames.
    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()>;

    /// Sends what was kept back. Called at the end of each batch.
    ///
    /// # Errors
    /// `WouldBlock` if there is a rest; the worker calls again when the endpoint is ready.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Sends a frame of our own, without a header. It may be lost.
    fn send_bytes(&mut self, frame: &[u8]);
}

/// A backend that is ready, and its endpoints, one for each queue pair.
pub struct Opened {
    /// The whole.
    pub backend: Arc<dyn Backend>,
    /// At least one.
    pub endpoints: Vec<Box<dyn Endpoint>>,
    /// Data paths past us, for each queue pair or for none. The frames of a pair that has one go that
    /// way, and its endpoint is only for frames of our own.
    pub data_paths: Vec<Box<dyn DataPath>>,
    /// Whether the cable is in from the start.
    pub link: bool,
}

impl Opened {
    /// A backend with one queue pair, connected.
    pub fn one(backend: impl Backend + 'static, endpoint: impl Endpoint + 'static) -> Self {
        Self {
            backend: Arc::new(backend),
            endpoints: vec![Box::new(endpoint)],
            data_paths: Vec::new(),
            link: true,
        }
    }
}

/// A kind of backend.
pub struct Kind {
    /// The option that asks for it.
    pub option: &'static str,
    /// Options that mean something with it only.
    pub own: &'static [&'static str],
    /// Opens one. `queues` of the options says how many endpoints; a kind that has only one refuses
    /// more.
    pub open: fn(&Options, &Host) -> Result<Opened, ConfigError>,
}

/// All kinds.
pub static KINDS: &[Kind] = &[
    Kind {
        option: "none",
        own: &[],
        open: none::open,
    },
    Kind {
        option: "user",
        own: &["hostfwd"],
        open: user::open,
    },
    Kind {
        option: "socket",
        own: &[],
        open: stream::open,
    },
    Kind {
        option: "dgram",
        own: &["remote"],
        open: datagram::open,
    },
    Kind {
        option: "hub",
        own: &[],
        open: hub::open,
    },
    Kind {
        option: "tap",
        own: &["vhost"],
        open: tap::open,
    },
    Kind {
        option: "tap-fd",
        own: &["vhost"],
        open: tap::open_inherited,
    },
    Kind {
        option: "vhost-user",
        own: &["reconnect"],
        open: vhost_user::open,
    },
];

/// Opens what `options` ask for. A card for which they name no backend is plugged into nothing,
/// with its link up, as in QEMU.
///
/// # Errors
/// Two backends at once, an option of another backend, or whatever keeps the one from being opened.
pub fn open(options: &Options, host: &Host) -> Result<Opened, ConfigError> {
    let mut named = KINDS.iter().filter(|kind| options.is_given(kind.option));
    let kind = named.next();
    if let (Some(kind), Some(other)) = (kind, named.next()) {
        let problem = format!("{}= and {}= are two networks", kind.option, other.option);
        return Err(options.refused(problem, "give one, and another device for the other"));
    }
    refuse_options_of_others(kind, options)?;
    let opened = match kind {
        Some(kind) => (kind.open)(options, host)?,
        None => none::unconnected(),
    };
    let (wanted, got) = (options.number("queues").unwrap_or(1), opened.endpoints.len());
    if wanted > got as u64 && got == 1 {
        let subject = kind.map_or("a card without a network".to_owned(), |kind| {
            format!("{}=", kind.option)
        });
        return Err(options.refused(
            format!("{subject} has one queue pair, and queues={wanted}"),
            "leave out queues=, or use tap=",
        ));
    }
    capture::wrap(opened, options)
}

/// What would have no effect was not meant so.
fn refuse_options_of_others(kind: Option<&Kind>, options: &Options) -> Result<(), ConfigError> {
    let own = kind.map_or(&[][..], |kind| kind.own);
    for other in KINDS {
        let mut foreign = other.own.iter().filter(|option| !own.contains(option));
        let is_off = |option: &str| options.text(option) == Some("off") || options.number(option) == Some(0);
        if let Some(option) = foreign.find(|option| options.is_given(option) && !is_off(option)) {
            let problem = format!("{option}= is only for a card with {}=", other.option);
            let remedy = match kind {
                Some(_) => format!("leave out {option}="),
                None => format!("name the network, or leave out {option}="),
            };
            return Err(options.refused(problem, remedy));
        }
    }
    Ok(())
}
