//! Kafka's protocol.

pub mod decode;
