//! `ringmain transaction`: transactions, whichever door their producers come through.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use ringmain_client::wire::transaction::TransactionListed;
use serde_json::json;

use super::output::{self, Cell};
use super::{Format, Target, timestamp};

#[derive(Args)]
pub struct TransactionArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the transactional ids, and what is open
    List(#[command(flatten)] Target),
    /// Abort what is open under a transactional id; whoever uses the id must stop
    Abort(AbortArguments),
}

#[derive(Args)]
struct AbortArguments {
    transactional_id: String,
    #[command(flatten)]
    target: Target,
}

pub fn run(arguments: TransactionArguments, format: Format) -> Result<ExitCode> {
    match arguments.verb {
        Verb::List(target) => {
            let transactions = target.client()?.transactions()?.transactions;
            let since = |listed: &TransactionListed| (listed.begun_ms >= 0).then_some(listed.begun_ms);
            match format {
                Format::Text => {
                    let row = |listed: &TransactionListed| {
                        vec![
                            Cell::text(&listed.transactional_id),
                            Cell::text(&listed.phase),
                            Cell::text(since(listed).map_or_else(|| "-".into(), timestamp::format)),
                            Cell::text(listed.producer.producer_id),
                            Cell::text(listed.producer.epoch),
                        ]
                    };
                    output::table(&LIST_HEAD, &transactions.iter().map(row).collect::<Vec<_>>())?;
                }
                Format::Json => {
                    let object = |listed: &TransactionListed| {
                        json!({
                            "transactional_id": listed.transactional_id, "state": listed.phase, "since_ms": since(listed),
                            "producer_id": listed.producer.producer_id, "epoch": listed.producer.epoch,
                        })
                    };
                    output::json(&transactions.iter().map(object).collect())?;
                }
            }
        }
        Verb::Abort(arguments) => {
            arguments.target.client()?.abort_transaction(&arguments.transactional_id)?;
            match format {
                Format::Text => output::line(&format!("aborted {}", arguments.transactional_id))?,
                Format::Json => output::json(&json!({ "transactional_id": arguments.transactional_id, "aborted": true }))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

const LIST_HEAD: [&str; 5] = ["id", "state", "since", "producer", "epoch"];
