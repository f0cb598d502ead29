//! The queues on which the driver names pages: into the balloon, and out of it.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::PAGE;
use super::fault::BalloonFault;
use super::page_set::{Change, PageSet};
use super::queue::Service;
use super::shared::{Cause, Shared};
use crate::virtio::virtq::Chain;

/// Bytes of a page number.
const NUMBER: usize = 4;
/// Page numbers that are read from the guest at once.
const READ: usize = 1024;
/// Page numbers that are sorted together at most: 1 GiB of memory, 1 MiB of numbers.
const SORTED: usize = 256 << 10;

/// Page numbers of one or more chains, gathered.
struct Pages {
    shared: Arc<Shared>,
    numbers: Vec<u32>,
}

impl Pages {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            numbers: Vec::new(),
        }
    }

    /// Hands the numbers in `chains` to `take`, sorted, as many at once as there may be.
    fn for_each_batch(&mut self, chains: &[Chain], mut take: impl FnMut(&Shared, &[u32])) {
        for chain in chains {
            let mut reader = chain.reader();
            let mut left = self.length(chain.readable_bytes());
            let mut bytes = [0; NUMBER * READ];
            while left > 0 {
                let wanted = bytes.get_mut(..NUMBER * left.min(READ)).unwrap_or_default();
                reader.read(wanted);
                let numbers = wanted.as_chunks::<NUMBER>().0;
                // Guest byte order on the legacy face, and that is little on x86, too.
                self.numbers
                    .extend(numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)));
                left -= numbers.len();
                if self.numbers.len() >= SORTED {
                    self.flush(&mut take);
                }
            }
        }
        self.flush(&mut take);
    }

    /// How many numbers of a buffer of `len` bytes count.
    fn length(&self, len: usize) -> usize {
        let (pages, limit) = (len / NUMBER, self.shared.pages() as usize);
        if pages == 0 || !len.is_multiple_of(NUMBER) {
            self.shared.report(BalloonFault::ArrayLength { len });
        }
        if pages > limit {
            self.shared.report(BalloonFault::ArrayTooLong { pages, limit });
        }
        pages.min(limit)
    }

    fn flush(&mut self, take: &mut impl FnMut(&Shared, &[u32])) {
        self.numbers.sort_unstable();
        take(&self.shared, &self.numbers);
        self.numbers.clear();
        self.numbers.shrink_to(READ);
    }
}

/// Pages into the balloon, and with that back to the host.
pub(super) struct Inflate(Pages);

impl Inflate {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Pages::new(shared))
    }
}

impl Service for Inflate {
    fn serve(&mut self, chains: &[Chain]) {
        self.0.for_each_batch(chains, |shared, numbers| {
            let mut in_balloon = shared.in_balloon();
            let runs = Runs::new(shared, &mut in_balloon, numbers);
            shared.give_back(runs.map(|run| run.start * PAGE..run.end * PAGE), Cause::Inflated);
        });
    }
}

/// The longest runs of pages that are new in the balloon.
struct Runs<'a> {
    shared: &'a Shared,
    in_balloon: &'a mut PageSet,
    numbers: std::iter::Copied<std::slice::Iter<'a, u32>>,
    /// Read ahead: it does not belong to the run before.
    next: Option<u32>,
}

impl<'a> Runs<'a> {
    /// `numbers` are sorted.
    fn new(shared: &'a Shared, in_balloon: &'a mut PageSet, numbers: &'a [u32]) -> Self {
        Self {
            shared,
            in_balloon,
            numbers: numbers.iter().copied(),
            next: None,
        }
    }

    /// The next page that was put into the balloon; those that are wrong are reported and left out.
    fn next_page(&mut self) -> Option<u32> {
        self.next.take().or_else(|| {
            self.numbers.find(|&page| match self.in_balloon.insert(page) {
                Change::Done => true,
                Change::None => {
                    self.shared.report(BalloonFault::PageTwice { page });
                    false
                }
                Change::NotRam => {
                    self.shared.report(BalloonFault::PageOutsideRam { page });
                    false
                }
            })
        })
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let first = u64::from(self.next_page()?);
        let mut run = first..first + 1;
        while let Some(page) = self.next_page() {
            if u64::from(page) != run.end {
                self.next = Some(page);
                break;
            }
            run.end += 1;
        }
        Some(run)
    }
}

/// Pages out of the balloon. The host gives memory again when they are touched.
pub(super) struct Deflate(Pages);

impl Deflate {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Pages::new(shared))
    }
}

impl Service for Deflate {
    fn serve(&mut self, chains: &[Chain]) {
        self.0.for_each_batch(chains, |shared, numbers| {
            let mut in_balloon = shared.in_balloon();
            for &page in numbers {
                match in_balloon.remove(page) {
                    Change::Done => {}
                    Change::None => shared.report(BalloonFault::PageNotHeld { page }),
                    Change::NotRam => shared.report(BalloonFault::PageOutsideRam { page }),
                }
            }
        });
    }
}
