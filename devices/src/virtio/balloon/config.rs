//! Features, queues and configuration of a balloon, with QEMU's defaults (hw/virtio/virtio-balloon.c).

#![forbid(unsafe_code)]

use crate::virtio::options::{ConfigError, OptionKind, OptionSpec, Options};

/// Feature bits (virtio 1.3, 5.5.3).
pub mod feature {
    /// A queue of statistics.
    pub const STATS_VQ: u32 = 1;
    /// The driver deflates before its guest runs out of memory.
    pub const DEFLATE_ON_OOM: u32 = 2;
    /// A queue of hints at free pages, while the device asks for them.
    pub const FREE_PAGE_HINT: u32 = 3;
    /// The driver says what free pages are filled with.
    pub const PAGE_POISON: u32 = 4;
    /// A queue of reports of free pages, whenever there are some.
    pub const PAGE_REPORTING: u32 = 5;
}

/// Names of the options.
pub(super) mod name {
    pub const TARGET: &str = "target";
    pub const DEFLATE_ON_OOM: &str = "deflate-on-oom";
    pub const FREE_PAGE_HINT: &str = "free-page-hint";
    pub const FREE_PAGE_REPORTING: &str = "free-page-reporting";
    pub const PAGE_POISON: &str = "page-poison";
    pub const POLLING: &str = "guest-stats-polling-interval";
    pub const IO_THREAD: &str = "iothread";
}

/// What the user can say.
pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        name::TARGET,
        OptionKind::Size,
        "the memory that the guest is to keep; all of it if not given",
    ),
    OptionSpec::new(
        name::DEFLATE_ON_OOM,
        OptionKind::Flag,
        "the guest takes memory back before it runs out",
    )
    .or("off"),
    OptionSpec::new(
        name::FREE_PAGE_REPORTING,
        OptionKind::Flag,
        "the guest reports free pages, which go back to the host until it uses them",
    )
    .or("off"),
    OptionSpec::new(
        name::FREE_PAGE_HINT,
        OptionKind::Flag,
        "the guest hints at free pages when asked",
    )
    .or("off"),
    OptionSpec::new(
        name::PAGE_POISON,
        OptionKind::Flag,
        "the guest may say what its free pages are filled with",
    )
    .or("on"),
    OptionSpec::new(
        name::POLLING,
        OptionKind::Number {
            min: 0,
            max: u32::MAX as u64,
        },
        "seconds between two requests for statistics of the guest; 0 is never",
    )
    .or("0"),
    OptionSpec::new(name::IO_THREAD, OptionKind::Text, "the I/O thread that serves it"),
];

/// A queue by what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueKind {
    /// Pages that the driver gives.
    Inflate,
    /// Pages that it takes back.
    Deflate,
    /// Statistics.
    Stats,
    /// Hints at free pages.
    Hint,
    /// Reports of free pages.
    Report,
}

impl QueueKind {
    /// The most descriptors.
    pub fn size(self) -> u16 {
        match self {
            Self::Inflate | Self::Deflate | Self::Stats => 128,
            Self::Hint => 1024,
            Self::Report => 32,
        }
    }
}

/// What the user asked for, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BalloonConfig {
    /// Bytes that the guest is to keep; `None` is all.
    pub target: Option<u64>,
    /// Offer DEFLATE_ON_OOM.
    pub deflate_on_oom: bool,
    /// Offer FREE_PAGE_HINT.
    pub free_page_hint: bool,
    /// Offer PAGE_REPORTING.
    pub free_page_reporting: bool,
    /// Offer PAGE_POISON.
    pub page_poison: bool,
    /// Seconds between two requests for statistics; 0 is never.
    pub polling: u32,
}

impl Default for BalloonConfig {
    /// QEMU's.
    fn default() -> Self {
        Self {
            target: None,
            deflate_on_oom: false,
            free_page_hint: false,
            free_page_reporting: false,
            page_poison: true,
            polling: 0,
        }
    }
}

impl BalloonConfig {
    /// Reads the options of a guest with `ram` bytes of memory.
    ///
    /// # Errors
    /// The target is nothing, or more than there is.
    pub fn from_options(options: &Options, ram: u64) -> Result<Self, ConfigError> {
        let target = options.number(name::TARGET);
        if let Some(bytes) = target.filter(|bytes| !(1..=ram).contains(bytes)) {
            let expected = format_args!("1 byte to the {}M of the guest", ram >> 20);
            return Err(options.invalid(name::TARGET, bytes, expected));
        }
        let polling = options.number(name::POLLING).unwrap_or(0);
        Ok(Self {
            target,
            deflate_on_oom: options.flag(name::DEFLATE_ON_OOM),
            free_page_hint: options.flag(name::FREE_PAGE_HINT),
            free_page_reporting: options.flag(name::FREE_PAGE_REPORTING),
            page_poison: options.flag(name::PAGE_POISON),
            polling: u32::try_from(polling).unwrap_or(u32::MAX),
        })
    }

