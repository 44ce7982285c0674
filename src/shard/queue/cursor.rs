//! One queue in one partition: which messages are settled, in flight, waiting. Knows offsets and times, no bytes: records are
//! shown to it by the feeder, one after the other, and it says what becomes of each.
//!
//! Every offset from the cursor's beginning to the partition's end is in exactly one state:
//!
//! ```text
//!            ┌──────────── returning ◀── requeued, timed out, its consumer gone (until that is durable)
//!            ▼                 ▲
//! ahead ─▶ ready ──────▶ in flight ──▶ settled (acknowledged, dead-lettered, dropped)
//!   │        ▲                             ▲
//!   ├─▶ delayed ── its time has come       │
//!   └─▶ blocked ── its key is free    dying (on its way to another topic)
//! ```
//!
//! In flight is also what was acknowledged in a transaction that isn't decided ([`super::staged`]).
//!
//! *Ahead* costs nothing: everything from `next` on. So does what is settled below the floor.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use ringmain_wire::queue::{Delayed, Overflow, QueueConfig, QueueState, Settlement, Verb};

use super::calendar::Calendar;
use super::packed::{OffsetMap, PIECE_BITS, PIECE_MASK, PlaceSet, ones, tree_bytes};
use super::ranges::Ranges;
use super::settled::Settled;
use super::staged::{Staged, Where};
use crate::request::transaction::ProducerKey;
use crate::request::{Now, Origin};

/// Added to the deliveries of a message that was rejected: whoever finds it in a log sends it away.
pub const REJECTED: u16 = 1 << 15;
/// Deliveries are counted up to this.
const DELIVERIES_MAX: u16 = REJECTED - 1;
/// The delivery mark is kept ahead by at least so many messages …
const MARK_STEP_LEAST: u64 = 1_024;
/// … and by at most so many.
const MARK_STEP_MOST: u64 = 65_536;
/// Marks of crashes remembered apart; beyond, two are counted as one at the higher place.
const CRASHES_MAX: usize = 64;
/// Messages of busy keys set aside; then the feeder waits.
const BLOCKED_MAX: usize = 10_000;
/// Deadlines are looked at no more often than this.
const DEADLINES_EVERY_US: u64 = 50_000;
/// Delayed messages made ready in one turn, so that it stays short; the others follow in the next.
const DUE_PER_TURN: usize = 2_048;
/// Offsets are below: the byte above is for priority.
const OFFSET_BITS: u32 = 56;

/// A message in the order of delivery: `255 - priority`, then offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub(super) u64);

impl Place {
    /// Of a message of that priority.
    pub fn new(priority: u8, offset: u64) -> Place {
        Place(u64::from(255 - priority) << OFFSET_BITS | offset)
    }

    /// Which message.
    pub fn offset(self) -> u64 {
        self.0 & ((1 << OFFSET_BITS) - 1)
    }

    /// The first there is, whatever the priority.
    pub const FIRST: Place = Place(0);

    /// The first of the next lower priority. `None` = there is none.
    pub fn next_level(self) -> Option<Place> {
        ((self.0 >> OFFSET_BITS) < 255).then(|| Place(((self.0 >> OFFSET_BITS) + 1) << OFFSET_BITS))
    }

    fn priority(self) -> u8 {
        255 - (self.0 >> OFFSET_BITS) as u8
    }
}

/// A consumer: its number on a connection of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerKey {
    /// Core thread.
    pub core: u16,
    /// Slot there …
    pub connection: u32,
    /// … and its generation.
    pub generation: u32,
    /// On the connection.
    pub consumer: u32,
}

impl ConsumerKey {
    /// Consumer `consumer` of whoever asks.
    pub fn new(origin: &Origin, consumer: u32) -> ConsumerKey {
        ConsumerKey { core: origin.core, connection: origin.connection, generation: origin.generation, consumer }
    }
}

/// What the cursor wants to know of a record.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordInfo {
    /// Not before, ms since the Unix epoch.
    pub due_ms: Option<i64>,
    /// As the publisher says.
    pub priority: u8,
    /// After this it isn't delivered any more, ms since the Unix epoch.
    pub expires_ms: Option<i64>,
    /// Hash of the key, in a queue ordered by key.
    pub key: Option<u32>,
    /// The filter lets it through.
    pub matches: bool,
    /// Of key, value and headers.
    pub bytes: u32,
}

/// What becomes of a record that was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It can be delivered now: [`Cursor::deliver`] or [`Cursor::keep`] it.
    Ready(Place),
    /// It waits, and is read again.
    Waits,
    /// Nothing more is to be known of it.
    Done,
}

/// Why a message goes to the dead-letter topic, or elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// A consumer said so.
    Rejected,
    /// Delivered as often as it may be.
    DeliveryLimit,
    /// Its time to live is over.
    Expired,
    /// Pushed out by younger ones.
    QueueFull,
    /// Too many for this queue: it goes to another.
    Redirected,
}

impl Death {
    /// As the header says it.
    pub fn text(self) -> &'static str {
        match self {
            Death::Rejected => "rejected",
            Death::DeliveryLimit => "delivery-limit",
            Death::Expired => "expired",
            Death::QueueFull | Death::Redirected => "queue-full",
        }
    }
}

/// A message on its way to another topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dying {
    /// Which.
    pub offset: u64,
    /// Deliveries so far.
    pub deliveries: u16,
    /// Why.
    pub death: Death,
}

/// A message that came back, or waits: what must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Which.
    pub offset: u64,
    /// Deliveries so far; with [`REJECTED`] none will follow.
    pub deliveries: u16,
    /// Not before, ms since the Unix epoch; 0 = now, whatever its header says.
    pub due_ms: i64,
    /// Its level. Not logged: the record says it.
    pub priority: u8,
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Acknowledged, or purged.
    Acked,
    /// Stored in another topic.
    Dead,
    /// Gone without either.
    Dropped,
    /// No message at all: a marker, an aborted record, a gap.
    Void,
}

/// Ends of messages, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// See [`End::Acked`].
    pub acked: u64,
    /// See [`End::Dead`].
    pub dead: u64,
    /// See [`End::Dropped`].
    pub dropped: u64,
    /// See [`End::Void`].
    pub void: u64,
}

impl Tally {
    fn add(&mut self, end: End, count: u64) {
        match end {
            End::Acked => self.acked += count,
            End::Dead => self.dead += count,
            End::Dropped => self.dropped += count,
            End::Void => self.void += count,
        }
    }
}

/// Changes that aren't in the log yet.
#[derive(Debug, Default)]
pub struct Unlogged {
    /// Acknowledged: start, end.
    pub acked: Vec<(u64, u64)>,
    /// Stored elsewhere.
    pub dead: Vec<(u64, u64)>,
    /// Gone.
    pub dropped: Vec<(u64, u64)>,
    /// Came back: they are ready when that is durable.
    pub returned: Vec<Returned>,
    /// No messages. Known again from the records themselves; but where a cursor's floor moves the log's start, those may be gone.
    pub void: Vec<(u64, u64)>,
    /// Acknowledged in a transaction: whose, start, end.
    pub staged: Vec<(ProducerKey, u64, u64)>,
    /// Not any more: transactions that were aborted.
    pub unstaged: Vec<ProducerKey>,
    /// Who waits for that: origin, settled, refused.
    pub answers: Vec<(Origin, u32, u32)>,
    /// Who waits for a count.
    pub counts: Vec<(Origin, u64)>,
}

