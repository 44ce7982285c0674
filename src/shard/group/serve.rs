//! The shard's side of its groups: requests in, records into the log, answers out when those are durable.

use std::sync::Arc;

use ringmain_wire::{ErrorCode, Offset, PartitionId, ProducerId};

use super::GROUP_NAME_MAX_BYTES;
use super::offsets::{Committed, ENTRY_BYTES, METADATA_MAX_BYTES};
use super::persist::{offset_records, staged_records};
use crate::log::AppendError;
use crate::request::group::{Commit, GroupAction, GroupOffset, GroupReply, GroupRequest, MemberRef, NO_GENERATION};
use crate::request::{Failure, Now, Origin, Reply};
use crate::shard::state_record::StateRecord;
use crate::shard::{Busy, Deferred, Shard};

/// Offsets in commits that aren't durable yet; more are `Busy`.
const OFFSETS_DEFERRED_MAX: usize = 1 << 18;
/// Groups looked at in one step of the round.
const EXAMINED_PER_STEP: usize = 32;
/// Timers that go off in one turn.
const TIMERS_PER_STEP: usize = 32;

/// A commit that is logged.
#[derive(Debug)]
pub struct LoggedCommit {
    /// Who asked.
    pub origin: Origin,
    /// Which group.
    pub group: Arc<str>,
    /// Its number: another group may have the name by then.
    pub number: u64,
    /// What takes effect.
    pub offsets: Vec<(PartitionId, Committed)>,
    /// The answer.
    pub answer: Reply,
}

impl Shard {
    /// A request about a group.
    pub(in crate::shard) fn group_request(&mut self, origin: Origin, request: &GroupRequest, now: Now) -> Result<(), Busy> {
        let name = request.group.as_str();
        let reads = matches!(request.action, GroupAction::ReadOffsets { .. } | GroupAction::Describe);
        let refusal = if reads { None } else { self.refusal() };
        if let Some(failure) = bad_name(name).map(Into::into).or(refusal) {
            self.fail(origin, failure);
            return Ok(());
        }
        match &request.action {
            GroupAction::Commit(commit) => self.commit(origin, name, commit, now),
            GroupAction::ReadOffsets { partitions, stable } => {
                let reply = self.group_offsets(name, partitions.as_deref(), *stable);
                self.reply(origin, Reply::Group(Box::new(reply)));
                Ok(())
            }
            GroupAction::Delete => self.delete_group(origin, name, now),
            GroupAction::DeleteOffsets { partitions } => self.delete_offsets(origin, name, partitions, now),
            GroupAction::Decide { producer_id, producer_epoch, commit } => {
                self.decide_offsets(origin, name, *producer_id, *producer_epoch, *commit, now)
            }
            action => {
                self.log_changes(now);
                if self.groups.first_change().is_some() {
                    return Err(Busy);
                }
                self.groups.request(origin, name, action, now);
                self.log_changes(now);
                Ok(())
            }
        }
    }

    /// Timers that are due, and a step of the round over all groups.
    pub(in crate::shard) fn groups_step(&mut self, now: Now) {
        if self.fault.is_some() {
            return;
        }
        self.log_changes(now);
        if !self.stopping {
            for _ in 0..TIMERS_PER_STEP {
                if !self.groups.tick(now) {
                    break;
                }
                self.log_changes(now);
            }
            self.expire_groups(now);
        }
        self.take_group_replies();
    }

    /// Appends what groups want written down. What the log doesn't take now stays for the next turn.
    fn log_changes(&mut self, now: Now) {
        while let Some(change) = self.groups.first_change() {
            let ticket = change.ticket;
            let Some(record) = change.records.front().cloned() else {
                self.groups.pop_change();
                continue;
            };
            let deferred = (change.records.len() == 1).then_some(Deferred::Group { ticket });
            match self.log_state(&record, deferred, now) {
                Ok(_) => {
                    if let Some(change) = self.groups.first_change() {
                        change.records.pop_front();
                    }
                }
                Err(AppendError::Busy) => break,
                Err(error) => {
                    self.groups.pop_change();
                    let failure = self.append_failure(error);
                    self.groups.lost(ticket, &failure, now);
                }
            }
        }
        self.take_group_replies();
    }

