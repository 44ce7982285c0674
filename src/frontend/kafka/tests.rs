//! Bytes in, requests and bytes out; no socket, no shard. Requests are encoded and responses decoded by another implementation.

mod admin;
mod data;
mod transactions;

use std::net::IpAddr;

use bytes::Bytes;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse, RequestHeader, TopicName,
    metadata_request::MetadataRequestTopic,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use ringmain_wire::control::{CreateTopic, TopicConfig};

use super::*;
use crate::frontend::Piece;
use crate::request::Now;
use crate::shard::Catalog;
use crate::shard::catalog::CatalogLimits;

pub(super) const LIMIT_BYTES: usize = 1 << 20;

pub(super) fn config() -> KafkaConfig {
    KafkaConfig {
        cluster_id: 7,
        max_request_bytes: LIMIT_BYTES,
        nodes: vec![Node { host: Some("one".into()), port: 9092 }, Node { host: None, port: 19093 }],
        epochs: vec![3, 4],
        node: 0,
        data_dir: "/data".into(),
        creates_topics: true,
        default_partitions: 2,
    }
}

/// A session, what it may look at, and what it said.
pub(super) struct Peer {
    pub session: KafkaSession,
    pub catalog: Catalog,
    pub out: Outbox,
    pub now: Now,
}

impl Peer {
    pub fn new() -> Peer {
        Peer::with(config())
    }

    pub fn with(config: KafkaConfig) -> Peer {
        let session = KafkaSession::new(Rc::new(config), Ends { local: IpAddr::from([10, 0, 0, 1]), peer: IpAddr::from([10, 0, 0, 2]) });
        Peer { session, catalog: Catalog::default(), out: Outbox::default(), now: Now::default() }
    }

    pub fn create(&mut self, name: &str, partition_count: u32, config: TopicConfig) {
        let limits = CatalogLimits { partitions_max: 1000, shard_count: 2 };
        let create = CreateTopic { name: name.into(), partition_count, config };
        let change = self.catalog.decide_create(&create, limits).unwrap();
        self.catalog.apply(&change);
    }

    pub fn receive<'a>(&mut self, input: &'a [u8]) -> Result<Received<'a>, ProtocolError> {
        self.session.receive(input, &View { now: self.now, catalog: &self.catalog, memory_bytes: usize::MAX }, &mut self.out)
    }

    pub fn reply(&mut self, id: u64, reply: Reply) {
        self.session.reply(id, reply, false, &View { now: self.now, catalog: &self.catalog, memory_bytes: usize::MAX }, &mut self.out);
    }

    /// A request that is answered without asking anybody.
    pub fn call<R: Decodable>(&mut self, key: ApiKey, version: i16, request: &impl Encodable) -> R {
        let bytes = request_bytes(key, version, 77, request);
        assert!(
            matches!(self.receive(&bytes), Ok(Received::Handled { consumed_bytes }) if consumed_bytes == bytes.len()),
            "{key:?} {version}"
        );
        self.response(key, version, 77)
    }

    /// The response that has come, which is the only one.
    pub fn response<R: Decodable>(&mut self, key: ApiKey, version: i16, correlation: i32) -> R {
        let mut sent: Vec<Bytes> = self.sent();
        assert_eq!(sent.len(), 1, "{key:?} version {version}: one answer expected");
        decode_response(&mut sent[0], key, version, correlation)
    }

    /// Everything that was said, cut into responses without their lengths.
    pub fn sent(&mut self) -> Vec<Bytes> {
        let mut bytes = Vec::new();
        for piece in std::mem::take(&mut self.out).pieces {
            match piece {
                Piece::Bytes(piece) => bytes.extend_from_slice(&piece),
                Piece::Ranges { bytes: piece, ranges } => ranges.into_iter().for_each(|range| bytes.extend_from_slice(&piece[range])),
                Piece::Frames { .. } => panic!("frames"),
            }
        }
        let (mut bytes, mut responses) = (Bytes::from(bytes), Vec::new());
        while !bytes.is_empty() {
            let length = bytes.split_to(4);
            responses.push(bytes.split_to(u32::from_be_bytes(length[..].try_into().unwrap()) as usize));
        }
        responses
    }
}