impl Unlogged {
    /// Nothing to log and nobody to answer.
    pub fn is_empty(&self) -> bool {
        self.acked.is_empty()
            && self.dead.is_empty()
            && self.dropped.is_empty()
            && self.returned.is_empty()
            && self.void.is_empty()
            && self.staged.is_empty()
            && self.unstaged.is_empty()
            && self.answers.is_empty()
            && self.counts.is_empty()
    }

    fn push(&mut self, end: End, start: u64, until: u64) {
        let ranges = match end {
            End::Acked => &mut self.acked,
            End::Dead => &mut self.dead,
            End::Dropped => &mut self.dropped,
            End::Void => &mut self.void,
        };
        match ranges.last_mut() {
            Some((_, last)) if *last == start => *last = until,
            _ => ranges.push((start, until)),
        }
    }
}

/// A message in flight.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    consumer: u32,
    /// Monotonic, in units of ms.
    deadline_ms: u64,
    /// This one included.
    deliveries: u16,
    priority: u8,
}

const _: () = assert!(size_of::<InFlight>() == 16);

#[derive(Debug)]
struct Consumer {
    in_flight: u64,
    /// In order of arrival.
    number: u64,
    priority: i16,
}

/// A key with a message in flight or on its way back.
#[derive(Debug)]
struct KeyLock {
    /// The message that holds it.
    holder: u64,
    /// Messages behind it, in order.
    behind: VecDeque<u64>,
}

/// What a cursor is made from again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Where the queue began.
    pub begin: u64,
    /// Ends so far.
    pub tally: Tally,
    /// Settled messages.
    pub settled: Settled,
    /// Messages that came back.
    pub history: BTreeMap<u64, (u16, i64)>,
    /// Messages below may have been delivered once more than `history` says.
    pub mark: u64,
    /// As `mark`, of crashes before.
    pub crashes: Vec<(u64, u16)>,
    /// Messages that found the queue full; maybe also some that never came.
    pub redirected: Ranges,
    /// Acknowledged in transactions that aren't decided.
    pub staged: BTreeMap<u64, ProducerKey>,
}

/// One queue in one partition.
#[derive(Debug)]
pub struct Cursor {
    config: Arc<QueueConfig>,
    begin: u64,
    tally: Tally,
    settled: Settled,
    /// The next offset that the feeder shows.
    next: u64,
    ready: PlaceSet,
    delayed: Calendar,
    in_flight: OffsetMap<InFlight>,
    /// Deliveries in vain, and when to try again; of messages in flight: before this delivery.
    history: BTreeMap<u64, (u16, i64)>,
    staged: Option<Box<Staged>>,
    returning: u64,
    /// Grows when the cursor is moved: what is under way then is no longer its own.
    age: u64,
    dying: VecDeque<Dying>,
    /// Handed out by [`Cursor::pop_dying`], not settled yet.
    leaving: u64,
    keys: HashMap<u32, KeyLock>,
    key_of: BTreeMap<u64, u32>,
    blocked: usize,
    consumers: HashMap<ConsumerKey, u32>,
    slots: Vec<Option<Consumer>>,
    next_consumer: u64,
    /// Messages below may be delivered …
    mark: u64,
    /// … when this is durable.
    mark_logged: u64,
    mark_step: u64,
    crashes: Vec<(u64, u16)>,
    /// No deadline is sooner, monotonic ms.
    first_deadline_ms: u64,
    deadlines_after_us: u64,
    redelivered: u64,
    /// Deliveries that the rate allows now, in millionths of one, and since when.
    allowance: (u64, u64),
    unlogged: Unlogged,
    /// Messages that found the queue full and aren't in the other topic yet.
    redirected: Ranges,
    /// The log says so of messages below; maybe of some that never came.
    redirect_end: u64,
    /// Of messages looked at, where bytes are bounded; those on their way to another topic left out.
    sizes: BTreeMap<u64, u32>,
    /// Their sum.
    bytes: u64,
}

impl Cursor {
    /// A queue that begins at `begin`.
    pub fn new(config: Arc<QueueConfig>, begin: u64) -> Cursor {
        Cursor::restore(config, Saved { begin, settled: Settled::below(begin), ..Saved::default() })
    }

