//! The main job: what the machine can do, what the broker makes of it, in about half a minute.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::limits;
use crate::native::Progress;
use crate::report::{Output, RunReport, one_line};
use crate::scenario::Session;
use crate::{BenchOptions, Mode, Outcome, with_bar};

/// Window of a run.
const WINDOW: Duration = Duration::from_millis(2_200);
/// Window of the open loop: long enough for a p99.99.
const OPEN_LOOP_WINDOW: Duration = Duration::from_secs(5);
const WARMUP: Duration = Duration::from_millis(500);
/// What a consumer reads, in bytes of frames.
const PRELOAD_BYTES: u64 = 64 << 20;

/// Runs it; prints a line per run as it ends. `--duration` changes the window of every run.
pub fn tour(options: &BenchOptions, progress: &Arc<Progress>, output: &mut Output) -> Result<Outcome> {
    let window = options.duration.unwrap_or(WINDOW);
    let base = BenchOptions {
        warmup: options.warmup.or(Some(WARMUP.min(window / 4))),
        duration: Some(window),
        count: None,
        topic: None,
        rate: None,
        ..options.clone()
    };
    let only = BenchOptions { duration: options.duration, ..base.clone() };
    let (limits, place) = with_bar(&only, progress, "limits", || limits::measure(&only))?;
    for (name, value) in limits.rows() {
        output.line(&format!("{name:<46} {value}"));
    }
    let mut runs = vec![RunReport::of_limits(limits, place.as_ref())];
    let mut session = Session::open(&base)?;
    let mut step = |changed: BenchOptions, runs: &mut Vec<RunReport>| -> Result<()> {
        let report = session.measure(&changed, progress)?;
        output.line(&one_line(&report));
        runs.push(report);
        Ok(())
    };
    let produce = |size: usize, batch: u32| BenchOptions { mode: Mode::Produce, size, batch, ..base.clone() };
    let consume = |size: usize, batch: u32| BenchOptions {
        mode: Mode::Consume,
        size,
        batch,
        preload_bytes: base.preload_bytes.or(Some(PRELOAD_BYTES)),
        ..base.clone()
    };
    let mut half = None;
    for changed in [
        produce(100, 1),
        produce(100, 100),
        produce(100, 1_000),
        produce(1_024, 128),
        consume(100, 1_000),
        BenchOptions { mode: Mode::Ping, ..produce(100, 1) },
    ] {
        step(changed, &mut runs)?;
        if half.is_none() {
            half = runs.last().and_then(|run| run.messages_per_second).map(|peak| (peak / 2.0).max(1.0));
        }
    }
    let open_loop = BenchOptions { rate: half, duration: Some(options.duration.unwrap_or(OPEN_LOOP_WINDOW)), ..produce(100, 1) };
    step(open_loop, &mut runs)?;
    session.close()?;
    output.line("");
    Ok(Outcome { runs })
}
