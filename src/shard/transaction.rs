//! The coordinator of transactions: who takes part, what was decided, who has heard of it.
//!
//! ```text
//!            Init            AddPartitions, AddGroup, Check       End, timeout, Init
//! (nothing) ──────▶ Empty ─────────────▶ Ongoing ─────────────────▶ Committing ──▶ Committed ─┐
//!                     ▲                    ▲                        or Aborting    or Aborted │
//!                     └── Init ────────────┴──────────────────────────────────────────────────┘
//! ```
//! Each arrow is a state record. A step is answered when its record is durable, and until then the id takes no
//! other step. A decision is told to every participant until it has answered, across restarts; then the last arrow
//! is logged. A participant that hears twice does nothing the second time: no record of a new transaction can be
//! anywhere before that last arrow is in this log.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use ringmain_wire::{ErrorCode, PartitionId, ProducerId};

use super::queue::idle::IdleQueue;
use super::queue::serve::Leaving;
use super::state_record::{StateRecord, TransactionCheckBackPiece, TransactionPiece};
use super::{Busy, Deferred, Shard, catalog};
use crate::log::AppendError;
use crate::request::group::{Commit, GroupAction, GroupReply, GroupRequest};
use crate::request::transaction::{
    ProducerKey, ToCheck, TransactionAction, TransactionCheck, TransactionDescription, TransactionListing, TransactionMarker,
    TransactionPhase, TransactionReply, TransactionRequest, transactional_producer,
};
use crate::request::{Failure, Now, Origin, Reply, Request};

/// Longest transactional id.
pub const TRANSACTIONAL_ID_MAX_BYTES: usize = 1024;
/// Longest timeout that a producer may ask for, in ms: Kafka's default.
pub const TIMEOUT_MAX_MS: u32 = 900_000;
/// Partitions of one transaction.
const PARTITIONS_MAX: usize = 10_000;
/// Groups of one transaction.
const GROUPS_MAX: usize = 100;
/// The last epoch of a producer id: only a fencing abort uses it, then comes a new id.
const EPOCH_LAST: u16 = i16::MAX as u16;
/// An id that nobody uses for so long is forgotten.
const EXPIRES_AFTER_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Questions to other shards that clients wait for; more get `Overloaded`.
const ASKS_MAX: usize = 512;
/// Participants being told at a time; the others follow as answers come.
const TOLD_AT_ONCE: usize = 256;
/// A participant that couldn't be told is told again after this time.
const TELL_AGAIN_US: u64 = 200_000;
/// Whoever waits for everybody to have heard is answered after this time anyway.
const WAIT_US: u64 = 1_000_000;
/// Something that the log had no room for is tried again after this time.
const RETRY_US: u64 = 2_000;
/// Deadlines seen to in one pump; the rest follow in the next.
const DEADLINES_PER_PUMP: usize = 64;
/// Requests that wait for transactions to check; more get `Overloaded`.
const CHECK_WAITS_MAX: usize = 1_024;
/// Charged for an id beside its name (which is kept three times, and once more while somebody is to check it), per partition, per group
/// beside its name.
const ENTRY_BYTES: usize = 320;
const PARTITION_BYTES: usize = 24;
const GROUP_BYTES: usize = 64;

/// A question to another shard, and what its answer is for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A participant's: may this producer write here?
    Check { partition: PartitionId, producer: ProducerKey },
    /// A number for the id of a new producer, to go on with the request.
    Number { origin: Origin, request: Arc<TransactionRequest> },
    /// Offsets that a group keeps until the transaction is decided.
    Offsets { origin: Origin, id: Box<str> },
    /// The decision.
    Tell { id: Box<str>, participant: Participant },
    /// A message of a queue that goes to another topic.
    Forward(Leaving),
    /// Does anybody use the queue elsewhere; and that it is to go.
    Idle(IdleQueue),
}

/// Who takes part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Participant {
    /// It has records of the transaction.
    Partition(PartitionId),
    /// It keeps offsets for it.
    Group(Box<str>),
}

/// What happens when a step is durable.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The producer gets its epoch.
    Init { origin: Origin },
    /// So many participants have joined.
    Join { origin: Origin, count: usize },
    /// Everybody is to be told.
    Decide,
}

/// Whoever waits until everybody has heard.
#[derive(Clone, Debug)]
enum Waiter {
    End { origin: Origin, renews: bool },
    Init { origin: Origin, request: Arc<TransactionRequest> },
}

/// What is logged of an id's transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    producer: ProducerKey,
    /// Who became `producer` by asking for the next epoch, or by missing the timeout: asking again gets the same answer.
    previous: Option<ProducerKey>,
    timeout_ms: u32,
    phase: TransactionPhase,
    begun_ms: i64,
    changed_ms: i64,
}

/// The transactions of one id.
#[derive(Clone, Debug)]
struct Entry {
    head: Head,
    participants: BTreeSet<Participant>,
    /// Of these, those whose record isn't durable yet, in order of the records.
    joining: Vec<Participant>,
    /// Steps that aren't durable yet: one, or several joins.
    logging: usize,
    /// Offsets on their way to a group.
    relays: u32,
    /// To be told the decision: not yet, being told, to be told again.
    untold: Vec<Participant>,
    told: usize,
    unheard: Vec<Participant>,
    waiter: Option<(Waiter, u64)>,
    /// Who is asked about it while it is open.
    check: Option<Check>,
    /// It is offered then.
    check_us: u64,
    /// … and is, since then.
    offered_us: Option<u64>,
    /// When the open transaction has lasted too long, the untold are told again, or the idle id is forgotten.
    due_us: u64,
    /// As in `Coordinator::deadlines`.
    deadline_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    group: Arc<str>,
    after_ms: u32,
}

/// Somebody who waits for transactions to check.
#[derive(Debug)]
struct CheckWaiter {
    origin: Origin,
    group: Box<str>,
    max: usize,
    deadline_us: u64,
}

