//! Which function answers at an address: the regions of a bus, flattened into segments that don't overlap.

use crate::address::Address;
use crate::function::{Change, Region, Space};

/// A stretch of address space and who answers there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) owner: Address,
    pub(crate) region: Region,
}

/// The regions decoded on a bus. Where two overlap, the function with the lowest address answers, and of one function
/// the lowest BAR; the other answers in what is left.
#[derive(Default)]
pub(crate) struct Decode {
    regions: Vec<(Address, Region)>,
    io: Vec<Segment>,
    memory: Vec<Segment>,
}

impl Decode {
    /// The segment that holds `addr`.
    pub(crate) fn find(&self, space: Space, addr: u64) -> Option<&Segment> {
        let segments = match space {
            Space::Io => &self.io,
            Space::Memory => &self.memory,
        };
        let behind = segments.partition_point(|segment| segment.first <= addr);
        segments
            .get(behind.checked_sub(1)?)
            .filter(|segment| addr <= segment.last)
    }

    /// Takes over the changes of the function at `owner` that concern decode.
    pub(crate) fn apply<'a>(&mut self, owner: Address, changes: impl IntoIterator<Item = &'a Change>) {
        let mut changed = false;
        for change in changes {
            match *change {
                Change::Mapped(region) if !self.regions.contains(&(owner, region)) => {
                    self.regions.push((owner, region));
                    changed = true;
                }
                Change::Unmapped(region) => {
                    self.regions.retain(|held| *held != (owner, region));
                    changed = true;
                }
                _ => {}
            }
        }
        if changed {
            self.rebuild();
        }
    }

    /// Forgets the regions of the function at `owner`.
    pub(crate) fn remove(&mut self, owner: Address) {
        self.regions.retain(|(held, _)| *held != owner);
        self.rebuild();
    }

    fn rebuild(&mut self) {
        self.io.clear();
        self.memory.clear();
        self.regions.sort_unstable();
        for &(owner, region) in &self.regions {
            let segments = match region.space {
                Space::Io => &mut self.io,
                Space::Memory => &mut self.memory,
            };
            fill_gaps(segments, owner, region);
        }
    }
}

/// Gives `region` what of its addresses nobody in `segments`, which are sorted, has yet.
fn fill_gaps(segments: &mut Vec<Segment>, owner: Address, region: Region) {
    let Some(last) = region
        .size
        .checked_sub(1)
        .and_then(|rest| region.base.checked_add(rest))
    else {
        return;
    };
    let mut gaps = Vec::new();
    let mut next = Some(region.base);
    let start = segments.partition_point(|segment| segment.last < region.base);
    for taken in segments.iter().skip(start).take_while(|segment| segment.first <= last) {
        if let Some(first) = next.filter(|first| *first < taken.first) {
            gaps.push(Segment {
                first,
                last: taken.first - 1,
                owner,
                region,
            });
        }
        next = taken.last.checked_add(1);
    }
    if let Some(first) = next.filter(|first| *first <= last) {
        gaps.push(Segment {
            first,
            last,
            owner,
            region,
        });
    }
    segments.extend(gaps);
    segments.sort_unstable_by_key(|segment| segment.first);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(bar: u8, base: u64, size: u64) -> Region {
        Region {
            bar,
            space: Space::Memory,
            base,
            size,
        }
    }

    /// What the rule says, looked up region by region.
    fn by_rule(regions: &[(Address, Region)], addr: u64) -> Option<(Address, u8)> {
        let holds = |region: &Region| addr.checked_sub(region.base).is_some_and(|at| at < region.size);
        regions
            .iter()
            .filter(|(_, region)| holds(region))
            .map(|(owner, region)| (*owner, region.bar))
            .min()
    }

    #[test]
    fn region_at_the_end_of_the_address_space_is_found() {
        let mut decode = Decode::default();
        let owner = Address::from_devfn(0, 16);
        decode.apply(owner, &[Change::Mapped(region(4, u64::MAX - 0xfff, 0x1000))]);
        assert_eq!(
            decode.find(Space::Memory, u64::MAX).map(|segment| segment.owner),
            Some(owner)
        );
        assert_eq!(decode.find(Space::Memory, u64::MAX - 0x1000), None);
        assert_eq!(decode.find(Space::Io, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn overlaps_go_to_the_lowest_function_whatever_the_order(
            list in prop::collection::vec((0u8..6, 0u8..6, 0u64..64, 0u32..5), 0..20),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut decode = Decode::default();
            let mut held = Vec::new();
            for (devfn, bar, base, order) in list {
                let owner = Address::from_devfn(0, devfn);
                let region = region(bar, base, 1 << order);
                if held.iter().all(|(other, taken): &(Address, Region)| (*other, taken.bar) != (owner, bar)) {
                    decode.apply(owner, &[Change::Mapped(region)]);
                    held.push((owner, region));
                }
            }
            for index in gone {
                if !held.is_empty() {
                    let (owner, region) = held.remove(index.index(held.len()));
                    decode.apply(owner, &[Change::Unmapped(region)]);
                }
            }
            for addr in 0..100 {
                let found = decode.find(Space::Memory, addr).map(|segment| (segment.owner, segment.region.bar));
                prop_assert_eq!(found, by_rule(&held, addr), "{}", addr);
            }
        }
    }
}
