//! What a guest sends and receives, written to a file as wireshark and tshark read it (QEMU's
//! filter-dump): pcap, or pcapng if the file's name ends so, which also tells the directions apart.
//!
//! It stands between the card and any backend. Each frame is in the file, whole and without its
//! `virtio_net_hdr`, before the next one is looked at.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, PcapError};

use super::{Backend, Capabilities, Endpoint, Event, MAX_FRAME, Offloads, Opened, Wanted};
use crate::io_thread::Source;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

/// The longest frame that is written: any. As tcpdump and wireshark have it.
const SNAPLEN: u32 = 262_144;

/// In a description of an interface, times are in units of 10 to the minus 9 seconds, as the
/// library writes them.
const NANOSECONDS: u8 = 9;

/// The header of frames before anybody has said how long it is.
const LEGACY_HEADER: usize = 10;

/// Puts what goes through `opened` into the file of `capture=`, if that is given.
///
/// # Errors
/// The file cannot be made.
pub(super) fn wrap(opened: Opened, options: &Options) -> Result<Opened, ConfigError> {
    let Some(path) = options.text("capture").map(Path::new) else {
        return Ok(opened);
    };
    let past_us = [
        (options.text("vhost") == Some("on"), "the kernel", "vhost=on"),
        (options.is_given("vhost-user"), "another process", "capture="),
    ];
    if let Some((_, who, what)) = past_us
        .into_iter()
        .find(|(given, ..)| *given && !opened.data_paths.is_empty())
    {
        let problem = format!("capture= sees nothing of what {who} carries");
        return Err(options.refused(problem, format!("leave out {what}")));
    }
    if !opened.data_paths.is_empty() {
        tracing::warn!(
            "{}: the kernel's vhost-net would pass by capture=: frames go through this process",
            options.subject()
        );
    }
    let capture = Capture::create(path).map_err(|error| {
        let problem = format!("capture={}: {error}", path.display());
        options.refused(problem, "give a file that can be written")
    })?;
    let has_header = opened.backend.capabilities().vnet_header;
    let header_len = Arc::new(AtomicUsize::new(if has_header { LEGACY_HEADER } else { 0 }));
    let capture = Arc::new(capture);
    let endpoint = |inner| -> Box<dyn Endpoint> {
        let (capture, header_len) = (Arc::clone(&capture), Arc::clone(&header_len));
        let frame = vec![0; MAX_FRAME];
        Box::new(CapturedEndpoint {
            inner,
            capture,
            header_len,
            frame,
        })
    };
    let endpoints = opened.endpoints.into_iter().map(endpoint).collect();
    let inner = opened.backend;
    Ok(Opened {
        backend: Arc::new(Captured { inner, header_len }),
        endpoints,
        data_paths: Vec::new(),
        link: opened.link,
    })
}

/// Which way a frame goes, as the guest's card sees it; the number is that of epb_flags (pcapng,
/// section 4.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Received = 1,
    Sent = 2,
}

/// The file.
struct Capture {
    path: PathBuf,
    /// `None` once it could not be written to.
    sink: Mutex<Option<Sink>>,
}

impl Capture {
    fn create(path: &Path) -> io::Result<Self> {
        let mut sink = Sink::create(path).map_err(reason)?;
        sink.write_through()?;
        Ok(Self {
            path: path.to_owned(),
            sink: Mutex::new(Some(sink)),
        })
    }

    fn write(&self, direction: Direction, frame: &[u8]) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = sink.as_mut() else { return };
        let written = open.write(direction, frame).map_err(reason);
        if let Err(error) = written.and_then(|()| open.write_through()) {
            let path = self.path.display();
            tracing::warn!("capture={path}: {error}; nothing more is written to it, and the network goes on");
            *sink = None;
        }
    }
}

/// A writer of the library, and the file behind it.
struct Sink {
    format: Format,
    pending: Pending,
    file: File,
}

enum Format {
    Pcap(PcapWriter<Pending>),
    PcapNg(PcapNgWriter<Pending>),
}

