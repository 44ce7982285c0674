//! Topics, settings, and what a cluster is.

use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest,
    CreateTopicsResponse, DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterRequest,
    DescribeClusterResponse, DescribeConfigsRequest, DescribeConfigsResponse, DescribeLogDirsRequest, DescribeLogDirsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse,
};
use ringmain_wire::control::{Cleanup, PartitionState, TopicDescription, TopicNote};
use ringmain_wire::{ErrorCode, Offset};

use super::*;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.into())
}

fn creatable(name: &str, partitions: i32, replicas: i16, configs: &[(&str, &str)]) -> CreatableTopic {
    let config = |(name, value): &(&str, &str)| CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)));
    CreatableTopic::default()
        .with_name(TopicName(text(name)))
        .with_num_partitions(partitions)
        .with_replication_factor(replicas)
        .with_configs(configs.iter().map(config).collect())
}

fn asks(peer: &mut Peer) -> Vec<(u64, OwnedRequest)> {
    std::iter::from_fn(|| peer.session.poll_request()).collect()
}

/// Carries out what was asked of the catalog.
fn carry_out(peer: &mut Peer) -> usize {
    let limits = CatalogLimits { partitions_max: 1000, shard_count: 2 };
    let asked = asks(peer);
    let count = asked.len();
    for (id, request) in asked {
        let decided = match &request {
            OwnedRequest::CreateTopic(create) => peer.catalog.decide_create(create, limits),
            OwnedRequest::AlterTopic(alter) => peer.catalog.decide_alter(alter, limits),
            OwnedRequest::DeleteTopic { name } => peer.catalog.decide_delete(name),
            other => panic!("{other:?}"),
        };
        let reply = match decided {
            Ok(change) => {
                peer.catalog.apply(&change);
                change
                    .topic()
                    .and_then(|topic| peer.catalog.topic_by_id(topic))
                    .map_or(Reply::Deleted, |topic| Reply::Topic(Box::new(topic.info())))
            }
            Err(failure) => Reply::Failed(failure),
        };
        peer.reply(id, reply);
    }
    count
}

/// A request whose changes are carried out; how many there were, and the response.
fn change<R: Decodable>(peer: &mut Peer, key: ApiKey, version: i16, request: &impl Encodable) -> (usize, R) {
    let bytes = request_bytes(key, version, 9, request);
    peer.receive(&bytes).unwrap();
    let count = carry_out(peer);
    (count, peer.response(key, version, 9))
}

#[test]
fn create_topics_makes_what_can_be_made_and_says_why_the_rest_cannot() {
    for version in 2..=7 {
        let mut peer = Peer::new();
        peer.create("there", 1, TopicConfig::default());
        let topics = vec![
            creatable("a", 3, 1, &[("retention.ms", "5"), ("cleanup.policy", "compact"), ("segment.bytes", "7")]),
            creatable("b", -1, -1, &[]),
            creatable("there", 1, 1, &[]),
            creatable("bad name", 1, 1, &[]),
            creatable("c", 0, 1, &[]),
            creatable("d", 1, 3, &[]),
            creatable("e", 1, 1, &[("no.such", "1")]),
            creatable("f", 1, 1, &[("retention.ms", "soon")]),
            creatable("twice", 1, 1, &[]),
            creatable("twice", 1, 1, &[]),
        ];
        let (count, response) =
            change::<CreateTopicsResponse>(&mut peer, ApiKey::CreateTopics, version, &CreateTopicsRequest::default().with_topics(topics));
        assert_eq!(count, 2);
        let codes: Vec<_> = response.topics.iter().map(|topic| (topic.name.as_str().to_owned(), topic.error_code)).collect();
        let expected = [("a", 0), ("b", 0), ("there", 36), ("bad name", 17), ("c", 37), ("d", 38), ("e", 40), ("f", 40), ("twice", 42)];
        assert_eq!(codes, expected.map(|(name, code)| (name.to_owned(), code)));
        assert_eq!(peer.catalog.topic("b").unwrap().partitions.len(), 2);
        let config = &peer.catalog.topic("a").unwrap().config;
        assert_eq!((config.retention_ms, config.cleanup), (Some(5), Cleanup::Compact));
        assert_eq!(config.notes, [TopicNote { name: "segment.bytes".into(), value: "7".into() }]);
        if version >= 5 {
            assert!(response.topics.iter().all(|topic| topic.configs.is_some()), "Java can't read null");
            assert_eq!((response.topics[0].num_partitions, response.topics[0].replication_factor), (3, 1));
        }
    }
}

#[test]
fn create_topics_that_only_validates_makes_nothing() {
    let mut peer = Peer::new();
    let request = CreateTopicsRequest::default().with_validate_only(true).with_topics(vec![creatable("a", 3, 1, &[])]);
    let response: CreateTopicsResponse = peer.call(ApiKey::CreateTopics, 7, &request);
    assert_eq!(response.topics[0].error_code, 0);
    assert!(peer.catalog.topic("a").is_none());
}

