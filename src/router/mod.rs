//! Partition → shard → core: hands requests to the shard that owns what they are about, here or on another core,
//! and brings the answers back. Answers itself what only the catalog knows, or what must be gathered.
//!
//! Every core has a router with a copy of the catalog. Sans-IO but for the mailboxes.

pub mod letter;
pub mod mailbox;
pub mod shards;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use ringmain_wire::control::{PartitionState, ShardStats, StatsReply, TopicDescription, TopicInfo};
use ringmain_wire::{ErrorCode, PartitionId, ShardId};

use crate::request::group::GroupListing;
use crate::request::queue::{Forward, QueueReply, Receive};
use crate::request::transaction::{ToCheck, TransactionAction, TransactionListing, slot_of_producer};
use crate::request::{Failure, Fetch, Now, Origin, Reply, Request, Watch};
use crate::shard::{Busy, Catalog, CatalogChange, ShardEvent};
use letter::{Answer, OwnedReply, OwnedRequest, Question};
use mailbox::Mailboxes;
use shards::Shards;

/// `Origin::connection` of requests that the router itself asks.
const ROUTER: u32 = u32::MAX;
/// `Origin::connection` of questions of a shard: `generation` is its number, `request` its ticket.
const SHARD: u32 = u32::MAX - 1;
/// Questions of other cores taken per turn, so that a turn ends.
const QUESTIONS_PER_TURN: usize = 512;
/// … and bytes of their frames, one frame excepted.
const QUESTION_BYTES_PER_TURN: usize = 1 << 20;
/// Most that a fetch from another core returns: it is copied in one step.
const FETCH_AWAY_BYTES: u32 = 256 << 10;
/// Long polls, joins and syncs at another core at a time; beyond, polls are answered soon and come again, members are
/// told to. They would use up the slots that produce requests need.
const WAITING_AWAY_MAX: usize = mailbox::SLOTS / 2;
/// Wait of a long poll beyond `WAITING_AWAY_MAX`, in ms.
const WAIT_SHORT_MS: u32 = 20;
/// Longest wait at another core, in ms: a connection that goes away leaves its slot used for so long.
const WAIT_AWAY_MAX_MS: u32 = 10_000;

/// What every core knows of the broker.
#[derive(Debug)]
pub struct Broker {
    /// How it does I/O: `uring`, `fallback`.
    pub io: &'static str,
    /// Why not io_uring, if not.
    pub io_note: String,
    /// When it was started.
    pub started: Instant,
    /// By shard: its core thread.
    pub core_of_shard: Vec<u16>,
    /// By shard: its port of the native door; 0 = the bootstrap port.
    pub shard_ports: Vec<u16>,
    /// The memory budget.
    pub memory_limit_bytes: u64,
    /// By core.
    pub gauges: Vec<CachePadded<Gauges>>,
}

/// What each core tells the others, once per turn.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Open connections.
    pub connections: AtomicU64,
    /// Bytes charged to this core's share of the budget.
    pub memory_used_bytes: AtomicU64,
}

/// An answer that has arrived at the connection's core.
#[derive(Debug)]
pub struct Delivery {
    /// Who asked.
    pub origin: Origin,
    /// Who answers; for the extents of a fetch.
    pub shard: ShardId,
    /// The answer.
    pub reply: Reply,
    /// It came from another core.
    pub moved: bool,
}

