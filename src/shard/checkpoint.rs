//! A checkpoint in pieces: what a shard must remember, written between commits a piece at a time.
//!
//! Fuzzy: the shard goes on while it is written. A piece holds what has been *logged* about its entities,
//! durable or not, so that replaying the log from the checkpoint's begin, piece by piece and record by record
//! in order, gives the same state as the shard has.

use std::sync::Arc;

use ringmain_wire::queue::QueueConfig;
use ringmain_wire::{Offset, PartitionId, TopicId};

use super::catalog::{Catalog, CatalogChange};
use super::group::Groups;
use super::group::persist::offset_piece;
use super::message_ids::MESSAGE_ID_MAX_BYTES;
use super::partition::{Partition, PartitionTable};
use super::queue::QueueTable;
use super::queue::catalog::QueuePiece;
use super::queue::persist::{self, CursorPlace};
use super::state_record::{
    AbortedPiece, BatchPiece, KnownIdsPiece, MessageIdPiece, PartitionPiece, ProducerPiece, StateRecord, TopicPiece,
};
use super::transaction::Coordinator;
use crate::request::queue::QueueId;

/// A piece is ended after about so many bytes, well below DESIGN's 256 KiB: what one turn of a core thread can build.
const PIECE_BYTES: usize = 64 << 10;
/// Partitions looked at in one step for tables they may not have.
const PARTITIONS_PER_STEP: usize = 4096;
const TOPIC_PARTITIONS_PER_PIECE: usize = 8192;
const PARTITION_PIECE_BYTES: usize = 28;
const PLACE_BYTES: usize = 6;
const ABORTED_BYTES: usize = 32;
/// With the longest id.
const MESSAGE_ID_BYTES: usize = 24 + MESSAGE_ID_MAX_BYTES;
/// Records of groups in one step.
const GROUP_RECORDS_PER_STEP: usize = 256;

/// How far a checkpoint is. Positions are entity numbers: entities that come or go meanwhile do no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Shard 0: numbers and id block.
    Numbers,
    /// Shard 0: from this topic and partition index on.
    Topics { from: TopicId, index: usize },
    /// From this partition on.
    Partitions { from: PartitionId },
    /// Idempotent producers, from this partition on.
    Producers { from: PartitionId },
    /// Consumer groups, after this one on.
    Groups { after: Option<Arc<str>> },
    /// Their offsets, from this group and after this partition on.
    GroupOffsets { from: Arc<str>, after: Option<PartitionId> },
    /// Aborted transactions, from this partition and marker on. Behind the producers: only who knows what is open
    /// understands the markers in between.
    Aborted { from: PartitionId, marker: Offset },
    /// Transactional ids after this one.
    Transactions { after: Option<Box<str>> },
    /// Shard 0: queues from this one on.
    Queues { from: QueueId },
    /// Cursors of queues, from this one on.
    Cursors(CursorPlace),
    /// Message ids, from this partition and place on; the first of the partition or not.
    MessageIds { from: PartitionId, at: Option<u64> },
    /// Everything is in the log.
    Done,
}

/// What the pieces are made of.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// `None` on other shards than 0.
    pub catalog: Option<&'a Catalog>,
    /// End of the reserved producer ids.
    pub producer_ids_end: i64,
    /// The shard's transactional ids.
    pub coordinator: &'a Coordinator,
    /// The shard's partitions.
    pub partitions: &'a PartitionTable,
    /// The shard's groups.
    pub groups: &'a Groups,
    /// The shard's cursors of queues.
    pub queues: &'a QueueTable,
    /// Nothing is appended after this checkpoint: reservations end where the offsets do.
    pub is_final: bool,
}