    pub(in crate::shard) fn take_group_replies(&mut self) {
        while let Some((origin, answer)) = self.groups.poll_reply() {
            match answer {
                Ok(reply) => self.reply(origin, Reply::Group(Box::new(reply))),
                Err(failure) => self.fail(origin, failure),
            }
        }
    }

    fn expire_groups(&mut self, now: Now) {
        if self.groups.first_change().is_some() {
            return;
        }
        while let Some(name) = self.groups.expired(EXAMINED_PER_STEP, now) {
            let record = StateRecord::GroupDeleted { group: name.to_string() };
            // If the log doesn't take it, the next round tries again.
            if self.log_state(&record, None, now).is_err() {
                return;
            }
            self.groups.forget(&name);
        }
    }

    // ---- offsets --------------------------------------------------------------------------------------

    /// The native door's commit of one offset by whoever is no member.
    pub(in crate::shard) fn commit_offset(
        &mut self,
        origin: Origin,
        consumer: &str,
        partition: PartitionId,
        offset: Offset,
        metadata: &str,
        now: Now,
    ) -> Result<(), Busy> {
        if let Some(failure) = self.refusal().or_else(|| bad_consumer(consumer)) {
            self.fail(origin, failure);
            return Ok(());
        }
        if metadata.len() > METADATA_MAX_BYTES {
            let message = format!("{} bytes of metadata; at most {METADATA_MAX_BYTES} are kept", metadata.len());
            self.fail(origin, Failure::new(ErrorCode::InvalidArgument, message));
            return Ok(());
        }
        if !self.groups.exists(partition) {
            self.fail(origin, ErrorCode::UnknownPartition.into());
            return Ok(());
        }
        if let Err(failure) = self.may_commit(consumer, &MemberRef::default(), NO_GENERATION, false, now) {
            self.fail(origin, failure);
            return Ok(());
        }
        let committed = Committed { offset, leader_epoch: -1, metadata: metadata.into(), commit_ms: now.wall_ms };
        self.log_commit(origin, consumer, vec![(partition, committed)], Reply::Committed, now)
    }

    /// The native door's read of one offset.
    pub(in crate::shard) fn read_offset(&mut self, origin: Origin, consumer: &str, partition: PartitionId) {
        if let Some(failure) = bad_consumer(consumer) {
            return self.fail(origin, failure);
        }
        let committed = self.groups.groups.get(consumer).and_then(|group| group.offsets.durable(partition));
        let reply = Reply::ConsumerOffset {
            offset: committed.map(|committed| committed.offset),
            metadata: committed.map_or_else(String::new, |committed| committed.metadata.to_string()),
        };
        self.reply(origin, reply);
    }

    fn may_commit(&mut self, name: &str, member: &MemberRef, generation: i32, transactional: bool, now: Now) -> Result<(), Failure> {
        if !self.groups.groups.contains_key(name) {
            return if generation <= NO_GENERATION { Ok(()) } else { Err(ErrorCode::IllegalGeneration.into()) };
        }
        self.groups.with(name, now, |group, common| Ok(group.may_commit(common, member, generation, transactional, now)?))
    }

