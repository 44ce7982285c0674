//! The command line: what can be typed, one file per verb.
//!
//! Standard output carries what was asked for and nothing else; everything about it goes to standard error.

pub mod bench;
pub mod completions;
pub mod config;
pub mod consume;
mod consume_queue;
pub mod exit;
pub mod group;
pub mod health;
pub mod log;
mod output;
pub mod produce;
pub mod queue;
pub mod request;
pub mod serve;
pub mod sink;
pub mod status;
mod timestamp;
pub mod topic;
pub mod transaction;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmain_client::{CallError, Client};

/// A durable, thread-per-core message broker for Linux.
#[derive(Parser)]
#[command(name = "ringmain", version, after_help = exit::TABLE, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How results are written: text for people (tables on a terminal, else tab-separated), json for programs
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the broker
    Serve(serve::ServeArguments),
    /// Create, list, describe, alter and delete topics
    Topic(topic::TopicArguments),
    /// Send lines to a topic, one message per line; prints acknowledged=N
    Produce(Box<produce::ProduceArguments>),
    /// Print the messages of a topic, or of a queue
    Consume(Box<consume::ConsumeArguments>),
    /// Carry a topic on to another system
    Sink(sink::SinkArguments),
    /// List, describe, move and delete consumer groups
    Group(group::GroupArguments),
    /// Create, list, describe, alter, empty and delete queues
    Queue(queue::QueueArguments),
    /// List transactions, and abort one
    Transaction(transaction::TransactionArguments),
    /// Send a request to a queue and print the answer
    Request(request::RequestArguments),
    /// Answer the requests of a queue
    Reply(request::ReplyArguments),
    /// Measure: without a mode a tour of about 30 s on a broker of its own
    Bench(Box<bench::BenchArguments>),
    /// What the broker is doing
    Status(Target),
    /// Whether the broker answers and takes writes; see the exit code
    Health(Target),
    /// Look into a data directory whose broker is stopped
    Log(log::LogArguments),
    /// Check or print the configuration that serve would run with
    Config(config::ConfigArguments),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArguments),
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Which broker to talk to.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Native door of the broker
    #[arg(long, value_name = "HOST:PORT", env = "RINGMAIN_CONNECT", default_value = "127.0.0.1:7171")]
    pub connect: String,
}

impl Target {
    pub fn client(&self) -> Result<Client, CallError> {
        Client::connect(&self.connect)
    }
}
