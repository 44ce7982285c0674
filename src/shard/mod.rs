//! A shard: partitions, their log, their consumers' offsets; a deterministic state machine fed by its log.
//!
//! Sans-IO: time is an argument, disk operations come out of [`Shard::poll_operation`] and their completions
//! go into [`Shard::complete`], answers come out of [`Shard::poll_reply`].
//!
//! ```text
//! handle(request) ─▶ log.append ─▶ acknowledgement waits for its commit group
//!                                        │  LogEvent::Flushed / Written
//!        poll_reply ◀────────────────────┘─▶ high watermark moves ─▶ waiting fetches are looked at
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `partition` | a partition, and the table that finds it by number |
//! | `produce`, `ack` | appending, idempotence, offset reservation; who waits for which commit group |
//! | `read`, `fetch`, `watch` | fetch, offsets by time; fetches that wait; readers of many partitions that do |
//! | `catalog`, `topics` | topics and partitions as a pure state machine; shard 0 decides, all apply |
//! | `group` | consumer groups and the offsets they committed |
//! | `queue` | queues: cursors over partitions |
//! | `producer_state`, `message_ids` | what idempotent producers sent last; messages recognised by their ids |
//! | `transaction`, `participant` | transactions: coordinating them, taking part in them |
//! | `state_record`, `checkpoint`, `recovery` | what goes into the log for the next start, and back |
//! | `background` | retention, expiry, checkpoints and the stop, in bounded steps |

mod ack;
mod background;
pub mod catalog;
mod checkpoint;
mod counters;
mod fetch;
mod group;
mod id_table;
mod message_ids;
mod participant;
mod partition;
mod produce;
mod producer_state;
pub mod queue;
mod read;
mod recovery;
mod state_record;
#[cfg(test)]
mod tests;
mod topics;
mod transaction;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;

use ringmain_wire::control::{self, PartitionState};
use ringmain_wire::{ErrorCode, Offset, PartitionId, ProducerId, ShardId};

use crate::device::{Arena, Completion, Fault, FileId, Operation, Slice, Token, Volume};
use crate::log::{self, AppendError, Log, LogConfig, LogEvent, RecoveryReport};
use crate::request::{Extent, Failure, Now, Origin, Reply, Request};

pub use catalog::{Catalog, CatalogChange};
pub use counters::Counters;
pub use group::GroupsConfig;

use ack::{AckQueue, Advances};
use background::Background;
use fetch::Waits;
use group::Groups;
use group::serve::LoggedCommit;
use participant::ParkedBatches;
use partition::{NONE, Partition, PartitionTable};
use queue::QueueTable;
use queue::dead::DeadSearch;
use queue::persist::SavedCursors;
use read::{FooterWait, ReadFor};
use recovery::Recovery;
use state_record::StateRecord;
use transaction::{Asked, Coordinator, Step};
use watch::Watches;

/// Bounds of one shard.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which.
    pub shard: ShardId,
    /// Shard 0: the catalog's only writer.
    pub is_catalog: bool,
    /// Shards in the data directory, to spread new partitions over.
    pub shard_count: u16,
    /// Its log.
    pub log: LogConfig,
    /// Partitions of all topics; more are refused with `LimitExceeded`.
    pub partitions_max: u32,
    /// Idempotent producers remembered per partition, at most 2,000; the least recently used goes.
    pub producers_per_partition_max: usize,
    /// … and in the whole shard; then a partition's oldest goes, or a new producer gets `Overloaded`.
    pub producers_max: usize,
    /// Transactions open, or aborted and still stored, over all partitions; then no new ones begin.
    pub transactions_max: u64,
    /// Memory of transactional ids; more get `LimitExceeded`.
    pub transaction_bytes_max: usize,
    /// Bounds of consumer groups and their offsets.
    pub groups: GroupsConfig,
    /// What cursors of queues remember message by message: in flight, out of order, delayed, with a priority. When it is that much nothing
    /// more is delivered until some are settled.
    pub queue_bytes_max: usize,
    /// Read at a time for a queue, one run excepted.
    pub queue_feed_bytes: u32,
    /// Kept of what was read for queues that nobody asks at the moment.
    pub queue_pieces_bytes_max: usize,
    /// Notes where messages are that queues read again; then the oldest of a queue give way, and are looked up instead.
    pub queue_spots_bytes_max: usize,
    /// Cuts batches of other protocols into records.
    pub transcode: queue::feed::Transcode,
    /// Waiting fetches; more get `Overloaded`.
    pub waiting_fetches_max: usize,
    /// A fetch reply has no more frame bytes than this, one run excepted.
    pub fetch_bytes_max: u32,
    /// Bytes being read from the device for fetches; more wait their turn.
    pub cold_read_bytes_max: u64,
    /// Retention looks at every partition so often.
    pub retention_interval_us: u64,
    /// A checkpoint is due after so many bytes of state records (DESIGN 5), or when the log rolls.
    pub checkpoint_after_state_bytes: u64,
}

