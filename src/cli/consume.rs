//! `ringmain consume`: messages out, every byte as it was stored.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use ringmain_client::wire::ErrorCode;
use ringmain_client::wire::record::headers;
use ringmain_client::{
    CallError, Client, ConsumedRecord, Consumer, ConsumerConfig, GroupConfig, GroupConsumeError, GroupConsumer, RecordBatch, StartFrom,
};
use serde_json::{Value, json};

use super::{Format, Target, consume_queue, timestamp};

#[derive(Args)]
#[command(after_help = VERBS)]
pub struct ConsumeArguments {
    /// Topic to read
    #[arg(required_unless_present = "queue")]
    topic: Option<String>,
    /// Receive the messages of this queue instead
    #[arg(long, value_name = "NAME", conflicts_with_all = ["topic", "from", "group"])]
    queue: Option<String>,
    /// Of a queue: acknowledge each message once it is printed; else all go back to the queue at the end
    #[arg(long, requires = "queue")]
    pub ack: bool,
    /// Of a queue: messages printed or waiting here, and not acknowledged; without --ack no more than these are shown
    #[arg(long, value_name = "N", default_value_t = 1_000, requires = "queue")]
    pub prefetch: u32,
    /// Where to begin in each partition: beginning, end, an offset, @ and milliseconds since 1970, or a time as
    /// 2026-11-21T10:00:00Z
    #[arg(long, value_name = "WHERE", default_value = "beginning", value_parser = start)]
    from: StartFrom,
    /// Read as a member of this consumer group: its members share the partitions, and each message is read on from
    /// where the group committed, which is done after it was printed. --from is for partitions without a commit
    #[arg(long, value_name = "GROUP", conflicts_with = "partition")]
    group: Option<String>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Stop at the end that each partition had when this began; of a queue, when nothing is ready
    #[arg(long)]
    pub exit_at_end: bool,
    /// Read this partition only, counted from 0; may be repeated [default: all]
    #[arg(long, value_name = "N")]
    pub partition: Vec<u32>,
    /// What to print for each message
    #[arg(long, value_name = "TEMPLATE", default_value = "%v\\n", value_parser = template, allow_hyphen_values = true)]
    pub print: Template,
    #[command(flatten)]
    pub target: Target,
}

pub fn run(arguments: &ConsumeArguments, format: Format) -> Result<ExitCode> {
    if let Some(queue) = &arguments.queue {
        return consume_queue::run(arguments, queue, format);
    }
    let client = arguments.target.client()?;
    if let Some(group) = &arguments.group {
        let config = ConsumerConfig { from: arguments.from, ..ConsumerConfig::default() };
        let consumer = client.group_consumer(arguments.topic(), GroupConfig { group: group.clone(), ..GroupConfig::default() }, config)?;
        let out = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout().lock());
        Sharing { arguments, format, consumer, left: arguments.count.unwrap_or(u64::MAX), out }.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = ConsumerConfig {
        from: arguments.from,
        partitions: (!arguments.partition.is_empty()).then(|| arguments.partition.clone()),
        ..ConsumerConfig::default()
    };
    // The ends first: what is stored when the command begins is printed whatever comes meanwhile.
    let unread = if arguments.exit_at_end { Some(Unread::of(&client, arguments)?) } else { None };
    let consumer = client.consumer(arguments.topic(), config)?;
    let out = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout().lock());
    Reading { arguments, format, consumer, unread, left: arguments.count.unwrap_or(u64::MAX), out }.run()?;
    Ok(ExitCode::SUCCESS)
}

impl ConsumeArguments {
    /// Named unless a queue is.
    fn topic(&self) -> &str {
        self.topic.as_deref().unwrap_or_default()
    }
}

/// As a member of a group.
struct Sharing<'a, W: Write> {
    arguments: &'a ConsumeArguments,
    format: Format,
    consumer: GroupConsumer,
    /// Messages until `--count` is reached.
    left: u64,
    out: W,
}

