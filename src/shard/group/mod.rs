//! Consumer groups: who belongs to a group, which generation it is in, and where it is in its partitions.
//!
//! A deterministic state machine without I/O and without a log of its own. What must survive goes into an outbox of
//! state records; an answer that rests on one waits, under a ticket, until the shard says that it is durable.
//!
//! | file | what it holds |
//! |---|---|
//! | `membership` | one group: join, sync, heartbeat, leave, and the generations they lead to |
//! | `member` | one member; timers |
//! | `offsets` | one group's committed offsets, and those that a transaction will commit |
//! | `persist` | a group as state records, and back |
//! | `serve` | the shard's side: requests in, records into the log, timers, retention |

mod member;
mod membership;
#[cfg(test)]
mod model;
pub mod offsets;
pub mod persist;
pub mod serve;
#[cfg(test)]
pub mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use ringmain_wire::{ErrorCode, PartitionId, ProducerId};

use crate::request::group::{GroupAction, GroupListing, GroupPhase, GroupReply, Join, MemberRef};
use crate::request::{Failure, Now, Origin};
use member::TimerOf;
use membership::{Common, Group};
use offsets::Committed;

pub use membership::{Answer, Change};
pub use persist::Incoming;

/// Longest name of a group.
pub const GROUP_NAME_MAX_BYTES: usize = 255;
/// Longest member id or instance id.
const ID_MAX_BYTES: usize = 512;
/// Most protocols of a member.
const PROTOCOLS_MAX: usize = 64;
/// A group without members and offsets is forgotten after so long.
const VACANT_MS: i64 = 600_000;

/// Bounds of a shard's groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupsConfig {
    /// How long a group that was empty waits for more members before its first generation; each newcomer may prolong it.
    pub initial_rebalance_delay_us: u64,
    /// Session timeouts below are refused …
    pub session_timeout_min_ms: u32,
    /// … and above.
    pub session_timeout_max_ms: u32,
    /// Members of one group; more get `GroupFull`.
    pub members_max: usize,
    /// Protocol metadata of one member, and its assignment; more gets `InvalidArgument`.
    pub member_bytes_max: usize,
    /// Memory of all groups and offsets; more gets `LimitExceeded`.
    pub bytes_max: usize,
    /// Offsets are forgotten so long after the group's last member left, or after the last commit if that was later.
    pub offset_retention_ms: u64,
    /// Groups are looked through for that so often.
    pub round_interval_us: u64,
    /// Random bits of this start: member ids are made from them.
    pub entropy: u64,
}

impl Default for GroupsConfig {
    fn default() -> GroupsConfig {
        GroupsConfig {
            initial_rebalance_delay_us: 3_000_000,
            session_timeout_min_ms: 6_000,
            session_timeout_max_ms: 1_800_000,
            members_max: 4_096,
            member_bytes_max: 512 << 10,
            bytes_max: 16 << 20,
            offset_retention_ms: 7 * 24 * 3_600_000,
            round_interval_us: 60_000_000,
            entropy: 0,
        }
    }
}

/// The groups of one shard.
#[derive(Debug, Default)]
pub struct Groups {
    groups: BTreeMap<Arc<str>, Group>,
    common: Common,
    /// The round over all groups: after which it goes on.
    round: Option<Option<Arc<str>>>,
    next_round_us: u64,
    /// Partitions of all shards, a bit each: offsets of others are refused.
    existing: Vec<u64>,
}

impl Groups {
    /// A request about members. Its answer comes out of [`Groups::poll_reply`], now or later.
    ///
    /// Only while [`Groups::poll_change`] has nothing: what is to be logged has a bound.
    pub fn request(&mut self, origin: Origin, name: &str, action: &GroupAction, now: Now) {
        let answer = match action {
            GroupAction::Join(join) => self.join(origin, name, join, now),
            GroupAction::Sync(sync) => self.with(name, now, |group, common| group.sync(common, origin, sync, now)),
            GroupAction::Heartbeat { member, generation } => {
                self.with(name, now, |group, common| group.heartbeat(common, member, *generation, now).map(Some))
            }
            GroupAction::Leave { members } => Ok(Some(GroupReply::Left(self.leave(name, members, now)))),
            GroupAction::Describe => self.describe(name),
            _ => Err(ErrorCode::Internal.into()),
        };
        match answer {
            Ok(Some(reply)) => self.common.replies.push_back((origin, Ok(reply))),
            Ok(None) => {}
            Err(failure) => self.common.replies.push_back((origin, Err(failure))),
        }
    }

