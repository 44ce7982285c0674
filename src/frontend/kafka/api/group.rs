//! What the APIs of groups have in common.

use std::sync::Arc;

use ringmain_wire::ErrorCode;

use crate::frontend::kafka::errors;
use crate::request::Failure;
use crate::request::group::{GroupAction, GroupPhase, GroupRequest, MemberRef};
use crate::router::letter::OwnedRequest;

/// A request about a group.
pub fn ask(group: &str, action: GroupAction) -> OwnedRequest {
    OwnedRequest::Group(Arc::new(GroupRequest { group: group.to_owned(), action }))
}

/// A member as a client names it.
pub fn member(member_id: &str, instance_id: Option<&str>) -> MemberRef {
    MemberRef { member_id: member_id.to_owned(), instance_id: instance_id.map(str::to_owned) }
}

/// Kafka's number for a failure of a group's shard. What passes by itself, or with a restart, makes clients look for the
/// coordinator again.
pub fn code(failure: &Failure) -> i16 {
    match failure.code {
        ErrorCode::ShuttingDown | ErrorCode::ShardFenced | ErrorCode::DiskFull | ErrorCode::Overloaded => errors::COORDINATOR_NOT_AVAILABLE,
        ErrorCode::LimitExceeded => errors::GROUP_MAX_SIZE_REACHED,
        _ => errors::code(failure),
    }
}

/// A phase by Kafka's name.
pub fn state(phase: GroupPhase) -> &'static str {
    match phase {
        GroupPhase::Empty => "Empty",
        GroupPhase::PreparingRebalance => "PreparingRebalance",
        GroupPhase::CompletingRebalance => "CompletingRebalance",
        GroupPhase::Stable => "Stable",
    }
}
