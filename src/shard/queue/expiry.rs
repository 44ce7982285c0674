//! Messages that expire while nobody receives.
//!
//! Looked at is where a queue begins: the first ready message of each priority, and the next one in the log. So queues whose messages live
//! equally long lose each in time; a message behind one that lives longer expires once that has gone. The heads are looked at a moment after
//! they have changed and when the first of them expires; a queue where nothing changes costs nothing.

use super::Slot;
use super::cursor::{Admission, Place};
use super::feed::info;
use super::serve::Got;
use crate::request::Now;
use crate::shard::Shard;

/// Heads that have changed are looked at so much later: whoever receives is faster, and nothing is to be looked at.
const LOOK_AFTER_US: u64 = 1_000_000;
/// After a start queues are looked at one after the other, so much apart, …
const APART_US: u64 = 15_000;
/// … as many, before it begins anew.
const APART_MAX: u64 = 4_096;
/// After a read that failed.
const AGAIN_US: u64 = 60_000_000;
/// Wall clocks step: the soonest is looked for at least so often.
const SOONEST_MAX_MS: i64 = 60_000;

/// What was looked at last, and what is to be.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The heads as they were then, …
    seen: Option<Mark>,
    /// … and when the first of them expires, ms since the Unix epoch.
    expires_ms: i64,
    /// They have changed: look at them then, monotonic µs.
    look_us: Option<u64>,
    /// Where among what is ready a look goes on (`None` = behind all of it), and the soonest that it has met.
    pass: Option<(Option<Place>, i64)>,
    /// A read for them is under way, or waits.
    is_reading: bool,
    has_failed: bool,
    was_restored: bool,
}

/// Changes when heads do: the first ready message, how many are, the next one.
type Mark = (Option<Place>, usize, Option<u64>);

impl Heads {
    /// `was_restored`: the cursor is from the log.
    pub(super) fn new(was_restored: bool) -> Heads {
        Heads { was_restored, ..Heads::default() }
    }

    /// What was to be looked at can't be read.
    pub(super) fn read_failed(&mut self) {
        self.has_failed = true;
    }
}

fn mark(slot: &Slot, end: u64) -> Option<Mark> {
    let cursor = &slot.cursor;
    let next = (cursor.next() < end).then_some(cursor.next());
    (next.is_some() || cursor.ready_count() > 0).then(|| (cursor.first_ready(), cursor.ready_count(), next))
}

impl Shard {
    /// Lets heads of the queue go whose time is over. False = the turn's budget ended it.
    pub(super) fn expire_heads(&mut self, index: u32, slot: &mut Slot, end: u64, budget: &mut usize, now: Now) -> bool {
        slot.heads.is_reading = false;
        let Some(is) = mark(slot, end) else {
            slot.heads = Heads::default();
            return true;
        };
        let heads = &mut slot.heads;
        if std::mem::take(&mut heads.has_failed) {
            (heads.seen, heads.pass, heads.look_us) = (None, None, Some(now.monotonic_us + AGAIN_US));
        }
        if heads.pass.is_none() {
            if heads.seen == Some(is) && heads.expires_ms > now.wall_ms {
                return true;
            }
            if heads.seen != Some(is) {
                let soon_us = slot.cursor.config().ttl_ms.map_or(LOOK_AFTER_US, |ms| ms.saturating_mul(1_000).min(LOOK_AFTER_US));
                let apart_us = if heads.was_restored { slot.generation % APART_MAX * APART_US } else { 0 };
                if *heads.look_us.get_or_insert(now.monotonic_us + soon_us + apart_us) > now.monotonic_us {
                    return true;
                }
            }
        }
        (heads.look_us, heads.was_restored) = (None, false);
        let (from, soonest) = heads.pass.take().unwrap_or((Some(Place::FIRST), i64::MAX));
        match self.look_at_heads(index, slot, end, (from, soonest), budget, now) {
            Got::It(soonest) => {
                slot.heads.pass = None;
                slot.heads.expires_ms = soonest;
                slot.heads.seen = mark(slot, end);
                true
            }
            // A read of what comes next, or of what is ready: its end wakes the cursor.
            Got::Later => {
                slot.heads.is_reading = true;
                true
            }
            Got::Gone => false,
        }
    }

    /// When the first of the heads that stay expires. `Gone` = the turn's budget is.
    fn look_at_heads(
        &mut self,
        index: u32,
        slot: &mut Slot,
        end: u64,
        pass: (Option<Place>, i64),
        budget: &mut usize,
        now: Now,
    ) -> Got<i64> {
        let (mut from, mut soonest) = pass;
        while let Some(place) = from.and_then(|from| slot.cursor.ready_from(from)) {
            if *budget == 0 {
                slot.heads.pass = Some((from, soonest));
                return Got::Gone;
            }
            *budget -= 1;
            let (filter, ttl_ms) = (slot.filter.clone(), slot.cursor.config().ttl_ms);
            let got = self.with_record(index, slot, place.offset(), |_, shown| info(shown, &filter, ttl_ms, false).expires_ms);
            match got {
                Got::It(Some(at)) if at <= now.wall_ms => slot.cursor.expire(place),
                Got::It(at) => {
                    soonest = soonest.min(at.unwrap_or(i64::MAX));
                    from = place.next_level();
                }
                Got::Gone => slot.cursor.lose(place.offset(), Some(place)),
                Got::Later => {
                    slot.heads.pass = Some((from, soonest));
                    return Got::Later;
                }
            }
        }
        // Where the feeder goes ahead it has looked already.
        while !slot.cursor.feeds_ahead() && slot.cursor.next() < end && slot.cursor.takes_more() {
            slot.heads.pass = Some((None, soonest));
            if *budget == 0 {
                return Got::Gone;
            }
            *budget -= 1;
            let got = self.look_at_next(index, slot, end, |cursor, _, info| {
                let is_over = info.expires_ms.is_some_and(|at| at <= now.wall_ms);
                if !is_over && info.matches && !cursor.is_settled(cursor.next()) {
                    return Some(info.expires_ms.unwrap_or(i64::MAX));
                }
                if let Admission::Ready(place) = cursor.admit(info, now) {
                    cursor.keep(place);
                }
                None
            });
            match got {
                Got::It(None) | Got::Gone => {}
                Got::It(Some(at)) => return Got::It(soonest.min(at)),
                Got::Later => return Got::Later,
            }
        }
        Got::It(soonest)
    }

    /// When heads are to be looked at, monotonic µs.
    pub(super) fn head_deadline_us(&self, slot: &Slot, now: Now) -> Option<u64> {
        let end = self.partitions.get(slot.partition).map_or(0, |partition| partition.readable_end(true).0);
        let (heads, is) = (&slot.heads, mark(slot, end)?);
        if heads.is_reading || slot.is_reading {
            return None;
        }
        if heads.seen != Some(is) {
            return heads.look_us.map(|at| at.max(now.monotonic_us + 1_000));
        }
        let wait_ms = heads.expires_ms.saturating_sub(now.wall_ms).clamp(1, SOONEST_MAX_MS);
        (heads.expires_ms != i64::MAX).then(|| now.monotonic_us + wait_ms as u64 * 1_000)
    }
}