impl<W: Write> Sharing<'_, W> {
    fn run(mut self) -> Result<()> {
        let mut committed_at = Instant::now();
        while self.left > 0 {
            match self.consumer.poll(COMMIT_INTERVAL)? {
                Some(batch) => {
                    let next = self.print(&batch)?;
                    if next < batch.next_offset() {
                        // The rest of the batch is whoever reads next's.
                        self.consumer.seek(batch.partition_index(), next)?;
                    }
                    self.consumer.recycle(batch);
                }
                None if self.arguments.exit_at_end && self.consumer.at_end() => break,
                None => {}
            }
            if committed_at.elapsed() >= COMMIT_INTERVAL {
                self.commit()?;
                committed_at = Instant::now();
            }
        }
        self.commit()
    }

    /// The offset to go on at.
    fn print(&mut self, batch: &RecordBatch) -> io::Result<u64> {
        for record in batch.records() {
            if self.left == 0 {
                return Ok(record.offset);
            }
            self.left -= 1;
            print(self.arguments, self.format, &record, &mut self.out)?;
        }
        Ok(batch.next_offset())
    }

    /// What was printed is done, once whoever reads along has it.
    fn commit(&mut self) -> Result<()> {
        self.out.flush()?;
        match self.consumer.commit() {
            // The partitions go to others, who print on from the last commit.
            Err(GroupConsumeError::Group(CallError::Broker(error))) if is_rebalance(error.code) => Ok(()),
            result => Ok(result?),
        }
    }
}

pub fn is_rebalance(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::RebalanceInProgress | ErrorCode::IllegalGeneration | ErrorCode::UnknownMember)
}

fn print(arguments: &ConsumeArguments, format: Format, record: &ConsumedRecord<'_>, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Text => arguments.print.write(arguments.topic(), record, out),
        Format::Json => writeln!(out, "{}", to_json(arguments.topic(), record)),
    }
}

struct Reading<'a, W: Write> {
    arguments: &'a ConsumeArguments,
    format: Format,
    consumer: Consumer,
    unread: Option<Unread>,
    /// Messages until `--count` is reached.
    left: u64,
    out: W,
}

