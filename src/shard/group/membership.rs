//! One group's life: who belongs to it, and how its members come to the next generation.
//!
//! ```text
//!            join                  all have joined, or time is up           the leader's sync
//!   Empty ─────────▶ Preparing ───────────────────────────────▶ Completing ─────────────────▶ Stable
//!     ▲                │  ▲                                          │                          │
//!     └── nobody left ─┘  └───────── join, leave, session expired ───┴──────────────────────────┘
//! ```
//!
//! A new generation's number is durable before any member learns it, an assignment before any member gets it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ringmain_wire::ErrorCode;

use super::GroupsConfig;
use super::member::{Member, Timer, TimerOf};
use super::offsets::GroupOffsets;
use crate::request::group::{
    GroupDescription, GroupListing, GroupPhase, GroupReply, Join, Joined, JoinedMember, MemberRef, NO_GENERATION, Sync as SyncRequest,
};
use crate::request::{Failure, Now, Origin};
use crate::shard::state_record::StateRecord;

/// Charged per group beside its name, members and offsets.
const GROUP_BYTES: usize = 512;
/// A new member whose join waits longer than this has probably gone (its next join would get another id).
const NEW_MEMBER_PATIENCE_US: u64 = 300_000_000;

/// An answer about a group.
pub type Answer = Result<GroupReply, Failure>;

/// What all groups of a shard share.
#[derive(Debug, Default)]
pub struct Common {
    /// Bounds.
    pub config: GroupsConfig,
    /// Timers; exactly one per group in a timed phase, member, and promised id.
    pub timers: BTreeSet<Timer>,
    /// Answers that wait for nothing.
    pub replies: VecDeque<(Origin, Answer)>,
    /// Changes to be logged, in order.
    pub outbox: VecDeque<Change>,
    /// Changes not yet durable: who waits for them.
    pub tickets: BTreeMap<u64, Ticket>,
    /// Next ticket, and next number of a group.
    pub next_number: u64,
    /// Ids given so far.
    pub ids_given: u64,
    /// What all groups are charged.
    pub charged_bytes: usize,
}

/// State records to be appended together; then the ticket waits for the last.
#[derive(Debug)]
pub struct Change {
    /// Whose answers depend on it.
    pub ticket: u64,
    /// What to append.
    pub records: VecDeque<StateRecord>,
}

/// A change on its way to the disk.
#[derive(Debug)]
pub struct Ticket {
    /// Which group.
    pub group: Arc<str>,
    /// Its generation then.
    pub generation: i32,
    /// Answers that wait for it.
    pub held: Vec<(Origin, Answer)>,
}

impl Common {
    /// Who asked is told at once.
    pub fn fail(&mut self, origin: Option<Origin>, code: ErrorCode) {
        if let Some(origin) = origin {
            self.replies.push_back((origin, Err(code.into())));
        }
    }

    /// An id that nobody had and nobody guesses: 128 bits from this start's random number and a counter.
    pub fn new_member_id(&mut self, prefix: &str) -> Arc<str> {
        self.ids_given += 1;
        let high = mix(self.config.entropy ^ mix(self.ids_given));
        let low = mix(high ^ self.config.entropy.rotate_left(32) ^ self.ids_given);
        format!("{prefix}-{high:016x}{low:016x}").into()
    }
}

