//! A thin client for the Ringmain message broker.
//!
//! The protocol lives in state machines without sockets or clock ([`session`], [`producer`], [`consumer`]);
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
//! **No duplicates, no reordering, no loss.** A producer repeats a batch whose answer was lost with the same
//! sequence, and the broker recognises it, also after a restart. What can't be repeated safely ends the producer with
//! an error that says so ([`error::ProducerEnd`]).
//!
//! **Every buffer has a bound**: records not acknowledged ([`ProducerConfig::buffer_bytes`]), replies fetched ahead
//! ([`ConsumerConfig::fetch_ahead_bytes`]), one reply ([`session::SessionConfig::max_reply_bytes`]).

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
pub mod session;
pub mod transport;

pub use admin::{ClientConfig, DEFAULT_PORT};
pub use consumer::{ConsumedRecord, ConsumerConfig, OutOfRange, Position, RecordBatch, StartFrom};
pub use error::{BrokerError, CallError, ConnectionError, ConsumeError, DeliveryError, FlushError, ProducerEnd, SendError, SessionError};
pub use group::GroupConfig;
pub use links::LinkConfig;
pub use producer::{Delivery, ProducerConfig, Receipt, Record, Stored};
/// The bytes that this client and the broker agree on.
pub use ringmain_wire as wire;
#[cfg(feature = "blocking")]
pub use transport::blocking::{Client, Consumer, GroupConsumeError, GroupConsumer, Producer};
