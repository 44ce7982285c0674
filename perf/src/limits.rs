//! What this machine can do at best, without a broker: the figures every other figure is held against.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use core_affinity::CoreId;
use hdrhistogram::Histogram;
use rustix::fs::OFlags;
use rustix::io::{ReadWriteFlags, pread, pwrite, pwritev2};
use serde::{Deserialize, Serialize};

use crate::BenchOptions;
use crate::broker::{DataDirectory, Place};
use crate::histogram::empty;
use crate::scenario::{pin, split_cores};
use crate::workload::Random;

/// Of the measurements together, unless the options give a duration.
const DURATION: Duration = Duration::from_secs(2);
/// Parts that the time is dealt to.
const PARTS: u32 = 6;
/// Alignment that O_DIRECT asks for at most.
const BLOCK_BYTES: usize = 4096;
/// One write of a log at full speed.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks of the file that is written and read over and over.
const FILE_CHUNKS: u64 = 64;
/// Chunks under way at once.
const DEVICE_THREADS: u64 = 4;
/// A single-message request and its reply, as the native protocol has them.
const REQUEST_BYTES: usize = 224;
const REPLY_BYTES: usize = 40;
/// More than the caches hold.
const COPY_BYTES: usize = 64 << 20;
/// A batch of 1,000 messages of 100 bytes.
const BATCH_BYTES: usize = 128 << 10;

/// The limits. Null = this file system can't be asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Median of a 4 KiB O_DIRECT write that is on stable media when it returns, over written blocks, in µs.
    pub device_flush_p50_us: Option<f64>,
    /// Its 99th percentile.
    pub device_flush_p99_us: Option<f64>,
    /// O_DIRECT writes of 1 MiB, four under way, 10⁶ bytes per second.
    pub device_write_megabytes_per_second: Option<f64>,
    /// The same, reading.
    pub device_read_megabytes_per_second: Option<f64>,
    /// Median of 224 bytes there and 40 back over loopback TCP, blocking sockets, one core each, in µs.
    pub tcp_echo_p50_us: f64,
    /// Its 99th percentile.
    pub tcp_echo_p99_us: f64,
    /// Copying 64 MiB on one core, 10⁹ bytes per second.
    pub memcpy_gigabytes_per_second: f64,
    /// CRC32C of 128 KiB on one core, 10⁹ bytes per second.
    pub crc_gigabytes_per_second: f64,
}

