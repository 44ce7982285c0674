//! Queues as every transport offers them: the same calls, waiting each in its own way.

/// The calls of a transport: `queue_transport!({async} {.await})`, or with nothing between the braces where calls block.
///
/// Where it stands there are a `Client` with its calls, `Producer`, `Consumer`, and a `QueueConsumer` with `new`, `with` (the machine),
/// `turn` (does what can be done, and waits for more until then) and `patience`.
macro_rules! queue_transport {
    ({ $($asyncness:tt)* } { $($awaited:tt)* }) => {
        impl Client {
            /// Creates a queue, and its topic if that isn't there; durable when this returns. Errors: `Broker` (`QueueExists`,
            /// `InvalidFilter`, …).
            pub $($asyncness)* fn create_queue(&self, queue: &CreateQueue) -> Result<QueueInfo, CallError> {
                self.call(queue) $($awaited)*
            }

            /// Gives a queue other settings, all of them. Errors: `Broker`.
            pub $($asyncness)* fn alter_queue(&self, change: &AlterQueue) -> Result<QueueInfo, CallError> {
                self.call(change) $($awaited)*
            }

            /// Deletes a queue; its topic stays. Errors: `Broker` (`UnknownQueue`).
            pub $($asyncness)* fn delete_queue(&self, name: &str) -> Result<(), CallError> {
                self.call(&DeleteQueue(name.into())) $($awaited)*
            }

            /// Queues (`None` = all) and the shard map; a queue that doesn't exist is missing in the answer.
            pub $($asyncness)* fn queues(&self, names: Option<&[&str]>) -> Result<QueueList, CallError> {
                self.call(&admin::list_queues(names)) $($awaited)*
            }

            /// Where a queue is. Errors: `UnknownQueue`.
            pub $($asyncness)* fn queue_map(&self, name: &str) -> Result<QueueMap, CallError> {
                let list = self.queues(Some(&[name])) $($awaited)*?;
                QueueMap::find(&list, name).ok_or_else(|| CallError::UnknownQueue { queue: name.into() })
            }

            $($asyncness)* fn ask_queue(&self, map: &QueueMap, partition_index: u32, call: QueueCall) -> Result<QueueAnswer, QueueError> {
                let partition_count = map.partitions.len() as u32;
                let place = map.partitions.get(partition_index as usize);
                let place = place.ok_or(QueueError::NoSuchPartition { index: partition_index, partition_count })?;
                Ok(self.call(&QueueRequest { queue: map.queue, partition: place.partition, call }) $($awaited)*?)
            }

            $($asyncness)* fn count_queue(&self, map: &QueueMap, partition_index: u32, call: QueueCall) -> Result<u64, QueueError> {
                match self.ask_queue(map, partition_index, call) $($awaited)*? {
                    QueueAnswer::Count(count) => Ok(count),
                    _ => Err(CallError::UnexpectedAnswer { op: Op::Queue }.into()),
                }
            }

            /// A queue in numbers, by partition. Errors: `UnknownQueue`.
            pub $($asyncness)* fn describe_queue(&self, name: &str) -> Result<Vec<QueueState>, QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                let mut states = Vec::with_capacity(map.partitions.len());
                for index in 0..map.partitions.len() as u32 {
                    match self.ask_queue(&map, index, QueueCall::Describe) $($awaited)*? {
                        QueueAnswer::State(state) => states.push(state),
                        _ => return Err(CallError::UnexpectedAnswer { op: Op::Queue }.into()),
                    }
                }
                Ok(states)
            }

            /// Settles every message that isn't in flight; how many there were. Errors: `UnknownQueue`.
            pub $($asyncness)* fn purge_queue(&self, name: &str) -> Result<u64, QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                let mut purged = 0;
                for index in 0..map.partitions.len() as u32 {
                    purged += self.count_queue(&map, index, QueueCall::Purge) $($awaited)*?;
                }
                Ok(purged)
            }

            /// Goes on at an offset of one partition, whatever was settled before.
            pub $($asyncness)* fn seek_queue(&self, name: &str, partition_index: u32, offset: u64) -> Result<(), QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                self.count_queue(&map, partition_index, QueueCall::Seek { offset }) $($awaited)*?;
                Ok(())
            }

            /// Goes on, in every partition, at the first record at least so young (ms since the Unix epoch, or
            /// [`EARLIEST`](ringmain_wire::control::EARLIEST), [`LATEST`](ringmain_wire::control::LATEST)).
            pub $($asyncness)* fn seek_queue_to_time(&self, name: &str, timestamp_ms: i64) -> Result<(), QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                for (index, place) in map.partitions.iter().enumerate() {
                    let found = self.list_offset(PartitionId(place.partition), timestamp_ms) $($awaited)*?;
                    self.count_queue(&map, index as u32, QueueCall::Seek { offset: found.offset }) $($awaited)*?;
                }
                Ok(())
            }

            /// Messages of one partition that wait for their time, by that, behind `after` (time, offset).
            pub $($asyncness)* fn delayed_messages(
                &self,
                name: &str,
                partition_index: u32,
                after: Option<(i64, u64)>,
                max: u32,
            ) -> Result<Vec<Delayed>, QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                match self.ask_queue(&map, partition_index, QueueCall::ListDelayed { after, max }) $($awaited)*? {
                    QueueAnswer::Delayed(delayed) => Ok(delayed),
                    _ => Err(CallError::UnexpectedAnswer { op: Op::Queue }.into()),
                }
            }

            /// Lets a message that waits for its time be delivered now; whether it waited.
            pub $($asyncness)* fn deliver_now(&self, name: &str, partition_index: u32, offset: u64) -> Result<bool, QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                Ok(self.count_queue(&map, partition_index, QueueCall::DeliverNow { offset }) $($awaited)*? > 0)
            }

            /// Settles a message that waits for its time; whether it waited.
            pub $($asyncness)* fn cancel_delayed(&self, name: &str, partition_index: u32, offset: u64) -> Result<bool, QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                Ok(self.count_queue(&map, partition_index, QueueCall::Cancel { offset }) $($awaited)*? > 0)
            }

            /// Messages of one partition that aren't settled, from an offset on, without taking them.
            pub $($asyncness)* fn peek_queue(
                &self,
                name: &str,
                partition_index: u32,
                from: u64,
                max: u32,
            ) -> Result<Vec<Peeked>, RequestError> {
                let map = self.queue_map(name) $($awaited)*?;
                let (mut from, mut peeked) = (from, Vec::new());
                loop {
                    let left = max - peeked.len() as u32;
                    let QueueAnswer::Unsettled(unsettled) =
                        self.ask_queue(&map, partition_index, QueueCall::ListUnsettled { from, max: left }) $($awaited)*?
                    else {
                        return Err(CallError::UnexpectedAnswer { op: Op::Queue }.into());
                    };
                    let mut wanted: VecDeque<(u64, u32)> = unsettled.into();
                    let is_all = wanted.len() < left as usize;
                    let (Some((first, _)), Some((last, _))) = (wanted.front().copied(), wanted.back().copied()) else { return Ok(peeked) };
                    let config = ConsumerConfig {
                        from: StartFrom::Offset(first),
                        partitions: Some(vec![partition_index]),
                        out_of_range: OutOfRange::Beginning,
                        fetch_ahead_bytes: 1 << 20,
                        fetches_ahead: 1,
                        ..ConsumerConfig::default()
                    };
                    let mut consumer = self.consumer(&map.topic, config) $($awaited)*?;
                    from = last + 1;
                    while let Some((next, _)) = wanted.front().copied() {
                        let Some(batch) = consumer.poll(PEEK_PATIENCE) $($awaited)*? else { return Ok(peeked) };
                        for record in batch.records() {
                            // What retention or a cleaner has taken is passed over, also where that is more than was asked for.
                            while wanted.front().is_some_and(|(offset, _)| *offset < record.offset) {
                                wanted.pop_front();
                                from = from.max(if wanted.is_empty() { record.offset } else { 0 });
                            }
                            if let Some((offset, deliveries)) = wanted.pop_front_if(|(offset, _)| *offset == record.offset) {
                                peeked.push(Peeked {
                                    partition_index,
                                    offset,
                                    deliveries,
                                    timestamp_ms: record.timestamp_ms,
                                    key: record.key.map(<[u8]>::to_vec),
                                    value: record.value.map(<[u8]>::to_vec),
                                    headers: record.headers.to_vec(),
                                });
                            }
                        }
                        let far = wanted.front().map(|(offset, _)| *offset).filter(|offset| *offset > next + PEEK_SKIP);
                        if let Some(offset) = far.filter(|offset| *offset > batch.next_offset()) {
                            consumer.seek(partition_index, offset)?;
                        }
                    }
                    if is_all || peeked.len() >= max as usize {
                        return Ok(peeked);
                    }
                }
            }

            /// A producer of the queue's topic; [`Outgoing`] makes its records. Errors: `UnknownQueue`, `Connection`, `Broker`.
            pub $($asyncness)* fn queue_producer(&self, name: &str, config: ProducerConfig) -> Result<Producer, CallError> {
                let map = self.queue_map(name) $($awaited)*?;
                self.producer(&map.topic, config) $($awaited)*
            }

            /// A consumer of a queue. Errors: `Call` (`UnknownQueue`, …), `NoSuchPartition`.
            pub $($asyncness)* fn queue_consumer(&self, name: &str, config: QueueConsumerConfig) -> Result<QueueConsumer, QueueError> {
                let map = self.queue_map(name) $($awaited)*?;
                let patience = config.links.session.request_timeout;
                let machine = QueueConsumerMachine::new(config, map)?;
                Ok(QueueConsumer::new(self, machine, patience) $($awaited)*?)
            }

            /// Takes messages from a queue over a dead-letter topic, at most `max`, and publishes them again: in the topic `to`, or in
            /// that of the queue that each was in. Those that came later than this call are left, and so are those whose queue
            /// is gone.
            ///
            /// A message is published durably before it is acknowledged: a crash in between leaves it in both.
            pub $($asyncness)* fn redrive(&self, dead_letters: &str, to: Option<&str>, max: u64) -> Result<Redriven, RequestError> {
                let began_ms = wall_ms();
                let config = QueueConsumerConfig { prefetch: REDRIVE_BATCH, ..QueueConsumerConfig::default() };
                let mut consumer = self.queue_consumer(dead_letters, config) $($awaited)*?;
                let mut targets: BTreeMap<String, Option<String>> = BTreeMap::new();
                let mut producers: BTreeMap<String, Producer> = BTreeMap::new();
                let mut redriven = Redriven::default();
                let mut open = Vec::new();
                loop {
                    let left = max - redriven.moved - open.len() as u64;
                    let message = if left > 0 { consumer.recv(REDRIVE_PATIENCE) $($awaited)*? } else { None };
                    let is_end = message.is_none();
                    if let Some(message) = message.filter(|message| message.append_time_ms() <= began_ms) {
                        let queue = message.dead_letter().map(|dead| dead.queue).unwrap_or_default();
                        if to.is_none() && !targets.contains_key(&queue) {
                            let found = self.queues(Some(&[&queue])) $($awaited)*?;
                            targets.insert(queue.clone(), QueueMap::find(&found, &queue).map(|map| map.topic));
                        }
                        let topic = to.map(str::to_owned).or_else(|| targets.get(&queue).cloned().flatten());
                        // What is left is returned when the connection closes.
                        let Some(topic) = topic else {
                            redriven.left += 1;
                            continue;
                        };
                        if !producers.contains_key(&topic) {
                            let producer = self.producer(&topic, ProducerConfig::default()) $($awaited)*?;
                            producers.insert(topic.clone(), producer);
                        }
                        if let Some(producer) = producers.get_mut(&topic) {
                            producer.send(message.again().record()) $($awaited)*?;
                            open.push(message);
                        }
                    }
                    if is_end || open.len() >= REDRIVE_BATCH as usize / 2 {
                        for producer in producers.values_mut() {
                            producer.flush() $($awaited)*.map_err(|error| error.first)?;
                        }
                        let count = open.len() as u64;
                        for message in open.drain(..) {
                            consumer.ack(&message);
                        }
                        let confirmed = consumer.flush() $($awaited)*?;
                        redriven.moved += count;
                        redriven.twice += confirmed.refused + confirmed.void + confirmed.unknown;
                    }
                    if is_end {
                        return Ok(redriven);
                    }
                }
            }

            /// Asks consumers of queues for answers. Errors: see [`RequestError`].
            pub $($asyncness)* fn requester(&self, config: RequesterConfig) -> Result<Requester, RequestError> {
                let numbering = Numbering::random();
                let map = match self.topic_map(&config.reply_topic) $($awaited)* {
                    Err(CallError::UnknownTopic { .. }) => {
                        match self.create_topic(&reply_topic(&config.reply_topic)) $($awaited)* {
                            Err(CallError::Broker(error)) if error.code != ErrorCode::TopicExists => {
                                return Err(CallError::Broker(error).into());
                            }
                            _ => self.topic_map(&config.reply_topic) $($awaited)*?,
                        }
                    }
                    found => found?,
                };
                let partition_index = reply_partition(numbering.requester(), map.partitions.len() as u32);
                let reading = ConsumerConfig {
                    from: StartFrom::End,
                    partitions: Some(vec![partition_index]),
                    out_of_range: OutOfRange::Beginning,
                    ..ConsumerConfig::default()
                };
                let mut answers = self.consumer(&config.reply_topic, reading) $($awaited)*?;
                let deadline = Instant::now() + config.timeout;
                // An answer must not come before its reader stands where it will be.
                while answers.positions().iter().any(|position| position.next_offset.is_none()) {
                    if Instant::now() >= deadline {
                        return Err(RequestError::TimedOut { after: config.timeout });
                    }
                    answers.poll(SETUP_TURN) $($awaited)*?;
                }
                Ok(Requester {
                    client: self.clone(),
                    reply_topic: config.reply_topic,
                    partition_index,
                    numbering,
                    answers,
                    producers: BTreeMap::new(),
                    arrived: BTreeMap::new(),
                })
            }

            /// Answers requests.
            pub fn replier(&self) -> Replier {
                Replier { client: self.clone(), producers: BTreeMap::new() }
            }
        }

        impl QueueConsumer {
            /// The next message; waits at most `timeout`. `None` = nothing came in time, which includes that there is no connection at
            /// the moment ([`QueueConsumer::connection_problem`]).
            ///
            /// Errors: see [`QueueError`]; calling again goes on.
            pub $($asyncness)* fn recv(&mut self, timeout: Duration) -> Result<Option<Message>, QueueError> {
                let deadline = Instant::now() + timeout;
                let mut has_looked = false;
                if self.with(|machine| machine.is_due(Instant::now())) {
                    // Settlements and receives leave before the messages at hand are worked on.
                    self.turn(Instant::now()) $($awaited)*?;
                    has_looked = true;
                }
                loop {
                    if let Some(message) = self.with(|machine| machine.poll_message())? {
                        return Ok(Some(message));
                    }
                    let now = Instant::now();
                    if has_looked && now >= deadline {
                        return Ok(None);
                    }
                    self.turn(if has_looked { deadline } else { now }) $($awaited)*?;
                    has_looked = true;
                }
            }

            /// Like [`QueueConsumer::recv`] without waiting.
            pub $($asyncness)* fn try_recv(&mut self) -> Result<Option<Message>, QueueError> {
                self.recv(Duration::ZERO) $($awaited)*
            }

            /// At most `max` messages as soon as there are any; waits at most `wait` for the first. A consumer with prefetch 0 is
            /// given nothing else.
            ///
            /// Errors: see [`QueueError`].
            pub $($asyncness)* fn get(&mut self, max: u32, wait: Duration) -> Result<Vec<Message>, QueueError> {
                let deadline = Instant::now() + wait;
                let mut messages = Vec::new();
                let mut first = self.with(|machine| machine.poll_message())?;
                if first.is_none() && self.pulls {
                    self.with(|machine| machine.begin_pull(max, deadline));
                    while first.is_none() && self.with(|machine| machine.is_pulling()) {
                        self.turn(deadline.max(Instant::now() + PULL_GRACE)) $($awaited)*?;
                        first = self.with(|machine| machine.poll_message())?;
                    }
                } else if first.is_none() {
                    first = self.recv(wait) $($awaited)*?;
                }
                while let Some(message) = first {
                    messages.push(message);
                    first = if messages.len() < max as usize { self.with(|machine| machine.poll_message())? } else { None };
                }
                Ok(messages)
            }

            /// The message is done. Sent with others, by a call that waits; durable after [`QueueConsumer::flush`]. Whether it is still
            /// this consumer's: else another may have it.
            pub fn ack(&mut self, message: &Message) -> bool {
                self.settle(message, Verb::Ack, Duration::ZERO)
            }

            /// Every message of the same partition that was given out and lies no later than this one is done; how many.
            pub fn ack_up_to(&mut self, message: &Message) -> u64 {
                self.with_settling(|machine| machine.ack_up_to(message, Instant::now()))
            }

            /// The message comes back, at its old place, not before `delay` and what the queue's back-off says.
            pub fn nack(&mut self, message: &Message, delay: Duration) -> bool {
                self.settle(message, Verb::Requeue, delay)
            }

            /// The message goes to the dead-letter topic, or away.
            pub fn reject(&mut self, message: &Message) -> bool {
                self.settle(message, Verb::Reject, Duration::ZERO)
            }

            /// The message stays this consumer's for so long from now, rather than for the queue's acknowledgement timeout.
            pub fn extend(&mut self, message: &Message, time: Duration) -> bool {
                self.settle(message, Verb::Extend, time)
            }

            fn settle(&mut self, message: &Message, verb: Verb, delay: Duration) -> bool {
                self.with_settling(|machine| machine.settle(message, verb, delay, Instant::now()))
            }

            /// Sends what is settled and waits until the broker has it durably; what became of it since the last flush.
            ///
            /// Errors: `Broker` (a refusal), `FlushTimedOut`.
            pub $($asyncness)* fn flush(&mut self) -> Result<Confirmed, QueueError> {
                self.with_settling(|machine| machine.begin_flush());
                let after = self.patience;
                let deadline = Instant::now() + after;
                while self.with(|machine| machine.settles_open()) {
                    if Instant::now() >= deadline {
                        let last_problem = self.with(|machine| machine.connection_problem().map(ToString::to_string));
                        return Err(QueueError::FlushTimedOut { after, last_problem });
                    }
                    self.turn(deadline) $($awaited)*?;
                }
                self.with(|machine| machine.take_confirmed())
            }

            /// Flushes, then leaves: what isn't settled goes to others. Errors: as [`QueueConsumer::flush`].
            pub $($asyncness)* fn close(mut self) -> Result<Confirmed, QueueError> {
                self.flush() $($awaited)*
            }

            /// Messages delivered and not settled.
            pub fn held(&mut self) -> u32 {
                self.with(|machine| machine.held())
            }

            /// The last problem with a connection, until one is ready again.
            pub fn connection_problem(&mut self) -> Option<ConnectionError> {
                self.with(|machine| machine.connection_problem().cloned())
            }
        }

        /// Sends requests to queues and gathers the answers, any number at a time.
        pub struct Requester {
            client: Client,
            reply_topic: String,
            partition_index: u32,
            numbering: Numbering,
            answers: Consumer,
            /// By queue.
            producers: BTreeMap<String, Producer>,
            /// Answers to requests other than the one somebody waits for; at most [`ANSWERS_MAX`].
            arrived: BTreeMap<RequestId, Vec<u8>>,
        }

        impl fmt::Debug for Requester {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("Requester").field("reply_topic", &self.reply_topic).finish_non_exhaustive()
            }
        }

        impl Requester {
            /// Sends a request to a queue; durable as its topic says when this returns.
            pub $($asyncness)* fn send(&mut self, queue: &str, request: Outgoing<'_>) -> Result<RequestId, RequestError> {
                if !self.producers.contains_key(queue) {
                    let config = ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() };
                    let producer = self.client.queue_producer(queue, config) $($awaited)*?;
                    self.producers.insert(queue.to_owned(), producer);
                }
                let (id, correlation) = self.numbering.next();
                let to = ReplyTo { topic: self.reply_topic.clone(), partition_index: self.partition_index, correlation };
                let request = request.reply_to(&to);
                if let Some(producer) = self.producers.get_mut(queue) {
                    let (_, delivery) = producer.send_and_wait(request.record()) $($awaited)*?;
                    delivery.result?;
                }
                Ok(id)
            }

            /// The answer to a request of this requester. Errors: `TimedOut`, `Consume`.
            pub $($asyncness)* fn answer(&mut self, id: RequestId, timeout: Duration) -> Result<Vec<u8>, RequestError> {
                let deadline = Instant::now() + timeout;
                loop {
                    if let Some(answer) = self.arrived.remove(&id) {
                        return Ok(answer);
                    }
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(RequestError::TimedOut { after: timeout });
                    }
                    let Some(batch) = self.answers.poll(left) $($awaited)*? else { continue };
                    for record in batch.records() {
                        if let Some(answered) = self.numbering.answered(record.headers) {
                            self.arrived.insert(answered, record.value.unwrap_or_default().to_vec());
                        }
                    }
                    while self.arrived.len() > ANSWERS_MAX {
                        self.arrived.pop_first();
                    }
                }
            }

            /// Sends a request and waits for its answer. Errors: see [`RequestError`].
            pub $($asyncness)* fn request(&mut self, queue: &str, request: Outgoing<'_>, timeout: Duration) -> Result<Vec<u8>, RequestError> {
                let id = self.send(queue, request) $($awaited)*?;
                self.answer(id, timeout) $($awaited)*
            }
        }

        /// Answers requests that came as messages.
        pub struct Replier {
            client: Client,
            /// By topic.
            producers: BTreeMap<String, Producer>,
        }

        impl fmt::Debug for Replier {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("Replier").field("topics", &self.producers.keys()).finish_non_exhaustive()
            }
        }

        impl Replier {
            /// Sends an answer to whoever asked; acknowledge the request afterwards. Errors: `NotARequest`, `Call`, `Send`.
            pub $($asyncness)* fn reply(&mut self, request: &Message, answer: Outgoing<'_>) -> Result<(), RequestError> {
                let to = request.reply_to().ok_or(RequestError::NotARequest)?;
                if !self.producers.contains_key(&to.topic) {
                    if self.producers.len() >= REPLY_TOPICS_MAX {
                        self.producers.pop_first();
                    }
                    let config = ProducerConfig { linger: Duration::ZERO, idempotent: false, ..ProducerConfig::default() };
                    let producer = self.client.producer(&to.topic, config) $($awaited)*?;
                    self.producers.insert(to.topic.clone(), producer);
                }
                let (name, value) = to.answer_header();
                let answer = answer.partition(to.partition_index).header(name, Some(value));
                if let Some(producer) = self.producers.get_mut(&to.topic) {
                    producer.send(answer.record()) $($awaited)*?;
                }
                Ok(())
            }

            /// Waits until every answer is stored. Errors: `Delivery`.
            pub $($asyncness)* fn flush(&mut self) -> Result<(), RequestError> {
                for producer in self.producers.values_mut() {
                    producer.flush() $($awaited)*.map_err(|error| error.first)?;
                }
                Ok(())
            }
        }

        /// Most answers that wait to be asked for; the oldest go first.
        const ANSWERS_MAX: usize = 10_000;
        /// Reply topics that a replier keeps a producer for.
        const REPLY_TOPICS_MAX: usize = 16;
        /// Messages on their way in a redrive.
        const REDRIVE_BATCH: u32 = 1_000;
        /// A queue that gives nothing for so long has nothing.
        const REDRIVE_PATIENCE: Duration = Duration::from_secs(1);
        const PEEK_PATIENCE: Duration = Duration::from_secs(5);
        /// So many records are read rather than skipped.
        const PEEK_SKIP: u64 = 10_000;
        const SETUP_TURN: Duration = Duration::from_millis(20);
        /// An answer that comes empty at the end of its wait comes a moment later.
        const PULL_GRACE: Duration = Duration::from_millis(50);
    };
}
