//! Two results side by side.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::report::{RunReport, thousands};
use crate::{Format, limits::Limits};

/// A smaller difference than this isn't called better or worse: two runs of the same differ by as much.
const NOISE: f64 = 0.05;

/// One figure of one run in both results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// What ran.
    pub run: String,
    /// Which figure.
    pub figure: &'static str,
    /// In the first result.
    pub a: f64,
    /// In the second.
    pub b: f64,
    /// (b − a) ÷ a.
    pub change: f64,
    /// `better`, `worse` or `same`.
    pub verdict: &'static str,
}

/// `ringmain bench compare A B`: each a JSON file of a bench, or a directory made by `--out`.
pub fn compare(a: &Path, b: &Path, format: Format) -> Result<String> {
    let differences = differences(&read(a)?, &read(b)?);
    match format {
        Format::Json => Ok(serde_json::to_string(&serde_json::json!({ "differences": differences }))?),
        Format::Human => Ok(to_text(&differences)),
    }
}

/// The runs of a result.
fn read(path: &Path) -> Result<Vec<RunReport>> {
    let file = if path.is_dir() { path.join("result.json") } else { path.to_owned() };
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let json: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    let runs = match json.get("runs") {
        Some(runs) => serde_json::from_value(runs.clone()),
        None => serde_json::from_value(json).map(|run| vec![run]),
    };
    runs.with_context(|| format!("{} is no result of a bench", file.display()))
}

/// Runs belong together when they are alike; a single one on either side is compared whatever it is.
fn differences(a: &[RunReport], b: &[RunReport]) -> Vec<Difference> {
    if let ([a], [b]) = (a, b) {
        let run = if a.title() == b.title() { a.title() } else { format!("{} → {}", a.title(), b.title()) };
        return of_run(&run, a, b);
    }
    let alike = |a: &RunReport, b: &RunReport| {
        // The rate of an open loop follows from what was measured before it.
        (&a.mode, a.size, a.batch, a.connections, a.in_flight, &a.durability, a.rate.is_some())
            == (&b.mode, b.size, b.batch, b.connections, b.in_flight, &b.durability, b.rate.is_some())
    };
    a.iter().filter_map(|a| Some((a, b.iter().find(|b| alike(a, b))?))).flat_map(|(a, b)| of_run(&a.title(), a, b)).collect()
}

type Figure<T> = (&'static str, bool, fn(&T) -> Option<f64>);

fn of_run(run: &str, a: &RunReport, b: &RunReport) -> Vec<Difference> {
    // Name, whether more is better, value.
    let figures: [Figure<RunReport>; 9] = [
        ("messages/s", true, |r| r.messages_per_second),
        ("MB/s", true, |r| r.megabytes_per_second),
        ("p50 µs", false, |r| r.latency_us.p50),
        ("p99 µs", false, |r| r.latency_us.p99),
        ("p99.9 µs", false, |r| r.latency_us.p999),
        ("max µs", false, |r| r.latency_us.max),
        ("broker CPU s/M", false, |r| r.broker_cpu_seconds_per_million),
        ("broker RSS MiB", false, |r| r.broker_rss_bytes.map(|b| b as f64 / f64::from(1 << 20))),
        ("device/payload", false, |r| r.device_bytes_per_payload_byte),
    ];
    let limits: [Figure<Limits>; 6] = [
        ("device flush p50 µs", false, |l| l.device_flush_p50_us),
        ("device write MB/s", true, |l| l.device_write_megabytes_per_second),
        ("device read MB/s", true, |l| l.device_read_megabytes_per_second),
        ("TCP echo p50 µs", false, |l| Some(l.tcp_echo_p50_us)),
        ("memcpy GB/s", true, |l| Some(l.memcpy_gigabytes_per_second)),
        ("CRC32C GB/s", true, |l| Some(l.crc_gigabytes_per_second)),
    ];
    let mut found: Vec<Difference> =
        figures.iter().filter_map(|(name, more, value)| difference(run, name, *more, value(a)?, value(b)?)).collect();
    if let (Some(a), Some(b)) = (&a.limits, &b.limits) {
        found.extend(limits.iter().filter_map(|(name, more, value)| difference(run, name, *more, value(a)?, value(b)?)));
    }
    found
}

fn difference(run: &str, figure: &'static str, more_is_better: bool, a: f64, b: f64) -> Option<Difference> {
    if a <= 0.0 {
        return None;
    }
    let change = (b - a) / a;
    let verdict = match change {
        c if c.abs() < NOISE => "same",
        c if (c > 0.0) == more_is_better => "better",
        _ => "worse",
    };
    Some(Difference { run: run.to_owned(), figure, a, b, change, verdict })
}

fn to_text(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "nothing to compare: no run of one result is like a run of the other\n".into();
    }
    let number = |v: f64| if v >= 1_000.0 { thousands(v) } else { format!("{v:.3}") };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["run", "figure", "A", "B", "change", ""]);
    let mut last = "";
    for d in differences {
        let run = if d.run == last { "" } else { &d.run };
        table.add_row([run, d.figure, &number(d.a), &number(d.b), &format!("{:+.1} %", d.change * 100.0), d.verdict]);
        last = &d.run;
    }
    for column in 2..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::to_json;
    use crate::{Mode, Outcome};

    fn run(batch: u32, rate: f64, p99: f64) -> RunReport {
        let mut run = RunReport {
            mode: "produce".into(),
            batch: Some(batch),
            size: Some(100),
            messages_per_second: Some(rate),
            ..RunReport::default()
        };
        run.latency_us.p99 = Some(p99);
        run
    }

    #[test]
    fn runs_that_are_alike_are_compared() {
        let directory = std::env::temp_dir().join(format!("ringmain-perf-compare-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (a, b) = (directory.join("result.json"), directory.join("b.json"));
        fs::write(&a, to_json(&Outcome { runs: vec![run(1, 1e6, 100.0), run(100, 5e6, 200.0)] }, Mode::Tour).unwrap()).unwrap();
        fs::write(&b, to_json(&Outcome { runs: vec![run(100, 5.1e6, 300.0)] }, Mode::Produce).unwrap()).unwrap();
        let found = differences(&read(&directory).unwrap(), &read(&b).unwrap());
        let words: Vec<(&str, &str)> = found.iter().map(|d| (d.figure, d.verdict)).collect();
        assert_eq!(words, [("messages/s", "same"), ("p99 µs", "worse")]);
        let text = compare(&a, &b, Format::Human).unwrap();
        assert!(text.contains("+50.0 %") && text.contains("5,100,000"), "{text}");
        assert!(compare(&a, &directory.join("missing"), Format::Json).unwrap_err().to_string().contains("missing"));
        fs::remove_dir_all(directory).unwrap();
    }
}
