//! Every request that the Kafka door takes, field by field, in the versions that it serves.
//!
//! Names are those of Kafka's message definitions; comments only where a value's meaning isn't plain from them. A field's version
//! range counts what is served: a field that came later isn't here.

use std::ops::RangeInclusive;

use super::reader::{Decode, DecodeError, Reader, Uuid};
use super::schema::schema;

/// A request with its own API key; the structs inside it have none.
pub trait Request<'a>: Decode<'a> {
    const API_KEY: i16;
    /// What the decoder knows; what is advertised may be more or less.
    const VERSIONS: RangeInclusive<i16>;
    /// First version in the encoding with varints and tagged fields.
    const FLEXIBLE_SINCE: i16;

    /// Reads the request after its header. Bytes behind it are ignored, as Apache Kafka ignores them.
    fn from_body(body: &'a [u8], version: i16) -> Result<Self, DecodeError> {
        if !Self::VERSIONS.contains(&version) {
            return Err(DecodeError::Unsupported { api_key: Self::API_KEY, version });
        }
        Self::decode(&mut Reader::new(body, version, version >= Self::FLEXIBLE_SINCE))
    }
}

// Data path.
schema! {
    ProduceRequest<'a> = key 0, versions 3-11, flexible 9 {
        transactional_id: Option<&'a str>, 3+;
        acks: i16, 3+;
        timeout_ms: i32, 3+;
        topics: Vec<ProduceTopic<'a>>, 3+;
    }
    ProduceTopic<'a> {
        name: &'a str, 3+;
        partitions: Vec<ProducePartition<'a>>, 3+;
    }
    ProducePartition<'a> {
        index: i32, 3+;
        /// Record batches, one after another.
        records: Option<&'a [u8]>, 3+;
    }

    FetchRequest<'a> = key 1, versions 4-12, flexible 12 {
        replica_id: i32, 4+;
        max_wait_ms: i32, 4+;
        min_bytes: i32, 4+;
        max_bytes: i32, 4+;
        /// 0: everything up to the high watermark, 1: nothing of open transactions.
        isolation_level: i8, 4+;
        session_id: i32, 7+;
        session_epoch: i32, 7+, default -1;
        topics: Vec<FetchTopic<'a>>, 4+;
        forgotten_topics: Vec<ForgottenTopic<'a>>, 7+;
        rack_id: &'a str, 11+;
    }
    FetchTopic<'a> {
        name: &'a str, 4+;
        partitions: Vec<FetchPartition>, 4+;
    }
    FetchPartition {
        index: i32, 4+;
        /// -1: the client doesn't know it.
        current_leader_epoch: i32, 9+, default -1;
        fetch_offset: i64, 4+;
        last_fetched_epoch: i32, 12+, default -1;
        log_start_offset: i64, 5+, default -1;
        partition_max_bytes: i32, 4+;
    }
    ForgottenTopic<'a> {
        name: &'a str, 7+;
        partitions: Vec<i32>, 7+;
    }

    ListOffsetsRequest<'a> = key 2, versions 1-7, flexible 6 {
        replica_id: i32, 1+;
        isolation_level: i8, 2+;
        topics: Vec<ListOffsetsTopic<'a>>, 1+;
    }
    ListOffsetsTopic<'a> {
        name: &'a str, 1+;
        partitions: Vec<ListOffsetsPartition>, 1+;
    }
    ListOffsetsPartition {
        index: i32, 1+;
        current_leader_epoch: i32, 4+, default -1;
        /// Milliseconds; -1 = latest, -2 = earliest, -3 = the largest timestamp.
        timestamp: i64, 1+;
    }

    MetadataRequest<'a> = key 3, versions 0-12, flexible 9 {
        /// Null = all; in version 0 an empty list is all.
        topics: Option<Vec<MetadataTopic<'a>>>, 0+, null 1+;
        allow_auto_topic_creation: bool, 4+, default true;
        include_cluster_authorized_operations: bool, 8-10;
        include_topic_authorized_operations: bool, 8+;
    }
    MetadataTopic<'a> {
        /// Zero if it is named.
        topic_id: Uuid, 10+;
        name: Option<&'a str>, 0+, null 10+;
    }

    InitProducerIdRequest<'a> = key 22, versions 0-4, flexible 2 {
        transactional_id: Option<&'a str>, 0+;
        transaction_timeout_ms: i32, 0+;
        /// What the client has been, if it goes on.
        producer_id: i64, 3+, default -1;
        producer_epoch: i16, 3+, default -1;
    }

    DeleteRecordsRequest<'a> = key 21, versions 0-2, flexible 2 {
        topics: Vec<DeleteRecordsTopic<'a>>, 0+;
        timeout_ms: i32, 0+;
    }
    DeleteRecordsTopic<'a> {
        name: &'a str, 0+;
        partitions: Vec<DeleteRecordsPartition>, 0+;
    }
    DeleteRecordsPartition {
        index: i32, 0+;
        /// The first to stay; -1 = none.
        offset: i64, 0+;
    }
}