/// SplitMix64's finaliser.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One group.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// Tells it from an earlier group of the same name.
    pub number: u64,
    /// Where it is in its life.
    pub phase: GroupPhase,
    /// 0 = there was none.
    pub generation: i32,
    /// Kind; empty = no member ever.
    pub protocol_type: String,
    /// Of the generation; empty while there is none.
    pub protocol: String,
    /// Member id; empty = nobody.
    pub leader: Arc<str>,
    /// By member id.
    pub members: BTreeMap<Arc<str>, Member>,
    /// Static members: instance → member id.
    pub statics: BTreeMap<Arc<str>, Arc<str>>,
    /// Ids given to members that haven't joined with them yet, and until when they are good.
    pub promised: BTreeMap<Arc<str>, u64>,
    /// When the phase's time is up; `None` = it isn't timed.
    pub phase_deadline_us: Option<u64>,
    /// While the first members gather: how much longer the deadline may be moved; `None` otherwise.
    pub gathering_us: Option<u64>,
    /// A member has come since the deadline was set.
    pub has_newcomer: bool,
    /// Last change that was given to the log.
    pub ticket: Option<u64>,
    /// When it lost its last member, ms since the Unix epoch.
    pub empty_since_ms: i64,
    /// When something was committed last.
    pub last_commit_ms: i64,
    /// Committed offsets.
    pub offsets: GroupOffsets,
    /// What it was charged when that was last reckoned, offsets excluded.
    pub charged_bytes: usize,
}

impl Group {
    /// Without members and offsets.
    pub fn new(name: Arc<str>, number: u64, now: Now) -> Group {
        Group {
            name,
            number,
            phase: GroupPhase::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: String::new(),
            leader: "".into(),
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            promised: BTreeMap::new(),
            phase_deadline_us: None,
            gathering_us: None,
            has_newcomer: false,
            ticket: None,
            empty_since_ms: now.wall_ms,
            last_commit_ms: 0,
            offsets: GroupOffsets::default(),
            charged_bytes: 0,
        }
    }

    /// Nothing would be lost without it.
    pub fn is_vacant(&self) -> bool {
        self.phase == GroupPhase::Empty
            && self.generation == 0
            && self.members.is_empty()
            && self.promised.is_empty()
            && self.offsets.is_empty()
    }

    /// What it is to be charged, offsets excluded.
    pub fn charge(&self) -> usize {
        let members: usize = self.members.iter().map(|(id, member)| member.charge(id)).sum();
        let promised: usize = self.promised.keys().map(|id| 128 + id.len()).sum();
        GROUP_BYTES + self.name.len() * 2 + self.protocol_type.len() + self.protocol.len() + members + promised
    }

    /// In a list.
    pub fn listing(&self) -> GroupListing {
        GroupListing {
            group: self.name.to_string(),
            protocol_type: self.protocol_type.clone(),
            phase: self.phase,
            member_count: self.members.len() as u32,
        }
    }

    /// From the inside.
    pub fn description(&self) -> GroupDescription {
        let protocol = (self.phase == GroupPhase::Stable).then_some(self.protocol.as_str());
        GroupDescription {
            phase: self.phase,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.to_string(),
            members: self.members.iter().map(|(id, member)| member.described(id, protocol)).collect(),
        }
    }

    // ---- requests -------------------------------------------------------------------------------------

    /// A join. `None` = the answer comes later.
    pub fn join(&mut self, common: &mut Common, origin: Origin, join: &Join, now: Now) -> Result<Option<GroupReply>, Failure> {
        self.admit(common, join)?;
        if self.phase == GroupPhase::Empty {
            if join.protocol_type.is_empty() || join.protocols.is_empty() {
                return Err(ErrorCode::InconsistentProtocol.into());
            }
        } else if join.protocol_type != self.protocol_type || !join.protocols.iter().any(|protocol| self.all_support(&protocol.name, join))
        {
            return Err(ErrorCode::InconsistentProtocol.into());
        }
        let answer = if join.member.member_id.is_empty() {
            self.join_unknown(common, origin, join, now)
        } else {
            self.join_known(common, origin, join, now)
        };
        self.try_complete(common, now);
        answer
    }

    /// The members, the joining one aside, all know the protocol.
    fn all_support(&self, protocol: &str, join: &Join) -> bool {
        let joining = match &join.member.instance_id {
            Some(instance) => self.statics.get(instance.as_str()).map(|id| &**id),
            None => Some(join.member.member_id.as_str()),
        };
        self.members.iter().all(|(id, member)| Some(&**id) == joining || member.supports(protocol))
    }

