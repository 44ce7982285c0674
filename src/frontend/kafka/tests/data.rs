//! Produce, Fetch and ListOffsets.

use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse};
use kafka_protocol::records::{Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use ringmain_wire::control::{Cleanup, NEWEST};
use ringmain_wire::frame::{self, Identity};
use ringmain_wire::record::HeadersBuilder;
use ringmain_wire::{ErrorCode, Frame, Offset, PartitionId, RecordBatchBuilder, ShardId};

use super::*;
use crate::frontend::kafka::batch::{BatchHeader, Codec, HEADER_BYTES, INFLATED_MAX_BYTES};
use crate::frontend::kafka::records::{self, Batch};
use crate::request::{FetchData, Fetched, Request};

fn records_of(count: usize, producer: Option<(i64, i16, i32)>) -> Vec<Record> {
    let record = |at: usize| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: producer.map_or(-1, |(id, ..)| id),
        producer_epoch: producer.map_or(-1, |(_, epoch, _)| epoch),
        timestamp_type: TimestampType::Creation,
        offset: at as i64,
        // Consecutive, or the encoder begins another batch.
        sequence: producer.map_or(-1, |(.., sequence)| sequence) + at as i32,
        timestamp: 1_000 + at as i64,
        key: (!at.is_multiple_of(3)).then(|| Bytes::from(format!("key {at}"))),
        value: (at % 4 != 3).then(|| Bytes::from("value ".repeat(at))),
        headers: IndexMap::from([("h".into(), Some(Bytes::from("x"))), ("null".into(), None)]),
    };
    (0..count).map(record).collect()
}

/// A batch as a client makes it.
pub fn batch(count: usize, producer: Option<(i64, i16, i32)>) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, records_of(count, producer).iter(), &options).unwrap();
    bytes.to_vec()
}

/// Sets attributes or other bytes and makes the checksum right again.
fn patched(mut batch: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    sealed(batch)
}

