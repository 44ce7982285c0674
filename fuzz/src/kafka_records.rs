//! A produced batch of Kafka: checked, inflated, cut into records, shown to native readers and back.
//!
//! Byte 0: bits 0–2 the codec, 8 = the rest is a whole batch, header included; else bytes 1–2 are the record count, and the rest are the
//! records as they are stored, under a header that is right.

use ringmain::frontend::kafka::batch::{HEADER_BYTES, frame};
use ringmain::frontend::kafka::records::{Batch, append_batch, first_since};
use ringmain::frontend::native::transcode::native_frames;
use ringmain::request::Fetched;
use ringmain_wire::frame::{HALF_BYTES, frames};
use ringmain_wire::{BrokerHalf, Offset, PartitionId, Records};

/// Most that records may be when they are inflated, in this small world.
const LIMIT_BYTES: usize = 1 << 20;

pub fn run(input: &[u8]) {
    let Some((&[how, high, low], rest)) = input.split_first_chunk() else { return };
    let batch = if how & 8 != 0 { rest.to_vec() } else { batch(how & 7, u16::from_be_bytes([high, low]), rest) };
    let Ok(frame) = frame(&batch, PartitionId(1), 9) else { return };
    frame.verify_body().expect("what is taken is sealed");
    let Ok(read) = Batch::read_within(frame.body(), LIMIT_BYTES) else { return };
    let mut all = Some(Vec::new());
    let mut bytes = 0;
    for record in read.records() {
        let Ok(record) = record else {
            all = None;
            break;
        };
        let headers: Vec<_> = record.headers().collect();
        assert!(headers.len() <= record.header_count);
        bytes += record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        if let Some(all) = &mut all {
            all.push((record.timestamp_ms, record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec), headers.len()));
        }
    }
    assert!(bytes <= LIMIT_BYTES);
    let _ = first_since(&frame, Offset(3), i64::MIN);

    let mut stored = frame.to_vec();
    let stamp = BrokerHalf::stamp(stored.len() as u32, Offset(7), 1_800_000_000_000, 1);
    stored[..HALF_BYTES].copy_from_slice(&stamp);
    let mut head = Fetched {
        partition: PartitionId(1),
        high_watermark: Offset(1 << 40),
        last_stable: Offset(1 << 40),
        log_start: Offset(0),
        next_offset: Offset(1 << 40),
        bytes: stored.len() as u32,
        aborted: Box::default(),
    };
    let Ok(native) = native_frames(&stored, true, &mut head, 4 * LIMIT_BYTES) else { return };
    assert!(native.len() <= 4 * LIMIT_BYTES, "{} bytes from {LIMIT_BYTES} at most", native.len());
    let all = all.expect("records that can't be read aren't shown");
    let shown = frames(&native).next().expect("a frame").expect("a whole one");
    shown.verify_body().expect("a sealed one");
    let records: Vec<_> = Records::new(shown.body(), shown.header.producer.record_count).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), all.len());
    for (record, (timestamp_ms, key, value, _)) in records.iter().zip(&all) {
        assert_eq!((record.timestamp_ms, record.key, record.value), (*timestamp_ms, key.as_deref(), value.as_deref()));
    }
    let mut back = Vec::new();
    append_batch(&shown, &mut back).expect("what was made here can be shown");
    let back = Batch::read(&back).unwrap_or_else(|_| panic!("and read"));
    let again = back.records().map(|record| record.unwrap_or_else(|_| panic!("and cut")));
    let again: Vec<_> = again.map(|r| (r.timestamp_ms, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec), r.header_count)).collect();
    assert_eq!(again, all);
}

/// A batch of these record bytes with a header that is right for them.
fn batch(codec: u8, count: u16, records: &[u8]) -> Vec<u8> {
    let mut batch = vec![0; HEADER_BYTES];
    batch.extend_from_slice(records);
    let length = (batch.len() - 12) as u32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[16] = 2;
    batch[22] = codec;
    batch[23..27].copy_from_slice(&(i32::from(count) - 1).to_be_bytes());
    batch[43..57].fill(0xff);
    batch[57..61].copy_from_slice(&i32::from(count).to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}
