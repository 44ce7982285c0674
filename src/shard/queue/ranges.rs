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

/// Some offsets, added in order and taken out anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Start → end, apart from each other.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// Adds `start..end`; all others are below.
    pub fn push(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.count += end - start;
        match self.ranges.last_entry() {
            Some(mut last) if *last.get() == start => *last.get_mut() = end,
            last => {
                debug_assert!(last.is_none_or(|last| *last.get() < start), "added in order");
                self.ranges.insert(start, end);
            }
        }
    }

    /// Takes `start..end` out.
    pub fn remove(&mut self, start: u64, end: u64) {
        while let Some((&from, &to)) = self.ranges.range(..end).next_back().filter(|(_, to)| start < end && **to > start) {
            self.ranges.remove(&from);
            if from < start {
                self.ranges.insert(from, start);
            }
            if to > end {
                self.ranges.insert(end, to);
            }
            self.count -= to.min(end) - from.max(start);
        }
    }

    /// Takes everything from `from` on out.
    pub fn cut(&mut self, from: u64) {
        self.remove(from, u64::MAX);
    }

    /// Whether `offset` is one of them.
    pub fn contains(&self, offset: u64) -> bool {
        self.ranges.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// Those in `start..end`.
    pub fn count_in(&self, start: u64, end: u64) -> u64 {
        let overlaps = self.ranges.range(..end).rev().take_while(|(_, to)| **to > start);
        overlaps.map(|(from, to)| (*to).min(end) - (*from).max(start)).sum()
    }

    /// Offset after the last; 0 = there are none.
    pub fn end(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// In how many ranges.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Ranges that start at or after `from`, in order.
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
        fn ranges_behave_like_a_set(steps in proptest::collection::vec((0u64..9, 0u64..9, 0u64..60, 0u64..9), 0..60)) {
            let (mut ranges, mut naive, mut end) = (Ranges::default(), BTreeSet::new(), 0);
            for (gap, len, start, removed) in steps {
                ranges.push(end + gap, end + gap + len);
                naive.extend(end + gap..end + gap + len);
                end += gap + len;
                ranges.remove(start, start + removed);
                naive.retain(|offset| !(start..start + removed).contains(offset));
                if removed == 8 {
                    ranges.cut(start);
                    naive.retain(|offset| *offset < start);
                    end = end.min(start);
                }
                assert_eq!(ranges.count(), naive.len() as u64);
                assert_eq!(ranges.count_in(start, start + 9), naive.range(start..start + 9).count() as u64);
                assert!((0..end + 2).all(|offset| ranges.contains(offset) == naive.contains(&offset)));
                let listed: Vec<u64> = ranges.ranges_from(0).flat_map(|(start, end)| start..end).collect();
                assert!(listed.iter().eq(naive.iter()), "{listed:?}");
            }
        }

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
