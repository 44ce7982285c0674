//! Snapshots as OpenMetrics text.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Sources;
use crate::device::janitor::JanitorStats;
use crate::net::core::{Histogram, ShardSnapshot, Snapshot};
use crate::router::Broker;

/// Everything, as of now.
pub(super) fn encode(sources: &Sources) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringmain");
    registry.register_collector(Box::new(Scrape::new(sources)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// What one scrape found.
#[derive(Debug)]
struct Scrape {
    cores: Vec<(usize, Snapshot)>,
    cores_silent: usize,
    janitor: JanitorStats,
    io: &'static str,
    uptime_seconds: u64,
    memory_limit_bytes: u64,
    memory_used_bytes: u64,
}

impl Scrape {
    fn new(sources: &Sources) -> Scrape {
        let snapshots = sources.snapshots();
        let broker: &Broker = &sources.broker;
        Scrape {
            cores_silent: snapshots.iter().filter(|snapshot| snapshot.is_none()).count(),
            cores: snapshots.into_iter().enumerate().filter_map(|(core, snapshot)| Some((core, snapshot?))).collect(),
            janitor: sources.janitor.stats(),
            io: broker.io,
            uptime_seconds: broker.started.elapsed().as_secs(),
            memory_limit_bytes: broker.memory_limit_bytes,
            memory_used_bytes: broker.gauges.iter().map(|gauges| gauges.memory_used_bytes.load(Ordering::Relaxed)).sum(),
        }
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let out = &mut Writer(&mut encoder);
        let cores = &self.cores;

        out.single("uptime_seconds", "Seconds since start", MetricType::Gauge, self.uptime_seconds)?;
        out.single("io_uring", "1 = io_uring, 0 = the fallback", MetricType::Gauge, u64::from(self.io == "uring"))?;
        out.single("memory_limit_bytes", "The memory budget", MetricType::Gauge, self.memory_limit_bytes)?;
        out.single("memory_used_bytes", "Bytes charged to the memory budget", MetricType::Gauge, self.memory_used_bytes)?;
        out.single("cores_silent", "Core threads that did not answer in time", MetricType::Gauge, self.cores_silent as u64)?;
        out.single(
            "zero_filled_bytes",
            "Zeros written into segment files ahead of use",
            MetricType::Counter,
            self.janitor.zero_filled_bytes,
        )?;
        out.single("pool_files", "Segment files in the pool", MetricType::Gauge, self.janitor.free_files)?;
        out.single("pool_bytes", "Bytes of the segment files in the pool", MetricType::Gauge, self.janitor.free_file_bytes)?;
        out.single(
            "disk_full",
            "Requests for a segment file refused because the disk was full",
            MetricType::Counter,
            self.janitor.disk_full,
        )?;

        // Every core knows all topics.
        let uncompacted = cores.first().into_iter().flat_map(|(_, core)| &core.topics_not_compacted);
        let uncompacted = uncompacted.map(|name| (name.to_string(), 1));
        out.family("topic_not_compacted", "Topics to be compacted that keep every record", MetricType::Gauge, "topic", uncompacted)?;

        out.cores(cores, "connections", "Open connections", MetricType::Gauge, |core| core.connections)?;
        out.cores(cores, "connections_paused", "Connections not read at the moment", MetricType::Gauge, |core| core.paused)?;
        out.cores(cores, "connections_opened", "Connections opened", MetricType::Counter, |core| core.counters.opened)?;
        out.cores(cores, "connections_closed", "Connections closed", MetricType::Counter, |core| core.counters.closed)?;
        out.cores(cores, "connections_broken", "Connections closed because they broke the protocol", MetricType::Counter, |core| {
            core.counters.broken
        })?;
        out.cores(cores, "connections_stuck", "Connections closed because they did not move", MetricType::Counter, |core| {
            core.counters.stuck
        })?;
        out.cores(cores, "connection_bytes", "Memory charged for connections", MetricType::Gauge, |core| core.connection_bytes)?;
        out.cores(cores, "connection_limit_bytes", "Memory there is for connections", MetricType::Gauge, |core| {
            core.connection_limit_bytes
        })?;
        out.cores(cores, "arena_bytes", "Memory of chunks, tail caches and blocks read", MetricType::Gauge, |core| core.arena_bytes)?;
        out.cores(cores, "arena_limit_bytes", "Memory there is for them", MetricType::Gauge, |core| core.arena_limit_bytes)?;
        out.cores(cores, "requests", "Requests received", MetricType::Counter, |core| core.counters.requests)?;
        out.cores(cores, "received_bytes", "Bytes received from peers", MetricType::Counter, |core| core.counters.bytes_in)?;
        out.cores(cores, "sent_bytes", "Bytes sent to peers", MetricType::Counter, |core| core.counters.bytes_out)?;
        out.cores(cores, "reads", "Socket reads that brought something", MetricType::Counter, |core| core.counters.reads)?;
        out.cores(cores, "sends", "Socket sends that took something", MetricType::Counter, |core| core.counters.sends)?;
        out.cores(cores, "sends_blocked", "Socket sends that found the socket full", MetricType::Counter, |core| {
            core.counters.sends_blocked
        })?;
        out.cores(cores, "sends_cold", "Extents read from the device again because their reader was slow", MetricType::Counter, |core| {
            core.counters.sends_cold
        })?;
        let given_up = "Times that what was read for a slow reader was given up because other reads waited for memory";
        out.cores(cores, "sends_given_up", given_up, MetricType::Counter, |core| core.counters.given_up)?;
        out.cores(cores, "paused_busy", "Reads put off because a shard or mailbox was busy", MetricType::Counter, |core| {
            core.counters.paused_busy
        })?;
        out.cores(cores, "paused_full", "Reads put off because of unanswered requests or unsent answers", MetricType::Counter, |core| {
            core.counters.paused_full
        })?;
        out.cores(cores, "paused_memory", "Reads put off because memory was short", MetricType::Counter, |core| {
            core.counters.paused_memory
        })?;
        out.cores(cores, "turns", "Turns of the core's loop", MetricType::Counter, |core| core.counters.turns)?;
        out.cores(cores, "step_longest_us", "Longest time without giving others a chance", MetricType::Gauge, |core| {
            core.counters.step_longest_us
        })?;
        out.cores(cores, "ring_depth", "Operations at the disk", MetricType::Gauge, |core| core.disk_in_flight)?;
        out.cores(cores, "mail_unanswered", "Questions to other cores without an answer", MetricType::Gauge, |core| core.mail_unanswered)?;
        out.cores(cores, "mail_waiting", "Letters of other cores not taken yet", MetricType::Gauge, |core| core.mail_waiting)?;
        out.core_histograms(cores, "receive_us", "Time to read and hand on what a connection brought", |core| &core.counters.receive)?;
        out.core_histograms(cores, "turn_us", "Time of a turn: mailboxes, disk, shards, replies, sends", |core| &core.counters.turn)?;

        out.shards(cores, "records_in", "Records appended", MetricType::Counter, |shard| shard.counters.records_in)?;
        out.shards(cores, "bytes_in", "Bytes of frames appended", MetricType::Counter, |shard| shard.counters.bytes_in)?;
        out.shards(cores, "bytes_out", "Bytes of frames in fetch replies", MetricType::Counter, |shard| shard.counters.bytes_out)?;
        out.shards(cores, "fetches", "Fetch replies with frames", MetricType::Counter, |shard| shard.counters.fetches)?;
        out.shards(cores, "fetches_cold", "Fetch replies that needed the device", MetricType::Counter, |shard| {
            shard.counters.fetches_cold
        })?;
        out.shards(cores, "failures", "Requests answered with an error", MetricType::Counter, |shard| shard.counters.failures)?;
        out.shards(cores, "duplicates", "Duplicate batches recognised", MetricType::Counter, |shard| shard.counters.duplicates)?;
        out.shards(cores, "busy", "Requests turned away for later", MetricType::Counter, |shard| shard.counters.busy)?;
        out.shards(cores, "waiting_fetches", "Fetches waiting", MetricType::Gauge, |shard| shard.counters.waiting_fetches)?;
        out.shards(cores, "waiting_acks", "Produce requests waiting for their acknowledgement", MetricType::Gauge, |shard| {
            shard.counters.waiting_acks
        })?;
        out.shards(cores, "queue_cursors", "Queues, one per partition of each", MetricType::Gauge, |shard| shard.counters.queue_cursors)?;
        out.shards(cores, "queue_entries", "Messages that queues remember one by one", MetricType::Gauge, |shard| {
            shard.counters.queue_entries
        })?;
        out.shards(cores, "message_ids", "Message ids remembered", MetricType::Gauge, |shard| shard.counters.message_ids)?;
        out.shards(cores, "waiting_receives", "Receives waiting for messages", MetricType::Gauge, |shard| shard.counters.waiting_receives)?;
        out.shards(cores, "messages_delivered", "Messages delivered by queues", MetricType::Counter, |shard| {
            shard.counters.messages_delivered
        })?;
        out.shards(cores, "messages_settled", "Messages settled by consumers", MetricType::Counter, |shard| {
            shard.counters.messages_settled
        })?;
        out.shards(cores, "fenced", "1 = refuses writes since a device error", MetricType::Gauge, |shard| u64::from(shard.is_fenced))?;
        out.shards(cores, "commits", "Commit groups written and flushed", MetricType::Counter, |shard| shard.log.commits)?;
        out.shards(cores, "commit_bytes", "Bytes of commit groups, padding included", MetricType::Counter, |shard| shard.log.commit_bytes)?;
        out.shards(cores, "device_written_bytes", "Bytes written to the device", MetricType::Counter, |shard| shard.log.bytes_written)?;
        out.shards(cores, "device_read_bytes", "Bytes read from the device", MetricType::Counter, |shard| shard.log.bytes_read)?;
        out.shards(cores, "segments_rolled", "Segments opened for appending", MetricType::Counter, |shard| shard.log.segments_rolled)?;
        out.shards(cores, "segments_released", "Segments given back to the pool", MetricType::Counter, |shard| {
            shard.log.segments_released
        })?;
        out.shards(cores, "segments_cleaned", "Segments the cleaner has rewritten", MetricType::Counter, |shard| {
            shard.log.segments_cleaned
        })?;
        out.shards(cores, "cleaned_bytes", "Bytes the cleaner has copied", MetricType::Counter, |shard| shard.log.bytes_cleaned)?;
        out.shards(cores, "dead_bytes", "Bytes that all queues have settled and that wait to be freed", MetricType::Gauge, |shard| {
            shard.dead_bytes
        })?;
        out.shards(cores, "dropped_bytes", "Bytes freed from between records that stay", MetricType::Counter, |shard| {
            shard.log.bytes_dropped
        })?;
        out.shards(cores, "corrupt_frames", "Stored frames found damaged on reading", MetricType::Counter, |shard| {
            shard.log.corrupt_frames
        })?;
        out.commit_times(cores)
    }
}

struct Writer<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Writer<'_, '_> {
    fn single(&mut self, name: &str, help: &str, kind: MetricType, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        match kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => metric.encode_gauge(&gauge(value)),
        }
    }

    fn cores(
        &mut self,
        cores: &[(usize, Snapshot)],
        name: &str,
        help: &str,
        kind: MetricType,
        value: impl Fn(&Snapshot) -> u64,
    ) -> fmt::Result {
        self.family(name, help, kind, "core", cores.iter().map(|(core, snapshot)| (core.to_string(), value(snapshot))))
    }

    fn shards(
        &mut self,
        cores: &[(usize, Snapshot)],
        name: &str,
        help: &str,
        kind: MetricType,
        value: impl Fn(&ShardSnapshot) -> u64,
    ) -> fmt::Result {
        let shards = cores.iter().flat_map(|(_, core)| &core.shards);
        self.family(name, help, kind, "shard", shards.map(|shard| (shard.shard.to_string(), value(shard))))
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        label: &str,
        values: impl Iterator<Item = (String, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (of, value) in values {
            let labels = [(label, of.as_str())];
            let mut metric = metric.encode_family(&labels)?;
            match kind {
                MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => metric.encode_gauge(&gauge(value))?,
            }
        }
        Ok(())
    }

    fn core_histograms(
        &mut self,
        cores: &[(usize, Snapshot)],
        name: &str,
        help: &str,
        histogram: impl Fn(&Snapshot) -> &Histogram,
    ) -> fmt::Result {
        let histograms = cores.iter().map(|(core, snapshot)| {
            let histogram = histogram(snapshot);
            (core.to_string(), histogram.sum_us, &histogram.buckets[..])
        });
        self.histograms(name, help, "core", histograms)
    }

    fn commit_times(&mut self, cores: &[(usize, Snapshot)]) -> fmt::Result {
        let shards = cores.iter().flat_map(|(_, core)| &core.shards);
        let histograms = shards.map(|shard| (shard.shard.to_string(), shard.log.commit_us, &shard.log.commit_us_buckets[..]));
        self.histograms("commit_us", "Time of a commit group from submission to completion", "shard", histograms)
    }

    /// Buckets by powers of two, the last without a bound.
    fn histograms<'s>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        histograms: impl Iterator<Item = (String, u64, &'s [u64])>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (of, sum, counts) in histograms {
            let last = counts.len() - 1;
            let bound = |bucket: usize| if bucket == last { f64::INFINITY } else { (1u64 << bucket) as f64 };
            let buckets: Vec<(f64, u64)> = counts.iter().enumerate().map(|(bucket, count)| (bound(bucket), *count)).collect();
            let labels = [(label, of.as_str())];
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum as f64, counts.iter().sum(), &buckets, None)?;
        }
        Ok(())
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
