//! A member of a consumer group, without sockets or clock: requests out, answers in, and in the end a share of the work.
//!
//! The formats are those of Kafka's consumers, so that both can be members of one group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ringmain_wire::ErrorCode;
use ringmain_wire::group::{
    GroupAnswer, GroupCall, GroupJoined, GroupMember, GroupProtocol, GroupRequest, GroupShare, Share, Subscription,
};

use crate::error::{BrokerError, CallError};

/// How a member takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// The group's name, 1 to 255 bytes.
    pub group: String,
    /// A name that outlives this process: who comes back with it within the session timeout keeps its share. Default none.
    pub instance_id: Option<String>,
    /// What people see. Default `ringmain`.
    pub client_id: String,
    /// Silent for longer = gone; 6 s to 30 min. Default 10 s.
    pub session_timeout: Duration,
    /// How long the members may take to join a new generation. Default 60 s.
    pub rebalance_timeout: Duration,
    /// Commit, when partitions are about to be taken away, what was handed out. Default true.
    pub commits_on_revoke: bool,
}

impl Default for GroupConfig {
    fn default() -> GroupConfig {
        GroupConfig {
            group: String::new(),
            instance_id: None,
            client_id: "ringmain".into(),
            session_timeout: Duration::from_secs(10),
            rebalance_timeout: Duration::from_secs(60),
            commits_on_revoke: true,
        }
    }
}

/// What a member wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing before this time.
    Wait(Instant),
    /// The answer to this request, which may take so long beyond the usual.
    Ask(GroupRequest, Duration),
    /// The number of partitions of these topics: [`Membership::divide`].
    PartitionCounts(Vec<String>),
    /// Its partitions are taken away: [`Membership::revoked`] when nothing more is done with them.
    Revoke,
}

/// A member. Drive it: [`Membership::poll`], do what it wants, [`Membership::answer`].
#[derive(Debug)]
pub struct Membership {
    config: GroupConfig,
    topics: Vec<String>,
    member: GroupMember,
    generation: i32,
    state: State,
    share: Option<Share>,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Joining,
    /// It leads, and doesn't know how many partitions there are.
    Dividing(Vec<GroupJoined>),
    Syncing(Vec<GroupShare>),
    Stable {
        next_beat: Instant,
    },
    Revoking,
}

/// After an answer that was none.
const BACK_OFF: Duration = Duration::from_millis(500);
/// How the work is divided: each topic's partitions in a row, cut into pieces of equal length.
const RANGE: &str = "range";
const CONSUMER: &str = "consumer";

impl Membership {
    /// Not a member yet.
    pub fn new(config: GroupConfig, topics: Vec<String>) -> Membership {
        let member = GroupMember { member_id: String::new(), instance_id: config.instance_id.clone() };
        Membership { config, topics, member, generation: 0, state: State::Joining, share: None, retry_at: None }
    }

    /// What it wants now.
    pub fn poll(&self, now: Instant) -> Want {
        if let Some(at) = self.retry_at.filter(|at| *at > now) {
            return Want::Wait(at);
        }
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let (call, wait) = match &self.state {
            State::Revoking => return Want::Revoke,
            State::Dividing(members) => {
                let subscriptions = members.iter().filter_map(|member| Subscription::read(&member.metadata));
                let topics: BTreeSet<String> = subscriptions.flat_map(|subscription| subscription.topics).collect();
                return Want::PartitionCounts(topics.into_iter().collect());
            }
            State::Stable { next_beat } if *next_beat > now => return Want::Wait(*next_beat),
            State::Stable { .. } => (GroupCall::Heartbeat { member: self.member.clone(), generation: self.generation }, Duration::ZERO),
            State::Joining => {
                let metadata = Subscription { topics: self.topics.clone() }.to_bytes();
                let join = GroupCall::Join {
                    member: self.member.clone(),
                    client_id: self.config.client_id.clone(),
                    session_timeout_ms: millis(self.config.session_timeout),
                    rebalance_timeout_ms: millis(self.config.rebalance_timeout),
                    protocol_type: CONSUMER.into(),
                    protocols: vec![GroupProtocol { name: RANGE.into(), metadata }],
                };
                // A new group waits for more members on top of that.
                (join, self.config.rebalance_timeout + Duration::from_secs(5))
            }
            State::Syncing(shares) => {
                let sync = GroupCall::Sync { member: self.member.clone(), generation: self.generation, shares: shares.clone() };
                (sync, self.config.rebalance_timeout)
            }
        };
        Want::Ask(GroupRequest { group: self.config.group.clone(), call }, wait)
    }

