//! Reads stored frames record by record, for queues: once, in order, and now and then a single one again.

use ringmain_wire::frame::flags;
use ringmain_wire::queue::QueueHeaders;
use ringmain_wire::{Format, Frame, PartitionId, RecordView, Records};

use super::cursor::{End, RecordInfo};
use super::filter::{Candidate, Filter};

/// Cuts a batch of another protocol into a native frame of at most so many bytes with the same offsets; `None` = it can't be
/// read, or not within that. The door that knows the protocol provides it.
pub type Transcode = fn(&Frame<'_>, usize) -> Option<Vec<u8>>;

/// No batch of another protocol can be read.
pub fn no_transcode(_: &Frame<'_>, _: usize) -> Option<Vec<u8>> {
    None
}

/// A record as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Its offset.
    pub offset: u64,
    /// Of its batch.
    pub append_time_ms: i64,
    /// It may have headers for queues.
    pub has_queue_headers: bool,
    /// Itself.
    pub record: RecordView<'a>,
    /// Where its frame begins in what was read, and where it begins in the frame's body; nowhere if it was cut out of a batch of another
    /// protocol.
    pub at: Option<(usize, usize)>,
}

/// What comes next.
#[derive(Debug)]
pub enum Found<'a> {
    /// A record at or after the offset asked for.
    Record(Shown<'a>),
    /// No message before this offset.
    Skip { until: u64, end: End },
    /// The bytes are used up.
    Nothing,
}

/// How frames are read.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    /// For batches of other protocols, …
    pub transcode: Transcode,
    /// … with at most so many bytes.
    pub transcode_bytes_max: usize,
    /// Whether a frame's transaction was aborted.
    pub is_aborted: &'a dyn Fn(&Frame<'_>) -> bool,
}

/// Where in a piece of the log a reader is.
#[derive(Debug, Default)]
pub struct Walker {
    /// Start of the frame that comes next, …
    at: usize,
    /// … or of the one that it is in.
    inside: Option<Inside>,
}

#[derive(Debug)]
struct Inside {
    /// Of the frame with its padding.
    bytes: usize,
    base_offset: u64,
    record_count: u32,
    append_time_ms: i64,
    flags: u8,
    position: (usize, u32),
    /// The frame as a native one, where it isn't.
    native: Option<Vec<u8>>,
}