    fn commit(&mut self, origin: Origin, name: &str, commit: &Commit, now: Now) -> Result<(), Busy> {
        if let Err(failure) = self.may_commit(name, &commit.member, commit.generation, commit.transaction.is_some(), now) {
            self.fail(origin, failure);
            return Ok(());
        }
        let (mut offsets, mut refused) = (Vec::with_capacity(commit.offsets.len()), Vec::new());
        for GroupOffset { partition, offset, leader_epoch, metadata } in &commit.offsets {
            let unsuitable = match () {
                () if !self.groups.exists(*partition) => Some(ErrorCode::UnknownPartition),
                () if metadata.len() > METADATA_MAX_BYTES => Some(ErrorCode::OffsetMetadataTooLarge),
                () => None,
            };
            if let Some(code) = unsuitable {
                refused.push((*partition, code));
                continue;
            }
            let committed =
                Committed { offset: *offset, leader_epoch: *leader_epoch, metadata: metadata.as_str().into(), commit_ms: now.wall_ms };
            offsets.push((*partition, committed));
        }
        let answer = Reply::Group(Box::new(GroupReply::Committed { refused }));
        if offsets.is_empty() {
            self.reply(origin, answer);
            return Ok(());
        }
        match commit.transaction {
            Some((producer_id, producer_epoch)) => self.stage(origin, name, producer_id, producer_epoch, offsets, answer, now),
            None => self.log_commit(origin, name, offsets, answer, now),
        }
    }

    /// Logs offsets; they count, and the answer leaves, when they are durable.
    fn log_commit(
        &mut self,
        origin: Origin,
        name: &str,
        offsets: Vec<(PartitionId, Committed)>,
        answer: Reply,
        now: Now,
    ) -> Result<(), Busy> {
        if let Err(failure) = self.room_for_offsets(name, &offsets) {
            self.fail(origin, failure);
            return Ok(());
        }
        if self.offsets_deferred + offsets.len() > OFFSETS_DEFERRED_MAX && self.offsets_deferred > 0 {
            return Err(Busy);
        }
        if let Err(error) = self.log_records(offset_records(name, &offsets), now) {
            return self.append_failed(origin, error);
        }
        if let Some(group) = self.groups.groups.get_mut(name) {
            let before = group.offsets.charged_bytes();
            offsets.iter().for_each(|(partition, _)| group.offsets.supersede(*partition));
            self.groups.common.charged_bytes = self.groups.common.charged_bytes + group.offsets.charged_bytes() - before;
        }
        self.commit_logged(origin, name, offsets, answer, now);
        Ok(())
    }

    /// The newest record in the log commits these.
    fn commit_logged(&mut self, origin: Origin, name: &str, offsets: Vec<(PartitionId, Committed)>, answer: Reply, now: Now) {
        let sequence = self.last_sequence;
        if !self.groups.groups.contains_key(name) {
            self.groups.make(name, now);
        }
        let Some(group) = self.groups.groups.get_mut(name) else { return };
        let before = group.offsets.charged_bytes();
        group.last_commit_ms = group.last_commit_ms.max(now.wall_ms);
        for (partition, committed) in &offsets {
            group.offsets.logged(*partition, sequence, committed.clone());
        }
        self.groups.common.charged_bytes = self.groups.common.charged_bytes + group.offsets.charged_bytes() - before;
        let (group, number) = (group.name.clone(), group.number);
        self.offsets_deferred += offsets.len();
        let commit = LoggedCommit { origin, group, number, offsets, answer };
        self.deferred.push_back((sequence, Deferred::Commit(Box::new(commit))));
    }

    /// The records of a commit are durable.
    pub(in crate::shard) fn commit_durable(&mut self, sequence: u64, commit: LoggedCommit) {
        self.offsets_deferred -= commit.offsets.len();
        if let Some(group) = self.groups.groups.get_mut(&commit.group).filter(|group| group.number == commit.number) {
            let before = group.offsets.charged_bytes();
            for (partition, committed) in commit.offsets {
                group.offsets.flushed(partition, sequence, committed);
            }
            self.groups.common.charged_bytes = self.groups.common.charged_bytes + group.offsets.charged_bytes() - before;
        }
        self.reply(commit.origin, commit.answer);
    }

