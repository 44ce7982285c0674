//! One file per API: what the client wants → requests to shards → what the client is told.

mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod alter_configs;
mod api_versions;
mod configs;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_log_dirs;
mod describe_producers;
mod describe_transactions;
mod end_txn;
mod fetch;
mod find_coordinator;
mod group;
mod heartbeat;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_groups;
mod list_offsets;
mod list_transactions;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod offsets;
mod produce;
mod sasl;
mod sync_group;
mod transaction;
mod txn_offset_commit;

use std::net::IpAddr;
use std::ops::Range;

use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::{Encodable, StrBytes};
use ringmain_wire::{PartitionId, ShardId};

use super::decode::{Request, RequestHeader};
use super::{ASIDE, KafkaConfig, errors};
use crate::frontend::{Ends, View};
use crate::request::{Reply, Request as ShardRequest};
use crate::router::letter::OwnedRequest;
use crate::shard::catalog::Topic;

/// What is served of one API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Which.
    pub key: ApiKey,
    /// Oldest version that clients are told …
    pub advertised_from: i16,
    /// … and the oldest that is really served.
    pub from: i16,
    /// Newest.
    pub to: i16,
}

const fn served(key: ApiKey, from: i16, to: i16) -> Served {
    Served { key, advertised_from: from, from, to }
}

/// Everything that is served: what isn't here isn't advertised, and a request for it closes the connection.
pub const SERVED: &[Served] = &[
    // Version 0 is in the list, though nothing before 3 is served: librdkafka up to 2.11 compresses nothing if it isn't.
    Served { key: ApiKey::Produce, advertised_from: 0, from: 3, to: 11 },
    served(ApiKey::Fetch, 4, 12),
    served(ApiKey::ListOffsets, 1, 7),
    served(ApiKey::Metadata, 0, 12),
    served(ApiKey::OffsetCommit, 2, 9),
    served(ApiKey::OffsetFetch, 1, 9),
    served(ApiKey::FindCoordinator, 0, 4),
    served(ApiKey::JoinGroup, 0, 9),
    served(ApiKey::Heartbeat, 0, 4),
    served(ApiKey::LeaveGroup, 0, 5),
    served(ApiKey::SyncGroup, 0, 5),
    served(ApiKey::DescribeGroups, 0, 5),
    served(ApiKey::ListGroups, 0, 4),
    served(ApiKey::SaslHandshake, 0, 1),
    served(ApiKey::ApiVersions, 0, 4),
    served(ApiKey::CreateTopics, 2, 7),
    served(ApiKey::DeleteTopics, 1, 5),
    served(ApiKey::DeleteRecords, 0, 2),
    served(ApiKey::InitProducerId, 0, 4),
    // kafka-python reads no further after a restart of the broker, which begins a leader epoch, unless it can ask this.
    served(ApiKey::OffsetForLeaderEpoch, 2, 4),
    served(ApiKey::DeleteGroups, 0, 2),
    served(ApiKey::OffsetDelete, 0, 0),
    served(ApiKey::AddPartitionsToTxn, 0, 3),
    served(ApiKey::AddOffsetsToTxn, 0, 3),
    served(ApiKey::EndTxn, 0, 3),
    served(ApiKey::TxnOffsetCommit, 0, 3),
    served(ApiKey::DescribeProducers, 0, 0),
    served(ApiKey::DescribeTransactions, 0, 0),
    served(ApiKey::ListTransactions, 0, 1),
    served(ApiKey::DescribeConfigs, 1, 4),
    served(ApiKey::AlterConfigs, 0, 2),
    served(ApiKey::DescribeLogDirs, 1, 4),
    served(ApiKey::SaslAuthenticate, 0, 2),
    served(ApiKey::CreatePartitions, 0, 3),
    served(ApiKey::IncrementalAlterConfigs, 0, 1),
    served(ApiKey::DescribeCluster, 0, 2),
];

