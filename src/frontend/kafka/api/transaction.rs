//! What the APIs of transactions have in common.

use std::sync::Arc;

use ringmain_wire::{ErrorCode, ProducerId};

use super::Context;
use crate::frontend::kafka::errors;
use crate::request::transaction::{ProducerKey, TransactionAction, TransactionPhase, TransactionReply, TransactionRequest};
use crate::request::{Failure, Reply};
use crate::router::letter::OwnedRequest;

/// Partitions, or ids, asked about at a time.
pub const PARTS_AT_A_TIME: usize = 16;

/// A request about the transactions of an id.
pub fn ask(transactional_id: &str, action: TransactionAction) -> OwnedRequest {
    OwnedRequest::Transaction(Arc::new(TransactionRequest { transactional_id: transactional_id.to_owned(), action }))
}

/// A producer as a client names it. An epoch that can't be is nobody's.
pub fn producer(id: i64, epoch: i16) -> ProducerKey {
    ProducerKey { id: ProducerId(id), epoch: u16::try_from(epoch).unwrap_or(u16::MAX) }
}

/// Kafka's number for a failure of a coordinator. What passes by itself, or with a restart, makes clients look for the
/// coordinator again. `knows_fencing`: since the version of an API in which clients tell a producer that was taken over
/// from an epoch that is merely old.
pub fn code(failure: &Failure, knows_fencing: bool) -> i16 {
    match failure.code {
        ErrorCode::ShuttingDown | ErrorCode::ShardFenced | ErrorCode::DiskFull | ErrorCode::Overloaded => errors::COORDINATOR_NOT_AVAILABLE,
        ErrorCode::ProducerFenced if !knows_fencing => errors::INVALID_PRODUCER_EPOCH,
        _ => errors::code(failure),
    }
}

/// A call that asks the coordinator once and is told no more than whether it was done.
pub struct Step {
    /// Until it is asked.
    request: Option<OwnedRequest>,
    knows_fencing: bool,
    /// Kafka's number.
    pub error: i16,
}

impl Step {
    /// Nothing asked yet. `knows_fencing`: as for [`code`].
    pub fn new(request: OwnedRequest, knows_fencing: bool) -> Step {
        Step { request: Some(request), knows_fencing, error: errors::NONE }
    }

    /// Asks.
    pub fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(request) = self.request.take() {
            context.ask(0, request);
        }
    }

    /// Takes the answer in.
    pub fn answer(&mut self, reply: &Reply) {
        self.error = done(reply, self.knows_fencing);
    }
}

/// Kafka's number for the answer to a step that has no other content.
pub fn done(reply: &Reply, knows_fencing: bool) -> i16 {
    match reply {
        Reply::Transaction(reply) if **reply == TransactionReply::Done => errors::NONE,
        Reply::Failed(failure) => code(failure, knows_fencing),
        _ => errors::UNKNOWN_SERVER_ERROR,
    }
}

/// Kafka's name of a phase.
pub fn state(phase: TransactionPhase) -> &'static str {
    match phase {
        TransactionPhase::Empty => "Empty",
        TransactionPhase::Ongoing => "Ongoing",
        TransactionPhase::Committing => "PrepareCommit",
        TransactionPhase::Aborting => "PrepareAbort",
        TransactionPhase::Committed => "CompleteCommit",
        TransactionPhase::Aborted => "CompleteAbort",
    }
}

/// States that a client may ask for.
pub const STATES: [&str; 9] =
    ["Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort", "Dead", "PrepareEpochFence", "Unknown"];
