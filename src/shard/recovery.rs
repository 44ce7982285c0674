//! A shard's state from its log: frames and state records, in order, from the last complete checkpoint on.

use ringmain_wire::control::Durability;
use ringmain_wire::frame::flags;
use ringmain_wire::{DEFAULT_MAX_MESSAGE_BYTES, FrameHeader, MAX_MESSAGE_BYTES_LIMIT, Offset, PartitionId, ProducerId};

use super::catalog::Catalog;
use super::group::{Groups, Incoming};
use super::message_ids;
use super::participant::Aborted;
use super::partition::{Partition, PartitionTable};
use super::producer_state::{Batch, Stored};
use super::queue::persist::SavedCursors;
use super::state_record::{AbortedPiece, GroupOffsetPiece, OffsetPiece, PartitionPiece, ProducerPiece, StateError, StateRecord};
use super::transaction::Coordinator;
use crate::log::Replay;
use crate::request::PartitionConfig;
use crate::request::transaction::ProducerKey;

/// Settings of a partition until the catalog names them: nothing is appended before that.
const UNTIL_CATALOG: PartitionConfig = PartitionConfig {
    durability: Durability::Durable,
    retention_ms: None,
    retention_bytes: None,
    max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
    append_time: false,
};
const _: () = assert!(DEFAULT_MAX_MESSAGE_BYTES <= MAX_MESSAGE_BYTES_LIMIT);

/// What replay has rebuilt so far.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Also partitions that no longer exist: the catalog decides, later.
    pub partitions: PartitionTable,
    /// Shard 0's; empty elsewhere.
    pub catalog: Catalog,
    /// Transactions coordinated here.
    pub coordinator: Coordinator,
    /// Producer ids below may have been given away.
    pub producer_ids_end: i64,
    /// The first state record that couldn't be read.
    pub error: Option<StateError>,
    /// Consumer groups; they come to life with `Groups::begin`.
    pub groups: Groups,
    /// Cursors of queues; they come to life with the catalog.
    pub queues: SavedCursors,
    incoming: Incoming,
    producers_per_partition_max: usize,
}

impl Replay for Recovery {
    fn frame(&mut self, header: &FrameHeader, _largest_timestamp_ms: i64, body: &[u8]) {
        if header.producer.partition != PartitionId::STATE.0 {
            return self.data(header);
        }
        match StateRecord::read(body) {
            Ok(record) => self.state(record),
            Err(error) => self.error = self.error.or(Some(error)),
        }
    }
}

impl Recovery {
    /// Nothing replayed yet.
    pub fn new(producers_per_partition_max: usize) -> Recovery {
        Recovery { producers_per_partition_max, ..Recovery::default() }
    }

    /// After the last frame: offsets that were reserved may have been used by records that are lost, so
    /// `written` and `memory` partitions go on behind them. What is left of the log is durable, hence readable.
    pub fn finish(&mut self) {
        for id in self.partitions.ids() {
            let Some(partition) = self.partitions.get_mut(id) else { continue };
            partition.next_offset = partition.next_offset.max(partition.reserved_end_logged).max(partition.log_start_logged);
            partition.reserved_end = partition.reserved_end_logged;
            partition.log_start = partition.log_start_logged;
            partition.high_watermark = partition.next_offset;
            if let Some(transactions) = partition.transactions.as_deref_mut() {
                transactions.settle(u64::MAX);
                transactions.prune(partition.log_start);
            }
        }
        self.coordinator.finish_replay();
    }

    fn partition(&mut self, id: u32) -> &mut Partition {
        let id = PartitionId(id);
        if self.partitions.get(id).is_none() {
            self.partitions.insert(Partition::new(id, UNTIL_CATALOG));
        }
        self.partitions.get_mut(id).expect("inserted above")
    }

    fn data(&mut self, header: &FrameHeader) {
        let (broker, producer) = (&header.broker, &header.producer);
        let limit = self.producers_per_partition_max;
        let (is_transactional, is_marker) = (producer.flags & flags::TRANSACTIONAL != 0, producer.flags & flags::CONTROL != 0);
        let (producer_id, base_offset) = (ProducerId(producer.producer_id), Offset(broker.base_offset));
        let partition = self.partition(producer.partition);
        partition.next_offset = Offset(broker.base_offset + u64::from(producer.record_count));
        if let Some(ids) = partition.message_ids.as_deref_mut() {
            ids.arrived(broker.base_offset, producer.body_crc);
        }
        if is_marker {
            let table = partition.producers.get_or_insert_default();
            if let Some(first) = table.end_transaction(producer_id, producer.producer_epoch, broker.append_time_ms) {
                let is_commit = producer.flags & flags::ABORTED == 0;
                partition.transactions.get_or_insert_default().end(producer_id, first, base_offset, is_commit, 0);
            }
        } else if producer.producer_id > ProducerId::NONE.0 {
            let batch = Batch {
                producer_id: ProducerId(producer.producer_id),
                epoch: producer.producer_epoch,
                first_sequence: producer.sequence,
                record_count: producer.record_count,
            };
            let table = partition.producers.get_or_insert_default();
            table.record(batch, base_offset, broker.append_time_ms, limit);
            if is_transactional && table.get(producer_id).is_some_and(|state| state.transaction_start.is_none()) {
                table.begin_transaction(producer_id, base_offset);
                partition.transactions.get_or_insert_default().begin(base_offset, producer_id);
            }
        }
    }

