//! A group as state records, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmain_wire::{Offset, PartitionId, ProducerId};

use super::member::{Member, TimerOf};
use super::membership::Group;
use super::offsets::Committed;
use super::{Groups, GroupsConfig};
use crate::request::Now;
use crate::request::group::{GroupPhase, Join, MemberRef, Protocol};
use crate::shard::state_record::{GroupOffsetPiece, GroupPiece, MemberPiece, StateRecord};

/// A record is ended after about so many bytes.
const PIECE_BYTES: usize = 64 << 10;

impl Group {
    /// All of it but its offsets: one header, then its members.
    ///
    /// Members that have been in no generation aren't written: their joins don't survive their connections.
    pub fn records(&self) -> Vec<StateRecord> {
        let stamp = self.ticket.unwrap_or(0);
        let members = || self.members.iter().filter(|(_, member)| !member.is_new);
        let mut records = vec![StateRecord::Group(Box::new(GroupPiece {
            group: self.name.to_string(),
            stamp,
            phase: phase_number(self.phase),
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.to_string(),
            empty_since_ms: self.empty_since_ms,
            member_count: members().count() as u32,
        }))];
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for (member_id, member) in members() {
            if bytes >= PIECE_BYTES {
                let members = std::mem::take(&mut pieces);
                records.push(StateRecord::GroupMembers { group: self.name.to_string(), stamp, members });
                bytes = 0;
            }
            let piece = member_piece(member_id, member, &self.protocol);
            bytes += 128 + 2 * member_id.len() + piece.client_id.len() + piece.metadata.len() + piece.assignment.len();
            pieces.push(piece);
        }
        if !pieces.is_empty() {
            records.push(StateRecord::GroupMembers { group: self.name.to_string(), stamp, members: pieces });
        }
        records
    }

    /// What transactions have staged here, in the order in which it came.
    pub fn staged_records(&self) -> Vec<StateRecord> {
        let all = self.offsets.all_staged();
        let by_producer = all.chunk_by(|(a, ..), (b, ..)| a == b);
        let records = by_producer.flat_map(|staged| {
            let offsets: Vec<_> = staged.iter().map(|(_, _, partition, committed)| (*partition, (*committed).clone())).collect();
            staged_records(&self.name, staged[0].0, staged[0].1, &offsets)
        });
        records.collect()
    }
}

/// Commits as records of bounded size.
pub fn offset_records(group: &str, offsets: &[(PartitionId, Committed)]) -> Vec<StateRecord> {
    split(offsets).map(|offsets| StateRecord::GroupOffsets { group: group.into(), offsets }).collect()
}

/// Staged commits as records of bounded size.
pub fn staged_records(group: &str, producer_id: ProducerId, producer_epoch: u16, offsets: &[(PartitionId, Committed)]) -> Vec<StateRecord> {
    split(offsets)
        .map(|offsets| StateRecord::GroupStaged { group: group.into(), producer_id: producer_id.0, producer_epoch, offsets })
        .collect()
}

fn split(offsets: &[(PartitionId, Committed)]) -> impl Iterator<Item = Vec<GroupOffsetPiece>> {
    let mut rest = offsets;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest.iter().take_while(|(_, committed)| {
            let fits = bytes < PIECE_BYTES;
            bytes += 48 + committed.metadata.len();
            fits
        });
        let (piece, others) = rest.split_at(count.count());
        rest = others;
        (!piece.is_empty()).then(|| piece.iter().map(|(partition, committed)| offset_piece(*partition, committed)).collect())
    })
}

/// One offset.
pub fn offset_piece(partition: PartitionId, committed: &Committed) -> GroupOffsetPiece {
    GroupOffsetPiece {
        partition: partition.0,
        offset: committed.offset.0,
        leader_epoch: committed.leader_epoch,
        metadata: committed.metadata.to_string(),
        commit_ms: committed.commit_ms,
    }
}

fn committed(piece: GroupOffsetPiece) -> (PartitionId, Committed) {
    let committed = Committed {
        offset: Offset(piece.offset),
        leader_epoch: piece.leader_epoch,
        metadata: piece.metadata.into(),
        commit_ms: piece.commit_ms,
    };
    (PartitionId(piece.partition), committed)
}

fn member_piece(member_id: &str, member: &Member, protocol: &str) -> MemberPiece {
    MemberPiece {
        member_id: member_id.into(),
        instance_id: member.instance_id.as_deref().map(String::from),
        client_id: member.client_id.to_string(),
        client_host: member.client_host.to_string(),
        session_timeout_ms: (member.session_timeout_us / 1000) as u32,
        rebalance_timeout_ms: (member.rebalance_timeout_us / 1000) as u32,
        metadata: member.metadata(protocol).to_vec(),
        assignment: member.assignment.clone(),
    }
}

fn phase_number(phase: GroupPhase) -> u8 {
    match phase {
        GroupPhase::Empty => 0,
        GroupPhase::PreparingRebalance => 1,
        GroupPhase::CompletingRebalance => 2,
        GroupPhase::Stable => 3,
    }
}

fn phase_of(number: u8) -> GroupPhase {
    match number {
        1 => GroupPhase::PreparingRebalance,
        2 => GroupPhase::CompletingRebalance,
        3 => GroupPhase::Stable,
        _ => GroupPhase::Empty,
    }
}

