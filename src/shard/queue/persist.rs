//! Cursors as state records, and back.

use std::collections::HashMap;

use ringmain_wire::{PartitionId, ProducerId};

use super::super::state_record::{
    QueueHeadPiece, QueueMarkPiece, QueuePartsPiece, QueueRedirectedPiece, QueueSettledPiece, QueueStagedPiece, QueueUnstagedPiece,
    QueueVoidPiece, ReturnedPiece, StateRecord,
};
use super::QueueTable;
use super::cursor::{Cursor, End, Returned, Saved, Tally, Unlogged};
use super::settled::Settled;
use crate::request::queue::QueueId;
use crate::request::transaction::ProducerKey;

/// Ranges and returned messages of one record: together well below 256 KiB.
const ENTRIES_PER_RECORD: usize = 4_096;
const HEAD_BYTES: usize = 128;
const ENTRY_BYTES: usize = 24;

/// How far a checkpoint of cursors is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CursorPlace {
    from: (PartitionId, QueueId),
    part: Part,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    Settled {
        from: u64,
    },
    Returned {
        from: u64,
    },
    Redirected {
        from: u64,
    },
    Staged {
        from: u64,
    },
}

/// The pieces from `place` on, about `bytes` of them, and where to go on.
pub fn next_pieces(table: &QueueTable, place: &CursorPlace, bytes: usize) -> (Vec<StateRecord>, Option<CursorPlace>) {
    let (mut records, mut written, mut place) = (Vec::new(), 0, *place);
    while written < bytes {
        let Some((key, cursor, is_known)) = table.next_from(place.from) else { return (records, None) };
        if key != place.from {
            place = CursorPlace { from: key, part: Part::Head };
        }
        let (partition, queue) = (key.0.0, key.1.0);
        place.part = match place.part {
            Part::Head => {
                let piece = head_piece(key, cursor);
                records.push(if is_known { StateRecord::QueueKept(piece) } else { StateRecord::QueueHead(piece) });
                written += HEAD_BYTES;
                Part::Settled { from: 0 }
            }
            Part::Settled { from } => {
                let settled: Vec<(u64, u64)> = cursor.settled_from(from).take(ENTRIES_PER_RECORD).collect();
                match settled.last().map(|(start, _)| *start) {
                    Some(last) => {
                        written += settled.len() * ENTRY_BYTES;
                        records.push(StateRecord::QueueParts(Box::new(QueuePartsPiece {
                            queue,
                            partition,
                            settled,
                            returned: Vec::new(),
                        })));
                        Part::Settled { from: last + 1 }
                    }
                    None => Part::Returned { from: 0 },
                }
            }
            Part::Returned { from } => {
                let returned: Vec<ReturnedPiece> = cursor.history_from(from).take(ENTRIES_PER_RECORD).map(|it| piece(&it)).collect();
                match returned.last().map(|last| last.offset) {
                    Some(last) => {
                        written += returned.len() * ENTRY_BYTES;
                        records.push(StateRecord::QueueParts(Box::new(QueuePartsPiece {
                            queue,
                            partition,
                            settled: Vec::new(),
                            returned,
                        })));
                        Part::Returned { from: last + 1 }
                    }
                    None => Part::Redirected { from: 0 },
                }
            }
            Part::Redirected { from } => {
                let ranges: Vec<(u64, u64)> = cursor.redirected_from(from).take(ENTRIES_PER_RECORD).collect();
                match (ranges.first().copied(), ranges.last().copied()) {
                    (Some((first, _)), Some((_, last))) => {
                        written += ranges.len() * ENTRY_BYTES;
                        records.push(redirected(key, first, ranges));
                        Part::Redirected { from: last }
                    }
                    _ => Part::Staged { from: 0 },
                }
            }
            Part::Staged { from } => {
                let staged: Vec<_> = cursor.staged_from(from).take(ENTRIES_PER_RECORD).collect();
                match staged.last().map(|(last, _)| *last) {
                    Some(last) => {
                        written += staged.len() * ENTRY_BYTES;
                        let ranges: Vec<_> = staged.iter().map(|(offset, producer)| (*producer, *offset, offset + 1)).collect();
                        records.extend(staged_records(key.1.0, key.0.0, &ranges));
                        Part::Staged { from: last + 1 }
                    }
                    None => {
                        place.from = (key.0, QueueId(queue + 1));
                        Part::Head
                    }
                }
            }
        };
    }
    (records, Some(place))
}