/// One core's router.
pub struct Router {
    core: u16,
    broker: Arc<Broker>,
    shards: Shards,
    catalog: Catalog,
    mail: Mailboxes<Question, Answer>,
    /// A question whose shard was busy: tried again before others are taken.
    held: Option<(Origin, ShardId, OwnedRequest)>,
    /// Questions of shards of this core that found no room; the shards bound them.
    unasked: VecDeque<(ShardId, u64, Request<'static>)>,
    gathers: HashMap<u64, Gather>,
    next_gather: u64,
    /// Answers of other cores and of the router itself.
    arrived: VecDeque<Delivery>,
    /// Shard 0's changes: cores that haven't applied them yet.
    unapplied: HashMap<u64, usize>,
    /// As of the last pump.
    now: Now,
    /// By core: long polls there, and joins and syncs, which wait for other members.
    waiting_away: Vec<HashSet<Origin>>,
    /// By connection of this core: shards of other cores whose queues may have delivered to it.
    queues_away: HashMap<(u32, u32), Vec<ShardId>>,
    /// Connections that have gone, and the shard that is to be told. Bounded by the connections that were.
    gone: VecDeque<(ShardId, u32, u32)>,
}

/// An answer in the making, with a part from each of several shards.
struct Gather {
    origin: Origin,
    parts_missing: usize,
    result: Gathered,
}

enum Gathered {
    Stats(Vec<ShardStats>),
    Description(TopicInfo, Vec<PartitionState>),
    Groups(Vec<GroupListing>),
    Transactions(Vec<TransactionListing>),
}

impl Router {
    /// `mail`: this core's end. The catalog comes by `set_catalog`.
    pub fn new(core: u16, broker: Arc<Broker>, shards: Shards, mail: Mailboxes<Question, Answer>) -> Router {
        let waiting_away = vec![HashSet::new(); mail.cores()];
        Router {
            core,
            broker,
            shards,
            catalog: Catalog::default(),
            mail,
            held: None,
            unasked: VecDeque::new(),
            gathers: HashMap::new(),
            next_gather: 0,
            arrived: VecDeque::new(),
            unapplied: HashMap::new(),
            now: Now::default(),
            waiting_away,
            queues_away: HashMap::new(),
            gone: VecDeque::new(),
        }
    }

    /// The whole catalog, once at start, after every shard of every core is open.
    pub fn set_catalog(&mut self, catalog: &Catalog, now: Now) {
        self.catalog = catalog.clone();
        self.shards.set_catalog(catalog, now);
    }

    /// The shards of this core.
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// The shards of this core.
    pub fn shards_mut(&mut self) -> &mut Shards {
        &mut self.shards
    }

    /// What every core knows.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// This core's mailboxes, for metrics: questions unanswered, letters waiting.
    pub fn mail_depth(&self) -> (usize, usize) {
        (self.mail.unanswered(), self.mail.waiting())
    }

    /// This core's copy of the catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Topics in the catalog.
    pub fn topic_count(&self) -> usize {
        self.catalog.topic_count()
    }

    /// Partitions in the catalog.
    pub fn partition_count(&self) -> usize {
        self.catalog.partition_count()
    }

