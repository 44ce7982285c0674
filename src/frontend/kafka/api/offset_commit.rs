//! Remembering positions.

use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::{OffsetCommitResponse, TopicName};

use super::offsets::{Commits, Wanted};
use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::OffsetCommitRequest;
use crate::request::Reply;
use crate::request::group::{Commit, GroupAction};

/// The call.
pub struct OffsetCommit {
    group: String,
    /// Until it is asked.
    commit: Option<Commit>,
    commits: Commits,
}

impl OffsetCommit {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &OffsetCommitRequest<'_>, context: &Context<'_>) -> OffsetCommit {
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
        let commit = Commit {
            member: group::member(request.member_id, request.group_instance_id),
            generation: request.generation_id_or_member_epoch,
            transaction: None,
            offsets,
        };
        OffsetCommit { group: request.group_id.to_owned(), commit: Some(commit), commits }
    }
}

impl Call for OffsetCommit {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(commit) = self.commit.take() {
            context.ask(0, group::ask(&self.group, GroupAction::Commit(commit)));
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        self.commits.answer(reply, group::code);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let topics = self.commits.topics.into_iter().map(|(name, parts)| {
            let parts = parts
                .into_iter()
                .map(|part| OffsetCommitResponsePartition::default().with_partition_index(part.index).with_error_code(part.error));
            OffsetCommitResponseTopic::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
        });
        encode(&OffsetCommitResponse::default().with_topics(topics.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        self.commits.held_bytes()
    }
}
