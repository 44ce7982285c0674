//! `ringmain produce`: lines in, messages out, every byte as it came.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ringmain_client::wire::MAX_MESSAGE_BYTES_LIMIT;
use ringmain_client::wire::queue::name;
use ringmain_client::{FlushError, Outgoing, Producer, ProducerConfig, Record};
use serde_json::json;

use super::{Format, Target, output};

#[derive(Args)]
#[command(after_help = LINES)]
pub struct ProduceArguments {
    /// Topic to send to; it has to exist
    topic: String,
    /// Read this file instead of standard input; - is standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// What a message's key is: none; line = the whole line, which is the message too; anything else separates key and
    /// message at its first occurrence (\t is a tab)
    #[arg(long, value_name = "line|none|SEPARATOR", default_value = "none", value_parser = key, allow_hyphen_values = true)]
    key: Key,
    /// Send everything to this partition, counted from 0 [default: by key, else spread]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Give up on a message that isn't acknowledged after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    #[command(flatten)]
    headers: Headers,
    #[command(flatten)]
    target: Target,
}

/// What every message carries besides. All but the last are for queues.
#[derive(Args)]
struct Headers {
    /// Deliver not before so long after it is sent
    #[arg(long, value_name = "MS")]
    delay_ms: Option<u64>,
    /// Higher goes first, in a queue with priorities
    #[arg(long, value_name = "0..255")]
    priority: Option<u8>,
    /// Expires so long after it is stored
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// A word to filter by
    #[arg(long, value_name = "WORD")]
    tag: Option<String>,
    /// What a message's id is, for queues that recognise messages by it: its line, or its key
    #[arg(long, value_name = "line|key")]
    message_id: Option<MessageId>,
    /// A header; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Vec<(String, String)>,
}

impl Headers {
    fn add<'a>(&self, mut message: Outgoing<'a>, id: &[u8]) -> Outgoing<'a> {
        if self.message_id.is_some() {
            message = message.header(name::MESSAGE_ID, Some(id));
        }
        if let Some(ms) = self.delay_ms {
            message = message.delay(Duration::from_millis(ms));
        }
        if let Some(priority) = self.priority {
            message = message.priority(priority);
        }
        if let Some(ms) = self.ttl_ms {
            message = message.ttl(Duration::from_millis(ms));
        }
        if let Some(tag) = &self.tag {
            message = message.tag(tag);
        }
        self.header.iter().fold(message, |message, (name, value)| message.header(name.as_bytes(), Some(value.as_bytes())))
    }
}

/// What a message's id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum MessageId {
    Line,
    Key,
}

/// What a message's key is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    None,
    Line,
    Separator(Vec<u8>),
}

pub fn run(arguments: &ProduceArguments, format: Format) -> Result<ExitCode> {
    let (input, bar) = open(arguments)?;
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(arguments.timeout), ..ProducerConfig::default() };
    let mut producer = arguments.target.client()?.producer(&arguments.topic, config)?;
    let sent = send_lines(input, arguments, &mut producer, &bar);
    let flushed = producer.flush();
    bar.finish_and_clear();
    // Also when something failed: so much is stored.
    let acknowledged = producer.acknowledged();
    let redirected = producer.redirected();
    match format {
        Format::Text if redirected > 0 => output::line(&format!("acknowledged={acknowledged} redirected={redirected}"))?,
        Format::Text => output::line(&format!("acknowledged={acknowledged}"))?,
        Format::Json => output::json(&json!({ "topic": arguments.topic, "acknowledged": acknowledged, "redirected": redirected }))?,
    }
    match (sent, flushed) {
        (Ok(()), Ok(())) => Ok(ExitCode::SUCCESS),
        // What the broker answered explains why the producer took no more.
        (_, Err(error)) => Err(failed(error, acknowledged)),
        (Err(error), Ok(())) => Err(error),
    }
}

fn failed(error: FlushError, acknowledged: u64) -> anyhow::Error {
    anyhow::Error::from(error).context(format!("{acknowledged} messages are stored, later ones may not be"))
}

fn open(arguments: &ProduceArguments) -> Result<(Box<dyn BufRead>, ProgressBar)> {
    if arguments.file.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            eprintln!("reading messages from the keyboard, one per line; Ctrl-D ends");
        }
        return Ok((Box::new(BufReader::with_capacity(INPUT_BUFFER_BYTES, io::stdin())), ProgressBar::hidden()));
    }
    let name = arguments.file.display();
    let file = File::open(&arguments.file).with_context(|| format!("can't open {name}"))?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        bail!("{name} is a directory; name a file");
    }
    // Draws on standard error, and only if that is a terminal.
    let bar = if metadata.is_file() { ProgressBar::new(metadata.len()) } else { ProgressBar::no_length() };
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(name.to_string());
    Ok((Box::new(BufReader::with_capacity(INPUT_BUFFER_BYTES, file)), bar))
}