/// Hard cap of [`ShardConfig::producers_per_partition_max`]: a partition's producers fit one checkpoint piece.
pub const PRODUCERS_PER_PARTITION_LIMIT: usize = 2_000;
/// Produce requests waiting for their acknowledgement; more are `Busy`.
const ACKS_MAX: usize = 1 << 18;
/// State records waiting to become durable; more are `Busy`.
const DEFERRED_MAX: usize = 1 << 16;
/// Producer ids reserved by one durable record.
const PRODUCER_IDS_PER_BLOCK: i64 = 1_000;

impl ShardConfig {
    /// Defaults around a log's configuration.
    pub fn new(shard: ShardId, shard_count: u16, log: LogConfig) -> ShardConfig {
        ShardConfig {
            shard,
            is_catalog: shard == ShardId(0),
            shard_count,
            // A reply must find memory beside the one that is being sent.
            fetch_bytes_max: (log.read_bytes_max / 2).clamp(64 << 10, 8 << 20) as u32,
            cold_read_bytes_max: log.read_bytes_max as u64,
            groups: GroupsConfig { entropy: log.entropy, ..GroupsConfig::default() },
            log,
            partitions_max: catalog::PARTITIONS_LIMIT,
            producers_per_partition_max: 1_000,
            producers_max: 100_000,
            transactions_max: 1 << 20,
            transaction_bytes_max: 16 << 20,
            queue_bytes_max: 64 << 20,
            queue_feed_bytes: 64 << 10,
            queue_pieces_bytes_max: 8 << 20,
            queue_spots_bytes_max: 8 << 20,
            transcode: queue::feed::no_transcode,
            waiting_fetches_max: 65_536,
            retention_interval_us: 5_000_000,
            checkpoint_after_state_bytes: 32 << 20,
        }
    }
}

/// Memory or a queue is full: keep the request's bytes, read no more, try again after progress. Nothing was consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What a shard tells the router.
#[derive(Clone, Debug)]
pub enum ShardEvent {
    /// A question to whichever shard serves it, this one included. Its answer goes to [`Shard::answered`], once.
    Ask { ticket: u64, request: Request<'static> },
    /// Shard 0: durable. Give it to every core, apply it to every shard, then call [`Shard::catalog_acknowledged`] with `change_id`.
    CatalogChanged { change_id: u64, change: CatalogChange },
}

/// A shard, open.
pub struct Opened {
    /// It.
    pub shard: Shard,
    /// What recovery found.
    pub report: RecoveryReport,
    /// Files it keeps.
    pub live_files: Vec<FileId>,
}

/// Why a shard can't be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Its log can't.
    Log(log::OpenError),
    /// The directory's files can't be listed.
    List(io::Error),
    /// The log says something this build doesn't understand.
    State { message: String },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Log(error) => write!(f, "{error}"),
            OpenError::List(error) => write!(f, "listing segment files: {error}"),
            OpenError::State { message } => f.write_str(message),
        }
    }
}

impl std::error::Error for OpenError {}

/// What happens once a state record is durable.
#[derive(Debug)]
enum Deferred {
    DeletedBefore {
        origin: Origin,
        partition: PartitionId,
        offset: Offset,
    },
    Reserved {
        partition: PartitionId,
        end: Offset,
    },
    LogStart {
        partition: PartitionId,
        offset: Offset,
    },
    Commit(Box<LoggedCommit>),
    /// Nothing more than the answer.
    Answer {
        origin: Origin,
        answer: Box<Reply>,
    },
    Group {
        ticket: u64,
    },
    Catalog {
        /// `None` = a change that another one needed.
        origin: Option<Origin>,
        change: CatalogChange,
        answer: Reply,
    },
    Queue(Box<queue::serve::Logged>),
    ProducerIds {
        end: i64,
    },
    Transaction {
        id: Box<str>,
        step: Step,
    },
    Marker {
        origin: Origin,
        partition: PartitionId,
    },
    CheckpointEnd,
}

/// One shard. Belongs to one thread.
pub struct Shard {
    config: ShardConfig,
    log: Log,
    partitions: PartitionTable,
    /// Sequences reported so far.
    written: u64,
    flushed: u64,
    /// Group of the last frame appended.
    last_sequence: u64,
    fault: Option<Fault>,
    stopping: bool,