    /// As it was, but that nothing is in flight: what was has been delivered once more.
    pub fn restore(config: Arc<QueueConfig>, saved: Saved) -> Cursor {
        let Saved { begin, tally, settled, history, mark, mut crashes, mut redirected, staged } = saved;
        let redirect_end = redirected.end();
        redirected.remove(0, settled.floor());
        settled.ranges_from(0).for_each(|(start, end)| redirected.remove(start, end));
        crashes.retain(|(below, _)| *below > settled.floor());
        if mark > settled.floor() {
            match crashes.iter_mut().find(|(below, _)| *below == mark) {
                Some((_, times)) => *times = times.saturating_add(1),
                None => crashes.push((mark, 1)),
            }
        }
        crashes.sort_unstable();
        while crashes.len() > CRASHES_MAX {
            // Too many rather than too few.
            let (_, times) = crashes.remove(0);
            crashes[0].1 = crashes[0].1.saturating_add(times);
        }
        Cursor {
            config,
            begin,
            tally,
            next: settled.floor(),
            settled,
            ready: PlaceSet::default(),
            delayed: Calendar::default(),
            in_flight: OffsetMap::default(),
            history,
            staged: Staged::restore(&staged),
            returning: 0,
            age: 0,
            dying: VecDeque::new(),
            leaving: 0,
            keys: HashMap::new(),
            key_of: BTreeMap::new(),
            blocked: 0,
            consumers: HashMap::new(),
            slots: Vec::new(),
            next_consumer: 0,
            mark: 0,
            mark_logged: 0,
            mark_step: MARK_STEP_LEAST,
            crashes,
            first_deadline_ms: u64::MAX,
            deadlines_after_us: 0,
            redelivered: 0,
            allowance: (0, 0),
            unlogged: Unlogged::default(),
            redirected,
            redirect_end,
            sizes: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Its settings.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Other settings, from now on.
    pub fn configure(&mut self, config: Arc<QueueConfig>) {
        self.config = config;
    }

    /// How often it has been moved.
    pub fn age(&self) -> u64 {
        self.age
    }

    /// First offset that isn't settled.
    pub fn floor(&self) -> u64 {
        self.settled.floor()
    }

    /// The first settled offset at or above `from`, and the first after it that isn't settled.
    pub fn settled_run(&self, from: u64) -> Option<(u64, u64)> {
        let first = self.settled.next_member(from)?;
        Some((first, self.settled.next_gap(first)))
    }

    /// The next offset that the feeder is to show.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Things it remembers one by one.
    pub fn entry_count(&self) -> usize {
        self.ready.len()
            + self.delayed.len()
            + self.in_flight.len()
            + self.history.len()
            + self.settled.entry_count()
            + self.dying.len()
            + self.key_of.len()
            + self.redirected.range_count()
            + self.sizes.len()
            + self.staged_count()
    }

    /// What these take of the memory, in bytes and about: a message in flight 20 next to others and 72 alone, one that is ready 1–30, a
    /// delayed one 12–45.
    pub fn memory_bytes(&self) -> usize {
        let trees = [
            (self.settled.entry_count() + self.redirected.range_count(), size_of::<(u64, u64)>()),
            (self.history.len(), size_of::<(u64, (u16, i64))>()),
            (self.key_of.len(), size_of::<(u64, u32)>()),
            (self.sizes.len(), size_of::<(u64, u32)>()),
            // In two trees each.
            (self.staged_count(), 2 * size_of::<(u64, ProducerKey, Where)>()),
        ];
        let in_trees: usize = trees.into_iter().map(|(entries, entry_bytes)| tree_bytes(entries, entry_bytes)).sum();
        let waiting = 2 * (self.dying.len() * size_of::<Dying>() + self.blocked * size_of::<u64>());
        let locks = 2 * self.keys.len() * size_of::<(u32, KeyLock)>();
        self.ready.bytes() + self.delayed.bytes() + self.in_flight.bytes() + in_trees + waiting + locks
    }

    /// Messages not settled, of a partition that ends at `end`.
    pub fn length(&self, end: u64) -> u64 {
        end.saturating_sub(self.settled.floor()) - self.settled.above().min(end.saturating_sub(self.settled.floor()))
    }

    /// Bytes of messages not settled. `tail_bytes`: of what comes from [`Cursor::next`] on.
    pub fn bytes(&self, tail_bytes: u64) -> u64 {
        self.bytes + tail_bytes
    }

    /// Whether it has all that it may have. `end`: the partition's; `tail_bytes`: of what comes from [`Cursor::next`] on.
    pub fn is_full(&self, end: u64, tail_bytes: impl Fn(u64) -> u64) -> bool {
        self.config.max_length.is_some_and(|most| self.length(end) >= most)
            || self.config.max_bytes.is_some_and(|most| self.bytes(tail_bytes(self.next)) >= most)
    }

    // ---- redirecting ----------------------------------------------------------------------------------

    /// What becomes of a message too many is said when it comes. Only once it is looked at, where a filter decides whether it is one.
    fn redirects_early(&self) -> bool {
        self.config.overflow == Overflow::Redirect && self.config.filter.is_empty()
    }

    /// The first of `count` records with `bytes` in all that come at `base` and find no room; `base + count` = all do. `None` = nothing is to
    /// be logged about them.
    pub fn redirect_from(&self, base: u64, count: u32, bytes: u64, tail_bytes: impl Fn(u64) -> u64) -> Option<u64> {
        let end = base + u64::from(count);
        let start = if self.redirects_early() { base + self.room(base, count, bytes, tail_bytes) } else { end };
        (start < end || base < self.redirect_end).then_some(start)
    }

    fn room(&self, base: u64, count: u32, bytes: u64, tail_bytes: impl Fn(u64) -> u64) -> u64 {
        let mut room = u64::from(count);
        if let Some(most) = self.config.max_length {
            room = room.min(most.saturating_sub(self.length(base).saturating_sub(self.redirected.count())));
        }
        if let Some(most) = self.config.max_bytes {
            let tail = base.saturating_sub(self.next);
            let leaves = self.redirected.count_in(self.next, base).min(tail);
            let stays_bytes =
                if tail == 0 { 0 } else { (u128::from(tail_bytes(self.next)) * u128::from(tail - leaves) / u128::from(tail)) as u64 };
            let each = (bytes / u64::from(count.max(1))).max(1);
            room = room.min(most.saturating_sub(self.bytes(stays_bytes)).div_ceil(each));
        }
        room
    }

    /// The log says so of records below `end`.
    pub fn redirect_logged(&mut self, end: u64) {
        self.redirect_end = end;
    }

    /// Messages that have come and are to go to another topic.
    pub fn redirect(&mut self, start: u64, end: u64) {
        self.redirected.push(start, end);
    }

    /// What was said about records from `next_offset` on is void: they never came.
    pub fn redirect_before(&mut self, next_offset: u64) {
        self.redirected.cut(next_offset);
    }

    /// Messages in `start..end` that are to go there and haven't gone.
    pub fn redirected_in(&self, start: u64, end: u64) -> u64 {
        self.redirected.count_in(start, end)
    }

    /// Ranges of them that start at or after `from`.
    pub fn redirected_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> {
        self.redirected.ranges_from(from)
    }

    // ---- feeding --------------------------------------------------------------------------------------

    /// The feeder goes ahead of deliveries: the order isn't that of the log, or length has to be watched.
    pub fn feeds_ahead(&self) -> bool {
        self.config.priorities > 1 || self.config.overflow == Overflow::Redirect || self.config.max_bytes.is_some()
    }

    /// The feeder may show another record.
    pub fn takes_more(&self) -> bool {
        self.blocked < BLOCKED_MAX && self.dying.len() < BLOCKED_MAX
    }

    /// The log has nothing from `next` up to `offset`, or nothing that is a message.
    pub fn skip_to(&mut self, offset: u64, end: End) {
        while self.next < offset {
            let from = self.settled.next_gap(self.next).min(offset);
            let until = self.settled.next_member(from).unwrap_or(offset).min(offset);
            if from < until {
                self.settle_range(from, until, end);
            }
            self.next = until.max(from);
        }
    }

    /// Shows the record at [`Cursor::next`].
    pub fn admit(&mut self, info: RecordInfo, now: Now) -> Admission {
        let offset = self.next;
        self.next += 1;
        if self.settled.contains(offset) {
            return Admission::Done;
        }
        if self.is_staged(offset) {
            self.see_staged(offset, info);
            return Admission::Done;
        }
        if !info.matches {
            self.settle_range(offset, offset + 1, End::Dropped);
            return Admission::Done;
        }
        let history = self.history.get(&offset).copied();
        let deliveries = self.deliveries_before(offset);
        if let Some(death) = self.death_of(deliveries) {
            self.dying.push_back(Dying { offset, deliveries: deliveries & !REJECTED, death });
            return Admission::Done;
        }
        if info.expires_ms.is_some_and(|at| at <= now.wall_ms) {
            self.die(Dying { offset, deliveries, death: Death::Expired });
            return Admission::Done;
        }
        let is_too_many = match self.redirects_early() {
            true => self.redirected.contains(offset),
            false => self.config.overflow == Overflow::Redirect && history.is_none() && self.is_full(offset, |_| 0),
        };
        if is_too_many {
            self.dying.push_back(Dying { offset, deliveries, death: Death::Redirected });
            return Admission::Done;
        }
        self.redirected.remove(offset, offset + 1);
        if self.config.max_bytes.is_some() {
            self.sizes.insert(offset, info.bytes);
            self.bytes += u64::from(info.bytes);
        }
        let place = Place::new(self.level(info.priority), offset);
        let due_ms = history.map_or(info.due_ms, |(_, due_ms)| Some(due_ms));
        if let Some(due_ms) = due_ms.filter(|due_ms| *due_ms > now.wall_ms) {
            self.delayed.insert(due_ms, place);
            return Admission::Waits;
        }
        if let Some(key) = info.key
            && !self.lock(key, offset)
        {
            return Admission::Waits;
        }
        Admission::Ready(place)
    }

    /// A record that is ready isn't delivered at once.
    pub fn keep(&mut self, place: Place) {
        self.ready.insert(place);
    }

    fn level(&self, priority: u8) -> u8 {
        match self.config.priorities {
            0 | 1 => 0,
            levels => priority.min((levels - 1).min(255) as u8),
        }
    }

    /// True: the message holds the key now. False: it is set aside behind the one that does.
    fn lock(&mut self, key: u32, offset: u64) -> bool {
        match self.keys.get_mut(&key) {
            Some(lock) if lock.holder != offset => {
                lock.behind.push_back(offset);
                self.blocked += 1;
                false
            }
            Some(_) => true,
            None => {
                self.keys.insert(key, KeyLock { holder: offset, behind: VecDeque::new() });
                self.key_of.insert(offset, key);
                true
            }
        }
    }

    /// The message is settled: the next one of its key is ready.
    fn unlock(&mut self, offset: u64) {
        if self.key_of.is_empty() {
            return;
        }
        let Some(key) = self.key_of.remove(&offset) else { return };
        let Some(lock) = self.keys.get_mut(&key) else { return };
        while let Some(next) = lock.behind.pop_front() {
            self.blocked -= 1;
            if !self.settled.contains(next) {
                lock.holder = next;
                self.key_of.insert(next, key);
                self.ready.insert(Place::new(0, next));
                return;
            }
        }
        self.keys.remove(&key);
    }

    // ---- delivering -----------------------------------------------------------------------------------

    /// The message that is delivered next, of those looked at.
    pub fn first_ready(&self) -> Option<Place> {
        self.ready.first()
    }

    /// The messages that are delivered next, in that order.
    pub fn ready(&self) -> impl Iterator<Item = Place> {
        self.ready.iter()
    }

    /// The first ready message at or behind that place.
    pub fn ready_from(&self, from: Place) -> Option<Place> {
        self.ready.first_from(from)
    }

    /// Messages that are ready, of those looked at.
    pub fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Whether it is settled.
    pub fn is_settled(&self, offset: u64) -> bool {
        self.settled.contains(offset)
    }

    /// A ready message's time is over.
    pub fn expire(&mut self, place: Place) {
        if self.ready.remove(&place) {
            let deliveries = self.deliveries_before(place.offset());
            self.die(Dying { offset: place.offset(), deliveries, death: Death::Expired });
        }
    }

    /// Before it is delivered: a message that was ready, shown again. True = [`Cursor::deliver`] it.
    pub fn recheck(&mut self, place: Place, info: RecordInfo, now: Now) -> bool {
        if info.expires_ms.is_some_and(|at| at <= now.wall_ms) {
            self.expire(place);
            return false;
        }
        // A delayed message takes its key when its time has come.
        if let Some(key) = info.key
            && !self.lock(key, place.offset())
        {
            self.ready.remove(&place);
            return false;
        }
        true
    }

    /// The log doesn't have it any more.
    pub fn lose(&mut self, offset: u64, place: Option<Place>) {
        if let Some(place) = place {
            self.ready.remove(&place);
        }
        self.end(offset, End::Dropped);
    }

    /// Gives a message to a consumer; says how often it has been delivered, this time included.
    pub fn deliver(&mut self, place: Place, consumer: u32, now: Now) -> u16 {
        let offset = place.offset();
        debug_assert!(offset < self.mark, "delivered beyond the mark");
        self.ready.remove(&place);
        let deliveries = self.deliveries_before(offset).saturating_add(1).min(DELIVERIES_MAX);
        let deadline_ms = now.monotonic_us / 1_000 + self.config.ack_timeout_ms;
        self.first_deadline_ms = self.first_deadline_ms.min(deadline_ms);
        self.in_flight.insert(offset, InFlight { consumer, deadline_ms, deliveries, priority: place.priority() });
        if let Some(Some(consumer)) = self.slots.get_mut(consumer as usize) {
            consumer.in_flight += 1;
        }
        self.redelivered += u64::from(deliveries > 1);
        deliveries
    }

    /// Deliveries that the rate allows now.
    pub fn allowance(&mut self, now: Now) -> u64 {
        let Some(rate) = self.config.rate_per_second else { return u64::MAX };
        let (left, since_us) = self.allowance;
        let elapsed_us = now.monotonic_us.saturating_sub(since_us);
        // A tenth of a second is saved up.
        let most = (u64::from(rate) * 100_000).max(1_000_000);
        let left = left.saturating_add(elapsed_us.saturating_mul(u64::from(rate))).min(most);
        self.allowance = (left, now.monotonic_us);
        left / 1_000_000
    }

    /// So many were delivered.
    pub fn spend(&mut self, deliveries: u64) {
        if self.config.rate_per_second.is_some() {
            self.allowance.0 = self.allowance.0.saturating_sub(deliveries.saturating_mul(1_000_000));
        }
    }

    /// How often a message that isn't in flight has been delivered.
    pub fn deliveries_before(&self, offset: u64) -> u16 {
        let (returned, _) = self.history.get(&offset).copied().unwrap_or_default();
        if returned & REJECTED != 0 {
            return returned;
        }
        let crashed: u32 = self.crashes.iter().filter(|(below, _)| offset < *below).map(|(_, times)| u32::from(*times)).sum();
        u32::from(returned).saturating_add(crashed).min(u32::from(DELIVERIES_MAX)) as u16
    }

    fn death_of(&self, deliveries: u16) -> Option<Death> {
        if deliveries & REJECTED != 0 {
            return Some(Death::Rejected);
        }
        self.config.delivery_limit.filter(|limit| u32::from(deliveries) >= *limit).map(|_| Death::DeliveryLimit)
    }

    // ---- the delivery mark ----------------------------------------------------------------------------

    /// Messages from here on can't be delivered yet.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// A new mark is to be logged: where, and the crashes that it remembers. `needed`: an offset that is to be delivered.
    pub fn mark_due(&mut self, needed: u64) -> Option<(u64, Vec<(u64, u16)>)> {
        if needed + self.mark_step / 2 < self.mark_logged {
            return None;
        }
        if self.mark > 0 && needed >= self.mark {
            // Somebody waits for the last one: take longer steps.
            self.mark_step = (self.mark_step * 2).min(MARK_STEP_MOST);
        }
        let mark = needed.max(self.mark_logged) + self.mark_step;
        self.crashes.retain(|(below, _)| *below > self.settled.floor());
        Some((mark, self.crashes.clone()))
    }

    /// It is in the log.
    pub fn mark_logged(&mut self, mark: u64) {
        self.mark_logged = self.mark_logged.max(mark);
    }

    /// It is durable.
    pub fn mark_durable(&mut self, mark: u64) {
        self.mark = self.mark.max(mark);
    }

    // ---- consumers ------------------------------------------------------------------------------------

    /// A consumer asks: its number here. `None` = the queue is exclusive, and has another.
    pub fn attach(&mut self, key: ConsumerKey, priority: i16) -> Option<u32> {
        if let Some(slot) = self.consumers.get(&key) {
            if let Some(Some(consumer)) = self.slots.get_mut(*slot as usize) {
                consumer.priority = priority;
            }
            return Some(*slot);
        }
        if self.config.exclusive && !self.consumers.is_empty() {
            return None;
        }
        self.next_consumer += 1;
        let consumer = Some(Consumer { in_flight: 0, number: self.next_consumer, priority });
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => {
                self.slots[slot] = consumer;
                slot
            }
            None => {
                self.slots.push(consumer);
                self.slots.len() - 1
            }
        };
        self.consumers.insert(key, slot as u32);
        Some(slot as u32)
    }

    /// The consumer's number, if it has asked.
    pub fn consumer(&self, key: &ConsumerKey) -> Option<u32> {
        self.consumers.get(key).copied()
    }

    /// Whether the consumer is served; with a single active one the others wait.
    pub fn serves(&self, slot: u32) -> bool {
        !self.config.single_active || self.active() == Some(slot)
    }

    fn active(&self) -> Option<u32> {
        let attached = self.slots.iter().zip(0..).filter_map(|(consumer, slot)| Some((consumer.as_ref()?, slot)));
        attached.min_by_key(|(consumer, _)| (std::cmp::Reverse(consumer.priority), consumer.number)).map(|(_, slot)| slot)
    }

    /// Consumers that have asked and haven't left.
    pub fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// Consumers of a connection that has gone, or one that leaves: what they have comes back. Says how much.
    pub fn detach(&mut self, is_gone: impl Fn(&ConsumerKey) -> bool, now: Now) -> u64 {
        let gone: Vec<(ConsumerKey, u32)> =
            self.consumers.iter().filter(|(key, _)| is_gone(key)).map(|(key, slot)| (*key, *slot)).collect();
        let mut returned = 0;
        for (key, slot) in gone {
            self.consumers.remove(&key);
            let Some(consumer) = self.slots.get_mut(slot as usize).and_then(Option::take) else { continue };
            if consumer.in_flight > 0 {
                let held: Vec<u64> = self.in_flight.iter().filter(|(_, held)| held.consumer == slot).map(|(offset, _)| offset).collect();
                returned += held.len() as u64;
                held.into_iter().for_each(|offset| self.let_go(offset, now));
            }
        }
        returned
    }

    // ---- settling -------------------------------------------------------------------------------------

    /// A consumer says what becomes of messages, one settlement after the other. `(settled, refused)`.
    pub fn settle_all(&mut self, slot: Option<u32>, settlements: &[Settlement], now: Now) -> (u32, u32) {
        let (mut settled, mut refused) = (0u32, 0u32);
        let mut rest = settlements;
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            let (more, less) = match slot.filter(|_| is_single_ack(first) && self.staged.is_none()) {
                // What was delivered in another order than the log's is acknowledged one by one, and often close to each other.
                Some(slot) => {
                    let (piece, mut wanted) = (first.first >> PIECE_BITS, 1u64 << (first.first & PIECE_MASK));
                    while let Some((next, behind)) = rest.split_first()
                        && is_single_ack(next)
                        && next.first >> PIECE_BITS == piece
                        && wanted >> (next.first & PIECE_MASK) == 0
                    {
                        wanted |= 1 << (next.first & PIECE_MASK);
                        rest = behind;
                    }
                    let more = self.acknowledge(slot, piece, wanted);
                    (more, wanted.count_ones() - more)
                }
                None => self.settle(slot, first, now),
            };
            settled = settled.saturating_add(more);
            refused = refused.saturating_add(less);
        }
        (settled, refused)
    }

