//! Transactions: the native protocol's words to the broker's and back.

use std::sync::Arc;

use ringmain_wire::queue::RECEIVE_WAIT_MAX_MS;
use ringmain_wire::transaction::{
    CHECK_GROUP_MAX_BYTES, CheckBack, ListTransactions, TO_CHECK_MAX, TransactionAnswer, TransactionCall, TransactionList,
    TransactionListed, TransactionProducer, TransactionRequest, TransactionToCheck, TransactionsChecked, TransactionsToCheck,
};
use ringmain_wire::{ErrorCode, ProducerId, ShardId, control};

use super::control_failure;
use crate::request::transaction::{
    ProducerKey, ToCheck, TransactionAction, TransactionListing, TransactionPhase, TransactionReply, TransactionRequest as Asked,
};
use crate::request::{Failure, Request};

/// Body of `Transaction`.
pub fn parse(body: &[u8]) -> Result<Request<'static>, Failure> {
    let TransactionRequest { transactional_id, call } = control::read_open(body).map_err(control_failure)?;
    let action = match call {
        TransactionCall::Init { timeout_ms, check, current } => {
            if let Some(check) = &check {
                bad_check(check, timeout_ms)?;
            }
            TransactionAction::Init { timeout_ms, check, current: current.map(key) }
        }
        TransactionCall::End { producer, commit } => TransactionAction::End { producer: key(producer), commit, renews: true },
        TransactionCall::Describe => TransactionAction::Describe,
    };
    Ok(Request::Transaction(Arc::new(Asked { transactional_id, action })))
}

/// Body of `ListTransactions`.
pub fn parse_list(body: &[u8]) -> Result<Request<'static>, Failure> {
    let _: ListTransactions = control::read_open(body).map_err(control_failure)?;
    Ok(Request::ListTransactions)
}

fn bad_check(check: &CheckBack, timeout_ms: u32) -> Result<(), Failure> {
    bad_group(&check.group)?;
    if !(1..=timeout_ms).contains(&check.after_ms) {
        let message = format!("a check after {} ms; 1 to the timeout, {timeout_ms}, are allowed", check.after_ms);
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    Ok(())
}

fn bad_group(group: &str) -> Result<(), Failure> {
    if !(1..=CHECK_GROUP_MAX_BYTES).contains(&group.len()) {
        let message = format!("a group of {} bytes; 1 to {CHECK_GROUP_MAX_BYTES} are allowed", group.len());
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    Ok(())
}

/// Body of `TransactionsToCheck`.
pub fn parse_to_check(body: &[u8]) -> Result<Request<'static>, Failure> {
    let TransactionsToCheck { group, shard, max, max_wait_ms } = control::read_open(body).map_err(control_failure)?;
    bad_group(&group)?;
    if !(1..=TO_CHECK_MAX).contains(&max) {
        let message = format!("{max} transactions at once; 1 to {TO_CHECK_MAX} can be asked for");
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    Ok(Request::ToCheck(Arc::new(ToCheck { group, shard: ShardId(shard), max, max_wait_ms: max_wait_ms.min(RECEIVE_WAIT_MAX_MS) })))
}

/// Its answer.
pub fn to_check(transactions: Vec<TransactionListing>) -> TransactionsChecked {
    let of = |listing: TransactionListing| TransactionToCheck {
        transactional_id: listing.transactional_id,
        producer: unkey(listing.producer),
        begun_ms: listing.begun_ms,
    };
    TransactionsChecked { transactions: transactions.into_iter().map(of).collect() }
}

/// An answer's body.
pub fn answer(reply: TransactionReply) -> Result<TransactionAnswer, Failure> {
    match reply {
        TransactionReply::Producer(producer) => Ok(TransactionAnswer::Producer(unkey(producer))),
        TransactionReply::Description(description) => Ok(TransactionAnswer::Description {
            listed: listed(description.listing),
            timeout_ms: description.timeout_ms,
            partitions: description.partitions.into_iter().map(|partition| partition.0).collect(),
            groups: description.groups,
        }),
        TransactionReply::Done => Err(Failure::new(ErrorCode::Internal, "an answer between shards came to a connection")),
    }
}

/// The body of a list.
pub fn list(transactions: Vec<TransactionListing>) -> TransactionList {
    TransactionList { transactions: transactions.into_iter().map(listed).collect() }
}

fn listed(listing: TransactionListing) -> TransactionListed {
    let phase = match listing.phase {
        TransactionPhase::Empty => "Empty",
        TransactionPhase::Ongoing => "Ongoing",
        TransactionPhase::Committing => "Committing",
        TransactionPhase::Aborting => "Aborting",
        TransactionPhase::Committed => "Committed",
        TransactionPhase::Aborted => "Aborted",
    };
    TransactionListed {
        transactional_id: listing.transactional_id,
        producer: unkey(listing.producer),
        phase: phase.into(),
        begun_ms: listing.begun_ms,
    }
}

/// The broker's word for a producer.
pub fn key(producer: TransactionProducer) -> ProducerKey {
    ProducerKey { id: ProducerId(producer.producer_id), epoch: producer.epoch }
}

fn unkey(producer: ProducerKey) -> TransactionProducer {
    TransactionProducer { producer_id: producer.id.0, epoch: producer.epoch }
}