/// The pieces at `cursor`, at most 256 KiB each, and where to go on once they are appended. May be none.
pub fn next_piece(cursor: &Cursor, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    match cursor {
        Cursor::Numbers => numbers(source),
        Cursor::Topics { from, index } => topics(*from, *index, source),
        Cursor::Partitions { from } => partitions(*from, source),
        Cursor::Producers { from } => producers(*from, source),
        Cursor::Groups { after } => groups(after.as_deref(), source),
        Cursor::GroupOffsets { from, after } => group_offsets(from, *after, source),
        Cursor::Aborted { from, marker } => aborted(*from, *marker, source),
        Cursor::Transactions { after } => transactions(after.as_deref(), source),
        Cursor::Queues { from } => queues(*from, source),
        Cursor::Cursors(place) => match persist::next_pieces(source.queues, place, PIECE_BYTES) {
            (records, Some(next)) => (records, Cursor::Cursors(next)),
            (records, None) => (records, Cursor::MessageIds { from: PartitionId(0), at: None }),
        },
        Cursor::MessageIds { from, at } => message_ids(*from, *at, source),
        Cursor::Done => (Vec::new(), Cursor::Done),
    }
}

fn message_ids(mut from: PartitionId, at: Option<u64>, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    for _ in 0..PARTITIONS_PER_STEP {
        let Some(partition) = source.partitions.next_from(from) else { return (Vec::new(), Cursor::Done) };
        let at = at.filter(|_| partition.id == from);
        if let Some(known) = partition.message_ids.as_deref() {
            let (first, entries) = known.entries_from(at.unwrap_or(0));
            let ids: Vec<MessageIdPiece> = entries.take(PIECE_BYTES / MESSAGE_ID_BYTES).collect();
            if !ids.is_empty() || at.is_none() {
                let next = first + ids.len() as u64;
                let piece = KnownIdsPiece { partition: partition.id.0, is_first: at.is_none(), ids };
                return (vec![StateRecord::KnownIds(Box::new(piece))], Cursor::MessageIds { from: partition.id, at: Some(next) });
            }
        }
        from = PartitionId(partition.id.0 + 1);
    }
    (Vec::new(), Cursor::MessageIds { from, at: None })
}

fn queues(mut from: QueueId, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    let known = source.catalog.map(Catalog::queues);
    while let Some(queue) = known.and_then(|queues| queues.next_from(from)) {
        if bytes >= PIECE_BYTES {
            return (vec![StateRecord::QueueList(pieces)], Cursor::Queues { from });
        }
        bytes += 160 + queue.name.len() + queue.config.filter.len();
        from = QueueId(queue.queue.0 + 1);
        pieces.push(QueuePiece {
            queue: queue.queue.0,
            name: queue.name.to_string(),
            topic: queue.topic.0,
            config: QueueConfig::clone(&queue.config),
        });
    }
    let records = if pieces.is_empty() { Vec::new() } else { vec![StateRecord::QueueList(pieces)] };
    (records, Cursor::Cursors(CursorPlace::default()))
}

fn numbers(source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let Some(catalog) = source.catalog else {
        return (Vec::new(), Cursor::Partitions { from: PartitionId(0) });
    };
    let (next_topic, next_partition) = catalog.next_numbers();
    let mut records =
        vec![StateRecord::CatalogNumbers { next_topic, next_partition }, StateRecord::ProducerIds { end: source.producer_ids_end }];
    records.push(StateRecord::QueueNumbers { next_queue: catalog.queues().next_number() });
    if !catalog.slots().is_empty() {
        let shards = catalog.slots().iter().map(|shard| shard.0).collect();
        records.push(StateRecord::Catalog(CatalogChange::SlotsPlaced { shards }));
    }
    (records, Cursor::Topics { from: TopicId(0), index: 0 })
}

