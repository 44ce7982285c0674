//! Every request in every version, filled at random, encoded by another implementation, and decoded here.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages as theirs;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::super::*;

/// Values per API and version; enough to have met every field both empty and filled.
const ROUNDS: u32 = 60;

#[test]
fn every_request_decodes_to_what_was_encoded() {
    let mut random = Random(1);
    let mut compared = Vec::new();
    for request in REQUESTS {
        for version in request.versions() {
            for _ in 0..ROUNDS {
                (request.compare)(&mut random, version);
            }
        }
        compared.push(request.key);
    }
    compared.sort_unstable();
    let mut known: Vec<i16> = APIS.iter().map(|api| api.key).collect();
    known.sort_unstable();
    assert_eq!(compared, known, "every API is compared");
}

#[test]
fn every_cut_is_an_error_and_no_change_of_bytes_is_fatal() {
    let mut random = Random(2);
    for request in REQUESTS {
        for version in request.versions() {
            for _ in 0..4 {
                let bytes = (request.encode)(&mut random, version);
                for len in 0..bytes.len() {
                    let cut = AnyRequest::from_body(request.key, version, &bytes[..len]);
                    assert!(cut.is_err(), "API {} version {version}, {len} of {} bytes: {cut:?}", request.key, bytes.len());
                }
                for _ in 0..200 {
                    drop(AnyRequest::from_body(request.key, version, &random.spoil(&bytes)));
                }
            }
        }
    }
}

#[test]
fn walk_over_produce_sees_what_the_list_has() {
    let mut random = Random(3);
    let produce = REQUESTS.iter().find(|request| request.key == ProduceRequest::API_KEY).unwrap();
    for version in produce.versions() {
        for round in 0..400 {
            let mut bytes = (produce.encode)(&mut random, version);
            if round % 2 == 1 {
                bytes = random.spoil(&bytes);
            }
            let walked = ProduceWalk::begin(&bytes, version).and_then(|(head, mut walk)| {
                let mut steps = Vec::new();
                while let Some(step) = walk.next(&bytes)? {
                    steps.push((step.topic, step.index, step.records));
                }
                Ok(((head.transactional_id, head.acks, head.timeout_ms), steps))
            });
            match ProduceRequest::from_body(&bytes, version) {
                Ok(request) => {
                    let partitions = |topic: &ProduceTopic<'_>| topic.partitions.len();
                    assert_eq!(
                        ProduceWalk::begin(&bytes, version).unwrap().1.check(&bytes),
                        Ok(request.topics.iter().map(partitions).sum())
                    );
                    let steps = request.topics.iter().flat_map(|t| t.partitions.iter().map(|p| (t.name, p.index, p.records))).collect();
                    assert_eq!(walked, Ok(((request.transactional_id, request.acks, request.timeout_ms), steps)));
                }
                Err(error) => assert_eq!(walked, Err(error)),
            }
        }
    }
}

/// Rewrites the beginnings of the corpus for the fuzz target: `RINGMAIN_WRITE_CORPUS=fuzz/corpus/kafka_request`.
#[test]
fn corpus_is_written_on_request() {
    let Some(directory) = std::env::var_os("RINGMAIN_WRITE_CORPUS") else { return };
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut random = Random(4);
    for request in REQUESTS {
        for version in request.versions() {
            let mut message = [request.key.to_be_bytes(), version.to_be_bytes()].concat();
            message.extend([0, 0, 0, 7, 0, 1, b'c']);
            if version >= api(request.key).unwrap().flexible_since {
                message.push(0);
            }
            message.extend((request.encode)(&mut random, version));
            std::fs::write(directory.join(format!("{:02}-v{version:02}", request.key)), message).unwrap();
        }
    }
}

/// One API: how to make a random request of it, and how to compare both decoders.
struct Compared {
    key: i16,
    encode: fn(&mut Random, i16) -> Vec<u8>,
    compare: fn(&mut Random, i16),
}

impl Compared {
    fn versions(&self) -> std::ops::RangeInclusive<i16> {
        let api = api(self.key).unwrap();
        api.oldest..=api.newest
    }
}

