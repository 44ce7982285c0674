//! `ringmain topic`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use ringmain_client::wire::control::{AlterTopic, Cleanup, CreateTopic, Durability, TopicConfig, TopicDescription, TopicInfo};
use ringmain_client::wire::{DEFAULT_MAX_MESSAGE_BYTES, ErrorCode};
use ringmain_client::{CallError, Client};
use serde_json::{Value, json};

use super::output::{self, Cell};
use super::{Format, Target};

#[derive(Args)]
pub struct TopicArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Create a topic; done when it is durable and every core knows it
    Create(CreateArguments),
    /// List the topics
    List(#[command(flatten)] Target),
    /// Show a topic's settings and the offsets of its partitions
    Describe(NameArguments),
    /// Change a topic's settings, or add partitions
    Alter(AlterArguments),
    /// Delete a topic and all its messages, without asking
    Delete(DeleteArguments),
}

#[derive(Args)]
struct CreateArguments {
    /// 1 to 249 characters of a-z A-Z 0-9 . _ -
    name: String,
    /// Partitions; order holds within one
    #[arg(long, value_name = "N", default_value_t = 1)]
    partitions: u32,
    /// When a message is acknowledged: durable = on stable media, written = in the device (flushed within
    /// 10 ms), memory = in the broker's memory
    #[arg(long, value_name = "durable|written|memory", default_value_t = Durability::Durable)]
    durability: Durability,
    /// Messages older than this may go [default: kept]
    #[arg(long, value_name = "N|none", value_parser = limit)]
    retention_ms: Option<Limit>,
    /// Bytes kept per partition [default: no limit]
    #[arg(long, value_name = "BYTES|none", value_parser = limit)]
    retention_bytes: Option<Limit>,
    /// Largest batch, at most 64M
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_MESSAGE_BYTES, value_parser = message_bytes)]
    max_message_bytes: u32,
    /// Succeed if a topic of that name is there, whatever its settings
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct NameArguments {
    name: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct DeleteArguments {
    name: String,
    /// Succeed if there is no such topic
    #[arg(long)]
    if_exists: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
struct AlterArguments {
    name: String,
    /// More partitions than now; keys may move to another one
    #[arg(long, value_name = "N", group = "change")]
    partitions: Option<u32>,
    /// From the next message on
    #[arg(long, value_name = "durable|written|memory", group = "change")]
    durability: Option<Durability>,
    /// none = kept
    #[arg(long, value_name = "N|none", value_parser = limit, group = "change")]
    retention_ms: Option<Limit>,
    /// none = no limit
    #[arg(long, value_name = "BYTES|none", value_parser = limit, group = "change")]
    retention_bytes: Option<Limit>,
    /// Largest batch, at most 64M
    #[arg(long, value_name = "BYTES", value_parser = message_bytes, group = "change")]
    max_message_bytes: Option<u32>,
    #[command(flatten)]
    target: Target,
}

/// A number, or `none`.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<u64>);

pub fn run(arguments: TopicArguments, format: Format) -> Result<ExitCode> {
    match arguments.verb {
        Verb::Create(arguments) => {
            let (info, created) = create(arguments)?;
            let verb = if created { "created" } else { "exists" };
            match format {
                Format::Text => output::line(&format!("{verb} {}: {}", info.name, settings(&info)))?,
                Format::Json => output::json(&with(topic_json(&info), json!({ "created": created })))?,
            }
        }
        Verb::List(target) => {
            let topics = target.client()?.metadata(None)?.topics;
            match format {
                Format::Text => output::table(&LIST_HEAD, &topics.iter().map(list_row).collect::<Vec<_>>())?,
                Format::Json => output::json(&topics.iter().map(topic_json).collect())?,
            }
        }
        Verb::Describe(arguments) => {
            let description = arguments.target.client()?.describe_topic(&arguments.name)?;
            match format {
                Format::Text => {
                    eprintln!("{}: {}", description.info.name, settings(&description.info));
                    output::table(&PARTITION_HEAD, &partition_rows(&description))?;
                }
                Format::Json => output::json(&description_json(&description))?,
            }
        }
        Verb::Alter(arguments) => {
            let change = AlterTopic {
                partition_count: arguments.partitions,
                durability: arguments.durability,
                retention_ms: arguments.retention_ms.map(|limit| limit.0),
                retention_bytes: arguments.retention_bytes.map(|limit| limit.0),
                max_message_bytes: arguments.max_message_bytes,
                ..AlterTopic::nothing(arguments.name)
            };
            let info = arguments.target.client()?.alter_topic(&change)?;
            match format {
                Format::Text => output::line(&format!("altered {}: {}", info.name, settings(&info)))?,
                Format::Json => output::json(&topic_json(&info))?,
            }
        }
        Verb::Delete(arguments) => {
            let deleted = match arguments.target.client()?.delete_topic(&arguments.name) {
                Ok(()) => true,
                Err(error) if arguments.if_exists && is(&error, ErrorCode::UnknownTopic) => false,
                Err(error) => return Err(error.into()),
            };
            match format {
                Format::Text => output::line(&format!("{} {}", if deleted { "deleted" } else { "there is no" }, arguments.name))?,
                Format::Json => output::json(&json!({ "name": arguments.name, "deleted": deleted }))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The topic, and whether it is new.
fn create(arguments: CreateArguments) -> Result<(TopicInfo, bool)> {
    let client: Client = arguments.target.client()?;
    let config = TopicConfig {
        durability: arguments.durability,
        retention_ms: arguments.retention_ms.and_then(|limit| limit.0),
        retention_bytes: arguments.retention_bytes.and_then(|limit| limit.0),
        max_message_bytes: arguments.max_message_bytes,
        ..TopicConfig::default()
    };
    let topic = CreateTopic { name: arguments.name, partition_count: arguments.partitions, config };
    match client.create_topic(&topic) {
        Ok(info) => Ok((info, true)),
        Err(error) if arguments.if_not_exists && is(&error, ErrorCode::TopicExists) => {
            Ok((client.describe_topic(&topic.name)?.info, false))
        }
        Err(error) => Err(error.into()),
    }
}

fn is(error: &CallError, code: ErrorCode) -> bool {
    matches!(error, CallError::Broker(error) if error.code == code)
}

fn settings(info: &TopicInfo) -> String {
    let limit = |value: Option<u64>, unit: &str| value.map_or("none".into(), |value| format!("{value} {unit}"));
    let TopicConfig { durability, retention_ms, retention_bytes, max_message_bytes, cleanup, append_time, .. } = &info.config;
    format!(
        "{} partitions, {durability}, retention {} and {}, batches up to {max_message_bytes} bytes{}{}",
        info.partitions.len(),
        limit(*retention_ms, "ms"),
        limit(*retention_bytes, "bytes per partition"),
        if *cleanup == Cleanup::Delete { "" } else { ", to be compacted (no broker of this version does: every record stays)" },
        if *append_time { ", times of appending" } else { "" },
    )
}

fn list_row(info: &TopicInfo) -> Vec<Cell> {
    let limit = |value: Option<u64>| value.map_or(Cell::text("none"), Cell::Count);
    vec![
        Cell::text(&info.name),
        Cell::Count(info.partitions.len() as u64),
        Cell::text(info.config.durability),
        limit(info.config.retention_ms),
        limit(info.config.retention_bytes),
    ]
}

/// A partition whose shard can't be asked has no offsets.
fn partition_rows(description: &TopicDescription) -> Vec<Vec<Cell>> {
    let places = description.info.partitions.iter().enumerate();
    places
        .map(|(index, place)| {
            let mut row = vec![Cell::Count(index as u64), Cell::Count(place.shard.into())];
            match description.partitions.iter().find(|state| state.partition == place.partition) {
                Some(state) => row.extend([
                    Cell::Count(state.log_start),
                    Cell::Count(state.high_watermark),
                    Cell::Count(state.high_watermark - state.log_start.min(state.high_watermark)),
                    Cell::Bytes(state.size_bytes),
                ]),
                None => row.extend((2..PARTITION_HEAD.len()).map(|_| Cell::text("?"))),
            }
            row
        })
        .collect()
}

fn topic_json(info: &TopicInfo) -> Value {
    let TopicConfig { durability, retention_ms, retention_bytes, max_message_bytes, cleanup, append_time, .. } = &info.config;
    json!({
        "name": info.name,
        "partitions": info.partitions.len(),
        "durability": durability.to_string(),
        "retention_ms": retention_ms,
        "retention_bytes": retention_bytes,
        "max_message_bytes": max_message_bytes,
        "cleanup": cleanup.to_string(),
        "append_time": append_time,
    })
}

fn description_json(description: &TopicDescription) -> Value {
    let partitions: Value = description
        .info
        .partitions
        .iter()
        .enumerate()
        .map(|(index, place)| match description.partitions.iter().find(|state| state.partition == place.partition) {
            Some(state) => json!({
                "partition": index, "shard": place.shard,
                "log_start": state.log_start, "high_watermark": state.high_watermark, "size_bytes": state.size_bytes,
            }),
            None => json!({ "partition": index, "shard": place.shard, "log_start": null, "high_watermark": null, "size_bytes": null }),
        })
        .collect();
    with(topic_json(&description.info), json!({ "partitions": partitions }))
}

/// `base` with the fields of `more` added or replaced.
fn with(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit(None)) } else { ringmain::config::parse_bytes(text).map(|number| Limit(Some(number))) }
}

fn message_bytes(text: &str) -> Result<u32, String> {
    let bytes = ringmain::config::parse_bytes(text)?;
    u32::try_from(bytes).map_err(|_| "at most 64M".into())
}

const LIST_HEAD: [&str; 5] = ["topic", "partitions", "durability", "retention_ms", "retention_bytes"];
const PARTITION_HEAD: [&str; 6] = ["partition", "shard", "log_start", "high_watermark", "records", "size"];
