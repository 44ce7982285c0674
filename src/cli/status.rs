//! `ringmain status`: the broker's counters.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use indicatif::{HumanBytes, HumanDuration};
use ringmain_client::wire::control::{Cleanup, ShardStats, StatsReply};
use serde_json::{Value, json};

use super::output::{self, Cell};
use super::{Format, Target};

pub fn run(target: &Target, format: Format) -> Result<ExitCode> {
    let client = target.client()?;
    let stats = client.stats()?;
    let topics = client.metadata(None)?.topics;
    let uncompacted: Vec<&str> =
        topics.iter().filter(|topic| topic.config.cleanup != Cleanup::Delete).map(|topic| topic.name.as_str()).collect();
    match format {
        Format::Json => output::json(&to_json(&stats, &uncompacted))?,
        Format::Text => {
            // Where the table is for programs, this is beside it and not in it.
            eprintln!("{}", headline(&stats));
            output::table(&HEAD, &stats.shards.iter().map(row).collect::<Vec<_>>())?;
            for shard in stats.shards.iter().filter(|shard| !shard.fenced.is_empty()) {
                eprintln!("shard {} refuses writes: {}; free or replace the disk, then restart the broker", shard.shard, shard.fenced);
            }
            if !uncompacted.is_empty() {
                eprintln!("to be compacted, which no broker of this version does, so that every record stays: {}", uncompacted.join(", "));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn headline(stats: &StatsReply) -> String {
    let note = if stats.io_note.is_empty() { String::new() } else { format!(" ({})", stats.io_note) };
    format!(
        "ringmain {}, up {}, I/O by {}{note}\n{} topics, {} partitions, {} connections, {} of {} memory in use",
        stats.broker_version,
        HumanDuration(Duration::from_secs(stats.uptime_seconds)),
        stats.io,
        stats.topics,
        stats.partitions,
        stats.connections,
        HumanBytes(stats.memory_used_bytes),
        HumanBytes(stats.memory_limit_bytes),
    )
}

fn row(shard: &ShardStats) -> Vec<Cell> {
    vec![
        Cell::Count(shard.shard.into()),
        Cell::Count(shard.core.into()),
        Cell::Count(shard.records_in),
        Cell::Bytes(shard.bytes_in),
        Cell::Bytes(shard.bytes_out),
        Cell::Count(shard.commits),
        Cell::Bytes(shard.device_bytes_written),
        Cell::Bytes(shard.device_bytes_read),
        Cell::Count(shard.segments),
        Cell::text(if shard.fenced.is_empty() { "ok" } else { "fenced" }),
    ]
}

fn to_json(stats: &StatsReply, uncompacted: &[&str]) -> Value {
    let shard = |shard: &ShardStats| {
        json!({
            "shard": shard.shard, "core": shard.core,
            "records_in": shard.records_in, "bytes_in": shard.bytes_in, "bytes_out": shard.bytes_out,
            "commits": shard.commits, "segments": shard.segments,
            "device_bytes_written": shard.device_bytes_written, "device_bytes_read": shard.device_bytes_read,
            "fenced": if shard.fenced.is_empty() { Value::Null } else { shard.fenced.as_str().into() },
        })
    };
    json!({
        "broker_version": stats.broker_version, "io": stats.io, "io_note": stats.io_note, "uptime_seconds": stats.uptime_seconds,
        "connections": stats.connections, "topics": stats.topics, "partitions": stats.partitions,
        "memory_used_bytes": stats.memory_used_bytes, "memory_limit_bytes": stats.memory_limit_bytes,
        "topics_not_compacted": uncompacted, "shards": stats.shards.iter().map(shard).collect::<Value>(),
    })
}

const HEAD: [&str; 10] = ["shard", "core", "records_in", "bytes_in", "bytes_out", "commits", "written", "read", "segments", "state"];
