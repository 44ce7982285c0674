//! `ringmain queue`.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ringmain_client::queue::{Peeked, QueueMap};
use ringmain_client::wire::ErrorCode;
use ringmain_client::wire::control::{Durability, EARLIEST, LATEST};
use ringmain_client::wire::queue::{AlterQueue, Backoff, CreateQueue, Delayed, Overflow, QueueConfig, QueueInfo, QueueState};
use ringmain_client::{CallError, Client, ConsumedRecord, StartFrom};
use serde_json::{Value, json};

use super::consume::{self, Template};
use super::output::{self, Cell};
use super::{Format, Target, timestamp};

#[derive(Args)]
pub struct QueueArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Create a queue over a topic, and the topic if it isn't there
    Create(Box<CreateArguments>),
    /// List the queues
    List(#[command(flatten)] Target),
    /// Show a queue's settings and how many messages are in which state
    Describe(NameArguments),
    /// Change a queue's settings
    Alter(Box<AlterArguments>),
    /// Settle every message that isn't in flight, without asking
    Purge(NameArguments),
    /// Print messages that aren't settled, without taking them
    Peek(PeekArguments),
    /// Delete a queue, without asking; its topic and the messages there stay
    Delete(DeleteArguments),
    /// Take messages from a queue over a dead-letter topic and publish them where they came from
    Redrive(RedriveArguments),
    /// Show messages that wait for their time; deliver or cancel one
    Delayed(DelayedArguments),
    /// Deliver nothing until resume
    Pause(NameArguments),
    /// Deliver again
    Resume(NameArguments),
    /// Go on at another place of the topic, whatever was settled
    Seek(SeekArguments),
}

