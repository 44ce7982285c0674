//! What one frame costs in the log, the device left out: append, group checksum, index, group commit.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringmain::device::sim::{SimDisk, SimOptions};
use ringmain::device::{Arena, Disk, Volume};
use ringmain::log::{Append, AppendError, Log, LogConfig, Replay};
use ringmain::request::Now;
use ringmain_wire::control::Durability;
use ringmain_wire::frame::Identity;
use ringmain_wire::{Frame, FrameHeader, Offset, PartitionId, RecordBatchBuilder, ShardId};

struct Nothing;

impl Replay for Nothing {
    fn frame(&mut self, _header: &FrameHeader, _largest_timestamp_ms: i64, _body: &[u8]) {}
}

fn append(c: &mut Criterion) {
    for (records, partitions) in [(1, 1), (1, 16), (100, 1)] {
        let mut builder = RecordBatchBuilder::new();
        for i in 0..records {
            builder.push(i64::from(i), None, Some(&[7; 100]), b"");
        }
        let bytes = builder.finish(Identity::plain(PartitionId(1))).to_vec();
        let mut disk = SimDisk::new(1, SimOptions { completion: 1_000_000, ..SimOptions::default() });
        let mut now = Now { monotonic_us: 1, wall_ms: 1 };
        let config = LogConfig { entropy: 1, ..LogConfig::new(ShardId(0), 64 << 20, 64 << 20) };
        let files = disk.list().unwrap_or_default();
        let opened = Log::open(config, Arena::new(128 << 20), &mut disk, &files, &mut Nothing, now);
        let mut log = opened.unwrap_or_else(|error| panic!("{error}")).log;
        let (mut sequence, mut ends, mut completions) = (0u64, [0u64; 17], Vec::new());
        let mut group = c.benchmark_group("log append");
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{records} records, {partitions} partitions"), |b| {
            b.iter(|| {
                sequence += 1;
                let partition = 1 + (sequence % partitions) as u32;
                let end = &mut ends[partition as usize];
                loop {
                    let append = Append {
                        frame: Frame::parse(&bytes).unwrap(),
                        partition: PartitionId(partition),
                        base_offset: Offset(*end),
                        record_count: records,
                        largest_timestamp_ms: 5,
                        append_time_ms: now.wall_ms,
                        durability: Durability::Durable,
                    };
                    match log.append(append) {
                        Ok(_) => break,
                        Err(AppendError::Busy) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                    log.truncate_before(PartitionId(partition), Offset(end.saturating_sub(100_000)));
                    now.monotonic_us += 100;
                    log.pump(now);
                    while let Some((token, operation)) = log.poll_operation() {
                        disk.submit(token, operation);
                    }
                    disk.kick();
                    disk.poll(&mut completions);
                    for completion in completions.drain(..) {
                        log.complete(completion, now);
                    }
                    while let Some(event) = log.poll_event() {
                        if matches!(event, ringmain::log::LogEvent::Rolled { .. }) {
                            let _ = log.checkpoint_begin(now).and_then(|_| log.checkpoint_end(now));
                        }
                    }
                }
                *end += u64::from(records);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