/// Every transactional id of a shard.
#[derive(Debug, Default)]
pub struct Coordinator {
    entries: BTreeMap<Box<str>, Entry>,
    by_producer: HashMap<i64, Box<str>>,
    deadlines: BTreeSet<(u64, Box<str>)>,
    /// Decided ones that wait for others to be told.
    queue: VecDeque<Box<str>>,
    told: usize,
    charged_bytes: usize,
    /// To be checked: group, since when, id.
    offered: BTreeSet<(Arc<str>, u64, Box<str>)>,
    /// In the order they came.
    check_waiters: VecDeque<CheckWaiter>,
    /// Read from the log before its id.
    replayed_checks: HashMap<Box<str>, Option<Check>>,
}

impl Head {
    fn is_idle(&self) -> bool {
        matches!(self.phase, TransactionPhase::Empty | TransactionPhase::Committed | TransactionPhase::Aborted)
    }

    fn is_decided(&self) -> bool {
        matches!(self.phase, TransactionPhase::Committing | TransactionPhase::Aborting)
    }
}

impl Entry {
    fn new(head: Head) -> Entry {
        Entry {
            head,
            participants: BTreeSet::new(),
            joining: Vec::new(),
            logging: 0,
            relays: 0,
            untold: Vec::new(),
            told: 0,
            unheard: Vec::new(),
            waiter: None,
            check: None,
            check_us: u64::MAX,
            offered_us: None,
            due_us: u64::MAX,
            deadline_us: u64::MAX,
        }
    }

    /// Another step can't be taken now.
    fn is_between_steps(&self) -> bool {
        self.logging > 0 || self.relays > 0 || self.waiter.is_some()
    }

    fn next_check_us(&self, now: Now) -> u64 {
        self.check.as_ref().map_or(u64::MAX, |check| now.monotonic_us + u64::from(check.after_ms) * 1_000)
    }

    /// Another participant can't join now: while others join it can.
    fn is_closed_to_joins(&self) -> bool {
        let is_joining = self.head.phase == TransactionPhase::Ongoing;
        self.waiter.is_some() || self.head.is_decided() || (self.logging > 0 && !is_joining)
    }

    fn partitions(&self) -> Vec<PartitionId> {
        let partition = |participant: &Participant| match participant {
            Participant::Partition(partition) => Some(*partition),
            Participant::Group(_) => None,
        };
        self.participants.iter().filter_map(partition).collect()
    }

    fn groups(&self) -> Vec<String> {
        let group = |participant: &Participant| match participant {
            Participant::Partition(_) => None,
            Participant::Group(group) => Some(group.to_string()),
        };
        self.participants.iter().filter_map(group).collect()
    }

    fn has(&self, participant: &Participant) -> bool {
        self.participants.contains(participant) && !self.joining.contains(participant)
    }

    fn listing(&self, id: &str) -> TransactionListing {
        let Head { producer, phase, begun_ms, .. } = self.head;
        let begun_ms = if self.head.is_idle() { -1 } else { begun_ms };
        TransactionListing { transactional_id: id.to_owned(), producer, phase, begun_ms }
    }

    fn piece(&self, id: &str) -> TransactionPiece {
        piece(id, &self.head, &self.participants)
    }
}

impl Coordinator {
    /// When the next pump has something to do.
    pub fn deadline_us(&self) -> Option<u64> {
        let waits = self.check_waiters.iter().map(|waiter| waiter.deadline_us);
        self.deadlines.first().map(|(at, _)| *at).into_iter().chain(waits).min()
    }

    /// From the log: who is asked about the transactions of an id, which comes next.
    pub fn replay_check(&mut self, piece: TransactionCheckBackPiece) {
        let check = (!piece.group.is_empty()).then(|| Check { group: piece.group.into(), after_ms: piece.after_ms });
        self.replayed_checks.insert(piece.transactional_id.into(), check);
    }

    /// As a checkpoint has it; `None` = nobody is asked.
    pub fn check_piece(&self, id: &str) -> Option<TransactionCheckBackPiece> {
        self.entries.get(id)?.check.as_ref().map(|check| check_piece(id, Some(check)))
    }

    /// A connection has gone that may have waited for transactions to check.
    pub fn cancel_checks(&mut self, core: u16, connection: u32, generation: u32) {
        let is_gone = |origin: &Origin| (origin.core, origin.connection, origin.generation) == (core, connection, generation);
        self.check_waiters.retain(|waiter| !is_gone(&waiter.origin));
    }

    /// Nobody is to check it any more, or somebody does.
    fn withdraw(&mut self, id: &str) {
        if let Some(entry) = self.entries.get_mut(id)
            && let (Some(check), Some(since_us)) = (&entry.check, entry.offered_us.take())
        {
            self.offered.remove(&(check.group.clone(), since_us, id.into()));
        }
    }

