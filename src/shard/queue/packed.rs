//! Numbers that lie close to each other, kept close: 64 of them share a piece.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Place;

const PIECE_BITS: u32 = 6;
const PIECE_MASK: u64 = (1 << PIECE_BITS) - 1;

fn split(number: u64) -> (u64, u64) {
    (number >> PIECE_BITS, 1 << (number & PIECE_MASK))
}

/// Messages in the order of delivery. Next to each other they take a bit each, and alone some 30 bytes.
#[derive(Debug, Default)]
pub struct PlaceSet {
    pieces: BTreeMap<u64, u64>,
    len: usize,
}

impl PlaceSet {
    /// Whether it is new.
    pub fn insert(&mut self, place: Place) -> bool {
        let (piece, bit) = split(place.0);
        let bits = self.pieces.entry(piece).or_default();
        let is_new = *bits & bit == 0;
        *bits |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// Whether it was there.
    pub fn remove(&mut self, place: &Place) -> bool {
        let (piece, bit) = split(place.0);
        let Some(bits) = self.pieces.get_mut(&piece).filter(|bits| **bits & bit != 0) else { return false };
        *bits &= !bit;
        if *bits == 0 {
            self.pieces.remove(&piece);
        }
        self.len -= 1;
        true
    }

    /// The one that goes first.
    pub fn first(&self) -> Option<Place> {
        self.pieces.first_key_value().map(|(piece, bits)| Place(piece << PIECE_BITS | u64::from(bits.trailing_zeros())))
    }

    /// The first that doesn't go before `from`.
    pub fn first_from(&self, from: Place) -> Option<Place> {
        let (first, bit) = split(from.0);
        self.pieces.range(first..).find_map(|(piece, bits)| {
            let bits = if *piece == first { bits & !(bit - 1) } else { *bits };
            (bits != 0).then(|| Place(piece << PIECE_BITS | u64::from(bits.trailing_zeros())))
        })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Takes out all for which it doesn't hold.
    pub fn retain(&mut self, holds: impl Fn(Place) -> bool) {
        let gone: Vec<Place> = self.iter().filter(|place| !holds(*place)).collect();
        for place in gone {
            self.remove(&place);
        }
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        *self = PlaceSet::default();
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = Place> {
        self.pieces.iter().flat_map(|(piece, bits)| ones(*bits).map(move |at| Place(piece << PIECE_BITS | at)))
    }
}

fn ones(mut bits: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let at = (bits != 0).then(|| u64::from(bits.trailing_zeros()))?;
        bits &= bits - 1;
        Some(at)
    })
}

/// What is known of messages, by offset. Next to each other they take little more than the value itself.
#[derive(Debug)]
pub struct OffsetMap<T> {
    pieces: BTreeMap<u64, Piece<T>>,
    len: usize,
}

#[derive(Debug)]
struct Piece<T> {
    bits: u64,
    /// In the order of the bits.
    values: Vec<T>,
}

impl<T> Default for OffsetMap<T> {
    fn default() -> OffsetMap<T> {
        OffsetMap { pieces: BTreeMap::new(), len: 0 }
    }
}

impl<T> Piece<T> {
    /// Where the value of a bit is, or would be.
    fn rank(&self, bit: u64) -> usize {
        (self.bits & (bit - 1)).count_ones() as usize
    }
}

impl<T> OffsetMap<T> {
    /// What it was before.
    pub fn insert(&mut self, offset: u64, value: T) -> Option<T> {
        let (piece, bit) = split(offset);
        let piece = self.pieces.entry(piece).or_insert_with(|| Piece { bits: 0, values: Vec::new() });
        let at = piece.rank(bit);
        if piece.bits & bit != 0 {
            return Some(std::mem::replace(&mut piece.values[at], value));
        }
        piece.bits |= bit;
        piece.values.insert(at, value);
        self.len += 1;
        None
    }