#[test]
fn delete_topics_and_create_partitions_change_the_catalog() {
    let mut peer = Peer::new();
    peer.create("a", 1, TopicConfig::default());
    for version in 0..=3 {
        let to =
            |name: &str, count| CreatePartitionsTopic::default().with_name(TopicName(text(name))).with_count(count).with_assignments(None);
        let request = CreatePartitionsRequest::default().with_topics(vec![to("a", 2 + i32::from(version)), to("a", 1), to("no", 5)]);
        let (_, response) = change::<CreatePartitionsResponse>(&mut peer, ApiKey::CreatePartitions, version, &request);
        assert_eq!(response.results.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 37, 3]);
    }
    assert_eq!(peer.catalog.topic("a").unwrap().partitions.len(), 5);
    for version in 1..=5 {
        peer.create("b", 1, TopicConfig::default());
        let names = ["b", "no"].map(|name| TopicName(text(name))).to_vec();
        let (_, response) = change::<DeleteTopicsResponse>(
            &mut peer,
            ApiKey::DeleteTopics,
            version,
            &DeleteTopicsRequest::default().with_topic_names(names),
        );
        assert_eq!(response.responses.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 3]);
        assert!(peer.catalog.topic("b").is_none());
    }
}

fn described(peer: &mut Peer, version: i16, name: &str) -> Vec<(String, String, i8)> {
    let resource = DescribeConfigsResource::default().with_resource_type(2).with_resource_name(text(name)).with_configuration_keys(None);
    let response: DescribeConfigsResponse = peer.call(
        ApiKey::DescribeConfigs,
        version,
        &DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true),
    );
    let settings = response.results[0].configs.iter();
    settings.map(|c| (c.name.as_str().to_owned(), c.value.as_ref().unwrap().as_str().to_owned(), c.config_source)).collect()
}

fn of(settings: &[(String, String, i8)], name: &str) -> (String, i8) {
    settings.iter().find(|(of, ..)| of == name).map(|(_, value, source)| (value.clone(), *source)).unwrap()
}

#[test]
fn settings_are_described_with_their_defaults_and_changed_both_ways() {
    for version in 1..=4 {
        let mut peer = Peer::new();
        peer.create("t", 1, TopicConfig { retention_ms: Some(9), ..TopicConfig::default() });
        let settings = described(&mut peer, version, "t");
        assert_eq!(settings.len(), super::super::topic_config::SETTINGS.len());
        assert_eq!(of(&settings, "retention.ms"), ("9".into(), 1));
        assert_eq!(of(&settings, "cleanup.policy"), ("delete".into(), 5));
        // One by one: set, append to a list, delete.
        let config = |name: &str, operation: i8, value: Option<&str>| {
            incremental_alter_configs_request::AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(operation)
                .with_value(value.map(text))
        };
        let configs = vec![
            config("cleanup.policy", 2, Some("compact")),
            config("retention.ms", 1, None),
            config("message.timestamp.type", 0, Some("LogAppendTime")),
            config("ringmain.durability", 0, Some("written")),
            config("min.insync.replicas", 0, Some("2")),
        ];
        let resource = |configs| {
            incremental_alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configs(configs)
        };
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource(configs)]);
        let (_, response) = change::<IncrementalAlterConfigsResponse>(&mut peer, ApiKey::IncrementalAlterConfigs, version.min(1), &request);
        assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
        let settings = described(&mut peer, version, "t");
        assert_eq!(of(&settings, "cleanup.policy"), ("compact,delete".into(), 1));
        assert_eq!(of(&settings, "retention.ms"), ("-1".into(), 5));
        assert_eq!(of(&settings, "message.timestamp.type"), ("LogAppendTime".into(), 1));
        assert_eq!(of(&settings, "ringmain.durability"), ("written".into(), 1));
        assert_eq!(of(&settings, "min.insync.replicas"), ("2".into(), 1));
        // All at once: what isn't named goes back.
        let config = AlterableConfig::default().with_name(text("max.message.bytes")).with_value(Some(text("2000000")));
        let resource = AlterConfigsResource::default().with_resource_type(2).with_resource_name(text("t")).with_configs(vec![config]);
        let request = AlterConfigsRequest::default().with_resources(vec![resource]);
        let (_, response) = change::<AlterConfigsResponse>(&mut peer, ApiKey::AlterConfigs, version.min(2), &request);
        assert_eq!(response.responses[0].error_code, 0);
        let settings = described(&mut peer, version, "t");
        let changed: Vec<_> = settings.iter().filter(|(.., source)| *source == 1).map(|(name, ..)| name.as_str()).collect();
        assert_eq!(changed, ["max.message.bytes"]);
    }
}

