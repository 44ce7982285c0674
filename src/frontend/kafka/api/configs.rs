//! What settings belong to, and where their values come from: shared by the APIs that describe and change them.

use crate::frontend::kafka::KafkaConfig;
use crate::frontend::kafka::topic_config::Kind;

/// Kafka's number of a topic's settings.
pub const TOPIC: i8 = 2;
/// Kafka's number of a broker's settings.
pub const BROKER: i8 = 4;

/// Where a value comes from; numbers as Kafka has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Topic = 1,
    StaticBroker = 4,
    Default = 5,
}

/// What clients may want to know of a broker: they can't change it.
pub fn broker_settings(config: &KafkaConfig, node: i32) -> Vec<(&'static str, Kind, String)> {
    let text = |value: &str| value.to_owned();
    vec![
        ("auto.create.topics.enable", Kind::Bool, config.creates_topics.to_string()),
        ("broker.id", Kind::Int, node.to_string()),
        ("compression.type", Kind::Text, text("producer")),
        ("default.replication.factor", Kind::Int, text("1")),
        ("delete.topic.enable", Kind::Bool, text("true")),
        ("log.cleanup.policy", Kind::List, text("delete")),
        ("log.dirs", Kind::Text, config.data_dir.clone()),
        ("log.message.timestamp.type", Kind::Text, text("CreateTime")),
        ("log.retention.bytes", Kind::Long, text("-1")),
        ("log.retention.ms", Kind::Long, text("-1")),
        ("message.max.bytes", Kind::Int, text("1048576")),
        ("min.insync.replicas", Kind::Int, text("1")),
        ("num.partitions", Kind::Int, config.default_partitions.to_string()),
        ("socket.request.max.bytes", Kind::Int, config.max_request_bytes.to_string()),
    ]
}

/// The node that a broker resource names, if there is one.
pub fn node_of(name: &str, config: &KafkaConfig) -> Option<i32> {
    name.parse().ok().filter(|node| usize::try_from(*node).is_ok_and(|node| node < config.nodes.len()))
}