/// Groups whose header has been replayed and whose members haven't all.
#[derive(Debug, Default)]
pub struct Incoming {
    groups: BTreeMap<String, (GroupPiece, Vec<MemberPiece>)>,
}

impl Groups {
    /// A state record of a group, from the log. A picture of it counts once all its members have been seen.
    pub fn replay(&mut self, incoming: &mut Incoming, record: StateRecord) {
        match record {
            StateRecord::Group(piece) if piece.member_count == 0 => {
                incoming.groups.remove(&piece.group);
                self.restore(*piece, Vec::new());
            }
            StateRecord::Group(piece) => {
                incoming.groups.insert(piece.group.clone(), (*piece, Vec::new()));
            }
            StateRecord::GroupMembers { group, stamp, members } => {
                let Some((piece, seen)) = incoming.groups.get_mut(&group).filter(|(piece, _)| piece.stamp == stamp) else { return };
                seen.extend(members);
                if seen.len() >= piece.member_count as usize
                    && let Some((piece, seen)) = incoming.groups.remove(&group)
                {
                    self.restore(piece, seen);
                }
            }
            StateRecord::GroupOffsets { group, offsets } => {
                let group = self.at_replay(&group);
                for (partition, committed) in offsets.into_iter().map(committed) {
                    group.last_commit_ms = group.last_commit_ms.max(committed.commit_ms);
                    group.offsets.supersede(partition);
                    group.offsets.restore(partition, committed);
                }
            }
            StateRecord::GroupStaged { group, producer_id, producer_epoch, offsets } => {
                let group = self.at_replay(&group);
                group.offsets.stage(ProducerId(producer_id), producer_epoch, offsets.into_iter().map(committed));
            }
            StateRecord::GroupDecided { group, producer_id, producer_epoch, commit } => {
                let group = self.at_replay(&group);
                for (partition, committed) in group.decided(ProducerId(producer_id), producer_epoch, commit) {
                    group.offsets.restore(partition, committed);
                }
            }
            StateRecord::GroupOffsetsForgotten { group, partitions } => {
                let group = self.at_replay(&group);
                partitions.into_iter().for_each(|partition| group.offsets.forget(PartitionId(partition)));
            }
            StateRecord::GroupDeleted { group } => {
                incoming.groups.remove(&group);
                self.groups.remove(group.as_str());
            }
            _ => {}
        }
    }

    /// After the last record: sessions begin anew, and whatever was under way has its full time again.
    pub fn begin(&mut self, config: GroupsConfig, now: Now) {
        self.common.config = config;
        self.next_round_us = now.monotonic_us + self.common.config.round_interval_us;
        self.groups.retain(|_, group| !group.is_vacant());
        for group in self.groups.values_mut() {
            if group.members.is_empty() && group.phase != GroupPhase::Empty {
                group.phase = GroupPhase::Empty;
                group.empty_since_ms = now.wall_ms;
            }
            for (member_id, member) in &mut group.members {
                member.session_deadline_us = now.monotonic_us + member.session_timeout_us;
                member.timer_at_us = member.session_deadline_us;
                self.common.timers.insert((member.timer_at_us, group.name.clone(), TimerOf::Member(member_id.clone())));
            }
            if matches!(group.phase, GroupPhase::PreparingRebalance | GroupPhase::CompletingRebalance) {
                let longest_us = group.members.values().map(|member| member.rebalance_timeout_us).max().unwrap_or(0);
                group.set_deadline(&mut self.common, Some(now.monotonic_us + longest_us));
            }
            group.charged_bytes = group.charge();
            self.common.charged_bytes += group.charged_bytes + group.offsets.charged_bytes();
        }
    }

    fn at_replay(&mut self, name: &str) -> &mut Group {
        if !self.groups.contains_key(name) {
            self.common.next_number += 1;
            let name: Arc<str> = name.into();
            self.groups.insert(name.clone(), Group::new(name, self.common.next_number, Now::default()));
        }
        self.groups.get_mut(name).expect("inserted above")
    }

    fn restore(&mut self, piece: GroupPiece, members: Vec<MemberPiece>) {
        let group = self.at_replay(&piece.group);
        group.phase = phase_of(piece.phase);
        group.generation = piece.generation;
        group.protocol_type = piece.protocol_type;
        group.protocol = piece.protocol;
        group.leader = piece.leader.into();
        group.empty_since_ms = piece.empty_since_ms;
        group.members.clear();
        group.statics.clear();
        let is_stable = group.phase == GroupPhase::Stable;
        for piece in members {
            let member_id: Arc<str> = piece.member_id.as_str().into();
            let join = Join {
                member: MemberRef { member_id: piece.member_id, instance_id: piece.instance_id },
                client_id: piece.client_id,
                client_host: piece.client_host,
                session_timeout_ms: piece.session_timeout_ms,
                rebalance_timeout_ms: piece.rebalance_timeout_ms,
                protocol_type: String::new(),
                protocols: vec![Protocol { name: group.protocol.clone(), metadata: piece.metadata }],
                requires_member_id: false,
                supports_skipping: false,
            };
            let mut member = Member::new(&join);
            (member.is_new, member.has_synced) = (false, is_stable);
            member.assignment = piece.assignment;
            if let Some(instance) = &member.instance_id {
                group.statics.insert(instance.clone(), member_id.clone());
            }
            group.members.insert(member_id, member);
        }
    }
}
