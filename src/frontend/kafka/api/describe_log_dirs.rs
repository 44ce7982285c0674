//! What this node stores, in bytes by partition. There is one directory, and a node tells of its own shards only.

use std::collections::HashMap;

use kafka_protocol::messages::describe_log_dirs_response::{DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic};
use kafka_protocol::messages::{DescribeLogDirsResponse, TopicName};

use super::metadata::node_of_shard;
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::DescribeLogDirsRequest;
use crate::request::Reply;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct DescribeLogDirs {
    /// `None` = all.
    wanted: Option<HashMap<String, Vec<i32>>>,
    /// Names of topics not asked yet.
    left: Vec<String>,
    topics: Vec<DescribeLogDirsTopic>,
}

impl DescribeLogDirs {
    /// Which partitions.
    pub fn open(request: &DescribeLogDirsRequest<'_>) -> DescribeLogDirs {
        let wanted = request.topics.as_ref().map(|topics| {
            let topics = topics.iter().map(|topic| (topic.name.to_owned(), topic.partitions.clone()));
            topics.collect()
        });
        DescribeLogDirs { wanted, left: Vec::new(), topics: Vec::new() }
    }

    /// One topic after the other: an answer is as long as a topic has partitions.
    fn ask(&mut self, context: &mut Context<'_>) {
        if let Some(name) = self.left.pop() {
            context.ask(0, OwnedRequest::DescribeTopic { name });
        }
    }
}

impl Call for DescribeLogDirs {
    fn begin(&mut self, context: &mut Context<'_>) {
        let catalog = context.view.catalog;
        self.left = match &self.wanted {
            None => catalog.topics().map(|topic| topic.name.to_string()).collect(),
            Some(wanted) => wanted.keys().filter(|name| catalog.topic(name).is_some()).cloned().collect(),
        };
        self.left.sort_unstable_by(|a, b| b.cmp(a));
        self.ask(context);
    }

    fn answer(&mut self, _part: u32, reply: Reply, context: &mut Context<'_>) {
        if let Reply::Description(description) = reply {
            let name = &description.info.name;
            let wanted = self.wanted.as_ref().and_then(|wanted| wanted.get(name));
            let mut partitions = Vec::new();
            for (place, index) in description.info.partitions.iter().zip(0..) {
                let is_ours = node_of_shard(place.shard, context.config) == context.config.node;
                if !is_ours || wanted.is_some_and(|wanted| !wanted.contains(&index)) {
                    continue;
                }
                if let Some(state) = description.partitions.iter().find(|state| state.partition == place.partition) {
                    let size = i64::try_from(state.size_bytes).unwrap_or(i64::MAX);
                    partitions.push(DescribeLogDirsPartition::default().with_partition_index(index).with_partition_size(size));
                }
            }
            if !partitions.is_empty() {
                self.topics.push(DescribeLogDirsTopic::default().with_name(TopicName(text(name.as_str()))).with_partitions(partitions));
            }
        }
        self.ask(context);
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let directory = DescribeLogDirsResult::default().with_log_dir(text(context.config.data_dir.as_str())).with_topics(self.topics);
        encode(&DescribeLogDirsResponse::default().with_results(vec![directory]), version, out)
    }
}