/// A cursor that begins, or begins anew.
pub fn head(key: (PartitionId, QueueId), cursor: &Cursor) -> StateRecord {
    StateRecord::QueueHead(head_piece(key, cursor))
}

/// A cursor as it is, but for its parts.
fn head_piece(key: (PartitionId, QueueId), cursor: &Cursor) -> Box<QueueHeadPiece> {
    let (begin, tally, floor, mark, crashes) = cursor.head();
    Box::new(QueueHeadPiece {
        queue: key.1.0,
        partition: key.0.0,
        begin,
        floor,
        mark,
        crashes,
        acked: tally.acked,
        dead: tally.dead,
        dropped: tally.dropped,
        void: tally.void,
    })
}

/// Messages from `from` on that go to another topic.
pub fn redirected(key: (PartitionId, QueueId), from: u64, ranges: Vec<(u64, u64)>) -> StateRecord {
    StateRecord::QueueRedirected(Box::new(QueueRedirectedPiece { queue: key.1.0, partition: key.0.0, from, ranges }))
}

/// One record per producer, in order of the first of each.
fn staged_records(queue: u32, partition: u32, staged: &[(ProducerKey, u64, u64)]) -> Vec<StateRecord> {
    let mut by_producer: Vec<(ProducerKey, Vec<(u64, u64)>)> = Vec::new();
    let mut place_of = HashMap::new();
    for (producer, start, end) in staged {
        let place = *place_of.entry(*producer).or_insert(by_producer.len());
        if place == by_producer.len() {
            by_producer.push((*producer, Vec::new()));
        }
        by_producer[place].1.push((*start, *end));
    }
    let record = |(producer, staged): (ProducerKey, Vec<(u64, u64)>)| {
        let ProducerKey { id, epoch } = producer;
        StateRecord::QueueStaged(Box::new(QueueStagedPiece { queue, partition, producer_id: id.0, producer_epoch: epoch, staged }))
    };
    by_producer.into_iter().map(record).collect()
}

/// What has happened, in records of a bounded size. First what was staged, last which transactions were aborted, so that neither is
/// forgotten nor found again; the order of the others doesn't matter.
pub fn settled(key: (PartitionId, QueueId), unlogged: &Unlogged) -> Vec<StateRecord> {
    let (queue, partition) = (key.1.0, key.0.0);
    let mut records: Vec<StateRecord> = Vec::new();
    for chunk in unlogged.staged.chunks(ENTRIES_PER_RECORD) {
        records.extend(staged_records(queue, partition, chunk));
    }
    for chunk in unlogged.void.chunks(ENTRIES_PER_RECORD) {
        records.push(StateRecord::QueueVoid(Box::new(QueueVoidPiece { queue, partition, void: chunk.to_vec() })));
    }
    let unstaged = unlogged.unstaged.iter().map(|producer| {
        let ProducerKey { id, epoch } = *producer;
        StateRecord::QueueUnstaged(Box::new(QueueUnstagedPiece { queue, partition, producer_id: id.0, producer_epoch: epoch }))
    });
    let mut push = |acked: &[(u64, u64)], dead: &[(u64, u64)], dropped: &[(u64, u64)], returned: &[Returned]| {
        records.push(StateRecord::QueueSettled(Box::new(QueueSettledPiece {
            queue,
            partition,
            acked: acked.to_vec(),
            dead: dead.to_vec(),
            dropped: dropped.to_vec(),
            returned: returned.iter().map(piece).collect(),
        })));
    };
    let total = unlogged.acked.len() + unlogged.dead.len() + unlogged.dropped.len() + unlogged.returned.len();
    if (1..=ENTRIES_PER_RECORD).contains(&total) {
        push(&unlogged.acked, &unlogged.dead, &unlogged.dropped, &unlogged.returned);
    } else {
        unlogged.acked.chunks(ENTRIES_PER_RECORD).for_each(|chunk| push(chunk, &[], &[], &[]));
        unlogged.dead.chunks(ENTRIES_PER_RECORD).for_each(|chunk| push(&[], chunk, &[], &[]));
        unlogged.dropped.chunks(ENTRIES_PER_RECORD).for_each(|chunk| push(&[], &[], chunk, &[]));
        unlogged.returned.chunks(ENTRIES_PER_RECORD).for_each(|chunk| push(&[], &[], &[], chunk));
    }
    records.extend(unstaged);
    records
}

fn piece(returned: &Returned) -> ReturnedPiece {
    ReturnedPiece { offset: returned.offset, deliveries: returned.deliveries, due_ms: returned.due_ms }
}