impl<W: Write> Reading<'_, W> {
    fn run(mut self) -> Result<()> {
        let mut silent_since = None;
        while self.left > 0 && !self.unread.as_ref().is_some_and(Unread::is_empty) {
            let mut batch = self.consumer.poll(Duration::ZERO)?;
            if batch.is_none() {
                // Nothing at hand: whoever reads along sees everything before this waits.
                self.out.flush()?;
                batch = self.consumer.poll(WAIT)?;
            }
            match batch {
                Some(batch) => {
                    silent_since = None;
                    self.print(&batch)?;
                    self.consumer.recycle(batch);
                }
                None => self.waited(&mut silent_since)?,
            }
        }
        self.out.flush()?;
        Ok(())
    }

    fn print(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let end = self.unread.as_ref().map_or(u64::MAX, |unread| unread.end(batch.partition_index()));
        for record in batch.records().take_while(|record| record.offset < end) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            print(self.arguments, self.format, &record, &mut self.out)?;
        }
        if let Some(unread) = &mut self.unread {
            unread.reached(batch.partition_index(), batch.next_offset());
        }
        Ok(())
    }

    /// Nothing came for a while: because there is nothing, or because there is no broker.
    fn waited(&mut self, silent_since: &mut Option<Instant>) -> Result<()> {
        if let Some(unread) = &mut self.unread {
            for position in self.consumer.positions() {
                unread.reached(position.partition_index, position.next_offset.unwrap_or(0));
            }
        }
        let Some(problem) = self.consumer.connection_problem().cloned() else {
            *silent_since = None;
            return Ok(());
        };
        match silent_since {
            None => {
                eprintln!("ringmain: {problem}; trying again");
                *silent_since = Some(Instant::now());
            }
            // Who waits for an end must not wait for ever.
            Some(since) if since.elapsed() > PATIENCE && (self.unread.is_some() || self.arguments.count.is_some()) => {
                return Err(problem.into());
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// What `--exit-at-end` still waits for: partition index → the offset to stop before.
struct Unread {
    ends: BTreeMap<u32, u64>,
    open: usize,
}

impl Unread {
    fn of(client: &Client, arguments: &ConsumeArguments) -> Result<Unread> {
        let description = client.describe_topic(arguments.topic())?;
        let mut ends = BTreeMap::new();
        for (index, place) in (0..).zip(&description.info.partitions) {
            if !arguments.partition.is_empty() && !arguments.partition.contains(&index) {
                continue;
            }
            let state = description.partitions.iter().find(|state| state.partition == place.partition);
            let state = state
                .with_context(|| format!("the end of partition {index} isn't known: its shard doesn't answer; see 'ringmain status'"))?;
            if state.high_watermark > state.log_start {
                ends.insert(index, state.high_watermark);
            }
        }
        Ok(Unread { open: ends.len(), ends })
    }

    fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// 0 for a partition that nothing is wanted of (any more).
    fn end(&self, partition_index: u32) -> u64 {
        self.ends.get(&partition_index).copied().unwrap_or(0)
    }

    fn reached(&mut self, partition_index: u32, next_offset: u64) {
        if self.ends.get(&partition_index).is_some_and(|end| next_offset >= *end) {
            self.ends.remove(&partition_index);
            self.open -= 1;
        }
    }
}

/// `--print`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Headers,
    Time,
}

impl Template {
    pub fn write(&self, topic: &str, record: &ConsumedRecord<'_>, out: &mut impl Write) -> io::Result<()> {
        for piece in &self.0 {
            match piece {
                Piece::Bytes(bytes) => out.write_all(bytes)?,
                Piece::Topic => out.write_all(topic.as_bytes())?,
                Piece::Partition => write!(out, "{}", record.partition_index)?,
                Piece::Offset => write!(out, "{}", record.offset)?,
                Piece::Key => out.write_all(record.key.unwrap_or_default())?,
                Piece::Value => out.write_all(record.value.unwrap_or_default())?,
                Piece::Time => out.write_all(timestamp::format(record.timestamp_ms).as_bytes())?,
                Piece::Headers => {
                    for (at, (name, value)) in headers(record.headers).flatten().enumerate() {
                        out.write_all(if at == 0 { b"" } else { b"," })?;
                        out.write_all(name)?;
                        out.write_all(b"=")?;
                        out.write_all(value.unwrap_or_default())?;
                    }
                }
            }
        }
        Ok(())
    }
}

pub fn template(text: &str) -> Result<Template, String> {
    let (mut pieces, mut plain, mut characters) = (Vec::new(), Vec::new(), text.chars());
    while let Some(first) = characters.next() {
        if first != '%' && first != '\\' {
            plain.extend_from_slice(first.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let piece = match (first, characters.next()) {
            ('%', Some('t')) => Piece::Topic,
            ('%', Some('p')) => Piece::Partition,
            ('%', Some('o')) => Piece::Offset,
            ('%', Some('k')) => Piece::Key,
            ('%', Some('v')) => Piece::Value,
            ('%', Some('h')) => Piece::Headers,
            ('%', Some('T')) => Piece::Time,
            (_, second) => {
                plain.push(match (first, second) {
                    ('%', Some('%')) => b'%',
                    ('\\', Some('n')) => b'\n',
                    ('\\', Some('t')) => b'\t',
                    ('\\', Some('0')) => 0,
                    ('\\', Some('\\')) => b'\\',
                    _ => return Err(format!("'{first}{}' means nothing; {VERBS}", second.map_or(String::new(), String::from))),
                });
                continue;
            }
        };
        pieces.push(Piece::Bytes(std::mem::take(&mut plain)));
        pieces.push(piece);
    }
    pieces.push(Piece::Bytes(plain));
    pieces.retain(|piece| *piece != Piece::Bytes(Vec::new()));
    Ok(Template(pieces))
}

/// One object per message. Bytes that aren't UTF-8 are under `key_base64`, `value_base64` instead.
pub fn to_json(topic: &str, record: &ConsumedRecord<'_>) -> Value {
    let mut object = json!({
        "topic": topic,
        "partition": record.partition_index,
        "offset": record.offset,
        "timestamp": timestamp::format(record.timestamp_ms),
        "timestamp_ms": record.timestamp_ms,
    });
    for (name, bytes) in [("key", record.key), ("value", record.value)] {
        match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
            None => object[name] = Value::Null,
            Some((Ok(text), _)) => object[name] = text.into(),
            Some((Err(_), bytes)) => object[format!("{name}_base64")] = BASE64_STANDARD.encode(bytes).into(),
        }
    }
    let header = |(name, value): (&[u8], Option<&[u8]>)| json!({ "name": String::from_utf8_lossy(name), "value": value.map(String::from_utf8_lossy) });
    object["headers"] = headers(record.headers).flatten().map(header).collect();
    object
}

pub fn start(text: &str) -> Result<StartFrom, String> {
    let mistake = || "choose beginning, end, an offset, @MILLISECONDS or a time as 2026-11-21T10:00:00Z".to_string();
    match text {
        "beginning" => Ok(StartFrom::Beginning),
        "end" => Ok(StartFrom::End),
        _ => match text.strip_prefix('@') {
            Some(ms) => ms.parse().ok().filter(|ms| *ms >= 0).map(StartFrom::Timestamp).ok_or_else(mistake),
            None => {
                text.parse().map(StartFrom::Offset).ok().or_else(|| timestamp::parse(text).map(StartFrom::Timestamp)).ok_or_else(mistake)
            }
        },
    }
}

const OUTPUT_BUFFER_BYTES: usize = 256 << 10;
/// A group's position follows what was printed in so much time.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// The longest that `--exit-at-end` takes to notice that nothing is left behind the last message.
const WAIT: Duration = Duration::from_millis(50);
/// A broker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(30);
const VERBS: &str = "\
In the template %v is the message, %k the key, %h the headers as name=value,…, %t the topic, %p the partition, %o the
offset, %T the time in UTC, %% a %; \\n \\t \\0 \\\\ are LF, tab, NUL and \\. A null key or message prints as nothing.
With --format json there is one object per message and line.";

#[cfg(test)]
mod tests {
    use ringmain_client::wire::record::HeadersBuilder;

    use super::*;

    fn check(text: &str, expected: &[u8]) {
        let mut encoded = HeadersBuilder::default();
        encoded.push(b"a", Some(b"1")).push(b"b", None);
        let record = ConsumedRecord {
            partition_index: 3,
            offset: 17,
            timestamp_ms: 1_500,
            key: None,
            value: Some(b"v\xff\r"),
            headers: encoded.as_bytes(),
        };
        let mut out = Vec::new();
        template(text).unwrap().write("orders", &record, &mut out).unwrap();
        assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{text}");
    }

    #[test]
    fn template_prints_every_verb() {
        check("%v\\n", b"v\xff\r\n");
        check("%t/%p/%o: [%k] %h", b"orders/3/17: [] a=1,b=");
        check("%T", b"1970-01-01T00:00:01.500Z");
        check("100%%\\t\\0\\\\é", b"100%\t\0\\\xc3\xa9");
        check("", b"");
    }

    #[test]
    fn unknown_verb_is_refused() {
        for text in ["%", "%x", "\\", "\\x"] {
            assert!(template(text).is_err(), "{text}");
        }
    }

    #[test]
    fn start_is_read_in_every_form() {
        for (text, expected) in [
            ("beginning", Some(StartFrom::Beginning)),
            ("end", Some(StartFrom::End)),
            ("17", Some(StartFrom::Offset(17))),
            ("@17", Some(StartFrom::Timestamp(17))),
            ("1970-01-01T00:00:01Z", Some(StartFrom::Timestamp(1_000))),
            ("-1", None),
            ("@-1", None),
            ("yesterday", None),
        ] {
            assert_eq!(start(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn json_keeps_null_empty_and_binary_apart() {
        let record = ConsumedRecord { partition_index: 0, offset: 0, timestamp_ms: 0, key: Some(b""), value: Some(b"\xff"), headers: b"" };
        let object = to_json("t", &record);
        assert_eq!((&object["key"], &object["value_base64"], object.get("value")), (&json!(""), &json!("/w=="), None));
        assert_eq!(to_json("t", &ConsumedRecord { value: None, ..record })["value"], Value::Null);
    }
}
