//! Forgetting some of a group's offsets, unless its members still subscribe to the topic: the group is looked at first.

use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::{OffsetDeleteResponse, TopicName};
use ringmain_wire::PartitionId;

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::OffsetDeleteRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::{GroupAction, GroupDescription, GroupPhase, GroupReply};

/// Kind of the groups whose metadata is a subscription.
const CONSUMER: &str = "consumer";
const DESCRIBE: u32 = 0;
const DELETE: u32 = 1;

/// The call.
pub struct OffsetDelete {
    group: String,
    topics: Vec<(String, Vec<Part>)>,
    error: i16,
}

struct Part {
    index: i32,
    partition: Option<PartitionId>,
    error: i16,
}

impl OffsetDelete {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &OffsetDeleteRequest<'_>, context: &Context<'_>) -> OffsetDelete {
        let topics = request.topics.iter().map(|topic| {
            let parts = topic.partitions.iter().map(|wanted| {
                let partition = context.partition(topic.name, wanted.index);
                let error = if partition.is_some() { errors::NONE } else { errors::UNKNOWN_TOPIC_OR_PARTITION };
                Part { index: wanted.index, partition, error }
            });
            (topic.name.to_owned(), parts.collect())
        });
        OffsetDelete { group: request.group_id.to_owned(), topics: topics.collect(), error: errors::NONE }
    }

    fn described(&mut self, found: &GroupDescription, context: &mut Context<'_>) {
        if found.phase != GroupPhase::Empty {
            if found.protocol_type != CONSUMER {
                self.error = errors::NON_EMPTY_GROUP;
                return;
            }
            let is_stable = found.phase == GroupPhase::Stable;
            let subscribes = |name: &str| found.members.iter().any(|member| subscribes(&member.metadata, name));
            for (name, parts) in &mut self.topics {
                // Between generations what members want isn't settled.
                if !is_stable || subscribes(name) {
                    parts
                        .iter_mut()
                        .filter(|part| part.error == errors::NONE)
                        .for_each(|part| part.error = errors::GROUP_SUBSCRIBED_TO_TOPIC);
                }
            }
        }
        let parts = self.topics.iter().flat_map(|(_, parts)| parts).filter(|part| part.error == errors::NONE);
        let partitions: Vec<PartitionId> = parts.filter_map(|part| part.partition).collect();
        if !partitions.is_empty() {
            context.ask(DELETE, group::ask(&self.group, GroupAction::DeleteOffsets { partitions }));
        }
    }
}

impl Call for OffsetDelete {
    fn begin(&mut self, context: &mut Context<'_>) {
        context.ask(DESCRIBE, group::ask(&self.group, GroupAction::Describe));
    }

    fn answer(&mut self, part: u32, reply: Reply, context: &mut Context<'_>) {
        match (part, reply) {
            (DESCRIBE, Reply::Group(reply)) => match *reply {
                GroupReply::Description(found) => self.described(&found, context),
                _ => self.error = errors::UNKNOWN_SERVER_ERROR,
            },
            (DELETE, Reply::Group(_)) => {}
            (_, Reply::Failed(failure)) => self.error = group::code(&failure),
            _ => self.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let topics = self.topics.into_iter().filter(|_| self.error == errors::NONE).map(|(name, parts)| {
            let parts = parts
                .into_iter()
                .map(|part| OffsetDeleteResponsePartition::default().with_partition_index(part.index).with_error_code(part.error));
            OffsetDeleteResponseTopic::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
        });
        encode(&OffsetDeleteResponse::default().with_error_code(self.error).with_topics(topics.collect()), version, out)
    }
}

/// Whether a consumer's metadata (version, then a list of topics) names the topic. What can't be read names everything.
fn subscribes(metadata: &[u8], topic: &str) -> bool {
    let read = || {
        let (count, mut rest) = metadata.get(2..)?.split_first_chunk::<4>()?;
        for _ in 0..u32::from_be_bytes(*count) {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            if name == topic.as_bytes() {
                return Some(true);
            }
            rest = after;
        }
        Some(false)
    };
    read().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::subscribes;

    #[test]
    fn subscription_is_read_and_damage_protects() {
        let metadata = b"\0\x01\0\0\0\x02\0\x01a\0\x02bc\xff\xff\xff\xff";
        assert!(subscribes(metadata, "a") && subscribes(metadata, "bc") && !subscribes(metadata, "b"));
        for cut in 0..11 {
            assert!(subscribes(&metadata[..cut], "nothing"), "{cut}");
        }
        assert!(subscribes(b"\0\0\xff\xff\xff\xff", "nothing"));
    }
}