#[test]
fn settings_that_cannot_be_are_refused_and_change_nothing() {
    let mut peer = Peer::new();
    peer.create("t", 1, TopicConfig::default());
    for (kind, name, setting, value, code) in [
        (2, "t", "retention.ms", "-2", 40),
        (2, "t", "no.such", "1", 40),
        (2, "t", "remote.storage.enable", "true", 40),
        (2, "t", "max.message.bytes", "99999999999", 40),
        (2, "t", "message.timestamp.type", "Never", 40),
        (2, "t", "cleanup.policy", "", 40),
        (2, "gone", "retention.ms", "1", 3),
        (4, "0", "num.partitions", "1", 42),
    ] {
        let config = AlterableConfig::default().with_name(text(setting)).with_value(Some(text(value)));
        let resource = AlterConfigsResource::default().with_resource_type(kind).with_resource_name(text(name)).with_configs(vec![config]);
        let (count, response) = change::<AlterConfigsResponse>(
            &mut peer,
            ApiKey::AlterConfigs,
            2,
            &AlterConfigsRequest::default().with_resources(vec![resource]),
        );
        assert_eq!((count, response.responses[0].error_code), (0, code), "{setting}={value}");
    }
    let broker =
        |name: &str| DescribeConfigsResource::default().with_resource_type(4).with_resource_name(text(name)).with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![broker("1"), broker("7")]);
    let response: DescribeConfigsResponse = peer.call(ApiKey::DescribeConfigs, 4, &request);
    assert!(response.results[0].configs.iter().any(|config| config.name.as_str() == "num.partitions" && config.read_only));
    assert_eq!(response.results[1].error_code, 42);
}

#[test]
fn delete_records_asks_for_each_partition() {
    for version in 0..=2 {
        let mut peer = Peer::new();
        peer.create("t", 2, TopicConfig::default());
        let part = |index, offset| DeleteRecordsPartition::default().with_partition_index(index).with_offset(offset);
        let topic = DeleteRecordsTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![
            part(0, 5),
            part(1, -1),
            part(7, 1),
            part(0, -2),
        ]);
        peer.receive(&request_bytes(ApiKey::DeleteRecords, version, 3, &DeleteRecordsRequest::default().with_topics(vec![topic]))).unwrap();
        let asked = asks(&mut peer);
        assert!(matches!(asked[0].1, OwnedRequest::DeleteBefore { before: Some(Offset(5)), .. }));
        assert!(matches!(asked[1].1, OwnedRequest::DeleteBefore { before: None, .. }));
        peer.reply(asked[0].0, Reply::LogStart { offset: Offset(5) });
        peer.reply(asked[1].0, Reply::Failed(ErrorCode::OffsetOutOfRange.into()));
        let response: DeleteRecordsResponse = peer.response(ApiKey::DeleteRecords, version, 3);
        let parts: Vec<_> = response.topics[0].partitions.iter().map(|part| (part.error_code, part.low_watermark)).collect();
        assert_eq!(parts, [(0, 5), (1, -1), (3, -1), (1, -1)]);
    }
}

#[test]
fn cluster_and_directories_are_described() {
    for version in 0..=2 {
        let request = DescribeClusterRequest::default();
        let response: DescribeClusterResponse = Peer::new().call(ApiKey::DescribeCluster, version, &request);
        assert_eq!((response.error_code, response.brokers.len(), response.controller_id.0), (0, 2, 0));
    }
    let response: DescribeClusterResponse =
        Peer::new().call(ApiKey::DescribeCluster, 1, &DescribeClusterRequest::default().with_endpoint_type(2));
    assert_eq!(response.error_code, 114);
    for version in 1..=4 {
        let mut peer = Peer::new();
        peer.create("t", 2, TopicConfig::default());
        peer.receive(&request_bytes(ApiKey::DescribeLogDirs, version, 3, &DescribeLogDirsRequest::default().with_topics(None))).unwrap();
        let asked = asks(&mut peer);
        let info = peer.catalog.topic("t").unwrap().info();
        let state = |partition| PartitionState { partition, log_start: 0, high_watermark: 4, size_bytes: 100 * u64::from(partition) };
        let description = TopicDescription { info, partitions: vec![state(1), state(2)] };
        peer.reply(asked[0].0, Reply::Description(Box::new(description)));
        let response: DescribeLogDirsResponse = peer.response(ApiKey::DescribeLogDirs, version, 3);
        let directory = &response.results[0];
        // The other partition is another node's.
        let parts: Vec<_> = directory.topics[0].partitions.iter().map(|part| (part.partition_index, part.partition_size)).collect();
        assert_eq!((directory.log_dir.as_str(), parts), ("/data", vec![(0, 100)]));
    }
}

#[test]
fn authentication_is_refused_with_a_reason() {
    for version in 0..=1 {
        let request = SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
        let response: SaslHandshakeResponse = Peer::new().call(ApiKey::SaslHandshake, version, &request);
        assert_eq!(response.error_code, 33);
    }
    for version in 0..=2 {
        let response: SaslAuthenticateResponse = Peer::new().call(ApiKey::SaslAuthenticate, version, &SaslAuthenticateRequest::default());
        assert_eq!(response.error_code, 34);
        assert!(response.error_message.unwrap().contains("PLAINTEXT"));
    }
}
