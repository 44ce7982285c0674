//! Everything here runs the real program: started as a child, driven through its sockets and its command line,
//! killed with -9, and started again; except `simulation`, which runs the log alone. One binary, so that it links once.

// Every example is a program of its own, with a copy of what they share.
#![allow(clippy::duplicate_mod)]

mod cli;
mod crash;
mod examples;
mod fuzz_corpus;
mod harness;
mod kafka;
mod limits;
mod native;
mod queue;
mod queue_memory;
mod roundtrip;
mod simulation;
mod sink;
mod stragglers;
mod tidy;
mod transaction;