// The connection and the cluster.
schema! {
    ApiVersionsRequest<'a> = key 18, versions 0-4, flexible 3 {
        client_software_name: &'a str, 3+;
        client_software_version: &'a str, 3+;
    }

    SaslHandshakeRequest<'a> = key 17, versions 0-1, flexible never {
        mechanism: &'a str, 0+;
    }

    SaslAuthenticateRequest<'a> = key 36, versions 0-2, flexible 2 {
        auth_bytes: &'a [u8], 0+;
    }

    DescribeClusterRequest = key 60, versions 0-2, flexible 0 {
        include_cluster_authorized_operations: bool, 0+;
        /// 1 = brokers, 2 = controllers.
        endpoint_type: i8, 1+, default 1;
        include_fenced_brokers: bool, 2+;
    }

    DescribeLogDirsRequest<'a> = key 35, versions 1-4, flexible 2 {
        /// Null = all.
        topics: Option<Vec<DescribeLogDirsTopic<'a>>>, 1+;
    }
    DescribeLogDirsTopic<'a> {
        name: &'a str, 1+;
        partitions: Vec<i32>, 1+;
    }
}

// Topics and their settings.
schema! {
    CreateTopicsRequest<'a> = key 19, versions 2-7, flexible 5 {
        topics: Vec<CreatableTopic<'a>>, 2+;
        timeout_ms: i32, 2+;
        validate_only: bool, 2+;
    }
    CreatableTopic<'a> {
        name: &'a str, 2+;
        /// -1 = the broker's default, or the assignments say it.
        num_partitions: i32, 2+;
        replication_factor: i16, 2+;
        assignments: Vec<CreatableReplicaAssignment>, 2+;
        configs: Vec<CreatableTopicConfig<'a>>, 2+;
    }
    CreatableReplicaAssignment {
        partition_index: i32, 2+;
        broker_ids: Vec<i32>, 2+;
    }
    CreatableTopicConfig<'a> {
        name: &'a str, 2+;
        value: Option<&'a str>, 2+;
    }

    DeleteTopicsRequest<'a> = key 20, versions 1-5, flexible 4 {
        topic_names: Vec<&'a str>, 1+;
        timeout_ms: i32, 1+;
    }

    CreatePartitionsRequest<'a> = key 37, versions 0-3, flexible 2 {
        topics: Vec<CreatePartitionsTopic<'a>>, 0+;
        timeout_ms: i32, 0+;
        validate_only: bool, 0+;
    }
    CreatePartitionsTopic<'a> {
        name: &'a str, 0+;
        /// Afterwards, not in addition.
        count: i32, 0+;
        assignments: Option<Vec<CreatePartitionsAssignment>>, 0+;
    }
    CreatePartitionsAssignment {
        broker_ids: Vec<i32>, 0+;
    }

    DescribeConfigsRequest<'a> = key 32, versions 1-4, flexible 4 {
        resources: Vec<DescribeConfigsResource<'a>>, 1+;
        include_synonyms: bool, 1+;
        include_documentation: bool, 3+;
    }
    DescribeConfigsResource<'a> {
        /// 2 = topic, 4 = broker.
        resource_type: i8, 1+;
        resource_name: &'a str, 1+;
        /// Null = all.
        configuration_keys: Option<Vec<&'a str>>, 1+;
    }

    AlterConfigsRequest<'a> = key 33, versions 0-2, flexible 2 {
        resources: Vec<AlterConfigsResource<'a>>, 0+;
        validate_only: bool, 0+;
    }
    AlterConfigsResource<'a> {
        resource_type: i8, 0+;
        resource_name: &'a str, 0+;
        configs: Vec<AlterableConfig<'a>>, 0+;
    }
    AlterableConfig<'a> {
        name: &'a str, 0+;
        value: Option<&'a str>, 0+;
    }

    IncrementalAlterConfigsRequest<'a> = key 44, versions 0-1, flexible 1 {
        resources: Vec<IncrementalAlterConfigsResource<'a>>, 0+;
        validate_only: bool, 0+;
    }
    IncrementalAlterConfigsResource<'a> {
        resource_type: i8, 0+;
        resource_name: &'a str, 0+;
        configs: Vec<IncrementalAlterableConfig<'a>>, 0+;
    }
    IncrementalAlterableConfig<'a> {
        name: &'a str, 0+;
        /// 0 = set, 1 = delete, 2 = append, 3 = subtract.
        config_operation: i8, 0+;
        value: Option<&'a str>, 0+;
    }
}