    /// Whether there is room for it.
    fn admit(&self, common: &Common, join: &Join) -> Result<(), Failure> {
        let is_member = self.members.contains_key(join.member.member_id.as_str())
            || join.member.instance_id.as_ref().is_some_and(|instance| self.statics.contains_key(instance.as_str()));
        let expected = self.members.len() + self.promised.len();
        let is_promised = self.promised.contains_key(join.member.member_id.as_str());
        if !is_member && !is_promised && expected >= common.config.members_max {
            let message = format!("group '{}' has {expected} members, as many as it may", self.name.escape_debug());
            return Err(Failure::new(ErrorCode::GroupFull, message));
        }
        Ok(())
    }

    fn join_unknown(&mut self, common: &mut Common, origin: Origin, join: &Join, now: Now) -> Result<Option<GroupReply>, Failure> {
        if let Some(instance) = &join.member.instance_id {
            let member_id = common.new_member_id(instance);
            return match self.statics.get(instance.as_str()).cloned() {
                Some(old_id) => Ok(self.replace_static(common, origin, join, old_id, member_id, now)),
                None => {
                    self.add(common, origin, join, member_id, now);
                    Ok(None)
                }
            };
        }
        let prefix = if join.client_id.is_empty() { "member" } else { join.client_id.as_str() };
        let member_id = common.new_member_id(&prefix[..prefix.floor_char_boundary(super::member::CLIENT_NAME_MAX_BYTES)]);
        if join.requires_member_id {
            let deadline_us = now.monotonic_us + u64::from(join.session_timeout_ms) * 1000;
            common.timers.insert((deadline_us, self.name.clone(), TimerOf::Promised(member_id.clone())));
            self.promised.insert(member_id.clone(), deadline_us);
            return Ok(Some(GroupReply::MemberIdRequired { member_id: member_id.to_string() }));
        }
        self.add(common, origin, join, member_id, now);
        Ok(None)
    }

    fn join_known(&mut self, common: &mut Common, origin: Origin, join: &Join, now: Now) -> Result<Option<GroupReply>, Failure> {
        let member_id = join.member.member_id.as_str();
        if join.member.instance_id.is_none()
            && let Some((member_id, deadline_us)) = self.promised.remove_entry(member_id)
        {
            common.timers.remove(&(deadline_us, self.name.clone(), TimerOf::Promised(member_id.clone())));
            self.add(common, origin, join, member_id, now);
            return Ok(None);
        }
        let member_id = self.known(&join.member)?;
        let Some(member) = self.members.get_mut(&member_id) else { return Err(ErrorCode::UnknownMember.into()) };
        let is_same = member.protocols == join.protocols;
        let is_leader = self.leader == member_id;
        match self.phase {
            // It didn't get the answer to its last join, or it is a follower that changes nothing.
            GroupPhase::CompletingRebalance if is_same => self.rejoined(common, origin, &member_id, is_leader, now),
            GroupPhase::Stable if is_same && !is_leader => self.rejoined(common, origin, &member_id, false, now),
            GroupPhase::PreparingRebalance | GroupPhase::CompletingRebalance | GroupPhase::Stable => {
                member.update(join);
                let repeated = member.joining.replace(origin);
                common.fail(repeated, ErrorCode::RebalanceInProgress);
                self.prepare_rebalance(common, now);
                Ok(None)
            }
            GroupPhase::Empty => Err(ErrorCode::UnknownMember.into()),
        }
    }

    /// The generation in force once more.
    fn rejoined(
        &mut self,
        common: &mut Common,
        origin: Origin,
        member_id: &Arc<str>,
        with_members: bool,
        now: Now,
    ) -> Result<Option<GroupReply>, Failure> {
        self.alive(common, member_id, now);
        let reply = GroupReply::Joined(self.joined(member_id, with_members, false));
        Ok(self.when_durable(common, origin, reply))
    }

