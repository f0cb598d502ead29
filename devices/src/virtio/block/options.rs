//! What the user may ask of a disk.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::config::DEFAULT_QUEUE_SIZE;

/// How data gets from the guest to the medium; the words are QEMU's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheMode {
    /// Through the host's page cache; the guest sees a write cache and flushes it.
    #[default]
    Writeback,
    /// Past the page cache (O_DIRECT); the guest sees a write cache and flushes it.
    None,
    /// Through the page cache, each write made safe before it is answered.
    Writethrough,
    /// Past the page cache, each write made safe before it is answered.
    Directsync,
    /// As [`Self::Writeback`], and flushes are ignored: for images that nobody will miss.
    Unsafe,
}

impl CacheMode {
    /// All modes by name.
    pub const NAMES: [&'static str; 5] = ["writeback", "none", "writethrough", "directsync", "unsafe"];

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "writeback" => Self::Writeback,
            "none" => Self::None,
            "writethrough" => Self::Writethrough,
            "directsync" => Self::Directsync,
            "unsafe" => Self::Unsafe,
            _ => return None,
        })
    }

    /// Whether the file is opened with O_DIRECT.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether the guest is told of a write cache, until it switches it itself.
    pub fn has_write_cache(self) -> bool {
        !matches!(self, Self::Writethrough | Self::Directsync)
    }
}

/// Who makes the system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AioMode {
    /// The kernel, asynchronously.
    #[default]
    IoUring,
    /// Threads of our own.
    Threads,
}

/// What is in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ImageFormat {
    /// Whatever the file clearly is; never guessed to be raw.
    #[default]
    Auto,
    /// The disk, byte for byte.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

/// What becomes of writes of nothing but zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DetectZeroes {
    /// They are written.
    #[default]
    Off,
    /// The range is made zeroes, which may be cheaper.
    On,
    /// The range is made zeroes and, with `discard=unmap`, loses its storage.
    Unmap,
}

/// A disk as the user wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockConfig {
    /// File, block device or `null-co://[,size=][,read-zeroes=]` (see [`Self::null_size`]).
    pub path: PathBuf,
    /// Name for messages and for management.
    pub id: Option<String>,
    /// What is in the file.
    pub format: ImageFormat,
    /// The guest cannot write.
    pub readonly: bool,
    /// Caching.
    pub cache: CacheMode,
    /// Engine.
    pub aio: AioMode,
    /// What GET_ID answers: at most 20 bytes count.
    pub serial: Option<String>,
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// Whether discards reach the file.
    pub discard: bool,
    /// What becomes of writes of zeroes.
    pub detect_zeroes: DetectZeroes,
    /// Size in bytes of a `null-co://` disk (QEMU's default is 1 GiB).
    pub null_size: u64,
    /// Whether a `null-co://` disk answers reads with zeroes instead of leaving the guest's memory
    /// alone.
    pub null_read_zeroes: bool,
}

impl BlockConfig {
    /// The defaults, for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            id: None,
            format: ImageFormat::default(),
            readonly: false,
            cache: CacheMode::default(),
            aio: AioMode::default(),
            serial: None,
            queues: 1,
            queue_size: DEFAULT_QUEUE_SIZE,
            discard: false,
            detect_zeroes: DetectZeroes::default(),
            null_size: 1 << 30,
            null_read_zeroes: false,
        }
    }

    /// The disk's name in messages.
    pub fn name(&self) -> String {
        match &self.id {
            Some(id) => format!("disk '{id}' ({})", self.path.display()),
            None => format!("disk '{}'", self.path.display()),
        }
    }
}