    /// The answer to what was asked. Errors: this member can't take part, whatever it does.
    pub fn answer(&mut self, answer: Result<GroupAnswer, CallError>, now: Instant) -> Result<(), CallError> {
        self.retry_at = None;
        match (answer, &self.state) {
            (Ok(GroupAnswer::MemberIdRequired { member_id }), State::Joining) => self.member.member_id = member_id,
            (Ok(GroupAnswer::Joined { generation, leader, member_id, members, .. }), State::Joining) => {
                let leads = leader == member_id && !members.is_empty();
                (self.generation, self.member.member_id) = (generation, member_id);
                self.state = if leads { State::Dividing(members) } else { State::Syncing(Vec::new()) };
            }
            (Ok(GroupAnswer::Synced { share }), State::Syncing(_)) => {
                self.share = Some(Share::read(&share).unwrap_or_default());
                self.state = State::Stable { next_beat: now + self.config.session_timeout / 3 };
            }
            (Ok(GroupAnswer::Alive), State::Stable { .. }) => {
                self.state = State::Stable { next_beat: now + self.config.session_timeout / 3 };
            }
            // An answer to something else: asked again.
            (Ok(_), _) => self.retry_at = Some(now + BACK_OFF),
            (Err(CallError::Broker(error)), _) => return self.refused(error, now),
            // No answer, or no connection: the broker keeps the place for a session timeout.
            (Err(_), _) => self.retry_at = Some(now + BACK_OFF),
        }
        Ok(())
    }

    fn refused(&mut self, error: BrokerError, now: Instant) -> Result<(), CallError> {
        match error.code {
            ErrorCode::RebalanceInProgress => self.rejoin(),
            ErrorCode::UnknownMember | ErrorCode::IllegalGeneration => {
                if error.code == ErrorCode::UnknownMember {
                    self.member.member_id.clear();
                }
                self.rejoin();
            }
            code if code.is_retriable() => self.retry_at = Some(now + BACK_OFF),
            _ => return Err(CallError::Broker(error)),
        }
        Ok(())
    }

    fn rejoin(&mut self) {
        self.state = if self.share.is_some() { State::Revoking } else { State::Joining };
    }

    /// Nothing more is done with the partitions.
    pub fn revoked(&mut self) {
        self.share = None;
        if matches!(self.state, State::Revoking) {
            self.state = State::Joining;
        }
    }

    /// The answer to [`Want::PartitionCounts`]; topics that don't exist are left out.
    pub fn divide(&mut self, counts: &BTreeMap<String, u32>) {
        if let State::Dividing(members) = &self.state {
            self.state = State::Syncing(divide(members, counts));
        }
    }

    /// What it has to do in this generation; `None` = it has no generation at the moment.
    pub fn share(&self) -> Option<&Share> {
        self.share.as_ref()
    }

    /// Who it is.
    pub fn member(&self) -> &GroupMember {
        &self.member
    }

    /// The generation it is in.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// The request with which it goes; `None` = it isn't a member, or wants its place kept.
    pub fn leave(&self) -> Option<GroupRequest> {
        let is_member = !self.member.member_id.is_empty() && self.member.instance_id.is_none();
        is_member.then(|| GroupRequest { group: self.config.group.clone(), call: GroupCall::Leave { member: self.member.clone() } })
    }
}

