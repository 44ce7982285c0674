//! New topics, each decided on its own. There is one copy of everything: a replication factor is 1, or left to the broker.

use std::collections::HashSet;

use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::{CreateTopicsResponse, TopicName};
use ringmain_wire::control::{CreateTopic, TopicConfig};

use super::configs::Source;
use super::metadata::topic_uuid;
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::{CreatableTopic, CreateTopicsRequest};
use crate::frontend::kafka::errors::{self, Refused};
use crate::frontend::kafka::topic_config::{self, SETTINGS};
use crate::request::Reply;
use crate::router::letter::OwnedRequest;
use crate::shard::catalog::{CatalogLimits, PARTITIONS_LIMIT};

/// The call.
pub struct CreateTopics {
    validate_only: bool,
    topics: Vec<Wanted>,
}

struct Wanted {
    name: String,
    result: Result<CreateTopic, Refused>,
    /// Its number, once it is made.
    topic: Option<u32>,
}

impl CreateTopics {
    /// Checks every topic; asks nothing yet.
    pub fn open(request: &CreateTopicsRequest<'_>, context: &Context<'_>) -> CreateTopics {
        let (mut seen, mut twice) = (HashSet::new(), HashSet::new());
        for topic in &request.topics {
            if !seen.insert(topic.name) {
                twice.insert(topic.name);
            }
        }
        let mut topics: Vec<Wanted> = Vec::new();
        for topic in &request.topics {
            // A name that is there twice is answered once, and refused.
            if twice.contains(topic.name) && topics.iter().any(|wanted| wanted.name == topic.name) {
                continue;
            }
            let result = if twice.contains(topic.name) {
                Err(Refused::new(errors::INVALID_REQUEST, "the request names this topic twice"))
            } else {
                wanted(topic, context)
            };
            topics.push(Wanted { name: topic.name.to_owned(), result, topic: None });
        }
        CreateTopics { validate_only: request.validate_only, topics }
    }
}

fn wanted(topic: &CreatableTopic<'_>, context: &Context<'_>) -> Result<CreateTopic, Refused> {
    let invalid = |code, message: &str| Err(Refused::new(code, message));
    let partition_count = if topic.assignments.is_empty() {
        match topic.num_partitions {
            -1 => context.config.default_partitions,
            count => u32::try_from(count)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| Refused::new(errors::INVALID_PARTITIONS, format!("{count} partitions; a topic has at least one")))?,
        }
    } else {
        if topic.num_partitions != -1 || topic.replication_factor != -1 {
            return invalid(errors::INVALID_REQUEST, "with replica assignments, partitions and replication factor must be -1");
        }
        let mut indexes: Vec<i32> = topic.assignments.iter().map(|assignment| assignment.partition_index).collect();
        indexes.sort_unstable();
        if !indexes.iter().copied().eq(0..indexes.len() as i32) {
            return invalid(errors::INVALID_REPLICA_ASSIGNMENT, "partitions must be numbered from 0 on, without gaps");
        }
        if topic.assignments.iter().any(|assignment| assignment.broker_ids.len() != 1) {
            return invalid(errors::INVALID_REPLICA_ASSIGNMENT, "every partition has exactly one replica here");
        }
        topic.assignments.len() as u32
    };
    if !matches!(topic.replication_factor, -1 | 1) {
        let message = format!("replication factor {}; this broker keeps one copy: use 1, or -1", topic.replication_factor);
        return Err(Refused::new(errors::INVALID_REPLICATION_FACTOR, message));
    }
    if partition_count > PARTITIONS_LIMIT {
        return Err(Refused::new(errors::INVALID_PARTITIONS, format!("{partition_count} partitions; {PARTITIONS_LIMIT} are allowed")));
    }
    let settings = topic.configs.iter().map(|config| (config.name, config.value));
    let config = topic_config::of_new_topic(settings).map_err(|message| Refused::new(errors::INVALID_CONFIG, message))?;
    let create = CreateTopic { name: topic.name.to_owned(), partition_count, config };
    let limits = CatalogLimits { partitions_max: PARTITIONS_LIMIT, shard_count: context.config.epochs.len().max(1) as u16 };
    match context.view.catalog.decide_create(&create, limits) {
        Ok(_) => Ok(create),
        Err(failure) => Err(Refused::of(&failure)),
    }
}

impl Call for CreateTopics {
    fn begin(&mut self, context: &mut Context<'_>) {
        if self.validate_only {
            return;
        }
        for (number, wanted) in self.topics.iter().enumerate() {
            if let Ok(create) = &wanted.result {
                context.ask(number as u32, OwnedRequest::CreateTopic(Box::new(create.clone())));
            }
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some(wanted) = self.topics.get_mut(number as usize) else { return };
        match reply {
            Reply::Topic(info) => wanted.topic = Some(info.topic),
            Reply::Failed(failure) => wanted.result = Err(Refused::of(&failure)),
            _ => wanted.result = Err(Refused::new(errors::UNKNOWN_SERVER_ERROR, "")),
        }
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let topics = self.topics.into_iter().map(|wanted| {
            let result = CreatableTopicResult::default().with_name(TopicName(text(wanted.name)));
            let result = match wanted.topic {
                Some(number) if version >= 7 => result.with_topic_id(topic_uuid(number, context.config)),
                _ => result,
            };
            match wanted.result {
                Err(refused) => {
                    // Java's client can't read a list that is null, not even beside an error.
                    let result = if version >= 5 { result.with_configs(Some(Vec::new())) } else { result };
                    result.with_error_code(refused.code).with_error_message(Some(text(refused.message)))
                }
                Ok(create) if version >= 5 => result
                    .with_num_partitions(create.partition_count as i32)
                    .with_replication_factor(1)
                    .with_configs(Some(configs(&create.config))),
                Ok(_) => result,
            }
        });
        encode(&CreateTopicsResponse::default().with_topics(topics.collect()), version, out)
    }
}

fn configs(config: &TopicConfig) -> Vec<CreatableTopicConfigs> {
    let settings = SETTINGS.iter().map(|setting| {
        let value = setting.value(config);
        let source = if value.is_some() { Source::Topic } else { Source::Default };
        CreatableTopicConfigs::default()
            .with_name(text(setting.name))
            .with_value(Some(text(value.unwrap_or_else(|| setting.default.into()))))
            .with_config_source(source as i8)
    });
    settings.collect()
}
