//! `ringmain sink elasticsearch`: every record is in the index exactly once, whatever happens to the sink and to the engine.

mod endpoint;
mod engine;
mod pipeline;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringmain_client::Record;
use serde_json::Value;

use crate::harness::{Broker, PROGRAM, Random, Start, clean, ringmain};
use endpoint::{Endpoint, Fault};

/// What a test sends: by document id, what is expected of it.
#[derive(Default)]
struct Sent {
    /// id → field `n` or `message`.
    indexed: BTreeMap<String, Value>,
    /// id → value.
    rejected: BTreeMap<String, String>,
}

/// Sends so many records to a topic of four partitions: objects, text, some whose `n` is no number, a few without a value.
fn send(broker: &Broker, topic: &str, numbers: std::ops::Range<u64>, sent: &mut Sent) {
    let client = broker.client();
    let mut producer = client.producer(topic, Default::default()).unwrap();
    for n in numbers {
        let (value, field) = match n % 50 {
            7 => (format!("{{\"n\":\"no number {n}\"}}"), None),
            8 => (format!("line \"{n}\"\tof text"), Some(Value::from(format!("line \"{n}\"\tof text")))),
            _ => (format!("{{\n \"n\": {n}\n}}"), Some(Value::from(n))),
        };
        let partition = (n % 4) as u32;
        // Nothing else is sent there, so offsets are numbers.
        let id = format!("{topic}-{partition}-{}", n / 4);
        let record = Record { key: Some(b"k"), partition: Some(partition), ..Record::default() };
        if n % 50 == 9 {
            producer.send(record).unwrap();
            continue;
        }
        producer.send(Record { value: Some(value.as_bytes()), ..record }).unwrap();
        match field {
            Some(field) => drop(sent.indexed.insert(id, field)),
            None => drop(sent.rejected.insert(id, value)),
        }
    }
    producer.flush().unwrap();
}

