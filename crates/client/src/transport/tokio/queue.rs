//! Queues on tokio. A queue consumer works in the task that calls it, like a consumer.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use ringmain_wire::queue::{
    AlterQueue, CreateQueue, Delayed, QueueAnswer, QueueCall, QueueInfo, QueueList, QueueRequest, QueueState, Verb,
};
use ringmain_wire::{ErrorCode, Op, PartitionId};

use super::super::wall_ms;
use super::{Client, Consumer, Driver, Producer};
use crate::admin::{self, DeleteQueue};
use crate::consumer::{ConsumerConfig, OutOfRange, StartFrom};
use crate::error::{CallError, ConnectionError};
use crate::producer::ProducerConfig;
use crate::queue::{
    Confirmed, Message, Numbering, Outgoing, Peeked, QueueConsumerConfig, QueueConsumerMachine, QueueError, QueueMap, Redriven, ReplyTo,
    RequestError, RequestId, RequesterConfig, reply_partition, reply_topic,
};

/// Receives messages of one queue, and settles them.
///
/// It works in the task that calls it: settlements leave with a call that waits ([`QueueConsumer::recv`],
/// [`QueueConsumer::flush`]). Dropping it gives back what isn't settled; dropping a call that waits loses nothing.
pub struct QueueConsumer {
    machine: QueueConsumerMachine,
    driver: Driver,
    patience: Duration,
    pulls: bool,
}

impl fmt::Debug for QueueConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueConsumer").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl QueueConsumer {
    async fn new(client: &Client, machine: QueueConsumerMachine, patience: Duration) -> Result<QueueConsumer, CallError> {
        let pulls = machine.pulls();
        Ok(QueueConsumer { machine, driver: client.driver().await?, patience, pulls })
    }

    pub(super) fn with<R>(&mut self, f: impl FnOnce(&mut QueueConsumerMachine) -> R) -> R {
        f(&mut self.machine)
    }

    pub(super) fn with_settling<R>(&mut self, f: impl FnOnce(&mut QueueConsumerMachine) -> R) -> R {
        f(&mut self.machine)
    }

    /// Does what can be done, and waits for more until then at the latest.
    pub(super) async fn turn(&mut self, until: Instant) -> Result<(), QueueError> {
        let (driver, mut machine) = (&mut self.driver, &mut self.machine);
        poll_fn(|cx| driver.poll(cx, &mut machine, Some(until))).await;
        Ok(())
    }
}

queue_transport!({async} {.await});