    /// Messages of one piece, by their bits; nothing is staged. Says how many the consumer had.
    fn acknowledge(&mut self, slot: u32, piece: u64, wanted: u64) -> u32 {
        let ended = self.in_flight.remove_bits(piece, wanted, |held| held.consumer == slot);
        if ended == 0 {
            return 0;
        }
        let count = ended.count_ones();
        if let Some(Some(consumer)) = self.slots.get_mut(slot as usize) {
            consumer.in_flight -= u64::from(count);
        }
        let added = self.settled.insert_piece(piece, ended);
        debug_assert_eq!(added, u64::from(count), "in flight and settled");
        self.tally.add(End::Acked, added);
        for at in ones(ended) {
            let offset = piece << PIECE_BITS | at;
            self.unlogged.push(End::Acked, offset, offset + 1);
            self.redirected.remove(offset, offset + 1);
            self.forget_sizes(offset, offset + 1);
            self.history.remove(&offset);
            self.unlock(offset);
        }
        count
    }

    /// A consumer says what becomes of messages. `(settled, refused)`.
    fn settle(&mut self, slot: Option<u32>, settlement: &Settlement, now: Now) -> (u32, u32) {
        let end = settlement.first.saturating_add(u64::from(settlement.count));
        let Some(slot) = slot else { return (0, u32::from(settlement.count == 1)) };
        let mut settled = 0;
        let mut from = settlement.first;
        while let Some((offset, held)) = self.in_flight.first_in(from..end) {
            from = offset + 1;
            if held.consumer != slot || self.is_staged(offset) {
                continue;
            }
            settled += 1;
            match settlement.verb {
                Verb::Ack => {
                    self.forget_flight(offset);
                    self.end(offset, End::Acked);
                }
                Verb::Requeue => self.give_back(offset, settlement.delay_ms, now),
                Verb::Reject => self.reject(offset),
                Verb::Extend => self.extend(offset, settlement.delay_ms, now),
            }
        }
        (settled, u32::from(settled == 0 && settlement.count == 1))
    }

