//! A new producer. With a transactional id it takes that id over; without, whoever had an id before and asks again gets
//! another, with epoch 0.

use kafka_protocol::messages::{InitProducerIdResponse, ProducerId};

use super::{Answer, Call, Context, encode, transaction};
use crate::frontend::kafka::decode::InitProducerIdRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::{TransactionAction, TransactionReply};
use crate::router::letter::OwnedRequest;

/// Since this version clients know PRODUCER_FENCED.
const KNOWS_FENCING: i16 = 4;

/// The call.
pub struct InitProducerId {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    knows_fencing: bool,
    error: i16,
    producer_id: i64,
    producer_epoch: i16,
}

impl InitProducerId {
    /// Nothing asked yet.
    pub fn open(request: &InitProducerIdRequest<'_>, version: i16) -> InitProducerId {
        let is_half_known = (request.producer_id < 0) != (request.producer_epoch < 0);
        let (request, error) = match request.transactional_id {
            _ if is_half_known => (None, errors::INVALID_REQUEST),
            None => (Some(OwnedRequest::InitProducer), errors::NONE),
            Some(id) => {
                let known = transaction::producer(request.producer_id, request.producer_epoch);
                let current = (request.producer_id >= 0).then_some(known);
                // What isn't positive is refused where the bounds are.
                let timeout_ms = u32::try_from(request.transaction_timeout_ms).unwrap_or(0);
                (Some(transaction::ask(id, TransactionAction::Init { timeout_ms, check: None, current })), errors::NONE)
            }
        };
        InitProducerId { request, knows_fencing: version >= KNOWS_FENCING, error, producer_id: -1, producer_epoch: -1 }
    }
}

impl Call for InitProducerId {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Producer { producer_id, producer_epoch } => {
                (self.producer_id, self.producer_epoch) = (producer_id.0, producer_epoch as i16);
            }
            Reply::Transaction(reply) => match *reply {
                TransactionReply::Producer(producer) => (self.producer_id, self.producer_epoch) = (producer.id.0, producer.epoch as i16),
                _ => self.error = errors::UNKNOWN_SERVER_ERROR,
            },
            Reply::Failed(failure) => self.error = transaction::code(&failure, self.knows_fencing),
            _ => self.error = errors::UNKNOWN_SERVER_ERROR,
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let response = InitProducerIdResponse::default()
            .with_error_code(self.error)
            .with_producer_id(ProducerId(self.producer_id))
            .with_producer_epoch(self.producer_epoch);
        encode(&response, version, out)
    }
}
