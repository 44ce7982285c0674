//! Latencies of one run: a histogram per interval of time, so that a stall shows in the curve over time
//! as well as in the percentiles. Values are nanoseconds; nothing is allocated while recording.

use std::io::Write;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2Serializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::{Deserialize, Serialize};

/// Largest latency told apart; longer ones count as this, in ns.
const LONGEST_NS: u64 = 120_000_000_000;
/// Three significant digits: a value is wrong by at most 0.1 %.
const DIGITS: u8 = 3;
/// Intervals a run is cut into, at most; a longer run puts its rest into the last one.
const INTERVALS: u64 = 64;
/// A shorter interval would hold too few messages for a p99.
const SHORTEST_INTERVAL_NS: u64 = 100_000_000;

/// An empty histogram of the bounds used everywhere in this crate.
pub fn empty() -> Histogram<u64> {
    // The bounds are constants that the histogram accepts: a test makes one.
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).unwrap_or_else(|e| panic!("constant bounds refused: {e}"))
}

/// One interval of a run, for curves over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Start of the interval, in seconds since the window opened.
    pub at_seconds: f64,
    /// Messages per second within it.
    pub messages_per_second: f64,
    /// 99th percentile of the latencies recorded within it, in µs; null = none were.
    pub p99_us: Option<f64>,
}

/// The percentiles of a report, in µs. Null = nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: Option<f64>,
    /// 90 %.
    pub p90: Option<f64>,
    /// 99 %.
    pub p99: Option<f64>,
    /// 99.9 %.
    pub p999: Option<f64>,
    /// 99.99 %.
    pub p9999: Option<f64>,
    /// The longest of all.
    pub max: Option<f64>,
}

impl Percentiles {
    /// Reads them off `histogram`, whose values are ns.
    pub fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |quantile: f64| (!histogram.is_empty()).then(|| round_us(histogram.value_at_quantile(quantile)));
        let max = (!histogram.is_empty()).then(|| round_us(histogram.max()));
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), p9999: at(0.9999), max }
    }
}

/// ns → µs with two decimals: more would only pretend precision.
fn round_us(ns: u64) -> f64 {
    (ns as f64 / 10.0).round() / 100.0
}

/// Takes latencies and message counts while a run goes on.
#[derive(Debug)]
pub struct Recorder {
    current: Histogram<u64>,
    /// Ready-made, so that an interval's end costs a swap.
    spare: Vec<Histogram<u64>>,
    done: Vec<Interval>,
    opened_ns: u64,
    interval_ns: u64,
    interval_end_ns: u64,
    interval_messages: u64,
    /// The replies of one read share their latency: they are recorded together.
    held_value_ns: u64,
    held_count: u64,
}

#[derive(Debug)]
struct Interval {
    messages: u64,
    histogram: Histogram<u64>,
}

impl Recorder {
    /// For a window of about `expected`; a longer one still works.
    pub fn new(expected: Duration) -> Recorder {
        let interval_ns = (expected.as_nanos() as u64 / (INTERVALS - 4)).max(SHORTEST_INTERVAL_NS);
        let spare_count = (expected.as_nanos() as u64 / interval_ns + 2).min(INTERVALS);
        Recorder {
            current: empty(),
            spare: (0..spare_count).map(|_| empty()).collect(),
            done: Vec::with_capacity(INTERVALS as usize),
            opened_ns: 0,
            interval_ns,
            interval_end_ns: u64::MAX,
            interval_messages: 0,
            held_value_ns: 0,
            held_count: 0,
        }
    }

    /// The window opens.
    pub fn open(&mut self, now_ns: u64) {
        self.opened_ns = now_ns;
        self.interval_end_ns = now_ns + self.interval_ns;
    }

    /// Call now and then: ends the interval when its time is over.
    pub fn tick(&mut self, now_ns: u64) {
        while now_ns >= self.interval_end_ns {
            self.settle();
            let Some(fresh) = self.spare.pop() else {
                self.interval_end_ns = u64::MAX;
                return;
            };
            self.interval_end_ns += self.interval_ns;
            let histogram = std::mem::replace(&mut self.current, fresh);
            self.done.push(Interval { messages: std::mem::take(&mut self.interval_messages), histogram });
        }
    }

    /// `messages` acknowledged (or received) now.
    pub fn count(&mut self, messages: u64) {
        self.interval_messages += messages;
    }

    /// One latency, for `messages` messages.
    pub fn record(&mut self, latency_ns: u64, messages: u64) {
        if latency_ns == self.held_value_ns {
            self.held_count += messages;
            return;
        }
        self.settle();
        (self.held_value_ns, self.held_count) = (latency_ns, messages);
    }

    fn settle(&mut self) {
        if self.held_count > 0 {
            self.current.saturating_record_n(self.held_value_ns.max(1), self.held_count);
            self.held_count = 0;
        }
    }

