//! Transactions as every transport offers them: the same calls, waiting each in its own way.

/// The calls of a transport: `transaction_transport!({async} {.await})`, or with nothing between the braces where calls block.
///
/// Where it stands there are a `Client` with its calls, a `QueueConsumer`, and a `Transactor` with `client`, `open`, `with` (the machine) and
/// `turn` (does what can be done, and waits for more until then).
macro_rules! transaction_transport {
    ({ $($asyncness:tt)* } { $($awaited:tt)* }) => {
        impl Client {
            /// Takes a name for transactions, 1 to 1,024 bytes: what another transactor of that name has open is aborted, and it gets
            /// [`TransactionError::Fenced`] from now on.
            ///
            /// Errors: see [`TransactionError`].
            pub $($asyncness)* fn transactor(
                &self,
                transactional_id: &str,
                config: TransactionConfig,
            ) -> Result<Transactor, TransactionError> {
                let mut machine = TransactionMachine::new(config, transactional_id);
                machine.limit_request_bytes(self.hello() $($awaited)*?.max_request_bytes);
                let mut transactor = Transactor::open(self, machine) $($awaited)*?;
                transactor.make_ready() $($awaited)*?;
                Ok(transactor)
            }

            /// The transactional ids that the broker knows.
            pub $($asyncness)* fn transactions(&self) -> Result<TransactionList, CallError> {
                self.call(&ListTransactions { reserved: 0 }) $($awaited)*
            }

            /// Aborts what is open under a name, and fences whoever uses it. Errors: `Broker` (`TransactionNotFound`).
            pub $($asyncness)* fn abort_transaction(&self, transactional_id: &str) -> Result<(), CallError> {
                let ask = |call| TransactionRequest { transactional_id: transactional_id.to_owned(), call };
                let known = self.call(&ask(TransactionCall::Describe)) $($awaited)*?;
                let TransactionAnswer::Description { timeout_ms, .. } = known else {
                    return Err(CallError::UnexpectedAnswer { op: Op::Transaction });
                };
                self.call(&ask(TransactionCall::Init { timeout_ms, check: None, current: None })) $($awaited)*.map(|_| ())
            }
        }

        impl Client {
            /// Transactions of a group of checkers that are to be decided, at most `max`; waits at most `wait` for the first. None of
            /// them is given to another before its interval is over. Other calls of this client wait meanwhile, for 100 ms at a time.
            ///
            /// Errors: `Broker`, `Connection`.
            pub $($asyncness)* fn transactions_to_check(
                &self,
                group: &str,
                max: u32,
                wait: Duration,
            ) -> Result<Vec<TransactionToCheck>, CallError> {
                let deadline = Instant::now() + wait;
                let shards = self.metadata(Some(&[])) $($awaited)*?.shard_ports.len() as u16;
                let mut is_last = false;
                loop {
                    // All of them once without waiting, then one after the other for a while.
                    for shard in 0..shards {
                        let left = deadline.saturating_duration_since(Instant::now());
                        let turn = if is_last { Duration::ZERO } else { left.min(CHECK_TURN) };
                        let ask = TransactionsToCheck { group: group.to_owned(), shard, max, max_wait_ms: turn.as_millis() as u32 };
                        let found = self.call(&ask) $($awaited)*?.transactions;
                        if !found.is_empty() {
                            return Ok(found);
                        }
                    }
                    if is_last {
                        return Ok(Vec::new());
                    }
                    is_last = Instant::now() >= deadline;
                }
            }

            /// Decides a transaction that somebody left open.
            ///
            /// Errors: `Broker` (`ProducerFenced`, `InvalidTransactionState`: it has been decided otherwise; `ConcurrentTransactions`: it
            /// will be offered again).
            pub $($asyncness)* fn decide_transaction(&self, open: &TransactionToCheck, commit: bool) -> Result<(), CallError> {
                let call = TransactionCall::End { producer: open.producer, commit };
                let ask = TransactionRequest { transactional_id: open.transactional_id.clone(), call };
                self.call(&ask) $($awaited)*.map(|_| ())
            }
        }

        /// How long one shard after the other is asked for transactions to check.
        const CHECK_TURN: Duration = Duration::from_millis(100);

        impl Transactor {
            /// Takes another name for the transactions from now on. What is open under this one is aborted; what was left stays.
            ///
            /// Errors: as [`Client::transactor`].
            pub $($asyncness)* fn rename(&mut self, transactional_id: &str) -> Result<(), TransactionError> {
                if self.with(|machine| machine.is_open()) {
                    self.with(|machine| machine.end(false));
                    self.finish() $($awaited)*?;
                }
                self.with(|machine| machine.rename(transactional_id));
                self.make_ready() $($awaited)*
            }

            /// Begins a transaction. One that was dropped without being ended is aborted first.
            ///
            /// Errors: `Fenced`, `TimedOut`, …
            pub $($asyncness)* fn begin(&mut self) -> Result<Transaction<'_>, TransactionError> {
                self.make_ready() $($awaited)*?;
                self.with(|machine| machine.open());
                Ok(Transaction { transactor: self, is_ended: false })
            }

            $($asyncness)* fn make_ready(&mut self) -> Result<(), TransactionError> {
                while self.with(|machine| machine.begin())? {
                    self.finish() $($awaited)*?;
                }
                Ok(())
            }

            /// Waits for the step that was asked for.
            $($asyncness)* fn finish(&mut self) -> Result<(), TransactionError> {
                let deadline = Instant::now() + self.with(|machine| machine.patience());
                loop {
                    if let Some(done) = self.with(|machine| machine.take_done()) {
                        return done;
                    }
                    if Instant::now() >= deadline {
                        return Err(self.with(|machine| machine.give_up()));
                    }
                    self.turn(deadline) $($awaited)*?;
                }
            }

            /// Waits until everything published is durable, or the transaction can't be committed any more.
            $($asyncness)* fn prepare(&mut self) -> Result<(), TransactionError> {
                self.with(|machine| machine.seal_all());
                let deadline = Instant::now() + self.with(|machine| machine.patience());
                while self.with(|machine| machine.is_publishing()) {
                    if Instant::now() >= deadline {
                        return Err(self.with(|machine| machine.give_up()));
                    }
                    self.turn(deadline) $($awaited)*?;
                }
                self.with(|machine| machine.failure().cloned()).map_or(Ok(()), Err)
            }
        }

        /// A transaction that is open. Dropped without [`Transaction::commit`] it takes no effect; [`Transaction::abort`] says so at once.
        #[derive(Debug)]
        pub struct Transaction<'a> {
            transactor: &'a mut Transactor,
            is_ended: bool,
        }

        impl Transaction<'_> {
            /// Publishes a record in the transaction. It gathers with others, and may not have left yet when this returns; waits
            /// while there is no room.
            ///
            /// Errors: `Record`, `Call` (`UnknownTopic`), or why an earlier step failed.
            pub $($asyncness)* fn publish(&mut self, topic: &str, record: Record<'_>) -> Result<(), TransactionError> {
                if !self.transactor.with(|machine| machine.knows(topic)) {
                    let client = self.transactor.client.clone();
                    let map = client.topic_map(topic) $($awaited)*?;
                    self.transactor.with(|machine| machine.learn(map));
                }
                while !self.transactor.with(|machine| machine.publish(topic, &record, wall_ms()))? {
                    self.transactor.prepare() $($awaited)*?;
                }
                Ok(())
            }

            /// Waits until everything published so far is stored, hidden until the transaction is committed.
            ///
            /// Errors: why it can't be committed any more.
            pub $($asyncness)* fn prepare(&mut self) -> Result<(), TransactionError> {
                self.transactor.prepare() $($awaited)*
            }

            /// Acknowledges messages in the transaction: done if it is committed, else as they were. Waits until the broker has
            /// that durably.
            ///
            /// Errors: `NotHeld`, `Queue`, or why an earlier step failed.
            pub $($asyncness)* fn ack(&mut self, consumer: &mut QueueConsumer, messages: &[Message]) -> Result<(), TransactionError> {
                if let Some(failure) = self.transactor.with(|machine| machine.failure().cloned()) {
                    return Err(failure);
                }
                let Some((producer, outcome)) = self.transactor.with(|machine| machine.current()) else {
                    return Err(TransactionError::Call(CallError::UnexpectedAnswer { op: Op::QueueStage }));
                };
                consumer.with_settling(|machine| machine.begin_stage(producer, &outcome, messages))?;
                let patience = self.transactor.with(|machine| machine.patience());
                let deadline = Instant::now() + patience;
                loop {
                    if let Some(staged) = consumer.with(|machine| machine.take_staged()) {
                        return staged.map_err(|error| match error {
                            TransactionError::Broker(error) => self.transactor.with(|machine| machine.failure_of(error)),
                            error => error,
                        });
                    }
                    if Instant::now() >= deadline {
                        let last_problem = consumer.with(|machine| {
                            machine.forget_stage();
                            machine.connection_problem().map(ToString::to_string)
                        });
                        return Err(TransactionError::TimedOut { after: patience, last_problem });
                    }
                    consumer.turn(deadline) $($awaited)*?;
                }
            }

            /// Everything takes effect, durably, when this returns.
            ///
            /// Errors: see [`TransactionError`]; after all but `Unknown` nothing takes effect.
            pub $($asyncness)* fn commit(mut self) -> Result<(), TransactionError> {
                self.transactor.prepare() $($awaited)*?;
                self.is_ended = true;
                self.transactor.with(|machine| machine.end(true));
                self.transactor.finish() $($awaited)*
            }

            /// Stays open: what was published is stored, and whoever checks for its group decides. Without a group, or when nobody
            /// does, it is aborted after its timeout, or when its name is taken: by [`Transactor::begin`] too, without
            /// [`Transactor::rename`] before.
            ///
            /// Errors: why it can't be committed any more; then it is aborted.
            pub $($asyncness)* fn leave(mut self) -> Result<(), TransactionError> {
                self.transactor.prepare() $($awaited)*?;
                self.is_ended = true;
                self.transactor.with(|machine| machine.leave());
                Ok(())
            }

            /// Nothing takes effect.
            ///
            /// Errors: `Fenced`, `TimedOut`, …: nothing takes effect all the same.
            pub $($asyncness)* fn abort(mut self) -> Result<(), TransactionError> {
                self.is_ended = true;
                self.transactor.with(|machine| machine.end(false));
                self.transactor.finish() $($awaited)*
            }
        }

        impl Drop for Transaction<'_> {
            fn drop(&mut self) {
                if !self.is_ended {
                    self.transactor.with(|machine| machine.abandon());
                }
            }
        }
    };
}
