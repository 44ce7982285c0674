//! What the APIs of transactions ask, and how they say what comes back.

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, DescribeProducersRequest,
    DescribeProducersResponse, DescribeTransactionsRequest, DescribeTransactionsResponse, EndTxnRequest, EndTxnResponse, GroupId,
    InitProducerIdRequest, InitProducerIdResponse, ListTransactionsRequest, ListTransactionsResponse, ProducerId as KafkaProducerId,
    TransactionalId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use ringmain_wire::{ErrorCode, Offset, PartitionId, ProducerId};

use super::*;
use crate::request::group::GroupReply;
use crate::request::transaction::{
    ProducerDescription, ProducerKey, TransactionAction, TransactionDescription, TransactionListing, TransactionPhase, TransactionReply,
};

const PRODUCER: i64 = 1 << 48;

fn key() -> ProducerKey {
    ProducerKey { id: ProducerId(PRODUCER), epoch: 3 }
}

fn str(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn id() -> TransactionalId {
    TransactionalId(str("app"))
}

fn done() -> Reply {
    Reply::Transaction(Box::new(TransactionReply::Done))
}

fn failed(code: ErrorCode) -> Reply {
    Reply::Failed(code.into())
}

impl Peer {
    /// Hands a request in; what it asks.
    fn asks(&mut self, key: ApiKey, version: i16, request: &impl Encodable) -> (u64, OwnedRequest) {
        let bytes = request_bytes(key, version, 77, request);
        assert!(matches!(self.receive(&bytes), Ok(Received::Handled { .. })), "{key:?} {version}");
        self.session.poll_request().unwrap()
    }

    fn asks_transaction(&mut self, key: ApiKey, version: i16, request: &impl Encodable) -> (u64, TransactionAction) {
        let (number, asked) = self.asks(key, version, request);
        let OwnedRequest::Transaction(asked) = asked else { panic!("{asked:?}") };
        assert_eq!(asked.transactional_id, "app");
        (number, asked.action.clone())
    }
}

fn with_topic() -> Peer {
    let mut peer = Peer::new();
    peer.create("t", 2, TopicConfig::default());
    peer
}

#[test]
fn transactional_producer_is_initialized_in_every_version() {
    for version in 0..=4 {
        let request = InitProducerIdRequest::default().with_transactional_id(Some(id())).with_transaction_timeout_ms(60_000);
        let is_known = version >= 3;
        let request = if is_known { request.with_producer_id(KafkaProducerId(PRODUCER)).with_producer_epoch(2) } else { request };
        let current = is_known.then_some(ProducerKey { epoch: 2, ..key() });
        let mut peer = Peer::new();
        let (number, action) = peer.asks_transaction(ApiKey::InitProducerId, version, &request);
        assert_eq!(action, TransactionAction::Init { timeout_ms: 60_000, check: None, current });
        peer.reply(number, Reply::Transaction(Box::new(TransactionReply::Producer(key()))));
        let response: InitProducerIdResponse = peer.response(ApiKey::InitProducerId, version, 77);
        assert_eq!((response.error_code, response.producer_id.0, response.producer_epoch), (0, PRODUCER, 3));
        let (number, _) = peer.asks(ApiKey::InitProducerId, version, &request);
        peer.reply(number, failed(ErrorCode::ProducerFenced));
        let response: InitProducerIdResponse = peer.response(ApiKey::InitProducerId, version, 77);
        assert_eq!(response.error_code, if version >= 4 { 90 } else { 47 });
    }
    let half = InitProducerIdRequest::default().with_transactional_id(Some(id())).with_producer_id(KafkaProducerId(5));
    let response: InitProducerIdResponse = Peer::new().call(ApiKey::InitProducerId, 4, &half);
    assert_eq!(response.error_code, 42);
}

#[test]
fn partitions_join_together_or_not_at_all() {
    let request = |indexes: &[i32]| {
        let topic = AddPartitionsToTxnTopic::default().with_name(TopicName(str("t"))).with_partitions(indexes.to_vec());
        AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id())
            .with_v3_and_below_producer_id(KafkaProducerId(PRODUCER))
            .with_v3_and_below_producer_epoch(3)
            .with_v3_and_below_topics(vec![topic])
    };
    let codes = |response: AddPartitionsToTxnResponse| -> Vec<(i32, i16)> {
        let parts = response.results_by_topic_v3_and_below.iter().flat_map(|topic| &topic.results_by_partition);
        parts.map(|part| (part.partition_index, part.partition_error_code)).collect()
    };
    for version in 0..=3 {
        let mut peer = with_topic();
        let (number, action) = peer.asks_transaction(ApiKey::AddPartitionsToTxn, version, &request(&[1, 0]));
        let partitions = vec![PartitionId(2), PartitionId(1)];
        assert_eq!(action, TransactionAction::AddPartitions { producer: key(), partitions });
        peer.reply(number, done());
        assert_eq!(codes(peer.response(ApiKey::AddPartitionsToTxn, version, 77)), [(1, 0), (0, 0)]);
        let (number, _) = peer.asks(ApiKey::AddPartitionsToTxn, version, &request(&[1]));
        peer.reply(number, failed(ErrorCode::ProducerFenced));
        assert_eq!(codes(peer.response(ApiKey::AddPartitionsToTxn, version, 77)), [(1, if version >= 2 { 90 } else { 47 })]);
        let response = with_topic().call(ApiKey::AddPartitionsToTxn, version, &request(&[0, 2, -1]));
        assert_eq!(codes(response), [(0, 55), (2, 3), (-1, 3)]);
    }
}

