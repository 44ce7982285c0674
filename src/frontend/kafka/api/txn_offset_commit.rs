//! Positions of a group that take effect with a transaction. They go by way of its coordinator, which knows whether the
//! transaction is open, and decides nothing while they are on their way.

use kafka_protocol::messages::txn_offset_commit_response::{TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic};
use kafka_protocol::messages::{TopicName, TxnOffsetCommitResponse};

use super::offsets::{Commits, Wanted};
use super::{Answer, Call, Context, encode, group, text, transaction};
use crate::frontend::kafka::decode::TxnOffsetCommitRequest;
use crate::request::Reply;
use crate::request::group::Commit;
use crate::request::transaction::TransactionAction;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct TxnOffsetCommit {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    commits: Commits,
}

impl TxnOffsetCommit {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &TxnOffsetCommitRequest<'_>, context: &Context<'_>) -> TxnOffsetCommit {
        let (mut commits, mut offsets) = (Commits::default(), Vec::new());
        for topic in &request.topics {
            let wanted = topic.partitions.iter().map(|wanted| Wanted {
                index: wanted.index,
                offset: wanted.committed_offset,
                leader_epoch: wanted.committed_leader_epoch,
                metadata: wanted.committed_metadata,
            });
            commits.add(topic.name, wanted, context, &mut offsets);
        }
        let member = group::member(request.member_id, request.group_instance_id);
        let action = TransactionAction::CommitOffsets {
            producer: transaction::producer(request.producer_id, request.producer_epoch),
            group: request.group_id.to_owned(),
            commit: Commit { member, generation: request.generation_id, transaction: None, offsets },
        };
        TxnOffsetCommit { request: Some(transaction::ask(request.transactional_id, action)), commits }
    }
}

impl Call for TxnOffsetCommit {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        self.commits.answer(reply, |failure| transaction::code(failure, false));
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let topics = self.commits.topics.into_iter().map(|(name, parts)| {
            let parts = parts
                .into_iter()
                .map(|part| TxnOffsetCommitResponsePartition::default().with_partition_index(part.index).with_error_code(part.error));
            TxnOffsetCommitResponseTopic::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
        });
        encode(&TxnOffsetCommitResponse::default().with_topics(topics.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        self.commits.held_bytes()
    }
}
