//! What the user may ask of a disk.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::config::DEFAULT_QUEUE_SIZE;
use crate::virtio::options::{BOOT_INDEX, ConfigError, IO_THREAD, OptionKind, OptionSpec, Options};

/// The most descriptors of a queue (QEMU's VIRTQUEUE_MAX_SIZE).
const MAX_QUEUE_SIZE: u64 = 1024;
/// The most queues.
const MAX_QUEUES: u64 = 256;

/// What the user may write.
pub static OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("path", OptionKind::Text, "file, block device or null-co://"),
    OptionSpec::new(
        "format",
        OptionKind::Choice(&["auto", "raw", "qcow2"]),
        "what is in the file",
    )
    .or("auto"),
    OptionSpec::new("readonly", OptionKind::Flag, "the guest cannot write").or("off"),
    OptionSpec::new("cache", OptionKind::Choice(&CacheMode::NAMES), "as in QEMU").or("writeback"),
    OptionSpec::new("aio", OptionKind::Choice(&["io_uring", "threads"]), "who does the I/O").or("io_uring"),
    OptionSpec::new("serial", OptionKind::Text, "serial number, up to 20 bytes"),
    OptionSpec::new(
        "queues",
        OptionKind::Number {
            min: 1,
            max: MAX_QUEUES,
        },
        "number of queues",
    )
    .or("1"),
    OptionSpec::new(
        "queue-size",
        OptionKind::Number {
            min: 4,
            max: MAX_QUEUE_SIZE,
        },
        "descriptors of a queue",
    )
    .or("256"),
    BOOT_INDEX,
    IO_THREAD,
    OptionSpec::new(
        "discard",
        OptionKind::Choice(&["ignore", "unmap"]),
        "whether discards free storage",
    )
    .or("ignore"),
    OptionSpec::new(
        "detect-zeroes",
        OptionKind::Choice(&["off", "on", "unmap"]),
        "looks for writes of zeroes",
    )
    .or("off"),
    OptionSpec::new("size", OptionKind::Size, "size of a null-co:// disk").or("1G"),
    OptionSpec::new("read-zeroes", OptionKind::Flag, "a null-co:// disk reads as zeroes").or("off"),
];

/// The number of queues that `options` ask for.
pub(super) fn queues_of(options: &Options) -> u16 {
    let queues = options.number("queues").and_then(|queues| u16::try_from(queues).ok());
    queues.unwrap_or(1)
}

/// The size of each that `options` ask for.
///
/// # Errors
/// It is no power of two.
pub(super) fn queue_size_of(options: &Options) -> Result<u16, ConfigError> {
    let size = options.number("queue-size").and_then(|size| u16::try_from(size).ok());
    match size.unwrap_or(DEFAULT_QUEUE_SIZE) {
        size if size.is_power_of_two() => Ok(size),
        size => Err(options.invalid("queue-size", size, "a power of two")),
    }
}

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

    /// What `options`, read by [`OPTIONS`] and the transport's table, ask for.
    ///
    /// # Errors
    /// A value, or two together, that cannot be.
    pub fn from_options(options: &Options) -> Result<Self, ConfigError> {
        let queue_size = queue_size_of(options)?;
        let discard = options.text("discard") == Some("unmap");
        let detect_zeroes = match options.text("detect-zeroes") {
            Some("on") => DetectZeroes::On,
            Some("unmap") if !discard => {
                return Err(options.refused("detect-zeroes=unmap frees storage", "it takes discard=unmap too"));
            }
            Some("unmap") => DetectZeroes::Unmap,
            _ => DetectZeroes::Off,
        };
        Ok(Self {
            id: options.text("id").map(str::to_owned),
            format: match options.text("format") {
                Some("raw") => ImageFormat::Raw,
                Some("qcow2") => ImageFormat::Qcow2,
                _ => ImageFormat::Auto,
            },
            readonly: options.flag("readonly"),
            cache: options.text("cache").and_then(CacheMode::from_name).unwrap_or_default(),
            aio: if options.text("aio") == Some("threads") {
                AioMode::Threads
            } else {
                AioMode::IoUring
            },
            serial: options.text("serial").map(str::to_owned),
            queues: queues_of(options),
            queue_size,
            discard,
            detect_zeroes,
            null_size: options.number("size").unwrap_or(1 << 30),
            null_read_zeroes: options.flag("read-zeroes"),
            ..Self::new(options.required("path")?)
        })
    }

    /// The disk's name in messages.
    pub fn name(&self) -> String {
        match &self.id {
            Some(id) => format!("disk '{id}' ({})", self.path.display()),
            None => format!("disk '{}'", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::virtio::transport::settings;

    fn read(text: &str) -> Result<BlockConfig, String> {
        let options = Options::parse("virtio-blk-pci", text, &[OPTIONS, settings::OPTIONS]);
        options
            .and_then(|options| BlockConfig::from_options(&options))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_enough_and_everything_else_is_the_default() {
        assert_eq!(read("path=disk.img"), Ok(BlockConfig::new("disk.img")));
        assert!(read("").unwrap_err().contains("path"));
    }

    #[test]
    fn every_option_is_taken() {
        let text = "path=a,id=d0,format=qcow2,readonly=on,cache=none,aio=threads,serial=X1,queues=4,bootindex=1,\
                    iothread=io1,queue-size=128,discard=unmap,detect-zeroes=unmap,size=2G,read-zeroes=on";
        let expected = BlockConfig {
            path: "a".into(),
            id: Some("d0".into()),
            format: ImageFormat::Qcow2,
            readonly: true,
            cache: CacheMode::None,
            aio: AioMode::Threads,
            serial: Some("X1".into()),
            queues: 4,
            queue_size: 128,
            discard: true,
            detect_zeroes: DetectZeroes::Unmap,
            null_size: 2 << 30,
            null_read_zeroes: true,
        };
        assert_eq!(read(text), Ok(expected));
    }

    #[test]
    fn cache_modes_have_the_names_that_are_offered() {
        for name in CacheMode::NAMES {
            let config = read(&format!("path=a,cache={name}")).unwrap();
            assert_eq!(CacheMode::from_name(name), Some(config.cache));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(read("path=a,queue-size=100").unwrap_err().contains("power of two"));
        assert!(
            read("path=a,detect-zeroes=unmap")
                .unwrap_err()
                .contains("discard=unmap")
        );
        for text in [
            "path=a,queues=0",
            "path=a,queue-size=2048",
            "path=a,queue-size=2",
            "path=a,cache=fast",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
