//! One coordinator, sans-IO, by hand: every transition; and whole shards on the simulated disk.

use ringmain_wire::Offset;

use super::offsets::{GroupOffsets, METADATA_MAX_BYTES};
use super::*;
use crate::request::group::{Joined, JoinedMember, Protocol, Sync as SyncRequest};

/// Enough offsets, with metadata, for many checkpoint pieces.
pub fn many_offsets() -> Groups {
    let mut groups = Groups::default();
    for consumer in 0..200 {
        let group = groups.make(&format!("{consumer:0255}"), Now::default());
        group.offsets.restore(PartitionId(7), at(consumer, &"m".repeat(METADATA_MAX_BYTES)));
        group.offsets.stage(ProducerId(4), 1, [(PartitionId(8), at(consumer, "staged"))]);
    }
    let group = groups.make("wide", Now::default());
    (1..5_000).for_each(|partition| group.offsets.restore(PartitionId(partition), at(u64::from(partition), "")));
    groups
}

fn at(offset: u64, metadata: &str) -> Committed {
    Committed { offset: Offset(offset), leader_epoch: -1, metadata: metadata.into(), commit_ms: 5 }
}

/// A checkpoint lies behind what is on its way, so it must say that, not what is durable so far.
#[test]
fn offset_on_its_way_is_what_a_checkpoint_stores() {
    let logged = |offsets: &GroupOffsets| offsets.logged_after(None).map(|(_, committed)| committed.offset.0).collect::<Vec<_>>();
    let partition = PartitionId(3);
    let mut offsets = GroupOffsets::default();
    offsets.logged(partition, 5, at(1, "abc"));
    offsets.logged(partition, 6, at(2, "de"));
    assert_eq!((offsets.durable(partition), logged(&offsets)), (None, vec![2]));
    offsets.flushed(partition, 5, at(1, "abc"));
    assert_eq!((offsets.durable(partition), logged(&offsets)), (Some(&at(1, "abc")), vec![2]));
    assert_eq!(offsets.charged_bytes(), offsets::ENTRY_BYTES + 5);
    offsets.flushed(partition, 6, at(2, "de"));
    assert_eq!((offsets.durable(partition), logged(&offsets)), (Some(&at(2, "de")), vec![2]));
    assert_eq!(offsets.charged_bytes(), offsets::ENTRY_BYTES + 2);
    offsets.forget(partition);
    assert_eq!((offsets.charged_bytes(), offsets.is_empty()), (0, true));
}

// ---- one coordinator, by hand -------------------------------------------------------------------------

/// A coordinator whose changes are durable when the test says so, or at once.
struct Desk {
    groups: Groups,
    now: Now,
    next_request: u64,
    answers: BTreeMap<u64, Answer>,
    /// Changes become durable at once.
    is_quick: bool,
}

impl Desk {
    fn new() -> Desk {
        Desk::with(GroupsConfig { initial_rebalance_delay_us: 0, entropy: 7, ..GroupsConfig::default() })
    }

