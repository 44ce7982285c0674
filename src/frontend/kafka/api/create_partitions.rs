//! More partitions for topics.

use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{CreatePartitionsResponse, TopicName};
use ringmain_wire::control::AlterTopic;

use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::{CreatePartitionsRequest, CreatePartitionsTopic};
use crate::frontend::kafka::errors::{self, Refused};
use crate::request::Reply;
use crate::router::letter::OwnedRequest;
use crate::shard::catalog::PARTITIONS_LIMIT;

/// The call.
pub struct CreatePartitions {
    validate_only: bool,
    topics: Vec<(String, Result<u32, Refused>)>,
}

impl CreatePartitions {
    /// Checks every topic; asks nothing yet.
    pub fn open(request: &CreatePartitionsRequest<'_>, context: &Context<'_>) -> CreatePartitions {
        let topics = request.topics.iter().map(|topic| (topic.name.to_owned(), wanted(topic, context)));
        CreatePartitions { validate_only: request.validate_only, topics: topics.collect() }
    }
}

fn wanted(topic: &CreatePartitionsTopic<'_>, context: &Context<'_>) -> Result<u32, Refused> {
    let Some(known) = context.view.catalog.topic(topic.name) else {
        return Err(Refused::new(errors::UNKNOWN_TOPIC_OR_PARTITION, "no such topic"));
    };
    let now = known.partitions.len() as u32;
    let wanted = u32::try_from(topic.count).ok().filter(|count| *count > now && *count <= PARTITIONS_LIMIT);
    let count = wanted.ok_or_else(|| {
        let message = format!("the topic has {now} partitions; {} is not more, up to {PARTITIONS_LIMIT}", topic.count);
        Refused::new(errors::INVALID_PARTITIONS, message)
    })?;
    if let Some(assignments) = &topic.assignments {
        let is_right = assignments.len() as u32 == count - now && assignments.iter().all(|of| of.broker_ids.len() == 1);
        if !is_right {
            return Err(Refused::new(errors::INVALID_REPLICA_ASSIGNMENT, "every new partition has exactly one replica here"));
        }
    }
    Ok(count)
}

impl Call for CreatePartitions {
    fn begin(&mut self, context: &mut Context<'_>) {
        if self.validate_only {
            return;
        }
        for (number, (name, wanted)) in self.topics.iter().enumerate() {
            if let Ok(count) = wanted {
                let alter = AlterTopic { partition_count: Some(*count), ..AlterTopic::nothing(name.as_str()) };
                context.ask(number as u32, OwnedRequest::AlterTopic(Box::new(alter)));
            }
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        if let Reply::Failed(failure) = reply
            && let Some((_, wanted)) = self.topics.get_mut(number as usize)
        {
            *wanted = Err(Refused::of(&failure));
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let results = self.topics.into_iter().map(|(name, wanted)| {
            let result = CreatePartitionsTopicResult::default().with_name(TopicName(text(name)));
            match wanted {
                Ok(_) => result,
                Err(refused) => result.with_error_code(refused.code).with_error_message(Some(text(refused.message))),
            }
        });
        encode(&CreatePartitionsResponse::default().with_results(results.collect()), version, out)
    }
}
