//! Everything here runs the real program: started as a child, driven through its sockets and its command line,
//! killed with -9, and started again; except `simulation`, which runs the log alone. One binary, so that it links once.

mod cli;
mod crash;
mod fuzz_corpus;
mod harness;
mod kafka;
mod limits;
mod native;
mod roundtrip;
mod simulation;
mod sink;
mod tidy;
