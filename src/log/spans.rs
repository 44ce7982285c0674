//! Pieces of segments that were read from the device lately, or are being read: each serves every reader of bytes inside.
//!
//! Partitions lie interleaved in the log, so a read for one brings bytes of the others, and a consumer of them all would read
//! the disk once for each. A span is never stale: what is read is written for good, and numbers of segments aren't used again.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::device::Slice;
use crate::request::Extent;

/// A span that is there is given up after so long.
const KEEP_US: u64 = 1_000_000;

/// Spans of one log.
#[derive(Debug, Default)]
pub(super) struct Spans {
    spans: HashMap<u64, Span>,
    /// Segment, start and id of each.
    places: BTreeSet<(u64, u32, u64)>,
    /// Those that are there, oldest first, with the time at which they go.
    kept: VecDeque<(u64, u64)>,
    /// Memory of those that are there.
    kept_bytes: usize,
    last_id: u64,
}

#[derive(Debug)]
struct Span {
    segment: u64,
    start: u32,
    end: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// With the device, or queued for it; the tickets of the reads that wait.
    Coming(Vec<u64>),
    There(Slice),
}

/// A span that holds an extent.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub id: u64,
    pub start: u32,
    /// `None` while it is coming.
    pub bytes: Option<Slice>,
}

impl Spans {
    /// A span with all of `extent` that begins at most `reach` bytes before it.
    pub fn find(&self, extent: &Extent, reach: u32) -> Option<Found> {
        let (from, to) = ((extent.segment, extent.position.saturating_sub(reach), 0), (extent.segment, extent.position, u64::MAX));
        let end = extent.position + extent.len;
        self.places.range(from..=to).rev().find_map(|&(_, start, id)| {
            let span = self.spans.get(&id).filter(|span| span.end >= end)?;
            let bytes = match &span.state {
                State::Coming(_) => None,
                State::There(bytes) => Some(bytes.clone()),
            };
            Some(Found { id, start, bytes })
        })
    }

    /// A span that is about to be read for the read `ticket`; returns its id.
    pub fn begin(&mut self, segment: u64, start: u32, end: u32, ticket: u64) -> u64 {
        self.last_id += 1;
        self.spans.insert(self.last_id, Span { segment, start, end, state: State::Coming(vec![ticket]) });
        self.places.insert((segment, start, self.last_id));
        self.last_id
    }

    /// The read `ticket` waits for a span that is coming, too.
    pub fn join(&mut self, id: u64, ticket: u64) {
        if let Some(State::Coming(tickets)) = self.spans.get_mut(&id).map(|span| &mut span.state) {
            tickets.push(ticket);
        }
    }

    /// A span has come, or not: who waited for it. It is kept while all that are kept take at most `kept_bytes_max`.
    pub fn arrived(&mut self, id: u64, bytes: Option<&Slice>, kept_bytes_max: usize, now_us: u64) -> Vec<u64> {
        let Some(State::Coming(tickets)) = self.spans.get_mut(&id).map(|span| &mut span.state) else { return Vec::new() };
        let tickets = std::mem::take(tickets);
        match (bytes, self.spans.get_mut(&id)) {
            (Some(bytes), Some(span)) if bytes.charged_bytes() <= kept_bytes_max => {
                span.state = State::There(bytes.clone());
                self.kept.push_back((id, now_us + KEEP_US));
                self.kept_bytes += bytes.charged_bytes();
                while self.kept_bytes > kept_bytes_max {
                    self.drop_oldest();
                }
            }
            _ => self.remove(id),
        }
        tickets
    }

    /// Gives up the oldest span that is there; false without any. Its memory is free when its last reader's is.
    pub fn drop_oldest(&mut self) -> bool {
        let oldest = self.kept.pop_front();
        if let Some((id, _)) = oldest {
            self.remove(id);
        }
        oldest.is_some()
    }

    /// Gives up a span whose bytes have turned out to be damaged: the next reader looks at the device itself.
    pub fn forget(&mut self, id: u64) {
        if self.spans.get(&id).is_some_and(|span| matches!(span.state, State::There(_))) {
            self.kept.retain(|(kept, _)| *kept != id);
            self.remove(id);
        }
    }

    /// Gives up what has been there long enough.
    pub fn expire(&mut self, now_us: u64) {
        while self.deadline_us().is_some_and(|at_us| at_us <= now_us) {
            self.drop_oldest();
        }
    }

    /// When `expire` has something to do.
    pub fn deadline_us(&self) -> Option<u64> {
        self.kept.front().map(|(_, until_us)| *until_us)
    }

    fn remove(&mut self, id: u64) {
        if let Some(span) = self.spans.remove(&id) {
            self.places.remove(&(span.segment, span.start, id));
            if let State::There(bytes) = span.state {
                self.kept_bytes -= bytes.charged_bytes();
            }
        }
    }
}