impl Walker {
    /// The first record of `bytes` at or after `from`. `bytes`: whole frames, verified; the same ones every time.
    pub fn find<'a>(&'a mut self, bytes: &'a [u8], from: u64, reading: Reading<'_>) -> Found<'a> {
        loop {
            match &mut self.inside {
                None => match self.enter(bytes, from, reading) {
                    Ok(true) => {}
                    Ok(false) => return Found::Nothing,
                    Err((until, end)) => return Found::Skip { until, end },
                },
                Some(inside) if inside.base_offset + u64::from(inside.record_count) <= from => {
                    self.at += inside.bytes;
                    self.inside = None;
                }
                // Goes back: from the start of the frame again.
                Some(inside) if inside.base_offset + u64::from(inside.position.1) > from => {
                    inside.position = (ringmain_wire::record::BATCH_PREFIX_BYTES, 0);
                    if inside.base_offset > from {
                        return Found::Skip { until: inside.base_offset, end: End::Void };
                    }
                }
                Some(_) => return self.record(bytes, from),
            }
        }
    }

    /// From the start again, if what comes next is behind `from`.
    pub fn go_back(&mut self, from: u64) {
        if self.inside.as_ref().is_none_or(|inside| inside.base_offset > from) {
            *self = Walker::default();
        }
    }

    /// Goes into the next frame that reaches beyond `from`. False = there is none.
    fn enter(&mut self, bytes: &[u8], from: u64, reading: Reading<'_>) -> Result<bool, (u64, End)> {
        while let Some(rest) = bytes.get(self.at..).filter(|rest| !rest.is_empty()) {
            let Ok(frame) = Frame::parse(rest) else { return Ok(false) };
            let (producer, end_offset) = (&frame.header.producer, frame.end_offset().0);
            if end_offset <= from {
                self.at += frame.padded_bytes();
                continue;
            }
            if frame.base_offset().0 > from {
                return Err((frame.base_offset().0, End::Void));
            }
            if producer.flags & flags::CONTROL != 0 || (producer.flags & flags::TRANSACTIONAL != 0 && (reading.is_aborted)(&frame)) {
                return Err((end_offset, End::Void));
            }
            let native = if producer.format == Format::Native as u8 {
                None
            } else {
                match (reading.transcode)(&frame, reading.transcode_bytes_max) {
                    Some(native) => Some(native),
                    None => return Err((end_offset, End::Dropped)),
                }
            };
            self.inside = Some(Inside {
                bytes: frame.padded_bytes(),
                base_offset: frame.base_offset().0,
                record_count: producer.record_count,
                append_time_ms: frame.header.broker.append_time_ms,
                flags: producer.flags,
                position: (ringmain_wire::record::BATCH_PREFIX_BYTES, 0),
                native,
            });
            return Ok(true);
        }
        Ok(false)
    }

    /// The record at `from`, inside the frame. One that can't be read ends its frame.
    fn record<'a>(&'a mut self, bytes: &'a [u8], from: u64) -> Found<'a> {
        let Some(inside) = &mut self.inside else { return Found::Nothing };
        let skip = Found::Skip { until: inside.base_offset + u64::from(inside.record_count), end: End::Dropped };
        let whole = inside.native.as_deref().or_else(|| bytes.get(self.at..));
        let Some(Ok(frame)) = whole.map(Frame::parse) else { return skip };
        let Ok(mut records) = Records::resume(frame.body(), inside.record_count, inside.position) else { return skip };
        let behind = from - (inside.base_offset + u64::from(records.position().1));
        if records.skip_records(behind as u32).is_err() {
            return skip;
        }
        let (record_at, _) = records.position();
        let Some(Ok(record)) = records.next() else { return skip };
        inside.position = records.position();
        let has_queue_headers = inside.flags & flags::QUEUE_HEADERS != 0 || inside.native.is_some();
        let at = inside.native.is_none().then_some((self.at, record_at));
        Found::Record(Shown { offset: from, append_time_ms: inside.append_time_ms, has_queue_headers, record, at })
    }
}

/// Record `offset` of `partition`, if `bytes` begin with its frame and it begins at `record_at` in the frame's body.
pub fn record_at(bytes: &[u8], partition: PartitionId, offset: u64, record_at: usize) -> Option<Shown<'_>> {
    let frame = Frame::parse(bytes).ok()?;
    let producer = &frame.header.producer;
    let number = offset.checked_sub(frame.base_offset().0).filter(|number| *number < u64::from(producer.record_count))?;
    if producer.partition != partition.0 || producer.format != Format::Native as u8 {
        return None;
    }
    let record = Records::resume(frame.body(), producer.record_count, (record_at, number as u32)).ok()?.next()?.ok()?;
    let has_queue_headers = producer.flags & flags::QUEUE_HEADERS != 0;
    Some(Shown { offset, append_time_ms: frame.header.broker.append_time_ms, has_queue_headers, record, at: Some((0, record_at)) })
}

/// What a cursor wants to know of a record.
pub fn info(shown: &Shown<'_>, filter: &Filter, ttl_ms: Option<u64>, key_ordered: bool) -> RecordInfo {
    let headers = match shown.has_queue_headers && !shown.record.headers.is_empty() {
        true => QueueHeaders::read(shown.record.headers),
        false => QueueHeaders::default(),
    };
    let ttl_ms = match (headers.ttl_ms, ttl_ms) {
        (Some(own), Some(queue)) => Some(own.min(queue)),
        (own, queue) => own.or(queue),
    };
    // Time to live counts from when the message can be had.
    let from_ms = shown.append_time_ms.max(headers.due_ms.unwrap_or(i64::MIN));
    let candidate =
        Candidate { key: shown.record.key, headers: shown.record.headers, tag: headers.tag, timestamp_ms: shown.record.timestamp_ms };
    RecordInfo {
        due_ms: headers.due_ms,
        priority: headers.priority,
        expires_ms: ttl_ms.map(|ms| from_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))),
        key: if key_ordered { shown.record.key.map(crc32c::crc32c) } else { None },
        matches: filter.is_all() || filter.matches(&candidate),
        bytes: (shown.record.key.map_or(0, <[u8]>::len) + shown.record.value.map_or(0, <[u8]>::len) + shown.record.headers.len()) as u32,
    }
}

