//! Random lives of a group on a simulated disk: members come, go, fall silent and lie about generations; the disk
//! stalls, the process dies, the power fails. Checked all the time: what one generation's members are told agrees,
//! no generation is used twice, nothing is committed from an old one, and no acknowledged offset is ever missing.
//! At the end everybody behaves, and the group must come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use ringmain_wire::control::TopicConfig;
use ringmain_wire::{ErrorCode, Offset, PartitionId};

use crate::device::sim::{SimDisk, SimOptions};
use crate::request::group::*;
use crate::request::{Reply, Request};
use crate::shard::group::GroupsConfig;
use crate::shard::tests::{Rig, shard_config, start};

const CLIENTS: u8 = 5;
const PARTITIONS: u32 = 3;
/// The clients above are static members.
const DYNAMIC: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Sync(u8),
    Beat(u8),
    Leave(u8),
    Restart(u8),
    Commit { client: u8, partition: u32, is_old: bool },
    Simple { partition: u32 },
    Pass { ms: u64 },
    Turn { count: usize },
    Stall { is_stalled: bool },
    Kill,
    PowerCut,
}

fn any_step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    prop_oneof![
        12 => client().prop_map(Step::Join),
        10 => client().prop_map(Step::Sync),
        4 => client().prop_map(Step::Beat),
        2 => client().prop_map(Step::Leave),
        2 => client().prop_map(Step::Restart),
        6 => (client(), 1..=PARTITIONS, any::<bool>()).prop_map(|(client, partition, is_old)| Step::Commit { client, partition, is_old }),
        1 => (1..=PARTITIONS).prop_map(|partition| Step::Simple { partition }),
        3 => (0u64..8_000).prop_map(|ms| Step::Pass { ms }),
        10 => (0usize..12).prop_map(|count| Step::Turn { count }),
        2 => any::<bool>().prop_map(|is_stalled| Step::Stall { is_stalled }),
        1 => Just(Step::Kill),
        1 => Just(Step::PowerCut),
    ]
}

#[derive(Clone, Debug, Default)]
struct Client {
    instance: Option<String>,
    member_id: String,
    generation: i32,
    /// Members to assign to, if it leads.
    followers: Option<Vec<String>>,
    waiting: Option<u64>,
    has_share: bool,
    is_fenced: bool,
}

struct World {
    rig: Rig,
    clients: Vec<Client>,
    /// Asked and not answered: by whom.
    asked: BTreeMap<u64, Asked>,
    /// Told by a join: generation → leader and protocol.
    told: BTreeMap<i32, (String, String)>,
    told_members: BTreeMap<i32, BTreeSet<String>>,
    leaders_view: BTreeMap<i32, BTreeSet<String>>,
    next_value: u64,
    acknowledged: BTreeMap<u32, u64>,
}

#[derive(Clone, Debug)]
enum Asked {
    Join { client: u8 },
    Sync { client: u8, generation: i32, member_id: String },
    Beat { client: u8 },
    Commit { generation: i32, newest_told: i32, partition: u32, value: u64 },
    Ignored,
}

fn share(generation: i32, member_id: &str) -> Vec<u8> {
    format!("{generation}/{member_id}").into_bytes()
}

