//! Reading positions back, of one group or, since version 8, of several. What was never committed has offset −1.

use std::collections::{BTreeMap, HashMap, HashSet};

use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{GroupId, OffsetFetchResponse, TopicName};
use ringmain_wire::PartitionId;

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::{OffsetFetchRequest, OffsetFetchTopic};
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::{GroupAction, GroupOffset, GroupReply};

/// Since this version one request asks about several groups.
const GROUPS_SINCE: i16 = 8;

/// The call.
pub struct OffsetFetch {
    groups: Vec<Group>,
    stable: bool,
}

/// One group and what is known of it.
struct Group {
    name: String,
    /// `None` = all.
    wanted: Option<Vec<WantedTopic>>,
    error: i16,
    offsets: HashMap<PartitionId, GroupOffset>,
    unstable: HashSet<PartitionId>,
}

/// A topic's name, and indexes with the partitions they mean.
type WantedTopic = (String, Vec<(i32, Option<PartitionId>)>);

/// One partition of the answer.
struct Found {
    index: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    error: i16,
}

impl OffsetFetch {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &OffsetFetchRequest<'_>, version: i16, context: &Context<'_>) -> OffsetFetch {
        let groups = if version >= GROUPS_SINCE {
            request.groups.iter().map(|group| Group::new(group.group_id, group.topics.as_deref(), context)).collect()
        } else {
            vec![Group::new(request.group_id, request.topics.as_deref(), context)]
        };
        OffsetFetch { groups, stable: request.require_stable }
    }
}

impl Group {
    fn new(name: &str, topics: Option<&[OffsetFetchTopic<'_>]>, context: &Context<'_>) -> Group {
        let wanted = |topic: &OffsetFetchTopic<'_>| {
            let parts = topic.partition_indexes.iter().map(|index| (*index, context.partition(topic.name, *index)));
            (topic.name.to_owned(), parts.collect())
        };
        Group {
            name: name.to_owned(),
            wanted: topics.map(|topics| topics.iter().map(wanted).collect()),
            error: errors::NONE,
            offsets: HashMap::new(),
            unstable: HashSet::new(),
        }
    }

    /// Topic by topic, as asked; or all there are.
    fn topics(&self, context: &Context<'_>) -> Vec<(String, Vec<Found>)> {
        if let Some(wanted) = &self.wanted {
            let parts = |parts: &Vec<(i32, Option<PartitionId>)>| parts.iter().map(|(index, id)| self.found(*index, *id)).collect();
            return wanted.iter().map(|(name, wanted)| (name.clone(), parts(wanted))).collect();
        }
        let mut topics: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for partition in self.offsets.keys().chain(&self.unstable) {
            if let Some((topic, index)) = context.topic_and_index(*partition) {
                topics.entry(topic).or_default().push(self.found(index, Some(*partition)));
            }
        }
        topics.values_mut().for_each(|parts| parts.sort_by_key(|part| part.index));
        topics.into_iter().collect()
    }

    fn found(&self, index: i32, partition: Option<PartitionId>) -> Found {
        let none = Found { index, offset: -1, leader_epoch: -1, metadata: String::new(), error: self.error };
        let Some(partition) = partition else { return none };
        if self.unstable.contains(&partition) {
            return Found { error: errors::UNSTABLE_OFFSET_COMMIT, ..none };
        }
        match self.offsets.get(&partition) {
            Some(GroupOffset { offset, leader_epoch, metadata, .. }) => {
                Found { offset: offset.0 as i64, leader_epoch: *leader_epoch, metadata: metadata.clone(), ..none }
            }
            None => none,
        }
    }
}

impl Call for OffsetFetch {
    fn begin(&mut self, context: &mut Context<'_>) {
        for (part, asked) in (0..).zip(&self.groups) {
            let partitions = asked
                .wanted
                .as_ref()
                .map(|topics| topics.iter().flat_map(|(_, parts)| parts.iter().filter_map(|(_, partition)| *partition)).collect());
            context.ask(part, group::ask(&asked.name, GroupAction::ReadOffsets { partitions, stable: self.stable }));
        }
    }

    fn answer(&mut self, part: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some(asked) = self.groups.get_mut(part as usize) else { return };
        match reply {
            Reply::Group(reply) => {
                if let GroupReply::Offsets { offsets, unstable } = *reply {
                    asked.offsets = offsets.into_iter().map(|offset| (offset.partition, offset)).collect();
                    asked.unstable = unstable.into_iter().collect();
                }
            }
            Reply::Failed(failure) => asked.error = group::code(&failure),
            _ => asked.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        if version >= GROUPS_SINCE {
            let groups = self.groups.iter().map(|asked| {
                let topics = if asked.error == errors::NONE { asked.topics(context) } else { Vec::new() };
                let topics = topics.into_iter().map(|(name, parts)| {
                    let parts = parts.into_iter().map(|part| {
                        OffsetFetchResponsePartitions::default()
                            .with_partition_index(part.index)
                            .with_committed_offset(part.offset)
                            .with_committed_leader_epoch(part.leader_epoch)
                            .with_metadata(Some(text(part.metadata)))
                            .with_error_code(part.error)
                    });
                    OffsetFetchResponseTopics::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
                });
                OffsetFetchResponseGroup::default()
                    .with_group_id(GroupId(text(asked.name.clone())))
                    .with_error_code(asked.error)
                    .with_topics(topics.collect())
            });
            return encode(&OffsetFetchResponse::default().with_groups(groups.collect()), version, out);
        }
        let Some(asked) = self.groups.first() else { return Err("no group was asked about".into()) };
        let topics = asked.topics(context).into_iter().map(|(name, parts)| {
            let parts = parts.into_iter().map(|part| {
                let found = OffsetFetchResponsePartition::default()
                    .with_partition_index(part.index)
                    .with_committed_offset(part.offset)
                    .with_metadata(Some(text(part.metadata)))
                    .with_error_code(part.error);
                if version >= 5 { found.with_committed_leader_epoch(part.leader_epoch) } else { found }
            });
            OffsetFetchResponseTopic::default().with_name(TopicName(text(name))).with_partitions(parts.collect())
        });
        let mut response = OffsetFetchResponse::default().with_topics(topics.collect());
        if version >= 2 {
            response = response.with_error_code(asked.error);
        }
        encode(&response, version, out)
    }

    fn held_bytes(&self) -> usize {
        self.groups.iter().flat_map(|asked| asked.offsets.values()).map(|offset| 96 + offset.metadata.len()).sum()
    }
}