impl Limits {
    /// Name and value, for people.
    pub fn rows(&self) -> Vec<(String, String)> {
        let us = |p50: Option<f64>, p99: Option<f64>| match (p50, p99) {
            (Some(p50), Some(p99)) => format!("{p50:.1} µs (p99 {p99:.1})"),
            _ => "unknown".into(),
        };
        let rate = |value: Option<f64>| value.map_or_else(|| "unknown".into(), |v| format!("{v:.0} MB/s"));
        [
            ("device: 4 KiB write and flush", us(self.device_flush_p50_us, self.device_flush_p99_us)),
            ("device: write, 4 × 1 MiB", rate(self.device_write_megabytes_per_second)),
            ("device: read, 4 × 1 MiB", rate(self.device_read_megabytes_per_second)),
            ("TCP echo, loopback", us(Some(self.tcp_echo_p50_us), Some(self.tcp_echo_p99_us))),
            ("memcpy, one core", format!("{:.1} GB/s", self.memcpy_gigabytes_per_second)),
            ("CRC32C, one core", format!("{:.1} GB/s", self.crc_gigabytes_per_second)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// The rows as a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["limit of this machine", "measured"]);
        for (name, value) in self.rows() {
            table.add_row([name, value]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Measures all of them, where the broker's data would be and on the cores that it and the load would use.
pub fn measure(options: &BenchOptions) -> Result<(Limits, Option<Place>)> {
    let part = options.duration.unwrap_or(DURATION) / PARTS;
    let directory = DataDirectory::create(options.directory.as_deref())?;
    let place = Place::of(&directory.path);
    let (broker, client) = split_cores(options, &core_affinity::get_core_ids().unwrap_or_default());
    let broker = broker.split(',').next().and_then(|id| id.parse().ok()).map(|id| CoreId { id });
    pin(client);
    let (flush, write, read) = device(&directory.path.join("device"), part)?;
    let echo = tcp_echo(part, || pin(broker))?;
    let micros = |histogram: &Histogram<u64>, quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let limits = Limits {
        device_flush_p50_us: flush.as_ref().map(|h| micros(h, 0.5)),
        device_flush_p99_us: flush.as_ref().map(|h| micros(h, 0.99)),
        device_write_megabytes_per_second: write,
        device_read_megabytes_per_second: read,
        tcp_echo_p50_us: micros(&echo, 0.5),
        tcp_echo_p99_us: micros(&echo, 0.99),
        memcpy_gigabytes_per_second: memcpy(part),
        crc_gigabytes_per_second: crc(part),
    };
    Ok((limits, place))
}

/// A buffer whose useful part begins at a block's boundary, as O_DIRECT wants it.
struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> AlignedBuffer {
        let mut bytes = vec![0; len + BLOCK_BYTES];
        Random::new(len as u64).fill(&mut bytes);
        // The vector never grows, so this stays true.
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        AlignedBuffer { bytes, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

type Device = (Option<Histogram<u64>>, Option<f64>, Option<f64>);

/// Flush latency, write and read bandwidth; nothing where O_DIRECT is refused.
fn device(path: &Path, part: Duration) -> Result<Device> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).create(true).custom_flags(OFlags::DIRECT.bits() as i32);
    let Ok(file) = open.open(path) else { return Ok((None, None, None)) };
    let chunk = AlignedBuffer::new(CHUNK_BYTES);
    // First writes allocate; only overwriting is what a log does that recycles its segments.
    for index in 0..FILE_CHUNKS {
        if pwrite(&file, chunk.bytes(), index * CHUNK_BYTES as u64).is_err() {
            return Ok((None, None, None));
        }
    }
    file.sync_all()?;
    let block = AlignedBuffer::new(BLOCK_BYTES);
    let mut flush = empty();
    let (begun, mut at) = (Instant::now(), 0_u64);
    while begun.elapsed() < part || flush.is_empty() {
        let start = Instant::now();
        pwritev2(&file, &[IoSlice::new(block.bytes())], at, ReadWriteFlags::DSYNC).context("writing and flushing a block")?;
        flush.saturating_record(start.elapsed().as_nanos() as u64);
        at = (at + BLOCK_BYTES as u64) % (FILE_CHUNKS * CHUNK_BYTES as u64);
    }
    let write = bandwidth(&file, part, |file, buffer, at| pwrite(file, buffer.bytes(), at))?;
    let read = bandwidth(&file, part, |file, buffer, at| pread(file, buffer.bytes_mut(), at))?;
    Ok((Some(flush), Some(write), Some(read)))
}

/// 10⁶ bytes per second of `step` on chunk after chunk.
fn bandwidth(
    file: &File,
    part: Duration,
    step: impl Fn(&File, &mut AlignedBuffer, u64) -> rustix::io::Result<usize> + Sync,
) -> Result<f64> {
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    let bytes: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..DEVICE_THREADS)
            .map(|_| {
                scope.spawn(|| -> Result<u64> {
                    let mut buffer = AlignedBuffer::new(CHUNK_BYTES);
                    let mut bytes = 0;
                    while begun.elapsed() < part || bytes == 0 {
                        let at = next.fetch_add(1, Ordering::Relaxed) % FILE_CHUNKS * CHUNK_BYTES as u64;
                        bytes += step(file, &mut buffer, at).context("the device's bandwidth")? as u64;
                    }
                    Ok(bytes)
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or(Ok(0))).sum::<Result<u64>>()
    })?;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

/// Latencies of a request and its reply between two threads, the other one prepared by `on_server`.
fn tcp_echo(part: Duration, on_server: impl FnOnce() + Send) -> Result<Histogram<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    stream.set_nodelay(true)?;
    let (mut served, _) = listener.accept()?;
    served.set_nodelay(true)?;
    let mut latencies = empty();
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(move || {
            on_server();
            let (mut request, reply) = ([0; REQUEST_BYTES], [0; REPLY_BYTES]);
            while served.read_exact(&mut request).is_ok() && served.write_all(&reply).is_ok() {}
        });
        let (request, mut reply) = ([0; REQUEST_BYTES], [0; REPLY_BYTES]);
        let begun = Instant::now();
        while begun.elapsed() < part || latencies.is_empty() {
            let start = Instant::now();
            stream.write_all(&request)?;
            stream.read_exact(&mut reply)?;
            latencies.saturating_record(start.elapsed().as_nanos() as u64);
        }
        // The other thread ends when it reads the end.
        drop(stream);
        Ok(())
    })?;
    Ok(latencies)
}

fn memcpy(part: Duration) -> f64 {
    let (source, mut target) = (vec![1_u8; COPY_BYTES], vec![0_u8; COPY_BYTES]);
    repeat(part, COPY_BYTES, || {
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
    })
}

fn crc(part: Duration) -> f64 {
    let batch = vec![1_u8; BATCH_BYTES];
    repeat(part, BATCH_BYTES, || {
        std::hint::black_box(crc32c::crc32c(std::hint::black_box(&batch)));
    })
}

/// 10⁹ bytes per second of `step`, which handles `bytes`.
fn repeat(part: Duration, bytes: usize, mut step: impl FnMut()) -> f64 {
    let (begun, mut times) = (Instant::now(), 0_u64);
    while begun.elapsed() < part || times == 0 {
        step();
        times += 1;
    }
    times as f64 * bytes as f64 / begun.elapsed().as_secs_f64() / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_measured_and_plausible() {
        if let Err(error) = DataDirectory::create(Some(Path::new("."))) {
            eprintln!("no limits here: {error:#}");
            return;
        }
        let options = BenchOptions { duration: Some(Duration::from_millis(60)), directory: Some(".".into()), ..BenchOptions::default() };
        let (limits, place) = measure(&options).unwrap();
        assert!(
            limits.tcp_echo_p50_us > 1.0 && limits.memcpy_gigabytes_per_second > 0.1 && limits.crc_gigabytes_per_second > 0.1,
            "{limits:?}"
        );
        assert!(place.is_some() && limits.device_flush_p50_us.is_none_or(|us| us > 1.0), "{limits:?}");
        assert_eq!(limits.rows().len(), 6);
    }
}