/// A request of a client, from its decoding to its response.
pub trait Call {
    /// Its requests to shards are taken from the message itself, by [`Call::next_request`]; it never begins.
    fn has_parts(&self) -> bool {
        false
    }
    /// The next request inside `message` (the bytes of the whole request, its length included), with a number of the call's choosing.
    fn next_request<'a>(&mut self, _message: &'a [u8], _context: &mut Context<'_>) -> Option<(u32, ShardRequest<'a>)> {
        None
    }
    /// Its turn has come.
    fn begin(&mut self, _context: &mut Context<'_>) {}
    /// An answer to the request of that number. More may be asked.
    fn answer(&mut self, _part: u32, _reply: Reply, _context: &mut Context<'_>) {}
    /// An answer to what was asked aside. More may be asked.
    fn answer_aside(&mut self, _part: u32, _reply: Reply, _context: &mut Context<'_>) {}
    /// What was asked aside needn't be waited for.
    fn is_ready(&self) -> bool {
        true
    }
    /// Everything that was asked is answered: the response's body. `Ok(false)` = the client wants none;
    /// `Err` = the connection is to be closed.
    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String>;
    /// Memory that it keeps beyond a fixed size.
    fn held_bytes(&self) -> usize {
        0
    }
}

/// A response that is being made: what is encoded, and stored batches that are sent from where they are.
#[derive(Debug, Default)]
pub struct Answer {
    /// All of it but the batches.
    pub bytes: Vec<u8>,
    /// Each with its place in `bytes`, in order.
    pub batches: Vec<(usize, Batches)>,
}

/// Stored batches in what a shard has returned: the rest of it (headers of frames, padding) isn't for the client.
#[derive(Debug, Default)]
pub struct Batches {
    /// What was returned.
    pub bytes: Vec<u8>,
    /// Where the batches are in it, in order.
    pub ranges: Vec<Range<usize>>,
    /// Their length in all.
    pub len_bytes: usize,
}

/// What a call may look at, and where it puts what it asks.
pub struct Context<'a> {
    /// Of all connections.
    pub config: &'a KafkaConfig,
    /// Time and topics.
    pub view: &'a View<'a>,
    /// Address at which the client has reached this broker.
    pub local: IpAddr,
    /// The client's own.
    pub peer: IpAddr,
    /// Number and request.
    pub(super) asks: Vec<(u32, OwnedRequest)>,
}

impl<'a> Context<'a> {
    /// Nothing asked yet.
    pub fn new(config: &'a KafkaConfig, ends: Ends, view: &'a View<'a>) -> Context<'a> {
        Context { config, view, local: ends.local, peer: ends.peer, asks: Vec::new() }
    }

    /// Every address that clients are told: node, host, port.
    pub fn nodes(&self) -> impl Iterator<Item = (i32, String, u16)> {
        let host = |node: &super::Node| node.host.clone().unwrap_or_else(|| self.local.to_string());
        self.config.nodes.iter().zip(0..).map(move |(node, id)| (id, host(node), node.port))
    }

    /// The partition that a topic's name and an index mean.
    pub fn partition(&self, topic: &str, index: i32) -> Option<PartitionId> {
        place(self.view.catalog.topic(topic), index).map(|(partition, _)| partition)
    }

    /// A partition as clients name it; `None` = it has just gone.
    pub fn topic_and_index(&self, partition: PartitionId) -> Option<(String, i32)> {
        let entry = self.view.catalog.partition(partition)?;
        let topic = self.view.catalog.topic_by_id(entry.topic)?;
        Some((topic.name.to_string(), entry.index as i32))
    }

    /// Asks a shard or the router; the answer comes with the same number.
    pub fn ask(&mut self, part: u32, request: OwnedRequest) {
        debug_assert!(part & ASIDE == 0);
        self.asks.push((part, request));
    }

    /// As `ask`, but the response doesn't wait for the answer: [`Call::is_ready`] decides. It may come when the call is gone.
    pub fn ask_aside(&mut self, part: u32, request: OwnedRequest) {
        self.asks.push((part | ASIDE, request));
    }
}

/// The partition of that index, and its shard, if the topic is known and has one.
fn place(topic: Option<&Topic>, index: i32) -> Option<(PartitionId, ShardId)> {
    let place = topic?.partitions.get(usize::try_from(index).ok()?)?;
    Some((PartitionId(place.partition), ShardId(place.shard)))
}

/// What a client is told that claims to know the epoch of a partition's leader; negative = it claims nothing.
fn check_epoch(claimed: i32, current: i32) -> i16 {
    match claimed {
        _ if claimed > current => errors::UNKNOWN_LEADER_EPOCH,
        0.. if claimed < current => errors::FENCED_LEADER_EPOCH,
        _ => errors::NONE,
    }
}

/// A topic of a request whose partitions are in one list with those of the others, in order.
struct TopicParts {
    name: String,
    part_count: usize,
}

/// A call that has been decoded, and the version it is answered in.
pub struct Opened {
    /// Which API.
    pub key: ApiKey,
    /// Of the response.
    pub version: i16,
    /// It.
    pub call: Box<dyn Call>,
}

/// Whether requests of that number are taken at all.
pub fn check_key(key: i16) -> Result<(), String> {
    let is_known = SERVED.iter().any(|served| served.key as i16 == key);
    is_known.then_some(()).ok_or_else(|| format!("API {key} is not served"))
}

/// Decodes a request. Errors: what the connection is closed for.
pub fn open(header: &RequestHeader<'_>, body: &[u8], context: &Context<'_>) -> Result<Opened, String> {
    let (number, version) = (header.start.api_key, header.start.api_version);
    let served = SERVED.iter().find(|served| served.key as i16 == number).ok_or_else(|| format!("API {number} is not served"))?;
    let key = served.key;
    if !(served.from..=served.to).contains(&version) {
        // The one request whose sender can't know yet what is understood.
        if key == ApiKey::ApiVersions {
            return Ok(Opened { key, version: 0, call: Box::new(api_versions::ApiVersions::unsupported()) });
        }
        return Err(format!("{key:?} version {version}; {} to {} are served", served.from, served.to));
    }
    let call: Box<dyn Call> = match key {
        ApiKey::ApiVersions => Box::new(api_versions::ApiVersions::open(decode(body, version)?)),
        ApiKey::Produce => Box::new(produce::Produce::open(body, version)?),
        ApiKey::Fetch => Box::new(fetch::Fetch::open(&decode(body, version)?, context)),
        ApiKey::ListOffsets => Box::new(list_offsets::ListOffsets::open(&decode(body, version)?, version, context)),
        ApiKey::InitProducerId => Box::new(init_producer_id::InitProducerId::open(&decode(body, version)?, version)),
        ApiKey::AddPartitionsToTxn => Box::new(add_partitions_to_txn::AddPartitionsToTxn::open(&decode(body, version)?, version, context)),
        ApiKey::AddOffsetsToTxn => Box::new(add_offsets_to_txn::AddOffsetsToTxn::open(&decode(body, version)?, version)),
        ApiKey::EndTxn => Box::new(end_txn::EndTxn::open(&decode(body, version)?, version)),
        ApiKey::TxnOffsetCommit => Box::new(txn_offset_commit::TxnOffsetCommit::open(&decode(body, version)?, context)),
        ApiKey::DescribeProducers => Box::new(describe_producers::DescribeProducers::open(&decode(body, version)?, context)),
        ApiKey::DescribeTransactions => Box::new(describe_transactions::DescribeTransactions::open(&decode(body, version)?)),
        ApiKey::ListTransactions => Box::new(list_transactions::ListTransactions::open(&decode(body, version)?)),
        ApiKey::CreateTopics => Box::new(create_topics::CreateTopics::open(&decode(body, version)?, context)),
        ApiKey::DeleteTopics => Box::new(delete_topics::DeleteTopics::open(&decode(body, version)?)),
        ApiKey::DeleteRecords => Box::new(delete_records::DeleteRecords::open(&decode(body, version)?, context)),
        ApiKey::CreatePartitions => Box::new(create_partitions::CreatePartitions::open(&decode(body, version)?, context)),
        ApiKey::DescribeConfigs => Box::new(describe_configs::DescribeConfigs::open(&decode(body, version)?)),
        ApiKey::AlterConfigs => Box::new(alter_configs::AlterConfigs::all(&decode(body, version)?)),
        ApiKey::IncrementalAlterConfigs => Box::new(alter_configs::AlterConfigs::incremental(&decode(body, version)?)),
        ApiKey::DescribeCluster => Box::new(describe_cluster::DescribeCluster::open(&decode(body, version)?)),
        ApiKey::DescribeLogDirs => Box::new(describe_log_dirs::DescribeLogDirs::open(&decode(body, version)?)),
        ApiKey::SaslHandshake => {
            let _: super::decode::SaslHandshakeRequest<'_> = decode(body, version)?;
            Box::new(sasl::SaslHandshake)
        }
        ApiKey::SaslAuthenticate => {
            let _: super::decode::SaslAuthenticateRequest<'_> = decode(body, version)?;
            Box::new(sasl::SaslAuthenticate)
        }
        ApiKey::Metadata => Box::new(metadata::Metadata::open(&decode(body, version)?, version, context)),
        ApiKey::OffsetCommit => Box::new(offset_commit::OffsetCommit::open(&decode(body, version)?, context)),
        ApiKey::OffsetFetch => Box::new(offset_fetch::OffsetFetch::open(&decode(body, version)?, version, context)),
        ApiKey::FindCoordinator => Box::new(find_coordinator::FindCoordinator::open(&decode(body, version)?, version)),
        ApiKey::JoinGroup => {
            let host = format!("/{}", context.peer);
            Box::new(join_group::JoinGroup::open(&decode(body, version)?, version, header.client_id, host))
        }
        ApiKey::Heartbeat => Box::new(heartbeat::Heartbeat::open(&decode(body, version)?)),
        ApiKey::LeaveGroup => Box::new(leave_group::LeaveGroup::open(&decode(body, version)?, version)),
        ApiKey::SyncGroup => Box::new(sync_group::SyncGroup::open(&decode(body, version)?)),
        ApiKey::DescribeGroups => Box::new(describe_groups::DescribeGroups::open(&decode(body, version)?)),
        ApiKey::ListGroups => Box::new(list_groups::ListGroups::open(&decode(body, version)?)),
        ApiKey::DeleteGroups => Box::new(delete_groups::DeleteGroups::open(&decode(body, version)?)),
        ApiKey::OffsetForLeaderEpoch => Box::new(offset_for_leader_epoch::OffsetForLeaderEpoch::open(&decode(body, version)?, context)),
        ApiKey::OffsetDelete => Box::new(offset_delete::OffsetDelete::open(&decode(body, version)?, context)),
        _ => return Err(format!("API {number} is not served")),
    };
    Ok(Opened { key, version, call })
}

fn decode<'a, R: Request<'a>>(body: &'a [u8], version: i16) -> Result<R, String> {
    R::from_body(body, version).map_err(|error| error.to_string())
}

/// Appends a response's body. An error is a mistake of ours: a field that this version doesn't have.
pub fn encode(response: &impl Encodable, version: i16, out: &mut Answer) -> Result<bool, String> {
    response.encode(&mut out.bytes, version).map(|()| true).map_err(|error| format!("the response can't be encoded: {error}"))
}

/// Text for a response.
pub fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}
