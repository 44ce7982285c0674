//! What must be in the log: the simulator's own memory, and a small shard that rebuilds itself from replay.

use std::collections::{BTreeMap, BTreeSet};

use ringmain_wire::control::Durability;
use ringmain_wire::{Frame, FrameHeader, PartitionId};

use crate::log::Replay;
use crate::log::format::LOG_RECORD_FLAG;

/// One batch that was appended.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The frame as handed to the log.
    pub bytes: Vec<u8>,
    /// Records in it.
    pub record_count: u64,
    /// Largest record time.
    pub timestamp_ms: i64,
    /// As handed to the log.
    pub append_time_ms: i64,
    /// Epoch of the log that took it.
    pub epoch: u32,
    /// Its group.
    pub sequence: u64,
}

/// One partition, dead records included.
#[derive(Clone, Debug)]
pub struct Partition {
    /// When its records are acknowledged.
    pub durability: Durability,
    /// By base offset; dense.
    pub batches: BTreeMap<u64, Batch>,
    /// Offset after the last record.
    pub end: u64,
    /// Everything below has been truncated in this life of the log.
    pub applied_start: u64,
    /// Batches that may be gone: somebody has said that nobody needs them.
    pub dead: BTreeSet<u64>,
}

impl Partition {
    /// An empty one.
    pub fn new(durability: Durability) -> Partition {
        Partition { durability, batches: BTreeMap::new(), end: 0, applied_start: 0, dead: BTreeSet::new() }
    }

    /// Offset after the last record of a group up to `sequence`.
    pub fn end_at(&self, sequence: u64) -> u64 {
        let last = self.batches.iter().rev().find(|(_, batch)| batch.sequence <= sequence);
        last.map_or(0, |(base, batch)| base + batch.record_count)
    }

    /// Forgets what a crash lost.
    pub fn cut(&mut self, sequence: u64) {
        self.batches.retain(|_, batch| batch.sequence <= sequence);
        self.end = self.end_at(sequence);
        drop(self.dead.split_off(&self.end));
    }

    /// Nobody needs `start..end`: batches that lie in it as a whole may go.
    pub fn tell_dead(&mut self, start: u64, end: u64) {
        let within = self.batches.range(start..end.max(start)).filter(|(base, batch)| *base + batch.record_count <= end);
        self.dead.extend(within.map(|(base, _)| *base));
    }

    /// Whether nothing between the batch that `from` is in and the one that begins at `base` has to be there.
    pub fn may_be_gone(&self, from: u64, base: u64) -> bool {
        let first = self.batches.range(..=from).next_back().map_or(from, |(first, _)| *first);
        self.batches.range(first..base).all(|(base, _)| self.dead.contains(base))
    }

    /// Whether a stored frame is what was appended at its offset; else what is wrong.
    pub fn compare(&self, frame: &Frame<'_>) -> Result<(), String> {
        let base = frame.base_offset().0;
        frame.verify_header().map_err(|error| format!("offset {base}: {error}"))?;
        frame.verify_body().map_err(|error| format!("offset {base}: {error}"))?;
        let Some(batch) = self.batches.get(&base) else { return Err(format!("offset {base} begins no batch that was appended")) };
        let broker = &frame.header.broker;
        if (broker.epoch, broker.append_time_ms) != (batch.epoch, batch.append_time_ms) {
            let got = (broker.epoch, broker.append_time_ms);
            return Err(format!("offset {base}: epoch and time {got:?}, appended as {:?}", (batch.epoch, batch.append_time_ms)));
        }
        if frame.to_vec()[32..] != batch.bytes[32..] {
            return Err(format!("offset {base}: other bytes than were appended"));
        }
        Ok(())
    }
}

/// What a record does to the shard's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Records were appended.
    End { partition: u32, base: u64, end: u64 },
    /// A key has a new value.
    Set { key: u8, value: u64 },
    /// Records below are dead.
    Start { partition: u32, start: u64 },
    /// The partition is gone.
    Drop { partition: u32 },
}

/// State that lives in log and checkpoints alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MiniShard {
    /// Partition → offset after its last record.
    pub ends: BTreeMap<u32, u64>,
    /// Partition → first offset alive.
    pub starts: BTreeMap<u32, u64>,
    /// Partitions that are gone.
    pub dropped: BTreeSet<u32>,
    /// The rest of the state.
    pub values: BTreeMap<u8, u64>,
}

const TAG_SET: u64 = 1;
const TAG_START: u64 = 2;
const TAG_DROP: u64 = 3;
const TAG_PIECE_PARTITIONS: u64 = 4;
const TAG_PIECE_VALUES: u64 = 5;

impl MiniShard {
    /// Applies one change.
    pub fn apply(&mut self, change: &Change) {
        match *change {
            Change::End { partition, end, .. } => drop(self.ends.insert(partition, end)),
            Change::Set { key, value } => drop(self.values.insert(key, value)),
            Change::Start { partition, start } => drop(self.starts.insert(partition, start)),
            Change::Drop { partition } => drop(self.dropped.insert(partition)),
        }
    }

