//! Transactions on monoio. A transactor has tasks of its own on the caller's core, like a producer.

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringmain_wire::Op;
use ringmain_wire::transaction::{
    ListTransactions, TransactionAnswer, TransactionCall, TransactionList, TransactionRequest, TransactionToCheck, TransactionsToCheck,
};

use super::super::wall_ms;
use super::{Client, Hub, QueueConsumer, drive};
use crate::error::CallError;
use crate::producer::Record;
use crate::queue::Message;
use crate::transaction::{TransactionConfig, TransactionError, TransactionMachine};

/// A worker with a name, and its transactions, one after the other. Its tasks send and receive while the caller works.
pub struct Transactor {
    client: Client,
    hub: Rc<Hub<TransactionMachine>>,
}

impl fmt::Debug for Transactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactor").field("machine", &self.hub.machine.borrow()).finish_non_exhaustive()
    }
}

impl Transactor {
    async fn open(client: &Client, machine: TransactionMachine) -> Result<Transactor, CallError> {
        let hub = Hub::new(machine, client.bootstrap().await?, client.config.connect_timeout);
        ::monoio::spawn(drive(Rc::clone(&hub), |_| {}));
        Ok(Transactor { client: client.clone(), hub })
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut TransactionMachine) -> R) -> R {
        let result = f(&mut self.hub.machine.borrow_mut());
        self.hub.stirred.raise();
        result
    }

    /// Lets the tasks do what can be done, and waits for more until then at the latest.
    async fn turn(&mut self, until: Instant) -> Result<(), TransactionError> {
        self.hub.wait(until).await;
        Ok(())
    }
}

impl Drop for Transactor {
    fn drop(&mut self) {
        self.hub.stop.set(true);
        self.hub.stirred.raise();
    }
}

transaction_transport!({async} {.await});
