//! Numbers that lie close to each other, kept close: 64 of them share a piece.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use super::cursor::Place;

/// A number without these low bits says which piece.
pub const PIECE_BITS: u32 = 6;
/// These bits say where in its piece.
pub const PIECE_MASK: u64 = (1 << PIECE_BITS) - 1;

fn split(number: u64) -> (u64, u64) {
    (number >> PIECE_BITS, 1 << (number & PIECE_MASK))
}

/// What a B-tree of that many entries takes of the memory, about: one that grows at its end has nodes a little more than half full.
pub fn tree_bytes(entries: usize, entry_bytes: usize) -> usize {
    entries * entry_bytes * 9 / 5
}

/// Messages in the order of delivery. Next to each other they take a bit each, and alone some 30 bytes.
#[derive(Debug, Default)]
pub struct PlaceSet {
    /// The piece that goes first, by itself: most of what is taken out is there. Empty only if all are.
    front: (u64, u64),
    /// The others.
    pieces: BTreeMap<u64, u64>,
    len: usize,
}

impl PlaceSet {
    /// Whether it is new.
    pub fn insert(&mut self, place: Place) -> bool {
        let (piece, bit) = split(place.0);
        if self.len == 0 {
            self.front = (piece, 0);
        } else if piece < self.front.0 {
            let (first, bits) = std::mem::replace(&mut self.front, (piece, 0));
            self.pieces.insert(first, bits);
        }
        let bits = if piece == self.front.0 { &mut self.front.1 } else { self.pieces.entry(piece).or_default() };
        let is_new = *bits & bit == 0;
        *bits |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// Whether it was there.
    pub fn remove(&mut self, place: &Place) -> bool {
        let (piece, bit) = split(place.0);
        if piece == self.front.0 {
            if self.front.1 & bit == 0 {
                return false;
            }
            self.front.1 &= !bit;
            if self.front.1 == 0 {
                self.front = self.pieces.pop_first().unwrap_or_default();
            }
        } else {
            let Entry::Occupied(mut entry) = self.pieces.entry(piece) else { return false };
            if entry.get() & bit == 0 {
                return false;
            }
            *entry.get_mut() &= !bit;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.len -= 1;
        true
    }

    /// The one that goes first.
    pub fn first(&self) -> Option<Place> {
        let (piece, bits) = self.front;
        (bits != 0).then(|| Place(piece << PIECE_BITS | u64::from(bits.trailing_zeros())))
    }

    /// The first that doesn't go before `from`.
    pub fn first_from(&self, from: Place) -> Option<Place> {
        let (first, bit) = split(from.0);
        let front = Some((&self.front.0, &self.front.1)).filter(|(piece, _)| **piece >= first);
        front.into_iter().chain(self.pieces.range(first..)).find_map(|(piece, bits)| {
            let bits = if *piece == first { bits & !(bit - 1) } else { *bits };
            (bits != 0).then(|| Place(piece << PIECE_BITS | u64::from(bits.trailing_zeros())))
        })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What it takes of the memory, about.
    pub fn bytes(&self) -> usize {
        tree_bytes(self.pieces.len(), size_of::<(u64, u64)>())
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
        let pieces = std::iter::once((&self.front.0, &self.front.1)).chain(&self.pieces);
        pieces.flat_map(|(piece, bits)| ones(*bits).map(move |at| Place(piece << PIECE_BITS | at)))
    }
}

/// Places of the bits that are set, in order.
pub fn ones(mut bits: u64) -> impl Iterator<Item = u64> {
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
    values: Values<T>,
}

/// One in a piece, as where messages are delivered in another order, needs no memory of its own.
#[derive(Debug)]
enum Values<T> {
    One(T),
    More(Vec<T>),
}

impl<T> Values<T> {
    fn get(&self) -> &[T] {
        match self {
            Values::One(value) => std::slice::from_ref(value),
            Values::More(values) => values,
        }
    }

    fn get_mut(&mut self) -> &mut [T] {
        match self {
            Values::One(value) => std::slice::from_mut(value),
            Values::More(values) => values,
        }
    }
}

impl<T: Copy> Values<T> {
    fn insert(&mut self, at: usize, value: T) {
        match self {
            Values::One(first) => *self = Values::More(if at == 0 { vec![value, *first] } else { vec![*first, value] }),
            Values::More(values) => values.insert(at, value),
        }
    }

    /// Of several.
    fn remove(&mut self, at: usize) {
        if let Values::More(values) = self {
            values.remove(at);
        }
        self.shrink();
    }

    /// One stays at least. `bits`: the places of all; `stays`: of those that do.
    fn retain(&mut self, bits: u64, stays: u64) {
        if let Values::More(values) = self {
            let mut at = ones(bits);
            values.retain(|_| at.next().is_some_and(|at| stays >> at & 1 == 1));
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        let Values::More(values) = self else { return };
        if let [last] = values[..] {
            *self = Values::One(last);
        } else if values.len() <= values.capacity() / 4 {
            values.shrink_to(values.len() * 2);
        }
    }
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

impl<T: Copy> OffsetMap<T> {
    /// What it was before.
    pub fn insert(&mut self, offset: u64, value: T) -> Option<T> {
        let (number, bit) = split(offset);
        match self.pieces.entry(number) {
            Entry::Vacant(entry) => {
                entry.insert(Piece { bits: bit, values: Values::One(value) });
            }
            Entry::Occupied(mut entry) => {
                let piece = entry.get_mut();
                let at = piece.rank(bit);
                if piece.bits & bit != 0 {
                    return piece.values.get_mut().get_mut(at).map(|known| std::mem::replace(known, value));
                }
                piece.bits |= bit;
                piece.values.insert(at, value);
            }
        }
        self.len += 1;
        None
    }

    /// Takes it out.
    pub fn remove(&mut self, offset: u64) -> Option<T> {
        let (number, bit) = split(offset);
        let Entry::Occupied(mut entry) = self.pieces.entry(number) else { return None };
        let piece = entry.get_mut();
        let at = piece.rank(bit);
        let value = *piece.values.get().get(at).filter(|_| piece.bits & bit != 0)?;
        self.len -= 1;
        if piece.bits == bit {
            entry.remove();
        } else {
            piece.bits &= !bit;
            piece.values.remove(at);
        }
        Some(value)
    }

    /// Takes out those of a piece for which it holds; says which, `wanted` and the answer as its bits.
    pub fn remove_bits(&mut self, number: u64, wanted: u64, holds: impl Fn(&T) -> bool) -> u64 {
        let Entry::Occupied(mut entry) = self.pieces.entry(number) else { return 0 };
        let piece = entry.get_mut();
        let held = piece.values.get();
        let fits = |at: &u64| held.get(piece.rank(1 << at)).is_some_and(&holds);
        let gone: u64 = ones(piece.bits & wanted).filter(fits).fold(0, |gone, at| gone | 1 << at);
        self.len -= gone.count_ones() as usize;
        if gone == piece.bits {
            entry.remove();
        } else if gone != 0 {
            piece.values.retain(piece.bits, !gone);
            piece.bits &= !gone;
        }
        gone
    }

    /// Of one offset.
    pub fn get(&self, offset: u64) -> Option<&T> {
        let (piece, bit) = split(offset);
        let piece = self.pieces.get(&piece).filter(|piece| piece.bits & bit != 0)?;
        piece.values.get().get(piece.rank(bit))
    }

    /// Of one offset.
    pub fn get_mut(&mut self, offset: u64) -> Option<&mut T> {
        let (piece, bit) = split(offset);
        let piece = self.pieces.get_mut(&piece).filter(|piece| piece.bits & bit != 0)?;
        let at = piece.rank(bit);
        piece.values.get_mut().get_mut(at)
    }

    /// Whether it is there.
    pub fn contains(&self, offset: u64) -> bool {
        self.get(offset).is_some()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What it takes of the memory, about.
    pub fn bytes(&self) -> usize {
        let apart = if self.len > self.pieces.len() { self.len * size_of::<T>() * 5 / 4 } else { 0 };
        tree_bytes(self.pieces.len(), size_of::<(u64, Piece<T>)>()) + apart
    }

    /// All, in order of offset.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.range(0..u64::MAX)
    }

    /// The first in a range.
    pub fn first_in(&self, range: Range<u64>) -> Option<(u64, T)> {
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
            ones(piece.bits & from & below).filter_map(move |at| Some((base | at, piece.values.get().get(piece.rank(1 << at))?)))
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
                } else if value == 2 {
                    let wanted = 0x5555_0f0f_3333_ffff_u64.rotate_left(start as u32);
                    let is_gone = |at: u64, of: u8| at >> PIECE_BITS == offset >> PIECE_BITS && wanted >> (at & PIECE_MASK) & 1 == 1 && of.is_multiple_of(2);
                    let gone = naive.iter().filter(|(at, of)| is_gone(**at, **of)).fold(0, |gone, (at, _)| gone | 1 << (at & PIECE_MASK));
                    assert_eq!(map.remove_bits(offset >> PIECE_BITS, wanted, |of| of.is_multiple_of(2)), gone);
                    naive.retain(|at, of| !is_gone(*at, *of));
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
