//! Ranges of offsets that come in order and go in any.

use std::collections::BTreeMap;

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
    }
}
