//! `ringmain completions`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::Cli;

#[derive(Args)]
pub struct CompletionsArguments {
    /// For this shell; put what is printed where it looks for completions
    shell: Shell,
}

pub fn run(arguments: &CompletionsArguments) -> Result<ExitCode> {
    // Into memory first: the generator panics when the reader of a pipe has gone.
    let mut script = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "ringmain", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
