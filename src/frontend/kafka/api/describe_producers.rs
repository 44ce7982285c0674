//! Who has written to partitions, and where their open transactions begin.

use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::{DescribeProducersResponse, ProducerId, TopicName};
use ringmain_wire::PartitionId;

use super::transaction::PARTS_AT_A_TIME;
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::DescribeProducersRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::ProducerDescription;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct DescribeProducers {
    /// Each with its number of partitions.
    topics: Vec<(String, usize)>,
    parts: Vec<Part>,
    /// The first that hasn't been asked.
    next: usize,
    unanswered: usize,
}

struct Part {
    index: i32,
    partition: Option<PartitionId>,
    error: i16,
    producers: Vec<ProducerDescription>,
}

impl DescribeProducers {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &DescribeProducersRequest<'_>, context: &Context<'_>) -> DescribeProducers {
        let mut parts = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            for index in &topic.partition_indexes {
                let partition = context.partition(topic.name, *index);
                let error = if partition.is_some() { errors::NONE } else { errors::UNKNOWN_TOPIC_OR_PARTITION };
                parts.push(Part { index: *index, partition, error, producers: Vec::new() });
            }
            (topic.name.to_owned(), topic.partition_indexes.len())
        });
        let topics = topics.collect();
        DescribeProducers { topics, parts, next: 0, unanswered: 0 }
    }

    fn ask(&mut self, context: &mut Context<'_>) {
        while self.unanswered < PARTS_AT_A_TIME && self.next < self.parts.len() {
            let number = self.next;
            self.next += 1;
            let Some(partition) = self.parts[number].partition else { continue };
            self.unanswered += 1;
            context.ask(number as u32, OwnedRequest::DescribeProducers { partition });
        }
    }
}

impl Call for DescribeProducers {
    fn begin(&mut self, context: &mut Context<'_>) {
        self.ask(context);
    }

    fn answer(&mut self, number: u32, reply: Reply, context: &mut Context<'_>) {
        if let Some(part) = self.parts.get_mut(number as usize) {
            match reply {
                Reply::Producers(producers) => part.producers = producers,
                Reply::Failed(failure) => part.error = errors::code(&failure),
                _ => part.error = errors::UNKNOWN_SERVER_ERROR,
            }
        }
        self.unanswered -= 1;
        self.ask(context);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut parts = self.parts.into_iter();
        let topics = self.topics.into_iter().map(|(name, count)| {
            let partitions = parts.by_ref().take(count).map(|part| {
                let producers = part.producers.iter().map(|description| {
                    ProducerState::default()
                        .with_producer_id(ProducerId(description.producer.id.0))
                        .with_producer_epoch(i32::from(description.producer.epoch))
                        .with_last_sequence(description.last_sequence)
                        .with_last_timestamp(description.last_append_ms)
                        .with_coordinator_epoch(0)
                        .with_current_txn_start_offset(description.transaction_start.map_or(-1, |offset| offset.0 as i64))
                });
                PartitionResponse::default()
                    .with_partition_index(part.index)
                    .with_error_code(part.error)
                    .with_active_producers(producers.collect())
            });
            TopicResponse::default().with_name(TopicName(text(name))).with_partitions(partitions.collect())
        });
        encode(&DescribeProducersResponse::default().with_topics(topics.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        let bytes = |part: &Part| size_of::<Part>() + part.producers.len() * size_of::<ProducerDescription>();
        self.parts.iter().map(bytes).sum()
    }
}