fn topics(mut from: TopicId, mut index: usize, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    let rest = Cursor::Partitions { from: PartitionId(0) };
    let Some(catalog) = source.catalog else { return (Vec::new(), rest) };
    while let Some(topic) = catalog.next_topic_from(from) {
        if bytes >= PIECE_BYTES {
            return (vec![StateRecord::Topics(pieces)], Cursor::Topics { from, index });
        }
        if topic.topic != from {
            index = 0;
        }
        let end = topic.partitions.len().min(index + TOPIC_PARTITIONS_PER_PIECE);
        let partitions = topic.partitions.get(index..end).unwrap_or_default().to_vec();
        bytes += 64 + topic.name.len() + partitions.len() * PLACE_BYTES;
        pieces.push(TopicPiece {
            topic: topic.topic.0,
            name: topic.name.to_string(),
            config: topic.config.clone(),
            first_index: index as u32,
            partitions,
        });
        (from, index) = if end < topic.partitions.len() { (topic.topic, end) } else { (TopicId(topic.topic.0 + 1), 0) };
    }
    (if pieces.is_empty() { Vec::new() } else { vec![StateRecord::Topics(pieces)] }, rest)
}

fn partitions(mut from: PartitionId, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let mut pieces = Vec::new();
    while pieces.len() * PARTITION_PIECE_BYTES < PIECE_BYTES {
        let Some(partition) = source.partitions.next_from(from) else {
            let records = if pieces.is_empty() { Vec::new() } else { vec![StateRecord::Partitions(pieces)] };
            return (records, Cursor::Producers { from: PartitionId(0) });
        };
        pieces.push(partition_piece(partition, source.is_final));
        from = PartitionId(partition.id.0 + 1);
    }
    (vec![StateRecord::Partitions(pieces)], Cursor::Partitions { from })
}

fn partition_piece(partition: &Partition, is_final: bool) -> PartitionPiece {
    let reserved_end = if is_final && partition.reserved_end_logged.0 > 0 { partition.next_offset } else { partition.reserved_end_logged };
    PartitionPiece {
        partition: partition.id.0,
        log_start: partition.log_start_logged.0,
        next_offset: partition.next_offset.0,
        reserved_end: reserved_end.0,
    }
}

fn producers(mut from: PartitionId, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    for _ in 0..PARTITIONS_PER_STEP {
        let Some(partition) = source.partitions.next_from(from) else {
            return (Vec::new(), Cursor::Groups { after: None });
        };
        from = PartitionId(partition.id.0 + 1);
        let Some(table) = partition.producers.as_deref().filter(|table| !table.is_empty()) else { continue };
        let producers = table.in_order_of_use().into_iter().map(|(producer_id, state)| ProducerPiece {
            producer_id: producer_id.0,
            epoch: state.epoch,
            last_append_ms: state.last_append_ms,
            transaction_start: state.transaction_start.map(|offset| offset.0),
            batches: state
                .stored()
                .iter()
                .map(|b| BatchPiece { first_sequence: b.first_sequence, last_sequence: b.last_sequence, base_offset: b.base_offset })
                .collect(),
        });
        let record = StateRecord::Producers { partition: partition.id.0, producers: producers.collect() };
        return (vec![record], Cursor::Producers { from });
    }
    (Vec::new(), Cursor::Producers { from })
}

/// A group's records stay together: its members count once all of them have been replayed.
fn groups(after: Option<&str>, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let (mut records, mut bytes) = (Vec::new(), 0);
    for (name, group) in source.groups.after(after) {
        let from = records.len();
        records.extend(group.records());
        bytes += records[from..].iter().map(|record| 128 + name.len() + group_record_bytes(record)).sum::<usize>();
        if bytes >= PIECE_BYTES || records.len() >= GROUP_RECORDS_PER_STEP {
            return (records, Cursor::Groups { after: Some(name.clone()) });
        }
    }
    (records, Cursor::GroupOffsets { from: "".into(), after: None })
}

fn group_record_bytes(record: &StateRecord) -> usize {
    match record {
        StateRecord::GroupMembers { members, .. } => {
            members.iter().map(|member| 128 + member.metadata.len() + member.assignment.len()).sum()
        }
        StateRecord::GroupStaged { offsets, .. } => offsets.iter().map(|offset| 32 + offset.metadata.len()).sum(),
        _ => 0,
    }
}

