//! The oldest records of partitions go: everything below an offset.

use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::{DeleteRecordsResponse, TopicName};
use ringmain_wire::{Offset, PartitionId};

use super::{Answer, Call, Context, encode, place, text};
use crate::frontend::kafka::decode::DeleteRecordsRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct DeleteRecords {
    topics: Vec<(String, usize)>,
    parts: Vec<Part>,
}

struct Part {
    index: i32,
    place: Option<PartitionId>,
    before: Option<Offset>,
    error: i16,
    low_watermark: i64,
}

impl DeleteRecords {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &DeleteRecordsRequest<'_>, context: &Context<'_>) -> DeleteRecords {
        let mut parts = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let known = context.view.catalog.topic(topic.name);
            for wanted in &topic.partitions {
                let place = place(known, wanted.index).map(|(partition, _)| partition);
                let error = match (place, wanted.offset) {
                    (None, _) => errors::UNKNOWN_TOPIC_OR_PARTITION,
                    (_, ..-1) => errors::OFFSET_OUT_OF_RANGE,
                    _ => errors::NONE,
                };
                // -1: everything that can be read.
                let before = u64::try_from(wanted.offset).ok().map(Offset);
                let place = place.filter(|_| error == errors::NONE);
                parts.push(Part { index: wanted.index, place, before, error, low_watermark: -1 });
            }
            (topic.name.to_owned(), topic.partitions.len())
        });
        let topics = topics.collect();
        DeleteRecords { topics, parts }
    }
}

impl Call for DeleteRecords {
    fn begin(&mut self, context: &mut Context<'_>) {
        for (number, part) in self.parts.iter().enumerate() {
            if let Some(partition) = part.place {
                context.ask(number as u32, OwnedRequest::DeleteBefore { partition, before: part.before });
            }
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some(part) = self.parts.get_mut(number as usize) else { return };
        match reply {
            Reply::LogStart { offset } => part.low_watermark = offset.0 as i64,
            Reply::Failed(failure) => part.error = errors::code(&failure),
            _ => part.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut parts = self.parts.into_iter();
        let topics = self.topics.into_iter().map(|(name, count)| {
            let partitions = parts.by_ref().take(count).map(|part| {
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(part.index)
                    .with_error_code(part.error)
                    .with_low_watermark(part.low_watermark)
            });
            DeleteRecordsTopicResult::default().with_name(TopicName(text(name))).with_partitions(partitions.collect())
        });
        encode(&DeleteRecordsResponse::default().with_topics(topics.collect()), version, out)
    }
}
