//! Results for people and for programs.

mod html;
mod plot;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, LineStyle, Table, presets};
use serde::{Deserialize, Serialize};

use crate::broker::Place;
use crate::histogram::{Percentiles, Point, Recording, write_hgrm, write_hlog};
use crate::limits::Limits;
use crate::native::Measured;
use crate::{BenchOptions, Format, Mode, Outcome};

pub use plot::percentile_plot;

/// Result of one run, as it is printed with `--format json`. What is unknown is null.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunReport {
    /// `produce`, `consume`, `e2e`, `ping` or `limits`.
    pub mode: String,
    /// Messages acknowledged (consume, e2e: received) within the window.
    pub messages: Option<u64>,
    /// Per second of the window.
    pub messages_per_second: Option<f64>,
    /// Payload bytes per second, in 10⁶.
    pub megabytes_per_second: Option<f64>,
    /// See the README of this crate for what is timed in which mode.
    pub latency_us: Percentiles,
    /// CPU seconds of the broker, kernel time included, per million messages.
    pub broker_cpu_seconds_per_million: Option<f64>,
    /// The same of the load generator.
    pub client_cpu_seconds_per_million: Option<f64>,
    /// Resident size of the broker at the window's end.
    pub broker_rss_bytes: Option<u64>,
    /// Bytes written to the device, zero-fill included, per payload byte, over the whole run.
    pub device_bytes_per_payload_byte: Option<f64>,
    /// Of the topic.
    pub durability: Option<String>,
    /// `uring` or `fallback`.
    pub io: Option<String>,
    /// Everything was as it had to be.
    pub verified: bool,
    /// What was wrong first.
    pub fault: Option<String>,
    /// How many things were wrong.
    pub fault_count: u64,
    /// Payload bytes per message; null = they differ.
    pub size: Option<usize>,
    /// Messages per full batch.
    pub batch: Option<u32>,
    /// Connections.
    pub connections: Option<usize>,
    /// Requests in flight per connection.
    pub in_flight: Option<usize>,
    /// Partitions.
    pub partitions: Option<u32>,
    /// Open loop: messages per second asked for; null = closed loop.
    pub rate: Option<f64>,
    /// Length of the window.
    pub window_seconds: Option<f64>,
    /// CPU seconds of the broker per second of the window.
    pub broker_cores_used: Option<f64>,
    /// The same of the load generator. Near 1, the load is the limit.
    pub client_cores_used: Option<f64>,
    /// Consume: bytes read from the device during the run.
    pub device_bytes_read: Option<u64>,
    /// Consume: what was written meanwhile.
    pub background: Option<Background>,
    /// What the machine can do.
    pub limits: Option<Limits>,
    /// Throughput and p99 over time.
    pub over_time: Vec<Point>,
    /// File system of the broker's data.
    pub filesystem: Option<String>,
    /// Device of the broker's data.
    pub device: Option<String>,
    /// TCP congestion control of the load's sockets.
    pub tcp_congestion: Option<String>,
    /// Release of the kernel.
    pub kernel: String,
    /// When the run began, UTC.
    pub date: String,
    /// Of this harness.
    pub version: String,
    /// As the broker says.
    pub broker_version: Option<String>,
    /// Every latency, for plots and `--out`.
    #[serde(skip)]
    pub recording: Option<Recording>,
    /// When the window opened.
    #[serde(skip)]
    pub opened: Option<SystemTime>,
}

/// Producers beside the consumers that are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Background {
    /// Messages per second asked for.
    pub rate: f64,
    /// Messages per second acknowledged.
    pub messages_per_second: f64,
    /// Messages per batch.
    pub batch: u32,
}

impl RunReport {
    fn about(mode: Mode, place: Option<&Place>, opened: SystemTime) -> RunReport {
        RunReport {
            mode: mode.name().to_owned(),
            filesystem: place.map(|p| p.file_system.clone()),
            device: place.map(|p| p.device.clone()),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            date: utc(opened),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            opened: Some(opened),
            ..RunReport::default()
        }
    }

