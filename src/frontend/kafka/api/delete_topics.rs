//! Topics go, with everything in them.

use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsResponse, TopicName};

use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::DeleteTopicsRequest;
use crate::frontend::kafka::errors::{self, Refused};
use crate::request::Reply;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct DeleteTopics {
    topics: Vec<(String, Option<Refused>)>,
}

impl DeleteTopics {
    /// Asks nothing yet.
    pub fn open(request: &DeleteTopicsRequest<'_>) -> DeleteTopics {
        DeleteTopics { topics: request.topic_names.iter().map(|name| ((*name).to_owned(), None)).collect() }
    }
}

impl Call for DeleteTopics {
    fn begin(&mut self, context: &mut Context<'_>) {
        for (number, (name, _)) in self.topics.iter().enumerate() {
            context.ask(number as u32, OwnedRequest::DeleteTopic { name: name.clone() });
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some((_, refused)) = self.topics.get_mut(number as usize) else { return };
        *refused = match reply {
            Reply::Deleted => None,
            Reply::Failed(failure) => Some(Refused::of(&failure)),
            _ => Some(Refused::new(errors::UNKNOWN_SERVER_ERROR, "")),
        };
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let results = self.topics.into_iter().map(|(name, refused)| {
            let result = DeletableTopicResult::default().with_name(Some(TopicName(text(name))));
            match refused {
                None => result,
                Some(refused) if version >= 5 => result.with_error_code(refused.code).with_error_message(Some(text(refused.message))),
                Some(refused) => result.with_error_code(refused.code),
            }
        });
        encode(&DeleteTopicsResponse::default().with_responses(results.collect()), version, out)
    }
}