#[derive(Args)]
struct CreateArguments {
    /// 1 to 249 characters of a-z A-Z 0-9 . _ -
    name: String,
    /// What it reads [default: the topic of the same name]
    #[arg(long, value_name = "TOPIC", default_value = "", hide_default_value = true)]
    topic: String,
    /// Partitions of a topic that has to be created; order, priority and limits hold within one
    #[arg(long, value_name = "N", default_value_t = 1)]
    partitions: u32,
    /// Durability of a topic that has to be created
    #[arg(long, value_name = "durable|written|memory", default_value_t = Durability::Durable)]
    durability: Durability,
    /// Begin with what comes from now on [default: with what the topic has stored]
    #[arg(long)]
    from_end: bool,
    /// Begin with the last so many records of each partition; 1 = with a retained message
    #[arg(long, value_name = "N", conflicts_with = "from_end")]
    from_last: Option<u64>,
    /// Succeed if a queue of that name is there, whatever its settings
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct AlterArguments {
    name: String,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    target: Target,
}

/// What isn't given stays as it is.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// A message not settled so long after its delivery comes back [new queues: 1800000]
    #[arg(long, value_name = "MS")]
    ack_timeout_ms: Option<u64>,
    /// A message delivered so often is dead-lettered instead of delivered again [new queues: 20]
    #[arg(long, value_name = "N|none", value_parser = limit::<u32>)]
    delivery_limit: Option<Limit<u32>>,
    /// Topic for messages that are rejected, expired, delivered too often or pushed out [new queues: none, they go away]
    #[arg(long, value_name = "TOPIC|none")]
    dead_letter: Option<String>,
    /// Wait before another delivery: none, fixed:MS, linear:MS..LONGEST or exponential:MS..LONGEST
    #[arg(long, value_name = "HOW", value_parser = backoff)]
    backoff: Option<Backoff>,
    /// Levels of priority, 1 to 256; higher ones go first
    #[arg(long, value_name = "N")]
    priorities: Option<u16>,
    /// A message expires so long after it was appended
    #[arg(long, value_name = "MS|none", value_parser = limit::<u64>)]
    ttl_ms: Option<Limit<u64>>,
    /// Most messages that aren't settled, per partition
    #[arg(long, value_name = "N|none", value_parser = limit::<u64>)]
    max_length: Option<Limit<u64>>,
    /// Most bytes of keys, values and headers of messages that aren't settled, per partition
    #[arg(long, value_name = "N|none", value_parser = limit::<u64>)]
    max_bytes: Option<Limit<u64>>,
    /// What becomes of a message too many: reject it, drop-head (the oldest goes), or redirect:TOPIC
    #[arg(long, value_name = "HOW", value_parser = overflow)]
    overflow: Option<(Overflow, Option<String>)>,
    /// Delete the queue when it had no consumer and nobody used it for so long
    #[arg(long, value_name = "MS|none", value_parser = limit::<u64>)]
    expires_ms: Option<Limit<u64>>,
    /// A message with an id that the topic took less than so long ago isn't stored again
    #[arg(long, value_name = "MS|none", value_parser = limit::<u64>)]
    dedup_window_ms: Option<Limit<u64>>,
    /// Messages of one key are at one consumer at a time, in order
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    key_ordered: Option<bool>,
    /// One consumer at a time is served; when it leaves, the next takes over
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    single_active: Option<bool>,
    /// A second consumer is refused
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    exclusive: Option<bool>,
    /// Deliveries per second and partition
    #[arg(long, value_name = "N|none", value_parser = limit::<u32>)]
    rate: Option<Limit<u32>>,
    /// Only messages for which this holds, as "TAGS = 'red' AND size > 10"; empty = all
    #[arg(long, value_name = "CONDITION")]
    filter: Option<String>,
    /// A record of the topic goes when every queue over it has settled it, also from between others that stay
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    drop_acked: Option<bool>,
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
    /// Succeed if there is no such queue
    #[arg(long)]
    if_exists: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct PeekArguments {
    name: String,
    /// At most so many, per partition
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: u32,
    /// In this partition only, counted from 0
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// From this offset on
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// What to print for each message, as in consume
    #[arg(long, value_name = "TEMPLATE", default_value = "%p/%o\t%v\\n", value_parser = consume::template, allow_hyphen_values = true)]
    print: Template,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct RedriveArguments {
    /// A queue over the dead-letter topic
    name: String,
    /// Publish to this topic [default: that of the queue each message was in]
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// At most so many [default: all that are there now]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct DelayedArguments {
    name: String,
    /// In this partition, counted from 0 [default: all; for one message the first]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Show at most so many per partition
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: u32,
    /// Let the message at this offset be delivered now
    #[arg(long, value_name = "OFFSET", conflicts_with = "cancel")]
    deliver_now: Option<u64>,
    /// Settle the message at this offset
    #[arg(long, value_name = "OFFSET")]
    cancel: Option<u64>,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct SeekArguments {
    name: String,
    /// Where to go on: beginning, end, an offset, @ and milliseconds since 1970, or a time as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "WHERE", value_parser = consume::start)]
    to: StartFrom,
    /// In this partition only, counted from 0; an offset needs it if there are several [default: all]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    #[command(flatten)]
    target: Target,
}

/// A number, or `none`.
#[derive(Clone, Copy, Debug)]
struct Limit<T>(Option<T>);

impl Settings {
    fn apply(self, config: &mut QueueConfig) {
        fn set<T>(setting: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *setting = value;
            }
        }
        set(&mut config.ack_timeout_ms, self.ack_timeout_ms);
        set(&mut config.delivery_limit, self.delivery_limit.map(|limit| limit.0));
        set(&mut config.dead_letter, self.dead_letter.map(|topic| Some(topic).filter(|topic| topic != "none")));
        set(&mut config.backoff, self.backoff);
        set(&mut config.priorities, self.priorities);
        set(&mut config.ttl_ms, self.ttl_ms.map(|limit| limit.0));
        set(&mut config.max_length, self.max_length.map(|limit| limit.0));
        set(&mut config.max_bytes, self.max_bytes.map(|limit| limit.0));
        set(&mut config.expires_ms, self.expires_ms.map(|limit| limit.0));
        set(&mut config.dedup_window_ms, self.dedup_window_ms.map(|limit| limit.0));
        if let Some((overflow, redirect)) = self.overflow {
            (config.overflow, config.redirect) = (overflow, redirect);
        }
        set(&mut config.key_ordered, self.key_ordered);
        set(&mut config.single_active, self.single_active);
        set(&mut config.exclusive, self.exclusive);
        set(&mut config.rate_per_second, self.rate.map(|limit| limit.0));
        set(&mut config.filter, self.filter);
        set(&mut config.drop_acked, self.drop_acked);
    }
}

pub fn run(arguments: QueueArguments, format: Format) -> Result<ExitCode> {
    match arguments.verb {
        Verb::Create(arguments) => {
            let (info, created) = create(*arguments)?;
            let verb = if created { "created" } else { "exists" };
            match format {
                Format::Text => output::line(&format!("{verb} {}: {}", info.name, settings(&info)))?,
                Format::Json => output::json(&with(queue_json(&info), "created", created.into()))?,
            }
        }
        Verb::List(target) => {
            let queues = target.client()?.queues(None)?.queues;
            match format {
                Format::Text => output::table(&LIST_HEAD, &queues.iter().map(list_row).collect::<Vec<_>>())?,
                Format::Json => output::json(&queues.iter().map(queue_json).collect())?,
            }
        }
        Verb::Describe(arguments) => describe(&arguments, format)?,
        Verb::Alter(arguments) => {
            let AlterArguments { name, settings, target } = *arguments;
            alter(&target.client()?, &name, format, "altered", |config| settings.apply(config))?;
        }
        Verb::Pause(arguments) => alter(&arguments.target.client()?, &arguments.name, format, "paused", |config| config.paused = true)?,
        Verb::Resume(arguments) => alter(&arguments.target.client()?, &arguments.name, format, "resumed", |config| config.paused = false)?,
        Verb::Purge(arguments) => {
            let purged = arguments.target.client()?.purge_queue(&arguments.name)?;
            say(format, &format!("purged={purged}"), &json!({ "name": arguments.name, "purged": purged }))?;
        }
        Verb::Peek(arguments) => peek(&arguments, format)?,
        Verb::Delete(arguments) => {
            let deleted = match arguments.target.client()?.delete_queue(&arguments.name) {
                Ok(()) => true,
                Err(error) if arguments.if_exists && is(&error, ErrorCode::UnknownQueue) => false,
                Err(error) => return Err(error.into()),
            };
            let text = format!("{} {}", if deleted { "deleted" } else { "there is no" }, arguments.name);
            say(format, &text, &json!({ "name": arguments.name, "deleted": deleted }))?;
        }
        Verb::Redrive(arguments) => {
            let max = arguments.count.unwrap_or(u64::MAX);
            let done = arguments.target.client()?.redrive(&arguments.name, arguments.to.as_deref(), max)?;
            if done.left > 0 {
                eprintln!("ringmain: {} messages are left: the queues they were in are gone; name a topic with --to", done.left);
            }
            if done.twice > 0 {
                eprintln!("ringmain: {} messages may also still be here: their removal wasn't confirmed", done.twice);
            }
            let object = json!({ "name": arguments.name, "moved": done.moved, "twice": done.twice, "left": done.left });
            say(format, &format!("moved={}", done.moved), &object)?;
        }
        Verb::Delayed(arguments) => return delayed(&arguments, format),
        Verb::Seek(arguments) => seek(&arguments, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn say(format: Format, text: &str, object: &Value) -> io::Result<()> {
    match format {
        Format::Text => output::line(text),
        Format::Json => output::json(object),
    }
}

/// The queue, and whether it is new.
fn create(arguments: CreateArguments) -> Result<(QueueInfo, bool)> {
    let client: Client = arguments.target.client()?;
    let mut config = QueueConfig { from_beginning: !arguments.from_end, from_last: arguments.from_last, ..QueueConfig::default() };
    arguments.settings.apply(&mut config);
    let CreateArguments { name, topic, partitions: partition_count, durability, .. } = arguments;
    let create = CreateQueue { name, topic, partition_count, durability, config };
    match client.create_queue(&create) {
        Ok(info) => Ok((info, true)),
        Err(error) if arguments.if_not_exists && is(&error, ErrorCode::QueueExists) => Ok((info(&client, &create.name)?, false)),
        Err(error) => Err(error.into()),
    }
}

fn info(client: &Client, name: &str) -> Result<QueueInfo, CallError> {
    let found = client.queues(Some(&[name]))?.queues.into_iter().next();
    found.ok_or_else(|| CallError::UnknownQueue { queue: name.into() })
}

fn alter(client: &Client, name: &str, format: Format, done: &str, change: impl FnOnce(&mut QueueConfig)) -> Result<()> {
    let mut config = info(client, name)?.config;
    change(&mut config);
    let info = client.alter_queue(&AlterQueue { name: name.into(), config })?;
    Ok(say(format, &format!("{done} {}: {}", info.name, settings(&info)), &queue_json(&info))?)
}

fn is(error: &CallError, code: ErrorCode) -> bool {
    matches!(error, CallError::Broker(error) if error.code == code)
}

fn describe(arguments: &NameArguments, format: Format) -> Result<()> {
    let client = arguments.target.client()?;
    let info = info(&client, &arguments.name)?;
    let states = client.describe_queue(&arguments.name)?;
    match format {
        Format::Text => {
            eprintln!("{}: {}", info.name, settings(&info));
            output::table(&STATE_HEAD, &(0..).zip(&states).map(|(index, state)| state_row(index, state)).collect::<Vec<_>>())?;
        }
        Format::Json => {
            let partitions = (0..).zip(&states).map(|(index, state)| state_json(index, state)).collect();
            output::json(&with(queue_json(&info), "partitions", partitions))?;
        }
    }
    Ok(())
}

fn peek(arguments: &PeekArguments, format: Format) -> Result<()> {
    let client = arguments.target.client()?;
    let map = client.queue_map(&arguments.name)?;
    let mut out = BufWriter::new(io::stdout().lock());
    for index in indexes(&map, arguments.partition) {
        for message in client.peek_queue(&arguments.name, index, arguments.from, arguments.count)? {
            let Peeked { partition_index, offset, timestamp_ms, key, value, headers, deliveries } = &message;
            let (key, value) = (key.as_deref(), value.as_deref());
            let record =
                ConsumedRecord { partition_index: *partition_index, offset: *offset, timestamp_ms: *timestamp_ms, key, value, headers };
            match format {
                Format::Text => arguments.print.write(&map.topic, &record, &mut out)?,
                Format::Json => writeln!(out, "{}", with(consume::to_json(&map.topic, &record), "deliveries", (*deliveries).into()))?,
            }
        }
    }
    Ok(out.flush()?)
}

fn indexes(map: &QueueMap, only: Option<u32>) -> Vec<u32> {
    only.map_or_else(|| (0..map.partitions.len() as u32).collect(), |index| vec![index])
}

/// Exits with 1 if the one message named doesn't wait.
fn delayed(arguments: &DelayedArguments, format: Format) -> Result<ExitCode> {
    let client = arguments.target.client()?;
    let (name, one) = (&arguments.name, arguments.partition.unwrap_or(0));
    let done = match (arguments.deliver_now, arguments.cancel) {
        (Some(offset), _) => Some((offset, client.deliver_now(name, one, offset)?)),
        (None, Some(offset)) => Some((offset, client.cancel_delayed(name, one, offset)?)),
        (None, None) => None,
    };
    if let Some((offset, done)) = done {
        let text = format!("{} {one}/{offset}", if done { "done" } else { "not waiting:" });
        say(format, &text, &json!({ "name": name, "partition": one, "offset": offset, "done": done }))?;
        return Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut waiting: Vec<(u32, Delayed)> = Vec::new();
    for index in indexes(&client.queue_map(name)?, arguments.partition) {
        waiting.extend(client.delayed_messages(name, index, None, arguments.count)?.into_iter().map(|message| (index, message)));
    }
    waiting.sort_by_key(|(index, message)| (message.due_ms, *index, message.offset));
    match format {
        Format::Text => {
            let row = |(index, message): &(u32, Delayed)| {
                let due = Cell::Text(timestamp::format(message.due_ms));
                vec![Cell::Count((*index).into()), Cell::Count(message.offset), due, Cell::Count(message.deliveries.into())]
            };
            output::table(&DELAYED_HEAD, &waiting.iter().map(row).collect::<Vec<_>>())?;
        }
        Format::Json => {
            let object = |(index, message): &(u32, Delayed)| {
                json!({
                    "partition": index, "offset": message.offset, "due": timestamp::format(message.due_ms), "due_ms": message.due_ms,
                    "deliveries": message.deliveries,
                })
            };
            output::json(&waiting.iter().map(object).collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn seek(arguments: &SeekArguments, format: Format) -> Result<()> {
    let client = arguments.target.client()?;
    let map = client.queue_map(&arguments.name)?;
    let mut offsets = Vec::new();
    for index in indexes(&map, arguments.partition) {
        let Some(place) = map.partitions.get(index as usize) else {
            bail!("partition {index} was asked for, the queue has {} (counted from 0)", map.partitions.len());
        };
        let timestamp_ms = match arguments.to {
            StartFrom::Offset(offset) if arguments.partition.is_none() && map.partitions.len() > 1 => {
                bail!("offset {offset} of which partition? Name it with --partition");
            }
            StartFrom::Offset(offset) => {
                offsets.push((index, offset));
                continue;
            }
            StartFrom::Timestamp(timestamp_ms) => timestamp_ms,
            StartFrom::End => LATEST,
            StartFrom::Beginning | StartFrom::Committed => EARLIEST,
        };
        offsets.push((index, client.list_offset(ringmain_client::wire::PartitionId(place.partition), timestamp_ms)?.offset));
    }
    for (index, offset) in &offsets {
        client.seek_queue(&arguments.name, *index, *offset)?;
    }
    let places: Vec<String> = offsets.iter().map(|(index, offset)| format!("{index}/{offset}")).collect();
    let moved: Value = offsets.iter().map(|(index, offset)| json!({ "partition": index, "offset": offset })).collect();
    Ok(say(format, &format!("{} goes on at {}", arguments.name, places.join(" ")), &json!({ "name": arguments.name, "offsets": moved }))?)
}

/// Words for people; only what isn't as by default, beside the basics.
fn settings(info: &QueueInfo) -> String {
    let config = &info.config;
    let mut words = vec![format!("over {} ({} partitions)", info.topic, info.partitions.len())];
    let mut say = |is_said: bool, text: String| {
        if is_said {
            words.push(text);
        }
    };
    say(config.paused, "paused".into());
    say(true, format!("ack timeout {} ms", config.ack_timeout_ms));
    let limit = config.delivery_limit.map_or("no delivery limit".into(), |limit| format!("at most {limit} deliveries"));
    say(true, limit);
    say(true, config.dead_letter.as_ref().map_or("no dead letters".into(), |topic| format!("dead letters to {topic}")));
    say(config.backoff != Backoff::None, format!("back-off {}", backoff_text(config.backoff)));
    say(config.priorities > 1, format!("{} priorities", config.priorities));
    config.ttl_ms.into_iter().for_each(|ms| say(true, format!("expires after {ms} ms")));
    config.max_length.into_iter().for_each(|length| say(true, format!("at most {length} messages, then {}", overflow_text(config))));
    config.max_bytes.into_iter().for_each(|bytes| say(true, format!("at most {bytes} bytes, then {}", overflow_text(config))));
    config.expires_ms.into_iter().for_each(|ms| say(true, format!("deleted when unused for {ms} ms")));
    config.dedup_window_ms.into_iter().for_each(|ms| say(true, format!("recognises message ids for {ms} ms")));
    say(config.key_ordered, "ordered by key".into());
    say(config.single_active, "one active consumer".into());
    say(config.exclusive, "exclusive".into());
    config.rate_per_second.into_iter().for_each(|rate| say(true, format!("at most {rate} per second")));
    say(!config.filter.is_empty(), format!("filter {}", config.filter));
    say(config.drop_acked, "drops what is acknowledged".into());
    words.join(", ")
}

fn list_row(info: &QueueInfo) -> Vec<Cell> {
    let config = &info.config;
    vec![
        Cell::text(&info.name),
        Cell::text(&info.topic),
        Cell::Count(info.partitions.len() as u64),
        Cell::text(if config.paused { "paused" } else { "running" }),
        config.delivery_limit.map_or(Cell::text("none"), |limit| Cell::Count(limit.into())),
        Cell::text(config.dead_letter.as_deref().unwrap_or("none")),
        Cell::Count(config.priorities.into()),
        Cell::text(&config.filter),
    ]
}

fn queue_json(info: &QueueInfo) -> Value {
    let config = &info.config;
    json!({
        "name": info.name,
        "topic": info.topic,
        "partitions": info.partitions.len(),
        "from_beginning": config.from_beginning,
        "drop_acked": config.drop_acked,
        "ack_timeout_ms": config.ack_timeout_ms,
        "delivery_limit": config.delivery_limit,
        "dead_letter": config.dead_letter,
        "backoff": backoff_text(config.backoff),
        "priorities": config.priorities,
        "ttl_ms": config.ttl_ms,
        "max_length": config.max_length,
        "max_bytes": config.max_bytes,
        "expires_ms": config.expires_ms,
        "dedup_window_ms": config.dedup_window_ms,
        "from_last": config.from_last,
        "overflow": overflow_text(config),
        "key_ordered": config.key_ordered,
        "single_active": config.single_active,
        "exclusive": config.exclusive,
        "rate_per_second": config.rate_per_second,
        "paused": config.paused,
        "filter": config.filter,
    })
}

fn state_row(index: u64, state: &QueueState) -> Vec<Cell> {
    let counts = [
        index,
        state.floor,
        state.enqueued,
        state.ready,
        state.delayed,
        state.in_flight,
        state.acked,
        state.dead_lettered,
        state.dropped,
        state.redelivered,
        state.consumers.into(),
    ];
    counts.map(Cell::Count).into()
}

fn state_json(index: u64, state: &QueueState) -> Value {
    json!({
        "partition": index,
        "floor": state.floor,
        "enqueued": state.enqueued,
        "ready": state.ready,
        "delayed": state.delayed,
        "in_flight": state.in_flight,
        "acked": state.acked,
        "dead_lettered": state.dead_lettered,
        "dropped": state.dropped,
        "redelivered": state.redelivered,
        "consumers": state.consumers,
        "waiting": state.waiting,
    })
}

fn with(mut base: Value, name: &str, value: Value) -> Value {
    base[name] = value;
    base
}

fn limit<T: std::str::FromStr>(text: &str) -> Result<Limit<T>, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    text.parse().map(|number| Limit(Some(number))).map_err(|_| "a number, or none".into())
}

fn backoff(text: &str) -> Result<Backoff, String> {
    let mistake = || "none, fixed:MS, linear:MS..LONGEST or exponential:MS..LONGEST".to_string();
    let number = |text: &str| text.parse::<u64>().map_err(|_| mistake());
    let range = |text: &str| -> Result<(u64, u64), String> {
        let (ms, cap_ms) = text.split_once("..").ok_or_else(mistake)?;
        Ok((number(ms)?, number(cap_ms)?))
    };
    match text.split_once(':') {
        None if text == "none" => Ok(Backoff::None),
        Some(("fixed", ms)) => Ok(Backoff::Fixed { ms: number(ms)? }),
        Some(("linear", of)) => range(of).map(|(ms, cap_ms)| Backoff::Linear { ms, cap_ms }),
        Some(("exponential", of)) => range(of).map(|(ms, cap_ms)| Backoff::Exponential { ms, cap_ms }),
        _ => Err(mistake()),
    }
}

fn backoff_text(backoff: Backoff) -> String {
    match backoff {
        Backoff::None => "none".into(),
        Backoff::Fixed { ms } => format!("fixed:{ms}"),
        Backoff::Linear { ms, cap_ms } => format!("linear:{ms}..{cap_ms}"),
        Backoff::Exponential { ms, cap_ms } => format!("exponential:{ms}..{cap_ms}"),
    }
}

fn overflow(text: &str) -> Result<(Overflow, Option<String>), String> {
    match text.split_once(':') {
        None if text == "reject" => Ok((Overflow::Reject, None)),
        None if text == "drop-head" => Ok((Overflow::DropHead, None)),
        Some(("redirect", topic)) if !topic.is_empty() => Ok((Overflow::Redirect, Some(topic.into()))),
        _ => Err("reject, drop-head or redirect:TOPIC".into()),
    }
}

fn overflow_text(config: &QueueConfig) -> String {
    match config.overflow {
        Overflow::Reject => "reject".into(),
        Overflow::DropHead => "drop-head".into(),
        Overflow::Redirect => format!("redirect:{}", config.redirect.as_deref().unwrap_or_default()),
    }
}

const LIST_HEAD: [&str; 8] = ["queue", "topic", "partitions", "state", "delivery_limit", "dead_letter", "priorities", "filter"];
const STATE_HEAD: [&str; 11] =
    ["partition", "floor", "enqueued", "ready", "delayed", "in_flight", "acked", "dead_lettered", "dropped", "redelivered", "consumers"];
const DELAYED_HEAD: [&str; 4] = ["partition", "offset", "due", "deliveries"];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn configured(flags: &str) -> Result<QueueConfig, String> {
        let line = format!("ringmain queue alter q {flags}");
        match Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?.command {
            Command::Queue(QueueArguments { verb: Verb::Alter(arguments) }) => {
                let mut config = QueueConfig { ttl_ms: Some(9), dead_letter: Some("old".into()), ..QueueConfig::default() };
                arguments.settings.apply(&mut config);
                Ok(config)
            }
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn every_setting_has_a_flag() {
        let flags = "--ack-timeout-ms 500 --delivery-limit 3 --dead-letter dead --backoff exponential:100..10000 --priorities 10 --ttl-ms none \
                     --max-length 7 --max-bytes 8 --expires-ms 9000 --dedup-window-ms 77 --overflow redirect:rest --key-ordered --single-active true --exclusive --rate 5 --filter a=1 --drop-acked";
        let expected = QueueConfig {
            from_beginning: true,
            drop_acked: true,
            ack_timeout_ms: 500,
            delivery_limit: Some(3),
            dead_letter: Some("dead".into()),
            backoff: Backoff::Exponential { ms: 100, cap_ms: 10_000 },
            priorities: 10,
            ttl_ms: None,
            max_length: Some(7),
            overflow: Overflow::Redirect,
            redirect: Some("rest".into()),
            key_ordered: true,
            single_active: true,
            exclusive: true,
            rate_per_second: Some(5),
            paused: false,
            filter: "a=1".into(),
            max_bytes: Some(8),
            expires_ms: Some(9_000),
            from_last: None,
            dedup_window_ms: Some(77),
        };
        assert_eq!(configured(flags), Ok(expected));
        let unchanged = configured("").unwrap();
        assert_eq!((unchanged.ttl_ms, unchanged.dead_letter.as_deref()), (Some(9), Some("old")));
        let back = configured("--dead-letter none --delivery-limit none --key-ordered=false --overflow drop-head").unwrap();
        assert_eq!((back.dead_letter, back.delivery_limit, back.key_ordered, back.overflow), (None, None, false, Overflow::DropHead));
    }

    #[test]
    fn backoff_and_overflow_are_written_as_they_are_read() {
        for text in ["none", "fixed:5", "linear:5..10", "exponential:5..10"] {
            assert_eq!(backoff_text(backoff(text).unwrap()), text);
        }
        for text in ["reject", "drop-head", "redirect:t"] {
            let (overflow, redirect) = overflow(text).unwrap();
            assert_eq!(overflow_text(&QueueConfig { overflow, redirect, ..QueueConfig::default() }), text);
        }
        for wrong in ["fixed", "fixed:x", "linear:5", "exponential:5..", "often:1"] {
            assert!(backoff(wrong).is_err(), "{wrong}");
        }
        assert!(overflow("redirect:").is_err() && overflow("drop").is_err());
    }
}
