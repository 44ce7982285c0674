//! Partitions that a transaction is about to write to. All of them join, or none does.

use kafka_protocol::messages::add_partitions_to_txn_response::{AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult};
use kafka_protocol::messages::{AddPartitionsToTxnResponse, TopicName};

use super::{Answer, Call, Context, encode, text, transaction};
use crate::frontend::kafka::decode::AddPartitionsToTxnRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::TransactionAction;
use crate::router::letter::OwnedRequest;

/// Since this version clients know PRODUCER_FENCED.
const KNOWS_FENCING: i16 = 2;

/// The call.
pub struct AddPartitionsToTxn {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    knows_fencing: bool,
    /// By topic: index and error of each partition.
    topics: Vec<(String, Vec<(i32, i16)>)>,
}

impl AddPartitionsToTxn {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &AddPartitionsToTxnRequest<'_>, version: i16, context: &Context<'_>) -> AddPartitionsToTxn {
        let mut partitions = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let parts = topic.partitions.iter().map(|index| {
                let found = context.partition(topic.name, *index);
                partitions.extend(found);
                (*index, if found.is_some() { errors::NONE } else { errors::UNKNOWN_TOPIC_OR_PARTITION })
            });
            (topic.name.to_owned(), parts.collect())
        });
        let mut topics: Vec<(String, Vec<(i32, i16)>)> = topics.collect();
        let mut parts = topics.iter_mut().flat_map(|(_, parts)| parts);
        let has_unknown = parts.by_ref().any(|(_, error)| *error != errors::NONE);
        if has_unknown {
            let known = topics.iter_mut().flat_map(|(_, parts)| parts).filter(|(_, error)| *error == errors::NONE);
            known.for_each(|(_, error)| *error = errors::OPERATION_NOT_ATTEMPTED);
        }
        let producer = transaction::producer(request.producer_id, request.producer_epoch);
        let action = TransactionAction::AddPartitions { producer, partitions };
        let request = (!has_unknown).then(|| transaction::ask(request.transactional_id, action));
        AddPartitionsToTxn { request, knows_fencing: version >= KNOWS_FENCING, topics }
    }
}

impl Call for AddPartitionsToTxn {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        let code = transaction::done(&reply, self.knows_fencing);
        self.topics.iter_mut().flat_map(|(_, parts)| parts).for_each(|(_, error)| *error = code);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let topics = self.topics.into_iter().map(|(name, parts)| {
            let parts = parts.into_iter().map(|(index, error)| {
                AddPartitionsToTxnPartitionResult::default().with_partition_index(index).with_partition_error_code(error)
            });
            AddPartitionsToTxnTopicResult::default().with_name(TopicName(text(name))).with_results_by_partition(parts.collect())
        });
        encode(&AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        self.topics.iter().map(|(name, parts)| 64 + name.len() + parts.len() * size_of::<(i32, i16)>()).sum()
    }
}
