//! `ringmain log`: a data directory whose broker is stopped.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ringmain::log::tool::{self, Place, VerifyReport};
use serde_json::{Value, json};

use super::{Format, exit, output};

#[derive(Args)]
pub struct LogArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Read every stored byte and check every checksum; exit 0 whole, 3 torn end only, 4 damaged, 5 in use
    Verify {
        /// Data directory of a stopped broker
        directory: PathBuf,
    },
    /// List the segments and commit groups of every shard, in text only
    Dump {
        /// Data directory of a stopped broker
        directory: PathBuf,
        /// List the frames of each group too
        #[arg(long)]
        frames: bool,
    },
    /// Make a directory start again whose newest data is damaged: cut each shard's log before its first damaged group
    #[command(after_help = REPAIR)]
    Repair {
        /// Data directory of a stopped broker
        directory: PathBuf,
        /// Yes, lose what is behind the damage
        #[arg(long, required = true)]
        accept_loss: bool,
    },
}

pub fn run(arguments: &LogArguments, format: Format) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Verify { directory } => verify(directory, format),
        Verb::Dump { directory, frames } => {
            if format == Format::Json {
                bail!("dump writes text only; use it without --format json");
            }
            let mut out = BufWriter::new(io::stdout().lock());
            tool::dump(directory, *frames, &mut out)?;
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Repair { directory, accept_loss: _ } => {
            let cuts = tool::repair(directory)?;
            match format {
                Format::Json => output::json(&json!({ "cuts": cuts.iter().map(place_json).collect::<Value>() }))?,
                Format::Text if cuts.is_empty() => output::line("nothing had to be cut")?,
                Format::Text => cuts.iter().try_for_each(|place| output::line(&format!("cut at {place}")))?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn verify(directory: &Path, format: Format) -> Result<ExitCode> {
    let report = tool::verify(directory)?;
    let (verdict, code) = verdict(&report);
    match format {
        Format::Json => output::json(&report_json(&report, verdict))?,
        Format::Text => {
            for damage in &report.damage {
                let place = damage.place.map_or(String::new(), |place| format!("{place}: "));
                output::line(&format!("damaged: {place}{}", damage.what))?;
            }
            for place in &report.torn_tails {
                output::line(&format!("torn end: {place}"))?;
            }
            let VerifyReport { shards, segments, groups, frames, bytes, .. } = report;
            output::line(&format!(
                "{verdict}: {shards} shards, {segments} segments, {groups} groups, {frames} frames, {bytes} bytes read"
            ))?;
        }
    }
    Ok(ExitCode::from(code))
}

/// One word, and the exit code.
fn verdict(report: &VerifyReport) -> (&'static str, u8) {
    if !report.damage.is_empty() {
        ("damaged", exit::DAMAGED)
    } else if !report.torn_tails.is_empty() {
        ("torn", exit::TORN)
    } else {
        ("whole", 0)
    }
}

fn report_json(report: &VerifyReport, verdict: &str) -> Value {
    json!({
        "verdict": verdict,
        "shards": report.shards, "segments": report.segments, "groups": report.groups, "frames": report.frames, "bytes": report.bytes,
        "torn_tails": report.torn_tails.iter().map(place_json).collect::<Value>(),
        "damage": report.damage.iter().map(|d| json!({ "place": d.place.as_ref().map(place_json), "what": d.what })).collect::<Value>(),
    })
}

fn place_json(place: &Place) -> Value {
    json!({ "shard": place.shard, "file": place.file.to_string(), "segment": place.segment, "position": place.position })
}

const REPAIR: &str = "\
Run 'ringmain log verify' first, and keep a copy of the directory: what is cut is lost. Damage in older segments, which
a start doesn't read, stays where it is and is refused when it is read.";

#[cfg(test)]
mod tests {
    use ringmain::device::FileId;
    use ringmain::log::tool::Damage;

    use super::*;

    #[test]
    fn damage_outweighs_a_torn_end() {
        let place = Place { shard: 0, file: FileId(1), segment: 2, position: 4096 };
        let torn = VerifyReport { torn_tails: vec![place], ..VerifyReport::default() };
        let both = VerifyReport { damage: vec![Damage { place: Some(place), what: "rot".into() }], ..torn.clone() };
        let codes = [VerifyReport::default(), torn, both].map(|report| verdict(&report));
        assert_eq!(codes, [("whole", 0), ("torn", 3), ("damaged", 4)]);
    }
}
