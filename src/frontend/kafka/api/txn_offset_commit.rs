//! Positions of a group that take effect with a transaction. They go by way of its coordinator, which knows whether the
//! transaction is open, and decides nothing while they are on their way.

use std::collections::HashMap;

use kafka_protocol::messages::txn_offset_commit_response::{TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic};
use kafka_protocol::messages::{TopicName, TxnOffsetCommitResponse};
use ringmain_wire::{Offset, PartitionId};

use super::{Call, Context, encode, text, transaction};
use crate::frontend::kafka::decode::TxnOffsetCommitRequest;
use crate::frontend::kafka::errors;
use crate::request::group::{Commit, GroupOffset, GroupReply, MemberRef};
use crate::request::transaction::TransactionAction;
use crate::request::{Failure, Reply};
use crate::router::letter::OwnedRequest;

/// The call.
pub struct TxnOffsetCommit {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    topics: Vec<(String, Vec<Part>)>,
}

/// One partition of the answer.
struct Part {
    index: i32,
    partition: Option<PartitionId>,
    error: i16,
}

impl TxnOffsetCommit {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &TxnOffsetCommitRequest<'_>, context: &Context<'_>) -> TxnOffsetCommit {
        let mut offsets = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let parts = topic.partitions.iter().map(|wanted| {
                let partition = transaction::partition(context, topic.name, wanted.index);
                let error = match (partition, u64::try_from(wanted.committed_offset)) {
                    (None, _) => errors::UNKNOWN_TOPIC_OR_PARTITION,
                    (Some(_), Err(_)) => errors::OFFSET_OUT_OF_RANGE,
                    (Some(partition), Ok(offset)) => {
                        offsets.push(GroupOffset {
                            partition,
                            offset: Offset(offset),
                            leader_epoch: wanted.committed_leader_epoch,
                            metadata: wanted.committed_metadata.unwrap_or_default().to_owned(),
                        });
                        errors::NONE
                    }
                };
                Part { index: wanted.index, partition, error }
            });
            (topic.name.to_owned(), parts.collect())
        });
        let topics = topics.collect();
        let member = MemberRef { member_id: request.member_id.to_owned(), instance_id: request.group_instance_id.map(str::to_owned) };
        let action = TransactionAction::CommitOffsets {
            producer: transaction::producer(request.producer_id, request.producer_epoch),
            group: request.group_id.to_owned(),
            commit: Commit { member, generation: request.generation_id, transaction: None, offsets },
        };
        TxnOffsetCommit { request: Some(transaction::ask(request.transactional_id, action)), topics }
    }

    /// The same error for all that have none.
    fn fail(&mut self, error: i16) {
        self.topics.iter_mut().flat_map(|(_, parts)| parts).filter(|part| part.error == errors::NONE).for_each(|part| part.error = error);
    }
}

impl Call for TxnOffsetCommit {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Group(reply) => {
                let GroupReply::Committed { refused } = *reply else { return self.fail(errors::UNKNOWN_SERVER_ERROR) };
                let refused: HashMap<_, _> = refused.into_iter().collect();
                for part in self.topics.iter_mut().flat_map(|(_, parts)| parts) {
                    if let Some(code) = part.partition.and_then(|partition| refused.get(&partition)) {
                        part.error = transaction::code(&Failure::from(*code), false);
                    }
                }
            }
            Reply::Failed(failure) => self.fail(transaction::code(&failure, false)),
            _ => self.fail(errors::UNKNOWN_SERVER_ERROR),
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        let topics = self.topics.into_iter().map(|(name, parts)| {
            let parts = parts
                .into_iter()
                .map(|part| TxnOffsetCommitResponsePartition::default().with_partition_index(part.index).with_error_code(part.error));
            TxnOffsetCommitResponseTopic::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
        });
        encode(&TxnOffsetCommitResponse::default().with_topics(topics.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        self.topics.iter().map(|(name, parts)| 64 + name.len() + parts.len() * size_of::<Part>()).sum()
    }
}