    /// Acknowledgements due at once, when written, when flushed. Bounded together by [`ACKS_MAX`].
    acks_now: AckQueue,
    acks_on_write: AckQueue,
    acks_on_flush: AckQueue,
    advances_on_write: Advances,
    advances_on_flush: Advances,
    /// State records not yet durable, in order of sequence; at most [`DEFERRED_MAX`].
    deferred: VecDeque<(u64, Deferred)>,
    /// Other answers; one per request that a connection has in flight, whose number the connections bound.
    replies: VecDeque<(Origin, Reply)>,
    events: VecDeque<ShardEvent>,

    waits: Waits,
    watches: Watches,
    /// Requests waiting for a footer; counted against `waiting_fetches_max`.
    footer_waits: Vec<(u64, FooterWait)>,
    /// Fetches waiting for `cold_read_bytes_max`; counted against `waiting_fetches_max`.
    cold_waits: VecDeque<fetch::Wait>,
    cold_read_bytes: u64,
    reads: HashMap<u64, ReadFor>,
    next_ticket: u64,
    reads_done: VecDeque<(u64, Result<Vec<Slice>, Failure>)>,
    /// Partitions to look at when a batch of progress has been taken in; empty between calls.
    woken: Vec<PartitionId>,

    /// Shard 0: every decided change, durable or not.
    catalog: Catalog,
    /// Decided at this start and not in the log yet.
    slots_unlogged: Option<CatalogChange>,
    catalog_pending: HashMap<u64, (Option<Origin>, Reply)>,
    next_change_id: u64,
    /// Shard 0: next id to give away, end of the durable block, end of the logged block.
    producer_id_next: i64,
    producer_ids_end: i64,
    producer_ids_end_logged: i64,
    producer_id_waits: VecDeque<Origin>,

    queues: QueueTable,
    /// As recovered; until the catalog is there.
    saved_cursors: SavedCursors,
    groups: Groups,
    /// Offsets in [`Deferred::Commit`]s.
    offsets_deferred: usize,
    /// Transactions coordinated here.
    coordinator: Coordinator,
    /// Batches that wait for a coordinator.
    parked: ParkedBatches,
    /// Questions to other shards.
    asks: HashMap<u64, Asked>,
    next_ask: u64,

    background: Background,
    dead_search: DeadSearch,
    counters: Counters,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Shard({}, {} partitions, flushed {}, {} acks waiting)",
            self.config.shard,
            self.partitions.len(),
            self.flushed,
            self.acks_waiting()
        )
    }
}

impl Shard {
    /// Recovers the shard from its log. Blocking; writes nothing but the log's new epoch.
    ///
    /// Partitions come to life with [`Shard::set_catalog`].
    pub fn open(config: ShardConfig, arena: Arena, volume: &mut dyn Volume, now: Now) -> Result<Opened, OpenError> {
        let mut config = config;
        config.producers_per_partition_max = config.producers_per_partition_max.clamp(1, PRODUCERS_PER_PARTITION_LIMIT);
        let files = volume.list().map_err(OpenError::List)?;
        let mut recovery = Recovery::new(config.producers_per_partition_max);
        let opened = Log::open(config.log.clone(), arena, volume, &files, &mut recovery, now).map_err(OpenError::Log)?;
        if let Some(error) = recovery.error {
            return Err(OpenError::State { message: format!("shard {}: {error}", config.shard) });
        }
        recovery.finish();
        // The first thing that the first pump logs.
        let slots = if config.is_catalog { recovery.catalog.decide_slots(config.shard_count) } else { None };
        if let Some(slots) = &slots {
            recovery.catalog.apply(slots);
        }
        let mut shard = Shard::new(config, opened.log, recovery, now);
        for id in shard.partitions.ids() {
            let start = shard.partitions.get(id).map_or(Offset(0), |partition| partition.log_start);
            if start > Offset(0) {
                shard.log.truncate_before(id, start);
            }
        }
        shard.slots_unlogged = slots;
        let live_files = shard.log.live_files();
        Ok(Opened { shard, report: opened.report, live_files })
    }

