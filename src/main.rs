//! The `ringmain` program: parse, one match on the verb, exit code.

use std::process::ExitCode;

use clap::Parser;

mod cli;

/// In the program only: a library must not choose for the programs that link it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli::Cli { command, format } = cli::Cli::parse();
    let outcome = match command {
        cli::Command::Serve(arguments) => cli::serve::run(&arguments),
        cli::Command::Topic(arguments) => cli::topic::run(arguments, format),
        cli::Command::Produce(arguments) => cli::produce::run(&arguments, format),
        cli::Command::Consume(arguments) => cli::consume::run(&arguments, format),
        cli::Command::Sink(arguments) => cli::sink::run(&arguments, format),
        cli::Command::Group(arguments) => cli::group::run(arguments, format),
        cli::Command::Queue(arguments) => cli::queue::run(arguments, format),
        cli::Command::Transaction(arguments) => cli::transaction::run(arguments, format),
        cli::Command::Request(arguments) => cli::request::request(&arguments, format),
        cli::Command::Reply(arguments) => cli::request::reply(&arguments),
        cli::Command::Bench(arguments) => cli::bench::run(arguments, format),
        cli::Command::Status(arguments) => cli::status::run(&arguments, format),
        cli::Command::Health(arguments) => cli::health::run(&arguments, format),
        cli::Command::Log(arguments) => cli::log::run(&arguments, format),
        cli::Command::Config(arguments) => cli::config::run(&arguments, format),
        cli::Command::Completions(arguments) => cli::completions::run(&arguments),
    };
    cli::exit::code(outcome)
}
