//! Settled messages: everything below a floor, and some above it, in whatever order they were settled.
//!
//! ```text
//! ─────────────┬───────────────────┬──────────────────────────────┬────────
//!  all of them │ parts: 64 bits    │ whole: pieces of 64, from-to │ none
//! ─────────────┴───────────────────┴──────────────────────────────┴────────
//!            floor
//! ```
//!
//! A message that is settled alone sets a bit; 64 of them in a row become part of a range. So a straggler with millions settled
//! behind it costs a range, and millions settled one here, one there a few bytes each.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::packed::{PIECE_BITS, PIECE_MASK, ones};

/// A set of offsets that is everything below a floor, and some above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Not in the set itself.
    floor: u64,
    /// Pieces of 64 offsets of which some are in the set: number → bits. Those below the floor aren't among them.
    parts: BTreeMap<u64, u64>,
    /// Pieces that are in the set as a whole: first → the one after the last, apart from each other.
    whole: BTreeMap<u64, u64>,
    /// Offsets above the floor.
    above: u64,
    /// None of them is at or above this one; 0 = there are none.
    end: u64,
}

/// The bits of `start..end` in the piece that `start` lies in.
fn mask(start: u64, end: u64) -> u64 {
    let from = !0 << (start & PIECE_MASK);
    let len = end - (start & !PIECE_MASK);
    if len <= PIECE_MASK { from & ((1 << len) - 1) } else { from }
}

