//! `ringmain consume --queue`: messages of a queue, acknowledged once they are printed, or given back.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use ringmain_client::{Client, ConsumedRecord, Message, QueueConsumer, QueueConsumerConfig};

use super::Format;
use super::consume::{ConsumeArguments, to_json};

pub fn run(arguments: &ConsumeArguments, queue: &str, format: Format) -> Result<ExitCode> {
    let client = arguments.target.client()?;
    let topic = client.queue_map(queue)?.topic;
    let config = QueueConsumerConfig {
        prefetch: arguments.prefetch.max(1),
        partitions: (!arguments.partition.is_empty()).then(|| arguments.partition.clone()),
        ..QueueConsumerConfig::default()
    };
    let consumer = client.queue_consumer(queue, config)?;
    let out = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout().lock());
    let left = arguments.count.unwrap_or(u64::MAX);
    Printing { arguments, client, queue, topic, format, consumer, printed: Vec::new(), left, out }.run()?;
    Ok(ExitCode::SUCCESS)
}

struct Printing<'a, W: Write> {
    arguments: &'a ConsumeArguments,
    client: Client,
    queue: &'a str,
    topic: String,
    format: Format,
    consumer: QueueConsumer,
    /// To be acknowledged, once whoever reads along has them.
    printed: Vec<Message>,
    /// Messages until `--count` is reached.
    left: u64,
    out: W,
}

impl<W: Write> Printing<'_, W> {
    fn run(mut self) -> Result<()> {
        let mut silent_since = None;
        while self.left > 0 {
            let mut message = self.consumer.try_recv()?;
            if message.is_none() {
                self.finish()?;
                message = self.consumer.recv(WAIT)?;
            }
            let Some(message) = message else {
                if self.is_at_end()? {
                    break;
                }
                self.waited(&mut silent_since)?;
                continue;
            };
            silent_since = None;
            self.left -= 1;
            self.print(&message)?;
            if self.arguments.ack {
                self.printed.push(message);
            }
            if self.printed.len() >= ACK_BATCH {
                self.finish()?;
            }
        }
        self.finish()
    }

    fn print(&mut self, message: &Message) -> io::Result<()> {
        let view = message.view();
        let record = ConsumedRecord {
            partition_index: message.partition_index(),
            offset: view.offset,
            timestamp_ms: view.timestamp_ms,
            key: view.key,
            value: view.value,
            headers: view.headers,
        };
        match self.format {
            Format::Text => self.arguments.print.write(&self.topic, &record, &mut self.out),
            Format::Json => {
                let mut object = to_json(&self.topic, &record);
                (object["queue"], object["deliveries"]) = (self.queue.into(), view.deliveries.into());
                writeln!(self.out, "{object}")
            }
        }
    }

    /// What was printed is out, then done.
    fn finish(&mut self) -> Result<()> {
        self.out.flush()?;
        if self.printed.is_empty() {
            return Ok(());
        }
        for message in self.printed.drain(..) {
            self.consumer.ack(&message);
        }
        let confirmed = self.consumer.flush()?;
        let lost = confirmed.refused + confirmed.void + confirmed.unknown;
        if lost > 0 {
            eprintln!("ringmain: {lost} messages may come again: the connection or their deadline ended before they were acknowledged");
        }
        Ok(())
    }

    /// For `--exit-at-end`: nothing is ready, or this takes no more.
    fn is_at_end(&mut self) -> Result<bool> {
        if !self.arguments.exit_at_end {
            return Ok(false);
        }
        let states = self.client.describe_queue(self.queue)?;
        let chosen = |index: usize| self.arguments.partition.is_empty() || self.arguments.partition.contains(&(index as u32));
        let ready: u64 = states.iter().enumerate().filter(|(index, _)| chosen(*index)).map(|(_, state)| state.ready).sum();
        Ok(ready == 0 || self.consumer.held() >= self.arguments.prefetch)
    }

    fn waited(&mut self, silent_since: &mut Option<Instant>) -> Result<()> {
        let Some(problem) = self.consumer.connection_problem() else {
            *silent_since = None;
            return Ok(());
        };
        match silent_since {
            None => {
                eprintln!("ringmain: {problem}; trying again");
                *silent_since = Some(Instant::now());
            }
            Some(since) if since.elapsed() > PATIENCE && self.arguments.count.is_some() => return Err(problem.into()),
            Some(_) => {}
        }
        Ok(())
    }
}

const OUTPUT_BUFFER_BYTES: usize = 256 << 10;
const ACK_BATCH: usize = 256;
const WAIT: Duration = Duration::from_millis(100);
/// A broker that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(30);
