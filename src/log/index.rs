//! Which run holds which offsets: exact, per segment, and per partition over all segments.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Index;
use std::rc::Rc;

use ringmain_wire::PartitionId;

use super::format::{DIRECTORY_ENTRY_BYTES, DirectoryEntry, RUN_BYTES, Run, read_directory, read_runs};

/// Runs of one block of a list.
const BLOCK_RUNS: usize = 512;

/// Runs in blocks: one that grew in one piece would now and then be copied whole, some MiB on a core thread.
#[derive(Debug, Default)]
struct RunList {
    blocks: Vec<Vec<Run>>,
    len: usize,
}

impl RunList {
    fn push(&mut self, run: Run) {
        if self.len.is_multiple_of(BLOCK_RUNS) {
            // Short segments have few runs.
            self.blocks.push(Vec::with_capacity(if self.len == 0 { 0 } else { BLOCK_RUNS }));
        }
        self.blocks[self.len / BLOCK_RUNS].push(run);
        self.len += 1;
    }

    fn last_mut(&mut self) -> Option<&mut Run> {
        self.blocks.last_mut()?.last_mut()
    }
}

impl Index<u32> for RunList {
    type Output = Run;

    fn index(&self, at: u32) -> &Run {
        &self.blocks[at as usize / BLOCK_RUNS][at as usize % BLOCK_RUNS]
    }
}

/// The runs of a segment that has no footer yet: in order of position, and by partition.
#[derive(Debug, Default)]
pub struct RunIndex {
    runs: RunList,
    /// Per partition met in this segment: indices into `runs`, ascending.
    lists: Vec<Vec<u32>>,
    /// Partition → index into `lists`; ordered, because the footer is.
    by_partition: BTreeMap<u32, u32>,
    /// Offsets missing between a partition's runs, counted over all partitions.
    gaps: usize,
}

impl RunIndex {
    /// Runs so far.
    pub fn run_count(&self) -> usize {
        self.runs.len
    }

    /// Partitions so far.
    pub fn partition_count(&self) -> u32 {
        self.lists.len() as u32
    }

    /// The list of `partition`, made on first use.
    pub fn list_of(&mut self, partition: PartitionId) -> u32 {
        *self.by_partition.entry(partition.0).or_insert_with(|| {
            self.lists.push(Vec::new());
            self.lists.len() as u32 - 1
        })
    }

    /// Adds a frame to `list`: extends the last run if it is that partition's, adjacent (so in the
    /// same group: a header lies between groups) and not over `run_bytes_max`.
    pub fn push(&mut self, list: u32, frame: Run, run_bytes_max: u32) {
        let list = &mut self.lists[list as usize];
        let is_newest = list.last().is_some_and(|&last| last as usize + 1 == self.runs.len);
        if is_newest
            && let Some(run) = self.runs.last_mut()
            && run.position + run.len == frame.position
            && run.end_offset() == frame.base_offset
            && run.len + frame.len <= run_bytes_max
        {
            run.len += frame.len;
            run.record_count += frame.record_count;
            run.largest_timestamp_ms = run.largest_timestamp_ms.max(frame.largest_timestamp_ms);
            run.append_time_ms = frame.append_time_ms;
            return;
        }
        let goes_on = list.last().is_none_or(|&last| self.runs[last].end_offset() == frame.base_offset);
        self.gaps += usize::from(!goes_on);
        list.push(self.runs.len as u32);
        self.runs.push(frame);
    }

    /// The runs of `partition` in order of offset.
    pub fn runs_of(&self, partition: PartitionId) -> impl Iterator<Item = &Run> + Clone {
        self.list(partition).iter().map(|&i| &self.runs[i])
    }

    /// Those that end after `offset`. Doesn't look at the others.
    pub fn runs_after(&self, partition: PartitionId, offset: u64) -> impl Iterator<Item = &Run> + Clone {
        let list = self.list(partition);
        let first = list.partition_point(|&i| self.runs[i].end_offset() <= offset);
        list[first..].iter().map(|&i| &self.runs[i])
    }

    fn list(&self, partition: PartitionId) -> &[u32] {
        self.by_partition.get(&partition.0).map_or(&[], |&list| &self.lists[list as usize])
    }

    /// Bytes the footer will take.
    pub fn footer_bytes(&self) -> usize {
        (self.lists.len() + self.gaps) * DIRECTORY_ENTRY_BYTES + self.runs.len * RUN_BYTES
    }

