//! A group whose offsets a transaction is about to commit.

use kafka_protocol::messages::AddOffsetsToTxnResponse;

use super::transaction::{self, Step};
use super::{Answer, Call, Context, encode};
use crate::frontend::kafka::decode::AddOffsetsToTxnRequest;
use crate::request::Reply;
use crate::request::transaction::TransactionAction;

/// Since this version clients know PRODUCER_FENCED.
const KNOWS_FENCING: i16 = 2;

/// The call.
pub struct AddOffsetsToTxn {
    step: Step,
}

impl AddOffsetsToTxn {
    /// Nothing asked yet.
    pub fn open(request: &AddOffsetsToTxnRequest<'_>, version: i16) -> AddOffsetsToTxn {
        let producer = transaction::producer(request.producer_id, request.producer_epoch);
        let action = TransactionAction::AddGroup { producer, group: request.group_id.to_owned() };
        let request = transaction::ask(request.transactional_id, action);
        AddOffsetsToTxn { step: Step::new(request, version >= KNOWS_FENCING) }
    }
}

impl Call for AddOffsetsToTxn {
    fn begin(&mut self, context: &mut Context<'_>) {
        self.step.begin(context);
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        self.step.answer(&reply);
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        encode(&AddOffsetsToTxnResponse::default().with_error_code(self.step.error), version, out)
    }
}
