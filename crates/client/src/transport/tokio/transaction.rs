//! Transactions on tokio, in the task that calls them.

use std::fmt;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use ringmain_wire::Op;
use ringmain_wire::transaction::{
    ListTransactions, TransactionAnswer, TransactionCall, TransactionList, TransactionRequest, TransactionToCheck, TransactionsToCheck,
};

use super::super::wall_ms;
use super::{Client, Driver, QueueConsumer};
use crate::error::CallError;
use crate::producer::Record;
use crate::queue::Message;
use crate::transaction::{TransactionConfig, TransactionError, TransactionMachine};

/// A worker with a name, and its transactions, one after the other. It works in the task that calls it.
pub struct Transactor {
    client: Client,
    machine: TransactionMachine,
    driver: Driver,
}

impl fmt::Debug for Transactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactor").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Transactor {
    async fn open(client: &Client, machine: TransactionMachine) -> Result<Transactor, CallError> {
        Ok(Transactor { client: client.clone(), machine, driver: client.driver().await? })
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut TransactionMachine) -> R) -> R {
        f(&mut self.machine)
    }

    /// Does what can be done, and waits for more until then at the latest.
    async fn turn(&mut self, until: Instant) -> Result<(), TransactionError> {
        let (driver, mut machine) = (&mut self.driver, &mut self.machine);
        poll_fn(|cx| driver.poll(cx, &mut machine, Some(until))).await;
        Ok(())
    }
}

transaction_transport!({async} {.await});
