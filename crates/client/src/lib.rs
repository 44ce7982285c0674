//! A thin client for the Ringmain message broker.
//!
//! The protocol lives in state machines without sockets or clock ([`session`], [`producer`], [`consumer`],
//! [`queue`], [`transaction`]);
//! a transport joins them to the world: [`transport::blocking`] (the default, re-exported here),
//! `transport::tokio` and `transport::monoio` behind features of those names.
//!
//! ```no_run
//! use std::time::Duration;
//! use ringmain_client::{Client, ConsumerConfig, ProducerConfig, Record};
//! use ringmain_client::wire::control::{CreateTopic, TopicConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7171")?;
//! client.create_topic(&CreateTopic { name: "orders".into(), partition_count: 4, config: TopicConfig::default() })?;
//!
//! let mut producer = client.producer("orders", ProducerConfig::default())?;
//! producer.send(Record { key: Some(b"customer 7"), value: Some(b"one espresso"), ..Record::default() })?;
//! producer.flush()?; // stored on stable media when this returns
//!
//! let mut consumer = client.consumer("orders", ConsumerConfig { name: Some("barista".into()), ..ConsumerConfig::default() })?;
//! while let Some(batch) = consumer.poll(Duration::from_secs(1))? {
//!     for record in batch.records() {
//!         println!("{}/{}: {:?}", record.partition_index, record.offset, record.value);
//!     }
//!     consumer.commit()?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A queue hands messages out one by one, to be settled one by one ([`queue`]):
//!
//! ```no_run
//! use std::time::Duration;
//! use ringmain_client::{Client, Outgoing, ProducerConfig, QueueConsumerConfig};
//! use ringmain_client::wire::control::Durability;
//! use ringmain_client::wire::queue::{CreateQueue, QueueConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7171")?;
//! let config = QueueConfig { priorities: 10, delivery_limit: Some(5), ..QueueConfig::default() };
//! let durability = Durability::Durable;
//! client.create_queue(&CreateQueue { name: "kitchen".into(), topic: "".into(), partition_count: 1, durability, config })?;
//!
//! let mut producer = client.queue_producer("kitchen", ProducerConfig::default())?;
//! producer.send(Outgoing::new(b"one espresso").priority(7).record())?;
//! producer.send(Outgoing::new(b"one cake").delay(Duration::from_secs(60)).record())?;
//! producer.flush()?;
//!
//! let mut consumer = client.queue_consumer("kitchen", QueueConsumerConfig { prefetch: 10, ..QueueConsumerConfig::default() })?;
//! while let Some(message) = consumer.recv(Duration::from_secs(1))? {
//!     match message.value() {
//!         Some(_) => consumer.ack(&message),
//!         None => consumer.reject(&message),
//!     };
//! }
//! consumer.close()?; // what was acknowledged is durable now
//! # Ok(())
//! # }
//! ```
//!
//! **No duplicates, no reordering, no loss.** A producer repeats a batch whose answer was lost with the same
//! sequence, and the broker recognises it, also after a restart. What can't be repeated safely ends the producer with
//! an error that says so ([`error::ProducerEnd`]).
//!
//! **Every buffer has a bound**: records not acknowledged ([`ProducerConfig::buffer_bytes`]), replies fetched ahead
//! ([`ConsumerConfig::fetch_ahead_bytes`]), messages not settled ([`QueueConsumerConfig::prefetch`]), one reply ([`session::SessionConfig::max_reply_bytes`]).

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod admin;
pub mod consumer;
pub mod error;
#[cfg(test)]
mod fake;
pub mod group;
pub mod links;
pub mod producer;
pub mod queue;
pub mod session;
pub mod transaction;
pub mod transport;

pub use admin::{ClientConfig, DEFAULT_PORT};
pub use consumer::{ConsumedRecord, ConsumerConfig, OutOfRange, Position, RecordBatch, StartFrom};
pub use error::{BrokerError, CallError, ConnectionError, ConsumeError, DeliveryError, FlushError, ProducerEnd, SendError, SessionError};
pub use group::GroupConfig;
pub use links::LinkConfig;
pub use producer::{Delivery, ProducerConfig, Receipt, Record, Stored};
pub use queue::{Confirmed, Message, Outgoing, QueueConsumerConfig, QueueError, RequestError, RequesterConfig};
/// The bytes that this client and the broker agree on.
pub use ringmain_wire as wire;
pub use transaction::{TransactionConfig, TransactionError};
#[cfg(feature = "blocking")]
pub use transport::blocking::{
    Client, Consumer, GroupConsumeError, GroupConsumer, Producer, QueueConsumer, Replier, Requester, Transaction, Transactor,
};