    /// Takes a request of a connection of this core. `Some` = answered at once; `None` = the answer comes out of
    /// `poll_delivery`. `Busy`: nothing is kept; try again after progress.
    #[inline]
    pub fn submit(&mut self, origin: Origin, request: &Request<'_>, now: Now) -> Result<Option<Reply>, Busy> {
        let shard = match request {
            Request::Group(asked) => self.catalog.coordinator(&asked.group),
            Request::CommitOffset { consumer, partition, .. } | Request::ReadOffset { consumer, partition } => {
                if self.catalog.partition(*partition).is_none() {
                    return Ok(Some(unknown_partition(*partition)));
                }
                self.catalog.coordinator(consumer)
            }
            Request::ListGroups => return self.gather_groups(origin, now),
            Request::Transaction(asked) => {
                if let Some(partition) = self.unknown_partition_of_transaction(&asked.action) {
                    return Ok(Some(unknown_partition(partition)));
                }
                self.catalog.coordinator(&asked.transactional_id)
            }
            Request::ListTransactions => return self.gather_transactions(origin, now),
            Request::ToCheck(ask) => {
                let shards = self.broker.core_of_shard.len();
                if usize::from(ask.shard.0) >= shards {
                    let message = format!("shard {} was asked for; there are {shards}, counted from 0", ask.shard);
                    return Ok(Some(Reply::Failed(Failure::new(ErrorCode::InvalidArgument, message))));
                }
                ask.shard
            }
            Request::Coordinators { ids } => {
                return Ok(Some(Reply::Coordinators(ids.iter().map(|id| self.catalog.coordinator(id)).collect())));
            }
            Request::Produce { .. }
            | Request::Fetch(_)
            | Request::ListOffset { .. }
            | Request::DeleteBefore { .. }
            | Request::Receive(_)
            | Request::Settle(_)
            | Request::Queue(_)
            | Request::DescribeProducers { .. } => {
                let partition = request.partition().unwrap_or(PartitionId::STATE);
                match self.catalog.partition(partition) {
                    Some(entry) => entry.shard,
                    None => return Ok(Some(unknown_partition(partition))),
                }
            }
            Request::Watch(watch) => watch.shard,
            Request::InitProducer
            | Request::CreateTopic(_)
            | Request::AlterTopic(_)
            | Request::DeleteTopic { .. }
            | Request::CreateQueue(_)
            | Request::AlterQueue(_)
            | Request::DeleteQueue { .. } => ShardId(0),
            Request::Queues { names } => {
                let (queues, shard_ports) = (self.catalog.queue_infos(names.as_deref()), self.broker.shard_ports.clone());
                return Ok(Some(Reply::Queue(Box::new(QueueReply::List { queues, shard_ports }))));
            }
            Request::Metadata { topics } => return Ok(Some(self.metadata(topics.as_deref()))),
            Request::DescribeTopic { name } => return self.describe(origin, name, now),
            Request::Stats => return self.gather_stats(origin, now),
            Request::PartitionStates { .. }
            | Request::ShardStats
            | Request::ShardGroups
            | Request::ShardTransactions
            | Request::CheckTransaction(_)
            | Request::Forward(_)
            | Request::QueueIdle { .. }
            | Request::ExpireQueue { .. }
            | Request::ConnectionGone { .. }
            | Request::EndTransaction(_) => {
                return Ok(Some(Reply::Failed(Failure::new(ErrorCode::UnsupportedOp, "only the broker's own parts ask this"))));
            }
        };
        self.send(shard, origin, request, now).map(|()| None)
    }

    /// Takes what other cores and the disk have brought, and lets the shards work on it. Then `poll_delivery` has the
    /// answers; `end_turn` wakes whom they concern elsewhere.
    pub fn pump(&mut self, now: Now) {
        self.now = now;
        self.mail.attend();
        self.take_answers();
        self.take_questions(now);
        self.shards.pump(now);
        self.ask_again(now);
        self.tell_gone(now);
        while let Some((shard, event)) = self.shards.poll_event() {
            match event {
                ShardEvent::Ask { ticket, request } => self.ask(shard, ticket, request, now),
                ShardEvent::CatalogChanged { change_id, change } => self.publish(change_id, change, now),
            }
        }
    }