    /// Ends the run; the window closed at `closed_ns`.
    pub fn finish(mut self, closed_ns: u64) -> Recording {
        self.settle();
        let whole_ns = self.interval_ns;
        let mut total = empty();
        let mut points = Vec::new();
        let mut intervals = std::mem::take(&mut self.done);
        intervals.push(Interval { messages: self.interval_messages, histogram: self.current });
        let mut start_ns = self.opened_ns;
        let last = intervals.len() - 1;
        let mut kept = Vec::new();
        for (i, interval) in intervals.into_iter().enumerate() {
            // Same bounds: adding can't fail.
            let _ = total.add(&interval.histogram);
            let length_ns = if i < last { whole_ns } else { closed_ns.saturating_sub(start_ns) };
            // A sliver at the end says nothing about a rate.
            if length_ns >= whole_ns / 4 || (i == 0 && length_ns > 0) {
                points.push(Point {
                    at_seconds: (start_ns - self.opened_ns) as f64 / 1e9,
                    messages_per_second: interval.messages as f64 * 1e9 / length_ns as f64,
                    p99_us: Percentiles::of(&interval.histogram).p99,
                });
            }
            kept.push(TimedHistogram {
                start: Duration::from_nanos(start_ns - self.opened_ns),
                length: Duration::from_nanos(length_ns),
                histogram: interval.histogram,
            });
            start_ns += length_ns;
        }
        Recording { total, points, intervals: kept }
    }
}

/// What a run recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Every latency, in ns.
    pub total: Histogram<u64>,
    /// Throughput and p99 over time.
    pub points: Vec<Point>,
    /// The histogram of each interval.
    pub intervals: Vec<TimedHistogram>,
}

/// The latencies of one interval, in ns.
#[derive(Clone, Debug)]
pub struct TimedHistogram {
    /// Since the window opened.
    pub start: Duration,
    /// How long it lasted.
    pub length: Duration,
    /// Its latencies.
    pub histogram: Histogram<u64>,
}

/// Writes `histogram` in the text form of HdrHistogram's percentile plotter (`.hgrm`), values in µs.
pub fn write_hgrm(histogram: &Histogram<u64>, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut counted = 0;
    for step in histogram.iter_quantiles(5) {
        counted += step.count_since_last_iteration();
        let (value_us, quantile) = (step.value_iterated_to() as f64 / 1e3, step.quantile_iterated_to());
        if quantile < 1.0 {
            writeln!(out, "{value_us:>12.3} {quantile:>14.12} {counted:>10} {:>14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, "{value_us:>12.3} {quantile:>14.12} {counted:>10}")?;
        }
    }
    writeln!(out, "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]", histogram.mean() / 1e3, histogram.stdev() / 1e3)?;
    writeln!(out, "#[Max     = {:>12.3}, Total count    = {:>12}]", histogram.max() as f64 / 1e3, histogram.len())?;
    writeln!(
        out,
        "#[Buckets = {:>12}, SubBuckets     = {:>12}]",
        histogram.buckets(),
        2 * 10_u32.pow(u32::from(DIGITS)).next_power_of_two()
    )
}

/// Writes the intervals as an HdrHistogram interval log (`.hlog`), values in ns, maxima in µs.
pub fn write_hlog(recording: &Recording, started: SystemTime, label: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let mut serializer = V2Serializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment(&format!("ringmain bench {label}; values in nanoseconds"))
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(1e3);
    let mut log = builder.begin_log_with(out, &mut serializer)?;
    for interval in &recording.intervals {
        log.write_histogram(&interval.histogram, interval.start, interval.length, Tag::new("latency"))
            .map_err(|e| anyhow::anyhow!("the interval log: {e:?}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recording_over_intervals_adds_up() {
        let mut recorder = Recorder::new(Duration::from_secs(1));
        recorder.open(1_000);
        for i in 0..1_000_u64 {
            let now = 1_000 + i * 1_000_000;
            recorder.tick(now);
            recorder.count(10);
            recorder.record(if i >= 900 { 5_000_000 } else { 10_000 }, 10);
        }
        let recording = recorder.finish(1_000 + 1_000_000_000);
        assert_eq!(recording.total.len(), 10_000);
        assert_eq!(recording.points.len(), 10);
        assert!((recording.points[0].messages_per_second - 10_000.0).abs() < 1.0, "{:?}", recording.points);
        let p = Percentiles::of(&recording.total);
        assert!((p.p50.unwrap() - 10.0).abs() < 0.1 && (p.p99.unwrap() - 5_000.0).abs() < 10.0, "{p:?}");
        assert!(recording.points[9].p99_us.unwrap() > 4_900.0 && recording.points[0].p99_us.unwrap() < 11.0);
        let (mut hgrm, mut hlog) = (Vec::new(), Vec::new());
        write_hgrm(&recording.total, &mut hgrm).unwrap();
        write_hlog(&recording, SystemTime::UNIX_EPOCH, "test", &mut hlog).unwrap();
        assert!(String::from_utf8(hgrm).unwrap().contains("1.000000000000"));
        assert_eq!(String::from_utf8(hlog).unwrap().lines().filter(|l| l.starts_with("Tag=latency")).count(), recording.intervals.len());
    }

    #[test]
    fn percentiles_of_nothing_are_null() {
        assert_eq!(Percentiles::of(&empty()), Percentiles::default());
    }
}