    /// The ids after `after`, in order, as a checkpoint has them.
    pub fn pieces_after(&self, after: Option<&str>) -> impl Iterator<Item = TransactionPiece> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range::<str, _>((from, Bound::Unbounded)).map(|(id, entry)| entry.piece(id))
    }

    /// From the log: a step.
    pub fn replay(&mut self, piece: TransactionPiece) {
        let (head, joined) = opened(&piece);
        self.by_producer.insert(head.producer.id.0, piece.transactional_id.as_str().into());
        let entry = self.entries.entry(piece.transactional_id.into()).or_insert_with(|| Entry::new(head.clone()));
        if entry.head.producer.id != head.producer.id {
            self.by_producer.remove(&entry.head.producer.id.0);
        }
        entry.head = head;
        if entry.head.is_idle() {
            entry.participants.clear();
        }
        entry.participants.extend(joined);
    }

    /// From a checkpoint: the whole of it.
    pub fn restore(&mut self, piece: TransactionPiece) {
        if let Some(entry) = self.entries.get_mut(piece.transactional_id.as_str()) {
            entry.participants.clear();
        }
        self.replay(piece);
    }

    /// From the log: forgotten.
    pub fn forget(&mut self, id: &str) {
        self.withdraw(id);
        self.replayed_checks.remove(id);
        if let Some(entry) = self.entries.remove(id) {
            self.by_producer.remove(&entry.head.producer.id.0);
            self.deadlines.remove(&(entry.deadline_us, id.into()));
            self.charged_bytes = self.charged_bytes.saturating_sub(charge(id, &entry));
        }
    }

    /// After the last frame of the log.
    pub fn finish_replay(&mut self) {
        for (id, check) in std::mem::take(&mut self.replayed_checks) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.check = check;
            }
        }
        self.charged_bytes = self.entries.iter().map(|(id, entry)| charge(id, entry)).sum();
    }

    /// Files the entry's next deadline.
    fn schedule(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let next_us = entry.waiter.as_ref().map_or(entry.due_us, |(_, until_us)| entry.due_us.min(*until_us)).min(entry.check_us);
        if next_us == entry.deadline_us {
            return;
        }
        let old = std::mem::replace(&mut entry.deadline_us, next_us);
        self.deadlines.remove(&(old, id.into()));
        if next_us < u64::MAX {
            self.deadlines.insert((next_us, id.into()));
        }
    }

    fn list(&self) -> Vec<TransactionListing> {
        self.entries.iter().map(|(id, entry)| entry.listing(id)).collect()
    }

    /// The entry of `id` if it is this producer's, for a step of it.
    fn owned(&self, id: &str, producer: ProducerKey) -> Result<&Entry, Failure> {
        let entry = self.entries.get(id).ok_or(ErrorCode::ProducerMismatch)?;
        if entry.head.producer.id != producer.id {
            return Err(ErrorCode::ProducerMismatch.into());
        }
        if entry.head.producer.epoch != producer.epoch {
            return Err(ErrorCode::ProducerFenced.into());
        }
        Ok(entry)
    }

    /// The producer's epoch has ended, and nobody else has its id.
    fn is_over(&self, id: &str, producer: ProducerKey) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.head.previous == Some(producer))
    }

    fn check(&self, check: &TransactionCheck) -> Result<(), Failure> {
        let id = self.by_producer.get(&check.producer.id.0).ok_or(ErrorCode::ProducerMismatch)?;
        let entry = self.entries.get(id).ok_or(ErrorCode::ProducerMismatch)?;
        if entry.head.producer.epoch != check.producer.epoch {
            return Err(ErrorCode::StaleProducerEpoch.into());
        }
        if entry.head.phase != TransactionPhase::Ongoing {
            return Err(Failure::new(ErrorCode::InvalidTransactionState, "the producer has no open transaction"));
        }
        if !entry.has(&Participant::Partition(check.partition)) {
            let message = format!("partition {} was not added to the transaction", check.partition);
            return Err(Failure::new(ErrorCode::InvalidTransactionState, message));
        }
        Ok(())
    }
}

impl Shard {
    /// A request about the transactions of one id.
    pub(super) fn transaction_request(&mut self, origin: Origin, request: &Arc<TransactionRequest>, now: Now) -> Result<(), Busy> {
        let id = request.transactional_id.as_str();
        if let TransactionAction::Describe = request.action {
            self.describe_transaction(origin, id);
            return Ok(());
        }
        if let Some(failure) = self.refusal().or_else(|| bad_id(id)) {
            self.fail(origin, failure);
            return Ok(());
        }
        let result = match &request.action {
            TransactionAction::Init { .. } => self.init_transactional(origin, request, None, now),
            TransactionAction::AddPartitions { producer, partitions } => {
                let joining = partitions.iter().map(|partition| Participant::Partition(*partition)).collect();
                self.join_transaction(origin, id, *producer, joining, now)
            }
            TransactionAction::AddGroup { producer, group } => {
                self.join_transaction(origin, id, *producer, vec![Participant::Group(group.as_str().into())], now)
            }
            TransactionAction::CommitOffsets { producer, group, commit } => {
                self.relay_offsets(origin, id, *producer, group, commit).map_err(Refused::Failure)
            }
            TransactionAction::End { producer, commit, renews } => self.end_transaction(origin, id, *producer, *commit, *renews, now),
            TransactionAction::Describe => Ok(()),
        };
        match result {
            Ok(()) => Ok(()),
            Err(Refused::Failure(failure)) => {
                self.fail(origin, failure);
                Ok(())
            }
            Err(Refused::Append(error)) => self.append_failed(origin, error),
        }
    }

    /// Everything that is coordinated here.
    pub(super) fn list_transactions(&mut self, origin: Origin) {
        let list = self.coordinator.list();
        self.reply(origin, Reply::Transactions(list));
    }

    /// A partition's question: may this producer write there? If the producer leaves that to the broker, the partition joins
    /// the transaction first, and begins it if need be: every epoch of such a producer is one transaction, so what comes late
    /// begins none.
    pub(super) fn check_transaction(&mut self, origin: Origin, check: &TransactionCheck, now: Now) -> Result<(), Busy> {
        let id = self.coordinator.by_producer.get(&check.producer.id.0).cloned();
        let result = match (self.refusal(), id) {
            (Some(failure), _) => Err(Refused::Failure(failure)),
            (None, Some(id)) if check.joins && self.coordinator.is_over(&id, check.producer) => {
                let message = "this transaction is over: ended, or aborted after its timeout";
                Err(Failure::new(ErrorCode::InvalidTransactionState, message).into())
            }
            (None, Some(id)) if check.joins => {
                self.join_transaction(origin, &id, check.producer, vec![Participant::Partition(check.partition)], now)
            }
            (None, _) => self.coordinator.check(check).map(|()| self.transaction_done(origin)).map_err(Refused::Failure),
        };
        match result {
            Ok(()) => Ok(()),
            Err(Refused::Failure(failure)) => {
                self.fail(origin, failure);
                Ok(())
            }
            Err(Refused::Append(error)) => self.append_failed(origin, error),
        }
    }

