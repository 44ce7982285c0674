//! Offsets by time. A shard finds the batch; which of its records is the first so young is looked up here, in the batch.

use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{ListOffsetsResponse, TopicName};
use ringmain_wire::control::{EARLIEST, LATEST, NEWEST};
use ringmain_wire::{Offset, PartitionId, ShardId, frame};

use super::metadata::leader_epoch;
use super::{Answer, Call, Context, TopicParts, check_epoch, encode, place, text};
use crate::frontend::kafka::decode::{ListOffsetsPartition, ListOffsetsRequest};
use crate::frontend::kafka::{errors, records};
use crate::request::{Fetch, FetchData, Reply};
use crate::router::letter::OwnedRequest;

/// Of one partition: enough for any batch, since the first one comes whole.
const READ_BYTES: u32 = 1;

/// The call.
pub struct ListOffsets {
    committed_only: bool,
    topics: Vec<TopicParts>,
    parts: Vec<Part>,
    next: usize,
    unanswered: usize,
}

/// Partitions asked at a time: a batch of each may be in memory.
const PARTS_AT_A_TIME: usize = 16;

struct Part {
    index: i32,
    place: Option<(PartitionId, ShardId)>,
    wanted: i64,
    error: i16,
    offset: i64,
    timestamp_ms: i64,
}

impl ListOffsets {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &ListOffsetsRequest<'_>, version: i16, context: &Context<'_>) -> ListOffsets {
        let mut parts = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let known = context.view.catalog.topic(topic.name);
            for wanted in &topic.partitions {
                parts.push(Part::new(wanted, place(known, wanted.index), version, context));
            }
            TopicParts { name: topic.name.to_owned(), part_count: topic.partitions.len() }
        });
        let topics = topics.collect();
        ListOffsets { committed_only: request.isolation_level == 1, topics, parts, next: 0, unanswered: 0 }
    }

    fn ask(&mut self, context: &mut Context<'_>) {
        while self.unanswered < PARTS_AT_A_TIME && self.next < self.parts.len() {
            let number = self.next;
            self.next += 1;
            let part = &self.parts[number];
            let Some((partition, _)) = part.place else { continue };
            self.unanswered += 1;
            let request = OwnedRequest::ListOffset { partition, timestamp_ms: part.wanted, committed_only: self.committed_only };
            context.ask(number as u32, request);
        }
    }
}

impl Part {
    fn new(wanted: &ListOffsetsPartition, place: Option<(PartitionId, ShardId)>, version: i16, context: &Context<'_>) -> Part {
        let epoch = place.map_or(-1, |(_, shard)| leader_epoch(shard.0, context.config));
        let least = if version >= 7 { NEWEST } else { EARLIEST };
        let error = match (place, check_epoch(wanted.current_leader_epoch, epoch)) {
            (None, _) => errors::UNKNOWN_TOPIC_OR_PARTITION,
            (Some(_), errors::NONE) if wanted.timestamp < least => errors::UNSUPPORTED_VERSION,
            (Some(_), error) => error,
        };
        let place = place.filter(|_| error == errors::NONE);
        Part { index: wanted.index, place, wanted: wanted.timestamp, error, offset: -1, timestamp_ms: -1 }
    }
}

impl Call for ListOffsets {
    fn begin(&mut self, context: &mut Context<'_>) {
        self.ask(context);
    }

    fn answer(&mut self, number: u32, reply: Reply, context: &mut Context<'_>) {
        let Some(part) = self.parts.get_mut(number as usize) else { return };
        match reply {
            Reply::Offset { offset, .. } if matches!(part.wanted, EARLIEST | LATEST) => part.offset = offset.0 as i64,
            Reply::Offset { found: false, .. } => {}
            Reply::Offset { offset, timestamp_ms, .. } => {
                (part.offset, part.timestamp_ms) = (offset.0 as i64, timestamp_ms);
                if let Some((partition, _)) = part.place {
                    let fetch = Fetch {
                        partition,
                        from: offset,
                        min_bytes: 0,
                        max_bytes: READ_BYTES,
                        max_wait_ms: 0,
                        committed_only: self.committed_only,
                    };
                    context.ask(number, OwnedRequest::Fetch(fetch));
                    return;
                }
            }
            Reply::Fetched { data: FetchData::Owned(bytes), .. } => {
                let (from, wanted) = (Offset(part.offset as u64), part.wanted);
                let since = if wanted == NEWEST { part.timestamp_ms } else { wanted };
                let frames = frame::frames(&bytes).map_while(Result::ok).filter(|frame| frame.end_offset() > from);
                for frame in frames {
                    match records::first_since(&frame, from, since) {
                        Ok(Some((offset, timestamp_ms))) => {
                            (part.offset, part.timestamp_ms) = (offset.0 as i64, timestamp_ms);
                            break;
                        }
                        Ok(None) => {}
                        // The batch itself is near enough where its records can't be read.
                        Err(records::Unreadable) => break,
                    }
                }
            }
            Reply::Failed(failure) => part.error = errors::code(&failure),
            _ => part.error = errors::UNKNOWN_SERVER_ERROR,
        }
        self.unanswered -= 1;
        self.ask(context);
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut parts = self.parts.into_iter();
        let topics = self.topics.into_iter().map(|topic| {
            let partitions = parts.by_ref().take(topic.part_count).map(|part| {
                let answer = ListOffsetsPartitionResponse::default().with_partition_index(part.index).with_error_code(part.error);
                let answer = answer.with_timestamp(part.timestamp_ms).with_offset(part.offset);
                match part.place {
                    Some((_, shard)) if version >= 4 && part.error == errors::NONE && part.offset >= 0 => {
                        answer.with_leader_epoch(leader_epoch(shard.0, context.config))
                    }
                    _ => answer,
                }
            });
            ListOffsetsTopicResponse::default().with_name(TopicName(text(topic.name))).with_partitions(partitions.collect())
        });
        encode(&ListOffsetsResponse::default().with_topics(topics.collect()), version, out)
    }
}
