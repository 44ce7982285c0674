#![doc = include_str!("README.md")]

pub mod admin;
pub mod config;
#[allow(unsafe_code)]
pub mod device;
pub mod frontend;
pub mod log;
pub mod net;
pub mod request;
pub mod router;
pub mod server;
pub mod shard;
pub mod simulation;