    fn describe_transaction(&mut self, origin: Origin, id: &str) {
        let Some(entry) = self.coordinator.entries.get(id) else {
            return self.fail(origin, ErrorCode::TransactionNotFound.into());
        };
        let description = TransactionDescription {
            listing: entry.listing(id),
            timeout_ms: entry.head.timeout_ms,
            partitions: entry.partitions(),
            groups: entry.groups(),
        };
        self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Description(description))));
    }

    /// `number`: for a new producer id, once shard 0 has given it.
    fn init_transactional(
        &mut self,
        origin: Origin,
        request: &Arc<TransactionRequest>,
        number: Option<i64>,
        now: Now,
    ) -> Result<(), Refused> {
        let TransactionAction::Init { timeout_ms, ref check, current } = request.action else { return Ok(()) };
        let check = check.as_ref().map(|check| Check { group: check.group.as_str().into(), after_ms: check.after_ms });
        let id = request.transactional_id.as_str();
        if !(1..=TIMEOUT_MAX_MS).contains(&timeout_ms) {
            return Err(ErrorCode::InvalidTransactionTimeout.into());
        }
        let Some(entry) = self.coordinator.entries.get_mut(id) else {
            let Some(number) = number else { return self.ask_number(origin, request) };
            return self.create_transactional(origin, id, timeout_ms, check, number, now);
        };
        let is_repeated = current.is_some() && current == entry.head.previous;
        if current.is_some_and(|current| current != entry.head.producer) && !is_repeated {
            return Err(ErrorCode::ProducerFenced.into());
        }
        if entry.is_between_steps() {
            return Err(ErrorCode::ConcurrentTransactions.into());
        }
        if !entry.head.is_idle() {
            if entry.head.phase == TransactionPhase::Ongoing {
                if is_repeated {
                    return Err(ErrorCode::ProducerFenced.into());
                }
                self.decide(id, false, true, now)?;
            }
            self.wait_for_end(id, Waiter::Init { origin, request: request.clone() }, now);
            return Ok(());
        }
        if is_repeated && entry.head.producer.epoch < EPOCH_LAST {
            let producer = entry.head.producer;
            self.set_check(id, check, now)?;
            // Behind the record, if there is one.
            if self.last_sequence > self.flushed {
                let answer = Box::new(Reply::Transaction(Box::new(TransactionReply::Producer(producer))));
                self.deferred.push_back((self.last_sequence, Deferred::Answer { origin, answer }));
            } else {
                self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Producer(producer))));
            }
            return Ok(());
        }
        let producer = if entry.head.producer.epoch + 1 < EPOCH_LAST {
            ProducerKey { epoch: entry.head.producer.epoch + 1, ..entry.head.producer }
        } else {
            let Some(number) = number else { return self.ask_number(origin, request) };
            new_producer(id, number)?
        };
        let head = Head { producer, previous: current, timeout_ms, phase: TransactionPhase::Empty, begun_ms: -1, changed_ms: now.wall_ms };
        self.set_check(id, check, now)?;
        self.log_step(id, head, Vec::new(), Some(Step::Init { origin }), now)?;
        Ok(())
    }

    /// Who is asked about the id's transactions from now on. Logged before the step that it belongs to.
    fn set_check(&mut self, id: &str, check: Option<Check>, now: Now) -> Result<(), Refused> {
        let Some(entry) = self.coordinator.entries.get(id).filter(|entry| entry.check != check) else { return Ok(()) };
        let before = check_bytes(id, entry.check.as_ref());
        self.charge_transaction(check_bytes(id, check.as_ref()))?;
        let record = StateRecord::TransactionCheckBack(Box::new(check_piece(id, check.as_ref())));
        if let Err(error) = self.log_state(&record, None, now) {
            self.coordinator.charged_bytes -= check_bytes(id, check.as_ref());
            return Err(error.into());
        }
        self.coordinator.charged_bytes -= before;
        self.coordinator.withdraw(id);
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.check = check;
        }
        Ok(())
    }

    fn create_transactional(
        &mut self,
        origin: Origin,
        id: &str,
        timeout_ms: u32,
        check: Option<Check>,
        number: i64,
        now: Now,
    ) -> Result<(), Refused> {
        let head = Head {
            producer: new_producer(id, number)?,
            previous: None,
            timeout_ms,
            phase: TransactionPhase::Empty,
            begun_ms: -1,
            changed_ms: now.wall_ms,
        };
        let entry = Entry::new(head.clone());
        self.charge_transaction(charge(id, &entry))?;
        self.coordinator.entries.insert(id.into(), entry);
        let logged = self.set_check(id, check, now);
        let step = Some(Step::Init { origin });
        let logged = logged.and_then(|()| self.log_step(id, head, Vec::new(), step, now).map_err(Refused::Append));
        if logged.is_err() {
            self.coordinator.forget(id);
        }
        logged
    }

    /// Producer ids come from shard 0; the request goes on with the answer.
    fn ask_number(&mut self, origin: Origin, request: &Arc<TransactionRequest>) -> Result<(), Refused> {
        if self.asks.len() >= ASKS_MAX {
            return Err(ErrorCode::Overloaded.into());
        }
        self.ask(Asked::Number { origin, request: request.clone() }, Request::InitProducer);
        Ok(())
    }

    fn join_transaction(
        &mut self,
        origin: Origin,
        id: &str,
        producer: ProducerKey,
        joining: Vec<Participant>,
        now: Now,
    ) -> Result<(), Refused> {
        let entry = self.coordinator.owned(id, producer)?;
        if entry.is_closed_to_joins() {
            return Err(ErrorCode::ConcurrentTransactions.into());
        }
        if producer.epoch >= EPOCH_LAST {
            let message = "the epochs of this producer are used up: initialize it again";
            return Err(Failure::new(ErrorCode::InvalidTransactionState, message).into());
        }
        let mut new: BTreeSet<Participant> = joining.into_iter().collect();
        // What isn't durable yet is logged once more, rather than remembered who waits for it.
        new.retain(|participant| !entry.has(participant));
        let is_ongoing = entry.head.phase == TransactionPhase::Ongoing;
        if new.is_empty() && is_ongoing {
            self.transaction_done(origin);
            return Ok(());
        }
        let added: Vec<&Participant> = new.iter().filter(|participant| !entry.participants.contains(participant)).collect();
        let bytes = added.iter().map(|participant| participant_bytes(participant)).sum();
        let known = entry.participants.iter().chain(added.iter().copied());
        let groups = known.filter(|participant| matches!(participant, Participant::Group(_))).count();
        let all = entry.participants.len() + added.len();
        if groups > GROUPS_MAX || all - groups > PARTITIONS_MAX {
            let message = format!("a transaction takes up to {PARTITIONS_MAX} partitions and {GROUPS_MAX} groups");
            return Err(Failure::new(ErrorCode::LimitExceeded, message).into());
        }
        let mut head = Head { phase: TransactionPhase::Ongoing, changed_ms: now.wall_ms, ..entry.head.clone() };
        if !is_ongoing {
            head.begun_ms = now.wall_ms;
        }
        self.charge_transaction(bytes)?;
        let timeout_us = u64::from(head.timeout_ms) * 1000;
        let new: Vec<Participant> = new.into_iter().collect();
        let step = Step::Join { origin, count: new.len() };
        if let Err(error) = self.log_step(id, head, new, Some(step), now) {
            self.coordinator.charged_bytes -= bytes;
            return Err(error.into());
        }
        if let Some(entry) = self.coordinator.entries.get_mut(id)
            && !is_ongoing
        {
            entry.due_us = now.monotonic_us + timeout_us;
            entry.check_us = entry.next_check_us(now);
        }
        self.coordinator.schedule(id);
        Ok(())
    }

    /// The group keeps the offsets until the decision, which waits until they have arrived.
    fn relay_offsets(&mut self, origin: Origin, id: &str, producer: ProducerKey, group: &str, commit: &Commit) -> Result<(), Failure> {
        let entry = self.coordinator.owned(id, producer)?;
        if entry.head.phase != TransactionPhase::Ongoing || !entry.participants.contains(&Participant::Group(group.into())) {
            let message = "offsets of a group that was not added to an open transaction";
            return Err(Failure::new(ErrorCode::InvalidTransactionState, message));
        }
        if entry.logging > 0 {
            return Err(ErrorCode::ConcurrentTransactions.into());
        }
        if self.asks.len() >= ASKS_MAX {
            return Err(ErrorCode::Overloaded.into());
        }
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.relays += 1;
        }
        let commit = Commit { transaction: Some((producer.id, producer.epoch)), ..commit.clone() };
        let request = GroupRequest { group: group.to_owned(), action: GroupAction::Commit(commit) };
        self.ask(Asked::Offsets { origin, id: id.into() }, Request::Group(Arc::new(request)));
        Ok(())
    }

    /// `renews`: the epoch ends with the transaction, and the answer says the next.
    fn end_transaction(
        &mut self,
        origin: Origin,
        id: &str,
        producer: ProducerKey,
        commit: bool,
        renews: bool,
        now: Now,
    ) -> Result<(), Refused> {
        let entry = match self.coordinator.entries.get(id) {
            Some(entry) if renews && entry.head.previous == Some(producer) => entry,
            _ => self.coordinator.owned(id, producer)?,
        };
        if entry.is_between_steps() {
            return Err(ErrorCode::ConcurrentTransactions.into());
        }
        let is_over = entry.head.producer != producer;
        match (entry.head.phase, commit) {
            (TransactionPhase::Ongoing, _) if !is_over => {
                self.decide(id, commit, renews, now)?;
                self.wait_for_end(id, Waiter::End { origin, renews }, now);
            }
            // The one before isn't complete.
            (TransactionPhase::Committing | TransactionPhase::Aborting, _) if renews && !is_over => {
                return Err(ErrorCode::ConcurrentTransactions.into());
            }
            // Nothing was done in it; its epoch ends all the same, so that nothing late begins it.
            (TransactionPhase::Empty | TransactionPhase::Committed | TransactionPhase::Aborted, _)
                if renews && !is_over && producer.epoch < EPOCH_LAST =>
            {
                let next = ProducerKey { epoch: producer.epoch + 1, ..producer };
                let phase = if commit { TransactionPhase::Committed } else { TransactionPhase::Aborted };
                let head = Head { producer: next, previous: Some(producer), phase, changed_ms: now.wall_ms, ..entry.head.clone() };
                self.log_step(id, head, Vec::new(), Some(Step::Init { origin }), now)?;
            }
            (TransactionPhase::Committing, true) | (TransactionPhase::Aborting, false) => {
                self.wait_for_end(id, Waiter::End { origin, renews }, now);
            }
            // The answer to the first request didn't arrive.
            (TransactionPhase::Committed, true) | (TransactionPhase::Aborted, false) => self.ended(origin, id, renews),
            (TransactionPhase::Aborting | TransactionPhase::Aborted, true) if renews => {
                let message = "the transaction was aborted before: it was open for longer than its timeout";
                return Err(Failure::new(ErrorCode::InvalidTransactionState, message).into());
            }
            (TransactionPhase::Empty | TransactionPhase::Ongoing, _)
            | (TransactionPhase::Committing | TransactionPhase::Committed, false)
            | (TransactionPhase::Aborting | TransactionPhase::Aborted, true) => return Err(ErrorCode::InvalidTransactionState.into()),
        }
        Ok(())
    }

    fn ended(&mut self, origin: Origin, id: &str, renews: bool) {
        match self.coordinator.entries.get(id).filter(|_| renews).map(|entry| entry.head.producer) {
            Some(producer) => self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Producer(producer)))),
            None => self.transaction_done(origin),
        }
    }

    /// `is_fencing`: whoever has the transaction open is stale from now on, everywhere.
    fn decide(&mut self, id: &str, commit: bool, is_fencing: bool, now: Now) -> Result<(), AppendError> {
        let Some(entry) = self.coordinator.entries.get(id) else { return Ok(()) };
        let phase = if commit { TransactionPhase::Committing } else { TransactionPhase::Aborting };
        let mut head = Head { phase, changed_ms: now.wall_ms, ..entry.head.clone() };
        if is_fencing {
            head.previous = Some(head.producer);
            head.producer.epoch += 1;
        }
        self.log_step(id, head, Vec::new(), Some(Step::Decide), now)?;
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.due_us = u64::MAX;
        }
        self.coordinator.schedule(id);
        Ok(())
    }

    fn wait_for_end(&mut self, id: &str, waiter: Waiter, now: Now) {
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.waiter = Some((waiter, now.monotonic_us + WAIT_US));
        }
        self.coordinator.schedule(id);
    }

    /// Logs a step and takes it; `step` happens when it is durable. Nothing has changed after an error.
    fn log_step(&mut self, id: &str, head: Head, joining: Vec<Participant>, step: Option<Step>, now: Now) -> Result<(), AppendError> {
        let record = StateRecord::Transaction(Box::new(piece(id, &head, &joining)));
        let deferred = step.map(|step| Deferred::Transaction { id: id.into(), step });
        self.log_state(&record, deferred, now)?;
        if head.phase != TransactionPhase::Ongoing {
            self.coordinator.withdraw(id);
        }
        let Some(entry) = self.coordinator.entries.get_mut(id) else { return Ok(()) };
        if head.phase != TransactionPhase::Ongoing {
            entry.check_us = u64::MAX;
        }
        entry.logging += usize::from(step.is_some());
        if entry.head.producer.id != head.producer.id || !self.coordinator.by_producer.contains_key(&head.producer.id.0) {
            self.coordinator.by_producer.remove(&entry.head.producer.id.0);
            self.coordinator.by_producer.insert(head.producer.id.0, id.into());
        }
        entry.head = head;
        if entry.head.is_idle() {
            let bytes: usize = entry.participants.iter().map(participant_bytes).sum();
            self.coordinator.charged_bytes -= bytes;
            entry.participants.clear();
            entry.due_us = now.monotonic_us + EXPIRES_AFTER_MS * 1000;
        }
        entry.participants.extend(joining.iter().cloned());
        entry.joining.extend(joining);
        self.coordinator.schedule(id);
        Ok(())
    }

    /// The record of a step is durable.
    pub(super) fn transaction_durable(&mut self, id: &str, step: Step, now: Now) {
        let Some(entry) = self.coordinator.entries.get_mut(id) else { return };
        entry.logging -= 1;
        match step {
            Step::Init { origin } => {
                let producer = entry.head.producer;
                self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Producer(producer))));
            }
            Step::Join { origin, count } => {
                entry.joining.drain(..count);
                self.transaction_done(origin);
            }
            Step::Decide => self.tell_everybody(id, now),
        }
    }

    fn tell_everybody(&mut self, id: &str, now: Now) {
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.untold = entry.participants.iter().cloned().collect();
        }
        self.tell(id, now);
    }

    /// Tells the decision to as many as may be told at a time.
    fn tell(&mut self, id: &str, now: Now) {
        while let Some(entry) = self.coordinator.entries.get_mut(id) {
            if self.coordinator.told >= TOLD_AT_ONCE && !entry.untold.is_empty() {
                return self.coordinator.queue.push_back(id.into());
            }
            let Some(participant) = entry.untold.pop() else { break };
            entry.told += 1;
            self.coordinator.told += 1;
            let (producer, commit) = (entry.head.producer, entry.head.phase == TransactionPhase::Committing);
            let request = match &participant {
                Participant::Partition(partition) => Request::EndTransaction(TransactionMarker { partition: *partition, producer, commit }),
                Participant::Group(group) => {
                    let action = GroupAction::Decide { producer_id: producer.id, producer_epoch: producer.epoch, commit };
                    Request::Group(Arc::new(GroupRequest { group: group.to_string(), action }))
                }
            };
            self.ask(Asked::Tell { id: id.into(), participant }, request);
        }
        self.close_if_heard(id, now);
    }

    fn heard(&mut self, id: &str, participant: Participant, reply: &Reply, now: Now) {
        self.coordinator.told -= 1;
        let has_heard = match reply {
            Reply::Transaction(_) => true,
            Reply::Group(reply) => **reply == GroupReply::Decided,
            // Nobody is left who could hear.
            Reply::Failed(failure) => {
                matches!(failure.code, ErrorCode::UnknownPartition | ErrorCode::GroupNotFound | ErrorCode::UnsupportedOp)
            }
            _ => false,
        };
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.told -= 1;
            if !has_heard {
                entry.unheard.push(participant);
            }
        }
        self.close_if_heard(id, now);
        if let Some(next) = self.coordinator.queue.pop_front() {
            self.tell(&next, now);
        }
    }

    /// The last step, when everybody has heard; or another try, later.
    fn close_if_heard(&mut self, id: &str, now: Now) {
        let Some(entry) = self.coordinator.entries.get_mut(id) else { return };
        if !entry.head.is_decided() || entry.logging > 0 || !entry.untold.is_empty() || entry.told > 0 {
            return;
        }
        if !entry.unheard.is_empty() {
            entry.due_us = now.monotonic_us + TELL_AGAIN_US;
            return self.coordinator.schedule(id);
        }
        let is_commit = entry.head.phase == TransactionPhase::Committing;
        let phase = if is_commit { TransactionPhase::Committed } else { TransactionPhase::Aborted };
        let head = Head { phase, changed_ms: now.wall_ms, ..entry.head.clone() };
        if self.log_step(id, head, Vec::new(), None, now).is_err() {
            if let Some(entry) = self.coordinator.entries.get_mut(id) {
                entry.due_us = now.monotonic_us + RETRY_US;
            }
            return self.coordinator.schedule(id);
        }
        let waiter = self.coordinator.entries.get_mut(id).and_then(|entry| entry.waiter.take());
        self.coordinator.schedule(id);
        match waiter {
            None => {}
            Some((Waiter::End { origin, renews }, _)) => self.ended(origin, id, renews),
            Some((Waiter::Init { origin, request }, _)) => self.go_on_with_init(origin, &request, None, now),
        }
    }

    /// An `Init` that had to wait for something.
    fn go_on_with_init(&mut self, origin: Origin, request: &Arc<TransactionRequest>, number: Option<i64>, now: Now) {
        let result = match self.refusal() {
            Some(failure) => Err(Refused::Failure(failure)),
            None => self.init_transactional(origin, request, number, now),
        };
        let failure = match result {
            Ok(()) => return,
            Err(Refused::Failure(failure)) => failure,
            Err(Refused::Append(AppendError::DiskFull)) => ErrorCode::DiskFull.into(),
            Err(Refused::Append(_)) => ErrorCode::ConcurrentTransactions.into(),
        };
        self.fail(origin, failure);
    }

    /// After the catalog is known: what was decided before the restart is told, timeouts begin anew.
    pub(super) fn resume_transactions(&mut self, now: Now) {
        let ids: Vec<Box<str>> = self.coordinator.entries.keys().cloned().collect();
        for id in ids {
            let Some(entry) = self.coordinator.entries.get_mut(&id) else { continue };
            match entry.head.phase {
                TransactionPhase::Ongoing => {
                    entry.due_us = now.monotonic_us + u64::from(entry.head.timeout_ms) * 1000;
                    entry.check_us = entry.next_check_us(now);
                }
                TransactionPhase::Committing | TransactionPhase::Aborting => self.tell_everybody(&id, now),
                TransactionPhase::Empty | TransactionPhase::Committed | TransactionPhase::Aborted => {
                    let idle_ms = u64::try_from(now.wall_ms.saturating_sub(entry.head.changed_ms)).unwrap_or(0);
                    entry.due_us = now.monotonic_us + EXPIRES_AFTER_MS.saturating_sub(idle_ms) * 1000;
                }
            }
            self.coordinator.schedule(&id);
        }
    }

    /// Timeouts, second tries, expiry.
    pub(super) fn transactions_due(&mut self, now: Now) {
        if self.stopping || self.fault.is_some() {
            return;
        }
        self.end_check_waits(now);
        for _ in 0..DEADLINES_PER_PUMP {
            match self.coordinator.deadlines.first() {
                Some((at, id)) if *at <= now.monotonic_us => {
                    let id = id.clone();
                    self.transaction_due(&id, now);
                }
                _ => return,
            }
        }
    }

    fn transaction_due(&mut self, id: &str, now: Now) {
        let Some(entry) = self.coordinator.entries.get_mut(id) else { return };
        if entry.waiter.as_ref().is_some_and(|(_, until_us)| *until_us <= now.monotonic_us) {
            let is_durable = entry.logging == 0;
            match entry.waiter.take() {
                // It is decided, and will be told.
                Some((Waiter::End { origin, renews }, _)) if is_durable => self.ended(origin, id, renews),
                Some((Waiter::End { origin, .. } | Waiter::Init { origin, .. }, _)) => {
                    self.fail(origin, ErrorCode::ConcurrentTransactions.into())
                }
                None => {}
            }
            return self.coordinator.schedule(id);
        }
        if entry.check_us <= now.monotonic_us {
            self.offer(id, now);
            return self.coordinator.schedule(id);
        }
        if entry.due_us > now.monotonic_us {
            return self.coordinator.schedule(id);
        }
        let is_waiting = entry.logging > 0 || entry.relays > 0;
        let later_us = now.monotonic_us + RETRY_US;
        match entry.head.phase {
            TransactionPhase::Ongoing => {
                if is_waiting || self.decide(id, false, true, now).is_err() {
                    self.due_later(id, later_us);
                }
            }
            TransactionPhase::Committing | TransactionPhase::Aborting => {
                entry.due_us = u64::MAX;
                entry.untold.append(&mut entry.unheard);
                self.coordinator.schedule(id);
                self.tell(id, now);
            }
            TransactionPhase::Empty | TransactionPhase::Committed | TransactionPhase::Aborted => {
                let record = StateRecord::TransactionGone { transactional_id: id.to_owned() };
                if is_waiting || self.log_state(&record, None, now).is_err() {
                    return self.due_later(id, later_us);
                }
                self.coordinator.forget(id);
            }
        }
    }

    /// The open transaction is to be checked by whoever asks.
    fn offer(&mut self, id: &str, now: Now) {
        let Some(entry) = self.coordinator.entries.get_mut(id) else { return };
        entry.check_us = entry.next_check_us(now);
        if let (Some(check), None) = (&entry.check, entry.offered_us) {
            entry.offered_us = Some(now.monotonic_us);
            self.coordinator.offered.insert((check.group.clone(), now.monotonic_us, id.into()));
            self.serve_checks();
        }
    }

    /// Transactions that somebody has to decide, now or later.
    pub(super) fn transactions_to_check(&mut self, origin: Origin, ask: &ToCheck, now: Now) {
        if let Some(failure) = self.refusal() {
            return self.fail(origin, failure);
        }
        if self.coordinator.check_waiters.len() >= CHECK_WAITS_MAX {
            let message = format!("{CHECK_WAITS_MAX} requests wait for transactions to check");
            return self.fail(origin, Failure::new(ErrorCode::Overloaded, message));
        }
        let deadline_us = now.monotonic_us + u64::from(ask.max_wait_ms) * 1_000;
        let waiter = CheckWaiter { origin, group: ask.group.as_str().into(), max: ask.max as usize, deadline_us };
        self.coordinator.check_waiters.push_back(waiter);
        self.serve_checks();
    }

    fn serve_checks(&mut self) {
        let mut at = 0;
        while let Some(waiter) = self.coordinator.check_waiters.get(at).filter(|_| !self.coordinator.offered.is_empty()) {
            let from: (Arc<str>, u64, Box<str>) = (Arc::from(&*waiter.group), 0, "".into());
            let offered = self.coordinator.offered.range(from..).take_while(|(group, ..)| **group == *waiter.group);
            let ids: Vec<Box<str>> = offered.take(waiter.max).map(|(_, _, id)| id.clone()).collect();
            if ids.is_empty() {
                at += 1;
                continue;
            }
            let listings = ids.iter().filter_map(|id| self.coordinator.entries.get(id).map(|entry| entry.listing(id))).collect();
            ids.iter().for_each(|id| self.coordinator.withdraw(id));
            if let Some(waiter) = self.coordinator.check_waiters.remove(at) {
                self.reply(waiter.origin, Reply::ToCheck(listings));
            }
        }
    }

    fn end_check_waits(&mut self, now: Now) {
        let mut at = 0;
        while let Some(waiter) = self.coordinator.check_waiters.get(at) {
            if waiter.deadline_us > now.monotonic_us {
                at += 1;
            } else if let Some(waiter) = self.coordinator.check_waiters.remove(at) {
                self.reply(waiter.origin, Reply::ToCheck(Vec::new()));
            }
        }
    }

    fn due_later(&mut self, id: &str, at_us: u64) {
        if let Some(entry) = self.coordinator.entries.get_mut(id) {
            entry.due_us = at_us;
        }
        self.coordinator.schedule(id);
    }

    /// Whoever waits for a decision to be heard gets no better answer any more.
    pub(super) fn fail_transaction_waiters(&mut self, failure: &Failure) {
        let waiters: Vec<Waiter> =
            self.coordinator.entries.values_mut().filter_map(|entry| entry.waiter.take()).map(|(waiter, _)| waiter).collect();
        for waiter in std::mem::take(&mut self.coordinator.check_waiters) {
            self.fail(waiter.origin, failure.clone());
        }
        for waiter in waiters {
            let (Waiter::End { origin, .. } | Waiter::Init { origin, .. }) = waiter;
            self.fail(origin, failure.clone());
        }
    }

    /// Asks another shard, or this one; [`Shard::answered`] has the answer. The number of questions is bounded by those
    /// who ask: parked batches, [`ASKS_MAX`], [`TOLD_AT_ONCE`].
    pub(super) fn ask(&mut self, asked: Asked, request: Request<'static>) {
        self.next_ask += 1;
        self.asks.insert(self.next_ask, asked);
        self.events.push_back(super::ShardEvent::Ask { ticket: self.next_ask, request });
    }

    /// The answer to a question of this shard.
    pub fn answered(&mut self, ticket: u64, reply: Reply, now: Now) {
        let Some(asked) = self.asks.remove(&ticket) else { return };
        match asked {
            Asked::Check { partition, producer } => self.checked(partition, producer, reply, now),
            Asked::Number { origin, request } => match reply {
                Reply::Producer { producer_id, .. } => self.go_on_with_init(origin, &request, Some(producer_id.0), now),
                reply => self.pass_on(origin, reply),
            },
            Asked::Offsets { origin, id } => {
                if let Some(entry) = self.coordinator.entries.get_mut(&id) {
                    entry.relays -= 1;
                }
                self.pass_on(origin, reply);
            }
            Asked::Tell { id, participant } => self.heard(&id, participant, &reply, now),
            Asked::Forward(leaving) => self.forward_answered(leaving, &reply, now),
            Asked::Idle(queue) => self.idle_answered(queue, &reply, now),
        }
    }

    fn pass_on(&mut self, origin: Origin, reply: Reply) {
        match reply {
            Reply::Failed(failure) => self.fail(origin, failure),
            reply => self.reply(origin, reply),
        }
    }

    fn transaction_done(&mut self, origin: Origin) {
        self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Done)));
    }

    fn charge_transaction(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.coordinator.charged_bytes + bytes > self.config.transaction_bytes_max {
            let message = format!("transactional ids fill their {} bytes of memory", self.config.transaction_bytes_max);
            return Err(Failure::new(ErrorCode::LimitExceeded, message));
        }
        self.coordinator.charged_bytes += bytes;
        Ok(())
    }
}