    /// The directory, in order of partition and offset: one entry per stretch of offsets without a gap. (A store
    /// made of segments that aren't neighbours has gaps, and another segment may hold what belongs there.)
    pub fn directory(&self) -> Vec<DirectoryEntry> {
        let mut directory: Vec<DirectoryEntry> = Vec::with_capacity(self.lists.len() + self.gaps);
        let listed =
            self.by_partition.iter().flat_map(|(&partition, &list)| self.lists[list as usize].iter().map(move |&i| (partition, i)));
        for (first_run, (partition, i)) in listed.enumerate() {
            let run = &self.runs[i];
            match directory.last_mut() {
                Some(entry) if entry.partition == partition && entry.end_offset == run.base_offset => {
                    entry.run_count += 1;
                    entry.bytes += u64::from(run.len);
                    entry.end_offset = run.end_offset();
                    entry.largest_timestamp_ms = entry.largest_timestamp_ms.max(run.largest_timestamp_ms);
                    entry.append_time_ms = entry.append_time_ms.max(run.append_time_ms);
                }
                _ => directory.push(DirectoryEntry {
                    partition,
                    first_run: first_run as u32,
                    run_count: 1,
                    bytes: u64::from(run.len),
                    base_offset: run.base_offset,
                    end_offset: run.end_offset(),
                    largest_timestamp_ms: run.largest_timestamp_ms,
                    append_time_ms: run.append_time_ms,
                }),
            }
        }
        directory
    }

    /// The whole footer, and how many directory entries begin it.
    pub fn footer(&self) -> (Vec<u8>, u32) {
        let mut bytes = Vec::with_capacity(self.footer_bytes());
        let directory = self.directory();
        for entry in &directory {
            bytes.extend_from_slice(&entry.to_bytes());
        }
        for list in self.by_partition.values() {
            for &i in &self.lists[*list as usize] {
                bytes.extend_from_slice(&self.runs[i].to_bytes());
            }
        }
        (bytes, directory.len() as u32)
    }
}

/// A sealed segment's footer, decoded.
#[derive(Debug)]
pub struct Footer {
    /// In order of partition.
    pub directory: Vec<DirectoryEntry>,
    runs: Vec<Run>,
}

impl Footer {
    /// The footer of a segment without frames.
    pub fn empty() -> Footer {
        Footer { directory: Vec::new(), runs: Vec::new() }
    }

    /// Decodes a footer whose checksum has been verified; `None` = inconsistent.
    pub fn read(bytes: &[u8], directory_count: u32) -> Option<Footer> {
        let footer = Footer { directory: read_directory(bytes, directory_count)?, runs: read_runs(bytes, directory_count)? };
        let whole = footer.directory.iter().all(|d| (d.first_run as usize).saturating_add(d.run_count as usize) <= footer.runs.len());
        whole.then_some(footer)
    }

    /// The runs of `partition` in order of offset.
    pub fn runs_of(&self, partition: PartitionId) -> &[Run] {
        let first = self.directory.partition_point(|d| d.partition < partition.0);
        let end = self.directory.partition_point(|d| d.partition <= partition.0);
        match &self.directory[first..end] {
            [] => &[],
            entries => {
                &self.runs
                    [entries[0].first_run as usize..(entries[end - first - 1].first_run + entries[end - first - 1].run_count) as usize]
            }
        }
    }

    /// The runs of one directory entry.
    pub fn runs_of_entry(&self, entry: &DirectoryEntry) -> &[Run] {
        &self.runs[entry.first_run as usize..(entry.first_run + entry.run_count) as usize]
    }

    fn memory_bytes(&self) -> usize {
        self.directory.len() * size_of::<DirectoryEntry>() + self.runs.len() * size_of::<Run>()
    }
}

/// Footers read lately; the least recently used goes when the bytes are used up.
#[derive(Debug)]
pub struct FooterCache {
    limit_bytes: usize,
    used_bytes: usize,
    footers: HashMap<u64, Rc<Footer>>,
    /// Segment numbers, least recently used first.
    order: VecDeque<u64>,
}

impl FooterCache {
    /// An empty cache.
    pub fn new(limit_bytes: usize) -> FooterCache {
        FooterCache { limit_bytes, used_bytes: 0, footers: HashMap::new(), order: VecDeque::new() }
    }