#[cfg(test)]
mod tests {
    use ringmain_wire::frame::{HALF_BYTES, Identity};
    use ringmain_wire::{BrokerHalf, Offset, PartitionId, RecordBatchBuilder};

    use super::*;

    fn frame(base_offset: u64, values: &[&str], flags: u8) -> Vec<u8> {
        let mut builder = RecordBatchBuilder::new();
        for value in values {
            builder.push(0, None, Some(value.as_bytes()), &[]);
        }
        let mut bytes = builder.finish(Identity { flags, ..Identity::plain(PartitionId(1)) }).to_vec();
        let stamp = BrokerHalf::stamp(bytes.len() as u32, Offset(base_offset), 5, 1);
        bytes[..HALF_BYTES].copy_from_slice(&stamp);
        bytes
    }

    fn found(walker: &mut Walker, bytes: &[u8], from: u64) -> String {
        let reading = Reading { transcode: no_transcode, transcode_bytes_max: 0, is_aborted: &|_| true };
        match walker.find(bytes, from, reading) {
            Found::Record(shown) => format!("{}={}", shown.offset, String::from_utf8_lossy(shown.record.value.unwrap_or_default())),
            Found::Skip { until, end } => format!("skip {until} {end:?}"),
            Found::Nothing => "nothing".into(),
        }
    }

    #[test]
    fn walks_forwards_and_back_and_over_what_is_no_message() {
        let parts = [frame(3, &["a", "b", "c"], 0), frame(6, &["x", "y"], flags::TRANSACTIONAL), frame(10, &["d"], 0)];
        let bytes = parts.concat();
        let mut walker = Walker::default();
        assert_eq!(found(&mut walker, &bytes, 1), "skip 3 Void");
        for (from, expected) in
            [(3, "3=a"), (4, "4=b"), (5, "5=c"), (6, "skip 8 Void"), (8, "skip 10 Void"), (10, "10=d"), (11, "nothing"), (12, "nothing")]
        {
            assert_eq!(found(&mut walker, &bytes, from), expected);
        }
        let mut walker = Walker::default();
        assert_eq!(found(&mut walker, &bytes, 5), "5=c");
        assert_eq!(found(&mut walker, &bytes, 4), "4=b");
    }

    #[test]
    fn a_record_is_found_again_where_it_was_and_nowhere_else() {
        let bytes = [frame(3, &["a", "bb", "c"], 0), frame(6, &["d"], 0)].concat();
        let (mut walker, partition) = (Walker::default(), PartitionId(1));
        let reading = Reading { transcode: no_transcode, transcode_bytes_max: 0, is_aborted: &|_| false };
        for offset in 3..7 {
            let Found::Record(shown) = walker.find(&bytes, offset, reading) else { panic!("no record {offset}") };
            let (frame, record) = shown.at.expect("a place");
            let again = record_at(&bytes[frame..], partition, offset, record).expect("the record");
            assert_eq!((again.record, again.append_time_ms), (shown.record, shown.append_time_ms));
            for (partition, offset, record) in
                [(PartitionId(2), offset, record), (partition, offset + 3, record), (partition, offset, 1 << 20)]
            {
                assert!(record_at(&bytes[frame..], partition, offset, record).is_none(), "{partition:?} {offset} {record}");
            }
        }
    }

    #[test]
    fn a_batch_of_another_protocol_that_nobody_can_read_is_passed_over() {
        let mut bytes = frame(0, &["a", "b"], 0);
        let mut header = ringmain_wire::FrameHeader::read(&bytes).expect("a frame");
        header.producer.format = Format::Amqp as u8;
        bytes[..64].copy_from_slice(&header.to_bytes());
        assert_eq!(found(&mut Walker::default(), &bytes, 0), "skip 2 Dropped");
    }
}