fn encode<T: Sample + Encodable>(random: &mut Random, version: i16) -> Vec<u8> {
    let mut bytes = Vec::new();
    T::sample(random, version).encode(&mut bytes, version).unwrap();
    bytes
}

fn compare<T>(random: &mut Random, key: i16, version: i16, same: fn(&AnyRequest<'_>, &T) -> bool)
where
    T: Sample + Encodable + Decodable + std::fmt::Debug,
{
    let bytes = encode::<T>(random, version);
    // Fields that this version doesn't have are back at their defaults.
    let expected = T::decode(&mut Bytes::copy_from_slice(&bytes), version).unwrap();
    match AnyRequest::from_body(key, version, &bytes) {
        Ok(decoded) => assert!(same(&decoded, &expected), "version {version}\nours: {decoded:?}\ntheirs: {expected:?}\n{bytes:02x?}"),
        // The other encoder writes null also where a version has none.
        Err(DecodeError::Null)
            if (key == MetadataRequest::API_KEY && version < 10) || (key == OffsetFetchRequest::API_KEY && version < 2) => {}
        Err(error) => panic!("API {key} version {version}: {error}, not {expected:?}\n{bytes:02x?}"),
    }
}

/// A random value of a field, or of a struct as far as `version` has its fields.
trait Sample {
    fn sample(random: &mut Random, version: i16) -> Self;
}

/// Our type and theirs.
trait Same<T> {
    fn same(&self, theirs: &T) -> bool;
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Sample for $integer {
            fn sample(random: &mut Random, _: i16) -> Self {
                let value = random.number() as $integer;
                // Extremes are where widths and signs show.
                [0, -1, <$integer>::MIN, <$integer>::MAX, value][random.below(12).min(4)]
            }
        }

        impl Same<$integer> for $integer {
            fn same(&self, theirs: &$integer) -> bool {
                self == theirs
            }
        }
    )*};
}

integers!(i8 i16 i32 i64);

impl Sample for bool {
    fn sample(random: &mut Random, _: i16) -> Self {
        random.below(2) == 1
    }
}

impl Same<bool> for bool {
    fn same(&self, theirs: &bool) -> bool {
        self == theirs
    }
}

impl Sample for StrBytes {
    fn sample(random: &mut Random, _: i16) -> Self {
        let lengths = [0, 1, 5, 126, 127, 128, 300];
        let characters = ['a', 'Z', '-', '.', 'ü', '→', '🦀'];
        let len = lengths[random.below(lengths.len())];
        StrBytes::from_string((0..len).map(|_| characters[random.below(characters.len())]).collect())
    }
}

impl Same<StrBytes> for &str {
    fn same(&self, theirs: &StrBytes) -> bool {
        *self == theirs.as_str()
    }
}

impl Sample for Bytes {
    fn sample(random: &mut Random, _: i16) -> Self {
        let lengths = [0, 1, 61, 127, 128, 16_383, 16_384];
        let len = lengths[random.below(lengths.len())];
        (0..len).map(|_| random.number() as u8).collect()
    }
}

impl Same<Bytes> for &[u8] {
    fn same(&self, theirs: &Bytes) -> bool {
        *self == &theirs[..]
    }
}

impl Sample for uuid::Uuid {
    fn sample(random: &mut Random, _: i16) -> Self {
        uuid::Uuid::from_u64_pair(random.number(), random.number())
    }
}

impl Same<uuid::Uuid> for Uuid {
    fn same(&self, theirs: &uuid::Uuid) -> bool {
        self == theirs.as_bytes()
    }
}

/// Names and numbers that they wrap.
macro_rules! wrappers {
    ($($wrapper:ident($inner:ty) as $ours:ty),*) => {$(
        impl Sample for theirs::$wrapper {
            fn sample(random: &mut Random, version: i16) -> Self {
                theirs::$wrapper(<$inner>::sample(random, version))
            }
        }

        impl Same<theirs::$wrapper> for $ours {
            fn same(&self, theirs: &theirs::$wrapper) -> bool {
                self.same(&theirs.0)
            }
        }
    )*};
}

wrappers! {
    TopicName(StrBytes) as &str, GroupId(StrBytes) as &str, TransactionalId(StrBytes) as &str,
    BrokerId(i32) as i32, ProducerId(i64) as i64
}