    /// Of a run against a broker.
    pub(crate) fn of(options: &BenchOptions, measured: &Measured, io: Option<String>, place: Option<&Place>) -> RunReport {
        let seconds = measured.window.as_secs_f64();
        let per_second = |amount: f64| (seconds > 0.0).then(|| round(amount / seconds, 3));
        let per_million = |cpu: Duration| (measured.messages > 0).then(|| round(cpu.as_secs_f64() * 1e6 / measured.messages as f64, 4));
        RunReport {
            messages: Some(measured.messages),
            messages_per_second: per_second(measured.messages as f64),
            megabytes_per_second: per_second(measured.payload_bytes as f64 / 1e6),
            latency_us: Percentiles::of(&measured.recording.total),
            broker_cpu_seconds_per_million: measured.broker_cpu.and_then(per_million),
            client_cpu_seconds_per_million: per_million(measured.client_cpu),
            broker_rss_bytes: measured.broker_rss_bytes,
            durability: Some(options.durability.to_string()),
            io,
            verified: measured.faults.count == 0 && measured.messages > 0,
            fault: measured.faults.first.clone().or_else(|| (measured.messages == 0).then(|| "no message within the window".to_owned())),
            fault_count: measured.faults.count,
            size: options.payload_file.is_none().then_some(options.size),
            connections: Some(options.connections()),
            in_flight: Some(options.in_flight()),
            partitions: Some(options.partitions()),
            rate: options.rate,
            tcp_congestion: options.tcp_congestion.clone().or_else(default_congestion),
            window_seconds: Some(round(seconds, 3)),
            broker_cores_used: measured.broker_cpu.and_then(|cpu| per_second(cpu.as_secs_f64())),
            client_cores_used: per_second(measured.client_cpu.as_secs_f64()),
            over_time: measured.recording.points.clone(),
            recording: Some(measured.recording.clone()),
            ..RunReport::about(options.mode, place, measured.opened)
        }
    }

    /// Of the machine alone.
    pub(crate) fn of_limits(limits: Limits, place: Option<&Place>) -> RunReport {
        RunReport { verified: true, limits: Some(limits), ..RunReport::about(Mode::Limits, place, SystemTime::now()) }
    }

    /// What ran, in a few words.
    pub fn title(&self) -> String {
        let mut title = self.mode.clone();
        if let (Some(size), Some(batch)) = (self.size, self.batch) {
            title += &format!(" {size} B × {batch}");
        }
        if let (Some(connections), Some(in_flight)) = (self.connections, self.in_flight) {
            title += &format!(", {connections} conn × {in_flight}");
        }
        if let Some(rate) = self.rate {
            title += &format!(", open {}/s", thousands(rate));
        }
        if let Some(durability) = self.durability.as_ref().filter(|d| *d != "durable") {
            title += &format!(", {durability}");
        }
        title
    }
}

/// Prints and writes results.
#[derive(Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// As the options say.
    pub fn new(options: &BenchOptions) -> Output {
        Output { format: options.format }
    }

    /// A line on standard output, unless that belongs to a program.
    pub fn line(&mut self, line: &str) {
        if self.format == Format::Human {
            println!("{line}");
        }
    }

    /// Everything at the end.
    pub fn finish(&mut self, outcome: &Outcome, options: &BenchOptions) -> Result<()> {
        match self.format {
            Format::Json => println!("{}", to_json(outcome, options.mode)?),
            Format::Human => print!("{}", to_text(outcome)),
        }
        if let Some(directory) = &options.out {
            write_files(outcome, options.mode, directory).with_context(|| format!("writing results to {}", directory.display()))?;
            self.line(&format!("results written to {}", directory.display()));
        }
        Ok(())
    }
}

/// One object: the run's, or `{"runs": […]}` of a tour.
pub fn to_json(outcome: &Outcome, mode: Mode) -> Result<String> {
    Ok(match (mode, outcome.runs.as_slice()) {
        (Mode::Tour, runs) => serde_json::to_string(&serde_json::json!({ "runs": runs }))?,
        (_, [run]) => serde_json::to_string(run)?,
        (_, runs) => serde_json::to_string(runs)?,
    })
}

/// Tables and plots.
pub fn to_text(outcome: &Outcome) -> String {
    let mut text = String::new();
    if let Some(limits) = outcome.runs.iter().find_map(|r| r.limits.as_ref()) {
        text += &format!("{}\n\n", limits.table());
    }
    let measured: Vec<&RunReport> = outcome.runs.iter().filter(|r| r.messages.is_some()).collect();
    if !measured.is_empty() {
        text += &format!("{}\n", table(&measured));
    }
    let plotted = measured.iter().rev().find(|r| r.rate.is_some()).or(measured.last());
    if let Some((run, recording)) = plotted.and_then(|r| Some((r, r.recording.as_ref()?)))
        && !recording.total.is_empty()
    {
        text += &format!("\nlatency of {}\n{}\n", run.title(), percentile_plot(&recording.total));
    }
    if let Some(run) = outcome.runs.first() {
        let unknown = || "unknown".to_owned();
        let place = format!("{} on {}", run.filesystem.clone().unwrap_or_else(unknown), run.device.clone().unwrap_or_else(unknown));
        let io = outcome.runs.iter().find_map(|r| r.io.clone()).unwrap_or_else(unknown);
        text += &format!("{} · kernel {} · {place} · io {io}\n", run.date, run.kernel);
    }
    for run in &measured {
        if let Some(background) = run.background {
            text += &format!(
                "meanwhile {}/s were written ({}/s asked for)\n",
                thousands(background.messages_per_second),
                thousands(background.rate)
            );
        }
        if !run.verified {
            let fault = run.fault.clone().unwrap_or_default();
            text += &format!("NOT VERIFIED: {}: {fault} ({} faults)\n", run.title(), run.fault_count);
        }
    }
    text
}

