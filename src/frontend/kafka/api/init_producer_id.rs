//! A new idempotent producer. Whoever had an id before and asks again gets another, with epoch 0.

use kafka_protocol::messages::{InitProducerIdResponse, ProducerId};

use super::{Call, Context, encode};
use crate::frontend::kafka::decode::InitProducerIdRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct InitProducerId {
    is_transactional: bool,
    error: i16,
    producer_id: i64,
    producer_epoch: i16,
}

impl InitProducerId {
    /// Nothing asked yet.
    pub fn open(request: &InitProducerIdRequest<'_>) -> InitProducerId {
        let is_transactional = request.transactional_id.is_some();
        InitProducerId { is_transactional, error: errors::NONE, producer_id: -1, producer_epoch: -1 }
    }
}

impl Call for InitProducerId {
    fn begin(&mut self, context: &mut Context<'_>) {
        if self.is_transactional {
            self.error = errors::COORDINATOR_NOT_AVAILABLE;
            return;
        }
        context.ask(0, OwnedRequest::InitProducer);
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Producer { producer_id, producer_epoch } => {
                (self.producer_id, self.producer_epoch) = (producer_id.0, producer_epoch as i16);
            }
            Reply::Failed(failure) => self.error = errors::code(&failure),
            _ => self.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        let response = InitProducerIdResponse::default()
            .with_error_code(self.error)
            .with_producer_id(ProducerId(self.producer_id))
            .with_producer_epoch(self.producer_epoch);
        encode(&response, version, out)
    }
}
