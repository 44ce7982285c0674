//! A shard's state from its log: frames and state records, in order, from the last complete checkpoint on.

use ringmain_wire::control::Durability;
use ringmain_wire::{DEFAULT_MAX_MESSAGE_BYTES, FrameHeader, MAX_MESSAGE_BYTES_LIMIT, Offset, PartitionId, ProducerId};

use super::catalog::Catalog;
use super::group::{Groups, Incoming};
use super::partition::{Partition, PartitionTable};
use super::producer_state::{Batch, Stored};
use super::state_record::{GroupOffsetPiece, OffsetPiece, PartitionPiece, ProducerPiece, StateError, StateRecord};
use crate::log::Replay;
use crate::request::PartitionConfig;

/// Settings of a partition until the catalog names them: nothing is appended before that.
const UNTIL_CATALOG: PartitionConfig = PartitionConfig {
    durability: Durability::Durable,
    retention_ms: None,
    retention_bytes: None,
    max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
};
const _: () = assert!(DEFAULT_MAX_MESSAGE_BYTES <= MAX_MESSAGE_BYTES_LIMIT);

/// What replay has rebuilt so far.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Also partitions that no longer exist: the catalog decides, later.
    pub partitions: PartitionTable,
    /// Shard 0's; empty elsewhere.
    pub catalog: Catalog,
    /// Producer ids below may have been given away.
    pub producer_ids_end: i64,
    /// The first state record that couldn't be read.
    pub error: Option<StateError>,
    /// Consumer groups; they come to life with `Groups::begin`.
    pub groups: Groups,
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
        }
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
        let partition = self.partition(producer.partition);
        partition.next_offset = Offset(broker.base_offset + u64::from(producer.record_count));
        if producer.producer_id > ProducerId::NONE.0 {
            let batch = Batch {
                producer_id: ProducerId(producer.producer_id),
                epoch: producer.producer_epoch,
                first_sequence: producer.sequence,
                record_count: producer.record_count,
            };
            partition.producers.get_or_insert_default().record(batch, Offset(broker.base_offset), broker.append_time_ms, limit);
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
            StateRecord::Topics(pieces) => {
                for piece in pieces {
                    self.catalog.put(ringmain_wire::TopicId(piece.topic), &piece.name, &piece.config, piece.first_index, &piece.partitions);
                }
            }
            StateRecord::Partitions(pieces) => pieces.into_iter().for_each(|piece| self.piece(piece)),
            StateRecord::Producers { partition, producers } => self.producers(partition, producers),
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
            table.restore(ProducerId(piece.producer_id), piece.epoch, piece.last_append_ms, &stored);
        }
    }

    fn offset(&mut self, partition: u32, piece: OffsetPiece) {
        let OffsetPiece { consumer, offset, metadata } = piece;
        let offsets = vec![GroupOffsetPiece { partition, offset, leader_epoch: -1, metadata, commit_ms: 0 }];
        self.groups.replay(&mut self.incoming, StateRecord::GroupOffsets { group: consumer, offsets });
    }
}
