//! Where messages lie in the log that were looked at and are read again: delayed ones, and those of a queue with priorities. Else each
//! of them would be looked for in its run, frame by frame, and in its batch, record by record.
//!
//! A hint. What isn't noted, and what isn't there any more, is found by the log's index.

use std::collections::VecDeque;

use super::packed::{PIECE_BITS, PIECE_MASK, ones};
use crate::log::Near;

/// Positions in the log are multiples of this.
const UNIT_BYTES: u32 = ringmain_wire::ALIGNMENT_BYTES as u32;
/// Pieces without a note between two that have some; beyond, the older ones are forgotten.
const GAP_MAX: u64 = 1_024;

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Number of the segment.
    pub segment: u64,
    /// Where its frame begins there.
    pub frame: u32,
    /// Where it begins in the frame's body.
    pub record: u32,
}

/// Spots of messages, by offset.
#[derive(Debug, Default)]
pub struct Spots {
    /// Number of the first piece; 64 offsets share one.
    first: u64,
    pieces: VecDeque<Piece>,
    /// Room for notes, in all pieces.
    room: usize,
    /// Where in memory the last one was.
    pub near: Near,
}

#[derive(Debug, Default)]
struct Piece {
    /// Which offsets have a note, …
    bits: u64,
    /// … and which of them are wanted: the others' notes go when most have gone.
    wanted: u64,
    segment: u64,
    /// Where the first noted one's frame begins.
    base: u32,
    /// In the order of the bits.
    notes: Vec<Note>,
}

/// In units of 8 bytes.
#[derive(Clone, Copy, Debug)]
struct Note {
    /// From the base to the frame …
    frame: u16,
    /// … and from its body to the record.
    record: u16,
}

impl Piece {
    fn rank(&self, bit: u64) -> usize {
        (self.bits & (bit - 1)).count_ones() as usize
    }

    fn note(&mut self, bit: u64, spot: Spot) {
        if self.bits == 0 {
            (self.segment, self.base) = (spot.segment, spot.frame);
        }
        let Some(from_base) = spot.frame.checked_sub(self.base).filter(|_| self.segment == spot.segment) else { return };
        let (Ok(frame), Ok(record)) = (u16::try_from(from_base / UNIT_BYTES), u16::try_from(spot.record / UNIT_BYTES)) else { return };
        let at = self.rank(bit);
        if self.bits & bit == 0 {
            self.bits |= bit;
            self.notes.insert(at, Note { frame, record });
        } else {
            self.notes[at] = Note { frame, record };
        }
        self.wanted |= bit;
    }

    fn forget(&mut self, bit: u64) {
        self.wanted &= !bit;
        if self.wanted.count_ones() * 4 <= self.bits.count_ones() {
            let mut bits = ones(self.bits);
            let wanted = self.wanted;
            self.notes.retain(|_| bits.next().is_some_and(|at| wanted >> at & 1 == 1));
            self.notes.shrink_to_fit();
            self.bits = wanted;
        }
    }
}

impl Spots {
    /// Notes where a message is; too far from others it isn't noted.
    pub fn note(&mut self, offset: u64, spot: Spot) {
        let (number, bit) = (offset >> PIECE_BITS, 1 << (offset & PIECE_MASK));
        if self.pieces.is_empty() || number > self.first + self.pieces.len() as u64 + GAP_MAX {
            self.clear();
            self.first = number;
        }
        let Some(at) = number.checked_sub(self.first) else { return };
        while self.pieces.len() as u64 <= at {
            self.pieces.push_back(Piece::default());
        }
        let piece = &mut self.pieces[at as usize];
        let before = piece.notes.capacity();
        piece.note(bit, spot);
        self.room += piece.notes.capacity() - before;
    }

    fn piece(&self, offset: u64) -> Option<(&Piece, u64)> {
        let at = (offset >> PIECE_BITS).checked_sub(self.first)?;
        let bit = 1 << (offset & PIECE_MASK);
        self.pieces.get(at as usize).filter(|piece| piece.wanted & bit != 0).map(|piece| (piece, bit))
    }

    /// Where a message is, if it is noted.
    pub fn get(&self, offset: u64) -> Option<Spot> {
        let (piece, bit) = self.piece(offset)?;
        let note = piece.notes.get(piece.rank(bit))?;
        let (frame, record) = (u32::from(note.frame) * UNIT_BYTES, u32::from(note.record) * UNIT_BYTES);
        Some(Spot { segment: piece.segment, frame: piece.base + frame, record })
    }

