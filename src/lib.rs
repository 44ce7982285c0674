//! Ringmain's broker as a library; `src/README.md` is its architecture page.

#[allow(unsafe_code)]
pub mod device;
pub mod log;
pub mod request;
pub mod simulation;