    // ---- transactions ---------------------------------------------------------------------------------

    /// A consumer acknowledges messages in a transaction. `(settled, refused)`.
    pub fn stage(&mut self, slot: Option<u32>, settlement: &Settlement, producer: ProducerKey) -> (u32, u32) {
        let end = settlement.first.saturating_add(u64::from(settlement.count));
        let Some(slot) = slot else { return (0, u32::from(settlement.count == 1)) };
        let mut settled = 0;
        for (offset, held) in self.in_flight.range(settlement.first..end) {
            let staged = self.staged.get_or_insert_default();
            if held.consumer != slot || staged.of(offset).is_some_and(|of| of != producer) {
                continue;
            }
            settled += 1;
            if staged.contains(offset) {
                continue;
            }
            staged.insert(offset, producer);
            match self.unlogged.staged.last_mut() {
                Some((of, _, last)) if *of == producer && *last == offset => *last = offset + 1,
                _ => self.unlogged.staged.push((producer, offset, offset + 1)),
            }
        }
        (settled, u32::from(settled == 0 && settlement.count == 1))
    }

    /// A transaction of `producer` is decided: what it has staged is acknowledged, or as it would be without.
    pub fn decide(&mut self, producer: ProducerKey, commit: bool, now: Now) {
        let Some(taken) = self.staged.as_deref_mut().map(|staged| staged.take(producer)).filter(|taken| !taken.is_empty()) else { return };
        if self.staged_count() == 0 {
            self.staged = None;
        }
        if !commit {
            self.unlogged.unstaged.push(producer);
        }
        for (offset, at) in taken {
            if commit {
                self.forget_flight(offset);
                self.end(offset, End::Acked);
                continue;
            }
            match at {
                Where::Held => {
                    let deadline_ms = self.in_flight.get(offset).map_or(u64::MAX, |held| held.deadline_ms);
                    self.first_deadline_ms = self.first_deadline_ms.min(deadline_ms);
                }
                Where::Left { deliveries, priority } => self.come_back(offset, deliveries, priority, 0, now),
                Where::Unseen if offset >= self.next => {}
                Where::Unseen => self.ready_again(offset, 0),
                Where::Seen { priority } => self.ready_again(offset, priority),
            }
        }
    }

