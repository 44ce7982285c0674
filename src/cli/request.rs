//! `ringmain request` and `ringmain reply`: questions and answers over a queue.

use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use ringmain_client::{Message, Outgoing, QueueConsumerConfig, RequesterConfig};
use serde_json::json;

use super::{Format, Target, output};

#[derive(Args)]
pub struct RequestArguments {
    /// Queue to ask
    queue: String,
    /// The request [default: standard input, whole]
    message: Option<String>,
    /// Give up after so long; the request may still be worked on
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    timeout_ms: u64,
    #[command(flatten)]
    target: Target,
}

/// Prints the answer, every byte as it came.
pub fn request(arguments: &RequestArguments, format: Format) -> Result<ExitCode> {
    let mut input = Vec::new();
    match &arguments.message {
        Some(message) => input.extend_from_slice(message.as_bytes()),
        None => drop(io::stdin().read_to_end(&mut input).context("reading the request")?),
    }
    let mut requester = arguments.target.client()?.requester(RequesterConfig::default())?;
    let answer = requester.request(&arguments.queue, Outgoing::new(&input), Duration::from_millis(arguments.timeout_ms))?;
    match format {
        Format::Text => {
            let mut out = io::stdout().lock();
            out.write_all(&answer)?;
            out.write_all(if answer.ends_with(b"\n") { b"" } else { b"\n" })?;
        }
        Format::Json => output::json(&json!({ "queue": arguments.queue, "answer": String::from_utf8_lossy(&answer) }))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
#[command(after_help = "A request for which the command fails comes back to the queue, for another try or another worker.")]
pub struct ReplyArguments {
    /// Queue whose requests are answered
    queue: String,
    /// Run for each request, which is its standard input; what it prints is the answer [default: the request itself]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Stop after so many answers
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// Answers until it is stopped.
pub fn reply(arguments: &ReplyArguments) -> Result<ExitCode> {
    let client = arguments.target.client()?;
    let mut consumer = client.queue_consumer(&arguments.queue, QueueConsumerConfig { prefetch: 1, ..QueueConsumerConfig::default() })?;
    let mut replier = client.replier();
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(message) = consumer.recv(TURN)? else { continue };
        if message.reply_to().is_none() {
            eprintln!("ringmain: message {}/{} expects no answer", message.partition_index(), message.offset());
            consumer.reject(&message);
        } else if let Some(answer) = answer(&arguments.command, &message)? {
            replier.reply(&message, Outgoing::new(&answer))?;
            replier.flush()?;
            consumer.ack(&message);
            left -= 1;
        } else {
            consumer.nack(&message, Duration::ZERO);
        }
        consumer.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` = the command failed.
fn answer(command: &[String], message: &Message) -> Result<Option<Vec<u8>>> {
    let request = message.value().unwrap_or_default().to_vec();
    let Some((program, rest)) = command.split_first() else { return Ok(Some(request)) };
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't run {program}"))?;
    let stdin = child.stdin.take();
    // On a thread of its own: a command that prints while it reads must not block on us.
    let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&request)));
    let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
    // One that has read enough closes its end.
    let _ = writer.join();
    if !output.status.success() {
        eprintln!("ringmain: {program} ended with {} on message {}/{}", output.status, message.partition_index(), message.offset());
        return Ok(None);
    }
    Ok(Some(output.stdout))
}

const TURN: Duration = Duration::from_secs(1);