    fn with(config: GroupsConfig) -> Desk {
        let now = Now { monotonic_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let mut groups = Groups::default();
        groups.begin(config, now);
        groups.add_partitions((1..10).map(PartitionId));
        Desk { groups, now, next_request: 0, answers: BTreeMap::new(), is_quick: true }
    }

    fn send(&mut self, action: GroupAction) -> u64 {
        self.next_request += 1;
        let origin = Origin { core: 0, connection: 1, generation: 0, request: self.next_request };
        self.groups.request(origin, "g", &action, self.now);
        self.collect();
        self.next_request
    }

    fn collect(&mut self) {
        if self.is_quick {
            self.flush();
        }
        while let Some((origin, answer)) = self.groups.poll_reply() {
            assert!(self.answers.insert(origin.request, answer).is_none(), "answered twice");
        }
        assert_eq!(self.groups.charged_bytes(), self.groups.counted_bytes());
        self.check_timers();
    }

    /// Exactly one timer for everything that is watched over, none for anything else.
    fn check_timers(&self) {
        let expected: usize = self
            .groups
            .groups
            .values()
            .map(|group| group.members.len() + group.promised.len() + usize::from(group.phase_deadline_us.is_some()))
            .sum();
        assert_eq!(self.groups.common.timers.len(), expected, "{:?}", self.groups.common.timers);
    }

    fn flush(&mut self) {
        while let Some(change) = self.groups.pop_change() {
            self.groups.durable(change.ticket);
        }
    }

    /// Everything logged so far becomes durable.
    fn make_durable(&mut self) {
        self.flush();
        self.collect();
    }

    fn ask(&mut self, action: GroupAction) -> Answer {
        let sent = self.send(action);
        self.answers.remove(&sent).expect("answered at once")
    }

    fn answer(&mut self, sent: u64) -> Answer {
        self.answers.remove(&sent).expect("answered")
    }

    fn waits(&self, sent: u64) -> bool {
        !self.answers.contains_key(&sent)
    }

    fn pass(&mut self, ms: u64) {
        let until_us = self.now.monotonic_us + ms * 1000;
        self.now.wall_ms += ms as i64;
        while self.groups.common.timers.first().is_some_and(|(at, _, _)| *at <= until_us) {
            let at_us = self.groups.common.timers.first().unwrap().0;
            self.now.monotonic_us = self.now.monotonic_us.max(at_us);
            assert!(self.groups.tick(self.now));
            self.collect();
        }
        self.now.monotonic_us = until_us;
    }

    fn group(&self) -> &Group {
        self.groups.groups.get("g").unwrap()
    }

    /// A dynamic member the way clients do it: an id first, then the join.
    fn begin_join(&mut self, client: &str) -> (String, u64) {
        match self.ask(join(client, "")) {
            Ok(GroupReply::MemberIdRequired { member_id }) => {
                let sent = self.send(join(client, &member_id));
                (member_id, sent)
            }
            other => panic!("{other:?}"),
        }
    }

    /// `count` members, stable, in generation 1; the first leads. Each has its number as assignment.
    fn stable(&mut self, count: usize) -> Vec<String> {
        let mut members: Vec<String> = Vec::new();
        for number in 0..count {
            let (id, joined) = self.begin_join(&format!("client-{number}"));
            let rejoined: Vec<u64> = members.iter().map(|id| self.send(join("", id))).collect();
            members.push(id);
            for sent in rejoined.into_iter().chain([joined]) {
                assert!(matches!(self.answer(sent), Ok(GroupReply::Joined(_))));
            }
        }
        self.sync_all(&members);
        members
    }

    fn sync_all(&mut self, members: &[String]) {
        let generation = self.group().generation;
        let leader = self.group().leader.to_string();
        let shares: Vec<(String, Vec<u8>)> = members.iter().enumerate().map(|(n, id)| (id.clone(), vec![n as u8])).collect();
        let mut sent: Vec<(u64, u8)> = Vec::new();
        for (number, id) in members.iter().enumerate() {
            if *id != leader {
                sent.push((self.send(sync(id, generation, &[])), number as u8));
            }
        }
        assert!(sent.iter().all(|(sent, _)| self.waits(*sent)), "followers wait for the leader");
        let leads = members.iter().position(|id| *id == leader).unwrap() as u8;
        sent.push((self.send(sync(&leader, generation, &shares)), leads));
        for (sent, number) in sent {
            let Ok(GroupReply::Synced { assignment, .. }) = self.answer(sent) else { panic!() };
            assert_eq!(assignment, [number]);
        }
        assert_eq!(self.group().phase, GroupPhase::Stable);
    }

    fn beat(&mut self, member_id: &str, generation: i32) -> Result<(), ErrorCode> {
        let member = dynamic(member_id);
        match self.ask(GroupAction::Heartbeat { member, generation }) {
            Ok(GroupReply::Alive) => Ok(()),
            Err(failure) => Err(failure.code),
            other => panic!("{other:?}"),
        }
    }
}

fn dynamic(member_id: &str) -> MemberRef {
    MemberRef { member_id: member_id.into(), instance_id: None }
}

fn stationary(member_id: &str, instance: &str) -> MemberRef {
    MemberRef { member_id: member_id.into(), instance_id: Some(instance.into()) }
}

fn join_as(client: &str, member: MemberRef, protocols: &[(&str, &str)]) -> Join {
    Join {
        member,
        client_id: client.into(),
        client_host: "127.0.0.1".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: protocols.iter().map(|(name, data)| Protocol { name: (*name).into(), metadata: data.as_bytes().to_vec() }).collect(),
        requires_member_id: true,
        supports_skipping: true,
    }
}

fn join(client: &str, member_id: &str) -> GroupAction {
    GroupAction::Join(join_as(client, dynamic(member_id), &[("range", "r"), ("sticky", "s")]))
}

fn sync(member_id: &str, generation: i32, assignments: &[(String, Vec<u8>)]) -> GroupAction {
    GroupAction::Sync(SyncRequest {
        member: dynamic(member_id),
        generation,
        protocol_type: None,
        protocol: None,
        assignments: assignments.to_vec(),
    })
}

fn code<T: std::fmt::Debug>(answer: Result<T, Failure>) -> ErrorCode {
    answer.expect_err("an error").code
}

fn joined(answer: Answer) -> Joined {
    match answer {
        Ok(GroupReply::Joined(joined)) => joined,
        other => panic!("{other:?}"),
    }
}

#[test]
fn new_dynamic_member_gets_an_id_first_and_joins_with_it() {
    let mut desk = Desk::new();
    let (id, sent) = desk.begin_join("app");
    assert!(id.starts_with("app-") && id.len() == 4 + 32, "{id}");
    let joined = joined(desk.answer(sent));
    assert_eq!((joined.generation, joined.protocol.as_str(), joined.leader.as_str()), (1, "range", id.as_str()));
    assert_eq!(joined.members, [JoinedMember { member: dynamic(&id), metadata: b"r".to_vec() }]);
}

#[test]
fn promised_id_is_good_for_one_session_timeout() {
    let mut desk = Desk::new();
    let Ok(GroupReply::MemberIdRequired { member_id }) = desk.ask(join("app", "")) else { panic!() };
    desk.pass(10_001);
    assert!(desk.groups.groups.is_empty(), "nothing is left of it");
    assert_eq!(code(desk.ask(join("app", &member_id))), ErrorCode::UnknownMember);
}

#[test]
fn client_that_knows_no_promise_joins_at_once() {
    let mut desk = Desk::new();
    let join = Join { requires_member_id: false, ..join_as("old", dynamic(""), &[("range", "")]) };
    assert_eq!(joined(desk.ask(GroupAction::Join(join))).generation, 1);
}

#[test]
fn joins_wait_until_the_generation_is_durable() {
    let mut desk = Desk::new();
    desk.is_quick = false;
    let (_, sent) = desk.begin_join("app");
    assert!(desk.waits(sent));
    desk.make_durable();
    assert_eq!(joined(desk.answer(sent)).generation, 1);
}

#[test]
fn shares_wait_until_the_assignment_is_durable() {
    let mut desk = Desk::new();
    let (id, _) = desk.begin_join("app");
    desk.is_quick = false;
    let first = desk.send(sync(&id, 1, &[(id.clone(), vec![9])]));
    let again = desk.send(sync(&id, 1, &[]));
    assert!(desk.waits(first) && desk.waits(again));
    desk.make_durable();
    for sent in [first, again] {
        let Ok(GroupReply::Synced { assignment, protocol, .. }) = desk.answer(sent) else { panic!() };
        assert_eq!((assignment, protocol.as_str()), (vec![9], "range"));
    }
}

#[test]
fn lost_change_is_told_and_the_members_join_again() {
    let mut desk = Desk::new();
    let (id, _) = desk.begin_join("app");
    desk.is_quick = false;
    let sent = desk.send(sync(&id, 1, &[(id.clone(), vec![9])]));
    let ticket = desk.groups.pop_change().unwrap().ticket;
    desk.groups.lost(ticket, &ErrorCode::DiskFull.into(), desk.now);
    desk.collect();
    assert_eq!(code(desk.answer(sent)), ErrorCode::DiskFull);
    assert_eq!(desk.beat(&id, 1), Err(ErrorCode::RebalanceInProgress));
    desk.is_quick = true;
    assert_eq!(joined(desk.ask(join("app", &id))).generation, 2);
}

#[test]
fn empty_group_waits_for_more_members_and_each_newcomer_prolongs_it() {
    let mut desk = Desk::with(GroupsConfig { initial_rebalance_delay_us: 3_000_000, ..GroupsConfig::default() });
    let (_, first) = desk.begin_join("a");
    desk.pass(2_000);
    let (_, second) = desk.begin_join("b");
    desk.pass(1_001);
    assert!(desk.waits(first), "the newcomer prolonged it");
    desk.pass(3_000);
    let (first, second) = (joined(desk.answer(first)), joined(desk.answer(second)));
    assert_eq!((first.generation, first.members.len(), second.members.len()), (1, 2, 0));
    assert_eq!(first.leader, second.leader);
}

#[test]
fn initial_wait_ends_with_the_rebalance_timeout() {
    let mut desk = Desk::with(GroupsConfig { initial_rebalance_delay_us: 3_000_000, ..GroupsConfig::default() });
    let (_, first) = desk.begin_join("a");
    for number in 0..100 {
        if !desk.waits(first) {
            break;
        }
        desk.begin_join(&format!("late-{number}"));
        desk.pass(1_000);
    }
    assert!(!desk.waits(first));
    assert!(desk.now.monotonic_us <= 1_000_000 + 62_000_000, "{}", desk.now.monotonic_us);
}

#[test]
fn newcomer_makes_the_others_join_again() {
    let mut desk = Desk::new();
    let members = desk.stable(2);
    let generation = desk.group().generation;
    let (_, sent) = desk.begin_join("third");
    assert!(desk.waits(sent));
    for id in &members {
        assert_eq!(desk.beat(id, generation), Err(ErrorCode::RebalanceInProgress));
        assert_eq!(code(desk.ask(sync(id, generation, &[]))), ErrorCode::RebalanceInProgress);
    }
    let again: Vec<u64> = members.iter().map(|id| desk.send(join("", id))).collect();
    assert_eq!(joined(desk.answer(sent)).generation, generation + 1);
    let counts: Vec<usize> = again.into_iter().map(|sent| joined(desk.answer(sent)).members.len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 3, "the leader alone is told who is there: {counts:?}");
}

#[test]
fn who_does_not_join_in_time_is_out() {
    let mut desk = Desk::new();
    let members = desk.stable(2);
    let generation = desk.group().generation;
    let (_, sent) = desk.begin_join("third");
    let again = desk.send(join("", &members[0]));
    for _ in 0..12 {
        desk.pass(5_000);
        // Alive, but it doesn't join.
        let _ = desk.beat(&members[1], generation);
    }
    desk.pass(1_000);
    assert!(!desk.waits(sent) && !desk.waits(again));
    assert_eq!(desk.beat(&members[1], generation), Err(ErrorCode::UnknownMember));
    assert_eq!(desk.group().members.len(), 2);
}

#[test]
fn who_does_not_sync_in_time_is_out() {
    let mut desk = Desk::new();
    let mut members = desk.stable(1);
    let (id, sent) = desk.begin_join("second");
    members.push(id);
    let again = desk.send(join("", &members[0]));
    let generation = joined(desk.answer(sent)).generation;
    desk.answer(again).unwrap();
    let leader = desk.group().leader.to_string();
    let lazy = members.iter().find(|id| **id != leader).unwrap().clone();
    desk.ask(sync(&leader, generation, &[])).unwrap();
    for _ in 0..13 {
        desk.pass(5_000);
        let _ = desk.beat(&lazy, generation);
        let _ = desk.beat(&leader, generation);
    }
    assert_eq!(desk.beat(&lazy, generation), Err(ErrorCode::UnknownMember));
    assert_eq!(desk.beat(&leader, generation), Err(ErrorCode::RebalanceInProgress));
}

#[test]
fn silent_member_is_out_after_its_session_and_heartbeats_keep_it() {
    let mut desk = Desk::new();
    let members = desk.stable(2);
    let generation = desk.group().generation;
    for _ in 0..5 {
        desk.pass(9_000);
        assert_eq!(
            desk.beat(&members[0], generation),
            if desk.group().members.len() == 2 { Ok(()) } else { Err(ErrorCode::RebalanceInProgress) }
        );
    }
    assert_eq!(desk.beat(&members[1], generation), Err(ErrorCode::UnknownMember));
    assert_eq!(desk.group().phase, GroupPhase::PreparingRebalance);
    let joined = joined(desk.ask(join("", &members[0])));
    assert_eq!((joined.generation, joined.members.len()), (generation + 1, 1));
}

#[test]
fn waiting_member_is_not_timed_out_but_a_new_one_is_after_a_while() {
    let mut desk = Desk::with(GroupsConfig { initial_rebalance_delay_us: 0, ..GroupsConfig::default() });
    let members = desk.stable(1);
    let slow = Join { rebalance_timeout_ms: 1_200_000, ..join_as("slow", dynamic(&members[0]), &[("range", "other")]) };
    let slow = desk.ask(GroupAction::Join(slow));
    let generation = joined(slow).generation;
    desk.ask(sync(&members[0], generation, &[])).unwrap();
    let (_, sent) = desk.begin_join("new");
    for _ in 0..59 {
        desk.pass(5_000);
        assert_eq!(desk.beat(&members[0], generation), Err(ErrorCode::RebalanceInProgress));
    }
    assert!(desk.waits(sent), "longer than its session");
    desk.pass(5_001);
    assert_eq!(code(desk.answer(sent)), ErrorCode::UnknownMember);
}

#[test]
fn leaving_makes_the_others_join_again_and_the_last_one_empties_the_group() {
    let mut desk = Desk::new();
    let members = desk.stable(2);
    let generation = desk.group().generation;
    let leavers = vec![dynamic(&members[0]), dynamic("nobody")];
    let Ok(GroupReply::Left(left)) = desk.ask(GroupAction::Leave { members: leavers }) else { panic!() };
    assert_eq!(left.iter().map(|(_, code)| *code).collect::<Vec<_>>(), [None, Some(ErrorCode::UnknownMember)]);
    assert_eq!(desk.beat(&members[0], generation), Err(ErrorCode::UnknownMember));
    assert_eq!(desk.beat(&members[1], generation), Err(ErrorCode::RebalanceInProgress));
    desk.ask(GroupAction::Leave { members: vec![dynamic(&members[1])] }).unwrap();
    let group = desk.group();
    assert_eq!((group.phase, group.members.len(), group.leader.as_ref()), (GroupPhase::Empty, 0, ""));
    assert_eq!(group.protocol_type, "consumer", "what it was is remembered");
    assert!(desk.group().generation > generation);
}

#[test]
fn leader_is_replaced_when_it_leaves() {
    let mut desk = Desk::new();
    let members = desk.stable(2);
    let leader = desk.group().leader.to_string();
    desk.ask(GroupAction::Leave { members: vec![dynamic(&leader)] }).unwrap();
    let other = members.iter().find(|id| **id != leader).unwrap();
    assert_eq!(joined(desk.ask(join("", other))).leader, *other);
}

#[test]
fn wrong_generation_and_unknown_members_are_told_so() {
    let mut desk = Desk::new();
    let members = desk.stable(1);
    let generation = desk.group().generation;
    assert_eq!(desk.beat(&members[0], generation - 1), Err(ErrorCode::IllegalGeneration));
    assert_eq!(desk.beat("nobody", generation), Err(ErrorCode::UnknownMember));
    assert_eq!(code(desk.ask(sync(&members[0], generation + 1, &[]))), ErrorCode::IllegalGeneration);
    assert_eq!(code(desk.ask(sync("nobody", generation, &[]))), ErrorCode::UnknownMember);
    assert_eq!(code(desk.ask(join("", "nobody"))), ErrorCode::UnknownMember);
    let mut other = Desk::new();
    assert_eq!(other.beat("x", 1), Err(ErrorCode::UnknownMember), "no such group");
    assert_eq!(code(other.ask(join("", "x"))), ErrorCode::UnknownMember);
    assert!(other.groups.groups.is_empty());
}

#[test]
fn protocols_must_match_those_of_the_group() {
    let mut desk = Desk::new();
    for (kind, protocols) in [("", vec![("range", "")]), ("consumer", vec![])] {
        let join = Join { protocol_type: kind.into(), ..join_as("c", dynamic(""), &protocols) };
        assert_eq!(code(desk.ask(GroupAction::Join(join))), ErrorCode::InconsistentProtocol);
    }
    assert!(desk.groups.groups.is_empty());
    let members = desk.stable(1);
    let other_kind = Join { protocol_type: "connect".into(), ..join_as("c", dynamic(""), &[("range", "")]) };
    assert_eq!(code(desk.ask(GroupAction::Join(other_kind))), ErrorCode::InconsistentProtocol);
    let other = GroupAction::Join(join_as("c", dynamic(""), &[("unheard of", "")]));
    assert_eq!(code(desk.ask(other)), ErrorCode::InconsistentProtocol);
    // The only member may change its own mind.
    let changed = GroupAction::Join(join_as("c", dynamic(&members[0]), &[("new", "n")]));
    assert_eq!(joined(desk.ask(changed)).protocol, "new");
    let wrong = SyncRequest {
        member: dynamic(&members[0]),
        generation: 2,
        protocol_type: None,
        protocol: Some("range".into()),
        assignments: vec![],
    };
    assert_eq!(code(desk.ask(GroupAction::Sync(wrong))), ErrorCode::InconsistentProtocol);
}

#[test]
fn protocol_with_most_votes_among_those_that_all_know_is_chosen() {
    let mut desk = Desk::with(GroupsConfig { initial_rebalance_delay_us: 1_000, ..GroupsConfig::default() });
    let lists: [&[(&str, &str)]; 3] =
        [&[("a", ""), ("b", ""), ("c", "")], &[("c", ""), ("b", "")], &[("only mine", ""), ("c", ""), ("b", "")]];
    let mut sent = Vec::new();
    for list in lists {
        let join = Join { requires_member_id: false, ..join_as("m", dynamic(""), list) };
        sent.push(desk.send(GroupAction::Join(join)));
    }
    desk.pass(100);
    for sent in sent {
        assert_eq!(joined(desk.answer(sent)).protocol, "c");
    }
}

#[test]
fn repeated_join_gets_the_generation_in_force_and_a_leaders_join_begins_another() {
    let mut desk = Desk::new();
    let members = desk.stable(2);
    let generation = desk.group().generation;
    let leader = desk.group().leader.to_string();
    let follower = members.iter().find(|id| **id != leader).unwrap().clone();
    let again = joined(desk.ask(join("", &follower)));
    assert_eq!((again.generation, again.members.len(), desk.group().phase), (generation, 0, GroupPhase::Stable));
    let sent = desk.send(join("", &leader));
    assert!(desk.waits(sent));
    assert_eq!(desk.group().phase, GroupPhase::PreparingRebalance);
}

#[test]
fn repeated_join_while_the_leader_divides_gets_its_answer_again() {
    let mut desk = Desk::new();
    let (id, _) = desk.begin_join("a");
    let again = joined(desk.ask(join("a", &id)));
    assert_eq!((again.generation, again.members.len()), (1, 1));
    assert_eq!(desk.group().phase, GroupPhase::CompletingRebalance);
}

#[test]
fn group_takes_no_more_members_than_it_may() {
    let mut desk = Desk::with(GroupsConfig { initial_rebalance_delay_us: 0, members_max: 2, ..GroupsConfig::default() });
    let members = desk.stable(2);
    assert_eq!(code(desk.ask(join("third", ""))), ErrorCode::GroupFull);
    assert!(desk.send(join("", &members[0])) > 0, "members are welcome");
}

#[test]
fn unsuitable_joins_get_typed_errors() {
    let mut desk = Desk::with(GroupsConfig { bytes_max: 20_000, member_bytes_max: 1000, ..GroupsConfig::default() });
    let with = |change: &dyn Fn(&mut Join)| {
        let mut join = join_as("c", dynamic(""), &[("range", "")]);
        change(&mut join);
        GroupAction::Join(join)
    };
    for ms in [0, 5_999, 1_800_001, u32::MAX] {
        assert_eq!(code(desk.ask(with(&|join| join.session_timeout_ms = ms))), ErrorCode::InvalidSessionTimeout);
    }
    let large = |join: &mut Join| join.protocols[0].metadata = vec![0; 1001];
    let many = |join: &mut Join| join.protocols = vec![Protocol { name: "p".into(), metadata: vec![] }; PROTOCOLS_MAX + 1];
    let long = |join: &mut Join| join.protocols[0].name = "p".repeat(256);
    let instance = |join: &mut Join| join.member.instance_id = Some("i".repeat(513));
    let nameless = |join: &mut Join| join.member.instance_id = Some(String::new());
    for change in [&large as &dyn Fn(&mut Join), &many, &long, &instance, &nameless] {
        assert_eq!(code(desk.ask(with(change))), ErrorCode::InvalidArgument);
    }
    assert!(desk.groups.groups.is_empty());
    let client = "é".repeat(200);
    let Ok(GroupReply::MemberIdRequired { member_id }) = desk.ask(with(&|join| join.client_id.clone_from(&client))) else { panic!() };
    assert!(member_id.starts_with(&"é".repeat(127)) && member_id.len() < 300);
    let refused = (0..100).find_map(|_| desk.ask(with(&|join| join.client_id.clone_from(&client))).err());
    assert_eq!(refused.unwrap().code, ErrorCode::LimitExceeded);
    assert!(desk.groups.charged_bytes() <= 20_000);
}

// ---- static members -----------------------------------------------------------------------------------

fn join_static(member_id: &str, instance: &str) -> Join {
    join_as("static", stationary(member_id, instance), &[("range", instance)])
}

/// One static member, stable in generation 1; its id.
fn one_static(desk: &mut Desk) -> String {
    let first = joined(desk.ask(GroupAction::Join(join_static("", "one"))));
    let assign = SyncRequest {
        member: stationary(&first.member_id, "one"),
        generation: 1,
        protocol_type: None,
        protocol: None,
        assignments: vec![(first.member_id.clone(), vec![7])],
    };
    desk.ask(GroupAction::Sync(assign)).unwrap();
    first.member_id
}

#[test]
fn static_member_that_comes_back_keeps_its_share_without_a_rebalance() {
    let mut desk = Desk::new();
    let old = one_static(&mut desk);
    let back = joined(desk.ask(GroupAction::Join(join_static("", "one"))));
    assert_ne!(back.member_id, old);
    assert_eq!((back.generation, back.skip_assignment, back.members.len(), &back.leader), (1, true, 1, &back.member_id));
    let again =
        SyncRequest { member: stationary(&back.member_id, "one"), generation: 1, protocol_type: None, protocol: None, assignments: vec![] };
    let Ok(GroupReply::Synced { assignment, .. }) = desk.ask(GroupAction::Sync(again)) else { panic!() };
    assert_eq!(assignment, [7]);
    let heartbeat = |member| GroupAction::Heartbeat { member, generation: 1 };
    assert_eq!(code(desk.ask(heartbeat(stationary(&old, "one")))), ErrorCode::FencedInstance);
    assert_eq!(code(desk.ask(heartbeat(stationary(&back.member_id, "two")))), ErrorCode::UnknownMember);
    assert!(desk.ask(heartbeat(stationary(&back.member_id, "one"))).is_ok());
}

#[test]
fn static_leader_that_can_not_skip_is_not_told_that_it_leads() {
    let mut desk = Desk::new();
    let old = one_static(&mut desk);
    let back = joined(desk.ask(GroupAction::Join(Join { supports_skipping: false, ..join_static("", "one") })));
    assert_eq!((back.leader, back.skip_assignment, back.members.len()), (old, false, 0));
}

#[test]
fn static_member_that_comes_back_with_another_protocol_rebalances() {
    let mut desk = Desk::new();
    one_static(&mut desk);
    let other = Join { protocols: vec![Protocol { name: "other".into(), metadata: vec![] }], ..join_static("", "one") };
    let back = joined(desk.ask(GroupAction::Join(other)));
    assert_eq!((back.generation, back.protocol.as_str()), (2, "other"));
}

#[test]
fn static_member_is_kept_through_a_rebalance_it_does_not_attend() {
    let mut desk = Desk::new();
    let one = one_static(&mut desk);
    let (two, sent) = desk.begin_join("two");
    for _ in 0..13 {
        desk.pass(5_000);
        let _ = desk.ask(GroupAction::Heartbeat { member: stationary(&one, "one"), generation: 1 });
    }
    let joined = joined(desk.answer(sent));
    assert_eq!((joined.generation, joined.members.len(), joined.leader), (2, 2, two));
}

#[test]
fn waiting_join_of_a_static_member_is_fenced_by_its_successor() {
    let mut desk = Desk::new();
    let members = desk.stable(1);
    let sent = desk.send(GroupAction::Join(join_static("", "one")));
    let next = desk.send(GroupAction::Join(join_static("", "one")));
    assert_eq!(code(desk.answer(sent)), ErrorCode::FencedInstance);
    assert!(desk.waits(next));
    let again = desk.send(join("", &members[0]));
    assert!(!desk.waits(next) && !desk.waits(again));
    assert_eq!(desk.group().members.len(), 2);
}

#[test]
fn static_member_leaves_by_its_instance_alone() {
    let mut desk = Desk::new();
    one_static(&mut desk);
    let Ok(GroupReply::Left(left)) = desk.ask(GroupAction::Leave { members: vec![stationary("", "one"), stationary("", "none")] }) else {
        panic!()
    };
    assert_eq!(left.iter().map(|(_, code)| *code).collect::<Vec<_>>(), [None, Some(ErrorCode::UnknownMember)]);
    assert_eq!(desk.group().phase, GroupPhase::Empty);
}

// ---- what is seen from outside ------------------------------------------------------------------------

#[test]
fn description_shows_shares_of_stable_groups_only() {
    let mut desk = Desk::new();
    assert_eq!(code(desk.ask(GroupAction::Describe)), ErrorCode::GroupNotFound);
    let members = desk.stable(1);
    let Ok(GroupReply::Description(description)) = desk.ask(GroupAction::Describe) else { panic!() };
    assert_eq!(
        (description.phase, description.protocol.as_str(), description.leader.as_str()),
        (GroupPhase::Stable, "range", members[0].as_str())
    );
    assert_eq!((description.members[0].metadata.as_slice(), description.members[0].assignment.as_slice()), (&b"r"[..], &[0][..]));
    desk.begin_join("second");
    let Ok(GroupReply::Description(description)) = desk.ask(GroupAction::Describe) else { panic!() };
    assert_eq!(description.phase, GroupPhase::PreparingRebalance);
    assert!(description.members.iter().all(|member| member.assignment.is_empty() && member.metadata.is_empty()));
    let listed = desk.groups.list();
    assert_eq!((listed.len(), listed[0].member_count, listed[0].group.as_str()), (1, 2, "g"));
}

#[test]
fn stop_and_fence_tell_whoever_waits() {
    let mut desk = Desk::new();
    let members = desk.stable(1);
    let (_, joining) = desk.begin_join("second");
    desk.groups.stop();
    desk.collect();
    assert_eq!(code(desk.answer(joining)), ErrorCode::ShuttingDown);
    desk.is_quick = false;
    let again = desk.send(join("", &members[0]));
    assert!(desk.waits(again), "the other one hasn't joined again");
    desk.groups.fenced(&ErrorCode::ShardFenced.into());
    desk.collect();
    assert!(desk.groups.first_change().is_none() && !desk.waits(again));
}

// ---- whole shards -------------------------------------------------------------------------------------

use std::sync::Arc as Shared;

use ringmain_wire::control::TopicConfig;

use crate::device::sim::{SimDisk, SimOptions};
use crate::request::group::{Commit, GroupOffset, GroupRequest, NO_GENERATION};
use crate::request::{Reply, Request};
use crate::shard::tests::{Rig, shard_config, start};

impl Rig {
    fn with_groups() -> Rig {
        let mut config = shard_config();
        config.groups.initial_rebalance_delay_us = 0;
        config.groups.round_interval_us = 1_000_000;
        let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
        rig.create("t", 4, TopicConfig::default());
        rig
    }