    #[expect(clippy::too_many_arguments, reason = "one call, and every one of them is needed")]
    fn stage(
        &mut self,
        origin: Origin,
        name: &str,
        producer_id: ProducerId,
        producer_epoch: u16,
        offsets: Vec<(PartitionId, Committed)>,
        answer: Reply,
        now: Now,
    ) -> Result<(), Busy> {
        let newest = self.groups.groups.get(name).and_then(|group| group.offsets.staged_epoch(producer_id));
        let stale = newest.is_some_and(|newest| newest > producer_epoch).then(|| ErrorCode::StaleProducerEpoch.into());
        if let Some(failure) = stale.or_else(|| self.room_for_offsets(name, &offsets).err()) {
            self.fail(origin, failure);
            return Ok(());
        }
        if let Err(error) = self.log_records(staged_records(name, producer_id, producer_epoch, &offsets), now) {
            return self.append_failed(origin, error);
        }
        if !self.groups.groups.contains_key(name) {
            self.groups.make(name, now);
        }
        if let Some(group) = self.groups.groups.get_mut(name) {
            let before = group.offsets.charged_bytes();
            group.offsets.stage(producer_id, producer_epoch, offsets);
            self.groups.common.charged_bytes = self.groups.common.charged_bytes + group.offsets.charged_bytes() - before;
        }
        self.deferred.push_back((self.last_sequence, Deferred::Answer { origin, answer: Box::new(answer) }));
        Ok(())
    }

    /// A transaction's decision. Logged even if nothing is staged: the answer says that this shard won't forget it.
    fn decide_offsets(
        &mut self,
        origin: Origin,
        name: &str,
        producer_id: ProducerId,
        producer_epoch: u16,
        commit: bool,
        now: Now,
    ) -> Result<(), Busy> {
        let record = StateRecord::GroupDecided { group: name.into(), producer_id: producer_id.0, producer_epoch, commit };
        if let Err(error) = self.log_records(vec![record], now) {
            return self.append_failed(origin, error);
        }
        let mut offsets = Vec::new();
        if let Some(group) = self.groups.groups.get_mut(name) {
            let before = group.offsets.charged_bytes();
            offsets = group.decided(producer_id, producer_epoch, commit);
            self.groups.common.charged_bytes = self.groups.common.charged_bytes + group.offsets.charged_bytes() - before;
        }
        let answer = Reply::Group(Box::new(GroupReply::Decided));
        if offsets.is_empty() {
            self.deferred.push_back((self.last_sequence, Deferred::Answer { origin, answer: Box::new(answer) }));
            let _ = self.groups.with(name, now, |_, _| Ok(()));
        } else {
            self.commit_logged(origin, name, offsets, answer, now);
        }
        Ok(())
    }

    fn room_for_offsets(&self, name: &str, offsets: &[(PartitionId, Committed)]) -> Result<(), Failure> {
        let group = self.groups.groups.get(name);
        let growth: usize = offsets
            .iter()
            .map(|(partition, committed)| {
                let is_there = group.is_some_and(|group| group.offsets.durable(*partition).is_some());
                committed.metadata.len() + if is_there { 0 } else { ENTRY_BYTES }
            })
            .sum();
        let new_group = if group.is_some() { 0 } else { 512 + 2 * name.len() };
        self.groups.common.room_for(growth + new_group)
    }