    fn ready_again(&mut self, offset: u64, priority: u8) {
        let deliveries = self.deliveries_before(offset);
        match self.death_of(deliveries) {
            Some(death) => self.dying.push_back(Dying { offset, deliveries: deliveries & !REJECTED, death }),
            None => drop(self.ready.insert(Place::new(priority, offset))),
        }
    }

    /// The feeder comes to a message that was staged before a crash.
    fn see_staged(&mut self, offset: u64, info: RecordInfo) {
        let priority = self.level(info.priority);
        if let Some(staged) = &mut self.staged {
            staged.put(offset, Where::Seen { priority });
        }
        if self.config.max_bytes.is_some() {
            self.sizes.insert(offset, info.bytes);
            self.bytes += u64::from(info.bytes);
        }
        if let Some(key) = info.key.filter(|key| !self.keys.contains_key(key)) {
            self.lock(key, offset);
        }
    }

    /// The consumer has gone that had the message.
    fn let_go(&mut self, offset: u64, now: Now) {
        if !self.is_staged(offset) {
            return self.give_back(offset, 0, now);
        }
        if let (Some(held), Some(staged)) = (self.forget_flight(offset), &mut self.staged) {
            staged.put(offset, Where::Left { deliveries: held.deliveries, priority: held.priority });
        }
    }

    fn is_staged(&self, offset: u64) -> bool {
        self.staged.as_deref().is_some_and(|staged| staged.contains(offset))
    }

    /// Whether a transaction of this producer has staged something here.
    pub fn has_staged(&self, producer: ProducerKey) -> bool {
        self.staged.as_deref().is_some_and(|staged| staged.has(producer))
    }

    /// Staged messages.
    pub fn staged_count(&self) -> usize {
        self.staged.as_deref().map_or(0, Staged::len)
    }

    /// Messages in flight that can be staged.
    pub fn unstaged_count(&self) -> usize {
        self.in_flight.len() + self.staged_away() - self.staged_count()
    }

    fn staged_away(&self) -> usize {
        self.staged.as_deref().map_or(0, Staged::away)
    }

    /// Staged messages from `from` on.
    pub fn staged_from(&self, from: u64) -> impl Iterator<Item = (u64, ProducerKey)> {
        self.staged.as_deref().into_iter().flat_map(move |staged| staged.from(from))
    }

    /// Who settled is answered when all that isn't logged yet is durable.
    pub fn answer_later(&mut self, origin: Origin, settled: u32, refused: u32) {
        self.unlogged.answers.push((origin, settled, refused));
    }

    /// The same for a count.
    pub fn count_later(&mut self, origin: Origin, count: u64) {
        self.unlogged.counts.push((origin, count));
    }

    fn extend(&mut self, offset: u64, ms: u64, now: Now) {
        let deadline_ms = (now.monotonic_us / 1_000).saturating_add(ms);
        self.first_deadline_ms = self.first_deadline_ms.min(deadline_ms);
        if let Some(held) = self.in_flight.get_mut(offset) {
            held.deadline_ms = deadline_ms;
        }
    }

    fn reject(&mut self, offset: u64) {
        if self.forget_flight(offset).is_some() {
            self.returning += 1;
            let deliveries = REJECTED | self.one_more(offset);
            self.unlogged.returned.push(Returned { offset, deliveries, due_ms: 0, priority: 0 });
        }
    }

    /// Ends a delivery without success.
    fn give_back(&mut self, offset: u64, delay_ms: u64, now: Now) {
        let Some(held) = self.forget_flight(offset) else { return };
        self.come_back(offset, held.deliveries, held.priority, delay_ms, now);
    }

    fn come_back(&mut self, offset: u64, delivered: u16, priority: u8, delay_ms: u64, now: Now) {
        let wait_ms = self.config.backoff.wait_ms(u32::from(delivered)).max(delay_ms).min(i64::MAX as u64 / 2);
        let due_ms = if wait_ms == 0 { 0 } else { now.wall_ms.saturating_add(wait_ms as i64) };
        self.returning += 1;
        let deliveries = self.one_more(offset);
        self.unlogged.returned.push(Returned { offset, deliveries, due_ms, priority });
    }

    /// Its deliveries in vain, with the one that ends. What crashes add isn't among them: it is added where they are counted.
    fn one_more(&self, offset: u64) -> u16 {
        let (returned, _) = self.history.get(&offset).copied().unwrap_or_default();
        returned.saturating_add(1).min(DELIVERIES_MAX)
    }

    fn forget_flight(&mut self, offset: u64) -> Option<InFlight> {
        let held = self.in_flight.remove(offset)?;
        if let Some(Some(consumer)) = self.slots.get_mut(held.consumer as usize) {
            consumer.in_flight -= 1;
        }
        Some(held)
    }

    /// Messages on their way back.
    pub fn returning(&self) -> u64 {
        self.returning
    }

    /// Nothing younger may overtake what is on its way back.
    pub fn holds_back(&self) -> bool {
        self.returning > 0 && (self.config.single_active || self.config.exclusive)
    }

    /// A returned message's record is in the log: from now on checkpoints know it.
    pub fn returned_logged(&mut self, returned: &Returned) {
        if !self.settled.contains(returned.offset) && returned.offset < self.next {
            self.history.insert(returned.offset, (returned.deliveries, returned.due_ms));
        }
    }

    /// The record is durable: the message can be delivered again.
    pub fn returned_durable(&mut self, returned: &Returned, now: Now) {
        self.returning = self.returning.saturating_sub(1);
        let Returned { offset, due_ms, priority, .. } = *returned;
        // Purged, or the cursor was moved, meanwhile.
        if self.settled.contains(offset) || offset >= self.next || self.in_flight.contains(offset) {
            return;
        }
        let deliveries = self.deliveries_before(offset);
        if let Some(death) = self.death_of(deliveries) {
            self.forget_sizes(offset, offset + 1);
            return self.dying.push_back(Dying { offset, deliveries: deliveries & !REJECTED, death });
        }
        let place = Place::new(priority, offset);
        if due_ms > now.wall_ms {
            self.delayed.insert(due_ms, place);
        } else {
            self.ready.insert(place);
        }
    }

    fn forget_sizes(&mut self, start: u64, end: u64) {
        while let Some((&offset, &bytes)) = self.sizes.range(start..end).next() {
            self.sizes.remove(&offset);
            self.bytes -= u64::from(bytes);
        }
    }

    fn die(&mut self, dying: Dying) {
        self.forget_sizes(dying.offset, dying.offset + 1);
        match self.target_of(dying.death) {
            true => self.dying.push_back(dying),
            false => self.end(dying.offset, End::Dropped),
        }
    }

    /// Whether there is a topic for those that end so.
    fn target_of(&self, death: Death) -> bool {
        match death {
            Death::Redirected => self.config.redirect.is_some(),
            _ => self.config.dead_letter.is_some(),
        }
    }

    /// The next message that is to go to another topic, which one, and why; without a topic it is dropped here.
    pub fn pop_dying(&mut self) -> Option<(Dying, String)> {
        while let Some(dying) = self.dying.pop_front() {
            let target = match dying.death {
                Death::Redirected => &self.config.redirect,
                _ => &self.config.dead_letter,
            };
            match target.clone() {
                Some(topic) => {
                    self.leaving += 1;
                    return Some((dying, topic));
                }
                None => self.end(dying.offset, End::Dropped),
            }
        }
        None
    }