impl<T: Sample> Sample for Option<T> {
    fn sample(random: &mut Random, version: i16) -> Self {
        (random.below(4) > 0).then(|| T::sample(random, version))
    }
}

impl<T, Theirs> Same<Option<Theirs>> for Option<T>
where
    T: Same<Theirs>,
{
    fn same(&self, theirs: &Option<Theirs>) -> bool {
        match (self, theirs) {
            (Some(ours), Some(theirs)) => ours.same(theirs),
            (None, None) => true,
            _ => false,
        }
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(random: &mut Random, version: i16) -> Self {
        let len = [0, 130, 2, 3, 1][random.below(24).min(4)];
        // Long lists only of short things.
        let len = if size_of::<T>() > 40 { len.min(3) } else { len };
        (0..len).map(|_| T::sample(random, version)).collect()
    }
}

impl<T, Theirs> Same<Vec<Theirs>> for Vec<T>
where
    T: Same<Theirs>,
{
    fn same(&self, theirs: &Vec<Theirs>) -> bool {
        self.len() == theirs.len() && self.iter().zip(theirs).all(|(ours, theirs)| ours.same(theirs))
    }
}

/// Structs by module and name of the other implementation, with our name for those fields that it calls otherwise.
macro_rules! structs {
    ($($module:ident::$name:ident as $ours:ty { $($field:ident $(= $other:ident)?),* $(; $untagged:ident)? })*) => {$(
        impl Sample for theirs::$module::$name {
            fn sample(random: &mut Random, version: i16) -> Self {
                let mut value = Self::default();
                $(structs!(@sample value, random, version, $field $($other)?);)*
                structs!(@tags value, random, version $(, $untagged)?);
                value
            }
        }

        impl Same<theirs::$module::$name> for $ours {
            fn same(&self, other: &theirs::$module::$name) -> bool {
                $(structs!(@same self, other, $field $($other)?))&&*
            }
        }
    )*};
    (@sample $value:ident, $random:ident, $version:ident, $field:ident) => {
        let kept = std::mem::replace(&mut $value.$field, Sample::sample($random, $version));
        // The other encoder refuses a field that the version doesn't have.
        if $value.encode(&mut BytesMut::new(), $version).is_err() {
            $value.$field = kept;
        }
    };
    (@sample $value:ident, $random:ident, $version:ident, $field:ident $other:ident) => {
        structs!(@sample $value, $random, $version, $other)
    };
    (@tags $value:ident, $random:ident, $version:ident) => {
        if $random.below(4) == 0 {
            $value.unknown_tagged_fields.insert($random.below(1 << 20) as i32 + 100, Bytes::sample($random, $version));
        }
    };
    (@tags $value:ident, $random:ident, $version:ident, $untagged:ident) => {};
    (@same $self:ident, $other:ident, $field:ident) => { $self.$field.same(&$other.$field) };
    (@same $self:ident, $other:ident, $field:ident $name:ident) => { $self.$field.same(&$other.$name) };
}

structs! {
    produce_request::ProduceRequest as ProduceRequest<'_> { transactional_id, acks, timeout_ms, topics = topic_data }
    produce_request::TopicProduceData as ProduceTopic<'_> { name, partitions = partition_data }
    produce_request::PartitionProduceData as ProducePartition<'_> { index, records }
    fetch_request::FetchRequest as FetchRequest<'_> {
        replica_id, max_wait_ms, min_bytes, max_bytes, isolation_level, session_id, session_epoch, topics,
        forgotten_topics = forgotten_topics_data, rack_id
    }
    fetch_request::FetchTopic as FetchTopic<'_> { name = topic, partitions }
    fetch_request::FetchPartition as FetchPartition {
        index = partition, current_leader_epoch, fetch_offset, last_fetched_epoch, log_start_offset, partition_max_bytes
    }
    fetch_request::ForgottenTopic as ForgottenTopic<'_> { name = topic, partitions }
    list_offsets_request::ListOffsetsRequest as ListOffsetsRequest<'_> { replica_id, isolation_level, topics }
    list_offsets_request::ListOffsetsTopic as ListOffsetsTopic<'_> { name, partitions }
    list_offsets_request::ListOffsetsPartition as ListOffsetsPartition { index = partition_index, current_leader_epoch, timestamp }
    metadata_request::MetadataRequest as MetadataRequest<'_> {
        topics, allow_auto_topic_creation, include_cluster_authorized_operations, include_topic_authorized_operations
    }
    metadata_request::MetadataRequestTopic as MetadataTopic<'_> { topic_id, name }
    offset_commit_request::OffsetCommitRequest as OffsetCommitRequest<'_> {
        group_id, generation_id_or_member_epoch, member_id, group_instance_id, retention_time_ms, topics
    }
    offset_commit_request::OffsetCommitRequestTopic as OffsetCommitTopic<'_> { name, partitions }
    offset_commit_request::OffsetCommitRequestPartition as OffsetCommitPartition<'_> {
        index = partition_index, committed_offset, committed_leader_epoch, committed_metadata
    }
    offset_fetch_request::OffsetFetchRequest as OffsetFetchRequest<'_> { group_id, topics, groups, require_stable }
    offset_fetch_request::OffsetFetchRequestGroup as OffsetFetchGroup<'_> { group_id, member_id, member_epoch, topics }
    offset_fetch_request::OffsetFetchRequestTopic as OffsetFetchTopic<'_> { name, partition_indexes }
    offset_fetch_request::OffsetFetchRequestTopics as OffsetFetchTopic<'_> { name, partition_indexes }
    find_coordinator_request::FindCoordinatorRequest as FindCoordinatorRequest<'_> { key, key_type, coordinator_keys }
    join_group_request::JoinGroupRequest as JoinGroupRequest<'_> {
        group_id, session_timeout_ms, rebalance_timeout_ms, member_id, group_instance_id, protocol_type, protocols, reason
    }
    join_group_request::JoinGroupRequestProtocol as JoinGroupProtocol<'_> { name, metadata }
    heartbeat_request::HeartbeatRequest as HeartbeatRequest<'_> { group_id, generation_id, member_id, group_instance_id }
    leave_group_request::LeaveGroupRequest as LeaveGroupRequest<'_> { group_id, member_id, members }
    leave_group_request::MemberIdentity as MemberIdentity<'_> { member_id, group_instance_id, reason }
    sync_group_request::SyncGroupRequest as SyncGroupRequest<'_> {
        group_id, generation_id, member_id, group_instance_id, protocol_type, protocol_name, assignments
    }
    sync_group_request::SyncGroupRequestAssignment as SyncGroupAssignment<'_> { member_id, assignment }
    describe_groups_request::DescribeGroupsRequest as DescribeGroupsRequest<'_> { groups, include_authorized_operations }
    list_groups_request::ListGroupsRequest as ListGroupsRequest<'_> { states_filter }
    sasl_handshake_request::SaslHandshakeRequest as SaslHandshakeRequest<'_> { mechanism; untagged }
    sasl_authenticate_request::SaslAuthenticateRequest as SaslAuthenticateRequest<'_> { auth_bytes }
    api_versions_request::ApiVersionsRequest as ApiVersionsRequest<'_> { client_software_name, client_software_version }
    create_topics_request::CreateTopicsRequest as CreateTopicsRequest<'_> { topics, timeout_ms, validate_only }
    create_topics_request::CreatableTopic as CreatableTopic<'_> { name, num_partitions, replication_factor, assignments, configs }
    create_topics_request::CreatableReplicaAssignment as CreatableReplicaAssignment { partition_index, broker_ids }
    create_topics_request::CreatableTopicConfig as CreatableTopicConfig<'_> { name, value }
    delete_topics_request::DeleteTopicsRequest as DeleteTopicsRequest<'_> { topic_names, timeout_ms }
    delete_records_request::DeleteRecordsRequest as DeleteRecordsRequest<'_> { topics, timeout_ms }
    delete_records_request::DeleteRecordsTopic as DeleteRecordsTopic<'_> { name, partitions }
    delete_records_request::DeleteRecordsPartition as DeleteRecordsPartition { index = partition_index, offset }
    init_producer_id_request::InitProducerIdRequest as InitProducerIdRequest<'_> {
        transactional_id, transaction_timeout_ms, producer_id, producer_epoch
    }
    add_partitions_to_txn_request::AddPartitionsToTxnRequest as AddPartitionsToTxnRequest<'_> {
        transactional_id = v3_and_below_transactional_id, producer_id = v3_and_below_producer_id,
        producer_epoch = v3_and_below_producer_epoch, topics = v3_and_below_topics
    }
    add_partitions_to_txn_request::AddPartitionsToTxnTopic as AddPartitionsToTxnTopic<'_> { name, partitions }
    add_offsets_to_txn_request::AddOffsetsToTxnRequest as AddOffsetsToTxnRequest<'_> {
        transactional_id, producer_id, producer_epoch, group_id
    }
    end_txn_request::EndTxnRequest as EndTxnRequest<'_> { transactional_id, producer_id, producer_epoch, committed }
    txn_offset_commit_request::TxnOffsetCommitRequest as TxnOffsetCommitRequest<'_> {
        transactional_id, group_id, producer_id, producer_epoch, generation_id, member_id, group_instance_id, topics
    }
    txn_offset_commit_request::TxnOffsetCommitRequestTopic as TxnOffsetCommitTopic<'_> { name, partitions }
    txn_offset_commit_request::TxnOffsetCommitRequestPartition as TxnOffsetCommitPartition<'_> {
        index = partition_index, committed_offset, committed_leader_epoch, committed_metadata
    }
    describe_configs_request::DescribeConfigsRequest as DescribeConfigsRequest<'_> { resources, include_synonyms, include_documentation }
    describe_configs_request::DescribeConfigsResource as DescribeConfigsResource<'_> { resource_type, resource_name, configuration_keys }
    alter_configs_request::AlterConfigsRequest as AlterConfigsRequest<'_> { resources, validate_only }
    alter_configs_request::AlterConfigsResource as AlterConfigsResource<'_> { resource_type, resource_name, configs }
    alter_configs_request::AlterableConfig as AlterableConfig<'_> { name, value }
    incremental_alter_configs_request::IncrementalAlterConfigsRequest as IncrementalAlterConfigsRequest<'_> { resources, validate_only }
    incremental_alter_configs_request::AlterConfigsResource as IncrementalAlterConfigsResource<'_> {
        resource_type, resource_name, configs
    }
    incremental_alter_configs_request::AlterableConfig as IncrementalAlterableConfig<'_> { name, config_operation, value }
    describe_log_dirs_request::DescribeLogDirsRequest as DescribeLogDirsRequest<'_> { topics }
    describe_log_dirs_request::DescribableLogDirTopic as DescribeLogDirsTopic<'_> { name = topic, partitions }
    create_partitions_request::CreatePartitionsRequest as CreatePartitionsRequest<'_> { topics, timeout_ms, validate_only }
    create_partitions_request::CreatePartitionsTopic as CreatePartitionsTopic<'_> { name, count, assignments }
    create_partitions_request::CreatePartitionsAssignment as CreatePartitionsAssignment { broker_ids }
    delete_groups_request::DeleteGroupsRequest as DeleteGroupsRequest<'_> { groups_names }
    offset_for_leader_epoch_request::OffsetForLeaderEpochRequest as OffsetForLeaderEpochRequest<'_> { replica_id, topics }
    offset_for_leader_epoch_request::OffsetForLeaderTopic as OffsetForLeaderTopic<'_> { topic, partitions }
    offset_for_leader_epoch_request::OffsetForLeaderPartition as OffsetForLeaderPartition {
        partition, current_leader_epoch, leader_epoch
    }
    offset_delete_request::OffsetDeleteRequest as OffsetDeleteRequest<'_> { group_id, topics; untagged }
    offset_delete_request::OffsetDeleteRequestTopic as OffsetDeleteTopic<'_> { name, partitions; untagged }
    offset_delete_request::OffsetDeleteRequestPartition as OffsetDeletePartition { index = partition_index; untagged }
    describe_cluster_request::DescribeClusterRequest as DescribeClusterRequest {
        include_cluster_authorized_operations, endpoint_type, include_fenced_brokers
    }
    describe_producers_request::DescribeProducersRequest as DescribeProducersRequest<'_> { topics }
    describe_producers_request::TopicRequest as DescribeProducersTopic<'_> { name, partition_indexes }
    describe_transactions_request::DescribeTransactionsRequest as DescribeTransactionsRequest<'_> { transactional_ids }
    list_transactions_request::ListTransactionsRequest as ListTransactionsRequest<'_> {
        state_filters, producer_id_filters, duration_filter
    }
}