    fn group_offsets(&self, name: &str, partitions: Option<&[PartitionId]>, stable: bool) -> GroupReply {
        let Some(group) = self.groups.groups.get(name) else {
            return GroupReply::Offsets { offsets: Vec::new(), unstable: Vec::new() };
        };
        let mut unstable: Vec<PartitionId> = match (stable, partitions) {
            (false, _) => Vec::new(),
            (true, Some(partitions)) => partitions.iter().copied().filter(|partition| group.offsets.is_unstable(*partition)).collect(),
            (true, None) => group.offsets.unstable().collect(),
        };
        unstable.sort_unstable();
        unstable.dedup();
        let found = |(partition, committed): (PartitionId, &Committed)| GroupOffset {
            partition,
            offset: committed.offset,
            leader_epoch: committed.leader_epoch,
            metadata: committed.metadata.to_string(),
        };
        let mut offsets: Vec<GroupOffset> = match partitions {
            None => group.offsets.all_durable().map(found).collect(),
            Some(partitions) => {
                partitions.iter().filter_map(|partition| Some((*partition, group.offsets.durable(*partition)?))).map(found).collect()
            }
        };
        offsets.retain(|offset| unstable.binary_search(&offset.partition).is_err());
        offsets.sort_by_key(|offset| offset.partition);
        GroupReply::Offsets { offsets, unstable }
    }

    fn delete_group(&mut self, origin: Origin, name: &str, now: Now) -> Result<(), Busy> {
        // A picture of the group logged behind its end would bring it back.
        self.log_changes(now);
        if self.groups.first_change().is_some() {
            return Err(Busy);
        }
        let refused = match self.groups.groups.get(name) {
            None => Some(ErrorCode::GroupNotFound),
            Some(group) if !group.members.is_empty() || group.phase != Default::default() => Some(ErrorCode::GroupNotEmpty),
            Some(_) => None,
        };
        if let Some(code) = refused {
            self.fail(origin, code.into());
            return Ok(());
        }
        if let Err(error) = self.log_records(vec![StateRecord::GroupDeleted { group: name.into() }], now) {
            return self.append_failed(origin, error);
        }
        self.groups.forget(name);
        self.answer_when_durable(origin, GroupReply::Deleted);
        Ok(())
    }

    fn delete_offsets(&mut self, origin: Origin, name: &str, partitions: &[PartitionId], now: Now) -> Result<(), Busy> {
        if !self.groups.groups.contains_key(name) {
            self.fail(origin, ErrorCode::GroupNotFound.into());
            return Ok(());
        }
        let numbers = partitions.iter().map(|partition| partition.0).collect();
        let record = StateRecord::GroupOffsetsForgotten { group: name.into(), partitions: numbers };
        if let Err(error) = self.log_records(vec![record], now) {
            return self.append_failed(origin, error);
        }
        if let Some(group) = self.groups.groups.get_mut(name) {
            let before = group.offsets.charged_bytes();
            partitions.iter().for_each(|partition| group.offsets.forget(*partition));
            self.groups.common.charged_bytes = self.groups.common.charged_bytes + group.offsets.charged_bytes() - before;
        }
        self.answer_when_durable(origin, GroupReply::Deleted);
        Ok(())
    }

    fn answer_when_durable(&mut self, origin: Origin, reply: GroupReply) {
        let answer = Box::new(Reply::Group(Box::new(reply)));
        self.deferred.push_back((self.last_sequence, Deferred::Answer { origin, answer }));
    }

    /// Appends all of them. If the log doesn't take them to the end, the request is repeated as a whole: what is
    /// there twice says the same twice.
    fn log_records(&mut self, records: Vec<StateRecord>, now: Now) -> Result<(), AppendError> {
        if self.deferred.len() >= crate::shard::DEFERRED_MAX {
            return Err(AppendError::Busy);
        }
        records.iter().try_for_each(|record| self.log_state(record, None, now).map(|_| ()))
    }
}

fn bad_name(name: &str) -> Option<ErrorCode> {
    (name.is_empty() || name.len() > GROUP_NAME_MAX_BYTES).then_some(ErrorCode::InvalidGroup)
}

fn bad_consumer(consumer: &str) -> Option<Failure> {
    bad_name(consumer).map(|_| {
        let message = format!("a consumer's name has 1 to {GROUP_NAME_MAX_BYTES} bytes, got {}", consumer.len());
        Failure::new(ErrorCode::InvalidArgument, message)
    })
}