#[test]
fn groups_join_and_transactions_end() {
    for version in 0..=3 {
        let mut peer = Peer::new();
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(id())
            .with_producer_id(KafkaProducerId(PRODUCER))
            .with_producer_epoch(3)
            .with_group_id(GroupId(str("g")));
        let (number, action) = peer.asks_transaction(ApiKey::AddOffsetsToTxn, version, &request);
        assert_eq!(action, TransactionAction::AddGroup { producer: key(), group: "g".into() });
        peer.reply(number, failed(ErrorCode::ConcurrentTransactions));
        assert_eq!(peer.response::<AddOffsetsToTxnResponse>(ApiKey::AddOffsetsToTxn, version, 77).error_code, 51);
        let request = EndTxnRequest::default()
            .with_transactional_id(id())
            .with_producer_id(KafkaProducerId(PRODUCER))
            .with_producer_epoch(-1)
            .with_committed(true);
        let (number, action) = peer.asks_transaction(ApiKey::EndTxn, version, &request);
        assert_eq!(action, TransactionAction::End { producer: ProducerKey { epoch: u16::MAX, ..key() }, commit: true, renews: false });
        peer.reply(number, done());
        assert_eq!(peer.response::<EndTxnResponse>(ApiKey::EndTxn, version, 77).error_code, 0);
    }
}

#[test]
fn offsets_go_by_way_of_the_coordinator() {
    for version in 0..=3 {
        let mut peer = with_topic();
        let part = |index, offset| TxnOffsetCommitRequestPartition::default().with_partition_index(index).with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default().with_name(TopicName(str("t"))).with_partitions(vec![
            part(0, 7),
            part(1, 8),
            part(5, 9),
            part(0, -1),
        ]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id())
            .with_group_id(GroupId(str("g")))
            .with_producer_id(KafkaProducerId(PRODUCER))
            .with_producer_epoch(3)
            .with_topics(vec![topic]);
        let request = if version >= 3 { request.with_generation_id(4).with_member_id(str("m")) } else { request };
        let (number, action) = peer.asks_transaction(ApiKey::TxnOffsetCommit, version, &request);
        let TransactionAction::CommitOffsets { producer, group, commit } = action else { panic!("{action:?}") };
        assert_eq!((producer, group.as_str()), (key(), "g"));
        assert_eq!((commit.generation, commit.member.member_id.as_str()), if version >= 3 { (4, "m") } else { (-1, "") });
        let offsets: Vec<_> = commit.offsets.iter().map(|offset| (offset.partition, offset.offset)).collect();
        assert_eq!(offsets, [(PartitionId(1), Offset(7)), (PartitionId(2), Offset(8))]);
        let refused = vec![(PartitionId(2), ErrorCode::OffsetMetadataTooLarge)];
        peer.reply(number, Reply::Group(Box::new(GroupReply::Committed { refused })));
        let response: TxnOffsetCommitResponse = peer.response(ApiKey::TxnOffsetCommit, version, 77);
        let codes: Vec<_> = response.topics[0].partitions.iter().map(|part| (part.partition_index, part.error_code)).collect();
        assert_eq!(codes, [(0, 0), (1, 12), (5, 3), (0, 1)]);
    }
}

