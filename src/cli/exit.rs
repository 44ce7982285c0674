//! How the program ends: one table from what went wrong to a number that scripts can branch on.

use std::io;
use std::process::ExitCode;

use ringmain::config::ConfigError;
use ringmain::log::tool::ToolError;
use ringmain_client::{CallError, ConnectionError, ConsumeError, DeliveryError, FlushError, QueueError, RequestError};

use super::sink::GaveUp;

/// For `--help` and the README.
pub const TABLE: &str = "\
Exit codes:
   0  done
   1  it didn't work; standard error says why
   2  wrong usage or configuration
   3  log verify: whole but for a torn end, as after a crash; the next start cuts it
   4  log verify: stored data is damaged
   5  log verify, dump, repair: the directory is in use by a running broker
  69  no broker answers
  75  the broker can't do it now (disk full, overloaded, stopping), or what a sink fills, or a request had no answer; try again later";

pub const TORN: u8 = 3;
pub const DAMAGED: u8 = 4;
const IN_USE: u8 = 5;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 69;
const TRY_LATER: u8 = 75;

/// Says what went wrong and chooses the number.
pub fn code(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        // Whoever reads our output has seen enough (`| head`): no failure, and nobody to tell.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let number = number(&error);
            let hint =
                if number == UNREACHABLE { "\nstart one with 'ringmain serve', or name another with --connect HOST:PORT" } else { "" };
            eprintln!("ringmain: {}{hint}", sentence(&error));
            ExitCode::from(number)
        }
    }
}

/// The error and its causes, without repeating a cause that its error has quoted already.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The first cause that decides.
fn number(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<ConfigError>() {
            return USAGE;
        }
        if let Some(ToolError::InUse) = cause.downcast_ref::<ToolError>() {
            return IN_USE;
        }
        if cause.is::<ConnectionError>() {
            return UNREACHABLE;
        }
        if cause.is::<GaveUp>() {
            return TRY_LATER;
        }
        let code = if let Some(error) = cause.downcast_ref::<CallError>() {
            match error {
                CallError::Connection(_) | CallError::TimedOut { .. } => return UNREACHABLE,
                CallError::Broker(error) => error.code,
                _ => continue,
            }
        } else if let Some(FlushError { first, .. }) = cause.downcast_ref::<FlushError>() {
            match first {
                DeliveryError::TimedOut { .. } => return UNREACHABLE,
                DeliveryError::Refused { error, .. } => error.code,
                DeliveryError::Ended { .. } => continue,
            }
        } else if let Some(ConsumeError::Broker { error, .. }) = cause.downcast_ref::<ConsumeError>() {
            error.code
        } else if let Some(QueueError::Broker { error, .. }) = cause.downcast_ref::<QueueError>() {
            error.code
        } else if let Some(RequestError::TimedOut { .. }) = cause.downcast_ref::<RequestError>() {
            return TRY_LATER;
        } else {
            continue;
        };
        return if code.is_retriable() { TRY_LATER } else { FAILED };
    }
    FAILED
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use ringmain::config::Origin;
    use ringmain_client::BrokerError;
    use ringmain_client::wire::{ErrorCode, Op};

    use super::*;

    fn refused(code: ErrorCode) -> CallError {
        CallError::Broker(BrokerError { op: Op::CreateTopic, code, number: code as u16, message: String::new() })
    }

    #[test]
    fn number_follows_the_cause_however_deep() {
        let config = ConfigError { origin: Origin::Default, message: String::new() };
        let cases: [(anyhow::Error, u8); 7] = [
            (ToolError::InUse.into(), IN_USE),
            (config.into(), USAGE),
            (CallError::Connection(ConnectionError::Closed).into(), UNREACHABLE),
            (ConnectionError::Closed.into(), UNREACHABLE),
            (refused(ErrorCode::DiskFull).into(), TRY_LATER),
            (refused(ErrorCode::TopicExists).into(), FAILED),
            (anyhow::anyhow!("anything else"), FAILED),
        ];
        for (error, expected) in cases {
            assert_eq!(number(&error), expected, "{error}");
            assert_eq!(number(&Err::<(), _>(error).context("while creating a topic").unwrap_err()), expected);
        }
    }

    #[test]
    fn broken_pipe_is_no_failure() {
        assert!(is_broken_pipe(&io::Error::from(io::ErrorKind::BrokenPipe).into()));
        assert!(!is_broken_pipe(&io::Error::from(io::ErrorKind::NotFound).into()));
    }
}