    /// It isn't read again, or not there.
    pub fn forget(&mut self, offset: u64) {
        let Some(at) = (offset >> PIECE_BITS).checked_sub(self.first) else { return };
        let bit = 1 << (offset & PIECE_MASK);
        let Some(piece) = self.pieces.get_mut(at as usize).filter(|piece| piece.wanted & bit != 0) else { return };
        let before = piece.notes.capacity();
        piece.forget(bit);
        self.room -= before - piece.notes.capacity();
        if piece.bits == 0 && at == 0 {
            self.drop_empty();
        }
    }

    /// Nothing below is read again.
    pub fn forget_below(&mut self, offset: u64) {
        while self.first < offset >> PIECE_BITS && !self.pieces.is_empty() {
            self.drop_oldest();
        }
    }

    /// The oldest notes go, until the others take no more than so many bytes.
    pub fn shrink(&mut self, bytes: usize) {
        while self.bytes() > bytes && !self.pieces.is_empty() {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.room -= piece.notes.capacity();
            self.first += 1;
        }
        self.drop_empty();
    }

    fn drop_empty(&mut self) {
        while self.pieces.front().is_some_and(|piece| piece.bits == 0) {
            self.pieces.pop_front();
            self.first += 1;
        }
        if self.pieces.len() < self.pieces.capacity() / 4 {
            self.pieces.shrink_to(self.pieces.len() * 2);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Spots::default();
    }

    /// What they take of the memory.
    pub fn bytes(&self) -> usize {
        self.pieces.capacity() * size_of::<Piece>() + self.room * size_of::<Note>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_noted_is_found_until_it_is_forgotten(
            steps in proptest::collection::vec((0u64..40, 0u32..2_000, 0u32..3_000, 0u8..8), 0..200),
            below in 0u64..2_000,
            most in 0usize..20_000,
        ) {
            let (mut spots, mut naive, mut next, mut segment, mut frame) = (Spots::default(), BTreeMap::new(), 100, 7, 64);
            for (skip, len, record, kind) in steps {
                next += skip;
                frame += len * UNIT_BYTES;
                match kind {
                    0 => {
                        (segment, frame) = (segment + 1, 0);
                    }
                    1 => {
                        if let Some(offset) = naive.keys().nth(skip as usize).copied() {
                            spots.forget(offset);
                            naive.remove(&offset);
                            assert_eq!(spots.get(offset), None);
                        }
                    }
                    _ => {
                        let spot = Spot { segment, frame, record: record * UNIT_BYTES };
                        spots.note(next, spot);
                        naive.insert(next, spot);
                        next += 1;
                    }
                }
            }
            // A hint may be missing and is never wrong.
            for (offset, spot) in &naive {
                assert!(spots.get(*offset).is_none_or(|found| found == *spot), "{offset}");
            }
            spots.forget_below(below);
            assert!((0..below & !PIECE_MASK).all(|offset| spots.get(offset).is_none()));
            assert!(spots.pieces.iter().all(|piece| piece.notes.len() == piece.bits.count_ones() as usize));
            let room: usize = spots.pieces.iter().map(|piece| piece.notes.capacity()).sum();
            assert_eq!(spots.room, room);
            spots.shrink(most);
            assert!(spots.bytes() <= most || spots.pieces.is_empty());
            naive.keys().for_each(|offset| spots.forget(*offset));
            assert_eq!((spots.pieces.len(), spots.room), (0, 0));
        }
    }

    #[test]
    fn a_message_of_many_costs_few_bytes() {
        let mut spots = Spots::default();
        for offset in 0..64_000 {
            spots.note(offset, Spot { segment: 1, frame: (offset / 100 * 16_000) as u32, record: (offset % 100 * 160) as u32 });
        }
        assert!((0..64_000).all(|offset| spots.get(offset).is_some()));
        assert!(spots.bytes() <= 64_000 * 6, "{} bytes", spots.bytes());
        // Far behind them: they are forgotten, rather than the way there remembered.
        spots.note(1 << 40, Spot { segment: 9, frame: 0, record: 16 });
        assert_eq!((spots.get(0), spots.get(1 << 40).map(|spot| spot.segment)), (None, Some(9)));
        assert!(spots.bytes() < 1_024);
    }
}
