//! Where everything is: nodes, topics, partitions and their leaders. Topics that are asked for by name and don't exist are made,
//! unless the client or the configuration forbids it; the answer waits until every core knows them, so that the first batch finds them.

use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic};
use kafka_protocol::messages::{BrokerId, MetadataResponse, TopicName};
use ringmain_wire::control::{CreateTopic, TopicConfig};

use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::MetadataRequest;
use crate::frontend::kafka::{KafkaConfig, errors};
use crate::request::Reply;
use crate::router::letter::OwnedRequest;
use crate::shard::catalog::Topic;

/// The call.
pub struct Metadata {
    /// `None` = every topic.
    topics: Option<Vec<Wanted>>,
    may_create: bool,
}

/// A topic that was asked for.
struct Wanted {
    by: By,
    error: i16,
}

enum By {
    Name(String),
    Id([u8; 16]),
}

impl Metadata {
    /// Which topics, and whether missing ones are made.
    pub fn open(request: &MetadataRequest<'_>, version: i16, context: &Context<'_>) -> Metadata {
        let wanted = |topic: &crate::frontend::kafka::decode::MetadataTopic<'_>| Wanted {
            // Who asks by id may leave the name empty; Java's client does.
            by: match topic.name {
                Some(name) if topic.topic_id == NO_ID => By::Name(name.to_owned()),
                _ => By::Id(topic.topic_id),
            },
            error: errors::NONE,
        };
        let topics = request.topics.as_ref().map(|topics| topics.iter().map(wanted).collect::<Vec<_>>());
        // In version 0 an empty list means all.
        let topics = topics.filter(|topics| version > 0 || !topics.is_empty());
        Metadata { topics, may_create: request.allow_auto_topic_creation && context.config.creates_topics }
    }
}

impl Call for Metadata {
    fn begin(&mut self, context: &mut Context<'_>) {
        if !self.may_create {
            return;
        }
        for (part, topic) in self.topics.iter().flatten().enumerate() {
            if let By::Name(name) = &topic.by
                && context.view.catalog.topic(name).is_none()
            {
                let create =
                    CreateTopic { name: name.clone(), partition_count: context.config.default_partitions, config: TopicConfig::default() };
                context.ask(part as u32, OwnedRequest::CreateTopic(Box::new(create)));
            }
        }
    }

    fn answer(&mut self, part: u32, reply: Reply, _context: &mut Context<'_>) {
        if let Reply::Failed(failure) = reply
            && let Some(topic) = self.topics.as_mut().and_then(|topics| topics.get_mut(part as usize))
        {
            // Made by somebody else meanwhile: it is there.
            topic.error = match errors::code(&failure) {
                errors::TOPIC_ALREADY_EXISTS => errors::NONE,
                code => code,
            };
        }
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let (config, catalog) = (context.config, context.view.catalog);
        let topics = match &self.topics {
            None => catalog.topics().map(|topic| found(topic, version, config)).collect(),
            Some(wanted) => wanted.iter().map(|wanted| answer(wanted, version, context)).collect(),
        };
        let nodes = context.nodes().map(|(id, host, port)| {
            MetadataResponseBroker::default().with_node_id(BrokerId(id)).with_host(text(host)).with_port(i32::from(port))
        });
        let mut response = MetadataResponse::default().with_controller_id(BrokerId(0)).with_brokers(nodes.collect()).with_topics(topics);
        if version >= 2 {
            response.cluster_id = Some(text(cluster_id(config)));
        }
        encode(&response, version, out)
    }
}

fn answer(wanted: &Wanted, version: i16, context: &Context<'_>) -> MetadataResponseTopic {
    let (config, catalog) = (context.config, context.view.catalog);
    let topic = match &wanted.by {
        By::Name(name) => catalog.topic(name),
        By::Id(id) => topic_number(*id, config).and_then(|number| catalog.topic_by_id(ringmain_wire::TopicId(number))),
    };
    match (&wanted.by, topic) {
        (_, Some(topic)) => found(topic, version, config),
        (By::Name(name), None) => {
            let error = match wanted.error {
                errors::NONE if !crate::shard::catalog::is_topic_name(name) => errors::INVALID_TOPIC,
                errors::NONE => errors::UNKNOWN_TOPIC_OR_PARTITION,
                error => error,
            };
            MetadataResponseTopic::default().with_error_code(error).with_name(Some(TopicName(text(name.clone()))))
        }
        (By::Id(id), None) => {
            let name = (version < 12).then(|| TopicName(text("")));
            let topic = MetadataResponseTopic::default().with_error_code(errors::UNKNOWN_TOPIC_ID).with_name(name);
            topic.with_topic_id(uuid::Uuid::from_bytes(*id))
        }
    }
}

fn found(topic: &Topic, version: i16, config: &KafkaConfig) -> MetadataResponseTopic {
    let partitions = topic.partitions.iter().zip(0..).map(|(place, index)| {
        let node = BrokerId(node_of_shard(place.shard, config));
        let partition = MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(node)
            .with_replica_nodes(vec![node])
            .with_isr_nodes(vec![node]);
        if version >= 7 { partition.with_leader_epoch(leader_epoch(place.shard, config)) } else { partition }
    });
    let answer =
        MetadataResponseTopic::default().with_name(Some(TopicName(text(topic.name.to_string())))).with_partitions(partitions.collect());
    if version >= 10 { answer.with_topic_id(topic_uuid(topic.topic.0, config)) } else { answer }
}

/// As clients see the data directory's number.
pub fn cluster_id(config: &KafkaConfig) -> String {
    format!("ringmain-{:016x}", config.cluster_id)
}

/// The node that clients go to for a shard's partitions.
pub fn node_of_shard(shard: u16, config: &KafkaConfig) -> i32 {
    if usize::from(shard) < config.nodes.len() { i32::from(shard) } else { 0 }
}

/// Of a shard's partitions.
pub fn leader_epoch(shard: u16, config: &KafkaConfig) -> i32 {
    config.epochs.get(usize::from(shard)).map_or(-1, |epoch| *epoch as i32)
}

/// A topic's number, which is never used again, as Kafka's clients want it: unique over clusters.
pub fn topic_uuid(number: u32, config: &KafkaConfig) -> uuid::Uuid {
    uuid::Uuid::from_u64_pair(config.cluster_id, UUID_VARIANT | u64::from(number))
}

fn topic_number(id: [u8; 16], config: &KafkaConfig) -> Option<u32> {
    let (high, low) = uuid::Uuid::from_bytes(id).as_u64_pair();
    (high == config.cluster_id && low & !u64::from(u32::MAX) == UUID_VARIANT).then_some(low as u32)
}

const NO_ID: [u8; 16] = [0; 16];
/// Sets these ids apart from Kafka's reserved ones, which are small numbers.
const UUID_VARIANT: u64 = 0x8000_0000 << 32;
