//! A group whose offsets a transaction is about to commit.

use kafka_protocol::messages::AddOffsetsToTxnResponse;

use super::{Call, Context, encode, transaction};
use crate::frontend::kafka::decode::AddOffsetsToTxnRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::TransactionAction;
use crate::router::letter::OwnedRequest;

/// Since this version clients know PRODUCER_FENCED.
const KNOWS_FENCING: i16 = 2;

/// The call.
pub struct AddOffsetsToTxn {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    knows_fencing: bool,
    error: i16,
}

impl AddOffsetsToTxn {
    /// Nothing asked yet.
    pub fn open(request: &AddOffsetsToTxnRequest<'_>, version: i16) -> AddOffsetsToTxn {
        let producer = transaction::producer(request.producer_id, request.producer_epoch);
        let action = TransactionAction::AddGroup { producer, group: request.group_id.to_owned() };
        let request = Some(transaction::ask(request.transactional_id, action));
        AddOffsetsToTxn { request, knows_fencing: version >= KNOWS_FENCING, error: errors::NONE }
    }
}

impl Call for AddOffsetsToTxn {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        self.error = transaction::done(&reply, self.knows_fencing);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        encode(&AddOffsetsToTxnResponse::default().with_error_code(self.error), version, out)
    }
}
