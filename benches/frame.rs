//! What one frame costs on its way in: parsing, the producer's checksum, the broker's stamp.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringmain_wire::frame::Identity;
use ringmain_wire::{BrokerHalf, Frame, Offset, PartitionId, RecordBatchBuilder};

fn batch(records: u32, value: &[u8]) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    for i in 0..records {
        builder.push(i64::from(i), None, Some(value), b"");
    }
    builder.finish(Identity::plain(PartitionId(1))).to_vec()
}

fn frame(c: &mut Criterion) {
    for records in [1, 100, 1_000] {
        let bytes = batch(records, &[7; 100]);
        let mut group = c.benchmark_group(format!("frame of {records} × 100 B"));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("parse", |b| b.iter(|| Frame::parse(black_box(&bytes)).map(|f| f.partition())));
        group.bench_function("verify body", |b| b.iter(|| Frame::parse(black_box(&bytes)).and_then(|f| f.verify_body())));
        group.bench_function("build", |b| b.iter_batched(|| (), |()| batch(records, &[7; 100]), BatchSize::SmallInput));
        group.finish();
    }
    c.bench_function("stamp", |b| b.iter(|| BrokerHalf::stamp(black_box(220), Offset(9), 5, 2)));
}

criterion_group!(benches, frame);
criterion_main!(benches);