/// What is staged lies behind the offsets of its group: a replayed commit makes what was staged before it void.
fn group_offsets(from: &Arc<str>, after: Option<PartitionId>, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let (mut records, mut bytes, mut from, mut after) = (Vec::new(), 0, from.clone(), after);
    while let Some((name, group)) = source.groups.from(&from) {
        if *name != from {
            (from, after) = (name.clone(), None);
        }
        let (mut offsets, mut is_whole) = (Vec::new(), true);
        for (partition, committed) in group.offsets.logged_after(after) {
            if bytes >= PIECE_BYTES {
                is_whole = false;
                break;
            }
            bytes += 48 + committed.metadata.len();
            offsets.push(offset_piece(partition, committed));
            after = Some(partition);
        }
        if !offsets.is_empty() {
            bytes += 64 + name.len();
            records.push(StateRecord::GroupOffsets { group: name.to_string(), offsets });
        }
        if is_whole {
            let staged = records.len();
            records.extend(group.staged_records());
            bytes += records[staged..].iter().map(|record| 128 + name.len() + group_record_bytes(record)).sum::<usize>();
            // The next name in order: nothing lies between a name and itself with a zero byte behind it.
            (from, after) = (format!("{name}\0").into(), None);
        }
        if bytes >= PIECE_BYTES || records.len() >= GROUP_RECORDS_PER_STEP {
            return (records, Cursor::GroupOffsets { from, after });
        }
    }
    (records, Cursor::Aborted { from: PartitionId(0), marker: Offset(0) })
}

fn aborted(mut from: PartitionId, mut marker: Offset, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    for _ in 0..PARTITIONS_PER_STEP {
        let Some(partition) = source.partitions.next_from(from) else { return (Vec::new(), Cursor::Transactions { after: None }) };
        if partition.id != from {
            marker = Offset(0);
        }
        let known = partition.transactions.iter().flat_map(|transactions| transactions.aborted_from(marker));
        let pieces: Vec<AbortedPiece> = known
            .take(PIECE_BYTES / ABORTED_BYTES)
            .map(|(marker, aborted)| AbortedPiece {
                producer_id: aborted.producer_id.0,
                first_offset: aborted.first_offset.0,
                last_offset: marker.0,
                stable: aborted.stable.0,
            })
            .collect();
        if let Some(last) = pieces.last() {
            let next = Cursor::Aborted { from: partition.id, marker: Offset(last.last_offset + 1) };
            return (vec![StateRecord::Aborted { partition: partition.id.0, transactions: pieces }], next);
        }
        from = PartitionId(partition.id.0 + 1);
    }
    (Vec::new(), Cursor::Aborted { from, marker: Offset(0) })
}

fn transactions(after: Option<&str>, source: Source<'_>) -> (Vec<StateRecord>, Cursor) {
    let (mut pieces, mut checks, mut bytes) = (Vec::new(), Vec::new(), 0);
    for piece in source.coordinator.pieces_after(after) {
        if let Some(check) = source.coordinator.check_piece(&piece.transactional_id) {
            bytes += 64 + check.transactional_id.len() + check.group.len();
            checks.push(StateRecord::TransactionCheckBack(Box::new(check)));
        }
        bytes += 96 + piece.transactional_id.len() + 4 * piece.partitions.len();
        bytes += piece.groups.iter().map(|group| 16 + group.len()).sum::<usize>();
        let after = piece.transactional_id.as_str().into();
        pieces.push(piece);
        if bytes >= PIECE_BYTES {
            checks.push(StateRecord::Transactions(pieces));
            return (checks, Cursor::Transactions { after: Some(after) });
        }
    }
    if !pieces.is_empty() {
        checks.push(StateRecord::Transactions(pieces));
    }
    (checks, Cursor::Queues { from: QueueId(0) })
}
