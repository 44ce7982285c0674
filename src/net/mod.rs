//! Sockets: one core thread's loop, its connections and its doors.
//!
//! | file | what it holds |
//! |---|---|
//! | `runtime` | the async runtime behind a seam: tasks, timers, readiness |
//! | `core` | the loop: who works when, and the connections' fates |
//! | `connection` | reading and sending of one connection, without tasks |
//! | `listener` | doors |

pub mod connection;
pub mod core;
pub mod listener;
pub mod runtime;

#[cfg(test)]
mod tests;
