//! Commits or aborts a transaction.

use kafka_protocol::messages::EndTxnResponse;

use super::transaction::{self, Step};
use super::{Answer, Call, Context, encode};
use crate::frontend::kafka::decode::EndTxnRequest;
use crate::request::Reply;
use crate::request::transaction::TransactionAction;

/// Since this version clients know PRODUCER_FENCED.
const KNOWS_FENCING: i16 = 2;

/// The call.
pub struct EndTxn {
    step: Step,
}

impl EndTxn {
    /// Nothing asked yet.
    pub fn open(request: &EndTxnRequest<'_>, version: i16) -> EndTxn {
        let producer = transaction::producer(request.producer_id, request.producer_epoch);
        let action = TransactionAction::End { producer, commit: request.committed, renews: false };
        let request = transaction::ask(request.transactional_id, action);
        EndTxn { step: Step::new(request, version >= KNOWS_FENCING) }
    }
}

impl Call for EndTxn {
    fn begin(&mut self, context: &mut Context<'_>) {
        self.step.begin(context);
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        self.step.answer(&reply);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        encode(&EndTxnResponse::default().with_error_code(self.step.error), version, out)
    }
}
