//! Messaging: a chat with letters to one person and rooms for many. Who is away gets everything on return, in order; who joins
//! a room can read its history.
//!
//! A person has a queue over their own topic. A room is a topic with a queue for each member: all read the same records.
//!
//! `cargo run --release --example chat`

use std::path::Path;
use std::time::Duration;

use ringmain_client::wire::queue::QueueConfig;
use ringmain_client::{Client, ConsumerConfig, Outgoing, ProducerConfig};

mod common;
use common::{Broker, QUIET, Result, consumer, create_queue, print_table, row, text};

pub struct Outcome {
    /// What bob read on return, of alice's letters.
    pub letters: Vec<String>,
    /// What each member read in the room.
    pub room: Vec<(String, Vec<String>)>,
    /// What dave read of the time before he joined.
    pub history: Vec<String>,
    pub sent_letters: Vec<String>,
    pub sent_room: Vec<String>,
}

/// Everything that waits for somebody, acknowledged.
fn read(client: &Client, queue: &str) -> Result<Vec<String>> {
    let mut inbox = consumer(client, queue, 100)?;
    let mut read = Vec::new();
    while let Some(message) = inbox.recv(QUIET)? {
        let from = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        read.push(format!("{from}: {}", text(&message)));
        inbox.ack(&message);
    }
    inbox.close()?;
    Ok(read)
}

fn say(client: &Client, topic: &str, lines: &[(&str, String)]) -> Result<Vec<String>> {
    let mut mouth = client.producer(topic, ProducerConfig::default())?;
    for (who, line) in lines {
        mouth.send(Outgoing::new(line.as_bytes()).key(who.as_bytes()).record())?;
    }
    mouth.close()?;
    Ok(lines.iter().map(|(who, line)| format!("{who}: {line}")).collect())
}

pub fn run(program: &Path, lines: u32) -> Result<Outcome> {
    let mut broker = Broker::start(program)?;
    let client = broker.client()?;
    create_queue(&client, "inbox.bob", "", QueueConfig::default())?;
    for member in ["alice", "bob", "carol"] {
        create_queue(&client, &format!("room.tea.{member}"), "room.tea", QueueConfig::default())?;
    }
    // Bob is away; alice writes to him, and the others talk in the room. The broker dies meanwhile.
    let letters: Vec<_> = (1..=lines).map(|i| ("alice", format!("letter {i}"))).collect();
    let mut sent_letters = say(&client, "inbox.bob", &letters[..letters.len() / 2])?;
    broker.kill_and_restart()?;
    sent_letters.extend(say(&client, "inbox.bob", &letters[letters.len() / 2..])?);
    let talk: Vec<_> = (1..=lines).map(|i| (["alice", "carol"][i as usize % 2], format!("cup {i}"))).collect();
    let sent_room = say(&client, "room.tea", &talk)?;

    // He returns.
    let letters = read(&client, "inbox.bob")?;
    let mut room = Vec::new();
    for member in ["alice", "bob", "carol"] {
        room.push((member.to_owned(), read(&client, &format!("room.tea.{member}"))?));
    }
    // Dave joins, and reads what was said before, without taking it from anybody.
    create_queue(&client, "room.tea.dave", "room.tea", QueueConfig { from_beginning: false, ..QueueConfig::default() })?;
    let mut replay = client.consumer("room.tea", ConsumerConfig::default())?;
    let mut history = Vec::new();
    while history.len() < sent_room.len() {
        let Some(batch) = replay.poll(Duration::from_secs(5))? else { break };
        let words = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        history.extend(batch.records().map(|record| format!("{}: {}", words(record.key), words(record.value))));
    }
    room.push(("dave".into(), read(&client, "room.tea.dave")?));
    Ok(Outcome { letters, room, history, sent_letters, sent_room })
}

impl Outcome {
    /// Everybody has read everything that was meant for them, once and in order.
    pub fn check(&self) {
        assert_eq!(self.letters, self.sent_letters);
        for (member, read) in &self.room {
            let expected: &[String] = if member == "dave" { &[] } else { &self.sent_room };
            assert_eq!(read, expected, "{member}");
        }
        assert_eq!(self.history, self.sent_room);
    }
}

fn main() -> Result<()> {
    let outcome = run(&common::program()?, 500)?;
    let span = |read: &[String]| match (read.first(), read.last()) {
        (Some(first), Some(last)) => format!("{first} … {last}"),
        _ => "nothing".into(),
    };
    let mut rows = vec![row(&["who", "reads", "messages", "from … to"])];
    rows.push(row(&["bob", "his letters, on return", &outcome.letters.len().to_string(), &span(&outcome.letters)]));
    for (member, read) in &outcome.room {
        let what = if member == "dave" { "the room, since he joined" } else { "the room" };
        rows.push(row(&[member, what, &read.len().to_string(), &span(read)]));
    }
    rows.push(row(&["dave", "the room's history", &outcome.history.len().to_string(), &span(&outcome.history)]));
    print_table(&rows);
    outcome.check();
    Ok(())
}