    fn state(&mut self, record: StateRecord) {
        match record {
            StateRecord::Catalog(change) => self.catalog.apply(&change),
            StateRecord::Reserved { partition, end } => self.partition(partition).reserved_end_logged = Offset(end),
            StateRecord::ProducerIds { end } => self.producer_ids_end = self.producer_ids_end.max(end),
            StateRecord::LogStart { partition, offset } => self.partition(partition).log_start_logged = Offset(offset),
            StateRecord::ConsumerOffset { partition, offset } => self.offset(partition, offset),
            StateRecord::CatalogNumbers { next_topic, next_partition } => self.catalog.put_next_numbers(next_topic, next_partition),
            StateRecord::QueueNumbers { next_queue } => self.catalog.put_next_queue(next_queue),
            StateRecord::Queues(pieces) => pieces.iter().for_each(|piece| self.catalog.put_queue(&piece.into())),
            StateRecord::QueueList(pieces) => pieces.iter().for_each(|piece| self.catalog.put_queue(piece)),
            StateRecord::QueueHead(_)
            | StateRecord::QueueKept(_)
            | StateRecord::QueueParts(_)
            | StateRecord::QueueSettled(_)
            | StateRecord::QueueRedirected(_)
            | StateRecord::QueueMark(_)
            | StateRecord::QueueStaged(_)
            | StateRecord::QueueUnstaged(_)
            | StateRecord::QueueVoid(_) => self.queues.replay(record),
            StateRecord::Topics(pieces) => {
                for piece in pieces {
                    self.catalog.put(ringmain_wire::TopicId(piece.topic), &piece.name, &piece.config, piece.first_index, &piece.partitions);
                }
            }
            StateRecord::MessageIds(piece) => self.partition(piece.partition).message_ids.get_or_insert_default().announce(piece),
            StateRecord::KnownIds(piece) => self.partition(piece.partition).message_ids.get_or_insert_default().restore(&piece),
            StateRecord::ProducerAdvanced(piece) => {
                let limit = self.producers_per_partition_max;
                let table = self.partition(piece.partition).producers.get_or_insert_default();
                table.record(message_ids::advanced(&piece), Offset(piece.base_offset), piece.time_ms, limit);
            }
            StateRecord::Partitions(pieces) => pieces.into_iter().for_each(|piece| self.piece(piece)),
            StateRecord::Producers { partition, producers } => self.producers(partition, producers),
            StateRecord::Transaction(piece) => self.coordinator.replay(*piece),
            StateRecord::TransactionCheckBack(piece) => self.coordinator.replay_check(*piece),
            StateRecord::TransactionGone { transactional_id } => self.coordinator.forget(&transactional_id),
            StateRecord::Transactions(pieces) => pieces.into_iter().for_each(|piece| self.coordinator.restore(piece)),
            StateRecord::Aborted { partition, transactions } => self.aborted(partition, &transactions),
            StateRecord::ConsumerOffsets { partition, offsets } => offsets.into_iter().for_each(|offset| self.offset(partition, offset)),
            StateRecord::Group(_)
            | StateRecord::GroupMembers { .. }
            | StateRecord::GroupOffsets { .. }
            | StateRecord::GroupStaged { .. }
            | StateRecord::GroupDecided { .. }
            | StateRecord::GroupOffsetsForgotten { .. }
            | StateRecord::GroupDeleted { .. } => self.groups.replay(&mut self.incoming, record),
        }
    }

    fn piece(&mut self, piece: PartitionPiece) {
        let partition = self.partition(piece.partition);
        partition.log_start_logged = Offset(piece.log_start);
        partition.next_offset = Offset(piece.next_offset);
        partition.reserved_end_logged = Offset(piece.reserved_end);
    }

    fn producers(&mut self, partition: u32, pieces: Vec<ProducerPiece>) {
        let table = self.partition(partition).producers.get_or_insert_default();
        **table = Default::default();
        let mut open = Vec::new();
        for piece in pieces {
            let stored: Vec<Stored> = piece
                .batches
                .iter()
                .map(|batch| Stored {
                    first_sequence: batch.first_sequence,
                    last_sequence: batch.last_sequence,
                    base_offset: batch.base_offset,
                })
                .collect();
            let producer = ProducerKey { id: ProducerId(piece.producer_id), epoch: piece.epoch };
            let transaction_start = piece.transaction_start.map(Offset);
            table.restore(producer, piece.last_append_ms, transaction_start, &stored);
            open.extend(transaction_start.map(|first_offset| (first_offset, producer.id)));
        }
        let partition = self.partition(partition);
        if !open.is_empty() || partition.transactions.is_some() {
            partition.transactions.get_or_insert_default().restore_open(open.into_iter());
        }
    }

    fn aborted(&mut self, partition: u32, pieces: &[AbortedPiece]) {
        let transactions = self.partition(partition).transactions.get_or_insert_default();
        for piece in pieces {
            let aborted = Aborted {
                producer_id: ProducerId(piece.producer_id),
                first_offset: Offset(piece.first_offset),
                stable: Offset(piece.stable),
            };
            transactions.restore_aborted(Offset(piece.last_offset), aborted);
        }
    }

    fn offset(&mut self, partition: u32, piece: OffsetPiece) {
        let OffsetPiece { consumer, offset, metadata } = piece;
        let offsets = vec![GroupOffsetPiece { partition, offset, leader_epoch: -1, metadata, commit_ms: 0 }];
        self.groups.replay(&mut self.incoming, StateRecord::GroupOffsets { group: consumer, offsets });
    }
}