    /// The next answer for a connection of this core.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        loop {
            if let Some(delivery) = self.arrived.pop_front() {
                return Some(delivery);
            }
            let (shard, origin, reply) = self.shards.poll_reply()?;
            if origin.core != self.core {
                let shards = &mut self.shards;
                let reply = OwnedReply::new(reply, |data| shards.copy_frames(shard, data));
                self.mail.answer(origin.core, Answer { origin, shard, reply });
            } else if origin.connection == ROUTER {
                self.add_part(origin.request, reply);
            } else if origin.connection == SHARD {
                self.shards.answered(ShardId(origin.generation as u16), origin.request, reply, self.now);
            } else {
                return Some(Delivery { origin, shard, reply, moved: false });
            }
        }
    }

    /// Wakes the cores that were sent something.
    pub fn end_turn(&mut self) {
        self.mail.ring();
    }

    /// The core may sleep now. True = something has come meanwhile: pump again.
    pub fn listen(&self) -> bool {
        self.mail.listen()
    }

    /// The core will pump before it sleeps.
    pub fn attend(&self) {
        self.mail.attend();
    }

    /// The disk or another core has brought something.
    pub fn has_arrivals(&mut self) -> bool {
        self.shards.poll_disk() || self.mail.waiting() > 0
    }

    /// Another pump is wanted without anything coming in.
    pub fn has_backlog(&self) -> bool {
        self.held.is_some() || !self.unasked.is_empty() || !self.gone.is_empty() || self.shards.has_backlog()
    }

    /// A connection of this core has gone. Its long polls at other cores run out by themselves, because an answer
    /// that never came would keep its slot for ever; but what queues there have delivered to it comes back.
    pub fn cancel(&mut self, connection: u32, generation: u32) {
        self.shards.cancel(self.core, connection, generation, self.now);
        if let Some(shards) = self.queues_away.remove(&(connection, generation)) {
            self.gone.extend(shards.into_iter().map(|shard| (shard, connection, generation)));
            self.tell_gone(self.now);
        }
    }

    /// Tells shards of other cores about connections that have gone. Without room there it is kept.
    fn tell_gone(&mut self, now: Now) {
        for _ in 0..self.gone.len() {
            let Some((shard, connection, generation)) = self.gone.pop_front() else { break };
            let origin = Origin { core: self.core, connection: ROUTER, generation: 0, request: u64::MAX };
            if self.send(shard, origin, &Request::ConnectionGone { connection, generation }, now).is_err() {
                self.gone.push_back((shard, connection, generation));
            }
        }
    }

    /// Lets go of the shards and the disk, which finishes what it is in.
    pub fn close(&mut self) {
        self.shards = Shards::closed();
    }

    fn send(&mut self, shard: ShardId, origin: Origin, request: &Request<'_>, now: Now) -> Result<(), Busy> {
        if self.shards.owns(shard) {
            return self.shards.handle(shard, origin, request, now);
        }
        let core = self.broker.core_of_shard[usize::from(shard.0)];
        let away = &mut self.waiting_away[usize::from(core)];
        let owned = match request {
            Request::Fetch(fetch) => {
                let limit_ms = if away.len() < WAITING_AWAY_MAX { WAIT_AWAY_MAX_MS } else { WAIT_SHORT_MS };
                if fetch.max_wait_ms > 0 {
                    away.insert(origin);
                }
                let (max_bytes, min_bytes) = (fetch.max_bytes.min(FETCH_AWAY_BYTES), fetch.min_bytes.min(FETCH_AWAY_BYTES));
                OwnedRequest::Fetch(Fetch { max_wait_ms: fetch.max_wait_ms.min(limit_ms), min_bytes, max_bytes, ..*fetch })
            }
            Request::Watch(watch) => {
                let limit_ms = if away.len() < WAITING_AWAY_MAX { WAIT_AWAY_MAX_MS } else { WAIT_SHORT_MS };
                away.insert(origin);
                OwnedRequest::Watch(Arc::new(Watch { max_wait_ms: watch.max_wait_ms.min(limit_ms), ..Watch::clone(watch) }))
            }
            Request::Receive(receive) => {
                let limit_ms = if away.len() < WAITING_AWAY_MAX { WAIT_AWAY_MAX_MS } else { WAIT_SHORT_MS };
                away.insert(origin);
                let shards = self.queues_away.entry((origin.connection, origin.generation)).or_default();
                if !shards.contains(&shard) {
                    shards.push(shard);
                }
                let (max_wait_ms, max_bytes) = (receive.max_wait_ms.min(limit_ms), receive.max_bytes.min(FETCH_AWAY_BYTES));
                OwnedRequest::Receive(Receive { max_wait_ms, max_bytes, ..*receive })
            }
            Request::ToCheck(ask) => {
                let limit_ms = if away.len() < WAITING_AWAY_MAX { WAIT_AWAY_MAX_MS } else { WAIT_SHORT_MS };
                away.insert(origin);
                OwnedRequest::ToCheck(Arc::new(ToCheck { max_wait_ms: ask.max_wait_ms.min(limit_ms), ..ToCheck::clone(ask) }))
            }
            Request::Group(asked) if asked.action.waits_for_others() => {
                if away.len() >= WAITING_AWAY_MAX {
                    let reply = Reply::Failed(ErrorCode::Overloaded.into());
                    self.arrived.push_back(Delivery { origin, shard, reply, moved: true });
                    return Ok(());
                }
                away.insert(origin);
                OwnedRequest::Group(asked.clone())
            }
            // A copy is made even if the ring turns out to be full; that is rare, and the connection then stops reading.
            request => OwnedRequest::copy(request),
        };
        self.mail.ask(core, Question::Request { origin, shard, request: owned }).map_err(|_| {
            away.remove(&origin);
            Busy
        })
    }

    /// Hands a shard's question to the shard that serves it. Without room there it is kept.
    fn ask(&mut self, asker: ShardId, ticket: u64, request: Request<'static>, now: Now) {
        let request = match request {
            Request::Forward(forward) if forward.partition == PartitionId::STATE => match self.addressed(&forward) {
                Some(forward) => Request::Forward(Arc::new(forward)),
                None => {
                    let message = format!("no topic '{}' to send a message to", forward.topic);
                    let reply = Reply::Failed(Failure::new(ErrorCode::UnknownTopic, message));
                    return self.shards.answered(asker, ticket, reply, now);
                }
            },
            request => request,
        };
        let target = match &request {
            Request::Group(asked) => Some(self.catalog.coordinator(&asked.group)),
            Request::CheckTransaction(check) => {
                slot_of_producer(check.producer.id).and_then(|slot| self.catalog.slots().get(slot).copied())
            }
            Request::InitProducer | Request::ExpireQueue { .. } => Some(ShardId(0)),
            request => request.partition().and_then(|partition| self.catalog.partition(partition)).map(|entry| entry.shard),
        };
        let Some(target) = target else {
            return self.shards.answered(asker, ticket, unknown_partition(request.partition().unwrap_or(PartitionId::STATE)), now);
        };
        let origin = Origin { core: self.core, connection: SHARD, generation: u32::from(asker.0), request: ticket };
        if self.send(target, origin, &request, now).is_err() {
            self.unasked.push_back((asker, ticket, request));
        }
    }

    fn addressed(&self, forward: &Forward) -> Option<Forward> {
        let partitions = &self.catalog.topic(&forward.topic)?.partitions;
        let to = partitions.get(forward.spread as usize % partitions.len().max(1))?;
        let from = self.catalog.partition(forward.from.0)?;
        Some(forward.addressed(PartitionId(to.partition), &self.catalog.topic_by_id(from.topic)?.name, from.index))
    }

    fn ask_again(&mut self, now: Now) {
        for _ in 0..self.unasked.len() {
            let Some((asker, ticket, request)) = self.unasked.pop_front() else { return };
            self.ask(asker, ticket, request, now);
        }
    }

    fn take_answers(&mut self) {
        while let Some((core, Answer { origin, shard, reply })) = self.mail.poll_answer() {
            self.waiting_away[usize::from(core)].remove(&origin);
            if origin.connection == ROUTER {
                self.add_part(origin.request, reply.into_reply());
            } else if origin.connection == SHARD {
                self.shards.answered(ShardId(origin.generation as u16), origin.request, reply.into_reply(), self.now);
            } else {
                self.arrived.push_back(Delivery { origin, shard, reply: reply.into_reply(), moved: true });
            }
        }
    }

    fn take_questions(&mut self, now: Now) {
        let mut bytes = 0;
        for _ in 0..QUESTIONS_PER_TURN {
            if bytes >= QUESTION_BYTES_PER_TURN {
                return;
            }
            let (origin, shard, request) = match self.held.take() {
                Some(held) => held,
                None => match self.mail.poll_question() {
                    None => return,
                    Some((_, Question::Request { origin, shard, request })) => (origin, shard, request),
                    Some((from, Question::Catalog { change_id, change })) => {
                        self.apply(&change, now);
                        self.mail.tell(from, Question::CatalogApplied { change_id });
                        continue;
                    }
                    Some((_, Question::CatalogApplied { change_id })) => {
                        self.applied(change_id);
                        continue;
                    }
                },
            };
            if self.shards.handle(shard, origin, &request.borrow(), now).is_err() {
                self.held = Some((origin, shard, request));
                return;
            }
            if let OwnedRequest::Produce { frame } = &request {
                bytes += frame.len();
            }
        }
    }

    /// Shard 0's change is durable: it becomes visible everywhere, then its answer goes out.
    fn publish(&mut self, change_id: u64, change: CatalogChange, now: Now) {
        self.apply(&change, now);
        let others = self.mail.cores() - 1;
        self.unapplied.insert(change_id, others + 1);
        let change = Arc::new(change);
        for core in (0..self.mail.cores() as u16).filter(|core| *core != self.core) {
            self.mail.tell(core, Question::Catalog { change_id, change: change.clone() });
        }
        self.applied(change_id);
    }

    fn apply(&mut self, change: &CatalogChange, now: Now) {
        self.catalog.apply(change);
        self.shards.apply_catalog(change, now);
    }

    fn applied(&mut self, change_id: u64) {
        let Some(missing) = self.unapplied.get_mut(&change_id) else { return };
        *missing -= 1;
        if *missing == 0 {
            self.unapplied.remove(&change_id);
            self.shards.catalog_acknowledged(change_id);
        }
    }

    fn metadata(&self, names: Option<&[String]>) -> Reply {
        let topics = match names {
            None => self.catalog.topics().map(|topic| topic.info()).collect(),
            Some(names) => names.iter().filter_map(|name| self.catalog.topic(name)).map(|topic| topic.info()).collect(),
        };
        Reply::Metadata { topics, shard_ports: self.broker.shard_ports.clone() }
    }

    fn describe(&mut self, origin: Origin, name: &str, now: Now) -> Result<Option<Reply>, Busy> {
        let Some(topic) = self.catalog.topic(name) else {
            return Ok(Some(Reply::Failed(Failure::new(ErrorCode::UnknownTopic, format!("no topic '{}'", name.escape_debug())))));
        };
        let info = topic.info();
        let mut by_shard: HashMap<u16, Vec<PartitionId>> = HashMap::new();
        for place in &info.partitions {
            by_shard.entry(place.shard).or_default().push(PartitionId(place.partition));
        }
        let parts = by_shard.into_iter().map(|(shard, partitions)| (ShardId(shard), Request::PartitionStates { partitions })).collect();
        self.gather(origin, parts, Gathered::Description(info, Vec::new()), now)
    }

    fn gather_stats(&mut self, origin: Origin, now: Now) -> Result<Option<Reply>, Busy> {
        let parts = (0..self.broker.core_of_shard.len() as u16).map(|shard| (ShardId(shard), Request::ShardStats)).collect();
        self.gather(origin, parts, Gathered::Stats(Vec::new()), now)
    }

    fn gather_groups(&mut self, origin: Origin, now: Now) -> Result<Option<Reply>, Busy> {
        let parts = self.coordinators().into_iter().map(|shard| (shard, Request::ShardGroups)).collect();
        self.gather(origin, parts, Gathered::Groups(Vec::new()), now)
    }

    fn gather_transactions(&mut self, origin: Origin, now: Now) -> Result<Option<Reply>, Busy> {
        let parts = self.coordinators().into_iter().map(|shard| (shard, Request::ShardTransactions)).collect();
        self.gather(origin, parts, Gathered::Transactions(Vec::new()), now)
    }

    /// The shards that have slots.
    fn coordinators(&self) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> = self.catalog.slots().to_vec();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    fn unknown_partition_of_transaction(&self, action: &TransactionAction) -> Option<PartitionId> {
        let TransactionAction::AddPartitions { partitions, .. } = action else { return None };
        partitions.iter().copied().find(|partition| self.catalog.partition(*partition).is_none())
    }

    /// Asks each shard for its part. A shard that can't take the question now is left out of the answer.
    fn gather(&mut self, origin: Origin, parts: Vec<(ShardId, Request<'_>)>, result: Gathered, now: Now) -> Result<Option<Reply>, Busy> {
        let number = self.next_gather;
        self.next_gather += 1;
        let asker = Origin { core: self.core, connection: ROUTER, generation: 0, request: number };
        let asked = parts.iter().filter(|(shard, request)| self.send(*shard, asker, request, now).is_ok()).count();
        if asked == 0 {
            return Err(Busy);
        }
        self.gathers.insert(number, Gather { origin, parts_missing: asked, result });
        Ok(None)
    }

    fn add_part(&mut self, number: u64, reply: Reply) {
        let Some(gather) = self.gathers.get_mut(&number) else { return };
        match (reply, &mut gather.result) {
            (Reply::ShardStats(stats), Gathered::Stats(all)) => {
                let core = self.broker.core_of_shard.get(usize::from(stats.shard)).copied().unwrap_or_default();
                all.push(ShardStats { core, ..*stats });
            }
            (Reply::PartitionStates(states), Gathered::Description(_, all)) => all.extend(states),
            (Reply::Groups(groups), Gathered::Groups(all)) => all.extend(groups),
            (Reply::Transactions(transactions), Gathered::Transactions(all)) => all.extend(transactions),
            // A shard that can't tell is missing from the answer.
            _ => {}
        }
        gather.parts_missing -= 1;
        if gather.parts_missing == 0
            && let Some(Gather { origin, result, .. }) = self.gathers.remove(&number)
        {
            let reply = match result {
                Gathered::Stats(shards) => Reply::Stats(Box::new(self.stats(shards))),
                Gathered::Description(info, states) => Reply::Description(Box::new(description(info, states))),
                Gathered::Transactions(mut transactions) => {
                    transactions.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
                    Reply::Transactions(transactions)
                }
                Gathered::Groups(mut groups) => {
                    groups.sort_by(|a, b| a.group.cmp(&b.group));
                    Reply::Groups(groups)
                }
            };
            self.arrived.push_back(Delivery { origin, shard: ShardId(0), reply, moved: false });
        }
    }

    fn stats(&self, mut shards: Vec<ShardStats>) -> StatsReply {
        shards.sort_by_key(|stats| stats.shard);
        let sum = |gauge: fn(&Gauges) -> &AtomicU64| self.broker.gauges.iter().map(|gauges| gauge(gauges).load(Ordering::Relaxed)).sum();
        StatsReply {
            broker_version: env!("CARGO_PKG_VERSION").into(),
            io: self.broker.io.into(),
            io_note: self.broker.io_note.clone(),
            uptime_seconds: self.broker.started.elapsed().as_secs(),
            shards,
            connections: sum(|gauges| &gauges.connections),
            topics: self.catalog.topic_count() as u64,
            partitions: self.catalog.partition_count() as u64,
            memory_used_bytes: sum(|gauges| &gauges.memory_used_bytes),
            memory_limit_bytes: self.broker.memory_limit_bytes,
        }
    }
}

/// In order of index, as the catalog has them.
fn description(info: TopicInfo, states: Vec<PartitionState>) -> TopicDescription {
    let mut by_number: HashMap<u32, PartitionState> = states.into_iter().map(|state| (state.partition, state)).collect();
    let partitions = info.partitions.iter().filter_map(|place| by_number.remove(&place.partition)).collect();
    TopicDescription { info, partitions }
}

fn unknown_partition(partition: PartitionId) -> Reply {
    Reply::Failed(Failure::new(ErrorCode::UnknownPartition, format!("no partition {partition}; refresh the metadata")))
}