    fn new(config: ShardConfig, log: Log, recovery: Recovery, now: Now) -> Shard {
        let mut groups = recovery.groups;
        // A member's record must fit into a segment.
        let member_bytes_max = config.groups.member_bytes_max.min(log.max_frame_bytes() as usize / 4);
        groups.begin(GroupsConfig { member_bytes_max, ..config.groups.clone() }, now);
        let flushed = log.flushed();
        let mut counters = Counters::default();
        for partition in recovery.partitions.iter() {
            counters.producers += partition.producers.as_ref().map_or(0, |table| table.len() as u64);
            counters.message_ids += partition.message_ids.as_ref().map_or(0, |ids| ids.len() as u64);
            let (open, aborted) = partition.transactions.as_ref().map_or((0, 0), |transactions| transactions.counts());
            counters.transactions_open += open as u64;
            counters.transactions_aborted += aborted as u64;
        }
        Shard {
            waits: Waits::default(),
            watches: Watches::default(),
            background: Background::new(&config, now),
            dead_search: DeadSearch::default(),
            config,
            written: log.written(),
            flushed,
            last_sequence: flushed,
            log,
            partitions: recovery.partitions,
            fault: None,
            stopping: false,
            acks_now: AckQueue::default(),
            acks_on_write: AckQueue::default(),
            acks_on_flush: AckQueue::default(),
            advances_on_write: Advances::default(),
            advances_on_flush: Advances::default(),
            deferred: VecDeque::new(),
            replies: VecDeque::new(),
            events: VecDeque::new(),
            footer_waits: Vec::new(),
            cold_waits: VecDeque::new(),
            cold_read_bytes: 0,
            reads: HashMap::new(),
            next_ticket: 0,
            reads_done: VecDeque::new(),
            woken: Vec::new(),
            catalog: recovery.catalog,
            slots_unlogged: None,
            catalog_pending: HashMap::new(),
            next_change_id: 0,
            producer_id_next: recovery.producer_ids_end,
            producer_ids_end: recovery.producer_ids_end,
            producer_ids_end_logged: recovery.producer_ids_end,
            producer_id_waits: VecDeque::new(),
            queues: QueueTable::default(),
            saved_cursors: recovery.queues,
            groups,
            offsets_deferred: 0,
            coordinator: recovery.coordinator,
            parked: ParkedBatches::default(),
            asks: HashMap::new(),
            next_ask: 0,
            counters,
        }
    }

    /// Takes a request. Its answer comes out of [`Shard::poll_reply`], now or later, exactly once.
    pub fn handle(&mut self, origin: Origin, request: &Request<'_>, now: Now) -> Result<(), Busy> {
        let result = match request {
            Request::Produce { frame } => self.produce(origin, frame, now),
            Request::Fetch(fetch) => {
                self.fetch_request(origin, *fetch, now);
                Ok(())
            }
            Request::DeleteBefore { partition, before } => self.delete_before(origin, *partition, *before, now),
            Request::Watch(watch) => {
                self.watch(origin, watch, now);
                Ok(())
            }
            Request::Receive(receive) => {
                self.receive(origin, receive, now);
                Ok(())
            }
            Request::Settle(settle) => {
                self.settle(origin, settle, now);
                Ok(())
            }
            Request::Queue(request) => {
                self.queue_request(origin, request, now);
                Ok(())
            }
            Request::Forward(forward) => self.forwarded(origin, forward, now),
            Request::ConnectionGone { connection, generation } => {
                self.cancel_queues(origin.core, *connection, *generation, now);
                self.reply(origin, Reply::Deleted);
                Ok(())
            }
            Request::CreateQueue(create) => self.create_queue(origin, create, now),
            Request::AlterQueue(alter) => self.alter_queue(origin, alter, now),
            Request::DeleteQueue { name } => self.delete_queue(origin, name, now),
            Request::QueueIdle { queue, partition } => {
                self.queue_idle(origin, *queue, *partition, now);
                Ok(())
            }
            Request::ExpireQueue { queue } => self.queue_expired(origin, *queue, now),
            Request::ListOffset { partition, timestamp_ms, committed_only } => {
                self.list_offset(origin, *partition, *timestamp_ms, *committed_only);
                Ok(())
            }
            Request::CommitOffset { consumer, partition, offset, metadata } => {
                self.commit_offset(origin, consumer, *partition, *offset, metadata, now)
            }
            Request::ReadOffset { consumer, partition } => {
                self.read_offset(origin, consumer, *partition);
                Ok(())
            }
            Request::Group(request) => self.group_request(origin, request, now),
            Request::Transaction(request) => self.transaction_request(origin, request, now),
            Request::CheckTransaction(check) => self.check_transaction(origin, check, now),
            Request::ToCheck(ask) => {
                self.transactions_to_check(origin, ask, now);
                Ok(())
            }
            Request::EndTransaction(marker) => self.write_marker(origin, *marker, now),
            Request::DescribeProducers { partition } => {
                self.describe_producers(origin, *partition);
                Ok(())
            }
            Request::ShardTransactions => {
                self.list_transactions(origin);
                Ok(())
            }
            Request::ShardGroups => {
                let groups = self.groups.list();
                self.reply(origin, Reply::Groups(groups));
                Ok(())
            }
            Request::InitProducer => self.init_producer(origin, now),
            Request::CreateTopic(create) => self.create_topic(origin, create, now),
            Request::AlterTopic(alter) => self.alter_topic(origin, alter, now),
            Request::DeleteTopic { name } => self.delete_topic(origin, name, now),
            Request::PartitionStates { partitions } => {
                let states = partitions.iter().filter_map(|id| self.partition_state(*id)).collect();
                self.reply(origin, Reply::PartitionStates(states));
                Ok(())
            }
            Request::ShardStats => {
                let stats = self.stats();
                self.reply(origin, Reply::ShardStats(Box::new(stats)));
                Ok(())
            }
            Request::Metadata { .. }
            | Request::DescribeTopic { .. }
            | Request::Stats
            | Request::ListGroups
            | Request::ListTransactions
            | Request::Queues { .. }
            | Request::Coordinators { .. } => {
                self.fail(origin, Failure::new(ErrorCode::Internal, "a request for the router came to a shard"));
                Ok(())
            }
        };
        self.counters.busy += u64::from(result.is_err());
        result
    }