    fn join(&mut self, origin: Origin, name: &str, join: &Join, now: Now) -> Result<Option<GroupReply>, Failure> {
        self.check_join(join)?;
        self.common.room_for(member::join_charge(join) + name.len() * 2)?;
        if !self.groups.contains_key(name) {
            if !join.member.member_id.is_empty() {
                return Err(ErrorCode::UnknownMember.into());
            }
            self.make(name, now);
        }
        self.with(name, now, |group, common| group.join(common, origin, join, now))
    }

    fn check_join(&self, join: &Join) -> Result<(), Failure> {
        let config = &self.common.config;
        if !(config.session_timeout_min_ms..=config.session_timeout_max_ms).contains(&join.session_timeout_ms) {
            let (least, most) = (config.session_timeout_min_ms, config.session_timeout_max_ms);
            let message = format!("a session timeout of {} ms; allowed are {least} to {most}", join.session_timeout_ms);
            return Err(Failure::new(ErrorCode::InvalidSessionTimeout, message));
        }
        let invalid = |message: String| Err(Failure::new(ErrorCode::InvalidArgument, message));
        let instance_bytes = join.member.instance_id.as_ref().map(String::len);
        if join.member.member_id.len() > ID_MAX_BYTES || instance_bytes.is_some_and(|bytes| bytes == 0 || bytes > ID_MAX_BYTES) {
            return invalid(format!("a member's id and its instance id have at most {ID_MAX_BYTES} bytes, an instance id at least 1"));
        }
        if join.protocols.len() > PROTOCOLS_MAX || join.protocol_type.len() > GROUP_NAME_MAX_BYTES {
            return invalid(format!("{} protocols; at most {PROTOCOLS_MAX} are kept", join.protocols.len()));
        }
        if let Some(long) = join.protocols.iter().find(|protocol| protocol.name.len() > GROUP_NAME_MAX_BYTES) {
            return invalid(format!("a protocol name of {} bytes; at most {GROUP_NAME_MAX_BYTES} are kept", long.name.len()));
        }
        let bytes: usize = join.protocols.iter().map(|protocol| protocol.metadata.len()).sum();
        if bytes > config.member_bytes_max {
            return invalid(format!("{bytes} bytes of protocol metadata; at most {} are kept", config.member_bytes_max));
        }
        Ok(())
    }

    fn leave(&mut self, name: &str, members: &[MemberRef], now: Now) -> Vec<(MemberRef, Option<ErrorCode>)> {
        let mut left = Vec::with_capacity(members.len());
        for member in members {
            let result = self.with(name, now, |group, common| Ok(group.leave(common, member, now).err()));
            left.push((member.clone(), result.unwrap_or(Some(ErrorCode::UnknownMember))));
        }
        left
    }

    fn describe(&self, name: &str) -> Result<Option<GroupReply>, Failure> {
        let group = self.groups.get(name).ok_or(ErrorCode::GroupNotFound)?;
        Ok(Some(GroupReply::Description(group.description())))
    }

    /// Every group, in order of name.
    pub fn list(&self) -> Vec<GroupListing> {
        self.groups.values().map(Group::listing).collect()
    }

    /// Does something with a group, reckons what it is charged, and forgets it if nothing is left. A group that isn't
    /// there has no members.
    fn with<T>(&mut self, name: &str, _now: Now, work: impl FnOnce(&mut Group, &mut Common) -> Result<T, Failure>) -> Result<T, Failure> {
        let group = self.groups.get_mut(name).ok_or(ErrorCode::UnknownMember)?;
        let result = work(group, &mut self.common);
        let charge = group.charge();
        self.common.charged_bytes = self.common.charged_bytes + charge - group.charged_bytes;
        group.charged_bytes = charge;
        if group.is_vacant() {
            self.forget(name);
        }
        result
    }

    fn make(&mut self, name: &str, now: Now) -> &mut Group {
        self.common.next_number += 1;
        let name: Arc<str> = name.into();
        let mut group = Group::new(name.clone(), self.common.next_number, now);
        group.charged_bytes = group.charge();
        self.common.charged_bytes += group.charged_bytes;
        self.groups.entry(name).or_insert(group)
    }

    fn forget(&mut self, name: &str) {
        let Some(mut group) = self.groups.remove(name) else { return };
        group.disarm(&mut self.common);
        self.common.charged_bytes -= group.charged_bytes + group.offsets.charged_bytes();
    }

    /// Partitions that are there from now on.
    pub fn add_partitions(&mut self, partitions: impl IntoIterator<Item = PartitionId>) {
        for PartitionId(partition) in partitions {
            let at = partition as usize / 64;
            if self.existing.len() <= at {
                self.existing.resize(at + 1, 0);
            }
            self.existing[at] |= 1 << (partition % 64);
        }
    }

