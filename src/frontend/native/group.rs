//! Groups: the native protocol's words to the broker's and back.

use std::sync::Arc;

use ringmain_wire::control;
use ringmain_wire::group::{
    GroupAnswer, GroupCall, GroupJoined, GroupList, GroupListed, GroupMember, GroupMemberInfo, GroupOffset as WireOffset, GroupRequest,
};
use ringmain_wire::{Offset, PartitionId};

use crate::request::group::{
    Commit, GroupAction, GroupListing, GroupOffset, GroupPhase, GroupReply, GroupRequest as Asked, Join, MemberRef, Protocol, Sync,
};
use crate::request::{Failure, Request};

/// A request's body.
pub fn parse(body: &[u8]) -> Result<Request<'static>, Failure> {
    let GroupRequest { group, call } = control::read_open(body).map_err(super::control_failure)?;
    let numbers = |partitions: Vec<u32>| partitions.into_iter().map(PartitionId).collect();
    let action = match call {
        GroupCall::Join { member, client_id, session_timeout_ms, rebalance_timeout_ms, protocol_type, protocols } => {
            let protocols = protocols.into_iter().map(|known| Protocol { name: known.name, metadata: known.metadata });
            GroupAction::Join(Join {
                member: named(member),
                client_id,
                client_host: String::new(),
                session_timeout_ms,
                rebalance_timeout_ms,
                protocol_type,
                protocols: protocols.collect(),
                requires_member_id: true,
                supports_skipping: false,
            })
        }
        GroupCall::Sync { member, generation, shares } => GroupAction::Sync(Sync {
            member: named(member),
            generation,
            protocol_type: None,
            protocol: None,
            assignments: shares.into_iter().map(|share| (share.member_id, share.share)).collect(),
        }),
        GroupCall::Heartbeat { member, generation } => GroupAction::Heartbeat { member: named(member), generation },
        GroupCall::Leave { member } => GroupAction::Leave { members: vec![named(member)] },
        GroupCall::Commit { member, generation, offsets } => {
            let offsets = offsets.into_iter().map(|at| GroupOffset {
                partition: PartitionId(at.partition),
                offset: Offset(at.offset),
                leader_epoch: -1,
                metadata: at.metadata,
            });
            GroupAction::Commit(Commit { member: named(member), generation, transaction: None, offsets: offsets.collect() })
        }
        GroupCall::ReadOffsets { partitions } => GroupAction::ReadOffsets { partitions: partitions.map(numbers), stable: false },
        GroupCall::Describe => GroupAction::Describe,
        GroupCall::Delete => GroupAction::Delete,
        GroupCall::DeleteOffsets { partitions } => GroupAction::DeleteOffsets { partitions: numbers(partitions) },
    };
    Ok(Request::Group(Arc::new(Asked { group, action })))
}

/// An answer's body. `Err`: a member that couldn't leave.
pub fn answer(reply: GroupReply) -> Result<GroupAnswer, Failure> {
    Ok(match reply {
        GroupReply::Joined(joined) => GroupAnswer::Joined {
            generation: joined.generation,
            protocol: joined.protocol,
            leader: joined.leader,
            member_id: joined.member_id,
            members: joined
                .members
                .into_iter()
                .map(|member| GroupJoined { member_id: member.member.member_id, metadata: member.metadata })
                .collect(),
        },
        GroupReply::MemberIdRequired { member_id } => GroupAnswer::MemberIdRequired { member_id },
        GroupReply::Synced { assignment, .. } => GroupAnswer::Synced { share: assignment },
        GroupReply::Alive => GroupAnswer::Alive,
        GroupReply::Left(left) => match left.into_iter().find_map(|(_, code)| code) {
            Some(code) => return Err(code.into()),
            None => GroupAnswer::Done,
        },
        GroupReply::Deleted | GroupReply::Decided => GroupAnswer::Done,
        GroupReply::Committed { refused } => {
            GroupAnswer::Committed { refused: refused.into_iter().map(|(partition, code)| (partition.0, code as u16)).collect() }
        }
        GroupReply::Offsets { offsets, .. } => GroupAnswer::Offsets {
            offsets: offsets
                .into_iter()
                .map(|at| WireOffset { partition: at.partition.0, offset: at.offset.0, metadata: at.metadata })
                .collect(),
        },
        GroupReply::Description(found) => GroupAnswer::Description {
            phase: phase(found.phase).into(),
            generation: found.generation,
            protocol_type: found.protocol_type,
            protocol: found.protocol,
            leader: found.leader,
            members: found
                .members
                .into_iter()
                .map(|member| GroupMemberInfo {
                    member: GroupMember { member_id: member.member.member_id, instance_id: member.member.instance_id },
                    client_id: member.client_id,
                    client_host: member.client_host,
                    share: member.assignment,
                })
                .collect(),
        },
    })
}

/// The body of a list.
pub fn list(groups: Vec<GroupListing>) -> GroupList {
    let listed = groups.into_iter().map(|listing| GroupListed {
        group: listing.group,
        protocol_type: listing.protocol_type,
        phase: phase(listing.phase).into(),
        member_count: listing.member_count,
    });
    GroupList { groups: listed.collect() }
}

fn named(member: GroupMember) -> MemberRef {
    MemberRef { member_id: member.member_id, instance_id: member.instance_id }
}

fn phase(phase: GroupPhase) -> &'static str {
    match phase {
        GroupPhase::Empty => "Empty",
        GroupPhase::PreparingRebalance => "PreparingRebalance",
        GroupPhase::CompletingRebalance => "CompletingRebalance",
        GroupPhase::Stable => "Stable",
    }
}