#[test]
fn transactions_are_listed_and_described() {
    let listing = |phase| TransactionListing { transactional_id: "app".into(), producer: key(), phase, begun_ms: 5 };
    let mut peer = with_topic();
    let request = DescribeTransactionsRequest::default().with_transactional_ids(vec![id(), id()]);
    let (number, action) = peer.asks_transaction(ApiKey::DescribeTransactions, 0, &request);
    assert_eq!(action, TransactionAction::Describe);
    let description = TransactionDescription {
        listing: listing(TransactionPhase::Ongoing),
        timeout_ms: 9,
        partitions: vec![PartitionId(1), PartitionId(2), PartitionId(77)],
        groups: Vec::new(),
    };
    let (second, _) = peer.session.poll_request().unwrap();
    peer.reply(number, Reply::Transaction(Box::new(TransactionReply::Description(description))));
    peer.reply(second, failed(ErrorCode::TransactionNotFound));
    let response: DescribeTransactionsResponse = peer.response(ApiKey::DescribeTransactions, 0, 77);
    let [found, missing] = &response.transaction_states[..] else { panic!() };
    assert_eq!((found.transaction_state.as_str(), found.transaction_timeout_ms, found.transaction_start_time_ms), ("Ongoing", 9, 5));
    assert_eq!((found.topics[0].topic.as_str(), &found.topics[0].partitions[..]), ("t", &[0, 1][..]));
    assert_eq!(missing.error_code, 105);
    for version in 0..=1 {
        let request = ListTransactionsRequest::default().with_state_filters(vec![str("Ongoing"), str("Dreaming")]);
        let (number, asked) = peer.asks(ApiKey::ListTransactions, version, &request);
        assert!(matches!(asked, OwnedRequest::ListTransactions));
        peer.reply(number, Reply::Transactions(vec![listing(TransactionPhase::Ongoing), listing(TransactionPhase::Aborted)]));
        let response: ListTransactionsResponse = peer.response(ApiKey::ListTransactions, version, 77);
        assert_eq!((response.error_code, response.transaction_states.len()), (0, 1));
        assert_eq!(response.unknown_state_filters, [str("Dreaming")]);
    }
    let topic = TopicRequest::default().with_name(TopicName(str("t"))).with_partition_indexes(vec![0, 9]);
    let (number, asked) = peer.asks(ApiKey::DescribeProducers, 0, &DescribeProducersRequest::default().with_topics(vec![topic]));
    assert!(matches!(asked, OwnedRequest::DescribeProducers { partition: PartitionId(1) }));
    let producer = ProducerDescription { producer: key(), last_sequence: 4, last_append_ms: 6, transaction_start: Some(Offset(8)) };
    peer.reply(number, Reply::Producers(vec![producer]));
    let response: DescribeProducersResponse = peer.response(ApiKey::DescribeProducers, 0, 77);
    let [known, unknown] = &response.topics[0].partitions[..] else { panic!() };
    let state = &known.active_producers[0];
    assert_eq!((state.producer_id.0, state.producer_epoch, state.last_sequence, state.current_txn_start_offset), (PRODUCER, 3, 4, 8));
    assert_eq!(unknown.error_code, 3);
}
