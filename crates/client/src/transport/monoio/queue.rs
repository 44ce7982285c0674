//! Queues on monoio. A queue consumer has tasks of its own on the caller's core, like a consumer.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringmain_wire::queue::{
    AlterQueue, CreateQueue, Delayed, QueueAnswer, QueueCall, QueueInfo, QueueList, QueueRequest, QueueState, Verb,
};
use ringmain_wire::{ErrorCode, Op, PartitionId};

use super::super::wall_ms;
use super::{Client, Consumer, Hub, Producer, drive};
use crate::admin::{self, DeleteQueue};
use crate::consumer::{ConsumerConfig, OutOfRange, StartFrom};
use crate::error::{CallError, ConnectionError};
use crate::producer::ProducerConfig;
use crate::queue::{
    Confirmed, Message, Numbering, Outgoing, Peeked, QueueConsumerConfig, QueueConsumerMachine, QueueError, QueueMap, Redriven, ReplyTo,
    RequestError, RequestId, RequesterConfig, reply_partition, reply_topic,
};

/// Receives messages of one queue, and settles them. Its tasks receive and send while the caller works. Dropping it gives back
/// what isn't settled.
pub struct QueueConsumer {
    hub: Rc<Hub<QueueConsumerMachine>>,
    patience: Duration,
    pulls: bool,
}

impl fmt::Debug for QueueConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueConsumer").field("machine", &self.hub.machine.borrow()).finish_non_exhaustive()
    }
}

impl QueueConsumer {
    async fn new(client: &Client, machine: QueueConsumerMachine, patience: Duration) -> Result<QueueConsumer, CallError> {
        let pulls = machine.pulls();
        let hub = Hub::new(machine, client.bootstrap().await?, client.config.connect_timeout);
        ::monoio::spawn(drive(Rc::clone(&hub), |_| {}));
        Ok(QueueConsumer { hub, patience, pulls })
    }

    pub(super) fn with<R>(&mut self, f: impl FnOnce(&mut QueueConsumerMachine) -> R) -> R {
        f(&mut self.hub.machine.borrow_mut())
    }

    /// Likewise, and the task looks whether something is to be sent.
    pub(super) fn with_settling<R>(&mut self, f: impl FnOnce(&mut QueueConsumerMachine) -> R) -> R {
        let result = f(&mut self.hub.machine.borrow_mut());
        self.hub.stirred.raise();
        result
    }

    /// Lets the tasks do what can be done, and waits for more until then at the latest.
    pub(super) async fn turn(&mut self, until: Instant) -> Result<(), QueueError> {
        self.hub.stirred.raise();
        self.hub.wait(until).await;
        Ok(())
    }
}

impl Drop for QueueConsumer {
    fn drop(&mut self) {
        self.hub.stop.set(true);
        self.hub.stirred.raise();
    }
}

queue_transport!({async} {.await});