fn divide(members: &[GroupJoined], counts: &BTreeMap<String, u32>) -> Vec<GroupShare> {
    let mut shares: BTreeMap<&str, Share> = members.iter().map(|member| (member.member_id.as_str(), Share::default())).collect();
    let subscriptions: Vec<(&str, Subscription)> =
        members.iter().map(|member| (member.member_id.as_str(), Subscription::read(&member.metadata).unwrap_or_default())).collect();
    for (topic, count) in counts {
        let mut wanting: Vec<&str> =
            subscriptions.iter().filter(|(_, wanted)| wanted.topics.contains(topic)).map(|(member_id, _)| *member_id).collect();
        wanting.sort_unstable();
        let (each, more) = match u32::try_from(wanting.len()) {
            Ok(wanting) if wanting > 0 => (count / wanting, count % wanting),
            _ => continue,
        };
        let mut next = 0;
        for (at, member_id) in (0..).zip(wanting) {
            let end = next + each + u32::from(at < more);
            if let Some(share) = shares.get_mut(member_id).filter(|_| end > next) {
                share.topics.push((topic.clone(), (next..end).collect()));
            }
            next = end;
        }
    }
    shares.into_iter().map(|(member_id, share)| GroupShare { member_id: member_id.into(), share: share.to_bytes() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribed(member_id: &str, topics: &[&str]) -> GroupJoined {
        let topics = topics.iter().map(|topic| (*topic).to_string()).collect();
        GroupJoined { member_id: member_id.into(), metadata: Subscription { topics }.to_bytes() }
    }

    #[test]
    fn every_partition_goes_to_exactly_one_member_that_wants_it() {
        let members = [subscribed("a", &["t", "u"]), subscribed("b", &["t"]), subscribed("c", &["u"])];
        let counts = [("t".to_string(), 5), ("u".to_string(), 1)].into();
        let shares = divide(&members, &counts);
        let read = |at: usize| Share::read(&shares[at].share).unwrap().topics;
        assert_eq!(read(0), [("t".to_string(), vec![0, 1, 2]), ("u".to_string(), vec![0])]);
        assert_eq!(read(1), [("t".to_string(), vec![3, 4])]);
        assert_eq!(read(2), []);
    }

    fn broker(code: ErrorCode) -> Result<GroupAnswer, CallError> {
        Err(CallError::Broker(BrokerError { op: ringmain_wire::Op::Group, code, number: code as u16, message: String::new() }))
    }

    #[test]
    fn member_joins_leads_divides_beats_and_gives_up_its_partitions_before_it_joins_again() {
        let now = Instant::now();
        let mut member = Membership::new(GroupConfig { group: "g".into(), ..GroupConfig::default() }, vec!["t".into()]);
        let asked = |member: &Membership, now| match member.poll(now) {
            Want::Ask(request, _) => request.call,
            other => panic!("{other:?}"),
        };
        member.answer(Ok(GroupAnswer::MemberIdRequired { member_id: "m".into() }), now).unwrap();
        assert!(matches!(asked(&member, now), GroupCall::Join { member, .. } if member.member_id == "m"));
        let joined = GroupAnswer::Joined {
            generation: 3,
            protocol: RANGE.into(),
            leader: "m".into(),
            member_id: "m".into(),
            members: vec![subscribed("m", &["t"])],
        };
        member.answer(Ok(joined), now).unwrap();
        assert_eq!(member.poll(now), Want::PartitionCounts(vec!["t".into()]));
        member.divide(&[("t".to_string(), 2)].into());
        let GroupCall::Sync { generation: 3, shares, .. } = asked(&member, now) else { panic!() };
        member.answer(Ok(GroupAnswer::Synced { share: shares[0].share.clone() }), now).unwrap();
        assert_eq!(member.share().unwrap().topics, [("t".to_string(), vec![0, 1])]);
        let Want::Wait(beat) = member.poll(now) else { panic!() };
        assert!(matches!(asked(&member, beat), GroupCall::Heartbeat { generation: 3, .. }));
        member.answer(Err(CallError::Connection(crate::ConnectionError::Closed)), beat).unwrap();
        assert_eq!(member.poll(beat), Want::Wait(beat + BACK_OFF));
        member.answer(broker(ErrorCode::RebalanceInProgress), beat).unwrap();
        assert_eq!(member.poll(beat), Want::Revoke);
        member.revoked();
        assert!(matches!(asked(&member, beat), GroupCall::Join { member, .. } if member.member_id == "m"));
        member.answer(broker(ErrorCode::UnknownMember), beat).unwrap();
        assert!(matches!(asked(&member, beat), GroupCall::Join { member, .. } if member.member_id.is_empty()));
        assert!(member.answer(broker(ErrorCode::FencedInstance), beat).is_err());
    }
}