fn sink(broker: &Broker, url: &str, topic: &str, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    clean(&mut command).args(["sink", "elasticsearch", "--url", url, "--topic", topic, "--index", "logs", "--connect", &broker.address()]);
    command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A sink that is killed at the end at the latest.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Running {
        // What it says would fill the pipe in a long test.
        Running(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn kill(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "the sink ended by itself");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for something to come about.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The dead-letter topic holds just these, each with its story; after a kill one may be there twice.
fn check_dead_letters(broker: &Broker, topic: &str, sent: &Sent) {
    let printed = broker.run(&["consume", &format!("{topic}.rejected"), "--exit-at-end", "--format", "json"]);
    let mut found = BTreeSet::new();
    for line in String::from_utf8(printed).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let header = |name: &str| {
            let headers = record["headers"].as_array().unwrap();
            headers.iter().find(|header| header["name"] == name).unwrap_or_else(|| panic!("no {name}: {line}"))["value"].clone()
        };
        let id = header("ringmain.id").as_str().unwrap().to_owned();
        assert_eq!(record["value"].as_str(), sent.rejected.get(&id).map(String::as_str), "{line}");
        assert_eq!(record["key"], "k");
        assert!(header("ringmain.reason").as_str().unwrap().starts_with("400 mapper_parsing_exception: failed to parse"), "{line}");
        let place = ["topic", "partition", "offset"].map(|name| header(&format!("ringmain.{name}")).as_str().unwrap().to_owned());
        assert_eq!(place.join("-"), id);
        found.insert(id);
    }
    assert_eq!(found, sent.rejected.keys().cloned().collect());
}

fn check_index(endpoint: &Endpoint, sent: &Sent) {
    let index = endpoint.index();
    let missing: Vec<_> = sent.indexed.keys().filter(|id| !index.contains_key(*id)).take(5).collect();
    assert!(missing.is_empty(), "not in the index: {missing:?} …");
    for (id, source) in &index {
        let field = if source["n"].is_null() { &source["message"] } else { &source["n"] };
        assert_eq!(Some(field), sent.indexed.get(id), "{id}");
        assert!(source["@timestamp"].is_string(), "{id}: {source}");
    }
    assert_eq!(index.len(), sent.indexed.len());
}

#[test]
fn sink_fills_index_once_while_endpoint_fails_and_sink_is_killed() {
    let broker = Broker::start("sink", Start::with(&["--shards", "2"]));
    broker.run(&["topic", "create", "t", "--partitions", "4"]);
    let mut random = Random::seeded();
    let mut endpoint = Endpoint::start();
    let (url, mut sent) = (endpoint.url(), Sent::default());
    // Small bulks, so that there are many to go wrong.
    let arguments = ["--bulk-bytes", "16K", "--timeout", "1"];
    endpoint.faults(Box::new(move |_| match random.below(12) {
        0 => Fault::Status(503),
        1 => Fault::Status(429),
        2 => Fault::BusyItems,
        3 => Fault::TakenWithoutAnswer,
        4 => Fault::AnswerCut,
        5 if random.below(4) == 0 => Fault::Slow(Duration::from_millis(1500)),
        _ => Fault::None,
    }));
    send(&broker, "t", 0..8000, &mut sent);
    let mut running = Running::start(sink(&broker, &url, "t", &arguments));
    until("some documents", || endpoint.index().len() > 500);
    running.kill();
    let before = endpoint.index().len();
    running = Running::start(sink(&broker, &url, "t", &arguments));
    until("more documents after a kill", || endpoint.index().len() > before + 500);
    endpoint.stop();
    send(&broker, "t", 8000..12_000, &mut sent);
    running.kill();
    running = Running::start(sink(&broker, &url, "t", &arguments));
    endpoint.restart();
    let before = endpoint.index().len();
    until("documents after a restart", || endpoint.index().len() > before + 200);
    running.kill();
    // To the end, through the same faults, then once more with nothing to do.
    let output = sink(&broker, &url, "t", &[&arguments[..], &["--exit-at-end", "--format", "json"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(summary["indexed"].as_u64() > Some(0) && summary["repeats"].as_u64() > Some(0), "{summary}");
    endpoint.faults(Box::new(|_| Fault::None));
    let again = sink(&broker, &url, "t", &["--exit-at-end"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), "indexed=0 was_there=0 rejected=0 skipped=0 repeats=0\n");
    check_index(&endpoint, &sent);
    check_dead_letters(&broker, "t", &sent);
    assert_eq!(endpoint.violations(), Vec::<String>::new());
}

#[test]
fn sink_cuts_what_is_too_large_and_only_creates_when_asked() {
    let broker = Broker::start("sink-large", Start::default());
    broker.run(&["topic", "create", "t", "--partitions", "4"]);
    let (endpoint, mut sent) = (Endpoint::start(), Sent::default());
    endpoint.takes_at_most(2000);
    send(&broker, "t", 0..200, &mut sent);
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(3000));
    broker.run_with_input(&["produce", "t", "--partition", "0"], large.as_bytes());
    let output = sink(&broker, &endpoint.url(), "t", &["--create", "--count", "201", "--group", "g"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "indexed=192 was_there=0 rejected=5 skipped=4 repeats=0\n", "{}", String::from_utf8_lossy(&output.stderr));
    check_index(&endpoint, &sent);
    let reasons = broker.run(&["consume", "t.rejected", "--exit-at-end", "--print", "%h\n"]);
    assert!(String::from_utf8_lossy(&reasons).contains("ringmain.reason=413 "), "{}", String::from_utf8_lossy(&reasons));
    // Another group sends them all again.
    endpoint.takes_at_most(usize::MAX);
    let output = sink(&broker, &endpoint.url(), "t", &["--create", "--exit-at-end", "--group", "h"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "indexed=1 was_there=192 rejected=4 skipped=4 repeats=0\n");
    assert_eq!(endpoint.violations(), Vec::<String>::new());
}

#[test]
fn sink_that_can_do_nothing_says_why() {
    let broker = Broker::start("sink-refused", Start::default());
    broker.run(&["topic", "create", "t"]);
    broker.run_with_input(&["produce", "t"], b"{}\n");
    let mut endpoint = Endpoint::start();
    let url = endpoint.url();
    let check = |more: &[&str], code: i32, said: &str| {
        let output = sink(&broker, &url, "t", &[more, &["--exit-at-end"]].concat()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    };
    endpoint.faults(Box::new(|_| Fault::Status(401)));
    check(&[], 1, "refuses bulk requests: 401 security_exception");
    endpoint.faults(Box::new(|_| Fault::Status(503)));
    check(&["--give-up-after", "1"], 75, "has taken nothing for 1 s: 503");
    endpoint.stop();
    check(&["--give-up-after", "0"], 75, "refused");
    check(&["--dead-letter", "t"], 1, "the topic itself");
    for (wrong, said) in
        [(["--url", "https://x"], "TLS"), (["--index", "Logs"], "can't be an index"), (["--bulk-bytes", "1"], "give 1K to 64M")]
    {
        let mut arguments = vec!["sink", "elasticsearch", "--topic", "t"];
        arguments.extend(wrong);
        arguments.extend(if wrong[0] == "--url" { &[][..] } else { &["--url", "http://x"] });
        let output = ringmain(&arguments, b"");
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
    // Nothing of it was committed.
    endpoint.restart();
    endpoint.faults(Box::new(|_| Fault::None));
    let output = sink(&broker, &url, "t", &["--exit-at-end"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "indexed=1 was_there=0 rejected=0 skipped=0 repeats=0\n");
}

const PATIENCE: Duration = Duration::from_secs(60);