    /// The connection has gone: drops its waiting fetches, and what queues have delivered to it comes back. Answers already made still come out.
    pub fn cancel(&mut self, core: u16, connection: u32, generation: u32, now: Now) {
        self.cancel_queues(core, connection, generation, now);
        while let Some(index) = self.waits.of_connection(core, connection, generation) {
            self.take_wait(index);
        }
        self.watches.cancel(core, connection, generation);
        self.coordinator.cancel_checks(core, connection, generation);
        let is_gone = |origin: &Origin| (origin.core, origin.connection, origin.generation) == (core, connection, generation);
        self.cold_waits.retain(|wait| !is_gone(&wait.origin));
        self.footer_waits.retain(|(_, wait)| !is_gone(&wait.origin()));
    }

    /// Answers waits that have waited long enough, takes one background step, seals and submits commit groups.
    pub fn pump(&mut self, now: Now) {
        self.take_log_events(now);
        while let Some(index) = self.waits.expired(now.monotonic_us) {
            self.look_again(index, now);
        }
        while let Some(origin) = self.watches.expired(now.monotonic_us) {
            self.reply(origin, Reply::Watched { is_due: false });
        }
        self.groups_step(now);
        self.retry_parked(now);
        self.transactions_due(now);
        self.queues_step(now);
        self.background_step(now);
        self.log.pump(now);
        self.take_log_events(now);
    }

    /// A disk operation has finished.
    pub fn complete(&mut self, completion: Completion, now: Now) {
        self.log.complete(completion, now);
        self.take_log_events(now);
    }

    /// The next operation for the disk.
    pub fn poll_operation(&mut self) -> Option<(Token, Operation)> {
        self.log.poll_operation()
    }

    /// The next answer.
    pub fn poll_reply(&mut self) -> Option<(Origin, Reply)> {
        if let Some(ack) = self.acks_on_flush.pop(self.flushed) {
            return Some(ack);
        }
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        self.acks_now.pop(0).or_else(|| self.acks_on_write.pop(self.written))
    }

    /// The next event for the router.
    pub fn poll_event(&mut self) -> Option<ShardEvent> {
        self.events.pop_front()
    }

    /// Monotonic time at which [`Shard::pump`] has something to do; `None` = nothing until woken.
    pub fn next_deadline_us(&self) -> Option<u64> {
        let (waits, watches) = (self.waits.next_deadline_us(), self.watches.next_deadline_us());
        let deadlines = [waits, watches, self.background.deadline_us(), self.log.next_deadline_us()];
        let is_writable = self.fault.is_none() && !self.stopping;
        let others =
            [self.groups.next_deadline_us(), self.coordinator.deadline_us(), self.parked.deadline_us(), self.queues.next_deadline_us()];
        let others = if is_writable { others } else { [None; 4] };
        deadlines.into_iter().chain(others).flatten().min()
    }

    /// Background work wants another pump soon, after everything else had its turn.
    pub fn has_backlog(&self) -> bool {
        let has_queues = self.queues.has_backlog() && self.fault.is_none();
        has_queues
            || self.background.has_backlog()
            || self.log.has_backlog()
            || (self.groups.has_round() && !self.stopping && self.fault.is_none())
    }

