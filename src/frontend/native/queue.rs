//! Queues: the native protocol's words to the broker's and back.

use std::sync::Arc;

use ringmain_wire::control::{self, CONTROL_VERSION};
use ringmain_wire::queue::{
    CreateQueue, ListQueues, QueueList, QueueReceive, QueueReceived, QueueRequest, QueueSettle, QueueSettled, QueueStage,
    RECEIVE_MESSAGES_MAX, RECEIVE_WAIT_MAX_MS, SETTLEMENTS_MAX, Settlement, read_config, write_config,
};
use ringmain_wire::{Envelope, ErrorCode, PartitionId, ProducerId};

use super::{control_failure, encode, exactly};
use crate::frontend::Outbox;
use crate::request::queue::{QueueId, QueueReply, QueueRequest as Asked, Receive, Settle};
use crate::request::transaction::ProducerKey;
use crate::request::{Failure, Request};

/// An answer's messages are copied behind its head up to this size; more travels as it is.
const COPIED_BYTES: usize = 4 << 10;

/// Body of `CreateQueue`.
pub fn create(body: &[u8]) -> Result<Request<'static>, Failure> {
    let create: CreateQueue = read_config(body).map_err(control_failure)?;
    if create.partition_count == 0 {
        return Err(Failure::new(ErrorCode::InvalidArgument, "a queue's topic needs at least 1 partition"));
    }
    Ok(Request::CreateQueue(Arc::new(create)))
}

/// Body of `AlterQueue`.
pub fn alter(body: &[u8]) -> Result<Request<'static>, Failure> {
    Ok(Request::AlterQueue(Arc::new(read_config(body).map_err(control_failure)?)))
}

/// Body of `ListQueues`.
pub fn list(body: &[u8]) -> Result<Request<'static>, Failure> {
    let ListQueues { names } = control::read_open(body).map_err(control_failure)?;
    Ok(Request::Queues { names })
}

/// Body of `QueueReceive`.
pub fn receive(body: &[u8]) -> Result<Request<'static>, Failure> {
    let receive = QueueReceive::read(exactly::<{ QueueReceive::BYTES }>(body)?).map_err(control_failure)?;
    if !(1..=RECEIVE_MESSAGES_MAX).contains(&receive.max_messages) {
        let message = format!("{} messages at once; 1 to {RECEIVE_MESSAGES_MAX} can be asked for", receive.max_messages);
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    Ok(Request::Receive(Receive {
        queue: QueueId(receive.queue),
        partition: PartitionId(receive.partition),
        consumer: receive.consumer,
        priority: receive.consumer_priority,
        max_messages: receive.max_messages,
        max_bytes: receive.max_bytes,
        max_wait_ms: receive.max_wait_ms.min(RECEIVE_WAIT_MAX_MS),
    }))
}

/// Body of `QueueSettle`.
pub fn settle(body: &[u8]) -> Result<Request<'static>, Failure> {
    let settle = QueueSettle::read(body).map_err(control_failure)?;
    Ok(Request::Settle(Arc::new(Settle {
        queue: QueueId(settle.queue),
        partition: PartitionId(settle.partition),
        consumer: settle.consumer,
        transaction: None,
        settlements: settlements(&body[QueueSettle::BYTES..])?,
    })))
}

/// Body of `QueueStage`.
pub fn stage(body: &[u8]) -> Result<Request<'static>, Failure> {
    let stage = QueueStage::read(body).map_err(control_failure)?;
    Ok(Request::Settle(Arc::new(Settle {
        queue: QueueId(stage.queue),
        partition: PartitionId(stage.partition),
        consumer: stage.consumer,
        transaction: Some(ProducerKey { id: ProducerId(stage.producer_id), epoch: stage.producer_epoch }),
        settlements: settlements(&body[QueueStage::BYTES..])?,
    })))
}

fn settlements(bytes: &[u8]) -> Result<Vec<Settlement>, Failure> {
    let (settlements, rest) = bytes.as_chunks::<{ Settlement::BYTES }>();
    if !rest.is_empty() {
        let message = format!("{} bytes behind the last whole settlement of {}", rest.len(), Settlement::BYTES);
        return Err(Failure::new(ErrorCode::MalformedRequest, message));
    }
    if !(1..=SETTLEMENTS_MAX).contains(&settlements.len()) {
        let message = format!("{} settlements at once; 1 to {SETTLEMENTS_MAX} are taken", settlements.len());
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    let unknown = || Failure::new(ErrorCode::MalformedRequest, "a settlement with an unknown verb");
    let settlements = settlements.iter().map(|bytes| Settlement::read(bytes).ok_or_else(unknown)).collect::<Result<Vec<_>, _>>()?;
    if let Some(empty) = settlements.iter().find(|settlement| settlement.count == 0) {
        return Err(Failure::new(ErrorCode::InvalidArgument, format!("a settlement of no messages at offset {}", empty.first)));
    }
    Ok(settlements)
}

/// Body of `Queue`.
pub fn call(body: &[u8]) -> Result<Request<'static>, Failure> {
    let QueueRequest { queue, partition, call } = control::read_open(body).map_err(control_failure)?;
    Ok(Request::Queue(Arc::new(Asked { queue: QueueId(queue), partition: PartitionId(partition), call })))
}

/// The bytes of an answer.
pub fn reply(op: u16, reply_flags: u16, correlation: u64, reply: QueueReply, out: &mut Outbox) {
    match reply {
        QueueReply::Received { partition, count, bytes } => {
            let len = (QueueReceived::BYTES + bytes.len()) as u32;
            let head = QueueReceived { version: CONTROL_VERSION, reserved: 0, partition: partition.0, count, reserved_too: 0 };
            out.push_bytes(&Envelope { len, op, flags: reply_flags, correlation }.to_bytes());
            out.push_bytes(&head.to_bytes());
            if bytes.len() > COPIED_BYTES {
                out.push_vec(bytes);
            } else if !bytes.is_empty() {
                out.push_bytes(&bytes);
            }
        }
        QueueReply::Settled { settled, refused } => {
            let body = QueueSettled { version: CONTROL_VERSION, reserved: 0, settled, refused, reserved_too: 0 };
            encode::fixed(op, reply_flags, correlation, &body.to_bytes(), out);
        }
        QueueReply::Answer(answer) => encode::open(op, reply_flags, correlation, &answer, out),
        QueueReply::Info(info) => {
            let mut body = Vec::new();
            write_config(&*info, &mut body);
            encode::fixed(op, reply_flags, correlation, &body, out);
        }
        QueueReply::List { queues, shard_ports } => {
            let mut body = Vec::new();
            write_config(&QueueList { shard_ports, queues }, &mut body);
            encode::fixed(op, reply_flags, correlation, &body, out);
        }
    }
}
