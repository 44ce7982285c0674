//! Positions that a client commits, in a transaction or not: what is asked of the group's shard, and what is answered per partition.

use std::collections::HashMap;

use ringmain_wire::{Offset, PartitionId};

use super::Context;
use crate::frontend::kafka::errors;
use crate::request::group::{GroupOffset, GroupReply};
use crate::request::{Failure, Reply};

/// The partitions of a commit, topic by topic. One that doesn't exist is refused for itself; the others are committed together.
#[derive(Default)]
pub struct Commits {
    /// Name, partitions.
    pub topics: Vec<(String, Vec<Part>)>,
}

/// One partition of the answer.
pub struct Part {
    /// As asked.
    pub index: i32,
    partition: Option<PartitionId>,
    /// Kafka's number.
    pub error: i16,
}

/// A position as a client states it.
pub struct Wanted<'a> {
    /// Of the partition.
    pub index: i32,
    /// The next offset to be read.
    pub offset: i64,
    /// −1 = unknown.
    pub leader_epoch: i32,
    /// The client's own.
    pub metadata: Option<&'a str>,
}

impl Commits {
    /// Takes a topic in; the positions that can be committed go to `offsets`.
    pub fn add<'a>(
        &mut self,
        topic: &str,
        wanted: impl Iterator<Item = Wanted<'a>>,
        context: &Context<'_>,
        offsets: &mut Vec<GroupOffset>,
    ) {
        let parts = wanted.map(|wanted| {
            let partition = context.partition(topic, wanted.index);
            let error = match (partition, u64::try_from(wanted.offset)) {
                (None, _) => errors::UNKNOWN_TOPIC_OR_PARTITION,
                (Some(_), Err(_)) => errors::OFFSET_OUT_OF_RANGE,
                (Some(partition), Ok(offset)) => {
                    offsets.push(GroupOffset {
                        partition,
                        offset: Offset(offset),
                        leader_epoch: wanted.leader_epoch,
                        metadata: wanted.metadata.unwrap_or_default().to_owned(),
                    });
                    errors::NONE
                }
            };
            Part { index: wanted.index, partition, error }
        });
        self.topics.push((topic.to_owned(), parts.collect()));
    }

    /// Takes the shard's answer in. `code`: Kafka's number for a failure.
    pub fn answer(&mut self, reply: Reply, code: impl Fn(&Failure) -> i16) {
        match reply {
            Reply::Group(reply) => {
                let GroupReply::Committed { refused } = *reply else { return self.fail(errors::UNKNOWN_SERVER_ERROR) };
                let refused: HashMap<_, _> = refused.into_iter().collect();
                for part in self.topics.iter_mut().flat_map(|(_, parts)| parts) {
                    if let Some(refusal) = part.partition.and_then(|partition| refused.get(&partition)) {
                        part.error = code(&Failure::from(*refusal));
                    }
                }
            }
            Reply::Failed(failure) => self.fail(code(&failure)),
            _ => self.fail(errors::UNKNOWN_SERVER_ERROR),
        }
    }

    /// Memory that it keeps.
    pub fn held_bytes(&self) -> usize {
        self.topics.iter().map(|(name, parts)| 64 + name.len() + parts.len() * size_of::<Part>()).sum()
    }

    /// The same error for all that have none.
    fn fail(&mut self, error: i16) {
        self.topics.iter_mut().flat_map(|(_, parts)| parts).filter(|part| part.error == errors::NONE).for_each(|part| part.error = error);
    }
}
