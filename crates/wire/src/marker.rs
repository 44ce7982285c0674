//! The marker that ends a transaction in a partition, as it lies in the log: a frame of one record, which takes one
//! offset, whose body is the control batch that Kafka's readers expect. Others look at the frame's flags and skip it.

use crate::frame::{self, Format, HEADER_BYTES, Identity, flags};
use crate::id::{PartitionId, ProducerId};

/// Bytes of the batch.
pub const BATCH_BYTES: usize = 78;
/// Transactional and control.
const ATTRIBUTES: u16 = 0x30;
const MAGIC: u8 = 2;
/// Where the bytes covered by the batch's checksum begin.
const CHECKED_FROM: usize = 21;

/// The whole frame. `producer_epoch` is that of the coordinator's decision.
pub fn marker_frame(partition: PartitionId, producer_id: ProducerId, producer_epoch: u16, commit: bool, time_ms: i64) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + BATCH_BYTES];
    bytes[HEADER_BYTES..].copy_from_slice(&batch(producer_id, producer_epoch, commit, time_ms));
    let outcome = if commit { 0 } else { flags::ABORTED };
    let flags = flags::TRANSACTIONAL | flags::CONTROL | outcome;
    frame::seal(&mut bytes, Format::Kafka, 1, Identity { partition, producer_id, producer_epoch, sequence: -1, flags });
    bytes
}

/// The control batch (magic 2) of one record; base offset and leader epoch are the broker's to stamp.
fn batch(producer_id: ProducerId, producer_epoch: u16, commit: bool, time_ms: i64) -> [u8; BATCH_BYTES] {
    let mut bytes = [0; BATCH_BYTES];
    bytes[8..12].copy_from_slice(&(BATCH_BYTES as u32 - 12).to_be_bytes());
    bytes[16] = MAGIC;
    bytes[21..23].copy_from_slice(&ATTRIBUTES.to_be_bytes());
    // 23..27: the last record is the first.
    bytes[27..35].copy_from_slice(&time_ms.to_be_bytes());
    bytes[35..43].copy_from_slice(&time_ms.to_be_bytes());
    bytes[43..51].copy_from_slice(&producer_id.0.to_be_bytes());
    bytes[51..53].copy_from_slice(&producer_epoch.to_be_bytes());
    bytes[53..57].copy_from_slice(&(-1i32).to_be_bytes());
    bytes[57..61].copy_from_slice(&1u32.to_be_bytes());
    // Lengths are zigzag varints: of the record (16), of the key (4: version 0, kind) and of the value (6: version 0,
    // coordinator epoch 0).
    let record = [32, 0, 0, 0, 8, 0, 0, 0, u8::from(commit), 12, 0, 0, 0, 0, 0, 0, 0];
    bytes[61..].copy_from_slice(&record);
    let crc = crc32c::crc32c(&bytes[CHECKED_FROM..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;

    #[test]
    fn marker_is_a_frame_of_one_control_record() {
        let bytes = marker_frame(PartitionId(7), ProducerId(1 << 48), 3, false, 1_700_000_000_000);
        let frame = Frame::parse(&bytes).unwrap();
        frame.verify_body().unwrap();
        let producer = frame.header.producer;
        assert_eq!((producer.partition, producer.record_count, producer.producer_id, producer.producer_epoch), (7, 1, 1 << 48, 3));
        assert_eq!(producer.flags, flags::TRANSACTIONAL | flags::CONTROL | flags::ABORTED);
        assert_eq!((frame.body().len(), frame.largest_timestamp_ms()), (BATCH_BYTES, 1_700_000_000_000));
        // The record fills the batch to its end: length varint, attributes, two deltas, key, value, no headers.
        assert_eq!(usize::from(frame.body()[61]) / 2, BATCH_BYTES - 62);
    }
}