schema! {
    OffsetForLeaderEpochRequest<'a> = key 23, versions 2-4, flexible 4 {
        replica_id: i32, 3+, default -2;
        topics: Vec<OffsetForLeaderTopic<'a>>, 2+;
    }
    OffsetForLeaderTopic<'a> {
        topic: &'a str, 2+;
        partitions: Vec<OffsetForLeaderPartition>, 2+;
    }
    OffsetForLeaderPartition {
        partition: i32, 2+;
        /// -1: the client doesn't know it.
        current_leader_epoch: i32, 2+, default -1;
        leader_epoch: i32, 2+;
    }
}

// Groups and their offsets.
schema! {
    FindCoordinatorRequest<'a> = key 10, versions 0-4, flexible 3 {
        key: &'a str, 0-3;
        /// 0 = group, 1 = transaction.
        key_type: i8, 1+;
        coordinator_keys: Vec<&'a str>, 4+;
    }

    JoinGroupRequest<'a> = key 11, versions 0-9, flexible 6 {
        group_id: &'a str, 0+;
        session_timeout_ms: i32, 0+;
        /// -1 in version 0: the session timeout.
        rebalance_timeout_ms: i32, 1+, default -1;
        member_id: &'a str, 0+;
        group_instance_id: Option<&'a str>, 5+;
        protocol_type: &'a str, 0+;
        protocols: Vec<JoinGroupProtocol<'a>>, 0+;
        reason: Option<&'a str>, 8+;
    }
    JoinGroupProtocol<'a> {
        name: &'a str, 0+;
        metadata: &'a [u8], 0+;
    }

    SyncGroupRequest<'a> = key 14, versions 0-5, flexible 4 {
        group_id: &'a str, 0+;
        generation_id: i32, 0+;
        member_id: &'a str, 0+;
        group_instance_id: Option<&'a str>, 3+;
        protocol_type: Option<&'a str>, 5+;
        protocol_name: Option<&'a str>, 5+;
        assignments: Vec<SyncGroupAssignment<'a>>, 0+;
    }
    SyncGroupAssignment<'a> {
        member_id: &'a str, 0+;
        assignment: &'a [u8], 0+;
    }

    HeartbeatRequest<'a> = key 12, versions 0-4, flexible 4 {
        group_id: &'a str, 0+;
        generation_id: i32, 0+;
        member_id: &'a str, 0+;
        group_instance_id: Option<&'a str>, 3+;
    }

    LeaveGroupRequest<'a> = key 13, versions 0-5, flexible 4 {
        group_id: &'a str, 0+;
        member_id: &'a str, 0-2;
        members: Vec<MemberIdentity<'a>>, 3+;
    }
    MemberIdentity<'a> {
        member_id: &'a str, 3+;
        group_instance_id: Option<&'a str>, 3+;
        reason: Option<&'a str>, 5+;
    }

    OffsetCommitRequest<'a> = key 8, versions 2-9, flexible 8 {
        group_id: &'a str, 2+;
        /// -1: not a member.
        generation_id_or_member_epoch: i32, 2+;
        member_id: &'a str, 2+;
        group_instance_id: Option<&'a str>, 7+;
        /// -1: the broker's own.
        retention_time_ms: i64, 2-4, default -1;
        topics: Vec<OffsetCommitTopic<'a>>, 2+;
    }
    OffsetCommitTopic<'a> {
        name: &'a str, 2+;
        partitions: Vec<OffsetCommitPartition<'a>>, 2+;
    }
    OffsetCommitPartition<'a> {
        index: i32, 2+;
        committed_offset: i64, 2+;
        committed_leader_epoch: i32, 6+, default -1;
        committed_metadata: Option<&'a str>, 2+;
    }

    OffsetFetchRequest<'a> = key 9, versions 1-9, flexible 6 {
        group_id: &'a str, 1-7;
        /// Null = all.
        topics: Option<Vec<OffsetFetchTopic<'a>>>, 1-7, null 2+, default Some(Vec::new());
        groups: Vec<OffsetFetchGroup<'a>>, 8+;
        /// Offsets that an open transaction is about to change are answered with an error.
        require_stable: bool, 7+;
    }
    OffsetFetchGroup<'a> {
        group_id: &'a str, 8+;
        member_id: Option<&'a str>, 9+;
        member_epoch: i32, 9+, default -1;
        /// Null = all.
        topics: Option<Vec<OffsetFetchTopic<'a>>>, 8+;
    }
    OffsetFetchTopic<'a> {
        name: &'a str, 1+;
        partition_indexes: Vec<i32>, 1+;
    }

    DescribeGroupsRequest<'a> = key 15, versions 0-5, flexible 5 {
        groups: Vec<&'a str>, 0+;
        include_authorized_operations: bool, 3+;
    }

    ListGroupsRequest<'a> = key 16, versions 0-4, flexible 3 {
        /// Empty = all.
        states_filter: Vec<&'a str>, 4+;
    }

    DeleteGroupsRequest<'a> = key 42, versions 0-2, flexible 2 {
        groups_names: Vec<&'a str>, 0+;
    }

    OffsetDeleteRequest<'a> = key 47, versions 0-0, flexible never {
        group_id: &'a str, 0+;
        topics: Vec<OffsetDeleteTopic<'a>>, 0+;
    }
    OffsetDeleteTopic<'a> {
        name: &'a str, 0+;
        partitions: Vec<OffsetDeletePartition>, 0+;
    }
    OffsetDeletePartition {
        index: i32, 0+;
    }
}

