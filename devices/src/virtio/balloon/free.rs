//! The queues on which the driver gives free memory itself as buffers: reports and hints.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::PAGE;
use super::fault::BalloonFault;
use super::queue::Service;
use super::shared::{Cause, Shared, hint};
use crate::virtio::virtq::Chain;

/// Memory that is free until the driver hears that we have seen so: back to the host it goes
/// (virtio 1.3, 5.5.6.7).
pub(super) struct Report {
    shared: Arc<Shared>,
    /// The driver has said what free pages are filled with.
    poisoned: bool,
    ranges: Vec<Range<u64>>,
}

impl Report {
    pub(super) fn new(shared: &Arc<Shared>, poisoned: bool) -> Self {
        Self {
            shared: Arc::clone(shared),
            poisoned,
            ranges: Vec::new(),
        }
    }

    fn gather(&mut self, chain: &Chain) {
        let memory = self.shared.memory();
        for span in chain.writable_spans() {
            let Some(address) = memory.address_of(span) else {
                continue;
            };
            let len = span.len() as u64;
            if address.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) {
                self.ranges.push(address..address.saturating_add(len));
            } else {
                self.shared.report(BalloonFault::ReportUnaligned { address, len });
            }
        }
    }
}

impl Service for Report {
    fn serve(&mut self, chains: &[Chain]) {
        // Pages come from the host as zeroes, and these must keep what they were filled with.
        if self.poisoned && self.shared.poison() != 0 {
            return;
        }
        for chain in chains {
            self.gather(chain);
        }
        merge(&mut self.ranges);
        self.shared.give_back(self.ranges.drain(..), Cause::Reported);
        self.ranges.shrink_to(1024);
    }
}

/// Makes the fewest ranges of those that touch or overlap.
fn merge(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let joined = next.start <= before.end;
        if joined {
            before.end = before.end.max(next.end);
        }
        joined
    });
}

/// Hints at free memory, between a command that begins a round and one that ends it (virtio 1.3,
/// 5.5.6.5).
pub(super) struct Hints {
    shared: Arc<Shared>,
    /// The round that hints belong to.
    round: Option<u32>,
}

impl Hints {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            round: None,
        }
    }

    fn command(&mut self, chain: &Chain) {
        let len = chain.readable_bytes();
        let Ok(command) = chain.reader().read_obj::<u32>() else {
            self.shared.report(BalloonFault::HintCommandLength { len });
            return;
        };
        if len != size_of::<u32>() {
            self.shared.report(BalloonFault::HintCommandLength { len });
        }
        let command = u32::from_le(command);
        if command > hint::DONE && command == self.shared.hint_command() {
            self.round = Some(command);
        } else if let Some(round) = self.round.take() {
            // A command from before the round says nothing about it.
            self.shared.hints_ended(round);
        }
    }
}

impl Service for Hints {
    fn serve(&mut self, chains: &[Chain]) {
        for chain in chains {
            if chain.readable_bytes() > 0 {
                self.command(chain);
            }
            if self.round == Some(self.shared.hint_command()) {
                self.shared.add_hinted(chain.writable_bytes() as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let mut ranges = vec![8..9, 0..2, 2..4, 3..5, 6..7, 0..1, 6..8, 20..30, 21..22];
        merge(&mut ranges);
        assert_eq!(ranges, [0..5, 6..9, 20..30]);
    }
}
