//! Commits or aborts a transaction.

use kafka_protocol::messages::EndTxnResponse;

use super::{Call, Context, encode, transaction};
use crate::frontend::kafka::decode::EndTxnRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::TransactionAction;
use crate::router::letter::OwnedRequest;

/// Since this version clients know PRODUCER_FENCED.
const KNOWS_FENCING: i16 = 2;

/// The call.
pub struct EndTxn {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    knows_fencing: bool,
    error: i16,
}

impl EndTxn {
    /// Nothing asked yet.
    pub fn open(request: &EndTxnRequest<'_>, version: i16) -> EndTxn {
        let producer = transaction::producer(request.producer_id, request.producer_epoch);
        let action = TransactionAction::End { producer, commit: request.committed };
        let request = Some(transaction::ask(request.transactional_id, action));
        EndTxn { request, knows_fencing: version >= KNOWS_FENCING, error: errors::NONE }
    }
}

impl Call for EndTxn {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        self.error = transaction::done(&reply, self.knows_fencing);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        encode(&EndTxnResponse::default().with_error_code(self.error), version, out)
    }
}