    /// Takes it out.
    pub fn remove(&mut self, offset: u64) -> Option<T> {
        let (number, bit) = split(offset);
        let piece = self.pieces.get_mut(&number).filter(|piece| piece.bits & bit != 0)?;
        let value = piece.values.remove(piece.rank(bit));
        piece.bits &= !bit;
        self.len -= 1;
        if piece.bits == 0 {
            self.pieces.remove(&number);
        } else if piece.values.len() <= piece.values.capacity() / 4 {
            piece.values.shrink_to(piece.values.len() * 2);
        }
        Some(value)
    }

    /// Of one offset.
    pub fn get(&self, offset: u64) -> Option<&T> {
        let (piece, bit) = split(offset);
        let piece = self.pieces.get(&piece).filter(|piece| piece.bits & bit != 0)?;
        piece.values.get(piece.rank(bit))
    }

    /// Of one offset.
    pub fn get_mut(&mut self, offset: u64) -> Option<&mut T> {
        let (piece, bit) = split(offset);
        let piece = self.pieces.get_mut(&piece).filter(|piece| piece.bits & bit != 0)?;
        let at = piece.rank(bit);
        piece.values.get_mut(at)
    }

    /// Whether it is there.
    pub fn contains(&self, offset: u64) -> bool {
        self.get(offset).is_some()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All, in order of offset.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.range(0..u64::MAX)
    }

    /// The first in a range.
    pub fn first_in(&self, range: Range<u64>) -> Option<(u64, T)>
    where
        T: Copy,
    {
        self.range(range).next().map(|(offset, value)| (offset, *value))
    }

    /// Those in a range, in order of offset.
    pub fn range(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &T)> {
        let Range { start, end } = range;
        let pieces = self.pieces.range(start >> PIECE_BITS..=(end.max(start) >> PIECE_BITS));
        pieces.flat_map(move |(number, piece)| {
            let base = number << PIECE_BITS;
            let from = if base < start { !0 << (start - base) } else { !0 };
            let below = match end.saturating_sub(base) {
                0 => 0,
                left if left <= PIECE_MASK => (1 << left) - 1,
                _ => !0,
            };
            ones(piece.bits & from & below).filter_map(move |at| Some((base | at, piece.values.get(piece.rank(1 << at))?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn places_are_a_set(steps in proptest::collection::vec((0u8..3, 0u64..300, proptest::bool::ANY), 0..200), from in 0u64..300) {
            let (mut set, mut naive) = (PlaceSet::default(), BTreeSet::new());
            for (priority, offset, adds) in steps {
                let place = Place::new(priority, offset);
                if adds {
                    assert_eq!(set.insert(place), naive.insert(place));
                } else {
                    assert_eq!(set.remove(&place), naive.remove(&place));
                }
                assert_eq!((set.len(), set.first()), (naive.len(), naive.first().copied()));
            }
            assert!(set.iter().eq(naive.iter().copied()));
            for priority in 0..3 {
                let from = Place::new(priority, from);
                assert_eq!(set.first_from(from), naive.range(from..).next().copied());
            }
            set.retain(|place| place.offset() >= from);
            naive.retain(|place| place.offset() >= from);
            assert!(set.iter().eq(naive.iter().copied()));
        }

        #[test]
        fn offsets_are_a_map(steps in proptest::collection::vec((0u64..300, 0u8..9), 0..200), start in 0u64..300, len in 0u64..200) {
            let (mut map, mut naive) = (OffsetMap::default(), BTreeMap::new());
            for (offset, value) in steps {
                if value > 2 {
                    assert_eq!(map.insert(offset, value), naive.insert(offset, value));
                } else {
                    assert_eq!(map.remove(offset), naive.remove(&offset));
                }
                assert_eq!((map.len(), map.get(offset)), (naive.len(), naive.get(&offset)));
                assert_eq!((map.contains(offset), map.get_mut(offset).copied()), (naive.contains_key(&offset), naive.get(&offset).copied()));
            }
            assert!(map.iter().eq(naive.iter().map(|(offset, value)| (*offset, value))));
            for range in [start..start + len, 0..start, start..start] {
                assert!(map.range(range.clone()).eq(naive.range(range).map(|(offset, value)| (*offset, value))));
            }
        }
    }
}