    fn group(&mut self, action: GroupAction) -> Answer {
        match self.ask(&Request::Group(Shared::new(GroupRequest { group: "g".into(), action }))) {
            Reply::Group(reply) => Ok(*reply),
            Reply::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// One member, stable in generation 1.
    fn one_member(&mut self) -> String {
        let Ok(GroupReply::MemberIdRequired { member_id }) = self.group(join("app", "")) else { panic!() };
        assert_eq!(joined(self.group(join("app", &member_id))).generation, 1);
        self.group(sync(&member_id, 1, &[(member_id.clone(), vec![9])])).unwrap();
        member_id
    }

    fn alive(&mut self, member_id: &str, generation: i32) -> Result<GroupReply, ErrorCode> {
        self.group(GroupAction::Heartbeat { member: dynamic(member_id), generation }).map_err(|failure| failure.code)
    }

    fn commit_as(&mut self, member_id: &str, generation: i32, offsets: &[(u32, u64)]) -> Answer {
        self.group(commit_by(member_id, generation, offsets, None))
    }

    fn offsets(&mut self, stable: bool) -> (Vec<(u32, u64)>, Vec<u32>) {
        let Ok(GroupReply::Offsets { offsets, unstable }) = self.group(GroupAction::ReadOffsets { partitions: None, stable }) else {
            panic!()
        };
        let offsets = offsets.into_iter().map(|at| (at.partition.0, at.offset.0)).collect();
        (offsets, unstable.into_iter().map(|partition| partition.0).collect())
    }
}

fn commit_by(member_id: &str, generation: i32, offsets: &[(u32, u64)], transaction: Option<(ProducerId, u16)>) -> GroupAction {
    let offsets = offsets.iter().map(|(partition, offset)| GroupOffset {
        partition: PartitionId(*partition),
        offset: Offset(*offset),
        leader_epoch: 1,
        metadata: "note".into(),
    });
    GroupAction::Commit(Commit { member: dynamic(member_id), generation, transaction, offsets: offsets.collect() })
}

#[test]
fn member_goes_on_after_a_crash_with_a_fresh_session() {
    let mut rig = Rig::with_groups();
    let id = rig.one_member();
    rig.commit_as(&id, 1, &[(1, 5), (2, 6)]).unwrap();
    rig.pass(9_000_000);
    for power in [false, true] {
        rig = if power { rig.power_cut() } else { rig.kill() };
        rig.pass(9_000_000);
        rig.turns(1);
        assert_eq!(rig.alive(&id, 1), Ok(GroupReply::Alive));
        let Ok(GroupReply::Synced { assignment, .. }) = rig.group(sync(&id, 1, &[])) else { panic!() };
        assert_eq!(assignment, [9]);
    }
    rig.commit_as(&id, 1, &[(1, 7)]).unwrap();
    assert_eq!(rig.offsets(false).0, [(1, 7), (2, 6)]);
    rig.pass(10_100_000);
    rig.turns(2);
    assert_eq!(rig.alive(&id, 1), Err(ErrorCode::UnknownMember), "its session ends as ever");
}

#[test]
fn group_comes_back_from_a_checkpoint_alone() {
    let mut rig = Rig::with_groups();
    let id = rig.one_member();
    rig.commit_as(&id, 1, &[(1, 5)]).unwrap();
    rig.group(commit_by("", NO_GENERATION, &[(3, 8)], Some((ProducerId(4), 0)))).unwrap();
    rig.stop();
    let expected = rig.summary();
    let mut rig = rig.kill();
    assert_eq!(rig.summary(), expected);
    assert_eq!(rig.alive(&id, 1), Ok(GroupReply::Alive));
    assert_eq!(rig.offsets(true), (vec![(1, 5)], vec![3]));
}

#[test]
fn rebalance_that_a_crash_cut_off_goes_on() {
    let mut rig = Rig::with_groups();
    let id = rig.one_member();
    let second = joined_second(&mut rig, &id);
    // Joined and not divided yet.
    let mut rig = rig.power_cut();
    assert_eq!(rig.alive(&id, 2), Ok(GroupReply::Alive));
    let leader = if rig.shard.groups.groups["g"].leader.as_ref() == id { &id } else { &second };
    rig.group(sync(leader, 2, &[(id.clone(), vec![1]), (second.clone(), vec![2])])).unwrap();
    let Ok(GroupReply::Synced { assignment, .. }) = rig.group(sync(&second, 2, &[])) else { panic!() };
    assert_eq!(assignment, [2]);
}

/// A second member, in generation 2 with the first.
fn joined_second(rig: &mut Rig, first: &str) -> String {
    let Ok(GroupReply::MemberIdRequired { member_id }) = rig.group(join("second", "")) else { panic!() };
    let request = |id: &str| Request::Group(Shared::new(GroupRequest { group: "g".into(), action: join("", id) }));
    let sent = rig.send(&request(&member_id));
    let Reply::Group(reply) = rig.ask(&request(first)) else { panic!() };
    assert!(matches!(*reply, GroupReply::Joined(_)));
    let Reply::Group(reply) = rig.answer(sent) else { panic!() };
    assert!(matches!(*reply, GroupReply::Joined(_)));
    member_id
}

#[test]
fn commits_are_checked_against_member_and_generation() {
    let mut rig = Rig::with_groups();
    assert_eq!(code(rig.commit_as("nobody", 1, &[(1, 5)])), ErrorCode::IllegalGeneration, "no such group");
    rig.commit_as("", NO_GENERATION, &[(1, 5)]).unwrap();
    let id = rig.one_member();
    assert_eq!(code(rig.commit_as("", NO_GENERATION, &[(1, 6)])), ErrorCode::UnknownMember);
    assert_eq!(code(rig.commit_as(&id, 0, &[(1, 6)])), ErrorCode::IllegalGeneration);
    assert_eq!(code(rig.commit_as("nobody", 1, &[(1, 6)])), ErrorCode::UnknownMember);
    let Ok(GroupReply::Committed { refused }) = rig.commit_as(&id, 1, &[(1, 6), (99, 1)]) else { panic!() };
    assert_eq!(refused, [(PartitionId(99), ErrorCode::UnknownPartition)]);
    assert_eq!(rig.offsets(false).0, [(1, 6)]);
    let second = joined_second(&mut rig, &id);
    assert_eq!(code(rig.commit_as(&id, 1, &[(1, 7)])), ErrorCode::IllegalGeneration);
    assert_eq!(code(rig.commit_as(&second, 2, &[(1, 7)])), ErrorCode::RebalanceInProgress, "nothing is divided yet");
    let long = GroupOffset { partition: PartitionId(1), offset: Offset(1), leader_epoch: 0, metadata: "m".repeat(4097) };
    let mut other = Rig::with_groups();
    let commit = Commit { member: MemberRef::default(), generation: NO_GENERATION, transaction: None, offsets: vec![long] };
    let Ok(GroupReply::Committed { refused }) = other.group(GroupAction::Commit(commit)) else { panic!() };
    assert_eq!(refused, [(PartitionId(1), ErrorCode::OffsetMetadataTooLarge)]);
    assert_eq!(other.shard.counters().groups, 0);
}

#[test]
fn offsets_of_a_deleted_topic_go_with_it() {
    let mut rig = Rig::with_groups();
    rig.create("u", 1, TopicConfig::default());
    rig.commit_as("", NO_GENERATION, &[(1, 5), (5, 9)]).unwrap();
    rig.ask(&Request::DeleteTopic { name: "t" });
    assert_eq!(rig.offsets(false).0, [(5, 9)]);
    let mut rig = rig.power_cut();
    assert_eq!(rig.offsets(false).0, [(5, 9)]);
    rig.ask(&Request::DeleteTopic { name: "u" });
    assert_eq!((rig.shard.counters().groups, rig.shard.counters().group_bytes), (0, 0));
}

#[test]
fn offsets_and_groups_are_forgotten_on_request_and_stay_so() {
    let mut rig = Rig::with_groups();
    assert_eq!(code(rig.group(GroupAction::Delete)), ErrorCode::GroupNotFound);
    rig.commit_as("", NO_GENERATION, &[(1, 5), (2, 6)]).unwrap();
    rig.group(GroupAction::DeleteOffsets { partitions: vec![PartitionId(1)] }).unwrap();
    let mut rig = rig.power_cut();
    assert_eq!(rig.offsets(false).0, [(2, 6)]);
    let id = rig.one_member();
    assert_eq!(code(rig.group(GroupAction::Delete)), ErrorCode::GroupNotEmpty);
    rig.group(GroupAction::Leave { members: vec![dynamic(&id)] }).unwrap();
    rig.group(GroupAction::Delete).unwrap();
    let mut rig = rig.power_cut();
    assert_eq!((rig.offsets(false).0, rig.shard.counters().groups), (vec![], 0));
}

#[test]
fn offsets_go_when_the_group_has_been_empty_for_long() {
    const DAY_US: u64 = 24 * 3_600_000_000;
    let mut rig = Rig::with_groups();
    let id = rig.one_member();
    rig.commit_as(&id, 1, &[(1, 5)]).unwrap();
    for _ in 0..20 * 3600 * 24 / 9 {
        // A member keeps everything, however long.
        rig.now.monotonic_us += 9_000_000;
        rig.now.wall_ms += 9_000;
        rig.shard.groups.tick(rig.now);
        assert!(rig.shard.groups.groups["g"].members.contains_key(id.as_str()));
        let origin = Origin { core: 0, connection: 1, generation: 0, request: 0 };
        rig.shard.groups.request(origin, "g", &GroupAction::Heartbeat { member: dynamic(&id), generation: 1 }, rig.now);
        rig.shard.groups.poll_reply().unwrap().1.unwrap();
    }
    rig.turns(2);
    rig.group(GroupAction::Leave { members: vec![dynamic(&id)] }).unwrap();
    rig.settle();
    rig.pass(6 * DAY_US);
    rig.turns(2);
    assert_eq!(rig.offsets(false).0, [(1, 5)]);
    let mut rig = rig.power_cut();
    rig.pass(DAY_US - 1_000_000);
    rig.turns(2);
    assert_eq!(rig.offsets(false).0, [(1, 5)]);
    rig.pass(3_000_000);
    rig.turns(5);
    assert_eq!((rig.offsets(false).0, rig.shard.counters().group_bytes), (vec![], 0));
    assert_eq!(rig.power_cut().shard.counters().groups, 0);
}

#[test]
fn staged_offsets_take_effect_with_their_transaction_only() {
    let mut rig = Rig::with_groups();
    let decide = |commit, producer_epoch| GroupAction::Decide { producer_id: ProducerId(4), producer_epoch, commit };
    let stage = |offset, epoch| commit_by("", NO_GENERATION, &[(1, offset)], Some((ProducerId(4), epoch)));
    rig.commit_as("", NO_GENERATION, &[(1, 5)]).unwrap();
    rig.group(stage(9, 1)).unwrap();
    assert_eq!(rig.offsets(false), (vec![(1, 5)], vec![]));
    assert_eq!(rig.offsets(true), (vec![], vec![1]));
    let mut rig = rig.power_cut();
    assert_eq!(rig.offsets(true), (vec![], vec![1]));
    assert_eq!(code(rig.group(stage(8, 0))), ErrorCode::StaleProducerEpoch);
    rig.group(decide(true, 1)).unwrap();
    rig.group(decide(true, 1)).unwrap();
    assert_eq!(rig.offsets(true), (vec![(1, 9)], vec![]));
    let mut rig = rig.power_cut();
    assert_eq!(rig.offsets(true), (vec![(1, 9)], vec![]));
    rig.group(stage(20, 1)).unwrap();
    rig.group(decide(false, 2)).unwrap();
    assert_eq!(rig.offsets(true), (vec![(1, 9)], vec![]));
    assert_eq!(rig.power_cut().offsets(true), (vec![(1, 9)], vec![]));
}

/// Whatever comes later counts, in whatever order transactions are decided; also after a restart, and from a checkpoint.
#[test]
fn staged_offset_gives_way_to_what_was_committed_after_it() {
    for cuts in [false, true] {
        let decide = |producer, commit| GroupAction::Decide { producer_id: ProducerId(producer), producer_epoch: 1, commit };
        let stage = |producer, partition, offset| commit_by("", NO_GENERATION, &[(partition, offset)], Some((ProducerId(producer), 1)));
        let go_on = |rig: Rig| if cuts { rig.power_cut() } else { rig };
        let mut rig = Rig::with_groups();
        rig.group(stage(4, 1, 9)).unwrap();
        rig.group(stage(4, 2, 9)).unwrap();
        rig.commit_as("", NO_GENERATION, &[(1, 5)]).unwrap();
        rig = go_on(rig);
        // What is void leaves nobody waiting.
        assert_eq!(rig.offsets(true), (vec![(1, 5)], vec![2]));
        rig.group(decide(4, true)).unwrap();
        rig = go_on(rig);
        assert_eq!(rig.offsets(true), (vec![(1, 5), (2, 9)], vec![]));
        rig.group(stage(5, 1, 20)).unwrap();
        rig.group(stage(6, 1, 21)).unwrap();
        rig.group(stage(5, 2, 22)).unwrap();
        rig.group(stage(6, 2, 23)).unwrap();
        rig.group(stage(5, 2, 24)).unwrap();
        rig = go_on(rig);
        rig.group(decide(6, true)).unwrap();
        rig = go_on(rig);
        rig.group(decide(5, true)).unwrap();
        rig = go_on(rig);
        assert_eq!(rig.offsets(true), (vec![(1, 21), (2, 24)], vec![]));
    }
}

#[test]
fn fenced_shard_tells_members_and_still_knows_its_offsets() {
    let mut rig = Rig::with_groups();
    let id = rig.one_member();
    rig.commit_as(&id, 1, &[(1, 5)]).unwrap();
    rig.settle();
    rig.disk.fail_next(crate::device::sim::Kind::Write, crate::device::Fault::Os(libc::EIO));
    assert_eq!(code(rig.commit_as(&id, 1, &[(1, 6)])), ErrorCode::ShardFenced);
    assert_eq!(rig.alive(&id, 1), Err(ErrorCode::ShardFenced));
    assert_eq!(code(rig.group(join("x", ""))), ErrorCode::ShardFenced);
    assert_eq!(rig.offsets(false).0, [(1, 5)]);
    assert!(rig.group(GroupAction::Describe).is_ok());
}

#[test]
fn name_of_a_group_has_bounds() {
    let mut rig = Rig::with_groups();
    for name in [String::new(), "g".repeat(256)] {
        let request = GroupRequest { group: name, action: GroupAction::Describe };
        let Reply::Failed(failure) = rig.ask(&Request::Group(Shared::new(request))) else { panic!() };
        assert_eq!(failure.code, ErrorCode::InvalidGroup);
    }
}