/// Cursors as the log has them.
#[derive(Debug, Default)]
pub struct SavedCursors {
    cursors: HashMap<(u32, u32), Saved>,
    /// Those of which the log said before all that a checkpoint says now; whether that one's parts are being passed over.
    whole: HashMap<(u32, u32), bool>,
}

impl SavedCursors {
    /// The cursor of a queue in a partition, taken out.
    pub fn take(&mut self, partition: PartitionId, queue: QueueId) -> Option<Saved> {
        self.cursors.remove(&(partition.0, queue.0))
    }

    /// A record of this module.
    pub fn replay(&mut self, record: StateRecord) {
        match record {
            StateRecord::QueueHead(piece) => {
                let QueueHeadPiece { queue, partition, begin, floor, mark, crashes, acked, dead, dropped, void } = *piece;
                let tally = Tally { acked, dead, dropped, void };
                let saved = Saved { begin, tally, settled: Settled::below(floor), mark, crashes, ..Saved::default() };
                self.cursors.insert((partition, queue), saved);
                self.whole.insert((partition, queue), false);
            }
            StateRecord::QueueKept(piece) => {
                let QueueHeadPiece { queue, partition, begin, floor, mark, crashes, acked, dead, dropped, void } = *piece;
                if let Some(passes_over) = self.whole.get_mut(&(partition, queue)) {
                    *passes_over = true;
                    return;
                }
                self.whole.insert((partition, queue), false);
                let saved = self.cursors.entry((partition, queue)).or_default();
                (saved.begin, saved.tally, saved.mark, saved.crashes) = (begin, Tally { acked, dead, dropped, void }, mark, crashes);
                saved.settled.insert(0, floor);
                saved.unstage(0, floor);
            }
            StateRecord::QueueParts(piece) => {
                let QueuePartsPiece { queue, partition, settled, returned } = *piece;
                if self.whole.get(&(partition, queue)) == Some(&true) {
                    return;
                }
                let saved = self.cursors.entry((partition, queue)).or_default();
                for (start, end) in settled {
                    saved.settled.insert(start, end);
                    saved.unstage(start, end);
                }
                saved.history.extend(returned.into_iter().map(|it| (it.offset, (it.deliveries, it.due_ms))));
            }
            StateRecord::QueueSettled(piece) => {
                let QueueSettledPiece { queue, partition, acked, dead, dropped, returned } = *piece;
                let saved = self.cursors.entry((partition, queue)).or_default();
                for (ranges, end) in [(acked, End::Acked), (dead, End::Dead), (dropped, End::Dropped)] {
                    ranges.into_iter().for_each(|(start, until)| saved.end(start, until, end));
                }
                for it in returned {
                    if !saved.settled.contains(it.offset) {
                        saved.history.insert(it.offset, (it.deliveries, it.due_ms));
                    }
                }
            }
            StateRecord::QueueRedirected(piece) => {
                let QueueRedirectedPiece { queue, partition, from, ranges } = *piece;
                let saved = self.cursors.entry((partition, queue)).or_default();
                saved.redirected.cut(from);
                ranges.into_iter().for_each(|(start, end)| saved.redirected.push(start, end));
            }
            StateRecord::QueueStaged(piece) => {
                let QueueStagedPiece { queue, partition, producer_id, producer_epoch, staged } = *piece;
                let saved = self.cursors.entry((partition, queue)).or_default();
                let producer = ProducerKey { id: ProducerId(producer_id), epoch: producer_epoch };
                for offset in staged.into_iter().flat_map(|(start, end)| start..end) {
                    if !saved.settled.contains(offset) {
                        saved.staged.insert(offset, producer);
                    }
                }
            }
            StateRecord::QueueVoid(piece) => {
                let QueueVoidPiece { queue, partition, void } = *piece;
                let saved = self.cursors.entry((partition, queue)).or_default();
                void.into_iter().for_each(|(start, end)| saved.end(start, end, End::Void));
            }
            StateRecord::QueueUnstaged(piece) => {
                let QueueUnstagedPiece { queue, partition, producer_id, producer_epoch } = *piece;
                let saved = self.cursors.entry((partition, queue)).or_default();
                saved.staged.retain(|_, producer| producer.id.0 != producer_id || producer.epoch > producer_epoch);
            }
            StateRecord::QueueMark(piece) => {
                let QueueMarkPiece { queue, partition, mark, crashes } = *piece;
                let saved = self.cursors.entry((partition, queue)).or_default();
                (saved.mark, saved.crashes) = (mark, crashes);
            }
            _ => {}
        }
    }
}