    /// A sync. `None` = the answer comes later.
    pub fn sync(&mut self, common: &mut Common, origin: Origin, sync: &SyncRequest, now: Now) -> Result<Option<GroupReply>, Failure> {
        let member_id = self.of_generation(&sync.member, sync.generation)?;
        let differs = |given: &Option<String>, own: &str| given.as_deref().is_some_and(|given| given != own);
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(ErrorCode::InconsistentProtocol.into());
        }
        match self.phase {
            GroupPhase::Empty => return Err(ErrorCode::UnknownMember.into()),
            GroupPhase::PreparingRebalance => return Err(ErrorCode::RebalanceInProgress.into()),
            GroupPhase::CompletingRebalance | GroupPhase::Stable => {}
        }
        let is_assigning = self.phase == GroupPhase::CompletingRebalance && self.leader == member_id;
        if is_assigning {
            self.check_assignments(common, sync)?;
        }
        self.alive(common, &member_id, now);
        let Some(member) = self.members.get_mut(&member_id) else { return Err(ErrorCode::UnknownMember.into()) };
        member.has_synced = true;
        if self.phase == GroupPhase::Stable {
            self.end_sync_phase(common);
            let reply = self.synced(&member_id);
            return Ok(self.when_durable(common, origin, reply));
        }
        let repeated = member.syncing.replace(origin);
        common.fail(repeated, ErrorCode::RebalanceInProgress);
        if is_assigning {
            self.assign(common, &sync.assignments, now);
        }
        Ok(None)
    }

    /// A heartbeat.
    pub fn heartbeat(&mut self, common: &mut Common, member: &MemberRef, generation: i32, now: Now) -> Result<GroupReply, Failure> {
        let member_id = self.of_generation(member, generation)?;
        match self.phase {
            GroupPhase::Empty => Err(ErrorCode::UnknownMember.into()),
            GroupPhase::PreparingRebalance => {
                self.alive(common, &member_id, now);
                Err(ErrorCode::RebalanceInProgress.into())
            }
            GroupPhase::CompletingRebalance | GroupPhase::Stable => {
                self.alive(common, &member_id, now);
                Ok(GroupReply::Alive)
            }
        }
    }

    /// One member goes.
    pub fn leave(&mut self, common: &mut Common, leaver: &MemberRef, now: Now) -> Result<(), ErrorCode> {
        if leaver.instance_id.is_none()
            && let Some((member_id, deadline_us)) = self.promised.remove_entry(leaver.member_id.as_str())
        {
            common.timers.remove(&(deadline_us, self.name.clone(), TimerOf::Promised(member_id)));
            self.try_complete(common, now);
            return Ok(());
        }
        let member_id = match (&leaver.instance_id, leaver.member_id.is_empty()) {
            (Some(instance), true) => self.statics.get(instance.as_str()).cloned().ok_or(ErrorCode::UnknownMember)?,
            _ => self.known(leaver)?,
        };
        self.remove(common, &member_id, now);
        Ok(())
    }

    /// Whether positions may be committed by whoever asks. Members count as alive by that.
    pub fn may_commit(
        &mut self,
        common: &mut Common,
        member: &MemberRef,
        generation: i32,
        transactional: bool,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let is_anonymous = generation <= NO_GENERATION && member.member_id.is_empty() && member.instance_id.is_none();
        if (generation <= NO_GENERATION && self.phase == GroupPhase::Empty) || (is_anonymous && transactional) {
            return Ok(());
        }
        if is_anonymous {
            return Err(ErrorCode::UnknownMember);
        }
        let member_id = self.of_generation(member, generation)?;
        if self.phase == GroupPhase::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        self.alive(common, &member_id, now);
        Ok(())
    }

    /// The member's id, if it is one and nobody has taken its place.
    fn known(&self, member: &MemberRef) -> Result<Arc<str>, ErrorCode> {
        if let Some(instance) = &member.instance_id {
            let current = self.statics.get(instance.as_str()).ok_or(ErrorCode::UnknownMember)?;
            if **current != *member.member_id {
                return Err(ErrorCode::FencedInstance);
            }
        }
        self.members.get_key_value(member.member_id.as_str()).map(|(id, _)| id.clone()).ok_or(ErrorCode::UnknownMember)
    }

    /// … and of this generation.
    fn of_generation(&self, member: &MemberRef, generation: i32) -> Result<Arc<str>, ErrorCode> {
        let member_id = self.known(member)?;
        if generation != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        Ok(member_id)
    }

    // ---- members --------------------------------------------------------------------------------------

    fn add(&mut self, common: &mut Common, origin: Origin, join: &Join, member_id: Arc<str>, now: Now) {
        if self.members.is_empty() {
            self.protocol_type.clone_from(&join.protocol_type);
            self.leader = member_id.clone();
        }
        let mut member = Member::new(join);
        member.joining = Some(origin);
        if let Some(instance) = &member.instance_id {
            self.statics.insert(instance.clone(), member_id.clone());
        }
        member.session_deadline_us = now.monotonic_us + NEW_MEMBER_PATIENCE_US.max(member.session_timeout_us);
        member.timer_at_us = member.session_deadline_us;
        common.timers.insert((member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
        self.members.insert(member_id, member);
        self.has_newcomer |= self.phase == GroupPhase::PreparingRebalance && self.generation == 0;
        self.prepare_rebalance(common, now);
    }

    /// A static member has come back under a new id. Nobody else notices while the protocol stays the same.
    fn replace_static(
        &mut self,
        common: &mut Common,
        origin: Origin,
        join: &Join,
        old_id: Arc<str>,
        member_id: Arc<str>,
        now: Now,
    ) -> Option<GroupReply> {
        let old_leader = self.leader.clone();
        let mut member = self.members.remove(&old_id)?;
        common.timers.remove(&(member.timer_at_us, self.name.clone(), TimerOf::Member(old_id.clone())));
        common.fail(member.joining.take(), ErrorCode::FencedInstance);
        common.fail(member.syncing.take(), ErrorCode::FencedInstance);
        member.update(join);
        let patience_us = if member.is_new { NEW_MEMBER_PATIENCE_US } else { 0 };
        member.session_deadline_us = now.monotonic_us + patience_us.max(member.session_timeout_us);
        member.timer_at_us = member.session_deadline_us;
        common.timers.insert((member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
        if let Some(instance) = &member.instance_id {
            self.statics.insert(instance.clone(), member_id.clone());
        }
        let was_leader = old_leader == old_id;
        if was_leader {
            self.leader = member_id.clone();
        }
        self.members.insert(member_id.clone(), member);
        if self.phase == GroupPhase::Stable && self.select_protocol() == self.protocol {
            let skips = was_leader && join.supports_skipping;
            let mut joined = self.joined(&member_id, skips, skips);
            if was_leader && !skips {
                // A client that can't skip must not believe that it leads, or it would assign anew.
                joined.leader = old_leader.to_string();
            }
            self.log(common, vec![(origin, Ok(GroupReply::Joined(joined)))]);
            return None;
        }
        if let Some(member) = self.members.get_mut(&member_id) {
            member.joining = Some(origin);
        }
        self.prepare_rebalance(common, now);
        None
    }

    /// Takes a member out; the others rebalance.
    fn remove(&mut self, common: &mut Common, member_id: &Arc<str>, now: Now) {
        self.take_out(common, member_id);
        match self.phase {
            GroupPhase::Stable | GroupPhase::CompletingRebalance => self.prepare_rebalance(common, now),
            GroupPhase::PreparingRebalance | GroupPhase::Empty => {}
        }
        self.try_complete(common, now);
    }

    fn take_out(&mut self, common: &mut Common, member_id: &Arc<str>) {
        let Some(mut member) = self.members.remove(member_id) else { return };
        common.timers.remove(&(member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
        common.fail(member.joining.take(), ErrorCode::UnknownMember);
        common.fail(member.syncing.take(), ErrorCode::UnknownMember);
        if let Some(instance) = &member.instance_id
            && self.statics.get(instance) == Some(member_id)
        {
            self.statics.remove(instance);
        }
        if self.leader == *member_id {
            self.leader = self.members.keys().next().cloned().unwrap_or_else(|| "".into());
        }
    }

    /// Its session begins anew. The timer stays where it is, unless that would be too late.
    fn alive(&mut self, common: &mut Common, member_id: &Arc<str>, now: Now) {
        let Some(member) = self.members.get_mut(member_id) else { return };
        member.session_deadline_us = now.monotonic_us + member.session_timeout_us;
        if member.session_deadline_us < member.timer_at_us {
            common.timers.remove(&(member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
            member.timer_at_us = member.session_deadline_us;
            common.timers.insert((member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
        }
    }

    // ---- generations ----------------------------------------------------------------------------------

    /// The members are to join again, if that isn't so already.
    fn prepare_rebalance(&mut self, common: &mut Common, now: Now) {
        let was_empty = match self.phase {
            GroupPhase::PreparingRebalance => return,
            GroupPhase::Empty => true,
            GroupPhase::CompletingRebalance | GroupPhase::Stable => false,
        };
        for member in self.members.values_mut() {
            common.fail(member.syncing.take(), ErrorCode::RebalanceInProgress);
        }
        self.phase = GroupPhase::PreparingRebalance;
        let longest_us = self.members.values().map(|member| member.rebalance_timeout_us).max().unwrap_or(0);
        let delay_us = common.config.initial_rebalance_delay_us;
        if was_empty && delay_us > 0 {
            // More members often come at once: wait for them instead of rebalancing for each.
            self.gathering_us = Some(longest_us.saturating_sub(delay_us));
            self.has_newcomer = false;
            self.set_deadline(common, Some(now.monotonic_us + delay_us));
        } else {
            self.set_deadline(common, Some(now.monotonic_us + longest_us));
        }
    }

    /// Everyone has joined: no need to wait longer.
    fn try_complete(&mut self, common: &mut Common, now: Now) {
        if self.phase == GroupPhase::PreparingRebalance
            && self.gathering_us.is_none()
            && self.promised.is_empty()
            && self.members.values().all(|member| member.joining.is_some())
        {
            self.complete_join(common, now);
        }
    }

    /// The phase's time is up.
    pub fn phase_expired(&mut self, common: &mut Common, now: Now) {
        self.phase_deadline_us = None;
        match self.phase {
            GroupPhase::PreparingRebalance => match self.gathering_us {
                Some(rest_us) if self.has_newcomer && rest_us > 0 => {
                    let delay_us = common.config.initial_rebalance_delay_us.min(rest_us);
                    self.gathering_us = Some(rest_us - delay_us);
                    self.has_newcomer = false;
                    self.set_deadline(common, Some(now.monotonic_us + delay_us));
                }
                _ => self.complete_join(common, now),
            },
            // Who hasn't asked for its share by now won't.
            GroupPhase::CompletingRebalance | GroupPhase::Stable => {
                let missing: Vec<Arc<str>> =
                    self.members.iter().filter(|(_, member)| !member.has_synced).map(|(id, _)| id.clone()).collect();
                if !missing.is_empty() {
                    missing.iter().for_each(|member_id| self.take_out(common, member_id));
                    self.prepare_rebalance(common, now);
                    self.try_complete(common, now);
                }
            }
            GroupPhase::Empty => {}
        }
    }

    /// A member's timer has come: its session is over, or goes on.
    pub fn session_timer(&mut self, common: &mut Common, member_id: &Arc<str>, now: Now) {
        let Some(member) = self.members.get_mut(member_id) else { return };
        let waits = !member.is_new && (member.joining.is_some() || member.syncing.is_some());
        if waits {
            member.session_deadline_us = now.monotonic_us + member.session_timeout_us;
        }
        if member.session_deadline_us > now.monotonic_us {
            member.timer_at_us = member.session_deadline_us;
            common.timers.insert((member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
            return;
        }
        self.remove(common, member_id, now);
    }

    /// A promised id wasn't used in time.
    pub fn promise_expired(&mut self, common: &mut Common, member_id: &Arc<str>, now: Now) {
        self.promised.remove(member_id);
        self.try_complete(common, now);
    }

    fn complete_join(&mut self, common: &mut Common, now: Now) {
        let absent: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && member.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        absent.iter().for_each(|member_id| self.take_out(common, member_id));
        if self.members.is_empty() {
            return self.become_empty(common, now);
        }
        let has_joined = |group: &Group, id: &str| group.members.get(id).is_some_and(|member| member.joining.is_some());
        if !has_joined(self, &self.leader.clone()) {
            let Some(leader) = self.members.iter().find(|(_, member)| member.joining.is_some()).map(|(id, _)| id.clone()) else {
                // Static members alone, all away: their sessions decide.
                let longest_us = self.members.values().map(|member| member.rebalance_timeout_us).max().unwrap_or(0);
                self.gathering_us = None;
                return self.set_deadline(common, Some(now.monotonic_us + longest_us));
            };
            self.leader = leader;
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.select_protocol();
        self.phase = GroupPhase::CompletingRebalance;
        self.gathering_us = None;
        let mut held = Vec::new();
        for member_id in self.members.keys().cloned().collect::<Vec<_>>() {
            let Some(member) = self.members.get_mut(&member_id) else { continue };
            (member.has_synced, member.is_new) = (false, false);
            member.assignment = Vec::new();
            if let Some(origin) = member.joining.take() {
                self.alive(common, &member_id, now);
                let reply = GroupReply::Joined(self.joined(&member_id, self.leader == member_id, false));
                held.push((origin, Ok(reply)));
            }
        }
        let longest_us = self.members.values().map(|member| member.rebalance_timeout_us).max().unwrap_or(0);
        self.set_deadline(common, Some(now.monotonic_us + longest_us));
        self.log(common, held);
    }

    fn become_empty(&mut self, common: &mut Common, now: Now) {
        self.phase = GroupPhase::Empty;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = String::new();
        self.leader = "".into();
        self.gathering_us = None;
        self.empty_since_ms = now.wall_ms;
        self.set_deadline(common, None);
        self.log(common, Vec::new());
    }

    /// The leader has divided the work.
    fn assign(&mut self, common: &mut Common, assignments: &[(String, Vec<u8>)], _now: Now) {
        for (member_id, assignment) in assignments {
            if let Some(member) = self.members.get_mut(member_id.as_str()) {
                member.assignment.clone_from(assignment);
            }
        }
        self.phase = GroupPhase::Stable;
        self.end_sync_phase(common);
        let mut held = Vec::new();
        for (member_id, member) in &mut self.members {
            if let Some(origin) = member.syncing.take() {
                held.push((origin, member_id.clone()));
            }
        }
        let held = held.into_iter().map(|(origin, member_id)| (origin, Ok(self.synced(&member_id)))).collect();
        self.log(common, held);
    }

    fn check_assignments(&self, common: &Common, sync: &SyncRequest) -> Result<(), Failure> {
        let largest = sync.assignments.iter().map(|(_, assignment)| assignment.len()).max().unwrap_or(0);
        if largest > common.config.member_bytes_max {
            let message = format!("an assignment of {largest} bytes; at most {} are kept", common.config.member_bytes_max);
            return Err(Failure::new(ErrorCode::InvalidArgument, message));
        }
        let total: usize = sync.assignments.iter().map(|(_, assignment)| assignment.len()).sum();
        common.room_for(total)
    }

    /// Everyone has asked for its share: nobody is waited for any more.
    fn end_sync_phase(&mut self, common: &mut Common) {
        if self.members.values().all(|member| member.has_synced) {
            self.set_deadline(common, None);
        }
    }

    /// The protocol that all know and most like best.
    fn select_protocol(&self) -> String {
        let Some(first) = self.members.values().next() else { return String::new() };
        let common: Vec<&str> = first
            .protocols
            .iter()
            .map(|protocol| protocol.name.as_str())
            .filter(|name| self.members.values().all(|member| member.supports(name)))
            .collect();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(vote) = member.protocols.iter().find(|protocol| common.contains(&protocol.name.as_str())) {
                *votes.entry(&vote.name).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, count)| *count).map_or(String::new(), |(name, _)| name.to_owned())
    }

    fn joined(&self, member_id: &str, with_members: bool, skip_assignment: bool) -> Joined {
        let members: Vec<JoinedMember> =
            if with_members { self.members.iter().map(|(id, member)| member.joined(id, &self.protocol)).collect() } else { Vec::new() };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.to_string(),
            member_id: member_id.to_owned(),
            skip_assignment,
            members,
        }
    }

    fn synced(&self, member_id: &str) -> GroupReply {
        GroupReply::Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: self.members.get(member_id).map_or(Vec::new(), |member| member.assignment.clone()),
        }
    }

    /// The answer now, or with the change it rests on.
    fn when_durable(&self, common: &mut Common, origin: Origin, reply: GroupReply) -> Option<GroupReply> {
        let Some(ticket) = self.ticket.and_then(|ticket| common.tickets.get_mut(&ticket)) else { return Some(reply) };
        ticket.held.push((origin, Ok(reply)));
        None
    }

    /// Writes down what the group is now; the answers wait until that is durable.
    fn log(&mut self, common: &mut Common, held: Vec<(Origin, Answer)>) {
        common.next_number += 1;
        let ticket = common.next_number;
        self.ticket = Some(ticket);
        common.tickets.insert(ticket, Ticket { group: self.name.clone(), generation: self.generation, held });
        common.outbox.push_back(Change { ticket, records: self.records().into() });
    }

    /// The log couldn't take a change: whoever is in that generation must join again.
    pub fn log_failed(&mut self, common: &mut Common, generation: i32, now: Now) {
        if self.generation == generation && matches!(self.phase, GroupPhase::CompletingRebalance | GroupPhase::Stable) {
            self.prepare_rebalance(common, now);
        }
    }

    /// Nothing goes on here: who waits is told why.
    pub fn stop(&mut self, common: &mut Common, failure: &Failure) {
        for member in self.members.values_mut() {
            for origin in [member.joining.take(), member.syncing.take()].into_iter().flatten() {
                common.replies.push_back((origin, Err(failure.clone())));
            }
        }
    }

    /// Moves the phase's deadline, and its timer with it.
    pub fn set_deadline(&mut self, common: &mut Common, deadline_us: Option<u64>) {
        if let Some(old) = self.phase_deadline_us.take() {
            common.timers.remove(&(old, self.name.clone(), TimerOf::Phase));
        }
        self.phase_deadline_us = deadline_us;
        if let Some(deadline_us) = deadline_us {
            common.timers.insert((deadline_us, self.name.clone(), TimerOf::Phase));
        }
    }

    /// Takes every timer of the group away: it is about to go.
    pub fn disarm(&mut self, common: &mut Common) {
        self.set_deadline(common, None);
        for (member_id, member) in &self.members {
            common.timers.remove(&(member.timer_at_us, self.name.clone(), TimerOf::Member(member_id.clone())));
        }
        for (member_id, deadline_us) in &self.promised {
            common.timers.remove(&(*deadline_us, self.name.clone(), TimerOf::Promised(member_id.clone())));
        }
    }
}

impl Common {
    /// Whether so many bytes more may be charged.
    pub fn room_for(&self, bytes: usize) -> Result<(), Failure> {
        if self.charged_bytes + bytes > self.config.bytes_max {
            let message = format!("groups and their offsets fill their {} bytes of memory", self.config.bytes_max);
            return Err(Failure::new(ErrorCode::LimitExceeded, message));
        }
        Ok(())
    }
}