// Transactions.
schema! {
    AddPartitionsToTxnRequest<'a> = key 24, versions 0-3, flexible 3 {
        transactional_id: &'a str, 0+;
        producer_id: i64, 0+;
        producer_epoch: i16, 0+;
        topics: Vec<AddPartitionsToTxnTopic<'a>>, 0+;
    }
    AddPartitionsToTxnTopic<'a> {
        name: &'a str, 0+;
        partitions: Vec<i32>, 0+;
    }

    AddOffsetsToTxnRequest<'a> = key 25, versions 0-3, flexible 3 {
        transactional_id: &'a str, 0+;
        producer_id: i64, 0+;
        producer_epoch: i16, 0+;
        group_id: &'a str, 0+;
    }

    EndTxnRequest<'a> = key 26, versions 0-3, flexible 3 {
        transactional_id: &'a str, 0+;
        producer_id: i64, 0+;
        producer_epoch: i16, 0+;
        /// Else aborted.
        committed: bool, 0+;
    }

    TxnOffsetCommitRequest<'a> = key 28, versions 0-3, flexible 3 {
        transactional_id: &'a str, 0+;
        group_id: &'a str, 0+;
        producer_id: i64, 0+;
        producer_epoch: i16, 0+;
        generation_id: i32, 3+, default -1;
        member_id: &'a str, 3+;
        group_instance_id: Option<&'a str>, 3+;
        topics: Vec<TxnOffsetCommitTopic<'a>>, 0+;
    }
    TxnOffsetCommitTopic<'a> {
        name: &'a str, 0+;
        partitions: Vec<TxnOffsetCommitPartition<'a>>, 0+;
    }
    TxnOffsetCommitPartition<'a> {
        index: i32, 0+;
        committed_offset: i64, 0+;
        committed_leader_epoch: i32, 2+, default -1;
        committed_metadata: Option<&'a str>, 0+;
    }

    DescribeProducersRequest<'a> = key 61, versions 0-0, flexible 0 {
        topics: Vec<DescribeProducersTopic<'a>>, 0+;
    }
    DescribeProducersTopic<'a> {
        name: &'a str, 0+;
        partition_indexes: Vec<i32>, 0+;
    }

    DescribeTransactionsRequest<'a> = key 65, versions 0-0, flexible 0 {
        transactional_ids: Vec<&'a str>, 0+;
    }

    ListTransactionsRequest<'a> = key 66, versions 0-1, flexible 0 {
        /// Empty = all.
        state_filters: Vec<&'a str>, 0+;
        producer_id_filters: Vec<i64>, 0+;
        /// Only those running for longer, in milliseconds; -1 = all.
        duration_filter: i64, 1+, default -1;
    }
}

