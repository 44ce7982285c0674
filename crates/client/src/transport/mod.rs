//! Joins the state machines to sockets and clocks.
//!
//! | module | feature | threads |
//! |---|---|---|
//! | [`blocking`] | `blocking` (default) | one per producer; consumers and calls use the caller's |
//! | `tokio` | `tokio` | none; one task per producer |
//! | `monoio` | `monoio` | none; local tasks on the caller's core |

use std::fmt;

use crate::error::{CallError, ConsumeError};

#[cfg(any(feature = "tokio", feature = "monoio"))]
#[macro_use]
mod calls;
#[cfg(any(feature = "blocking", feature = "tokio", feature = "monoio"))]
#[macro_use]
mod queues;
#[cfg(any(feature = "blocking", feature = "tokio", feature = "monoio"))]
#[macro_use]
mod transactions;

#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(feature = "monoio")]
pub mod monoio;
#[cfg(feature = "blocking")]
mod sockets;
#[cfg(feature = "tokio")]
pub mod tokio;

/// Why a consumer can't be made.
#[derive(Debug)]
pub enum OpenConsumerError {
    /// The topic couldn't be looked up.
    Call(CallError),
    /// The configuration doesn't fit the topic.
    Consume(ConsumeError),
}

impl fmt::Display for OpenConsumerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenConsumerError::Call(error) => error.fmt(f),
            OpenConsumerError::Consume(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenConsumerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenConsumerError::Call(error) => Some(error),
            OpenConsumerError::Consume(error) => Some(error),
        }
    }
}

impl From<CallError> for OpenConsumerError {
    fn from(error: CallError) -> OpenConsumerError {
        OpenConsumerError::Call(error)
    }
}

/// Milliseconds since the Unix epoch.
#[cfg(any(feature = "blocking", feature = "tokio", feature = "monoio"))]
pub(crate) fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// How a transport reaches its state machine: directly, or behind a lock that isn't held during system calls.
#[cfg(any(feature = "blocking", feature = "tokio"))]
trait Access {
    type Machine: crate::links::Machine;
    fn with<R>(&mut self, f: impl FnOnce(&mut Self::Machine) -> R) -> R;
    /// Whether bytes may be read straight into the machine's buffers.
    const DIRECT: bool;
}

#[cfg(any(feature = "blocking", feature = "tokio"))]
impl<M: crate::links::Machine> Access for &mut M {
    type Machine = M;
    fn with<R>(&mut self, f: impl FnOnce(&mut M) -> R) -> R {
        f(self)
    }
    const DIRECT: bool = true;
}

/// Most bytes read from one connection before the others get their turn.
#[cfg(any(feature = "blocking", feature = "tokio"))]
const READ_BYTES_PER_TURN: usize = 1 << 20;
