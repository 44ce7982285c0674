//! The shards of one core, and the disk they share.

use ringmain_wire::ShardId;

use crate::device::{Completion, Disk, Slice, Token};
use crate::request::{Extent, FetchData, Now, Origin, Reply, Request};
use crate::shard::{Busy, Catalog, CatalogChange, Shard, ShardEvent};

/// The shard's own tokens use the bits below; its place on this core the bits above.
const TOKEN_BITS: u32 = 48;

/// Shards hosted by this core. Those nobody has touched aren't pumped: an idle shard costs nothing.
pub struct Shards {
    hosted: Vec<Hosted>,
    /// By shard number: its index in `hosted`.
    places: Vec<Option<u16>>,
    /// `None` once closed.
    disk: Option<Box<dyn Disk>>,
    completions: Vec<Completion>,
    /// Index of the shard whose replies are taken next.
    reply_from: usize,
    /// A stop goes on with every pump, whether or not something came in.
    is_stopping: bool,
    /// The disk was given something it hasn't begun with.
    is_kick_due: bool,
}

struct Hosted {
    id: ShardId,
    shard: Shard,
    /// Something came in since the last pump.
    is_touched: bool,
    /// Pumped since its replies were last drained.
    has_output: bool,
}

impl Shards {
    /// `shards`: opened, in any order; their disk takes the operations of all.
    pub fn new(shards: Vec<(ShardId, Shard)>, shard_count: u16, disk: Box<dyn Disk>) -> Shards {
        let mut places = vec![None; usize::from(shard_count)];
        for (index, (id, _)) in shards.iter().enumerate() {
            places[usize::from(id.0)] = Some(index as u16);
        }
        let hosted = shards.into_iter().map(|(id, shard)| Hosted { id, shard, is_touched: true, has_output: true }).collect();
        Shards { hosted, places, disk: Some(disk), completions: Vec::new(), reply_from: 0, is_stopping: false, is_kick_due: false }
    }

    /// No shards and no disk.
    pub fn closed() -> Shards {
        Shards {
            hosted: Vec::new(),
            places: Vec::new(),
            disk: None,
            completions: Vec::new(),
            reply_from: 0,
            is_stopping: false,
            is_kick_due: false,
        }
    }

    /// Whether this core owns the shard.
    pub fn owns(&self, shard: ShardId) -> bool {
        self.places.get(usize::from(shard.0)).is_some_and(Option::is_some)
    }

    /// Gives a request to a shard of this core. `Busy` = it keeps nothing; try again after progress.
    pub fn handle(&mut self, shard: ShardId, origin: Origin, request: &Request<'_>, now: Now) -> Result<(), Busy> {
        let hosted = self.hosted_mut(shard).ok_or(Busy)?;
        hosted.is_touched = true;
        hosted.shard.handle(origin, request, now)
    }

    /// A connection of this core has gone.
    pub fn cancel(&mut self, core: u16, connection: u32, generation: u32, now: Now) {
        for hosted in &mut self.hosted {
            hosted.is_touched = true;
            hosted.shard.cancel(core, connection, generation, now);
        }
    }

    /// The whole catalog, once at start.
    pub fn set_catalog(&mut self, catalog: &Catalog, now: Now) {
        for hosted in &mut self.hosted {
            hosted.shard.set_catalog(catalog, now);
            hosted.is_touched = true;
        }
    }

    /// A change of it.
    pub fn apply_catalog(&mut self, change: &CatalogChange, now: Now) {
        for hosted in &mut self.hosted {
            hosted.shard.apply_catalog(change, now);
            hosted.is_touched = true;
        }
    }

    /// Every core has applied the change; only on the core of shard 0.
    pub fn catalog_acknowledged(&mut self, change_id: u64) {
        if let Some(hosted) = self.hosted_mut(ShardId(0)) {
            hosted.shard.catalog_acknowledged(change_id);
            hosted.is_touched = true;
        }
    }

    /// Whether the disk has finished something.
    pub fn poll_disk(&mut self) -> bool {
        if let Some(disk) = &mut self.disk {
            disk.poll(&mut self.completions);
        }
        !self.completions.is_empty()
    }

    /// Takes what the disk has finished, lets every shard with something to do work on it, and hands what they
    /// want to the disk, which begins with `kick`. Afterwards `poll_event` and `poll_reply` have their output.
    pub fn pump(&mut self, now: Now) {
        let Some(disk) = &mut self.disk else { return };
        disk.poll(&mut self.completions);
        for Completion { token, outcome } in self.completions.drain(..) {
            let hosted = &mut self.hosted[(token.0 >> TOKEN_BITS) as usize];
            hosted.is_touched = true;
            hosted.shard.complete(Completion { token: Token(token.0 & ((1 << TOKEN_BITS) - 1)), outcome }, now);
        }
        for (index, hosted) in self.hosted.iter_mut().enumerate() {
            let is_due = || hosted.shard.next_deadline_us().is_some_and(|at| at <= now.monotonic_us);
            if !self.is_stopping && !hosted.is_touched && !hosted.shard.has_backlog() && !is_due() {
                continue;
            }
            hosted.is_touched = false;
            hosted.has_output = true;
            hosted.shard.pump(now);
            while let Some((token, operation)) = hosted.shard.poll_operation() {
                assert!(token.0 >> TOKEN_BITS == 0, "a shard's tokens leave room for its place");
                disk.submit(Token(token.0 | (index as u64) << TOKEN_BITS), operation);
                self.is_kick_due = true;
            }
        }
        self.reply_from = 0;
    }