    /// Where this state differs from `other`.
    pub fn difference(&self, other: &MiniShard) -> String {
        let mut lines = Vec::new();
        let mut compare = |what: &str, got: Option<&u64>, expected: Option<&u64>, id: u64| {
            if got != expected {
                lines.push(format!("{what} {id} is {got:?}, expected {expected:?}"));
            }
        };
        let ids: BTreeSet<u32> =
            [self, other].iter().flat_map(|s| s.ends.keys().chain(s.starts.keys()).chain(&s.dropped)).copied().collect();
        for id in ids {
            compare("end of", self.ends.get(&id), other.ends.get(&id), id.into());
            compare("start of", self.starts.get(&id), other.starts.get(&id), id.into());
            compare("drop of", self.dropped.get(&id).map(|_| &1), other.dropped.get(&id).map(|_| &1), id.into());
        }
        for key in 0..=u8::MAX {
            compare("value", self.values.get(&key), other.values.get(&key), key.into());
        }
        if lines.is_empty() { "the state is the same".to_owned() } else { lines.join(", ") }
    }

    /// Checkpoint pieces: each sets a part of the state. `per_piece` partitions or values in one.
    pub fn piece(&self, index: usize, per_piece: usize) -> Option<Vec<u8>> {
        let ends: Vec<(&u32, &u64)> = self.ends.iter().collect();
        let partition_pieces = ends.len().div_ceil(per_piece);
        if index < partition_pieces {
            let mut words = vec![TAG_PIECE_PARTITIONS];
            for &(&partition, &end) in ends.iter().skip(index * per_piece).take(per_piece) {
                let start = self.starts.get(&partition).map_or(0, |start| start + 1);
                words.extend([u64::from(partition), end, start, u64::from(self.dropped.contains(&partition))]);
            }
            return Some(encode(&words, 0));
        }
        let values: Vec<(&u8, &u64)> = self.values.iter().collect();
        let from = (index - partition_pieces) * per_piece;
        (from < values.len()).then(|| {
            let mut words = vec![TAG_PIECE_VALUES];
            words.extend(values.iter().skip(from).take(per_piece).flat_map(|&(&key, &value)| [u64::from(key), value]));
            encode(&words, 0)
        })
    }

    fn apply_body(&mut self, body: &[u8]) -> Result<(), String> {
        let words: Vec<u64> = body.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        match *words.as_slice() {
            [TAG_SET, key, value, ..] => self.apply(&Change::Set { key: key as u8, value }),
            [TAG_START, partition, start, ..] => self.apply(&Change::Start { partition: partition as u32, start }),
            [TAG_DROP, partition, ..] => self.apply(&Change::Drop { partition: partition as u32 }),
            [TAG_PIECE_PARTITIONS, ref rest @ ..] => {
                for part in rest.chunks_exact(4) {
                    let partition = part[0] as u32;
                    self.ends.insert(partition, part[1]);
                    if part[2] > 0 {
                        self.starts.insert(partition, part[2] - 1);
                    }
                    if part[3] > 0 {
                        self.dropped.insert(partition);
                    }
                }
            }
            [TAG_PIECE_VALUES, ref rest @ ..] => self.values.extend(rest.chunks_exact(2).map(|pair| (pair[0] as u8, pair[1]))),
            _ => return Err("a state record that nobody wrote".to_owned()),
        }
        Ok(())
    }
}

/// The body of the state record that carries `change`, and `filler_words` of ballast.
pub fn state_body(change: &Change, filler_words: usize) -> Vec<u8> {
    match *change {
        Change::Set { key, value } => encode(&[TAG_SET, u64::from(key), value], filler_words),
        Change::Start { partition, start } => encode(&[TAG_START, u64::from(partition), start], filler_words),
        Change::Drop { partition } => encode(&[TAG_DROP, u64::from(partition)], filler_words),
        Change::End { .. } => unreachable!("records carry this themselves"),
    }
}

fn encode(words: &[u64], filler_words: usize) -> Vec<u8> {
    words.iter().copied().chain(std::iter::repeat_n(0x5a5a_5a5a, filler_words)).flat_map(u64::to_le_bytes).collect()
}

/// A shard coming up.
#[derive(Debug, Default)]
pub struct Rebuild {
    /// As far as it has got.
    pub shard: MiniShard,
    /// The first thing that was wrong.
    pub wrong: Option<String>,
}

impl Replay for Rebuild {
    fn frame(&mut self, header: &FrameHeader, _largest_timestamp_ms: i64, body: &[u8]) {
        let partition = header.producer.partition;
        if partition != PartitionId::STATE.0 {
            let base = header.broker.base_offset;
            // Before the checkpoint's piece about this partition its end isn't known.
            if let Some(&end) = self.shard.ends.get(&partition)
                && end != base
            {
                self.wrong.get_or_insert(format!("partition {partition} goes on at {base} after {end}"));
            }
            self.shard.apply(&Change::End { partition, base, end: base + u64::from(header.producer.record_count) });
        } else if header.producer.flags & LOG_RECORD_FLAG == 0
            && let Err(wrong) = self.shard.apply_body(body)
        {
            self.wrong.get_or_insert(wrong);
        }
    }
}
