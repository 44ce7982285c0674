//! What the APIs of groups have in common.

use std::sync::Arc;

use ringmain_wire::{ErrorCode, PartitionId};

use super::Context;
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

/// The partition that a topic's name and an index mean.
pub fn partition(context: &Context<'_>, topic: &str, index: i32) -> Option<PartitionId> {
    let topic = context.view.catalog.topic(topic)?;
    topic.partitions.get(usize::try_from(index).ok()?).map(|place| PartitionId(place.partition))
}

/// A partition as clients name it; `None` = it has just gone.
pub fn topic_and_index(context: &Context<'_>, partition: PartitionId) -> Option<(String, i32)> {
    let entry = context.view.catalog.partition(partition)?;
    let topic = context.view.catalog.topic_by_id(entry.topic)?;
    Some((topic.name.to_string(), entry.index as i32))
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