/// Why a step isn't taken.
enum Refused {
    Failure(Failure),
    Append(AppendError),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused::Failure(failure)
    }
}

impl From<ErrorCode> for Refused {
    fn from(code: ErrorCode) -> Refused {
        Refused::Failure(code.into())
    }
}

impl From<AppendError> for Refused {
    fn from(error: AppendError) -> Refused {
        Refused::Append(error)
    }
}

fn new_producer(id: &str, number: i64) -> Result<ProducerKey, Failure> {
    let producer_id = transactional_producer(number, catalog::slot(id));
    let producer_id = producer_id.ok_or_else(|| Failure::new(ErrorCode::LimitExceeded, "every producer id has been used"))?;
    Ok(ProducerKey { id: producer_id, epoch: 0 })
}

fn bad_id(id: &str) -> Option<Failure> {
    (id.is_empty() || id.len() > TRANSACTIONAL_ID_MAX_BYTES).then(|| ErrorCode::InvalidTransactionalId.into())
}

fn participant_bytes(participant: &Participant) -> usize {
    match participant {
        Participant::Partition(_) => PARTITION_BYTES,
        Participant::Group(group) => GROUP_BYTES + group.len(),
    }
}

fn charge(id: &str, entry: &Entry) -> usize {
    ENTRY_BYTES + 3 * id.len() + check_bytes(id, entry.check.as_ref()) + entry.participants.iter().map(participant_bytes).sum::<usize>()
}

