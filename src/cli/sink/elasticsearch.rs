//! `ringmain sink elasticsearch`: a consumer group whose work is to fill a search engine's index. A record is committed when the
//! engine has answered for it, or the dead-letter topic has it. What is sent twice has the same id.

use std::collections::VecDeque;
use std::fmt;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use ringmain_client::wire::ErrorCode;
use ringmain_client::wire::control::{CreateTopic, TopicConfig};
use ringmain_client::wire::record::{HeadersBuilder, headers};
use ringmain_client::{
    CallError, Client, ConsumeError, ConsumerConfig, GroupConfig, GroupConsumeError, GroupConsumer, Producer, ProducerConfig, Record,
    RecordBatch, StartFrom,
};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::super::{Format, Target, consume, output};
use super::bulk::{Outcome, Verdict};
use super::document::{Document, Place, id};
use super::endpoint::{self, Endpoint};

#[derive(Args)]
#[command(after_help = DOCUMENTS)]
pub struct ElasticsearchArguments {
    /// Where the engine listens, as http://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = endpoint::url)]
    url: String,
    /// Topic to read
    #[arg(long)]
    topic: String,
    /// Consumer group to read as; several sinks of one group share the partitions [default: sink-INDEX]
    #[arg(long)]
    group: Option<String>,
    /// Index, alias or data stream to fill [default: the topic's name, in lower case]
    #[arg(long, value_name = "NAME", value_parser = index)]
    index: Option<String>,
    /// Only add documents, never replace one of the same id; data streams ask for it
    #[arg(long)]
    create: bool,
    /// Topic for the documents that the engine refuses for good; made when it is needed [default: TOPIC.rejected]
    #[arg(long, value_name = "TOPIC")]
    dead_letter: Option<String>,
    /// Where to begin in partitions that the group never committed: beginning, end, an offset, @ and milliseconds since
    /// 1970, or a time as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "WHERE", default_value = "beginning", value_parser = consume::start)]
    from: StartFrom,
    /// Most bytes of one bulk request, 1K to 64M; a larger document goes alone
    #[arg(long, value_name = "BYTES", default_value = "4M", value_parser = bulk_bytes)]
    bulk_bytes: usize,
    /// An answer that takes longer is none, and the request is made again
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// End with an error when the engine takes nothing for so long [default: try for ever]
    #[arg(long, value_name = "SECONDS")]
    give_up_after: Option<u64>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Stop when every partition was read to its end
    #[arg(long)]
    exit_at_end: bool,
    /// Value of the Authorization header, as 'ApiKey …' or 'Basic …'; better in the environment, where others don't see it
    #[arg(long, value_name = "VALUE", env = "RINGMAIN_SINK_AUTHORIZATION", hide_env_values = true)]
    authorization: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub fn run(arguments: &ElasticsearchArguments, format: Format) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let client = arguments.target.client()?;
    let topic = client.describe_topic(&arguments.topic)?.info;
    let index = match &arguments.index {
        Some(index) => index.clone(),
        None => index(&arguments.topic.to_lowercase()).map_err(|error| anyhow::anyhow!("{error}; name one with --index"))?,
    };
    let group = arguments.group.clone().unwrap_or_else(|| format!("sink-{index}"));
    let dead_letter = arguments.dead_letter.clone().unwrap_or_else(|| format!("{}.rejected", arguments.topic));
    if dead_letter == arguments.topic {
        bail!("--dead-letter {dead_letter} is the topic itself: what is refused would come again and again");
    }
    // What was only handed out isn't done: nothing is committed but by `Sink::commit`.
    let member = GroupConfig { group, client_id: "ringmain-sink".into(), commits_on_revoke: false, ..GroupConfig::default() };
    let config = ConsumerConfig { from: arguments.from, ..ConsumerConfig::default() };
    let consumer = client.group_consumer(&arguments.topic, member, config)?;
    let endpoint = Endpoint::new(&arguments.url, arguments.authorization.clone(), Duration::from_secs(arguments.timeout));
    let mut sink = Sink {
        arguments,
        index,
        consumer,
        endpoint,
        dead_letters: DeadLetters { client, topic: dead_letter, source: arguments.topic.clone(), room: topic.config, producer: None },
        stop,
        left: arguments.count.unwrap_or(u64::MAX),
        open: VecDeque::new(),
        open_bytes: 0,
        uncommitted: false,
        done: Done::default(),
        trouble: Trouble::default(),
        progress: Progress::new(),
    };
    let outcome = sink.run();
    sink.progress.bar.finish_and_clear();
    // Also when something failed: so much is done.
    let Done { indexed, was_there, rejected, skipped, repeats } = sink.done;
    match format {
        Format::Text => output::line(&sink.done.to_string())?,
        Format::Json => output::json(&json!({
            "topic": arguments.topic, "index": sink.index, "indexed": indexed, "was_there": was_there, "rejected": rejected,
            "skipped": skipped, "repeats": repeats,
        }))?,
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

struct Sink<'a> {
    arguments: &'a ElasticsearchArguments,
    index: String,
    consumer: GroupConsumer,
    endpoint: Endpoint,
    dead_letters: DeadLetters,
    stop: Arc<AtomicBool>,
    /// Messages until `--count` is reached.
    left: u64,
    /// Handed out and not settled. Bounded by `--bulk-bytes` and one batch more: nothing is polled for above that.
    open: VecDeque<Document>,
    open_bytes: usize,
    /// A commit is owed to the group.
    uncommitted: bool,
    done: Done,
    trouble: Trouble,
    progress: Progress,
}

impl Sink<'_> {
    fn run(&mut self) -> Result<()> {
        while self.left > 0 && !self.is_stopping() {
            let at_end = self.gather()?;
            if !self.deliver()? {
                // Told to stop: what isn't settled isn't committed either, and comes again.
                return Ok(());
            }
            self.dead_letters.flush()?;
            self.commit()?;
            self.progress.show(&self.done);
            if at_end && self.arguments.exit_at_end {
                break;
            }
        }
        let patience = Instant::now() + PATIENCE;
        while self.uncommitted {
            if Instant::now() > patience {
                bail!("the broker doesn't take the group's commit; the last documents will be sent once more");
            }
            std::thread::sleep(BACK_OFF_MIN);
            self.commit()?;
        }
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes records until a bulk is full or nothing more comes for a moment; whether there is nothing left to take.
    fn gather(&mut self) -> Result<bool> {
        let mut until = None;
        loop {
            let now = Instant::now();
            let wait = until.map_or(POLL, |until: Instant| until.saturating_duration_since(now));
            match self.consumer.poll(wait) {
                Ok(Some(batch)) => {
                    self.take(&batch)?;
                    self.consumer.recycle(batch);
                    until.get_or_insert(now + LINGER);
                }
                Ok(None) => return Ok(self.open.is_empty() && self.consumer.at_end()),
                // The broker is away: it comes back, and so do our partitions.
                Err(error) if is_passing(&error) => {
                    self.progress.say(&format!("{error}; trying again"));
                    std::thread::sleep(BACK_OFF_MIN);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
            let is_full = self.open_bytes >= self.arguments.bulk_bytes || self.open.len() >= BULK_MAX_DOCUMENTS;
            if is_full || self.left == 0 || self.is_stopping() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
        }
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let place = Place { topic: &self.arguments.topic, index: &self.index, creates: self.arguments.create };
        self.uncommitted = true;
        for record in batch.records() {
            if self.left == 0 {
                // The rest of the batch is whoever reads next's.
                return Ok(self.consumer.seek(batch.partition_index(), record.offset)?);
            }
            self.left -= 1;
            match Document::of(&record, &place) {
                Some(document) => {
                    self.open_bytes += document.size_bytes();
                    self.open.push_back(document);
                }
                None => self.done.skipped += 1,
            }
        }
        Ok(())
    }

    /// Sends until every document is settled; `false` = told to stop before.
    fn deliver(&mut self) -> Result<bool> {
        let mut most_bytes = self.arguments.bulk_bytes;
        while !self.open.is_empty() {
            let (body, count) = self.body(most_bytes);
            let (outcome, pause) = self.endpoint.bulk(&body, count).with_context(|| self.arguments.url.clone())?;
            let problem = match outcome {
                Outcome::Settled(verdicts) => self.settle(verdicts)?,
                Outcome::TooLarge(reason) if count == 1 => self.settle(vec![Verdict::Rejected(reason)])?,
                Outcome::TooLarge(_) => {
                    most_bytes = body.len() / 2;
                    continue;
                }
                Outcome::Again(reason) => Some(reason),
                Outcome::Refused(reason) => bail!("{} refuses bulk requests: {reason}", self.arguments.url),
            };
            match problem {
                None => self.trouble.ended(&self.progress),
                Some(reason) if !self.wait(&reason, pause)? => return Ok(false),
                Some(_) => {}
            }
        }
        self.open_bytes = 0;
        Ok(true)
    }

    /// As many of the open documents as go into one request, and their number, at least one.
    fn body(&self, most_bytes: usize) -> (Vec<u8>, usize) {
        let (mut body, mut count) = (Vec::new(), 0);
        for document in self.open.iter().take(BULK_MAX_DOCUMENTS) {
            if count > 0 && body.len() + document.lines.len() > most_bytes {
                break;
            }
            body.extend_from_slice(&document.lines);
            count += 1;
        }
        (body, count)
    }

    /// Takes the settled ones out; why the others are still there, if there are any.
    fn settle(&mut self, verdicts: Vec<Verdict>) -> Result<Option<String>> {
        let (mut later, mut problem) = (Vec::new(), None);
        let count = verdicts.len();
        for verdict in verdicts {
            let Some(document) = self.open.pop_front() else { break };
            match verdict {
                Verdict::Indexed => self.done.indexed += 1,
                Verdict::WasThere => self.done.was_there += 1,
                Verdict::Rejected(reason) => {
                    self.dead_letters.send(&document, &reason)?;
                    self.done.rejected += 1;
                }
                Verdict::Later(reason) => {
                    problem.get_or_insert(reason);
                    later.push(document);
                }
            }
        }
        if later.len() < count {
            self.trouble.moved();
        }
        self.open.extend(later);
        Ok(problem)
    }

    /// Waits before the next try; `false` = told to stop. Errors: waited for too long.
    fn wait(&mut self, reason: &str, pause: Option<Duration>) -> Result<bool> {
        let since = *self.trouble.since.get_or_insert_with(|| {
            self.progress.say(&format!("{}: {reason}; trying again", self.arguments.url));
            Instant::now()
        });
        if self.arguments.give_up_after.is_some_and(|limit| since.elapsed() >= Duration::from_secs(limit)) {
            return Err(GaveUp { url: self.arguments.url.clone(), after: since.elapsed(), reason: reason.to_owned() }.into());
        }
        self.done.repeats += 1;
        let until = Instant::now() + pause.unwrap_or_default().max(self.trouble.next_wait());
        while Instant::now() < until {
            if self.is_stopping() {
                return Ok(false);
            }
            self.progress.show(&self.done);
            std::thread::sleep(POLL.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(true)
    }

    /// What was settled is done. A broker that is away is asked again next time.
    fn commit(&mut self) -> Result<()> {
        if !self.uncommitted {
            return Ok(());
        }
        match self.consumer.commit() {
            Ok(()) => self.uncommitted = false,
            // The partitions are others', who send the same documents under the same ids.
            Err(GroupConsumeError::Group(CallError::Broker(error))) if consume::is_rebalance(error.code) => self.uncommitted = false,
            Err(error) if is_passing(&error) => self.progress.say(&format!("{error}; trying again")),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Whether asking again later may help.
fn is_passing(error: &GroupConsumeError) -> bool {
    match error {
        GroupConsumeError::Group(CallError::Connection(_) | CallError::TimedOut { .. }) => true,
        GroupConsumeError::Group(CallError::Broker(error)) | GroupConsumeError::Consume(ConsumeError::Broker { error, .. }) => {
            error.code.is_retriable()
        }
        _ => false,
    }
}

/// The engine took nothing for too long.
#[derive(Debug)]
pub struct GaveUp {
    url: String,
    after: Duration,
    reason: String,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has taken nothing for {} s: {}", self.url, self.after.as_secs(), self.reason)
    }
}

impl std::error::Error for GaveUp {}

/// The topic of documents that are refused for good.
struct DeadLetters {
    client: Client,
    topic: String,
    source: String,
    /// Settings of the source: the other has to hold its records.
    room: TopicConfig,
    producer: Option<Producer>,
}

impl DeadLetters {
    /// The record as it was, with its story as headers behind its own.
    fn send(&mut self, document: &Document, reason: &str) -> Result<()> {
        let mut with = HeadersBuilder::default();
        for (name, value) in headers(&document.headers).flatten() {
            with.push(name, value);
        }
        let (partition, offset) = (document.partition_index.to_string(), document.offset.to_string());
        let id = id(&self.source, document.partition_index, document.offset);
        let story = [("reason", reason), ("topic", &self.source), ("partition", &partition), ("offset", &offset), ("id", &id)];
        for (name, value) in story {
            with.push(format!("ringmain.{name}").as_bytes(), Some(value.as_bytes()));
        }
        let record = Record {
            key: document.key.as_deref(),
            value: Some(&document.value),
            headers: with.as_bytes(),
            timestamp_ms: Some(document.timestamp_ms),
            partition: None,
        };
        self.producer()?.send(record).with_context(|| format!("{id} can't go to the dead-letter topic"))?;
        Ok(())
    }

    fn producer(&mut self) -> Result<&mut Producer> {
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => {
                let max_message_bytes = self.room.max_message_bytes.saturating_add(STORY_MAX_BYTES);
                let config = TopicConfig { max_message_bytes, ..TopicConfig::default() };
                match self.client.create_topic(&CreateTopic { name: self.topic.clone(), partition_count: 1, config }) {
                    Ok(_) => {}
                    Err(CallError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
                    Err(error) => return Err(error).with_context(|| format!("the dead-letter topic {} can't be made", self.topic)),
                }
                self.client.producer(&self.topic, ProducerConfig::default())?
            }
        };
        Ok(self.producer.insert(producer))
    }

    /// Returns when the broker has them as safely as their topic asks for.
    fn flush(&mut self) -> Result<()> {
        match &mut self.producer {
            Some(producer) => producer.flush().with_context(|| format!("the dead-letter topic {}", self.topic)),
            None => Ok(()),
        }
    }
}

/// What was achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    indexed: u64,
    was_there: u64,
    rejected: u64,
    skipped: u64,
    repeats: u64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Done { indexed, was_there, rejected, skipped, repeats } = self;
        write!(f, "indexed={indexed} was_there={was_there} rejected={rejected} skipped={skipped} repeats={repeats}")
    }
}

/// An engine that doesn't take what it is sent.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    waits: u32,
}

impl Trouble {
    /// Twice as long as last time.
    fn next_wait(&mut self) -> Duration {
        let wait = (BACK_OFF_MIN * 2u32.saturating_pow(self.waits.min(16))).min(BACK_OFF_MAX);
        self.waits += 1;
        wait
    }

    /// Some of it was taken: patience begins anew.
    fn moved(&mut self) {
        self.waits = 0;
        if let Some(since) = &mut self.since {
            *since = Instant::now();
        }
    }

    fn ended(&mut self, progress: &Progress) {
        if let Some(since) = self.since.take() {
            progress.say(&format!("taken again after {:.1} s", since.elapsed().as_secs_f32()));
        }
        self.waits = 0;
    }
}

/// A line on a terminal that changes; else one on standard error every few seconds, when there is something new.
struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    shown: Done,
    shown_at: Instant,
    began: Instant,
}

impl Progress {
    fn new() -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Progress { bar, is_terminal, shown: Done::default(), shown_at: Instant::now(), began: Instant::now() }
    }

    fn show(&mut self, done: &Done) {
        let every = if self.is_terminal { POLL } else { SHOW_EVERY };
        if *done == self.shown || self.shown_at.elapsed() < every {
            return;
        }
        let per_second = done.indexed as f64 / self.began.elapsed().as_secs_f64();
        let text = format!(
            "{} indexed, {} rejected, {} repeats, {} documents/s",
            HumanCount(done.indexed + done.was_there),
            HumanCount(done.rejected),
            HumanCount(done.repeats),
            HumanCount(per_second as u64)
        );
        if self.is_terminal {
            self.bar.set_message(text);
            self.bar.tick();
        } else {
            eprintln!("ringmain: {text}");
        }
        (self.shown, self.shown_at) = (*done, Instant::now());
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("ringmain: {text}"));
    }
}

/// Rules of Elasticsearch's indexes.
fn index(name: &str) -> Result<String, String> {
    let is_wrong = |c: char| c.is_uppercase() || c.is_control() || "\\/*?\"<>| ,#:".contains(c);
    if name.is_empty() || name.len() > 255 || name.starts_with(['-', '_', '+']) || [".", ".."].contains(&name) || name.contains(is_wrong) {
        return Err(format!("'{name}' can't be an index: 1 to 255 characters, none of them capital or \\/*?\"<>| ,#:, no - _ + first"));
    }
    Ok(name.to_owned())
}

fn bulk_bytes(text: &str) -> Result<usize, String> {
    let bytes = ringmain::config::parse_bytes(text)?;
    usize::try_from(bytes).ok().filter(|bytes| (1 << 10..=64 << 20).contains(bytes)).ok_or_else(|| "give 1K to 64M".into())
}

/// Also the bound of the verdicts to be read from one answer.
const BULK_MAX_DOCUMENTS: usize = 10_000;
/// What a record gets on its way to the dead-letter topic: reason, names, numbers.
const STORY_MAX_BYTES: u32 = 4 << 10;
/// A bulk that isn't full leaves after so long.
const LINGER: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(100);
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// A broker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(30);
const DOCUMENTS: &str = "\
A message that is a JSON object is the document, as it is; one without @timestamp gets the message's time as such. Any
other message becomes {\"@timestamp\": …, \"message\": …, \"key\": …}, bytes outside UTF-8 replaced; one without a value is
skipped. The id is TOPIC-PARTITION-OFFSET, so that sending again changes nothing. A group that was made for a deleted topic
of the same name has to be deleted with it.

Nothing is committed before the engine has answered for it. 429, 5xx and broken connections are tried again, after 0.1 s,
then longer, up to 30 s; so is a document that was refused because of its index (closed, missing, read-only). A document
that is wrong itself goes to the dead-letter topic, with headers ringmain.reason, .topic, .partition, .offset, .id; after a
crash it can be there twice. SIGINT and SIGTERM end it in good order.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_follows_the_rules() {
        for name in ["logs", "logs-2026.11.21", "a_b", "größe"] {
            assert_eq!(index(name).as_deref(), Ok(name));
        }
        for name in ["", "Logs", "_logs", "-x", "+x", ".", "..", "a b", "a/b", "a*", "a:b", "a,b", &"x".repeat(256)] {
            assert!(index(name).is_err(), "{name}");
        }
    }

    #[test]
    fn waits_double_up_to_a_limit_and_begin_anew() {
        let mut trouble = Trouble::default();
        let waits: Vec<u128> = (0..20).map(|_| trouble.next_wait().as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[19], 30_000);
        trouble.moved();
        assert_eq!(trouble.next_wait(), BACK_OFF_MIN);
    }
}
