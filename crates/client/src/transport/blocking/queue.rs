//! Queues with blocking calls. A queue consumer works on the caller's thread, like a consumer.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use ringmain_wire::queue::{
    AlterQueue, CreateQueue, Delayed, QueueAnswer, QueueCall, QueueInfo, QueueList, QueueRequest, QueueState, Verb,
};
use ringmain_wire::{ErrorCode, Op, PartitionId};

use super::super::wall_ms;
use super::{Client, Consumer, Producer, Sockets};
use crate::admin::{self, DeleteQueue};
use crate::consumer::{ConsumerConfig, OutOfRange, StartFrom};
use crate::error::{CallError, ConnectionError};
use crate::links::Machine as _;
use crate::producer::ProducerConfig;
use crate::queue::{
    Confirmed, Message, Numbering, Outgoing, Peeked, QueueConsumerConfig, QueueConsumerMachine, QueueError, QueueMap, Redriven, ReplyTo,
    RequestError, RequestId, RequesterConfig, reply_partition, reply_topic,
};

/// Receives messages of one queue, and settles them.
///
/// It works on the thread that calls it: settlements leave with a call that waits ([`QueueConsumer::recv`],
/// [`QueueConsumer::flush`]). Dropping it gives back what isn't settled.
#[derive(Debug)]
pub struct QueueConsumer {
    machine: QueueConsumerMachine,
    sockets: Sockets,
    patience: Duration,
    pulls: bool,
}

impl QueueConsumer {
    fn new(client: &Client, machine: QueueConsumerMachine, patience: Duration) -> Result<QueueConsumer, CallError> {
        let pulls = machine.pulls();
        Ok(QueueConsumer { machine, sockets: client.sockets()?, patience, pulls })
    }

    pub(super) fn with<R>(&mut self, f: impl FnOnce(&mut QueueConsumerMachine) -> R) -> R {
        f(&mut self.machine)
    }

    pub(super) fn with_settling<R>(&mut self, f: impl FnOnce(&mut QueueConsumerMachine) -> R) -> R {
        f(&mut self.machine)
    }

    /// Does what can be done, and waits for more until then at the latest.
    pub(super) fn turn(&mut self, until: Instant) -> Result<(), QueueError> {
        let mut access = &mut self.machine;
        self.sockets.advance(&mut access);
        let until = access.poll_timeout().map_or(until, |at| at.min(until));
        let waited = self.sockets.wait_and_read(&mut access, Some(until));
        waited.map(|_| ()).map_err(|error| QueueError::Call(CallError::Connection(error.into())))
    }
}

queue_transport!({} {});
