//! A consumer that shares a topic's partitions with the other members of its group. A thread of its own keeps the
//! membership alive; records are read on the caller's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmain_wire::group::{GroupAnswer, GroupCall, GroupMember, GroupOffset, GroupRequest};

use super::{Client, Consumer};
use crate::consumer::{ConsumerConfig, Position, RecordBatch, StartFrom};
use crate::error::{CallError, ConsumeError};
use crate::group::{GroupConfig, Membership, Want};
use crate::transport::OpenConsumerError;

/// Partitions are taken away at the latest this long before the others would give up waiting.
const REVOKE_MARGIN: Duration = Duration::from_secs(2);
/// A poll looks so often whether its partitions are to be given up.
const LOOK: Duration = Duration::from_millis(100);

/// Why a group consumer can't go on.
#[derive(Clone, Debug)]
pub enum GroupConsumeError {
    /// Its membership, or a commit, was refused.
    Group(CallError),
    /// Reading failed; polling again goes on.
    Consume(ConsumeError),
}

impl fmt::Display for GroupConsumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupConsumeError::Group(error) => error.fmt(f),
            GroupConsumeError::Consume(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for GroupConsumeError {}

impl From<CallError> for GroupConsumeError {
    fn from(error: CallError) -> GroupConsumeError {
        GroupConsumeError::Group(error)
    }
}

impl From<OpenConsumerError> for GroupConsumeError {
    fn from(error: OpenConsumerError) -> GroupConsumeError {
        match error {
            OpenConsumerError::Call(error) => GroupConsumeError::Group(error),
            OpenConsumerError::Consume(error) => GroupConsumeError::Consume(error),
        }
    }
}

/// Reads its share of one topic as a member of a group. Dropping it leaves the group, without a commit.
#[derive(Debug)]
pub struct GroupConsumer {
    client: Client,
    topic: String,
    group: String,
    config: ConsumerConfig,
    commits_on_revoke: bool,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    reading: Option<Reading>,
}

/// What this member reads in one generation.
#[derive(Debug)]
struct Reading {
    generation: i32,
    member: GroupMember,
    /// `None` = nothing fell to it.
    consumer: Option<Consumer>,
    /// By index within the topic: the partition's number.
    numbers: BTreeMap<u32, u32>,
    committed: BTreeMap<u32, u64>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    assigned: Option<Assigned>,
    /// The partitions are to be given up.
    is_revoking: bool,
    is_stopping: bool,
    error: Option<CallError>,
}

#[derive(Clone, Debug)]
struct Assigned {
    generation: i32,
    member: GroupMember,
    partitions: Vec<u32>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, timeout: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Client {
    /// A consumer of one topic as a member of a group. `config`: its `name` and `partitions` mean nothing here; `from`
    /// is where partitions begin that the group never committed.
    ///
    /// Errors: `Connection`. That it can't be a member is told by polling.
    pub fn group_consumer(&self, topic: &str, group: GroupConfig, config: ConsumerConfig) -> Result<GroupConsumer, CallError> {
        // Joins wait long: they have a connection of their own.
        let line = Client::connect_with(self.inner.config.clone())?;
        let shared = Arc::new(Shared::default());
        let (group_name, commits_on_revoke) = (group.group.clone(), group.commits_on_revoke);
        let patience = group.rebalance_timeout.saturating_sub(REVOKE_MARGIN);
        let membership = Membership::new(group, vec![topic.to_owned()]);
        let thread = std::thread::Builder::new().name("group member".into()).spawn({
            let (shared, topic) = (shared.clone(), topic.to_owned());
            move || keep_membership(&line, &topic, membership, patience, &shared)
        });
        let thread = thread.map_err(|error| CallError::Connection(error.into()))?;
        Ok(GroupConsumer {
            client: self.clone(),
            topic: topic.to_owned(),
            group: group_name,
            config,
            commits_on_revoke,
            shared,
            thread: Some(thread),
            reading: None,
        })
    }
}

impl GroupConsumer {
    /// The next records of some partition; waits at most `timeout`. `None` = nothing came in time: there is nothing,
    /// the group is dividing its work, or nothing fell to this member.
    ///
    /// Errors: see [`GroupConsumeError`].
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<RecordBatch>, GroupConsumeError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.follow()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let batch = match self.reading.as_mut().and_then(|reading| reading.consumer.as_mut()) {
                Some(consumer) => consumer.poll(left.min(LOOK)).map_err(GroupConsumeError::Consume)?,
                None => {
                    let state = self.shared.lock();
                    drop(self.shared.wait(state, left.min(LOOK)));
                    None
                }
            };
            if batch.is_some() || Instant::now() >= deadline {
                return Ok(batch);
            }
        }
    }

    /// Does what the group wants: gives partitions up, takes others.
    fn follow(&mut self) -> Result<(), GroupConsumeError> {
        let (assigned, is_revoking) = {
            let mut state = self.shared.lock();
            if let Some(error) = state.error.take() {
                return Err(error.into());
            }
            (state.assigned.clone(), state.is_revoking)
        };
        let is_current = match (&self.reading, &assigned) {
            (Some(reading), Some(assigned)) => reading.generation == assigned.generation && reading.member == assigned.member,
            (None, None) => true,
            _ => false,
        };
        if (is_revoking || !is_current) && self.reading.is_some() {
            if self.commits_on_revoke {
                // Refused = the partitions belong to others already, who read these records again.
                let _ = self.commit();
            }
            self.reading = None;
        }
        if is_revoking {
            self.shared.lock().is_revoking = false;
            self.shared.changed.notify_all();
            return Ok(());
        }
        if let Some(assigned) = assigned.filter(|_| !is_current) {
            self.reading = Some(self.open(assigned)?);
        }
        Ok(())
    }

    fn open(&self, assigned: Assigned) -> Result<Reading, GroupConsumeError> {
        let Assigned { generation, member, partitions } = assigned;
        let map = self.client.topic_map(&self.topic)?;
        let numbers: BTreeMap<u32, u32> =
            partitions.iter().filter_map(|index| Some((*index, map.partitions.get(*index as usize)?.partition))).collect();
        if numbers.is_empty() {
            return Ok(Reading { generation, member, consumer: None, numbers, committed: BTreeMap::new() });
        }
        let call = GroupCall::ReadOffsets { partitions: Some(numbers.values().copied().collect()) };
        let committed = match self.client.call(&GroupRequest { group: self.group.clone(), call })? {
            GroupAnswer::Offsets { offsets } => offsets.into_iter().map(|at| (at.partition, at.offset)).collect(),
            _ => BTreeMap::new(),
        };
        let from = if self.config.from == StartFrom::Committed { StartFrom::Beginning } else { self.config.from };
        let config = ConsumerConfig { from, name: None, partitions: Some(numbers.keys().copied().collect()), ..self.config.clone() };
        let mut consumer = self.client.consumer(&self.topic, config)?;
        for (index, number) in &numbers {
            if let Some(offset) = committed.get(number) {
                consumer.seek(*index, *offset).map_err(GroupConsumeError::Consume)?;
            }
        }
        let committed = numbers.iter().filter_map(|(index, number)| Some((*index, *committed.get(number)?))).collect();
        Ok(Reading { generation, member, consumer: Some(consumer), numbers, committed })
    }

    /// Commits where this member is: every record of every batch that [`GroupConsumer::poll`] returned counts as done.
    /// Durable when this returns.
    ///
    /// Errors: `Group`; `RebalanceInProgress`, `IllegalGeneration` and `UnknownMember` mean that the partitions are or will
    /// be others', who read on from the last commit.
    pub fn commit(&mut self) -> Result<(), GroupConsumeError> {
        let Some(reading) = &mut self.reading else { return Ok(()) };
        let Some(consumer) = &reading.consumer else { return Ok(()) };
        let mut moved = BTreeMap::new();
        for Position { partition_index, next_offset, .. } in consumer.positions() {
            if let Some(offset) = next_offset
                && reading.numbers.contains_key(&partition_index)
                && reading.committed.get(&partition_index) != Some(&offset)
            {
                moved.insert(partition_index, offset);
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let at = |(index, offset): (&u32, &u64)| {
            Some(GroupOffset { partition: *reading.numbers.get(index)?, offset: *offset, metadata: String::new() })
        };
        let offsets = moved.iter().filter_map(at).collect();
        let call = GroupCall::Commit { member: reading.member.clone(), generation: reading.generation, offsets };
        self.client.call(&GroupRequest { group: self.group.clone(), call })?;
        reading.committed.extend(moved);
        Ok(())
    }

    /// Goes on at `offset` in one of its partitions. Errors: `Consume` (`NoSuchPartition`).
    pub fn seek(&mut self, partition_index: u32, offset: u64) -> Result<(), GroupConsumeError> {
        match self.reading.as_mut().and_then(|reading| reading.consumer.as_mut()) {
            Some(consumer) => consumer.seek(partition_index, offset).map_err(GroupConsumeError::Consume),
            None => Ok(()),
        }
    }

    /// Takes back the memory of a batch that was read; optional.
    pub fn recycle(&mut self, batch: RecordBatch) {
        if let Some(consumer) = self.reading.as_mut().and_then(|reading| reading.consumer.as_mut()) {
            consumer.recycle(batch);
        }
    }

    /// Indexes of the partitions that this member reads; `None` = the group is dividing its work.
    pub fn partitions(&self) -> Option<Vec<u32>> {
        self.reading.as_ref().map(|reading| reading.numbers.keys().copied().collect())
    }

    /// Whether every partition of this member was read to its end.
    pub fn at_end(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.consumer.as_ref().is_none_or(Consumer::at_end))
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.shared.lock().is_stopping = true;
        self.shared.changed.notify_all();
        // A join that waits for others is not waited for: the thread leaves the group when it has its answer.
        if let Some(thread) = self.thread.take().filter(|_| self.reading.is_some()) {
            let _ = thread.join();
        }
    }
}

/// The thread of a membership. `patience`: how long the caller may take to give partitions up.
fn keep_membership(line: &Client, topic: &str, mut membership: Membership, patience: Duration, shared: &Shared) {
    loop {
        let want = membership.poll(Instant::now());
        let state = shared.lock();
        if state.is_stopping {
            drop(state);
            if let Some(request) = membership.leave() {
                // Whoever can't say good-bye is missed after the session timeout.
                let _ = line.call(&request);
            }
            return;
        }
        match want {
            Want::Wait(until) => drop(shared.wait(state, until.saturating_duration_since(Instant::now()))),
            Want::Revoke => {
                let until = Instant::now() + patience;
                let mut state = state;
                state.is_revoking = state.assigned.is_some();
                while state.is_revoking && !state.is_stopping && Instant::now() < until {
                    state = shared.wait(state, LOOK);
                }
                (state.is_revoking, state.assigned) = (false, None);
                membership.revoked();
            }
            Want::PartitionCounts(topics) => {
                drop(state);
                let names: Vec<&str> = topics.iter().map(String::as_str).collect();
                match line.metadata(Some(&names)) {
                    Ok(found) => {
                        let counts = found.topics.into_iter().map(|topic| (topic.name, topic.partitions.len() as u32)).collect();
                        membership.divide(&counts);
                    }
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
            Want::Ask(request, wait) => {
                drop(state);
                let answer = line.call_waiting(&request, wait);
                if let Err(error) = membership.answer(answer, Instant::now()) {
                    shared.lock().error = Some(error);
                    shared.changed.notify_all();
                    return;
                }
                publish(&membership, topic, shared);
            }
        }
    }
}

fn publish(membership: &Membership, topic: &str, shared: &Shared) {
    let Some(share) = membership.share() else { return };
    let mut state = shared.lock();
    let is_known =
        state.assigned.as_ref().is_some_and(|known| known.generation == membership.generation() && known.member == *membership.member());
    if !is_known {
        let partitions = share.topics.iter().filter(|(name, _)| name == topic).flat_map(|(_, partitions)| partitions.clone()).collect();
        state.assigned = Some(Assigned { generation: membership.generation(), member: membership.member().clone(), partitions });
        shared.changed.notify_all();
    }
}