fn sealed(mut batch: Vec<u8>) -> Vec<u8> {
    let length = (batch.len() - 12) as u32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// The same batch, compressed in each way that clients know.
fn compressed(batch: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    use std::io::Write;
    let (head, body) = batch.split_at(HEADER_BYTES);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    let lz4 = {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    let raw = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
    let mut java = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for block in body.chunks(100) {
        let block = raw(block);
        java.extend_from_slice(&(block.len() as u32).to_be_bytes());
        java.extend_from_slice(&block);
    }
    let zstd = zstd::encode_all(body, 1).unwrap();
    let all = [
        ("none", 0u8, body.to_vec()),
        ("gzip", 1, gzip),
        ("snappy", 2, raw(body)),
        ("java snappy", 2, java),
        ("lz4", 3, lz4),
        ("zstd", 4, zstd),
    ];
    let whole = |(name, codec, body): (&'static str, u8, Vec<u8>)| {
        let mut batch = [head, &body].concat();
        batch[22] = codec;
        (name, sealed(batch))
    };
    all.into_iter().map(whole).collect()
}

/// Frames as a shard returns them: stamped from `offset` on.
fn stored(batches: &[Vec<u8>], mut offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for batch in batches {
        let frame = super::super::batch::frame(batch, PartitionId(1), 11).unwrap();
        let mut body = batch.clone();
        body[..8].copy_from_slice(&offset.to_be_bytes());
        let mut header = frame.header;
        header.broker.base_offset = offset;
        let framed = Frame::of_parts(header, &body);
        framed.verify_body().unwrap();
        bytes.extend(framed.to_vec());
        bytes.resize(ringmain_wire::align_up(bytes.len()), 0);
        offset = framed.end_offset().0;
    }
    bytes
}

fn produce(acks: i16, parts: &[(&'static str, i32, Vec<u8>)]) -> ProduceRequest {
    let mut topics: Vec<TopicProduceData> = Vec::new();
    for (name, index, records) in parts {
        let part = PartitionProduceData::default().with_index(*index).with_records(Some(Bytes::from(records.clone())));
        match topics.last_mut().filter(|topic| topic.name.as_str() == *name) {
            Some(topic) => topic.partition_data.push(part),
            None => topics
                .push(TopicProduceData::default().with_name(TopicName(StrBytes::from_static_str(name))).with_partition_data(vec![part])),
        }
    }
    ProduceRequest::default().with_acks(acks).with_timeout_ms(1000).with_topic_data(topics)
}

/// Everything that a request asks of shards, with what each produce's frame says.
fn receive_all(peer: &mut Peer, bytes: &[u8]) -> Vec<(u64, PartitionId, u32)> {
    let mut asked = Vec::new();
    loop {
        match peer.receive(bytes).unwrap() {
            Received::Request { consumed_bytes: 0, id, request: Request::Produce { frame } } => {
                frame.verify_body().unwrap();
                asked.push((id, frame.partition(), frame.header.producer.record_count));
            }
            Received::Handled { consumed_bytes } => {
                assert_eq!(consumed_bytes, bytes.len());
                return asked;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn produced(offset: u64) -> Reply {
    Reply::Produced { base_offset: Offset(offset), append_time_ms: 5, duplicate: false, redirected: 0 }
}

fn topic_peer() -> Peer {
    let mut peer = Peer::new();
    peer.create("t", 3, TopicConfig::default());
    peer
}

#[test]
fn produce_hands_out_every_batch_where_it_lies_and_answers_in_order() {
    for version in 3..=11 {
        let mut peer = topic_peer();
        let parts = [("t", 0, batch(2, None)), ("nowhere", 0, batch(1, None)), ("t", 9, batch(1, None)), ("t", 2, batch(3, None))];
        let bytes = request_bytes(ApiKey::Produce, version, 1, &produce(-1, &parts));
        let asked = receive_all(&mut peer, &bytes);
        assert_eq!(asked.iter().map(|(_, partition, count)| (partition.0, *count)).collect::<Vec<_>>(), [(1, 2), (3, 3)]);
        peer.reply(asked[1].0, produced(70));
        assert!(peer.out.is_empty());
        peer.reply(asked[0].0, produced(40));
        let response: ProduceResponse = peer.response(ApiKey::Produce, version, 1);
        let answers: Vec<_> = response
            .responses
            .iter()
            .flat_map(|topic| {
                topic.partition_responses.iter().map(|part| (topic.name.as_str().to_owned(), part.index, part.error_code, part.base_offset))
            })
            .collect();
        let expected = [("t", 0, 0, 40), ("nowhere", 0, 3, -1), ("t", 9, 3, -1), ("t", 2, 0, 70)];
        assert_eq!(answers, expected.map(|(name, index, error, offset)| (name.to_owned(), index, error, offset)));
    }
}

#[test]
fn pipelined_produces_are_answered_in_the_order_they_came() {
    let mut peer = topic_peer();
    let first = receive_all(&mut peer, &request_bytes(ApiKey::Produce, 9, 1, &produce(1, &[("t", 0, batch(1, None))])));
    let second = receive_all(&mut peer, &request_bytes(ApiKey::Produce, 9, 2, &produce(1, &[("t", 1, batch(1, None))])));
    assert_eq!(peer.session.in_flight(), 2);
    // What comes behind begins when they are answered; nothing is read behind that.
    let metadata = request_bytes(ApiKey::Metadata, 9, 3, &metadata_of(&["t"]));
    peer.receive(&metadata).unwrap();
    assert_eq!(peer.session.in_flight(), peer.session.max_in_flight());
    peer.reply(second[0].0, produced(7));
    assert!(peer.out.is_empty());
    peer.reply(first[0].0, produced(3));
    let sent = peer.sent();
    let correlations: Vec<_> = sent.iter().map(|bytes| i32::from_be_bytes(bytes[..4].try_into().unwrap())).collect();
    assert_eq!(correlations, [1, 2, 3]);
}

#[test]
fn produce_without_acknowledgement_is_silent_and_closes_on_an_error() {
    let mut peer = topic_peer();
    let asked = receive_all(&mut peer, &request_bytes(ApiKey::Produce, 7, 1, &produce(0, &[("t", 0, batch(1, None))])));
    peer.reply(asked[0].0, produced(1));
    assert!(peer.out.is_empty() && peer.session.closing().is_none() && peer.session.in_flight() == 0);
    let asked = receive_all(&mut peer, &request_bytes(ApiKey::Produce, 7, 2, &produce(0, &[("t", 0, batch(1, None))])));
    peer.reply(asked[0].0, Reply::Failed(ErrorCode::DiskFull.into()));
    assert!(peer.out.is_empty() && peer.session.closing().is_some());
}

#[test]
fn refused_batches_get_their_own_error_and_reach_no_shard() {
    let good = batch(3, None);
    let cut = good[..good.len() - 1].to_vec();
    let two = [good.clone(), good.clone()].concat();
    let mut flipped = good.clone();
    flipped[70] ^= 1;
    let cases: Vec<(&str, i16, Vec<u8>)> = vec![
        ("nothing", 2, Vec::new()),
        ("cut", 2, cut),
        ("two batches", 87, two),
        ("a flipped bit", 2, flipped),
        ("magic 1", 87, patched(good.clone(), 16, &[1])),
        ("codec 5", 87, patched(good.clone(), 21, &[0, 5])),
        ("append time", 32, patched(good.clone(), 21, &[0, 8])),
        ("control", 87, patched(good.clone(), 21, &[0, 0x20])),
        ("no records", 87, patched(good.clone(), 57, &[0; 4])),
        ("negative count", 87, patched(good.clone(), 57, &[0xff; 4])),
        ("another last delta", 87, patched(good.clone(), 23, &7i32.to_be_bytes())),
        ("more records than fit", 87, patched(patched(good.clone(), 57, &1_000_000i32.to_be_bytes()), 23, &999_999i32.to_be_bytes())),
        ("a producer without an epoch", 87, patched(good.clone(), 43, &5i64.to_be_bytes())),
        ("transactional without an id", 87, patched(batch(1, Some((4, 0, 0))), 21, &[0, 0x10])),
    ];
    for (what, code, records) in cases {
        let mut peer = topic_peer();
        let bytes = request_bytes(ApiKey::Produce, 8, 1, &produce(1, &[("t", 0, records)]));
        assert!(receive_all(&mut peer, &bytes).is_empty(), "{what}");
        let response: ProduceResponse = peer.response(ApiKey::Produce, 8, 1);
        assert_eq!(response.responses[0].partition_responses[0].error_code, code, "{what}");
    }
    let zstd = compressed(&good).pop().unwrap().1;
    for (version, code) in [(6, Some(76)), (7, None)] {
        let mut peer = topic_peer();
        let bytes = request_bytes(ApiKey::Produce, version, 1, &produce(1, &[("t", 0, zstd.clone())]));
        let asked = receive_all(&mut peer, &bytes).len();
        assert_eq!(asked, usize::from(code.is_none()));
        if let Some(code) = code {
            let response: ProduceResponse = peer.response(ApiKey::Produce, version, 1);
            assert_eq!(response.responses[0].partition_responses[0].error_code, code);
        }
    }
    let mut peer = topic_peer();
    assert!(receive_all(&mut peer, &request_bytes(ApiKey::Produce, 8, 1, &produce(2, &[("t", 0, good)]))).is_empty());
    let response: ProduceResponse = peer.response(ApiKey::Produce, 8, 1);
    assert_eq!(response.responses[0].partition_responses[0].error_code, 21);
}

#[test]
fn frame_of_a_batch_carries_its_producer() {
    let bytes = batch(2, Some((77, 3, 12)));
    let frame = super::super::batch::frame(&bytes, PartitionId(9), 11).unwrap();
    let producer = frame.header.producer;
    assert_eq!((producer.producer_id, producer.producer_epoch, producer.sequence, producer.record_count), (77, 3, 12, 2));
    assert_eq!(frame.largest_timestamp_ms(), 1_001);
    frame.verify_body().unwrap();
    // What the broker stamps is outside of every checksum, everything else inside.
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 0x40;
        let verified = Frame::of_parts(frame.header, &other).verify_body();
        assert_eq!(verified.is_ok(), at < 16, "byte {at}");
    }
}

#[test]
fn records_are_the_same_under_every_codec() {
    let plain = batch(40, None);
    type Plain = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);
    let parse = |bytes: &[u8]| -> Vec<Plain> {
        let batch = Batch::read(bytes).unwrap();
        let records = batch.records().map(Result::unwrap);
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        records.map(|r| (r.offset_delta, r.timestamp_ms, owned(r.key), owned(r.value), r.headers().map(Option::unwrap).count())).collect()
    };
    let expected = parse(&plain);
    assert_eq!(expected.len(), 40);
    assert_eq!(expected[5], (5, 1_005, Some(b"key 5".to_vec()), Some("value ".repeat(5).into_bytes()), 2));
    assert_eq!((&expected[3].2, &expected[3].3), (&None, &None));
    for (name, bytes) in compressed(&plain) {
        assert_eq!(parse(&bytes), expected, "{name}");
        for cut in HEADER_BYTES..bytes.len() - 1 {
            // Whatever is missing: no panic.
            let _ = Batch::read(&bytes[..cut]).map(|batch| batch.records().count());
        }
    }
}

#[test]
fn batch_that_inflates_without_end_is_unreadable() {
    let mut head = batch(1, None)[..HEADER_BYTES].to_vec();
    let zeros = vec![0; INFLATED_MAX_BYTES + 1];
    head[22] = 4;
    head.extend(zstd::encode_all(&zeros[..], 1).unwrap());
    assert!(head.len() < 100_000, "a bomb is small");
    assert!(Batch::read(&head).is_err());
    let mut snappy = batch(1, None)[..HEADER_BYTES].to_vec();
    snappy[22] = 2;
    snappy.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(Batch::read(&snappy).is_err());
    assert_eq!(Codec::of(5), None);
}

fn fetch_request(parts: &[(&'static str, i32, i64)], max_wait_ms: i32, min_bytes: i32, max_bytes: i32) -> FetchRequest {
    let topic = |(name, index, offset): &(&'static str, i32, i64)| {
        let part = FetchPartition::default().with_partition(*index).with_fetch_offset(*offset).with_partition_max_bytes(max_bytes);
        FetchTopic::default().with_topic(TopicName(StrBytes::from_static_str(name))).with_partitions(vec![part])
    };
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(min_bytes)
        .with_max_bytes(max_bytes)
        .with_topics(parts.iter().map(topic).collect())
}

fn fetched(partition: u32, high_watermark: u64, frames: Vec<u8>) -> Reply {
    let head = Fetched {
        partition: PartitionId(partition),
        high_watermark: Offset(high_watermark),
        last_stable: Offset(high_watermark),
        log_start: Offset(0),
        next_offset: Offset(high_watermark),
        bytes: frames.len() as u32,
        aborted: Box::default(),
    };
    Reply::Fetched { head, data: FetchData::Owned(frames) }
}

/// Requests of the session's own making.
fn asks(peer: &mut Peer) -> Vec<(u64, OwnedRequest)> {
    std::iter::from_fn(|| peer.session.poll_request()).collect()
}

fn offsets_in(records: &Option<Bytes>) -> Vec<i64> {
    let mut bytes = records.clone().unwrap();
    if bytes.is_empty() {
        return Vec::new();
    }
    RecordBatchDecoder::decode_all(&mut bytes).unwrap().iter().flat_map(|set| set.records.iter().map(|record| record.offset)).collect()
}

#[test]
fn fetch_returns_whole_batches_from_the_one_with_the_offset_on() {
    for version in 4..=12 {
        let mut peer = topic_peer();
        let bytes = request_bytes(ApiKey::Fetch, version, 1, &fetch_request(&[("t", 0, 4), ("gone", 0, 0)], 500, 1, 1 << 20));
        peer.receive(&bytes).unwrap();
        let asked = asks(&mut peer);
        assert!(matches!(&asked[..], [(_, OwnedRequest::Fetch(fetch))] if fetch.partition == PartitionId(1) && fetch.from == Offset(4)));
        peer.reply(asked[0].0, fetched(1, 9, stored(&[batch(3, None), batch(3, None), batch(3, None)], 0)));
        let response: FetchResponse = peer.response(ApiKey::Fetch, version, 1);
        assert_eq!((response.error_code, response.session_id), (0, 0));
        let part = &response.responses[0].partitions[0];
        assert_eq!((part.error_code, part.high_watermark), (0, 9));
        assert_eq!(offsets_in(&part.records), [3, 4, 5, 6, 7, 8]);
        assert_eq!(response.responses[1].partitions[0].error_code, 3);
    }
}

/// Large batches aren't copied for the response, small ones are moved together; the client sees no difference.
#[test]
fn batches_are_sent_from_what_the_shard_returned() {
    for version in 4..=12 {
        for (records, pieces) in [(60, 2), (2, 1)] {
            let mut peer = topic_peer();
            let mut request = fetch_request(&[("t", 0, 0), ("t", 1, 0)], 500, 1, 1 << 20);
            request.isolation_level = 1;
            request.topics.iter_mut().for_each(|topic| topic.partitions[0].partition_max_bytes = 100_000);
            peer.receive(&request_bytes(ApiKey::Fetch, version, 1, &request)).unwrap();
            let asked = asks(&mut peer);
            let batches = [batch(records, None), batch(records, None)];
            let Reply::Fetched { mut head, data } = fetched(1, 2 * records as u64, stored(&batches, 0)) else { unreachable!() };
            let aborted = crate::request::transaction::AbortedTransaction {
                producer_id: ringmain_wire::ProducerId(9),
                first_offset: Offset(1),
                last_offset: Offset(2),
            };
            head.aborted = [aborted].into();
            peer.reply(asked[0].0, Reply::Fetched { head, data });
            peer.reply(asked[1].0, fetched(2, records as u64, stored(&batches[..1], 0)));
            let of_ranges = peer.out.pieces.iter().map(|piece| if let Piece::Ranges { ranges, .. } = piece { ranges.len() } else { 0 });
            assert_eq!(of_ranges.filter(|count| *count > 0).collect::<Vec<_>>(), [pieces, 1], "version {version}");
            let len_bytes = peer.out.len_bytes;
            let response: FetchResponse = peer.response(ApiKey::Fetch, version, 1);
            let [first, second] = [0, 1].map(|topic| &response.responses[topic].partitions[0]);
            assert_eq!((offsets_in(&first.records).len(), offsets_in(&second.records).len()), (2 * records, records));
            let sent = first.records.as_ref().unwrap();
            assert_eq!((&sent[8..batches[0].len()], sent.len()), (&batches[0][8..], 2 * batches[0].len()));
            assert!(len_bytes > 3 * batches[0].len());
            let aborted = first.aborted_transactions.as_ref().unwrap();
            assert_eq!((aborted.len(), aborted[0].producer_id.0, aborted[0].first_offset), (1, 9, 1));
            assert_eq!((first.preferred_read_replica.0, second.aborted_transactions.as_ref().map(Vec::len)), (-1, Some(0)));
        }
    }
}

#[test]
fn fetch_keeps_to_its_limit_but_for_the_first_batch() {
    let mut peer = topic_peer();
    let bytes = request_bytes(ApiKey::Fetch, 11, 1, &fetch_request(&[("t", 0, 0), ("t", 1, 0)], 500, 1, 10));
    peer.receive(&bytes).unwrap();
    let asked = asks(&mut peer);
    let limits: Vec<u32> =
        asked.iter().map(|(_, ask)| if let OwnedRequest::Fetch(fetch) = ask { fetch.max_bytes } else { panic!() }).collect();
    assert_eq!(limits, [10, 0]);
    peer.reply(asked[0].0, fetched(1, 6, stored(&[batch(3, None), batch(3, None)], 0)));
    peer.reply(asked[1].0, fetched(2, 3, stored(&[batch(3, None)], 0)));
    let response: FetchResponse = peer.response(ApiKey::Fetch, 11, 1);
    let parts: Vec<_> =
        response.responses.iter().map(|topic| (offsets_in(&topic.partitions[0].records), topic.partitions[0].high_watermark)).collect();
    assert_eq!(parts, [(vec![0, 1, 2], 6), (vec![], 3)]);
}

#[test]
fn fetch_with_too_little_watches_and_asks_again() {
    let mut peer = topic_peer();
    // Partitions 0 and 2 lie on shard 0, partition 1 on shard 1.
    let bytes = request_bytes(ApiKey::Fetch, 11, 1, &fetch_request(&[("t", 0, 5), ("t", 1, 0), ("t", 2, 0)], 500, 1, 1 << 20));
    peer.receive(&bytes).unwrap();
    for (id, ask) in asks(&mut peer) {
        let OwnedRequest::Fetch(fetch) = ask else { panic!("{ask:?}") };
        peer.reply(id, fetched(fetch.partition.0, fetch.from.0, Vec::new()));
    }
    let watches = asks(&mut peer);
    let watched: Vec<_> = watches
        .iter()
        .map(
            |(_, ask)| {
                if let OwnedRequest::Watch(watch) = ask { (watch.shard, watch.partitions.clone(), watch.max_wait_ms) } else { panic!() }
            },
        )
        .collect();
    let (one, two, three) = ((PartitionId(1), Offset(5)), (PartitionId(2), Offset(0)), (PartitionId(3), Offset(0)));
    assert_eq!(watched, [(ShardId(0), vec![one, three], 500), (ShardId(1), vec![two], 500)]);
    assert!(peer.out.is_empty());
    peer.now.monotonic_us += 1_000;
    peer.reply(watches[0].0, Reply::Watched { is_due: true });
    let again = asks(&mut peer);
    assert_eq!(again.len(), 3);
    peer.reply(again[0].0, fetched(1, 6, stored(&[batch(1, None)], 5)));
    peer.reply(again[1].0, fetched(2, 0, Vec::new()));
    peer.reply(again[2].0, fetched(3, 0, Vec::new()));
    let response: FetchResponse = peer.response(ApiKey::Fetch, 11, 1);
    assert_eq!(offsets_in(&response.responses[0].partitions[0].records), [5]);
    // The other shard's answer comes when nobody waits for it any more.
    peer.reply(watches[1].0, Reply::Watched { is_due: false });
    assert!(peer.out.is_empty());
}

#[test]
fn fetch_whose_time_is_up_returns_what_there_is() {
    let mut peer = topic_peer();
    peer.receive(&request_bytes(ApiKey::Fetch, 11, 1, &fetch_request(&[("t", 0, 0)], 500, 1_000_000, 1 << 20))).unwrap();
    let asked = asks(&mut peer);
    peer.reply(asked[0].0, fetched(1, 1, stored(&[batch(1, None)], 0)));
    let watches = asks(&mut peer);
    peer.reply(watches[0].0, Reply::Watched { is_due: false });
    let response: FetchResponse = peer.response(ApiKey::Fetch, 11, 1);
    assert_eq!(offsets_in(&response.responses[0].partitions[0].records), [0]);
    // Without a wait nobody is asked to watch.
    peer.receive(&request_bytes(ApiKey::Fetch, 11, 2, &fetch_request(&[("t", 0, 0)], 0, 1, 1 << 20))).unwrap();
    let asked = asks(&mut peer);
    peer.reply(asked[0].0, fetched(1, 0, Vec::new()));
    let _: FetchResponse = peer.response(ApiKey::Fetch, 11, 2);
}

#[test]
fn fetch_checks_epoch_session_and_offset() {
    let with_epoch = |epoch: i32| {
        let mut request = fetch_request(&[("t", 0, 0)], 0, 0, 100);
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        request
    };
    for (epoch, error) in [(2, 74), (4, 75)] {
        let response: FetchResponse = topic_peer().call(ApiKey::Fetch, 11, &with_epoch(epoch));
        assert_eq!(response.responses[0].partitions[0].error_code, error);
    }
    let response: FetchResponse = topic_peer().call(ApiKey::Fetch, 11, &with_epoch(3).with_session_id(9));
    assert_eq!(response.error_code, 70);
    let response: FetchResponse = topic_peer().call(ApiKey::Fetch, 11, &fetch_request(&[("t", 0, -5)], 0, 0, 100));
    assert_eq!(response.responses[0].partitions[0].error_code, 1);
}

#[test]
fn native_batch_is_read_as_a_kafka_batch() {
    let mut headers = HeadersBuilder::default();
    headers.push(b"a", Some(b"1")).push(b"a", None);
    let mut builder = RecordBatchBuilder::new();
    builder.push(1_000, Some(b"key"), Some(b"value"), headers.as_bytes());
    builder.push(999, None, None, b"");
    builder.push(1_300, Some(b""), Some(b""), b"");
    let mut bytes = builder.finish(Identity::plain(PartitionId(7))).to_vec();
    let stamp = ringmain_wire::BrokerHalf::stamp(bytes.len() as u32, Offset(40), 5, 2);
    bytes[..32].copy_from_slice(&stamp);
    let frame = Frame::parse(&bytes).unwrap();
    let mut out = Vec::new();
    records::append_batch(&frame, &mut out).unwrap();
    let header = BatchHeader::read(&out).unwrap();
    assert_eq!(
        (header.base_offset, header.leader_epoch, header.max_timestamp_ms, header.producer_id, header.producer_epoch),
        (40, 2, 1_300, -1, -1)
    );
    // Our own check takes it, and so does another implementation.
    super::super::batch::frame(&out, PartitionId(7), 11).unwrap();
    let set = RecordBatchDecoder::decode(&mut Bytes::from(out)).unwrap();
    let read: Vec<_> = set.records.iter().map(|r| (r.offset, r.timestamp, r.key.as_deref(), r.value.as_deref(), r.headers.len())).collect();
    assert_eq!(
        read,
        [(40, 1_000, Some(&b"key"[..]), Some(&b"value"[..]), 1), (41, 999, None, None, 0), (42, 1_300, Some(&b""[..]), Some(&b""[..]), 0)]
    );
    assert_eq!(records::first_since(&frame, Offset(0), 1_001), Ok(Some((Offset(42), 1_300))));
}

/// In every codec, in topics of both kinds; others are never looked into.
#[test]
fn record_without_a_key_is_refused_where_records_are_told_by_their_keys() {
    let mut records = records_of(4, None);
    records.iter_mut().for_each(|record| record.key = Some(Bytes::from_static(b"k")));
    let encode = |records: &[Record]| {
        let mut bytes = bytes::BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: Compression::None };
        RecordBatchEncoder::encode(&mut bytes, records.iter(), &options).unwrap();
        bytes.to_vec()
    };
    let with_keys = encode(&records);
    records[3].key = None;
    let without = encode(&records);
    let error = |cleanup: Cleanup, batch: Vec<u8>| {
        let mut peer = Peer::new();
        peer.create("t", 1, TopicConfig { cleanup, ..TopicConfig::default() });
        let bytes = request_bytes(ApiKey::Produce, 9, 1, &produce(-1, &[("t", 0, batch)]));
        match receive_all(&mut peer, &bytes)[..] {
            [] => {
                let response: ProduceResponse = peer.response(ApiKey::Produce, 9, 1);
                response.responses[0].partition_responses[0].error_code
            }
            _ => 0,
        }
    };
    for ((name, with), (_, without)) in compressed(&with_keys).into_iter().zip(compressed(&without)) {
        for cleanup in [Cleanup::Compact, Cleanup::CompactAndDelete] {
            assert_eq!((error(cleanup, with.clone()), error(cleanup, without.clone())), (0, 87), "{name}, {cleanup}");
        }
        assert_eq!(error(Cleanup::Delete, without), 0, "{name}");
        let unreadable = patched(with.clone(), HEADER_BYTES, &[0xff; 9]);
        assert_eq!((error(Cleanup::Compact, unreadable.clone()), error(Cleanup::Delete, unreadable)), (87, 0), "{name}");
    }
}

#[test]
fn list_offsets_finds_the_record_inside_the_batch() {
    for (name, bytes) in compressed(&batch(10, None)) {
        for (wanted, offset, time) in [(1_004, 24, 1_004), (5, 20, 1_000), (NEWEST, 29, 1_009)] {
            let mut peer = topic_peer();
            let part = ListOffsetsPartition::default().with_partition_index(0).with_timestamp(wanted);
            let topic = ListOffsetsTopic::default().with_name(TopicName("t".into())).with_partitions(vec![part]);
            let request = ListOffsetsRequest::default().with_topics(vec![topic]);
            peer.receive(&request_bytes(ApiKey::ListOffsets, 7, 1, &request)).unwrap();
            let asked = asks(&mut peer);
            assert!(matches!(asked[0].1, OwnedRequest::ListOffset { timestamp_ms, .. } if timestamp_ms == wanted));
            peer.reply(asked[0].0, Reply::Offset { offset: Offset(20), timestamp_ms: 1_009, found: true });
            let asked = asks(&mut peer);
            assert!(matches!(&asked[0].1, OwnedRequest::Fetch(fetch) if fetch.from == Offset(20)));
            peer.reply(asked[0].0, fetched(1, 30, stored(std::slice::from_ref(&bytes), 20)));
            let response: ListOffsetsResponse = peer.response(ApiKey::ListOffsets, 7, 1);
            let part = &response.topics[0].partitions[0];
            assert_eq!((part.offset, part.timestamp, part.leader_epoch), (offset, time, 3), "{name} {wanted}");
        }
    }
}

#[test]
fn frames_of_a_fetch_are_whole() {
    let frames = stored(&[batch(1, None), batch(2, None)], 3);
    assert_eq!(frame::frames(&frames).map(|frame| frame.unwrap().base_offset().0).collect::<Vec<_>>(), [3, 4]);
}
