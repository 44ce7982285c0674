//! Remembering positions. A partition that doesn't exist is refused for itself; the others are committed together.

use std::collections::HashMap;

use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::{OffsetCommitResponse, TopicName};
use ringmain_wire::{Offset, PartitionId};

use super::{Call, Context, encode, group, text};
use crate::frontend::kafka::decode::OffsetCommitRequest;
use crate::frontend::kafka::errors;
use crate::request::group::{Commit, GroupAction, GroupOffset, GroupReply};
use crate::request::{Failure, Reply};

/// The call.
pub struct OffsetCommit {
    group: String,
    /// Until it is asked.
    commit: Option<Commit>,
    topics: Vec<(String, Vec<Part>)>,
}

/// One partition of the answer.
struct Part {
    index: i32,
    partition: Option<PartitionId>,
    error: i16,
}

impl OffsetCommit {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &OffsetCommitRequest<'_>, context: &Context<'_>) -> OffsetCommit {
        let mut offsets = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let parts = topic.partitions.iter().map(|wanted| {
                let partition = group::partition(context, topic.name, wanted.index);
                let offset = u64::try_from(wanted.committed_offset).ok();
                let error = match (partition, offset) {
                    (None, _) => errors::UNKNOWN_TOPIC_OR_PARTITION,
                    (Some(_), None) => errors::OFFSET_OUT_OF_RANGE,
                    (Some(partition), Some(offset)) => {
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
        let commit = Commit {
            member: group::member(request.member_id, request.group_instance_id),
            generation: request.generation_id_or_member_epoch,
            transaction: None,
            offsets,
        };
        OffsetCommit { group: request.group_id.to_owned(), commit: Some(commit), topics }
    }

    /// The same error for all that have none.
    fn fail(&mut self, error: i16) {
        self.topics.iter_mut().flat_map(|(_, parts)| parts).filter(|part| part.error == errors::NONE).for_each(|part| part.error = error);
    }
}

impl Call for OffsetCommit {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(commit) = self.commit.take() {
            context.ask(0, group::ask(&self.group, GroupAction::Commit(commit)));
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Group(reply) => {
                let GroupReply::Committed { refused } = *reply else { return self.fail(errors::UNKNOWN_SERVER_ERROR) };
                let refused: HashMap<_, _> = refused.into_iter().collect();
                for part in self.topics.iter_mut().flat_map(|(_, parts)| parts) {
                    if let Some(code) = part.partition.and_then(|partition| refused.get(&partition)) {
                        part.error = group::code(&Failure::from(*code));
                    }
                }
            }
            Reply::Failed(failure) => self.fail(group::code(&failure)),
            _ => self.fail(errors::UNKNOWN_SERVER_ERROR),
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        let topics = self.topics.into_iter().map(|(name, parts)| {
            let parts = parts
                .into_iter()
                .map(|part| OffsetCommitResponsePartition::default().with_partition_index(part.index).with_error_code(part.error));
            OffsetCommitResponseTopic::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
        });
        encode(&OffsetCommitResponse::default().with_topics(topics.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        self.topics.iter().map(|(name, parts)| 64 + name.len() + parts.len() * size_of::<Part>()).sum()
    }
}