impl World {
    fn new(seed: u64, delay_ms: u64) -> World {
        let mut config = shard_config();
        config.groups = GroupsConfig {
            initial_rebalance_delay_us: delay_ms * 1000,
            round_interval_us: u64::MAX / 4,
            entropy: seed,
            ..GroupsConfig::default()
        };
        config.checkpoint_after_state_bytes = 4096;
        let mut rig = Rig::open(SimDisk::new(seed, SimOptions::default()), config, start());
        rig.create("t", PARTITIONS, TopicConfig::default());
        let clients = (0..CLIENTS).map(|n| Client { instance: (n >= DYNAMIC).then(|| format!("static-{n}")), ..Client::default() });
        World {
            rig,
            clients: clients.collect(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            told_members: BTreeMap::new(),
            leaders_view: BTreeMap::new(),
            next_value: 0,
            acknowledged: BTreeMap::new(),
        }
    }

    /// Asks without waiting. Busy = the request is given up.
    fn ask(&mut self, action: GroupAction, asked: Asked) -> Option<u64> {
        let request = Request::Group(Arc::new(GroupRequest { group: "g".into(), action }));
        let sent = self.rig.try_send(&request)?;
        self.asked.insert(sent, asked);
        self.listen();
        Some(sent)
    }

    fn member(&self, client: u8) -> MemberRef {
        let Client { member_id, instance, .. } = &self.clients[usize::from(client)];
        MemberRef { member_id: member_id.clone(), instance_id: instance.clone() }
    }

    fn join(&mut self, client: u8) {
        if self.clients[usize::from(client)].waiting.is_some() {
            return;
        }
        let member = self.member(client);
        let join = Join {
            member,
            client_id: format!("c{client}"),
            client_host: String::new(),
            session_timeout_ms: 6_000,
            rebalance_timeout_ms: 10_000,
            protocol_type: "consumer".into(),
            protocols: vec![Protocol { name: "p".into(), metadata: vec![client] }],
            requires_member_id: client != 0,
            supports_skipping: true,
        };
        let sent = self.ask(GroupAction::Join(join), Asked::Join { client });
        self.wait(client, sent);
    }

    fn sync(&mut self, client: u8) {
        let state = &self.clients[usize::from(client)];
        if state.waiting.is_some() || state.generation == 0 {
            return;
        }
        let generation = state.generation;
        let assignments = state.followers.iter().flatten().map(|member_id| (member_id.clone(), share(generation, member_id))).collect();
        let member = self.member(client);
        let asked = Asked::Sync { client, generation, member_id: member.member_id.clone() };
        let sync = Sync { member, generation, protocol_type: None, protocol: Some("p".into()), assignments };
        let sent = self.ask(GroupAction::Sync(sync), asked);
        self.wait(client, sent);
    }

    fn wait(&mut self, client: u8, sent: Option<u64>) {
        let is_open = sent.is_some_and(|sent| self.asked.contains_key(&sent));
        self.clients[usize::from(client)].waiting = if is_open { sent } else { None };
    }

    fn beat(&mut self, client: u8) {
        let generation = self.clients[usize::from(client)].generation;
        let member = self.member(client);
        self.ask(GroupAction::Heartbeat { member, generation }, Asked::Beat { client });
    }

    fn commit(&mut self, member: MemberRef, generation: i32, partition: u32) {
        self.next_value += 1;
        let value = self.next_value;
        let newest_told = self.told.keys().next_back().copied().unwrap_or(0);
        let offset = GroupOffset { partition: PartitionId(partition), offset: Offset(value), leader_epoch: 3, metadata: "m".into() };
        let commit = Commit { member, generation, transaction: None, offsets: vec![offset] };
        self.ask(GroupAction::Commit(commit), Asked::Commit { generation, newest_told, partition, value });
    }

    fn step(mut self, step: &Step) -> World {
        match step {
            Step::Join(client) => self.join(*client),
            Step::Sync(client) => self.sync(*client),
            Step::Beat(client) => self.beat(*client),
            Step::Leave(client) => {
                let members = vec![self.member(*client)];
                self.ask(GroupAction::Leave { members }, Asked::Ignored);
                self.restart(*client);
            }
            Step::Restart(client) => self.restart(*client),
            Step::Commit { client, partition, is_old } => {
                let generation = self.clients[usize::from(*client)].generation - i32::from(*is_old);
                let member = self.member(*client);
                if !member.member_id.is_empty() {
                    self.commit(member, generation.max(0), *partition);
                }
            }
            Step::Simple { partition } => self.commit(MemberRef::default(), NO_GENERATION, *partition),
            Step::Pass { ms } => {
                self.rig.pass(ms * 1000);
                self.rig.turns(1);
            }
            Step::Turn { count } => self.rig.turns(*count),
            Step::Stall { is_stalled } => self.rig.disk.stall(*is_stalled),
            Step::Kill | Step::PowerCut => return self.crash(matches!(step, Step::PowerCut)),
        }
        self.listen();
        self
    }

    /// The client forgets everything but its instance; what it asked isn't heard any more.
    fn restart(&mut self, client: u8) {
        let state = &mut self.clients[usize::from(client)];
        if let Some(sent) = state.waiting {
            self.asked.insert(sent, Asked::Ignored);
        }
        *state = Client { instance: state.instance.take(), ..Client::default() };
    }

    fn crash(mut self, power: bool) -> World {
        self.listen();
        self.rig.disk.stall(false);
        self.asked.clear();
        self.clients.iter_mut().for_each(|client| client.waiting = None);
        World { rig: if power { self.rig.power_cut() } else { self.rig.kill() }, ..self }.check_offsets()
    }

    fn check_offsets(mut self) -> World {
        for (partition, acknowledged) in self.acknowledged.clone() {
            let read = self.read(partition);
            assert!(read.is_some_and(|read| (acknowledged..=self.next_value).contains(&read)), "{read:?} after {acknowledged}");
        }
        self
    }

    fn read(&mut self, partition: u32) -> Option<u64> {
        let action = GroupAction::ReadOffsets { partitions: Some(vec![PartitionId(partition)]), stable: false };
        let reply = self.rig.ask(&Request::Group(Arc::new(GroupRequest { group: "g".into(), action })));
        let Reply::Group(reply) = reply else { panic!("{reply:?}") };
        let GroupReply::Offsets { offsets, .. } = *reply else { panic!("{reply:?}") };
        offsets.first().map(|offset| {
            assert_eq!((offset.leader_epoch, offset.metadata.as_str()), (3, "m"));
            offset.offset.0
        })
    }

    /// Takes in what has been answered.
    fn listen(&mut self) {
        assert_eq!(self.rig.shard.groups.charged_bytes(), self.rig.shard.groups.counted_bytes());
        let answered: Vec<u64> = self.asked.keys().copied().filter(|sent| self.rig.is_answered(*sent)).collect();
        for sent in answered {
            let (Some(asked), Some(reply)) = (self.asked.remove(&sent), self.rig.answers.remove(&sent)) else { continue };
            let answer = match reply {
                Reply::Group(reply) => Ok(*reply),
                Reply::Failed(failure) => Err(failure.code),
                other => panic!("{other:?}"),
            };
            self.take(asked, answer);
        }
    }

    fn take(&mut self, asked: Asked, answer: Result<GroupReply, ErrorCode>) {
        match (asked, answer) {
            (Asked::Join { client }, answer) => {
                self.clients[usize::from(client)].waiting = None;
                match answer {
                    Ok(GroupReply::MemberIdRequired { member_id }) => self.clients[usize::from(client)].member_id = member_id,
                    Ok(GroupReply::Joined(joined)) => self.joined(client, joined),
                    Ok(other) => panic!("{other:?}"),
                    Err(code) => self.failed(client, code),
                }
            }
            (Asked::Sync { client, generation, member_id }, answer) => {
                self.clients[usize::from(client)].waiting = None;
                match answer {
                    Ok(GroupReply::Synced { assignment, .. }) => {
                        // A static leader that came back may have assigned under its successor's id.
                        let is_static = self.clients[usize::from(client)].instance.is_some();
                        assert!(assignment == share(generation, &member_id) || is_static, "another generation's share");
                        assert!(assignment.is_empty() || assignment.starts_with(format!("{generation}/").as_bytes()));
                        self.clients[usize::from(client)].has_share = true;
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(code) => self.failed(client, code),
                }
            }
            (Asked::Beat { client }, Err(code)) => self.failed(client, code),
            (Asked::Commit { generation, newest_told, partition, value }, Ok(GroupReply::Committed { refused })) => {
                assert_eq!(refused, []);
                assert!(generation < 0 || generation >= newest_told, "{generation} was old: {newest_told} had been told");
                let acknowledged = self.acknowledged.entry(partition).or_default();
                *acknowledged = value.max(*acknowledged);
            }
            _ => {}
        }
    }

    fn joined(&mut self, client: u8, joined: Joined) {
        let Joined { generation, protocol, leader, member_id, skip_assignment, members, .. } = joined;
        let is_leader = leader == member_id;
        let (first, _) = self.told.entry(generation).or_insert_with(|| (leader.clone(), protocol.clone())).clone();
        // A static leader's id changes when it comes back, its generation doesn't.
        assert!(first == leader || first.starts_with("static-"), "generation {generation} has two leaders: {first}, {leader}");
        let newest = *self.told.keys().next_back().unwrap();
        assert!(generation >= newest - 1 || newest - generation < 50);
        self.told_members.entry(generation).or_default().insert(member_id.clone());
        if is_leader && !skip_assignment {
            let seen: BTreeSet<String> = members.iter().map(|member| member.member.member_id.clone()).collect();
            assert!(seen.contains(&member_id));
            self.leaders_view.entry(generation).or_default().extend(seen);
        }
        if let Some(seen) = self.leaders_view.get(&generation) {
            let missing: Vec<_> =
                self.told_members[&generation].iter().filter(|id| !seen.contains(*id) && !id.starts_with("static-")).collect();
            assert!(missing.is_empty(), "generation {generation}: {missing:?} joined unseen by the leader");
        }
        let state = &mut self.clients[usize::from(client)];
        (state.member_id, state.generation, state.has_share) = (member_id, generation, false);
        state.followers = (is_leader && !skip_assignment).then(|| members.into_iter().map(|member| member.member.member_id).collect());
    }

    fn failed(&mut self, client: u8, code: ErrorCode) {
        let state = &mut self.clients[usize::from(client)];
        state.has_share = false;
        match code {
            ErrorCode::UnknownMember => {
                state.member_id.clear();
                state.generation = 0;
            }
            ErrorCode::FencedInstance => state.is_fenced = true,
            ErrorCode::IllegalGeneration | ErrorCode::RebalanceInProgress => {}
            other => panic!("client {client}: {other:?}"),
        }
    }

    /// Everybody behaves from now on: the group comes to rest.
    fn settle(mut self) {
        self.rig.disk.stall(false);
        self.clients.iter_mut().for_each(|client| client.is_fenced = false);
        for round in 0..400 {
            for client in 0..CLIENTS {
                let state = &self.clients[usize::from(client)];
                if state.waiting.is_some() {
                    continue;
                }
                if state.is_fenced {
                    // A second life of the same instance, begun by the steps before.
                    self.restart(client);
                }
                let state = &self.clients[usize::from(client)];
                match (state.generation, state.has_share) {
                    (0, _) => self.join(client),
                    (_, true) => {
                        self.beat(client);
                        self.rig.turns(3);
                        self.listen();
                        if !self.clients[usize::from(client)].has_share {
                            self.join(client);
                        }
                    }
                    (_, false) => {
                        self.sync(client);
                        self.rig.turns(3);
                        self.listen();
                        let state = &self.clients[usize::from(client)];
                        if state.waiting.is_none() && !state.has_share {
                            self.join(client);
                        }
                    }
                }
            }
            self.rig.pass(500_000);
            self.rig.turns(10);
            self.listen();
            if round > 40 && self.clients.iter().all(|client| client.has_share) {
                let generations: BTreeSet<i32> = self.clients.iter().map(|client| client.generation).collect();
                assert_eq!(generations.len(), 1, "{:?}", self.clients);
                self.check_offsets();
                return;
            }
        }
        panic!("no rest: {:?}\n{:?}", self.clients, self.rig.shard.groups);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    #[test]
    fn random_group_keeps_its_promises(
        steps in proptest::collection::vec(any_step(), 1..200), seed: u64, delay_ms in prop_oneof![Just(0u64), Just(700)]
    ) {
        let mut world = World::new(seed, delay_ms);
        for step in &steps {
            world = world.step(step);
        }
        world.settle();
    }
}