    /// A read from the device waits until memory is given back, by a reply that is sent or given up.
    pub fn reads_wait_for_memory(&self) -> bool {
        self.log.reads_wait_for_memory()
    }

    /// An extent of a fetch reply, if it is still in the tail cache.
    pub fn hot_bytes(&self, extent: Extent) -> Option<&[u8]> {
        self.log.hot_bytes(extent)
    }

    /// The next result of [`Shard::read_extent`]: its ticket, and the bytes, verified.
    pub fn poll_read(&mut self) -> Option<(u64, Result<Vec<Slice>, Failure>)> {
        self.reads_done.pop_front()
    }

    /// A reply's extents have been sent or dropped: their segments may be recycled again.
    pub fn release_extents(&mut self, extents: &[Extent]) {
        for extent in extents {
            self.log.release(extent.segment);
        }
    }

    /// Begins a clean stop: new writes get `ShuttingDown`, waiting fetches are answered, what is appended becomes
    /// durable and is acknowledged, a checkpoint is written, the log is sealed. Goes on with every pump.
    pub fn stop(&mut self, now: Now) {
        self.stopping = true;
        self.fail_transactions(&ErrorCode::ShuttingDown.into());
        while let Some(index) = self.waits.first() {
            self.look_again(index, now);
        }
        while let Some(origin) = self.watches.pop() {
            self.reply(origin, Reply::Watched { is_due: true });
        }
        self.groups.stop();
        self.take_group_replies();
        self.stop_queues();
    }

    /// The stop is complete (or the shard fenced): nothing is left to be done on the disk.
    pub fn is_stopped(&self) -> bool {
        self.stopping && (self.log.is_stopped() || self.fault.is_some())
    }

    /// What it counted, and how much waits now.
    pub fn counters(&self) -> Counters {
        let (cursors, entries, waiting, messages_delivered, messages_settled) = self.queues.counts();
        let (queue_cursors, queue_entries, waiting_receives) = (cursors as u64, entries as u64, waiting as u64);
        Counters {
            waiting_fetches: self.fetches_waiting() as u64,
            waiting_acks: self.acks_waiting() as u64,
            groups: self.groups.len() as u64,
            group_bytes: self.groups.charged_bytes() as u64,
            queue_cursors,
            queue_entries,
            waiting_receives,
            messages_delivered,
            messages_settled,
            ..self.counters
        }
    }

    /// What its log counted.
    pub fn log_counters(&self) -> &log::LogCounters {
        self.log.counters()
    }

    /// Bytes of records that every queue has settled, above one that stays, and that are still stored.
    pub fn dead_bytes(&self) -> u64 {
        self.log.dead_bytes()
    }

