//! Settled messages above a floor: everything below the floor, and ranges above it.

use std::collections::BTreeMap;

/// A set of offsets that is everything below a floor, and some ranges above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    floor: u64,
    /// Start → end, above the floor, apart from each other.
    ranges: BTreeMap<u64, u64>,
    /// Offsets in `ranges`.
    above: u64,
}

impl Settled {
    /// Everything below `floor`.
    pub fn below(floor: u64) -> Settled {
        Settled { floor, ..Settled::default() }
    }

    /// First offset that isn't in the set.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Offsets above the floor.
    pub fn above(&self) -> u64 {
        self.above
    }

    /// Ranges above the floor.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether `offset` is in the set.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.floor || self.ranges.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// The first offset at or above `from` that isn't in the set.
    pub fn next_gap(&self, from: u64) -> u64 {
        let from = from.max(self.floor);
        match self.ranges.range(..=from).next_back() {
            Some((_, end)) if from < *end => *end,
            _ => from,
        }
    }

    /// The first offset at or above `from` that is in the set, above the floor.
    pub fn next_member(&self, from: u64) -> Option<u64> {
        if self.contains(from) {
            return Some(from);
        }
        self.ranges.range(from..).next().map(|(start, _)| *start)
    }

    /// Adds `start..end`; says how many offsets are new.
    pub fn insert(&mut self, start: u64, end: u64) -> u64 {
        let start = start.max(self.floor);
        if start >= end {
            return 0;
        }
        if start == self.floor && self.ranges.is_empty() {
            self.floor = end;
            return end - start;
        }
        let (mut from, mut to, mut inside) = (start, end, 0);
        if let Some((&before, &before_end)) = self.ranges.range(..=start).next_back()
            && before_end >= start
        {
            from = before;
            to = to.max(before_end);
            inside += before_end - before;
            self.ranges.remove(&before);
        }
        while let Some((&next, &next_end)) = self.ranges.range(from..=to).next() {
            to = to.max(next_end);
            inside += next_end - next;
            self.ranges.remove(&next);
        }
        let added = to - from - inside;
        if from == self.floor {
            self.floor = to;
            self.above -= inside;
        } else {
            self.ranges.insert(from, to);
            self.above += added;
        }
        added
    }

    /// Ranges above the floor that start at or after `from`, in order.
    pub fn ranges_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.range(from..).map(|(start, end)| (*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn behaves_like_a_set(inserts in proptest::collection::vec((0u64..60, 0u64..9), 0..60)) {
            let (mut settled, mut naive) = (Settled::below(5), (0..5).collect::<BTreeSet<u64>>());
            for (start, len) in inserts {
                let added = (start..start + len).filter(|offset| naive.insert(*offset)).count() as u64;
                assert_eq!(settled.insert(start, start + len), added);
                let floor = (0..).find(|offset| !naive.contains(offset)).unwrap_or(0);
                assert_eq!(settled.floor(), floor);
                assert_eq!(settled.above(), naive.iter().filter(|offset| **offset >= floor).count() as u64);
                for offset in 0..75 {
                    assert_eq!(settled.contains(offset), naive.contains(&offset));
                    let gap = (offset..).find(|offset| !naive.contains(offset));
                    assert_eq!(Some(settled.next_gap(offset)), gap);
                    assert_eq!(settled.next_member(offset), (offset..75).find(|offset| naive.contains(offset)));
                }
                let ranges: Vec<_> = settled.ranges_from(0).collect();
                assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges touch: {ranges:?}");
                assert!(ranges.iter().all(|(start, _)| *start > floor));
            }
        }
    }
}