    /// The footer of `segment`, if it is here.
    pub fn get(&mut self, segment: u64) -> Option<Rc<Footer>> {
        let footer = self.footers.get(&segment)?.clone();
        if self.order.back() != Some(&segment) {
            self.order.retain(|&s| s != segment);
            self.order.push_back(segment);
        }
        Some(footer)
    }

    /// Keeps a footer, pushing older ones out. The newest stays even if it alone is over the limit.
    pub fn insert(&mut self, segment: u64, footer: Footer) {
        self.remove(segment);
        self.used_bytes += footer.memory_bytes();
        self.footers.insert(segment, Rc::new(footer));
        self.order.push_back(segment);
        while self.used_bytes > self.limit_bytes && self.order.len() > 1 {
            let oldest = self.order[0];
            self.remove(oldest);
        }
    }

    /// Forgets a segment.
    pub fn remove(&mut self, segment: u64) {
        if let Some(footer) = self.footers.remove(&segment) {
            self.used_bytes -= footer.memory_bytes();
            self.order.retain(|&s| s != segment);
        }
    }
}

/// A partition's part of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Segment number.
    pub segment: u64,
    /// First offset.
    pub base_offset: u64,
    /// Offset after the last. No other place has offsets between the two; this one need not have all of them.
    pub end_offset: u64,
    /// Records.
    pub records: u64,
    /// Offsets that are said to be dead.
    pub covered: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// Largest record time, ms.
    pub largest_timestamp_ms: i64,
    /// Largest append time, ms.
    pub append_time_ms: i64,
}

impl Place {
    /// What a directory entry says.
    pub fn from_directory(segment: u64, entry: &DirectoryEntry) -> Place {
        Place {
            segment,
            base_offset: entry.base_offset,
            end_offset: entry.end_offset,
            records: entry.end_offset - entry.base_offset,
            covered: 0,
            bytes: entry.bytes,
            largest_timestamp_ms: entry.largest_timestamp_ms,
            append_time_ms: entry.append_time_ms,
        }
    }

    /// `next` follows in the same segment.
    fn join(&mut self, next: &Place) {
        self.end_offset = next.end_offset;
        self.records += next.records;
        self.covered += next.covered;
        self.bytes += next.bytes;
        self.largest_timestamp_ms = self.largest_timestamp_ms.max(next.largest_timestamp_ms);
        self.append_time_ms = self.append_time_ms.max(next.append_time_ms);
    }
}

/// One partition over all segments.
#[derive(Debug, Default)]
pub struct PartitionPlaces {
    /// In order of offset; the last may be in the active segment.
    pub places: VecDeque<Place>,
    /// Bytes in all places.
    pub bytes: u64,
    /// Everything below is dead, though its bytes may still be there.
    pub start_offset: u64,
    /// Segment whose `RunIndex` list is `active_list`.
    pub active_segment: u64,
    /// Index of the partition's list there.
    pub active_list: u32,
}

impl PartitionPlaces {
    /// Index of the first place that ends after `offset`.
    pub fn first_after(&self, offset: u64) -> usize {
        self.places.partition_point(|p| p.end_offset <= offset)
    }

    /// Puts a place where its offsets belong.
    pub fn insert(&mut self, place: Place) {
        self.bytes += place.bytes;
        let at = self.places.partition_point(|p| p.base_offset < place.base_offset);
        self.places.insert(at, place);
    }

    /// The same, when no place is missing that belongs between it and the one before: those of one segment are one.
    pub fn insert_joined(&mut self, place: Place) {
        let at = self.places.partition_point(|p| p.base_offset < place.base_offset);
        match at.checked_sub(1).and_then(|before| self.places.get_mut(before)).filter(|before| before.segment == place.segment) {
            Some(before) => {
                self.bytes += place.bytes;
                before.join(&place);
            }
            None => self.insert(place),
        }
    }

    /// Places of one segment with nothing of another between them become one.
    pub fn join(&mut self) {
        let mut joined: VecDeque<Place> = VecDeque::new();
        for place in self.places.drain(..) {
            match joined.back_mut() {
                Some(last) if last.segment == place.segment => last.join(&place),
                _ => joined.push_back(place),
            }
        }
        joined.shrink_to_fit();
        self.places = joined;
    }

    /// Takes out every place in `segments`.
    pub fn remove_segments(&mut self, segments: &[u64]) {
        let mut removed = 0;
        self.places.retain(|place| {
            let stays = !segments.contains(&place.segment);
            removed += if stays { 0 } else { place.bytes };
            stays
        });
        self.bytes -= removed;
    }
}