/// The end of the range of whole pieces that this one is in.
fn whole_until(whole: &BTreeMap<u64, u64>, piece: u64) -> Option<u64> {
    whole.range(..=piece).next_back().map(|(_, end)| *end).filter(|end| piece < *end)
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

    /// Pieces and ranges above the floor: the measure of its memory.
    pub fn entry_count(&self) -> usize {
        self.parts.len() + self.whole.len()
    }

    /// Whether `offset` is in the set.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        if offset < self.floor || offset >= self.end {
            return offset < self.floor;
        }
        let piece = offset >> PIECE_BITS;
        self.parts.get(&piece).is_some_and(|bits| bits >> (offset & PIECE_MASK) & 1 == 1) || self.whole_until(piece).is_some()
    }

    fn whole_until(&self, piece: u64) -> Option<u64> {
        whole_until(&self.whole, piece)
    }

    /// The first offset at or above `from` that isn't in the set.
    pub fn next_gap(&self, from: u64) -> u64 {
        let mut from = from.max(self.floor);
        // A part, whole pieces, another part: then there is one.
        loop {
            let piece = from >> PIECE_BITS;
            if let Some(bits) = self.parts.get(&piece) {
                let free = !bits & (!0 << (from & PIECE_MASK));
                if free != 0 {
                    return piece << PIECE_BITS | u64::from(free.trailing_zeros());
                }
                from = (piece + 1) << PIECE_BITS;
            } else if let Some(end) = self.whole_until(piece) {
                from = end << PIECE_BITS;
            } else {
                return from;
            }
        }
    }

    /// The first offset at or above `from` that is in the set.
    pub fn next_member(&self, from: u64) -> Option<u64> {
        let piece = from >> PIECE_BITS;
        if from < self.floor || self.whole_until(piece).is_some() {
            return Some(from);
        }
        let part = self.parts.range(piece..).find_map(|(number, bits)| {
            let bits = if *number == piece { bits & (!0 << (from & PIECE_MASK)) } else { *bits };
            (bits != 0).then(|| number << PIECE_BITS | u64::from(bits.trailing_zeros()))
        });
        let whole = self.whole.range(piece..).next().map(|(first, _)| first << PIECE_BITS);
        part.into_iter().chain(whole).min()
    }

    /// Adds `start..end`; says how many offsets are new.
    pub fn insert(&mut self, start: u64, end: u64) -> u64 {
        let start = start.max(self.floor);
        if start >= end {
            return 0;
        }
        if start > self.floor {
            let added = self.insert_above(start, end);
            self.above += added;
            self.end = self.end.max(end);
            return added;
        }
        let mut inside = 0;
        if self.above > 0 {
            inside = self.take_below(end);
            let floor = self.next_gap(end);
            self.above -= inside + self.take_below(floor);
            self.floor = floor;
            if self.above == 0 {
                self.end = 0;
            }
        } else {
            self.floor = end;
        }
        end - start - inside
    }

    /// Adds offsets of one piece, by their bits; says how many are new.
    pub fn insert_piece(&mut self, piece: u64, bits: u64) -> u64 {
        let base = piece << PIECE_BITS;
        if bits == 0 {
            return 0;
        }
        if base > self.floor || (base + PIECE_MASK >= self.floor && bits & mask(base, self.floor + 1) == 0) {
            let added = self.insert_bits(piece, bits);
            self.above += added;
            self.end = self.end.max(base + u64::from(u64::BITS - bits.leading_zeros()));
            return added;
        }
        // The floor moves, or is above.
        ones(bits).map(|at| self.insert(base | at, (base | at) + 1)).sum()
    }

    fn insert_above(&mut self, start: u64, end: u64) -> u64 {
        let (first, last) = (start >> PIECE_BITS, (end - 1) >> PIECE_BITS);
        if first == last {
            return self.insert_bits(first, mask(start, end));
        }
        let mut added = 0;
        let (mut from, mut until) = (first, last + 1);
        if start & PIECE_MASK != 0 {
            added += self.insert_bits(first, mask(start, end));
            from += 1;
        }
        if end & PIECE_MASK != 0 {
            added += self.insert_bits(last, mask(last << PIECE_BITS, end));
            until -= 1;
        }
        if from < until {
            while let Some((&piece, bits)) = self.parts.range(from..until).next() {
                added += u64::from(bits.count_zeros());
                self.parts.remove(&piece);
                self.insert_whole(piece, piece + 1);
            }
            added += (until - from - self.insert_whole(from, until)) << PIECE_BITS;
        }
        added
    }

    fn insert_bits(&mut self, piece: u64, wanted: u64) -> u64 {
        match self.parts.entry(piece) {
            Entry::Vacant(entry) => {
                if whole_until(&self.whole, piece).is_some() {
                    return 0;
                }
                if wanted == !0 {
                    self.insert_whole(piece, piece + 1);
                } else {
                    entry.insert(wanted);
                }
                u64::from(wanted.count_ones())
            }
            Entry::Occupied(mut entry) => {
                let bits = *entry.get();
                *entry.get_mut() |= wanted;
                if bits | wanted == !0 {
                    entry.remove();
                    self.insert_whole(piece, piece + 1);
                }
                u64::from((wanted & !bits).count_ones())
            }
        }
    }

    /// Says how many of them were whole before.
    fn insert_whole(&mut self, first: u64, end: u64) -> u64 {
        let (mut from, mut to, mut inside) = (first, end, 0);
        while let Some((&start, &until)) = self.whole.range(..=to).next_back().filter(|(_, until)| **until >= from) {
            inside += until.min(end).saturating_sub(start.max(first));
            from = from.min(start);
            to = to.max(until);
            self.whole.remove(&start);
        }
        self.whole.insert(from, to);
        inside
    }

    /// Takes out what is stored below `end`; says how much that was.
    fn take_below(&mut self, end: u64) -> u64 {
        let (mut taken, last) = (0, end >> PIECE_BITS);
        while let Some(mut entry) = self.parts.first_entry().filter(|entry| *entry.key() <= last) {
            let gone = if *entry.key() == last { *entry.get() & !(!0 << (end & PIECE_MASK)) } else { *entry.get() };
            taken += u64::from(gone.count_ones());
            *entry.get_mut() &= !gone;
            if *entry.get() != 0 {
                break;
            }
            entry.remove();
        }
        while let Some((first, until)) =
            self.whole.first_key_value().map(|(first, until)| (*first, *until)).filter(|(first, _)| *first < last)
        {
            taken += (until.min(last) - first) << PIECE_BITS;
            self.whole.remove(&first);
            if until > last {
                self.whole.insert(last, until);
            }
        }
        // A whole piece that the floor comes to lie in is one no more.
        if end & PIECE_MASK != 0
            && let Some(until) = self.whole.remove(&last)
        {
            taken += end & PIECE_MASK;
            self.parts.insert(last, !0 << (end & PIECE_MASK));
            if last + 1 < until {
                self.whole.insert(last + 1, until);
            }
        }
        taken
    }

    /// Ranges above the floor that start at or after `from`, in order and apart from each other.
    pub fn ranges_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> {
        // A range that reaches `from` isn't taken for one that starts there.
        let piece = from.saturating_sub(1) >> PIECE_BITS;
        let parts = self.parts.range(piece..).flat_map(|(number, bits)| ones(*bits).map(move |at| (number << PIECE_BITS | at, 1)));
        let begin = self.whole.range(..=piece).next_back().map_or(piece, |(first, _)| *first);
        let whole = self.whole.range(begin..).map(|(first, end)| (first << PIECE_BITS, (end - first) << PIECE_BITS));
        let (mut parts, mut whole) = (parts.peekable(), whole.peekable());
        let mut pieces = std::iter::from_fn(move || match (parts.peek(), whole.peek()) {
            (Some((part, _)), Some((first, _))) if first < part => whole.next(),
            (Some(_), _) => parts.next(),
            (None, _) => whole.next(),
        })
        .peekable();
        let ranges = std::iter::from_fn(move || {
            let (start, len) = pieces.next()?;
            let mut end = start + len;
            while let Some((_, len)) = pieces.next_if(|(next, _)| *next == end) {
                end += len;
            }
            Some((start, end))
        });
        ranges.filter(move |(start, _)| *start >= from)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn pieces_are_added_as_single_ones_are(pieces in proptest::collection::vec((0u64..5, proptest::num::u64::ANY, 0u32..65), 0..40)) {
            let (mut settled, mut single) = (Settled::below(70), Settled::below(70));
            for (piece, bits, fewer) in pieces {
                let bits = bits & (!0u64).checked_shr(fewer).unwrap_or(0);
                let offsets = ones(bits).map(|at| piece << PIECE_BITS | at);
                let added: u64 = offsets.map(|offset| single.insert(offset, offset + 1)).sum();
                assert_eq!(settled.insert_piece(piece, bits), added);
                assert_eq!(settled, single);
            }
        }

        #[test]
        fn behaves_like_a_set(inserts in proptest::collection::vec((0u64..500, 0u32..5, 0u64..130), 0..60), from in 0u64..600) {
            let (mut settled, mut naive) = (Settled::below(5), (0..5).collect::<BTreeSet<u64>>());
            for (start, kind, len) in inserts {
                // Mostly single ones, now and then one that reaches over pieces, now and then the floor's own.
                let (start, len) = match kind {
                    0 => (start, len),
                    1 => (naive.iter().zip(0..).find(|(offset, number)| **offset != *number).map_or(naive.len() as u64, |it| it.1), len / 20),
                    _ => (start, 1 + len / 100),
                };
                let added = (start..start + len).filter(|offset| naive.insert(*offset)).count() as u64;
                assert_eq!(settled.insert(start, start + len), added);
                let floor = (0..).find(|offset| !naive.contains(offset)).unwrap_or(0);
                assert_eq!(settled.floor(), floor);
                assert_eq!(settled.above(), naive.iter().filter(|offset| **offset >= floor).count() as u64);
                assert!(settled.parts.iter().all(|(piece, bits)| *bits != 0 && *bits != !0 && settled.whole_until(*piece).is_none()));
                assert!(settled.whole.iter().zip(settled.whole.keys().skip(1)).all(|((_, end), next)| end < next));
            }
            let mut again = Settled::below(settled.floor());
            for (start, end) in settled.ranges_from(0) {
                assert_eq!(again.insert(start, end), end - start);
            }
            assert_eq!(again, settled, "made again of its ranges");
            for offset in 0..700 {
                assert_eq!(settled.contains(offset), naive.contains(&offset));
                let gap = (offset..).find(|offset| !naive.contains(offset));
                assert_eq!(Some(settled.next_gap(offset)), gap);
                assert_eq!(settled.next_member(offset), naive.range(offset..).next().copied());
            }
            let ranges: Vec<_> = settled.ranges_from(0).collect();
            assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges touch: {ranges:?}");
            let above: Vec<u64> = naive.iter().copied().filter(|offset| *offset > settled.floor()).collect();
            assert!(ranges.iter().flat_map(|(start, end)| *start..*end).eq(above), "{ranges:?}");
            let later: Vec<_> = ranges.iter().copied().filter(|(start, _)| *start >= from).collect();
            assert!(settled.ranges_from(from).eq(later), "from {from}");
        }
    }
}
