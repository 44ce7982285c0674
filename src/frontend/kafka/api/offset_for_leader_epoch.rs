//! Where a leader epoch ended, for clients that want to know whether what they read was cut off. Nothing ever is: a position
//! that was readable stays so, and no offset names two contents. So every epoch that was goes on to the end.

use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{OffsetForLeaderEpochResponse, TopicName};
use ringmain_wire::PartitionId;
use ringmain_wire::control::LATEST;

use super::metadata::leader_epoch;
use super::{Answer, Call, Context, check_epoch, encode, place, text};
use crate::frontend::kafka::decode::OffsetForLeaderEpochRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct OffsetForLeaderEpoch {
    topics: Vec<(String, usize)>,
    parts: Vec<Part>,
}

struct Part {
    index: i32,
    partition: Option<PartitionId>,
    epoch: i32,
    error: i16,
    end: i64,
}

impl OffsetForLeaderEpoch {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &OffsetForLeaderEpochRequest<'_>, context: &Context<'_>) -> OffsetForLeaderEpoch {
        let mut parts = Vec::new();
        for topic in &request.topics {
            let known = context.view.catalog.topic(topic.topic);
            parts.extend(topic.partitions.iter().map(|wanted| {
                let place = place(known, wanted.partition);
                let current = place.map_or(-1, |(_, shard)| leader_epoch(shard.0, context.config));
                let error = match place {
                    None => errors::UNKNOWN_TOPIC_OR_PARTITION,
                    Some(_) => check_epoch(wanted.current_leader_epoch, current),
                };
                // An epoch that hasn't been yet has no end.
                let is_known = error == errors::NONE && (0..=current).contains(&wanted.leader_epoch);
                let partition = place.filter(|_| is_known).map(|(partition, _)| partition);
                Part { index: wanted.partition, partition, epoch: wanted.leader_epoch, error, end: -1 }
            }));
        }
        let topics = request.topics.iter().map(|topic| (topic.topic.to_owned(), topic.partitions.len()));
        OffsetForLeaderEpoch { topics: topics.collect(), parts }
    }
}

impl Call for OffsetForLeaderEpoch {
    fn begin(&mut self, context: &mut Context<'_>) {
        for (number, part) in (0..).zip(&self.parts) {
            if let Some(partition) = part.partition {
                context.ask(number, OwnedRequest::ListOffset { partition, timestamp_ms: LATEST, committed_only: false });
            }
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some(part) = self.parts.get_mut(number as usize) else { return };
        match reply {
            Reply::Offset { offset, .. } => part.end = offset.0 as i64,
            Reply::Failed(failure) => part.error = errors::code(&failure),
            _ => part.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut parts = self.parts.into_iter();
        let topics = self.topics.into_iter().map(|(name, count)| {
            let partitions = parts.by_ref().take(count).map(|part| {
                let epoch = if part.end >= 0 { part.epoch } else { -1 };
                let found = EpochEndOffset::default().with_partition(part.index).with_error_code(part.error);
                found.with_leader_epoch(epoch).with_end_offset(part.end)
            });
            OffsetForLeaderTopicResult::default().with_topic(TopicName(text(name))).with_partitions(partitions.collect())
        });
        encode(&OffsetForLeaderEpochResponse::default().with_topics(topics.collect()), version, out)
    }
}
