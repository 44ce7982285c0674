//! A shard: partitions, their log, their consumers' offsets; a deterministic state machine fed by its log.
//!
//! Sans-IO: time is an argument, disk operations come out of [`Shard::poll_operation`] and their completions
//! go into [`Shard::complete`], answers come out of [`Shard::poll_reply`].