    /// A message handed out by `pop_dying` is durable in its new topic, or gone from this log.
    pub fn left(&mut self, offset: u64, end: End) {
        self.leaving = self.leaving.saturating_sub(1);
        self.end(offset, end);
    }

    /// It can't be read yet: it goes first when it can.
    pub fn not_yet(&mut self, dying: Dying) {
        self.leaving = self.leaving.saturating_sub(1);
        if !self.settled.contains(dying.offset) {
            self.dying.push_front(dying);
        }
    }

    /// It couldn't be stored there: it stays dying.
    pub fn stays(&mut self, dying: Dying) {
        self.leaving = self.leaving.saturating_sub(1);
        if !self.settled.contains(dying.offset) {
            self.dying.push_back(dying);
        }
    }

    /// Messages wait to go to another topic.
    pub fn has_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    fn end(&mut self, offset: u64, end: End) {
        self.settle_range(offset, offset + 1, end);
        self.history.remove(&offset);
        self.unlock(offset);
    }

    /// What was settled before is passed over.
    fn settle_range(&mut self, start: u64, end: u64, how: End) {
        let added = self.settled.insert(start, end);
        if let Some(staged) = &mut self.staged {
            staged.remove(start, end);
        }
        if added > 0 {
            self.tally.add(how, added);
            if how != End::Void || self.config.drop_acked {
                self.unlogged.push(how, start, end);
            }
            self.redirected.remove(start, end);
            self.forget_sizes(start, end);
        }
    }

    /// Changes that are to be logged; they are as good as logged now.
    pub fn take_unlogged(&mut self) -> Unlogged {
        std::mem::take(&mut self.unlogged)
    }

    /// They couldn't be.
    pub fn put_back(&mut self, unlogged: Unlogged) {
        debug_assert!(self.unlogged.is_empty(), "nothing happens between");
        self.unlogged = unlogged;
    }

    /// Something is to be logged.
    pub fn has_unlogged(&self) -> bool {
        !self.unlogged.is_empty()
    }

    // ---- time -----------------------------------------------------------------------------------------

    /// Delayed messages whose time has come are ready; deliveries whose deadline has passed come back.
    pub fn tick(&mut self, now: Now) {
        let ready = &mut self.ready;
        self.delayed.take_due(now.wall_ms, DUE_PER_TURN, |place| {
            ready.insert(place);
        });
        let now_ms = now.monotonic_us / 1_000;
        if self.first_deadline_ms <= now_ms && self.deadlines_after_us <= now.monotonic_us {
            // The deadline of what is staged has no effect before the decision.
            let runs = |cursor: &Cursor, offset: u64| !cursor.is_staged(offset);
            let held = self.in_flight.iter().filter(|(offset, _)| runs(self, *offset));
            let late: Vec<u64> = held.filter(|(_, held)| held.deadline_ms <= now_ms).map(|(offset, _)| offset).collect();
            late.into_iter().for_each(|offset| self.give_back(offset, 0, now));
            let held = self.in_flight.iter().filter(|(offset, _)| runs(self, *offset));
            self.first_deadline_ms = held.map(|(_, held)| held.deadline_ms).min().unwrap_or(u64::MAX);
            self.deadlines_after_us = now.monotonic_us + DEADLINES_EVERY_US;
        }
    }

    /// When `tick` has something to do, monotonic µs.
    pub fn next_deadline_us(&self, now: Now) -> Option<u64> {
        let due = self.delayed.first_due_ms().map(|due_ms| {
            // Wall clocks step: look again every second.
            let wait_ms = due_ms.saturating_sub(now.wall_ms).clamp(0, 1_000) as u64;
            now.monotonic_us + wait_ms * 1_000
        });
        let late = (self.first_deadline_ms != u64::MAX).then(|| self.deadlines_after_us.max(self.first_deadline_ms.saturating_mul(1_000)));
        due.into_iter().chain(late).min()
    }

    // ---- by hand --------------------------------------------------------------------------------------

    /// The partition begins at `start` now: what was before is lost.
    pub fn truncate(&mut self, start: u64) {
        if start <= self.settled.floor() {
            return;
        }
        let held: Vec<u64> = self.in_flight.range(0..start).map(|(offset, _)| offset).collect();
        for offset in held {
            self.forget_flight(offset);
        }
        self.ready.retain(|place| place.offset() >= start);
        self.delayed.retain(|place| place.offset() >= start);
        self.dying.retain(|dying| dying.offset >= start);
        self.settle_gaps(self.settled.floor(), start, End::Dropped);
        self.next = self.next.max(start);
        self.history = self.history.split_off(&start);
        let gone: Vec<u64> = self.key_of.keys().copied().filter(|offset| *offset < start).collect();
        gone.into_iter().for_each(|offset| self.unlock(offset));
    }

    /// Settles everything that isn't in flight, up to `end`. Says how many.
    pub fn purge(&mut self, end: u64) -> u64 {
        let before = self.tally.acked;
        let mut held: BTreeSet<u64> = self.in_flight.iter().map(|(offset, _)| offset).collect();
        held.extend(self.staged_from(0).map(|(offset, _)| offset));
        self.ready.clear();
        self.delayed.clear();
        self.dying.clear();
        self.blocked = 0;
        self.keys.values_mut().for_each(|lock| lock.behind.clear());
        let mut from = self.settled.floor();
        for offset in held.iter().copied().chain([end]) {
            if from < offset.min(end) {
                self.settle_gaps(from, offset.min(end), End::Acked);
            }
            from = from.max(offset + 1);
        }
        self.next = self.next.max(end);
        self.history.retain(|offset, _| held.contains(offset));
        let gone: Vec<u64> = self.key_of.keys().copied().filter(|offset| !held.contains(offset)).collect();
        gone.into_iter().for_each(|offset| self.unlock(offset));
        self.tally.acked - before
    }

    fn settle_gaps(&mut self, start: u64, end: u64, how: End) {
        let mut from = start;
        while from < end {
            from = self.settled.next_gap(from);
            let until = self.settled.next_member(from).unwrap_or(end).min(end);
            if from < until {
                self.settle_range(from, until, how);
            }
            from = until.max(from + 1);
        }
    }

    /// As if it had been created at `offset`, but for its settings; counts begin anew.
    pub fn seek(&mut self, offset: u64) {
        let consumers = (std::mem::take(&mut self.consumers), std::mem::take(&mut self.slots), self.next_consumer);
        let (unlogged, age) = (std::mem::take(&mut self.unlogged), self.age + 1);
        *self = Cursor::new(self.config.clone(), offset);
        self.age = age;
        (self.consumers, self.slots, self.next_consumer) = consumers;
        self.slots.iter_mut().flatten().for_each(|consumer| consumer.in_flight = 0);
        self.unlogged = Unlogged { answers: unlogged.answers, counts: unlogged.counts, ..Unlogged::default() };
    }

    /// Messages that wait for their time, from `after` on.
    pub fn list_delayed(&self, after: Option<(i64, u64)>, max: usize) -> Vec<Delayed> {
        let listed = self.delayed.list(after, max).into_iter();
        listed.map(|(due_ms, offset)| Delayed { offset, due_ms, deliveries: u32::from(self.deliveries_before(offset)) }).collect()
    }