/// One row per run.
fn table(runs: &[&RunReport]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header([
        "run",
        "msgs/s",
        "MB/s",
        "p50 µs",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "broker s/M",
        "client s/M",
        "RSS MiB",
        "dev/B",
    ]);
    let number = |value: Option<f64>, digits: usize| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"));
    for run in runs {
        let latency = &run.latency_us;
        let mut row =
            vec![run.title(), run.messages_per_second.map_or_else(|| "–".to_owned(), thousands), number(run.megabytes_per_second, 1)];
        row.extend(
            [latency.p50, latency.p90, latency.p99, latency.p999, latency.p9999, latency.max]
                .map(|v| number(v, if v.is_some_and(|v| v < 100.0) { 1 } else { 0 })),
        );
        row.extend([number(run.broker_cpu_seconds_per_million, 3), number(run.client_cpu_seconds_per_million, 3)]);
        row.push(number(run.broker_rss_bytes.map(|b| b as f64 / f64::from(1 << 20)), 0));
        row.push(number(run.device_bytes_per_payload_byte, 2));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// One line for a run that has just ended.
pub fn one_line(run: &RunReport) -> String {
    let us = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.0}"));
    format!(
        "{:<46} {:>12} msgs/s {:>8.1} MB/s   p50 {:>6} µs  p99 {:>6} µs  p99.9 {:>6} µs{}",
        run.title(),
        run.messages_per_second.map_or_else(|| "–".to_owned(), thousands),
        run.megabytes_per_second.unwrap_or_default(),
        us(run.latency_us.p50),
        us(run.latency_us.p99),
        us(run.latency_us.p999),
        if run.verified { "" } else { "  NOT VERIFIED" },
    )
}

/// JSON, one histogram file and interval log per run, one page.
fn write_files(outcome: &Outcome, mode: Mode, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("result.json"), to_json(outcome, mode)? + "\n")?;
    for (index, run) in outcome.runs.iter().enumerate() {
        let Some(recording) = &run.recording else { continue };
        let name = if outcome.runs.len() == 1 { run.mode.clone() } else { format!("{index:02}-{}", run.mode) };
        write_hgrm(&recording.total, &mut fs::File::create(directory.join(format!("{name}.hgrm")))?)?;
        let started = run.opened.unwrap_or(SystemTime::UNIX_EPOCH);
        write_hlog(recording, started, &run.title(), &mut fs::File::create(directory.join(format!("{name}.hlog")))?)?;
    }
    fs::write(directory.join("report.html"), html::page(outcome)?)?;
    Ok(())
}

fn default_congestion() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").ok()?.trim().to_owned())
}

/// `1234567.8` → `1,234,568`.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// `2026-11-21T10:30:00Z`. The calendar repeats every 400 years of 146,097 days; a year is counted from
/// March, so that the leap day is its last.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Days since 0000-03-01.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_257_000, "2026-11-21T10:30:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0.0, 999.4, 1_000.0, 1_234_567.8, -1_234.0].map(thousands), ["0", "999", "1,000", "1,234,568", "-1,234"]);
    }

    #[test]
    fn json_has_the_promised_keys() {
        let run = RunReport { mode: "produce".into(), ..RunReport::default() };
        let json: serde_json::Value = serde_json::from_str(&to_json(&Outcome { runs: vec![run] }, Mode::Produce).unwrap()).unwrap();
        for key in [
            "mode",
            "messages",
            "messages_per_second",
            "megabytes_per_second",
            "broker_cpu_seconds_per_million",
            "client_cpu_seconds_per_million",
            "broker_rss_bytes",
            "device_bytes_per_payload_byte",
            "durability",
            "io",
            "verified",
        ] {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
        for key in ["p50", "p90", "p99", "p999", "p9999", "max"] {
            assert!(json["latency_us"].get(key).is_some_and(serde_json::Value::is_null), "{key}");
        }
    }
}