fn send_lines(mut input: impl BufRead, arguments: &ProduceArguments, producer: &mut Producer, bar: &ProgressBar) -> Result<()> {
    let (mut line, mut number, mut unshown_bytes) = (Vec::new(), 0_u64, 0);
    while read_line(&mut input, &mut line).with_context(|| format!("reading line {}", number + 1))? {
        number += 1;
        let (key, value) = split(&line, &arguments.key).with_context(|| format!("line {number}"))?;
        let id = if arguments.headers.message_id == Some(MessageId::Key) { key.unwrap_or_default() } else { &line };
        let message = arguments.headers.add(Outgoing::new(value), id);
        let record = Record { key, partition: arguments.partition, ..message.record() };
        producer.send(record).with_context(|| format!("line {number}"))?;
        unshown_bytes += line.len() as u64 + 1;
        if unshown_bytes >= PROGRESS_STEP_BYTES {
            bar.inc(unshown_bytes);
            unshown_bytes = 0;
        }
    }
    Ok(())
}

/// Reads up to the next LF, which isn't part of the line; `false` = the input has ended. What follows the last LF is a
/// line too, unless it is nothing.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    // A line beyond any message's limit would only fill the memory.
    let limit = u64::from(MAX_MESSAGE_BYTES_LIMIT);
    let read = input.take(limit + 1).read_until(b'\n', line)? as u64;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read > limit {
        bail!("it is longer than {} MiB, the largest message there can be", limit >> 20);
    }
    Ok(read > 0)
}

/// Key and message of a line.
fn split<'a>(line: &'a [u8], key: &Key) -> Result<(Option<&'a [u8]>, &'a [u8])> {
    match key {
        Key::None => Ok((None, line)),
        Key::Line => Ok((Some(line), line)),
        Key::Separator(separator) => match line.windows(separator.len()).position(|window| window == separator) {
            Some(at) => Ok((Some(&line[..at]), &line[at + separator.len()..])),
            None => bail!("no '{}' between key and message; lines before it were sent", separator.escape_ascii()),
        },
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write it as NAME=VALUE")?;
    Ok((name.into(), value.into()))
}

fn key(text: &str) -> Result<Key, String> {
    match text {
        "none" => Ok(Key::None),
        "line" => Ok(Key::Line),
        "" => Err("a separator has at least one character".into()),
        separator => Ok(Key::Separator(separator.replace("\\t", "\t").into_bytes())),
    }
}

const INPUT_BUFFER_BYTES: usize = 256 << 10;
const PROGRESS_STEP_BYTES: u64 = 1 << 20;
const LINES: &str = "\
A line ends at its LF, which isn't part of the message; a CR before it is. A last line without LF counts, an empty line
is an empty message, and bytes outside ASCII go through as they are. Prints acknowledged=N: so many messages are stored
as safely as the topic promises; and redirected=M if so many of them found a queue full, which passes them on to the topic
that it redirects to.";

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut input: &[u8]) -> Vec<Vec<u8>> {
        let (mut lines, mut line) = (Vec::new(), Vec::new());
        while read_line(&mut input, &mut line).unwrap() {
            lines.push(line.clone());
        }
        lines
    }

    #[test]
    fn lines_end_at_lf_and_nothing_else() {
        assert_eq!(lines(b""), [b""; 0]);
        assert_eq!(lines(b"\n"), [b""]);
        assert_eq!(lines(b"a\n\nb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b"a\r\n\rb\n"), [&b"a\r"[..], b"\rb"]);
        assert_eq!(lines(b"\xff\0\xc3\n\xe2\x80\xa8"), [&b"\xff\0\xc3"[..], b"\xe2\x80\xa8"]);
    }

    #[test]
    fn line_longer_than_any_message_is_refused() {
        let long = vec![b'x'; MAX_MESSAGE_BYTES_LIMIT as usize + 1];
        assert!(read_line(&mut &long[1..], &mut Vec::new()).unwrap());
        assert!(read_line(&mut &long[..], &mut Vec::new()).is_err());
    }

    #[test]
    fn key_is_taken_from_the_line() {
        let check = |line: &'static [u8], how: &str| split(line, &key(how).unwrap()).ok();
        assert_eq!(check(b"a:b:c", "none"), Some((None, &b"a:b:c"[..])));
        assert_eq!(check(b"a:b:c", "line"), Some((Some(&b"a:b:c"[..]), &b"a:b:c"[..])));
        assert_eq!(check(b"a:b:c", ":"), Some((Some(&b"a"[..]), &b"b:c"[..])));
        assert_eq!(check(b"a=>b", "=>"), Some((Some(&b"a"[..]), &b"b"[..])));
        assert_eq!(check(b"a\tb", "\\t"), Some((Some(&b"a"[..]), &b"b"[..])));
        assert_eq!(check(b":", ":"), Some((Some(&b""[..]), &b""[..])));
        assert_eq!(check(b"ab", ":"), None);
        assert!(key("").is_err());
    }
}