    /// A waiting message is ready, or settled, at once. False = it doesn't wait.
    pub fn hurry(&mut self, offset: u64, cancel: bool) -> bool {
        let Some((due_ms, place)) = self.delayed.find(offset) else { return false };
        self.delayed.remove(due_ms, place);
        if cancel {
            self.end(offset, End::Acked);
        } else {
            let (deliveries, _) = self.history.get(&offset).copied().unwrap_or_default();
            self.returning += 1;
            self.unlogged.returned.push(Returned { offset, deliveries, due_ms: 0, priority: place.priority() });
        }
        true
    }

    /// The oldest ready messages go, until there are no more than may be of those before `end`. `tail_bytes`: of what comes from
    /// [`Cursor::next`] on.
    pub fn drop_head(&mut self, end: u64, tail_bytes: u64) {
        let (most, most_bytes) = (self.config.max_length.unwrap_or(u64::MAX), self.config.max_bytes.unwrap_or(u64::MAX));
        let mut from = self.settled.floor();
        loop {
            let is_too_long = self.length(end) > most.saturating_add(self.dying.len() as u64 + self.leaving);
            // Of what it hasn't looked at it doesn't know how much would go.
            let is_too_large = self.bytes(tail_bytes) > most_bytes && from < self.next;
            if !is_too_long && !is_too_large {
                return;
            }
            from = self.settled.next_gap(from);
            if from >= end || self.dying.len() >= BLOCKED_MAX {
                return;
            }
            let offset = from;
            from += 1;
            if self.in_flight.contains(offset) || self.is_staged(offset) || self.dying.iter().any(|dying| dying.offset == offset) {
                continue;
            }
            if offset >= self.next {
                if !is_too_long {
                    return;
                }
                self.next = offset + 1;
            } else if !(0..=255).take(usize::from(self.config.priorities.max(1))).any(|level| self.ready.remove(&Place::new(level, offset)))
            {
                // It waits for its time, or is on its way back.
                continue;
            }
            let deliveries = self.deliveries_before(offset);
            self.die(Dying { offset, deliveries, death: Death::QueueFull });
        }
    }

    /// Messages that aren't settled, from `from` on.
    pub fn list_unsettled(&self, from: u64, end: u64, max: usize) -> Vec<(u64, u32)> {
        let mut listed = Vec::new();
        let mut offset = from;
        while listed.len() < max {
            offset = self.settled.next_gap(offset);
            if offset >= end {
                break;
            }
            let deliveries = self.in_flight.get(offset).map_or_else(|| self.deliveries_before(offset), |held| held.deliveries);
            listed.push((offset, u32::from(deliveries)));
            offset += 1;
        }
        listed
    }

    /// In numbers, in a partition that ends at `end`.
    pub fn state(&self, end: u64, waiting: u32) -> QueueState {
        let unsettled = self.length(end);
        let in_flight = (self.in_flight.len() + self.staged_away()) as u64;
        let delayed = self.delayed.len() as u64 + self.returning + self.dying.len() as u64 + self.leaving + self.blocked as u64;
        QueueState {
            floor: self.floor(),
            enqueued: end.saturating_sub(self.begin) - self.tally.void,
            ready: unsettled.saturating_sub(in_flight + delayed),
            delayed,
            in_flight,
            acked: self.tally.acked,
            dead_lettered: self.tally.dead,
            dropped: self.tally.dropped,
            redelivered: self.redelivered,
            consumers: self.consumers.len() as u32,
            waiting,
        }
    }

    // ---- the log --------------------------------------------------------------------------------------

    /// Nothing is delivered any more and the log is about to end: what is in flight has been delivered, nothing else has.
    pub fn settle_down(&mut self) {
        let held: Vec<u64> = std::mem::take(&mut self.in_flight).iter().map(|(offset, _)| offset).collect();
        for offset in held {
            let deliveries = self.one_more(offset);
            self.history.insert(offset, (deliveries, 0));
        }
        let left = self.staged.iter().flat_map(|staged| staged.places());
        let left: Vec<u64> = left.filter(|(_, at)| matches!(at, Where::Left { .. })).map(|(offset, _)| offset).collect();
        for offset in left {
            let deliveries = self.one_more(offset);
            self.history.insert(offset, (deliveries, 0));
        }
        self.slots.iter_mut().flatten().for_each(|consumer| consumer.in_flight = 0);
        self.mark_logged = 0;
        self.mark = 0;
    }

    /// Head of a checkpoint: all but settled ranges and history.
    pub fn head(&self) -> (u64, Tally, u64, u64, Vec<(u64, u16)>) {
        (self.begin, self.tally, self.settled.floor(), self.mark_logged, self.crashes.clone())
    }

    /// Settled ranges above the floor that start at or after `from`.
    pub fn settled_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> {
        self.settled.ranges_from(from)
    }

    /// History from `from` on; also of messages that are on their way back.
    pub fn history_from(&self, from: u64) -> impl Iterator<Item = Returned> {
        self.history.range(from..).map(|(offset, (deliveries, due_ms))| Returned {
            offset: *offset,
            deliveries: *deliveries,
            due_ms: *due_ms,
            priority: 0,
        })
    }

    /// For tests: the states add up.
    #[cfg(test)]
    pub fn check(&self, end: u64) {
        let state = self.state(end, 0);
        let sum = state.ready + state.delayed + state.in_flight + state.acked + state.dead_lettered + state.dropped;
        assert_eq!(sum, state.enqueued, "{state:?}");
        for place in self.ready.iter() {
            let offset = place.offset();
            assert!(!self.settled.contains(offset) && !self.in_flight.contains(offset) && offset < self.next, "ready {offset}");
        }
        assert!(self.in_flight.iter().all(|(offset, _)| !self.settled.contains(offset)));
        assert!(self.delayed.iter().all(|(_, place)| !self.settled.contains(place.offset())));
        let held: u64 = self.slots.iter().flatten().map(|consumer| consumer.in_flight).sum();
        assert_eq!(held, self.in_flight.len() as u64);
        for (offset, at) in self.staged.iter().flat_map(|staged| staged.places()) {
            assert_eq!(self.in_flight.contains(offset), at == Where::Held, "staged {offset} {at:?}");
            assert!(!self.settled.contains(offset), "staged {offset} is settled");
            assert!(!self.ready.iter().any(|place| place.offset() == offset), "staged {offset} is ready");
        }
    }
}

fn is_single_ack(settlement: &Settlement) -> bool {
    settlement.count == 1 && settlement.verb == Verb::Ack
}

impl Saved {
    /// Settled: a transaction has no say in them any more.
    pub fn unstage(&mut self, start: u64, end: u64) {
        while let Some((&offset, _)) = self.staged.range(start..end.max(start)).next() {
            self.staged.remove(&offset);
        }
    }

    /// A message has ended.
    pub fn end(&mut self, start: u64, end: u64, how: End) {
        let added = self.settled.insert(start, end);
        self.tally.add(how, added);
        self.redirected.remove(start, end);
        self.unstage(start, end);
        if end - start == 1 {
            self.history.remove(&start);
        } else {
            self.history.retain(|offset, _| !(start..end).contains(offset));
        }
    }
}