macro_rules! requests {
    ($($api:ident: $request:ident),* $(,)?) => {
        const REQUESTS: &[Compared] = &[$(Compared {
            key: theirs::ApiKey::$api as i16,
            encode: encode::<theirs::$request>,
            compare: |random, version| {
                compare::<theirs::$request>(random, theirs::ApiKey::$api as i16, version, |ours, theirs| {
                    matches!(ours, AnyRequest::$api(ours) if ours.same(theirs))
                });
            },
        }),*];
    };
}

requests! {
    Produce: ProduceRequest,
    Fetch: FetchRequest,
    ListOffsets: ListOffsetsRequest,
    Metadata: MetadataRequest,
    OffsetCommit: OffsetCommitRequest,
    OffsetFetch: OffsetFetchRequest,
    FindCoordinator: FindCoordinatorRequest,
    JoinGroup: JoinGroupRequest,
    Heartbeat: HeartbeatRequest,
    LeaveGroup: LeaveGroupRequest,
    SyncGroup: SyncGroupRequest,
    DescribeGroups: DescribeGroupsRequest,
    ListGroups: ListGroupsRequest,
    SaslHandshake: SaslHandshakeRequest,
    ApiVersions: ApiVersionsRequest,
    CreateTopics: CreateTopicsRequest,
    DeleteTopics: DeleteTopicsRequest,
    DeleteRecords: DeleteRecordsRequest,
    InitProducerId: InitProducerIdRequest,
    AddPartitionsToTxn: AddPartitionsToTxnRequest,
    AddOffsetsToTxn: AddOffsetsToTxnRequest,
    EndTxn: EndTxnRequest,
    TxnOffsetCommit: TxnOffsetCommitRequest,
    DescribeConfigs: DescribeConfigsRequest,
    AlterConfigs: AlterConfigsRequest,
    DescribeLogDirs: DescribeLogDirsRequest,
    SaslAuthenticate: SaslAuthenticateRequest,
    CreatePartitions: CreatePartitionsRequest,
    DeleteGroups: DeleteGroupsRequest,
    IncrementalAlterConfigs: IncrementalAlterConfigsRequest,
    OffsetDelete: OffsetDeleteRequest,
    OffsetForLeaderEpoch: OffsetForLeaderEpochRequest,
    DescribeCluster: DescribeClusterRequest,
    DescribeProducers: DescribeProducersRequest,
    DescribeTransactions: DescribeTransactionsRequest,
    ListTransactions: ListTransactionsRequest,
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to `limit`, exclusive.
    fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// `bytes` with one to three places made wrong: the lengths that break decoders, a bit, a piece gone or twice.
    fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut spoilt = bytes.to_vec();
        for _ in 0..=self.below(3) {
            if spoilt.is_empty() {
                break;
            }
            let at = self.below(spoilt.len());
            let lengths: [&[u8]; 6] =
                [&[0xff; 4], &[0; 4], &[0x7f, 0xff, 0xff, 0xff], &[0x80, 0, 0, 0], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x7f, 0xff]];
            match self.below(8) {
                0 => spoilt[at] ^= 1 << self.below(8),
                1 => spoilt.truncate(at),
                2 => drop(spoilt.splice(at..at, bytes[self.below(bytes.len())..].iter().copied().take(9))),
                3 => drop(spoilt.drain(at..(at + 4).min(bytes.len()).min(spoilt.len()).max(at))),
                4 => spoilt[at] = self.number() as u8,
                _ => {
                    let length = lengths[self.below(lengths.len())];
                    for (to, from) in spoilt[at..].iter_mut().zip(length) {
                        *to = *from;
                    }
                }
            }
        }
        spoilt
    }
}
