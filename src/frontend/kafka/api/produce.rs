//! Batches for partitions, each framed where it lies in the message and answered when it is as durable as its topic asks: acks 1
//! and -1 are the same here. acks 0 wants no response; then an error closes the connection, as a sign.

use std::sync::Arc;

use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceResponse, TopicName};
use ringmain_wire::control::Cleanup;

use super::{Answer, Call, Context, encode, place, text};
use crate::frontend::kafka::decode::{HEAP_MAX_BYTES, ProduceStep, ProduceWalk};
use crate::frontend::kafka::errors::{self, Refused};
use crate::frontend::kafka::{batch, records};
use crate::request::{Reply, Request};

/// The call.
pub struct Produce {
    version: i16,
    acks: i16,
    /// The body is the last so many bytes of the message.
    body_bytes: usize,
    walk: ProduceWalk,
    is_transactional: bool,
    topics: Vec<TopicParts>,
    part_count: u32,
}

struct TopicParts {
    name: Arc<str>,
    parts: Vec<Part>,
}

/// What became of one partition's batch.
struct Part {
    index: i32,
    error: i16,
    base_offset: i64,
    /// As the response has it: -1 where record times are their producer's.
    append_time_ms: i64,
    stamps: bool,
    message: String,
}

impl Produce {
    /// Checks the request whole; its batches come one by one.
    pub fn open(body: &[u8], version: i16) -> Result<Produce, String> {
        let (head, walk) = ProduceWalk::begin(body, version).map_err(|error| error.to_string())?;
        let count = walk.check(body).map_err(|error| error.to_string())?;
        if count > HEAP_MAX_BYTES / size_of::<Part>() {
            return Err(format!("{count} partitions in one Produce request"));
        }
        Ok(Produce {
            version,
            acks: head.acks,
            body_bytes: body.len(),
            walk,
            is_transactional: head.transactional_id.is_some(),
            topics: Vec::new(),
            part_count: 0,
        })
    }

    fn frame<'a>(&self, step: &ProduceStep<'a>, context: &Context<'_>) -> Result<(Request<'a>, Option<Arc<str>>), Refused> {
        if !(-1..=1).contains(&self.acks) {
            return Err(Refused { code: errors::INVALID_REQUIRED_ACKS, message: format!("acks {}; -1, 0 and 1 are known", self.acks) });
        }
        let topic = context.view.catalog.topic(step.topic);
        let (Some(topic), Some((partition, _))) = (topic, place(topic, step.index)) else {
            return Err(Refused { code: errors::UNKNOWN_TOPIC_OR_PARTITION, message: String::new() });
        };
        let batch = step.records.unwrap_or_default();
        let frame = batch::frame(batch, partition, self.version)?;
        let is_transactional = frame.header.producer.flags & ringmain_wire::frame::flags::TRANSACTIONAL != 0;
        if is_transactional != self.is_transactional {
            let message = "the request's transactional id and its batches don't agree".into();
            return Err(Refused { code: errors::INVALID_RECORD, message });
        }
        if topic.config.cleanup != Cleanup::Delete {
            let limit_bytes = batch::INFLATED_MAX_BYTES.min(context.view.memory_bytes / 4);
            records::all_have_keys(batch, limit_bytes).map_err(|error| Refused { code: errors::INVALID_RECORD, message: error.into() })?;
        }
        Ok((Request::Produce { frame }, Some(topic.name.clone())))
    }

    fn part(&mut self, number: u32) -> Option<&mut Part> {
        let mut number = number as usize;
        for topic in &mut self.topics {
            if number < topic.parts.len() {
                return topic.parts.get_mut(number);
            }
            number -= topic.parts.len();
        }
        None
    }
}

impl Call for Produce {
    fn has_parts(&self) -> bool {
        true
    }

    fn next_request<'a>(&mut self, message: &'a [u8], context: &mut Context<'_>) -> Option<(u32, Request<'a>)> {
        let body = &message[message.len() - self.body_bytes..];
        // Checked to its end when it was opened.
        while let Ok(Some(step)) = self.walk.next(body) {
            let framed = self.frame(&step, context);
            let number = self.part_count;
            self.part_count += 1;
            if self.topics.last().is_none_or(|topic| &*topic.name != step.topic) {
                let known = framed.as_ref().ok().and_then(|(_, name)| name.clone());
                self.topics.push(TopicParts { name: known.unwrap_or_else(|| step.topic.into()), parts: Vec::new() });
            }
            let parts = &mut self.topics.last_mut().expect("pushed above").parts;
            let mut part =
                Part { index: step.index, error: errors::NONE, base_offset: -1, append_time_ms: -1, stamps: false, message: String::new() };
            match framed {
                Ok((request, _)) => {
                    part.stamps = context.view.catalog.topic(step.topic).is_some_and(|topic| topic.config.append_time);
                    parts.push(part);
                    return Some((number, request));
                }
                Err(Refused { code, message }) => {
                    (part.error, part.message) = (code, message);
                    parts.push(part);
                }
            }
        }
        None
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some(part) = self.part(number) else { return };
        match reply {
            Reply::Produced { base_offset, append_time_ms, .. } => {
                part.base_offset = base_offset.0 as i64;
                part.append_time_ms = if part.stamps { append_time_ms } else { -1 };
            }
            Reply::Failed(failure) => {
                part.error = errors::code(&failure);
                part.message = if failure.message.is_empty() { failure.code.text().into() } else { failure.message };
            }
            _ => part.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        if self.acks == 0 {
            let failed = self.topics.iter().flat_map(|topic| &topic.parts).find(|part| part.error != errors::NONE);
            return match failed {
                None => Ok(false),
                Some(part) => Err(format!("a batch without acknowledgement was refused: error {} {}", part.error, part.message)),
            };
        }
        let topics = self.topics.into_iter().map(|topic| {
            let parts = topic.parts.into_iter().map(|part| {
                let answer = PartitionProduceResponse::default()
                    .with_index(part.index)
                    .with_error_code(part.error)
                    .with_base_offset(part.base_offset)
                    .with_log_append_time_ms(part.append_time_ms);
                // A client whose producer state is gone needs to know that nothing was truncated to go on with a new one.
                let answer =
                    if part.error == errors::UNKNOWN_PRODUCER_ID && version >= 5 { answer.with_log_start_offset(0) } else { answer };
                if version >= 8 && part.error != errors::NONE { answer.with_error_message(Some(text(part.message))) } else { answer }
            });
            TopicProduceResponse::default().with_name(TopicName(text(topic.name.to_string()))).with_partition_responses(parts.collect())
        });
        encode(&ProduceResponse::default().with_responses(topics.collect()), version, out)
    }
}