    /// The feature bits that are offered.
    pub fn features(&self) -> u64 {
        let bits = [
            (feature::STATS_VQ, true),
            (feature::DEFLATE_ON_OOM, self.deflate_on_oom),
            (feature::FREE_PAGE_HINT, self.free_page_hint),
            (feature::PAGE_POISON, self.page_poison),
            (feature::PAGE_REPORTING, self.free_page_reporting),
        ];
        bits.iter()
            .filter(|(_, offered)| *offered)
            .fold(0, |word, (bit, _)| word | 1 << bit)
    }

    /// The queues, by index. Those of features that are not offered are left out, and the ones
    /// behind them move up, as in QEMU.
    pub fn queues(&self) -> Vec<QueueKind> {
        let optional = [
            (QueueKind::Hint, self.free_page_hint),
            (QueueKind::Report, self.free_page_reporting),
        ];
        let offered = optional.into_iter().filter(|(_, offered)| *offered);
        [QueueKind::Inflate, QueueKind::Deflate, QueueKind::Stats]
            .into_iter()
            .chain(offered.map(|(kind, _)| kind))
            .collect()
    }

    /// Bytes of configuration: up to the last field that an offered feature has.
    pub fn config_len(&self) -> usize {
        if self.page_poison {
            ConfigSpace::BYTES
        } else if self.free_page_hint {
            12
        } else {
            8
        }
    }
}

/// `struct virtio_balloon_config` (virtio 1.3, 5.5.4). Little-endian on both faces.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ConfigSpace {
    /// Pages that the device wants in the balloon.
    pub num_pages: u32,
    /// Pages that the driver says are in it.
    pub actual: u32,
    /// Which round of hints is asked for.
    pub hint_command: u32,
    /// What free pages are filled with.
    pub poison: u32,
}

impl ConfigSpace {
    /// Bytes of the whole structure.
    pub const BYTES: usize = 16;

    /// As the driver sees it.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let fields = [self.num_pages, self.actual, self.hint_command, self.poison];
        let mut bytes = [0; Self::BYTES];
        for (place, field) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *place = field.to_le_bytes();
        }
        bytes
    }

    /// The fields after the driver has written `data` at `offset` of a structure of `len` bytes. A
    /// write that goes past the end does nothing, as in QEMU.
    #[must_use]
    pub fn written(self, len: usize, offset: u32, data: &[u8]) -> Self {
        let mut bytes = self.to_bytes();
        let there = bytes
            .get_mut(..len)
            .and_then(|bytes| bytes.get_mut(offset as usize..))
            .and_then(|bytes| bytes.get_mut(..data.len()));
        if let Some(there) = there {
            there.copy_from_slice(data);
        }
        let mut fields = bytes.as_chunks::<4>().0.iter().map(|field| u32::from_le_bytes(*field));
        let mut next = || fields.next().unwrap_or_default();
        Self {
            num_pages: next(),
            actual: next(),
            hint_command: next(),
            poison: next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BalloonConfig {
        BalloonConfig {
            deflate_on_oom: true,
            free_page_hint: true,
            free_page_reporting: true,
            ..BalloonConfig::default()
        }
    }

    #[test]
    fn features_are_qemus() {
        assert_eq!(BalloonConfig::default().features(), 0x12);
        assert_eq!(all().features(), 0x3e);
    }

    #[test]
    fn queues_that_are_not_offered_leave_no_gap() {
        use QueueKind::*;
        let config = BalloonConfig {
            free_page_hint: false,
            ..all()
        };
        assert_eq!(BalloonConfig::default().queues(), [Inflate, Deflate, Stats]);
        assert_eq!(all().queues(), [Inflate, Deflate, Stats, Hint, Report]);
        assert_eq!(config.queues(), [Inflate, Deflate, Stats, Report]);
        let sizes: Vec<u16> = all().queues().into_iter().map(QueueKind::size).collect();
        assert_eq!(sizes, [128, 128, 128, 1024, 32]);
    }

    #[test]
    fn configuration_ends_with_the_last_field_offered() {
        let without_poison = |config: BalloonConfig| BalloonConfig {
            page_poison: false,
            ..config
        };
        assert_eq!(BalloonConfig::default().config_len(), 16);
        assert_eq!(without_poison(all()).config_len(), 12);
        assert_eq!(without_poison(BalloonConfig::default()).config_len(), 8);
    }

    #[test]
    fn a_write_changes_what_it_covers_and_nothing_past_the_end() {
        let before = ConfigSpace {
            num_pages: 0x0403_0201,
            ..ConfigSpace::default()
        };
        assert_eq!(before.to_bytes()[..4], [1, 2, 3, 4]);
        assert_eq!(before.written(16, 4, &[1, 2, 3, 4]).actual, 0x0403_0201);
        assert_eq!(before.written(16, 5, &[9]).actual, 0x900);
        assert_eq!(before.written(16, 12, &[1, 0, 0, 0]).poison, 1);
        for (len, offset, data) in [(16, 13, [1; 4]), (8, 8, [1; 4]), (16, u32::MAX, [1; 4])] {
            assert_eq!(before.written(len, offset, &data), before);
        }
    }
}