/// With a place among what is offered.
fn check_bytes(id: &str, check: Option<&Check>) -> usize {
    check.map_or(0, |check| 128 + id.len() + check.group.len())
}

fn check_piece(id: &str, check: Option<&Check>) -> TransactionCheckBackPiece {
    let (group, after_ms) = check.map_or((String::new(), 0), |check| (check.group.to_string(), check.after_ms));
    TransactionCheckBackPiece { transactional_id: id.to_owned(), group, after_ms }
}

fn piece<'a>(id: &str, head: &Head, participants: impl IntoIterator<Item = &'a Participant>) -> TransactionPiece {
    let (mut partitions, mut groups) = (Vec::new(), Vec::new());
    for participant in participants {
        match participant {
            Participant::Partition(partition) => partitions.push(partition.0),
            Participant::Group(group) => groups.push(group.to_string()),
        }
    }
    TransactionPiece {
        transactional_id: id.to_owned(),
        producer_id: head.producer.id.0,
        epoch: head.producer.epoch,
        previous: head.previous.map(|previous| (previous.id.0, previous.epoch)),
        timeout_ms: head.timeout_ms,
        phase: phase_number(head.phase),
        begun_ms: head.begun_ms,
        changed_ms: head.changed_ms,
        partitions,
        groups,
    }
}

