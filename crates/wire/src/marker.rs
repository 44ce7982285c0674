//! The marker that ends a transaction in a partition, as it lies in the log: a frame of one record, which takes one
//! offset, whose body is the control batch that Kafka's readers expect. Others look at the frame's flags and skip it.

use crate::frame::{BrokerHalf, Format, FrameHeader, HEADER_BYTES, KAFKA_CHECKED_FROM, MAGIC, ProducerHalf, flags};
use crate::id::{PartitionId, ProducerId};

/// Bytes of the batch.
pub const BATCH_BYTES: usize = 78;
/// Transactional and control.
const ATTRIBUTES: u16 = 0x30;
const BATCH_MAGIC: u8 = 2;

/// The whole frame. `producer_epoch` is that of the coordinator's decision.
pub fn marker_frame(partition: PartitionId, producer_id: ProducerId, producer_epoch: u16, commit: bool, time_ms: i64) -> Vec<u8> {
    let body = batch(producer_id, producer_epoch, commit, time_ms);
    let outcome = if commit { 0 } else { flags::ABORTED };
    let mut producer = ProducerHalf {
        body_crc: 0,
        partition: partition.0,
        record_count: 1,
        format: Format::Kafka as u8,
        flags: flags::TRANSACTIONAL | flags::CONTROL | outcome,
        producer_epoch,
        producer_id: producer_id.0,
        sequence: -1,
        reserved: 0,
    };
    producer.seal_kafka(&body, crc32c::crc32c(&body[KAFKA_CHECKED_FROM..]));
    let len = (HEADER_BYTES + BATCH_BYTES) as u32;
    let broker = BrokerHalf { magic: MAGIC, len, base_offset: 0, append_time_ms: 0, epoch: 0, header_crc: 0 };
    let mut bytes = FrameHeader { broker, producer }.to_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// The control batch (magic 2) of one record; base offset and leader epoch are the broker's to stamp.
fn batch(producer_id: ProducerId, producer_epoch: u16, commit: bool, time_ms: i64) -> [u8; BATCH_BYTES] {
    let mut bytes = [0; BATCH_BYTES];
    bytes[8..12].copy_from_slice(&(BATCH_BYTES as u32 - 12).to_be_bytes());
    bytes[16] = BATCH_MAGIC;
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
    let crc = crc32c::crc32c(&bytes[KAFKA_CHECKED_FROM..]);
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