    /// Makes the disk begin with what the shards wanted of it in this turn.
    pub fn kick(&mut self) {
        if std::mem::take(&mut self.is_kick_due)
            && let Some(disk) = &mut self.disk
        {
            disk.kick();
        }
    }

    /// The next event of any shard pumped in this turn.
    pub fn poll_event(&mut self) -> Option<(ShardId, ShardEvent)> {
        let mut pumped = self.hosted.iter_mut().filter(|hosted| hosted.has_output);
        pumped.find_map(|hosted| hosted.shard.poll_event().map(|event| (hosted.id, event)))
    }

    /// The answer to a question of a shard of this core.
    pub fn answered(&mut self, shard: ShardId, ticket: u64, reply: Reply, now: Now) {
        if let Some(hosted) = self.hosted_mut(shard) {
            hosted.is_touched = true;
            hosted.shard.answered(ticket, reply, now);
        }
    }

    /// The next answer of any shard pumped in this turn.
    pub fn poll_reply(&mut self) -> Option<(ShardId, Origin, Reply)> {
        while let Some(hosted) = self.hosted.get_mut(self.reply_from) {
            if hosted.has_output {
                if let Some((origin, reply)) = hosted.shard.poll_reply() {
                    return Some((hosted.id, origin, reply));
                }
                hosted.has_output = false;
            }
            self.reply_from += 1;
        }
        None
    }

    /// When the next pump is due without anything coming in.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.hosted.iter().filter_map(|hosted| hosted.shard.next_deadline_us()).min()
    }

    /// Some shard wants another pump soon, or has answers that weren't taken.
    pub fn has_backlog(&self) -> bool {
        self.hosted.iter().any(|hosted| hosted.is_touched || hosted.has_output || hosted.shard.has_backlog())
    }

    /// A read of some shard waits until memory is given back.
    pub fn reads_wait_for_memory(&self) -> bool {
        self.hosted.iter().any(|hosted| hosted.shard.reads_wait_for_memory())
    }

    /// Bytes of an extent that is still in the tail cache.
    pub fn hot_bytes(&self, shard: ShardId, extent: Extent) -> Option<&[u8]> {
        self.hosted(shard)?.shard.hot_bytes(extent)
    }

    /// A reply's extents have been sent, or won't be. The shard notices with its next pump; there is no hurry.
    pub fn release_extents(&mut self, shard: ShardId, extents: &[Extent]) {
        if let Some(hosted) = self.hosted_mut(shard) {
            hosted.shard.release_extents(extents);
        }
    }

    /// The shard itself, for cold reads.
    pub fn shard_mut(&mut self, shard: ShardId) -> Option<&mut Shard> {
        let hosted = self.hosted_mut(shard)?;
        hosted.is_touched = true;
        Some(&mut hosted.shard)
    }

    /// Every shard of this core, for counters and cold reads that have come.
    pub fn each_mut(&mut self) -> impl Iterator<Item = (ShardId, &mut Shard)> {
        self.hosted.iter_mut().map(|hosted| (hosted.id, &mut hosted.shard))
    }

    /// A copy of a fetch reply's frames, and their extents given back; `None` if some have just left the tail cache.
    pub fn copy_frames(&mut self, shard: ShardId, data: FetchData) -> Option<Vec<u8>> {
        match data {
            FetchData::Owned(frames) => Some(frames),
            FetchData::Blocks { extents, blocks } => {
                self.release_extents(shard, &extents);
                Some(Slice::concat(&blocks))
            }
            FetchData::Extents(extents) => {
                let mut frames = Vec::with_capacity(extents.iter().map(|extent| extent.len as usize).sum());
                let is_whole =
                    extents.iter().all(|extent| self.hot_bytes(shard, *extent).map(|bytes| frames.extend_from_slice(bytes)).is_some());
                self.release_extents(shard, &extents);
                is_whole.then_some(frames)
            }
        }
    }

    /// Begins the clean stop of every shard.
    pub fn stop(&mut self, now: Now) {
        self.is_stopping = true;
        for hosted in &mut self.hosted {
            hosted.shard.stop(now);
            hosted.is_touched = true;
        }
    }

    /// Every shard has stopped and the disk has nothing in flight.
    pub fn is_stopped(&self) -> bool {
        self.in_flight() == 0 && self.hosted.iter().all(|hosted| hosted.shard.is_stopped())
    }

    /// Operations at the disk; for metrics.
    pub fn in_flight(&self) -> usize {
        self.disk.as_ref().map_or(0, |disk| disk.in_flight())
    }

    fn hosted(&self, shard: ShardId) -> Option<&Hosted> {
        self.hosted.get(usize::from((*self.places.get(usize::from(shard.0))?)?))
    }

    fn hosted_mut(&mut self, shard: ShardId) -> Option<&mut Hosted> {
        self.hosted.get_mut(usize::from((*self.places.get(usize::from(shard.0))?)?))
    }
}
