//! Transactions with blocking calls, on the caller's thread.

use std::time::{Duration, Instant};

use ringmain_wire::Op;
use ringmain_wire::transaction::{
    ListTransactions, TransactionAnswer, TransactionCall, TransactionList, TransactionRequest, TransactionToCheck, TransactionsToCheck,
};

use super::super::wall_ms;
use super::{Client, QueueConsumer, Sockets};
use crate::error::{CallError, ConnectionError};
use crate::links::Machine as _;
use crate::producer::Record;
use crate::queue::Message;
use crate::transaction::{TransactionConfig, TransactionError, TransactionMachine};

/// A worker with a name, and its transactions, one after the other. It works on the thread that calls it.
#[derive(Debug)]
pub struct Transactor {
    client: Client,
    machine: TransactionMachine,
    sockets: Sockets,
}

impl Transactor {
    fn open(client: &Client, machine: TransactionMachine) -> Result<Transactor, CallError> {
        Ok(Transactor { client: client.clone(), machine, sockets: client.sockets()? })
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut TransactionMachine) -> R) -> R {
        f(&mut self.machine)
    }

    /// Does what can be done, and waits for more until then at the latest.
    fn turn(&mut self, until: Instant) -> Result<(), TransactionError> {
        let mut access = &mut self.machine;
        self.sockets.advance(&mut access);
        let until = access.poll_timeout().map_or(until, |at| at.min(until));
        let waited = self.sockets.wait_and_read(&mut access, Some(until));
        waited.map(|_| ()).map_err(|error| CallError::Connection(ConnectionError::from(error)).into())
    }
}

transaction_transport!({} {});
