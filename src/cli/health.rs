//! `ringmain health`: one word and an exit code, for supervisors and containers.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Format, Target, output};

pub fn run(target: &Target, format: Format) -> Result<ExitCode> {
    let stats = target.client()?.stats()?;
    let fenced: Vec<u16> = stats.shards.iter().filter(|shard| !shard.fenced.is_empty()).map(|shard| shard.shard).collect();
    match format {
        Format::Text => output::line(if fenced.is_empty() { "ok" } else { "fenced" })?,
        Format::Json => output::json(&json!({ "healthy": fenced.is_empty(), "fenced_shards": fenced }))?,
    }
    if !fenced.is_empty() {
        bail!("{} of {} shards refuse writes after a failed write to their disk; see 'ringmain status'", fenced.len(), stats.shards.len());
    }
    Ok(ExitCode::SUCCESS)
}