    /// Partitions that have gone take their offsets along.
    pub fn drop_partitions(&mut self, partitions: &[PartitionId]) {
        for PartitionId(partition) in partitions {
            if let Some(bits) = self.existing.get_mut(*partition as usize / 64) {
                *bits &= !(1 << (partition % 64));
            }
        }
        self.change_offsets(|offsets| partitions.iter().for_each(|partition| offsets.forget(*partition)));
    }

    /// Once at start, when all that exist have been added: offsets of others are forgotten.
    pub fn keep_existing(&mut self) {
        let existing = std::mem::take(&mut self.existing);
        self.change_offsets(|offsets| offsets.retain(|partition| has_bit(&existing, partition)));
        self.existing = existing;
    }

    fn exists(&self, partition: PartitionId) -> bool {
        has_bit(&self.existing, partition)
    }

    fn change_offsets(&mut self, change: impl Fn(&mut offsets::GroupOffsets)) {
        for group in self.groups.values_mut() {
            let before = group.offsets.charged_bytes();
            change(&mut group.offsets);
            self.common.charged_bytes = self.common.charged_bytes + group.offsets.charged_bytes() - before;
        }
        let vacant: Vec<Arc<str>> = self.groups.values().filter(|group| group.is_vacant()).map(|group| group.name.clone()).collect();
        vacant.iter().for_each(|name| self.forget(name));
    }

    // ---- time -----------------------------------------------------------------------------------------

    /// When [`Groups::tick`] has something to do. Nothing while changes wait for the log: its progress comes first.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if !self.common.outbox.is_empty() {
            return None;
        }
        let timer = self.common.timers.first().map(|(at, _, _)| *at);
        let round = (!self.groups.is_empty()).then_some(self.next_round_us);
        timer.into_iter().chain(round).min()
    }

    /// One timer that is due. False = none, or changes wait for the log.
    pub fn tick(&mut self, now: Now) -> bool {
        if !self.common.outbox.is_empty() || self.common.timers.first().is_none_or(|(at, _, _)| *at > now.monotonic_us) {
            return false;
        }
        let Some((_, name, of)) = self.common.timers.pop_first() else { return false };
        let _ = self.with(&name, now, |group, common| {
            match of {
                TimerOf::Phase => group.phase_expired(common, now),
                TimerOf::Member(member_id) => group.session_timer(common, &member_id, now),
                TimerOf::Promised(member_id) => group.promise_expired(common, &member_id, now),
            }
            Ok(())
        });
        true
    }

    /// The next group whose time is over, looking at no more than `count`; [`Groups::next_deadline_us`] says when to ask.
    pub fn expired(&mut self, count: usize, now: Now) -> Option<Arc<str>> {
        if self.round.is_none() && now.monotonic_us >= self.next_round_us {
            self.round = Some(None);
            self.next_round_us = now.monotonic_us + self.common.config.round_interval_us;
        }
        for _ in 0..count {
            let after = self.round.clone()?;
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let Some((name, group)) = self.groups.range::<str, _>((from, Bound::Unbounded)).next() else {
                self.round = None;
                return None;
            };
            self.round = Some(Some(name.clone()));
            if group.is_expired(&self.common.config, now) {
                return Some(name.clone());
            }
        }
        None
    }

    /// A round is under way.
    pub fn has_round(&self) -> bool {
        self.round.is_some()
    }

    // ---- the log --------------------------------------------------------------------------------------

    /// The oldest change that is to be logged.
    pub fn first_change(&mut self) -> Option<&mut Change> {
        self.common.outbox.front_mut()
    }

    /// It has been logged, or can't be.
    pub fn pop_change(&mut self) -> Option<Change> {
        self.common.outbox.pop_front()
    }

    /// The change is durable: whoever waited for it is answered.
    pub fn durable(&mut self, ticket: u64) {
        if let Some(ticket) = self.common.tickets.remove(&ticket) {
            self.common.replies.extend(ticket.held);
        }
    }

    /// The change is lost: whoever waited for it is told, and the group's members join again.
    pub fn lost(&mut self, ticket: u64, failure: &Failure, now: Now) {
        let Some(ticket) = self.common.tickets.remove(&ticket) else { return };
        self.common.replies.extend(ticket.held.into_iter().map(|(origin, _)| (origin, Err(failure.clone()))));
        let _ = self.with(&ticket.group, now, |group, common| {
            group.log_failed(common, ticket.generation, now);
            Ok(())
        });
    }

    /// Nothing can be logged any more: whoever waits for anything is told.
    pub fn fenced(&mut self, failure: &Failure) {
        self.common.outbox.clear();
        self.groups.values_mut().for_each(|group| group.stop(&mut self.common, failure));
        for (_, ticket) in std::mem::take(&mut self.common.tickets) {
            self.common.replies.extend(ticket.held.into_iter().map(|(origin, _)| (origin, Err(failure.clone()))));
        }
    }

    /// The broker stops: whoever waits for other members is told. Changes under way still become durable.
    pub fn stop(&mut self) {
        let failure = ErrorCode::ShuttingDown.into();
        self.groups.values_mut().for_each(|group| group.stop(&mut self.common, &failure));
    }

    /// The next answer.
    pub fn poll_reply(&mut self) -> Option<(Origin, Answer)> {
        self.common.replies.pop_front()
    }

    /// What all groups and offsets are charged.
    pub fn charged_bytes(&self) -> usize {
        self.common.charged_bytes
    }

    /// Groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// The groups after `after`, for a checkpoint.
    pub fn after(&self, after: Option<&str>) -> impl Iterator<Item = (&Arc<str>, &Group)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.groups.range::<str, _>((from, Bound::Unbounded))
    }

    /// The group of that name and the first after it, for a checkpoint.
    pub fn from(&self, from: &str) -> Option<(&Arc<str>, &Group)> {
        self.groups.range::<str, _>((Bound::Included(from), Bound::Unbounded)).next()
    }
}

