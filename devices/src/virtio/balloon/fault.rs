//! What a driver can do wrong with a balloon, as values.

#![forbid(unsafe_code)]

/// The driver broke a rule of the balloon. What is wrong is ignored and the rest is done. Clauses
/// are those of virtio 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonFault {
    /// Pages of the balloon are RAM.
    #[error("page {page:#x} is not guest RAM")]
    PageOutsideRam {
        /// Its number: the address divided by 4096.
        page: u32,
    },
    /// A page that is in the balloon is not put there again.
    #[error("page {page:#x} is in the balloon already")]
    PageTwice {
        /// Its number.
        page: u32,
    },
    /// A page that is taken out of the balloon was in it.
    #[error("page {page:#x} is not in the balloon")]
    PageNotHeld {
        /// Its number.
        page: u32,
    },
    /// Pages are numbers of 32 bits, one at least.
    #[error("an array of page numbers of {len} bytes")]
    ArrayLength {
        /// Bytes in the buffers.
        len: usize,
    },
    /// An array has no more page numbers than there are pages.
    #[error("an array of {pages} pages, of which only the first {limit} were looked at")]
    ArrayTooLong {
        /// Page numbers in the buffers.
        pages: usize,
        /// Pages of RAM.
        limit: usize,
    },
    /// What is reported free is whole pages.
    #[error("free memory of {len} bytes at {address:#x} reported, which is not whole pages")]
    ReportUnaligned {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A command on the queue of hints is 4 bytes.
    #[error("a command of {len} bytes among the hints")]
    HintCommandLength {
        /// Bytes in the buffers.
        len: usize,
    },
    /// Statistics are tags and values of 10 bytes together.
    #[error("statistics of {len} bytes")]
    StatsLength {
        /// Bytes in the buffers.
        len: usize,
    },
    /// The driver has one buffer of statistics.
    #[error("a second buffer of statistics before the first was asked for")]
    StatsTwice,
    /// The balloon has no more pages than RAM.
    #[error("{pages} pages said to be in the balloon, of {limit} that there are")]
    ActualTooLarge {
        /// What the driver wrote.
        pages: u32,
        /// Pages of RAM.
        limit: u32,
    },
}

impl BalloonFault {
    /// The number of the rule that was broken, `V-BALLOON-nn`. Numbers never change.
    pub fn rule(&self) -> &'static str {
        self.facts().0
    }

    /// The clause of virtio 1.3 that says so.
    pub fn clause(&self) -> &'static str {
        self.facts().1
    }

    fn facts(&self) -> (&'static str, &'static str) {
        match self {
            Self::PageOutsideRam { .. } => ("V-BALLOON-01", "5.5.6"),
            Self::PageTwice { .. } => ("V-BALLOON-02", "5.5.6"),
            Self::PageNotHeld { .. } => ("V-BALLOON-03", "5.5.6"),
            Self::ArrayLength { .. } => ("V-BALLOON-04", "5.5.6"),
            Self::ArrayTooLong { .. } => ("V-BALLOON-05", "5.5.6"),
            Self::ReportUnaligned { .. } => ("V-BALLOON-06", "5.5.6.7"),
            Self::HintCommandLength { .. } => ("V-BALLOON-07", "5.5.6.5.1"),
            Self::StatsLength { .. } => ("V-BALLOON-08", "5.5.6.3"),
            Self::StatsTwice => ("V-BALLOON-09", "5.5.6.3.1"),
            Self::ActualTooLarge { .. } => ("V-BALLOON-10", "5.5.6"),
        }
    }
}