    /// Why it refuses writes, if it does.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Shard 0, after `open`: the catalog as recovered, for every core's copy.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn take_log_events(&mut self, now: Now) {
        while let Some(event) = self.log.poll_event() {
            match event {
                LogEvent::Written { sequence } => {
                    self.written = self.written.max(sequence);
                    while let Some((partition, end)) = self.advances_on_write.pop(sequence) {
                        self.advance(partition, end);
                    }
                    self.wake(now);
                }
                LogEvent::Flushed { sequence } => {
                    self.flushed = self.flushed.max(sequence);
                    while let Some((partition, end)) = self.advances_on_flush.pop(sequence) {
                        self.advance(partition, end);
                    }
                    while self.deferred.front().is_some_and(|(at, _)| *at <= sequence) {
                        let Some((at, deferred)) = self.deferred.pop_front() else { break };
                        self.durable(at, deferred, now);
                    }
                    self.background.unblock();
                    self.queues.unblock();
                    self.wake(now);
                }
                LogEvent::Rolled { .. } => self.background.rolled(),
                LogEvent::FooterReady { segment, result } => self.footer_ready(segment, result, now),
                LogEvent::ReadDone { ticket, result } => self.read_done(ticket, result, now),
                LogEvent::Fenced { fault } => self.fenced(fault),
                LogEvent::Unblocked => {
                    self.background.unblock();
                    self.queues.unblock();
                }
            }
        }
    }

    /// A partition is readable up to `end`; who waits for that is woken when all progress has been taken in.
    fn advance(&mut self, id: PartitionId, end: Offset) {
        let Some(partition) = self.partitions.get_mut(id) else { return };
        partition.high_watermark = partition.high_watermark.max(end);
        assert!(partition.high_watermark <= partition.next_offset, "partition {id}: readable beyond its end");
        if partition.waiting != NONE || partition.has_queues || self.watches.has(id) {
            self.woken.push(id);
        }
    }

    /// A state record of commit group `sequence` is durable.
    fn durable(&mut self, sequence: u64, deferred: Deferred, now: Now) {
        match deferred {
            Deferred::Reserved { partition, end } => {
                if let Some(partition) = self.partitions.get_mut(partition) {
                    partition.reserved_end = end;
                }
            }
            Deferred::LogStart { partition, offset } => self.cut(partition, offset, now),
            Deferred::DeletedBefore { origin, partition, offset } => {
                self.cut(partition, offset, now);
                match self.partitions.get(partition).map(|partition| partition.log_start) {
                    Some(offset) => self.reply(origin, Reply::LogStart { offset }),
                    None => self.fail(origin, ErrorCode::UnknownPartition.into()),
                }
            }
            Deferred::Commit(commit) => self.commit_durable(sequence, *commit),
            Deferred::Answer { origin, answer } => self.reply(origin, *answer),
            Deferred::Group { ticket } => {
                self.groups.durable(ticket);
                self.take_group_replies();
            }
            Deferred::Catalog { origin, change, answer } => {
                self.next_change_id += 1;
                self.catalog_pending.insert(self.next_change_id, (origin, answer));
                self.events.push_back(ShardEvent::CatalogChanged { change_id: self.next_change_id, change });
            }
            Deferred::ProducerIds { end } => self.producer_ids_durable(end),
            Deferred::Queue(logged) => self.queue_durable(&logged, now),
            Deferred::Transaction { id, step } => self.transaction_durable(&id, step, now),
            Deferred::Marker { origin, partition } => self.marker_durable(origin, partition, sequence),
            Deferred::CheckpointEnd => {
                self.counters.checkpoints += 1;
                self.background.checkpoint_durable();
            }
        }
    }

    /// No more writes: whatever waits for the disk fails; what was acknowledged stays readable.
    fn fenced(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        let mut lost = self.acks_on_flush.drain_beyond(self.flushed);
        lost.extend(self.acks_on_write.drain_beyond(self.written));
        for (_, deferred) in std::mem::take(&mut self.deferred) {
            match deferred {
                Deferred::Commit(commit) => lost.push(commit.origin),
                Deferred::Queue(logged) => {
                    lost.extend(logged.answers.iter().map(|it| it.0));
                    lost.extend(logged.counts.iter().map(|it| it.0));
                }
                Deferred::Catalog { origin, .. } => lost.extend(origin),
                Deferred::Answer { origin, .. }
                | Deferred::DeletedBefore { origin, .. }
                | Deferred::Marker { origin, .. }
                | Deferred::Transaction { step: Step::Init { origin } | Step::Join { origin, .. }, .. } => lost.push(origin),
                Deferred::Transaction { step: Step::Decide, .. }
                | Deferred::Group { .. }
                | Deferred::Reserved { .. }
                | Deferred::LogStart { .. }
                | Deferred::ProducerIds { .. }
                | Deferred::CheckpointEnd => {}
            }
        }
        lost.extend(self.producer_id_waits.drain(..));
        for origin in lost {
            let failure = self.fenced_failure();
            self.fail(origin, failure);
        }
        let failure = self.fenced_failure();
        self.groups.fenced(&failure);
        self.take_group_replies();
        self.fail_transactions(&failure);
        self.fail_queues(&failure);
        self.background.fenced();
    }

    /// Nothing more is written: who waits for a transaction waits in vain.
    fn fail_transactions(&mut self, failure: &Failure) {
        self.fail_parked(failure);
        self.fail_transaction_waiters(failure);
    }

    fn fenced_failure(&self) -> Failure {
        match self.fault {
            Some(fault) => Failure::new(ErrorCode::ShardFenced, format!("{}: {fault}", ErrorCode::ShardFenced.text())),
            None => ErrorCode::ShardFenced.into(),
        }
    }

    /// Why no write is taken at all, if none is.
    fn refusal(&self) -> Option<Failure> {
        if self.fault.is_some() {
            return Some(self.fenced_failure());
        }
        self.stopping.then(|| ErrorCode::ShuttingDown.into())
    }

    /// Logs a state record; `deferred` happens once it is durable.
    fn log_state(&mut self, record: &StateRecord, deferred: Option<Deferred>, now: Now) -> Result<u64, AppendError> {
        if deferred.is_some() && self.deferred.len() >= DEFERRED_MAX {
            return Err(AppendError::Busy);
        }
        let body = record.to_bytes();
        let appended = self.log.append_state(&body, now)?;
        self.last_sequence = appended.sequence;
        self.counters.state_bytes += body.len() as u64;
        self.background.state_logged(body.len() as u64);
        if let Some(deferred) = deferred {
            self.deferred.push_back((appended.sequence, deferred));
        }
        Ok(appended.sequence)
    }

    /// What an append error means to whoever asked.
    fn append_failed(&mut self, origin: Origin, error: AppendError) -> Result<(), Busy> {
        if error == AppendError::Busy {
            return Err(Busy);
        }
        let failure = self.append_failure(error);
        self.fail(origin, failure);
        Ok(())
    }

    fn append_failure(&mut self, error: AppendError) -> Failure {
        match error {
            AppendError::Busy => ErrorCode::Overloaded.into(),
            AppendError::DiskFull => ErrorCode::DiskFull.into(),
            AppendError::TooLarge { limit_bytes } => {
                let message = format!("a segment of this broker takes batches of up to {limit_bytes} bytes; raise --segment-bytes");
                Failure::new(ErrorCode::MessageTooLarge, message)
            }
            AppendError::Fenced(fault) => {
                self.fault.get_or_insert(fault);
                self.fenced_failure()
            }
        }
    }

    fn reply(&mut self, origin: Origin, reply: Reply) {
        self.replies.push_back((origin, reply));
    }

    fn fail(&mut self, origin: Origin, failure: Failure) {
        self.counters.failures += 1;
        self.replies.push_back((origin, Reply::Failed(failure)));
    }

    fn acks_waiting(&self) -> usize {
        self.acks_now.len() + self.acks_on_write.len() + self.acks_on_flush.len()
    }

    fn fetches_waiting(&self) -> usize {
        self.waits.len() + self.watches.len() + self.footer_waits.len() + self.cold_waits.len() + self.queues.waiting()
    }

    fn partition_state(&self, id: PartitionId) -> Option<PartitionState> {
        let partition = self.partitions.get(id)?;
        Some(PartitionState {
            partition: id.0,
            log_start: partition.log_start.0,
            high_watermark: partition.high_watermark.0,
            size_bytes: self.log.partition_bytes(id),
        })
    }

    /// `core` is the router's to fill in.
    fn stats(&self) -> control::ShardStats {
        let (log, (segments, _)) = (self.log.counters(), self.log.depth());
        control::ShardStats {
            shard: self.config.shard.0,
            core: 0,
            records_in: self.counters.records_in,
            bytes_in: self.counters.bytes_in,
            bytes_out: self.counters.bytes_out,
            commits: log.commits,
            device_bytes_written: log.bytes_written,
            device_bytes_read: log.bytes_read,
            segments: segments as u64,
            fenced: self.fault.map_or_else(String::new, |fault| fault.to_string()),
        }
    }

    fn init_producer(&mut self, origin: Origin, now: Now) -> Result<(), Busy> {
        let refusal =
            if self.config.is_catalog { self.refusal() } else { Some(Failure::new(ErrorCode::Internal, "producer ids come from shard 0")) };
        if let Some(failure) = refusal {
            self.fail(origin, failure);
            return Ok(());
        }
        if self.producer_id_next < self.producer_ids_end {
            self.grant_producer(origin);
            return Ok(());
        }
        if self.producer_id_waits.len() >= PRODUCER_IDS_PER_BLOCK as usize {
            return Err(Busy);
        }
        if self.producer_ids_end_logged == self.producer_ids_end
            && let Err(error) = self.reserve_producer_ids(now)
        {
            return self.append_failed(origin, error);
        }
        self.producer_id_waits.push_back(origin);
        Ok(())
    }

    fn reserve_producer_ids(&mut self, now: Now) -> Result<(), AppendError> {
        let end = self.producer_ids_end + PRODUCER_IDS_PER_BLOCK;
        self.log_state(&StateRecord::ProducerIds { end }, Some(Deferred::ProducerIds { end }), now)?;
        self.producer_ids_end_logged = end;
        Ok(())
    }

    fn producer_ids_durable(&mut self, end: i64) {
        self.producer_ids_end = end;
        // As many may wait as a block holds: none is left over.
        while let Some(origin) = self.producer_id_waits.pop_front() {
            self.grant_producer(origin);
        }
    }

    fn grant_producer(&mut self, origin: Origin) {
        assert!(self.producer_id_next < self.producer_ids_end, "producer id beyond its durable block");
        let producer_id = ProducerId(self.producer_id_next);
        self.producer_id_next += 1;
        self.reply(origin, Reply::Producer { producer_id, producer_epoch: 0 });
    }
}
