//! Ringmain's broker as a library; `src/README.md` is its architecture page.

pub mod config;
#[allow(unsafe_code)]
pub mod device;
pub mod frontend;
pub mod log;
pub mod request;
pub mod shard;