impl Sink {
    fn create(path: &Path) -> Result<Self, PcapError> {
        let file = File::create(path).map_err(PcapError::IoError)?;
        let pending = Pending::default();
        let format = if path.extension().is_some_and(|extension| extension == "pcapng") {
            let mut writer = PcapNgWriter::new(pending.clone())?;
            writer.write_pcapng_block(InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: SNAPLEN,
                options: vec![InterfaceDescriptionOption::IfTsResol(NANOSECONDS)],
            })?;
            Format::PcapNg(writer)
        } else {
            let header = PcapHeader {
                snaplen: SNAPLEN,
                datalink: DataLink::ETHERNET,
                ..PcapHeader::default()
            };
            Format::Pcap(PcapWriter::with_header(pending.clone(), header)?)
        };
        Ok(Self { format, pending, file })
    }

    fn write(&mut self, direction: Direction, frame: &[u8]) -> Result<(), PcapError> {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Frames are far shorter than 4 GiB.
        let original_len = frame.len() as u32;
        match &mut self.format {
            Format::Pcap(writer) => writer.write_packet(&PcapPacket::new(timestamp, original_len, frame)),
            Format::PcapNg(writer) => writer.write_pcapng_block(EnhancedPacketBlock {
                interface_id: 0,
                timestamp,
                original_len,
                data: Cow::Borrowed(frame),
                options: vec![EnhancedPacketOption::Flags(direction as u32)],
            }),
        }
        .map(drop)
    }

    /// What was written goes to the file, where others can read it.
    fn write_through(&mut self) -> io::Result<()> {
        self.pending.drain_to(&mut self.file)
    }
}

/// The library says of an error of the host only that there is one.
fn reason(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// What a writer of the library has written, a few bytes at a time.
#[derive(Clone, Default)]
struct Pending(Arc<Mutex<Vec<u8>>>);

impl Pending {
    fn drain_to(&self, file: &mut File) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&bytes)?;
        bytes.clear();
        Ok(())
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A backend whose frames are written down.
struct Captured {
    inner: Arc<dyn Backend>,
    header_len: Arc<AtomicUsize>,
}

impl Backend for Captured {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.inner.set_header_len(len)?;
        self.header_len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn set_active_pairs(&self, pairs: u16) -> io::Result<()> {
        self.inner.set_active_pairs(pairs)
    }
}

/// An endpoint whose frames are written down.
struct CapturedEndpoint {
    inner: Box<dyn Endpoint>,
    capture: Arc<Capture>,
    header_len: Arc<AtomicUsize>,
    /// Room for a frame.
    frame: Vec<u8>,
}

impl CapturedEndpoint {
    /// Writes down the first `len` bytes of `self.frame`.
    fn write(&self, direction: Direction, len: usize) {
        let header_len = self.header_len.load(Ordering::Relaxed);
        if let Some(frame) = self.frame.get(header_len..len) {
            self.capture.write(direction, frame);
        }
    }
}

impl Endpoint for CapturedEndpoint {
    fn sources(&self, wanted: Wanted) -> Vec<Source> {
        self.inner.sources(wanted)
    }

    fn sources_changed(&self) -> bool {
        self.inner.sources_changed()
    }

    fn sources_taken(&mut self) {
        self.inner.sources_taken();
    }

    fn ready(&mut self, token: u32) {
        self.inner.ready(token);
    }

    fn take_event(&mut self) -> Option<Event> {
        self.inner.take_event()
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        let len = self.inner.receive(buffers)?;
        let room = self.frame.get_mut(..len).unwrap_or_default();
        let copied = buffers.copy_to(room);
        self.write(Direction::Received, copied);
        Ok(len)
    }

    fn send(&mut self, frame: &GuestIoVec) -> io::Result<()> {
        self.inner.send(frame)?;
        let copied = frame.copy_to(&mut self.frame);
        self.write(Direction::Sent, copied);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        self.inner.send_bytes(frame);
        self.capture.write(Direction::Sent, frame);
    }
}

#[cfg(test)]
mod tests;
