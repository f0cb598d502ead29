//! A disk as its queues share it: the image, and what the user and the driver have set.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::SECTOR;
use super::backend::{self, Image};
use super::counters::{Counters, DiskStats};
use super::options::{AioMode, BlockConfig, CacheMode, DetectZeroes};
use super::request::{ID_BYTES, Limits, Op, Range};
use super::transfer::Manner;
use crate::virtio::listeners::Listeners;
use crate::virtio::options::ConfigError;
use crate::virtio::report::Reporter;

/// A request that the host could not do; the guest sees an I/O error.
#[derive(Debug)]
pub struct DiskFailure {
    /// It was to read; else it was to change something.
    pub is_read: bool,
    /// What the host says.
    pub error: io::Error,
}

/// An open disk.
pub struct Disk {
    name: String,
    image: Arc<dyn Image>,
    sectors: AtomicU64,
    write_cache: AtomicBool,
    readonly: bool,
    cache: CacheMode,
    aio: AioMode,
    discard: bool,
    detect_zeroes: DetectZeroes,
    serial: [u8; ID_BYTES],
    serial_bytes: usize,
    reporter: Reporter,
    listeners: Listeners<DiskFailure>,
    counters: Counters,
}

impl Disk {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// What cannot be, with what to do about it.
    pub fn open(config: &BlockConfig) -> Result<Arc<Self>, ConfigError> {
        let image = backend::open(config)?;
        Self::on(image, config)
    }

    /// A disk on an image that is open already.
    ///
    /// # Errors
    /// The image does not tell its size.
    pub fn on(image: Arc<dyn Image>, config: &BlockConfig) -> Result<Arc<Self>, ConfigError> {
        let bytes = image.bytes().map_err(|error| {
            ConfigError::refused(config.name(), format!("does not tell its size: {error}"), "check path=")
        })?;
        let mut serial = [0; ID_BYTES];
        let text = config.serial.as_deref().unwrap_or_default().as_bytes();
        let len = text.len().min(ID_BYTES);
        serial[..len].copy_from_slice(&text[..len]);
        Ok(Arc::new(Self {
            name: config.name(),
            image,
            sectors: AtomicU64::new(sectors(bytes)),
            write_cache: AtomicBool::new(config.cache.has_write_cache()),
            readonly: config.readonly,
            cache: config.cache,
            aio: config.aio,
            discard: config.discard,
            detect_zeroes: config.detect_zeroes,
            serial,
            // With the zero that ends it, if there is room (QEMU, `virtio_blk_handle_request`).
            serial_bytes: (len + 1).min(ID_BYTES),
            reporter: Reporter::default(),
            listeners: Listeners::default(),
            counters: Counters::default(),
        }))
    }

    /// How the disk is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The storage.
    pub fn image(&self) -> &Arc<dyn Image> {
        &self.image
    }

    /// The engine that the user asked for.
    pub fn aio(&self) -> AioMode {
        self.aio
    }

    /// Size in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Whether the guest cannot write.
    pub fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// Whether completed writes are safe only after a flush.
    pub fn has_write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Acquire)
    }

    /// The driver switches the write cache.
    pub fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Release);
    }

    /// The write cache as the user configured it.
    pub fn reset_write_cache(&self) {
        self.set_write_cache(self.cache.has_write_cache());
    }

    /// What it has done so far.
    pub fn stats(&self) -> DiskStats {
        self.counters.sums()
    }

    /// Where that is counted.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What requests are held against.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            sectors: self.sectors(),
            readonly: self.readonly,
        }
    }

    /// The bytes that GET_ID answers with.
    pub(super) fn serial(&self) -> &[u8] {
        self.serial.get(..self.serial_bytes).unwrap_or_default()
    }

    /// How transfers are made now.
    pub(super) fn manner(&self) -> Manner {
        Manner {
            memory_alignment: self.image.as_raw().map_or(1, backend::RawImage::memory_alignment),
            write_through: !self.has_write_cache() && self.cache != CacheMode::Unsafe,
        }
    }

    /// What is really done for an operation; `None` if nothing is.
    pub(super) fn effective(&self, op: Op) -> Option<Op> {
        match op {
            Op::Flush => (self.cache != CacheMode::Unsafe).then_some(op),
            Op::Discard => self.discard.then_some(op),
            Op::WriteZeroes { unmap } => Some(Op::WriteZeroes {
                unmap: unmap && self.discard,
            }),
            Op::Read | Op::Write => Some(op),
        }
    }

    /// What is done instead of a write of zeroes, if anything.
    pub(super) fn for_zeroes(&self) -> Option<Op> {
        match self.detect_zeroes {
            DetectZeroes::Off => None,
            DetectZeroes::On => Some(Op::WriteZeroes { unmap: false }),
            DetectZeroes::Unmap => Some(Op::WriteZeroes { unmap: self.discard }),
        }
    }

    /// Asks the image for its size. Returns whether it is another one than before.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn refresh(&self) -> io::Result<bool> {
        let sectors = sectors(self.image.bytes()?);
        Ok(self.sectors.swap(sectors, Ordering::AcqRel) != sectors)
    }

    /// Changes the size of the image. Returns whether the guest sees another one than before.
    ///
    /// # Errors
    /// The host or the format cannot.
    pub fn resize(&self, bytes: u64) -> io::Result<bool> {
        if self.readonly {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let shrinks = bytes < self.image.bytes()?;
        if shrinks {
            // Requests are refused before what they want is gone.
            self.sectors.fetch_min(sectors(bytes), Ordering::AcqRel);
        }
        self.image.resize(bytes)?;
        Ok(self.refresh()? || shrinks)
    }

    /// Calls `listener` for each request that fails from now on, on the I/O thread of its queue: it must not wait for anything.
    pub fn on_failure(&self, listener: impl Fn(&DiskFailure) + Send + 'static) {
        self.listeners.add(listener);
    }

    /// Tells the user, and who wants to know, that the host failed.
    pub(super) fn report_failure(&self, op: Op, range: Range, error: &io::Error) {
        let Range { offset, len } = range;
        let verb = match op {
            Op::Read => "reading",
            Op::Write => "writing",
            Op::Flush => "flushing",
            Op::Discard => "discarding",
            Op::WriteZeroes { .. } => "zeroing",
        };
        self.reporter.warn(format_args!(
            "{}: {verb} {len} bytes at {offset}: {error}; the guest sees an I/O error",
            self.name
        ));
        self.listeners.tell(&DiskFailure {
            is_read: op == Op::Read,
            error: copy(error),
        });
    }

    /// Tells the user something else about the disk.
    pub(super) fn report(&self, line: fmt::Arguments<'_>) {
        self.reporter.warn(format_args!("{}: {line}", self.name));
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.name)
            .field("sectors", &self.sectors())
            .finish_non_exhaustive()
    }
}

/// The same error once more; of one that did not come from the system its kind.
fn copy(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// A part of a sector counts as one, as in QEMU. All of a disk can be named by a signed 64-bit
/// offset.
fn sectors(bytes: u64) -> u64 {
    bytes
        .min(i64::MAX as u64)
        .div_ceil(SECTOR)
        .min(i64::MAX as u64 / SECTOR)
}