pub(super) fn decode_response<R: Decodable>(bytes: &mut Bytes, key: ApiKey, version: i16, correlation: i32) -> R {
    let header = kafka_protocol::messages::ResponseHeader::decode(bytes, key.response_header_version(version)).unwrap();
    assert_eq!(header.correlation_id, correlation);
    let response = R::decode(bytes, version).unwrap_or_else(|error| panic!("{key:?} version {version}: {error}"));
    assert!(bytes.is_empty(), "{key:?} version {version}: {} bytes too many", bytes.len());
    response
}

pub(super) fn request_bytes(key: ApiKey, version: i16, correlation: i32, request: &impl Encodable) -> Vec<u8> {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str("test")));
    let mut bytes = vec![0; 4];
    header.encode(&mut bytes, key.request_header_version(version)).unwrap();
    request.encode(&mut bytes, version).unwrap_or_else(|error| panic!("{key:?} version {version}: {error}"));
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn metadata_of(names: &[&'static str]) -> MetadataRequest {
    let topic = |name: &&'static str| MetadataRequestTopic::default().with_name(Some(TopicName(StrBytes::from_static_str(name))));
    MetadataRequest::default().with_topics(Some(names.iter().map(topic).collect()))
}

#[test]
fn api_versions_lists_what_is_served_in_every_version() {
    for version in 0..=4 {
        let response: ApiVersionsResponse = Peer::new().call(ApiKey::ApiVersions, version, &ApiVersionsRequest::default());
        assert_eq!((response.error_code, response.api_keys.len()), (0, api::SERVED.len()));
        let produce = response.api_keys.iter().find(|api| api.api_key == ApiKey::Produce as i16).unwrap();
        assert_eq!((produce.min_version, produce.max_version), (0, 11));
    }
}

#[test]
fn api_versions_of_an_unknown_version_is_answered_in_version_0() {
    let mut peer = Peer::new();
    let bytes = request_bytes(ApiKey::ApiVersions, 4, 5, &ApiVersionsRequest::default());
    let mut newer = bytes.clone();
    newer[7] = 99;
    assert!(matches!(peer.receive(&newer), Ok(Received::Handled { .. })));
    let response: ApiVersionsResponse = peer.response(ApiKey::ApiVersions, 0, 5);
    assert_eq!((response.error_code, response.api_keys.len()), (35, api::SERVED.len()));
}

#[test]
fn every_served_version_can_be_decoded() {
    for served in api::SERVED {
        let known = decode::api(served.key as i16).unwrap_or_else(|| panic!("{:?}", served.key));
        assert!(known.oldest <= served.from && served.to <= known.newest, "{:?}", served.key);
        assert!(served.advertised_from <= served.from, "{:?}", served.key);
    }
}

#[test]
fn impossible_lengths_and_apis_close_the_connection() {
    let start = |length: i32, key: i16| [&length.to_be_bytes()[..], &key.to_be_bytes()].concat();
    for bytes in
        [start(-1, 3), start(0, 3), start(7, 3), start(i32::MAX, 3), start(i32::MIN, 3), start(LIMIT_BYTES as i32 + 1, 3), start(100, 999)]
    {
        assert!(Peer::new().receive(&bytes).is_err(), "{bytes:?}");
    }
    let mut peer = Peer::new();
    assert!(matches!(peer.receive(&start(LIMIT_BYTES as i32, 3)), Ok(Received::More { needed_bytes }) if needed_bytes == LIMIT_BYTES + 4));
    assert!(peer.session.is_established());
    // A version that isn't served, and a body that ends too early.
    let mut newer = request_bytes(ApiKey::Metadata, 12, 1, &MetadataRequest::default());
    newer[7] = 13;
    assert!(Peer::new().receive(&newer).is_err());
    let mut short = request_bytes(ApiKey::Metadata, 1, 1, &metadata_of(&["a"]));
    short.truncate(short.len() - 1);
    let length = (short.len() - 4) as u32;
    short[..4].copy_from_slice(&length.to_be_bytes());
    assert!(Peer::new().receive(&short).is_err());
}

#[test]
fn metadata_names_nodes_and_leaders_in_every_version() {
    for version in 0..=12 {
        let mut peer = Peer::new();
        peer.create("t", 2, TopicConfig::default());
        let response: MetadataResponse = peer.call(ApiKey::Metadata, version, &metadata_of(&["t"]));
        let nodes: Vec<_> = response.brokers.iter().map(|broker| (broker.node_id.0, broker.host.as_str(), broker.port)).collect();
        assert_eq!(nodes, [(0, "one", 9092), (1, "10.0.0.1", 19093)]);
        assert_eq!(response.topics.len(), 1);
        let topic = &response.topics[0];
        assert_eq!((topic.error_code, topic.name.as_ref().unwrap().as_str()), (0, "t"));
        let partitions: Vec<_> = topic.partitions.iter().map(|p| (p.partition_index, p.leader_id.0, p.leader_epoch)).collect();
        let epochs = if version >= 7 { [3, 4] } else { [-1, -1] };
        assert_eq!(partitions, [(0, 0, epochs[0]), (1, 1, epochs[1])]);
    }
}

#[test]
fn metadata_by_id_finds_the_topic_that_has_it() {
    let mut peer = Peer::new();
    peer.create("t", 1, TopicConfig::default());
    let response: MetadataResponse = peer.call(ApiKey::Metadata, 12, &metadata_of(&["t"]));
    let id = response.topics[0].topic_id;
    let by_id = |id| MetadataRequest::default().with_topics(Some(vec![MetadataRequestTopic::default().with_name(None).with_topic_id(id)]));
    let response: MetadataResponse = peer.call(ApiKey::Metadata, 12, &by_id(id));
    assert_eq!(response.topics[0].name.as_ref().unwrap().as_str(), "t");
    let response: MetadataResponse = peer.call(ApiKey::Metadata, 12, &by_id(uuid::Uuid::from_u64_pair(1, 1)));
    assert_eq!(response.topics[0].error_code, 100);
}

#[test]
fn metadata_of_a_missing_topic_creates_it_and_waits_for_that() {
    let mut peer = Peer::new();
    let bytes = request_bytes(ApiKey::Metadata, 9, 1, &metadata_of(&["new", "bad name"]));
    peer.receive(&bytes).unwrap();
    assert!(peer.session.in_flight() >= peer.session.max_in_flight(), "nothing is read behind it");
    let (id, request) = peer.session.poll_request().unwrap();
    let OwnedRequest::CreateTopic(create) = request else { panic!("{request:?}") };
    assert_eq!((create.name.as_str(), create.partition_count), ("new", 2));
    let (bad, _) = peer.session.poll_request().unwrap();
    assert!(peer.out.is_empty());
    peer.create("new", 2, TopicConfig::default());
    peer.reply(id, Reply::Deleted);
    peer.reply(bad, Reply::Failed(ringmain_wire::ErrorCode::InvalidTopic.into()));
    let response: MetadataResponse = peer.response(ApiKey::Metadata, 9, 1);
    let topics: Vec<_> = response.topics.iter().map(|topic| (topic.error_code, topic.partitions.len())).collect();
    assert_eq!(topics, [(0, 2), (17, 0)]);
    assert_eq!(peer.session.in_flight(), 0);
}

#[test]
fn metadata_without_creation_reports_what_is_missing() {
    let mut peer = Peer::new();
    let request = metadata_of(&["new", "bad name"]).with_allow_auto_topic_creation(false);
    let response: MetadataResponse = peer.call(ApiKey::Metadata, 9, &request);
    assert_eq!(response.topics.iter().map(|topic| topic.error_code).collect::<Vec<_>>(), [3, 17]);
    let mut peer = Peer::with(KafkaConfig { creates_topics: false, ..config() });
    let response: MetadataResponse = peer.call(ApiKey::Metadata, 9, &metadata_of(&["new"]));
    assert_eq!(response.topics[0].error_code, 3);
}