/// The list of requests; [`AnyRequest`] and [`APIS`] come from it.
macro_rules! apis {
    ($($api:ident($request:ident $(<$life:lifetime>)?)),* $(,)?) => {
        /// One of the requests, decoded.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum AnyRequest<'a> {
            $($api($request $(<$life>)?),)*
        }

        impl<'a> AnyRequest<'a> {
            /// Reads the body of a request of any API.
            pub fn from_body(api_key: i16, version: i16, body: &'a [u8]) -> Result<Self, DecodeError> {
                match api_key {
                    $($request::API_KEY => $request::from_body(body, version).map(Self::$api),)*
                    _ => Err(DecodeError::Unsupported { api_key, version }),
                }
            }
        }

        /// Everything that can be decoded.
        pub const APIS: &[Api] = &[$(Api {
            name: stringify!($api),
            key: $request::API_KEY,
            oldest: *$request::VERSIONS.start(),
            newest: *$request::VERSIONS.end(),
            flexible_since: $request::FLEXIBLE_SINCE,
        }),*];
    };
}

apis! {
    Produce(ProduceRequest<'a>),
    Fetch(FetchRequest<'a>),
    ListOffsets(ListOffsetsRequest<'a>),
    Metadata(MetadataRequest<'a>),
    OffsetCommit(OffsetCommitRequest<'a>),
    OffsetFetch(OffsetFetchRequest<'a>),
    FindCoordinator(FindCoordinatorRequest<'a>),
    JoinGroup(JoinGroupRequest<'a>),
    Heartbeat(HeartbeatRequest<'a>),
    LeaveGroup(LeaveGroupRequest<'a>),
    SyncGroup(SyncGroupRequest<'a>),
    DescribeGroups(DescribeGroupsRequest<'a>),
    ListGroups(ListGroupsRequest<'a>),
    SaslHandshake(SaslHandshakeRequest<'a>),
    ApiVersions(ApiVersionsRequest<'a>),
    CreateTopics(CreateTopicsRequest<'a>),
    DeleteTopics(DeleteTopicsRequest<'a>),
    DeleteRecords(DeleteRecordsRequest<'a>),
    InitProducerId(InitProducerIdRequest<'a>),
    AddPartitionsToTxn(AddPartitionsToTxnRequest<'a>),
    AddOffsetsToTxn(AddOffsetsToTxnRequest<'a>),
    EndTxn(EndTxnRequest<'a>),
    TxnOffsetCommit(TxnOffsetCommitRequest<'a>),
    DescribeConfigs(DescribeConfigsRequest<'a>),
    AlterConfigs(AlterConfigsRequest<'a>),
    DescribeLogDirs(DescribeLogDirsRequest<'a>),
    SaslAuthenticate(SaslAuthenticateRequest<'a>),
    CreatePartitions(CreatePartitionsRequest<'a>),
    DeleteGroups(DeleteGroupsRequest<'a>),
    IncrementalAlterConfigs(IncrementalAlterConfigsRequest<'a>),
    OffsetDelete(OffsetDeleteRequest<'a>),
    OffsetForLeaderEpoch(OffsetForLeaderEpochRequest<'a>),
    DescribeCluster(DescribeClusterRequest),
    DescribeProducers(DescribeProducersRequest<'a>),
    DescribeTransactions(DescribeTransactionsRequest<'a>),
    ListTransactions(ListTransactionsRequest<'a>),
}

/// What is known about one API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    pub name: &'static str,
    pub key: i16,
    /// Versions that can be decoded.
    pub oldest: i16,
    pub newest: i16,
    pub flexible_since: i16,
}
