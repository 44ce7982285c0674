//! `ringmain sink`: topics carried on to other systems, by ordinary consumer groups.

mod bulk;
mod document;
mod elasticsearch;
mod endpoint;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Format;
pub use elasticsearch::GaveUp;

#[derive(Args)]
pub struct SinkArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Carry a topic into Elasticsearch, OpenSearch, or whatever else understands their bulk requests
    Elasticsearch(Box<elasticsearch::ElasticsearchArguments>),
}

pub fn run(arguments: &SinkArguments, format: Format) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Elasticsearch(arguments) => elasticsearch::run(arguments, format),
    }
}
