//! Replies as bytes: an envelope and a body, appended to the outbox.

use ringmain_wire::control::{
    self, CONTROL_VERSION, ErrorReply, FetchReply, ListOffsetsReply, MetadataReply, ProduceReply, ProducerGrant, ReadOffsetReply,
};
use ringmain_wire::envelope::flags;
use ringmain_wire::{Envelope, ErrorCode, Op};
use rkyv::Serialize;
use rkyv::api::high::HighSerializer;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

use crate::frontend::Outbox;
use crate::request::{Failure, FetchData, Fetched, Reply};

/// Envelope and body of the most frequent reply.
const PRODUCED_BYTES: usize = Envelope::BYTES + ProduceReply::BYTES;

/// The answer to the request of `op` with this correlation.
pub fn reply(op: u16, correlation: u64, reply: Reply, moved: bool, out: &mut Outbox) {
    let reply_flags = if moved { flags::REPLY | flags::MOVED } else { flags::REPLY };
    match reply {
        Reply::Produced { base_offset, append_time_ms, duplicate, redirected } => {
            out.push_bytes(&produced(reply_flags, correlation, base_offset.0, append_time_ms, duplicate, redirected));
        }
        Reply::Fetched { head, data } => fetched(reply_flags, correlation, &head, data, out),
        Reply::Offset { offset, timestamp_ms, found } => {
            let body = ListOffsetsReply { version: CONTROL_VERSION, found: found.into(), reserved: 0, offset: offset.0, timestamp_ms };
            fixed(op, reply_flags, correlation, &body.to_bytes(), out);
        }
        Reply::Producer { producer_id, producer_epoch } => {
            let body = ProducerGrant { version: CONTROL_VERSION, producer_epoch, reserved: 0, producer_id: producer_id.0 };
            fixed(op, reply_flags, correlation, &body.to_bytes(), out);
        }
        Reply::Committed | Reply::Deleted => fixed(op, reply_flags, correlation, &[], out),
        Reply::ConsumerOffset { offset, metadata } => {
            open(op, reply_flags, correlation, &ReadOffsetReply { offset: offset.map(|o| o.0), metadata }, out);
        }
        Reply::Topic(info) => open(op, reply_flags, correlation, &*info, out),
        Reply::Metadata { topics, shard_ports } => open(op, reply_flags, correlation, &MetadataReply { shard_ports, topics }, out),
        Reply::Description(description) => open(op, reply_flags, correlation, &*description, out),
        Reply::Stats(stats) => open(op, reply_flags, correlation, &*stats, out),
        Reply::Failed(failure) => error(op, reply_flags, correlation, &failure, out),
        Reply::Group(reply) => match super::group::answer(*reply) {
            Ok(answer) => open(op, reply_flags, correlation, &answer, out),
            Err(failure) => error(op, reply_flags, correlation, &failure, out),
        },
        Reply::Transaction(reply) => match super::transaction::answer(*reply) {
            Ok(answer) => open(op, reply_flags, correlation, &answer, out),
            Err(failure) => error(op, reply_flags, correlation, &failure, out),
        },
        Reply::ToCheck(list) => open(op, reply_flags, correlation, &super::transaction::to_check(list), out),
        Reply::Transactions(list) => open(op, reply_flags, correlation, &super::transaction::list(list), out),
        Reply::Groups(groups) => open(op, reply_flags, correlation, &super::group::list(groups), out),
        Reply::Queue(reply) => super::queue::reply(op, reply_flags, correlation, *reply, out),
        // Parts of other answers, or answers to what this door doesn't ask.
        Reply::Watched { .. }
        | Reply::LogStart { .. }
        | Reply::PartitionStates(_)
        | Reply::ShardStats(_)
        | Reply::Coordinators(_)
        | Reply::Producers(_) => {
            let failure = Failure::new(ErrorCode::Internal, "an answer between shards came to a connection");
            error(op, reply_flags, correlation, &failure, out);
        }
    }
}

/// An error reply; a failure without a text gets its code's.
pub fn error(op: u16, reply_flags: u16, correlation: u64, failure: &Failure, out: &mut Outbox) {
    let message = if failure.message.is_empty() { failure.code.text().to_owned() } else { failure.message.clone() };
    open(op, reply_flags | flags::ERROR, correlation, &ErrorReply { code: failure.code as u16, message }, out);
}

/// A reply with an open message as its body.
pub fn open<T>(op: u16, reply_flags: u16, correlation: u64, message: &T, out: &mut Outbox)
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    let mut body = Vec::new();
    control::write_open(message, &mut body);
    fixed(op, reply_flags, correlation, &body, out);
}

/// A reply with a body of these bytes.
pub fn fixed(op: u16, reply_flags: u16, correlation: u64, body: &[u8], out: &mut Outbox) {
    out.push_bytes(&Envelope { len: body.len() as u32, op, flags: reply_flags, correlation }.to_bytes());
    if !body.is_empty() {
        out.push_bytes(body);
    }
}

/// The head of a fetch reply; the frames follow from where they lie. Which shard's they are, the driver
/// knows: it sets the piece's `shard`.
fn fetched(reply_flags: u16, correlation: u64, head: &Fetched, data: FetchData, out: &mut Outbox) {
    let envelope = Envelope { len: FetchReply::BYTES as u32 + head.bytes, op: Op::Fetch as u16, flags: reply_flags, correlation };
    let body = FetchReply {
        version: CONTROL_VERSION,
        reserved: 0,
        partition: head.partition.0,
        // The native door shows committed records only.
        high_watermark: head.last_stable.0,
        log_start: head.log_start.0,
        next_offset: head.next_offset.0,
    };
    out.push_bytes(&envelope.to_bytes());
    out.push_bytes(&body.to_bytes());
    if head.bytes > 0 {
        out.push_frames(data, head.bytes, 0);
    }
}

/// One reply per produced message at the least favourable batch size: written by hand, in one piece.
fn produced(
    reply_flags: u16,
    correlation: u64,
    base_offset: u64,
    append_time_ms: i64,
    duplicate: bool,
    redirected: u32,
) -> [u8; PRODUCED_BYTES] {
    let mut bytes = [0; PRODUCED_BYTES];
    bytes[0..4].copy_from_slice(&(ProduceReply::BYTES as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&(Op::Produce as u16).to_le_bytes());
    bytes[6..8].copy_from_slice(&reply_flags.to_le_bytes());
    bytes[8..16].copy_from_slice(&correlation.to_le_bytes());
    bytes[16..18].copy_from_slice(&CONTROL_VERSION.to_le_bytes());
    bytes[18..20].copy_from_slice(&u16::from(duplicate).to_le_bytes());
    bytes[20..24].copy_from_slice(&redirected.to_le_bytes());
    bytes[24..32].copy_from_slice(&base_offset.to_le_bytes());
    bytes[32..40].copy_from_slice(&append_time_ms.to_le_bytes());
    bytes
}