fn opened(piece: &TransactionPiece) -> (Head, Vec<Participant>) {
    let head = Head {
        producer: ProducerKey { id: ProducerId(piece.producer_id), epoch: piece.epoch },
        previous: piece.previous.map(|(id, epoch)| ProducerKey { id: ProducerId(id), epoch }),
        timeout_ms: piece.timeout_ms,
        phase: phase(piece.phase),
        begun_ms: piece.begun_ms,
        changed_ms: piece.changed_ms,
    };
    let partitions = piece.partitions.iter().map(|partition| Participant::Partition(PartitionId(*partition)));
    let groups = piece.groups.iter().map(|group| Participant::Group(group.as_str().into()));
    (head, partitions.chain(groups).collect())
}

const PHASES: [TransactionPhase; 6] = [
    TransactionPhase::Empty,
    TransactionPhase::Ongoing,
    TransactionPhase::Committing,
    TransactionPhase::Aborting,
    TransactionPhase::Committed,
    TransactionPhase::Aborted,
];

/// As it is stored.
fn phase_number(phase: TransactionPhase) -> u8 {
    PHASES.iter().position(|known| *known == phase).unwrap_or_default() as u8
}

fn phase(number: u8) -> TransactionPhase {
    PHASES.get(usize::from(number)).copied().unwrap_or_default()
}
