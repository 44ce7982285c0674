//! Frames of native producers: parsed, checked, cut into records, shown to Kafka's clients.
//!
//! Byte 0: odd = the rest are frames as they are; even = bytes 1–4 are the record count and the rest is the body of one frame under
//! a header that is right.

use ringmain::frontend::kafka::records::{Batch, append_batch, first_since};
use ringmain_wire::frame::{HEADER_BYTES, Identity, frames, seal};
use ringmain_wire::record::{batch_timestamps, headers};
use ringmain_wire::{Format, Frame, Offset, PartitionId, Records};

pub fn run(input: &[u8]) {
    let Some((&how, rest)) = input.split_first() else { return };
    if how & 1 != 0 {
        let mut bytes = 0;
        for frame in frames(rest).map_while(Result::ok) {
            let (body, header) = (frame.verify_body(), frame.verify_header());
            let _ = (body.map_err(|error| error.to_string()), header.map_err(|error| error.to_string()));
            bytes += frame.len_bytes();
            look_at(&frame);
        }
        assert!(bytes <= rest.len());
        return;
    }
    let Some((count, body)) = rest.split_first_chunk() else { return };
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(body);
    seal(&mut bytes, Format::Native, u32::from_le_bytes(*count), Identity::plain(PartitionId(1)));
    let Ok(frame) = Frame::parse(&bytes) else { return };
    frame.verify_body().expect("sealed above");
    look_at(&frame);
}

fn look_at(frame: &Frame<'_>) {
    let count = frame.header.producer.record_count;
    let _ = (frame.largest_timestamp_ms(), batch_timestamps(frame.body()), frame.end_offset());
    let mut all = Some(Vec::new());
    match Records::new(frame.body(), count) {
        Ok(records) => {
            for record in records {
                match (record, &mut all) {
                    (Ok(record), Some(all)) => {
                        let named = headers(record.headers).map(|header| header.is_some()).collect::<Vec<_>>();
                        all.push((record.timestamp_ms, record.key, record.value, named));
                    }
                    (Ok(_), None) => {}
                    (Err(error), _) => {
                        let _ = error.to_string();
                        all = None;
                        break;
                    }
                }
            }
        }
        Err(_) => all = None,
    }
    let _ = first_since(frame, Offset(1), 0);
    let mut shown = Vec::new();
    if append_batch(frame, &mut shown).is_err() || Format::from_number(frame.header.producer.format) != Some(Format::Native) {
        return;
    }
    // Most that a record can grow by is a varint where a fixed number was, and names that aren't UTF-8.
    assert!(shown.len() <= 128 + 4 * frame.len_bytes(), "{} bytes from {}", shown.len(), frame.len_bytes());
    let all = all.expect("records that can't be read aren't shown");
    let batch = Batch::read(&shown).unwrap_or_else(|_| panic!("what is shown can be read"));
    let read: Vec<_> = batch.records().map(|record| record.unwrap_or_else(|_| panic!("what is shown can be cut"))).collect();
    assert_eq!(read.len(), all.len());
    for (read, (timestamp_ms, key, value, named)) in read.iter().zip(&all) {
        assert_eq!((read.timestamp_ms, read.key, read.value, read.header_count), (*timestamp_ms, *key, *value, named.len()));
        assert!(read.headers().all(|header| header.is_some()) && named.iter().all(|is| *is));
    }
}