fn has_bit(bits: &[u64], PartitionId(partition): PartitionId) -> bool {
    bits.get(partition as usize / 64).is_some_and(|word| word >> (partition % 64) & 1 == 1)
}

impl Group {
    /// What a decision makes of what is staged: the offsets that take effect. A commit is about exactly one incarnation,
    /// an abort also ends older ones.
    fn decided(&mut self, producer_id: ProducerId, producer_epoch: u16, commit: bool) -> Vec<(PartitionId, Committed)> {
        let is_meant = self
            .offsets
            .staged_epoch(producer_id)
            .is_some_and(|staged| if commit { staged == producer_epoch } else { staged <= producer_epoch });
        let staged = if is_meant { self.offsets.unstage(producer_id, commit) } else { Vec::new() };
        if commit { staged } else { Vec::new() }
    }

    fn is_expired(&self, config: &GroupsConfig, now: Now) -> bool {
        if self.phase != GroupPhase::Empty || !self.promised.is_empty() {
            return false;
        }
        let idle_since_ms = self.empty_since_ms.max(self.last_commit_ms);
        let idle_ms = now.wall_ms.saturating_sub(idle_since_ms);
        let kept_ms = i64::try_from(config.offset_retention_ms).unwrap_or(i64::MAX);
        let has_staged = self.offsets.unstable().next().is_some();
        !has_staged && idle_ms >= if self.offsets.is_empty() { VACANT_MS.min(kept_ms) } else { kept_ms }
    }
}

#[cfg(test)]
impl Groups {
    /// What another start must come to.
    pub fn summary(&self) -> Vec<GroupSummary> {
        let groups = self.groups.values().map(|group| GroupSummary {
            name: group.name.to_string(),
            phase: group.phase,
            generation: group.generation,
            protocol: (group.protocol_type.clone(), group.protocol.clone()),
            leader: group.leader.to_string(),
            members: group
                .members
                .iter()
                .filter(|(_, member)| !member.is_new)
                .map(|(id, member)| (member.named(id), member.metadata(&group.protocol).to_vec(), member.assignment.clone()))
                .collect(),
            offsets: group.offsets.logged_after(None).map(|(partition, committed)| (partition, committed.clone())).collect(),
            staged: {
                let all = group.offsets.all_staged().into_iter();
                all.map(|(producer_id, epoch, partition, committed)| (producer_id, epoch, partition, committed.clone())).collect()
            },
        });
        groups.collect()
    }

    /// `charged_bytes`, counted anew.
    pub fn counted_bytes(&self) -> usize {
        self.groups.values().map(|group| group.charge() + group.offsets.charged_bytes()).sum()
    }
}

/// A group as its records have it.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    name: String,
    phase: GroupPhase,
    generation: i32,
    protocol: (String, String),
    leader: String,
    members: Vec<(MemberRef, Vec<u8>, Vec<u8>)>,
    offsets: Vec<(PartitionId, Committed)>,
    /// In the order in which it came.
    staged: Vec<(ProducerId, u16, PartitionId, Committed)>,
}
