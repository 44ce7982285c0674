//! One measured run from beginning to end: topic, preload, load, the totals afterwards.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use core_affinity::CoreId;
use ringmain_wire::control::{CreateTopic, Durability, EARLIEST, LATEST, StatsReply, TopicConfig};
use ringmain_wire::queue::{CreateQueue, QueueConfig};
use ringmain_wire::record::BATCH_PREFIX_BYTES;
use ringmain_wire::{DEFAULT_MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES_LIMIT, frame};

use crate::broker::{Broker, BrokerOptions, Meter, Place};
use crate::control::Control;
use crate::native::{self, ConsumeLoad, Door, Length, Load, Measured, ProduceLoad, Progress, QueueLoad, Target};
use crate::report::{Background, RunReport};
use crate::workload::{Payload, QueueShape, Random, Shape};
use crate::{BenchOptions, Mode, with_bar};

/// What a bench topic keeps in all, so that segments are recycled while it is measured.
const TOPIC_BYTES: u64 = 4 << 30;
/// What is read from memory is written before in this amount, in bytes of frames.
const WARM_PRELOAD_BYTES: u64 = 64 << 20;
/// Far more than a broker of this machine keeps in memory, and less than the topic keeps.
const COLD_PRELOAD_BYTES: u64 = 3 << 30;
/// Requests under way while preloading.
const PRELOAD_IN_FLIGHT: usize = 8;
/// Of the producers beside cold consumers.
const BACKGROUND_BATCH: u32 = 100;
/// A long poll that finds nothing answers after this.
const MAX_WAIT_MS: u32 = 500;

/// A broker to measure: a child, or one that runs already.
#[derive(Debug)]
pub struct Session {
    broker: Option<Broker>,
    bootstrap: SocketAddr,
    control: Control,
    /// How it does I/O, if known.
    pub io: Option<String>,
    /// Where its data is, if known.
    pub place: Option<Place>,
    client_core: Option<CoreId>,
}

/// A topic made for a run.
#[derive(Debug)]
struct Topic {
    name: String,
    is_ours: bool,
    targets: Vec<Target>,
}

/// Which cores the broker and the load get: `(serve --cores, the load's)`.
pub(crate) fn split_cores(options: &BenchOptions, cores: &[CoreId]) -> (String, Option<CoreId>) {
    let client = options.client_core.map(|id| CoreId { id }).or_else(|| cores.first().copied());
    let list: Vec<String> = match cores {
        [only] => vec![only.id.to_string()],
        cores => cores.iter().filter(|c| Some(c.id) != client.map(|c| c.id)).map(|c| c.id.to_string()).collect(),
    };
    (options.broker_cores.clone().unwrap_or_else(|| list.join(",")), client)
}

impl Session {
    /// Starts the child, or connects.
    pub fn open(options: &BenchOptions) -> Result<Session> {
        if let Some(address) = &options.connect {
            let bootstrap = address
                .to_socket_addrs()
                .with_context(|| format!("'{address}' is no HOST:PORT"))?
                .next()
                .with_context(|| format!("'{address}' has no address"))?;
            let control = Control::connect(bootstrap)?;
            let client_core = options.client_core.map(|id| CoreId { id });
            return Ok(Session { broker: None, bootstrap, control, io: None, place: None, client_core });
        }
        let (cores, client_core) = split_cores(options, &core_affinity::get_core_ids().unwrap_or_default());
        let mut arguments = options.serve_arguments.clone();
        let flags =
            [("--io", options.io.clone()), ("--memory", options.memory.clone()), ("--spin-us", options.spin_us.map(|us| us.to_string()))];
        for (flag, value) in flags {
            arguments.extend(value.map(|v| [flag.to_owned(), v]).into_iter().flatten());
        }
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("finding this program, to start its broker")?,
        };
        let broker = Broker::start(&BrokerOptions { program, cores, arguments, parent: options.directory.clone() })?;
        let control = Control::connect(broker.native)?;
        let (io, place) = (Some(broker.io.clone()), Place::of(broker.directory()));
        Ok(Session { bootstrap: broker.native, broker: Some(broker), control, io, place, client_core })
    }

    /// Ends the child.
    pub fn close(self) -> Result<()> {
        match self.broker {
            Some(broker) => broker.stop(),
            None => Ok(()),
        }
    }

    fn meter(&self) -> Meter {
        self.broker.as_ref().map(Broker::meter).unwrap_or_default()
    }

    fn door(&self, options: &BenchOptions) -> Door {
        Door { host: self.bootstrap.ip(), congestion: options.tcp_congestion.clone() }
    }

    /// One run of a mode that needs a broker.
    pub fn measure(&mut self, options: &BenchOptions, progress: &Arc<Progress>) -> Result<RunReport> {
        options.check()?;
        let payload = match &options.payload_file {
            Some(path) => Payload::from_file(path)?,
            None => Payload::Random { size: options.size },
        };
        let batch = match options.mode {
            Mode::Ping => 1,
            Mode::Consume => round_robin_batch(options, &payload),
            _ => options.batch,
        };
        let shape = Shape::new(payload, batch, options.keys > 0, options.seed, options.in_flight());
        let shape = match options.mode {
            Mode::Queue => shape.with_headers(QueueShape { priorities: options.priorities, delay_ms: options.delay_ms }),
            _ => shape,
        };
        let topic = self.open_topic(options, options.topic.as_deref(), options.partitions(), options.durability, &shape)?;
        let measured = self.measure_on(&topic, options, &shape, progress);
        if topic.is_ours {
            let deleted = self.control.delete_topic(&topic.name);
            // What went wrong first matters more.
            let report = measured?;
            deleted.with_context(|| format!("deleting topic '{}'", topic.name))?;
            return Ok(report);
        }
        measured
    }

    fn measure_on(&mut self, topic: &Topic, options: &BenchOptions, shape: &Shape, progress: &Arc<Progress>) -> Result<RunReport> {
        match options.mode {
            Mode::Produce | Mode::EndToEnd => self.produce(topic, options, shape, progress),
            Mode::Ping => self.ping(topic, options, shape, progress),
            Mode::Queue => self.queue(topic, options, shape, progress),
            Mode::Consume => self.consume(topic, options, shape, progress),
            Mode::Tour | Mode::Limits => bail!("{} is no single run against a broker", options.mode.name()),
        }
    }

    fn produce(&mut self, topic: &Topic, options: &BenchOptions, shape: &Shape, progress: &Arc<Progress>) -> Result<RunReport> {
        let follows = options.mode == Mode::EndToEnd;
        let load = ProduceLoad {
            connections: options.connections(),
            in_flight: options.in_flight(),
            shape: shape.clone(),
            rate: options.rate,
            linger_ns: options.linger_us * 1_000,
            key_count: options.keys,
            targets: topic.targets.clone(),
            exclusive: topic.is_ours,
            timed: follows,
        };
        let consume = follows.then(|| ConsumeLoad {
            connections: options.connections(),
            in_flight: usize::MAX,
            fetch_bytes: options.fetch_bytes,
            max_wait_ms: MAX_WAIT_MS,
            targets: topic.targets.clone(),
            record: shape.record_shape(),
            writer_count: options.connections(),
            verify: options.verify,
            follows: true,
        });
        let before = self.control.stats().ok();
        let (produce, length) = (vec![load], options.length());
        let mut measured = self.run(options, progress, options.mode.name(), produce, consume, length)?;
        self.check_totals(topic, &mut measured, 0)?;
        Ok(self.report(options, shape, &measured, before))
    }

    /// Over a queue of the run's own, deleted at its end.
    fn queue(&mut self, topic: &Topic, options: &BenchOptions, shape: &Shape, progress: &Arc<Progress>) -> Result<RunReport> {
        let name = format!("ringmain-bench-{:08x}", Random::new(topic.targets[0].number.into()).next_word() as u32);
        let config = QueueConfig { from_beginning: false, priorities: options.priorities, ..QueueConfig::default() };
        let create = CreateQueue {
            name: name.clone(),
            topic: topic.name.clone(),
            partition_count: options.partitions(),
            durability: options.durability,
            config,
        };
        let queue = self.control.create_queue(&create)?;
        let produce = ProduceLoad {
            connections: options.connections(),
            in_flight: options.in_flight(),
            shape: shape.clone(),
            rate: options.rate,
            linger_ns: options.linger_us * 1_000,
            key_count: options.keys,
            targets: topic.targets.clone(),
            exclusive: topic.is_ours,
            timed: true,
        };
        let consume = QueueLoad {
            queue,
            consumers: options.consumers(),
            prefetch: options.prefetch,
            ack_batch: options.ack_batch,
            max_wait_ms: MAX_WAIT_MS,
            targets: topic.targets.clone(),
            writer_count: options.connections(),
            is_stamped: shape.is_stamped(),
            is_ordered: options.priorities == 1 && options.delay_ms.is_none() && options.consumers() <= topic.targets.len(),
            verify: options.verify,
            longest_delay_ms: options.delay_ms.map_or(0, |(_, to)| to),
        };
        let before = self.control.stats().ok();
        let (door, core, meter, length) = (self.door(options), self.client_core, self.meter(), options.length());
        let measured = with_bar(options, progress, "queue", || {
            pin(core);
            native::run(Load { door, produce: vec![produce], consume: None, queue: Some(consume), length, meter, progress })
        });
        let deleted = self.control.delete_queue(&name);
        let mut measured = measured?;
        deleted.with_context(|| format!("deleting queue '{name}'"))?;
        self.check_totals(topic, &mut measured, 0)?;
        Ok(self.report(options, shape, &measured, before))
    }

    fn ping(&mut self, topic: &Topic, options: &BenchOptions, shape: &Shape, progress: &Arc<Progress>) -> Result<RunReport> {
        let before = self.control.stats().ok();
        let (door, core, meter) = (self.door(options), self.client_core, self.meter());
        let target = Topic { name: topic.name.clone(), is_ours: topic.is_ours, targets: topic.targets[..1].to_vec() };
        let mut measured = with_bar(options, progress, "ping", || {
            pin(core);
            native::ping(&door, target.targets[0], shape, &options.length(), target.is_ours, meter, progress)
        })?;
        self.check_totals(&target, &mut measured, 0)?;
        Ok(self.report(options, shape, &measured, before))
    }

    fn consume(&mut self, topic: &Topic, options: &BenchOptions, shape: &Shape, progress: &Arc<Progress>) -> Result<RunReport> {
        let is_empty = topic.targets.iter().all(|t| t.start == t.end);
        let mut targets = topic.targets.clone();
        if is_empty {
            self.preload(topic, options, shape, progress)?;
            for target in &mut targets {
                target.end = self.control.offset(target.number, LATEST)?;
            }
        }
        let read_count = if options.preload_round_robin.is_some() { 1 } else { targets.len() };
        let mut targets = targets[..read_count].to_vec();
        // With keys, some partition may have got none.
        targets.retain(|t| t.end > t.start);
        let background = match options.produce_rate {
            Some(rate) => {
                let shape = Shape::new(Payload::Random { size: options.size }, BACKGROUND_BATCH, false, options.seed, 8);
                let topic = self.open_topic(options, None, 4, options.durability, &shape)?;
                let load = ProduceLoad {
                    connections: 4,
                    in_flight: 8,
                    shape,
                    rate: Some(rate),
                    linger_ns: options.linger_us * 1_000,
                    key_count: 0,
                    targets: topic.targets.clone(),
                    exclusive: true,
                    timed: false,
                };
                Some((topic, load))
            }
            None => None,
        };
        let record = if is_empty { shape.record_shape() } else { None };
        let consume = ConsumeLoad {
            connections: options.connections(),
            in_flight: options.in_flight(),
            fetch_bytes: options.fetch_bytes,
            max_wait_ms: MAX_WAIT_MS,
            targets,
            record,
            writer_count: usize::from(is_empty && topic.is_ours && shape.is_stamped()),
            verify: options.verify,
            follows: false,
        };
        let before = self.control.stats().ok();
        let produce = background.iter().map(|(_, load)| load.clone()).collect();
        let mut measured = self.run(options, progress, "consume", produce, Some(consume), options.length())?;
        if let Some((topic, _)) = &background {
            self.check_totals(topic, &mut measured, 0)?;
        }
        let mut report = self.report(options, shape, &measured, before.clone());
        let read = before.zip(self.control.stats().ok()).map(|(before, after)| read_bytes(&after) - read_bytes(&before));
        report.device_bytes_read = read;
        report.batch = Some(shape.batch);
        if let Some((topic, load)) = background {
            report.background = Some(Background {
                rate: load.rate.unwrap_or_default(),
                messages_per_second: measured.acknowledged_in_window[0] as f64 / measured.window.as_secs_f64(),
                batch: BACKGROUND_BATCH,
            });
            self.control.delete_topic(&topic.name)?;
        }
        Ok(report)
    }

    /// Fills an empty topic: one connection, so that partitions are filled in turn and each has one writer.
    fn preload(&mut self, topic: &Topic, options: &BenchOptions, shape: &Shape, progress: &Arc<Progress>) -> Result<()> {
        let default = if options.cold || options.preload_round_robin.is_some() { COLD_PRELOAD_BYTES } else { WARM_PRELOAD_BYTES };
        let turn_bytes = (shape.largest_frame_bytes() * topic.targets.len()) as u64;
        let turns = options.preload_bytes.unwrap_or(default).div_ceil(turn_bytes).max(1);
        let count = turns * u64::from(shape.batch) * topic.targets.len() as u64;
        let load = ProduceLoad {
            connections: 1,
            in_flight: PRELOAD_IN_FLIGHT,
            shape: shape.clone(),
            rate: None,
            linger_ns: 0,
            key_count: options.keys,
            targets: topic.targets.clone(),
            exclusive: topic.is_ours,
            timed: false,
        };
        let length = Length { warmup: Duration::ZERO, duration: Duration::ZERO, count: Some(count) };
        let mut measured = self.run(options, progress, "preload", vec![load], None, length)?;
        self.check_totals(topic, &mut measured, 0)?;
        match measured.faults.first {
            Some(fault) => bail!("preloading: {fault}"),
            None => Ok(()),
        }
    }

    fn run(
        &self,
        options: &BenchOptions,
        progress: &Arc<Progress>,
        name: &str,
        produce: Vec<ProduceLoad>,
        consume: Option<ConsumeLoad>,
        length: Length,
    ) -> Result<Measured> {
        let (door, core, meter) = (self.door(options), self.client_core, self.meter());
        with_bar(&BenchOptions { count: length.count, ..options.clone() }, progress, name, || {
            pin(core);
            native::run(Load { door, produce, consume, queue: None, length, meter, progress })
        })
    }

    /// A topic of the run's own, or the one that was asked for.
    fn open_topic(
        &mut self,
        options: &BenchOptions,
        name: Option<&str>,
        partition_count: u32,
        durability: Durability,
        shape: &Shape,
    ) -> Result<Topic> {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let name = match name {
            Some(name) => name.to_owned(),
            None => format!("ringmain-bench-{}-{:08x}", options.mode.name(), Random::new(nanos).next_word() as u32),
        };
        let (found, _) = self.control.metadata(&name)?;
        let is_ours = found.is_none();
        if is_ours {
            let frame_bytes = u32::try_from(shape.largest_frame_bytes()).unwrap_or(u32::MAX);
            let config = TopicConfig {
                durability,
                retention_ms: None,
                retention_bytes: Some(TOPIC_BYTES / u64::from(partition_count)),
                max_message_bytes: frame_bytes.clamp(DEFAULT_MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES_LIMIT),
                ..TopicConfig::default()
            };
            self.control.create_topic(&CreateTopic { name: name.clone(), partition_count, config })?;
        }
        let (info, shard_ports) = self.control.metadata(&name)?;
        let info = info.with_context(|| format!("topic '{name}' was created and is not in the metadata"))?;
        let mut targets = Vec::with_capacity(info.partitions.len());
        for place in &info.partitions {
            let port = shard_ports.get(usize::from(place.shard)).copied().filter(|port| *port != 0).unwrap_or(self.bootstrap.port());
            let (start, end) = (self.control.offset(place.partition, EARLIEST)?, self.control.offset(place.partition, LATEST)?);
            targets.push(Target { number: place.partition, port, start, end });
        }
        Ok(Topic { name, is_ours, targets })
    }

    /// What was acknowledged must be what the partitions have grown by.
    fn check_totals(&mut self, topic: &Topic, measured: &mut Measured, group: usize) -> Result<()> {
        for (target, acknowledged) in topic.targets.iter().zip(measured.acknowledged[group].clone()) {
            let grown = self.control.offset(target.number, LATEST)?.saturating_sub(target.end);
            if grown < acknowledged || (topic.is_ours && grown != acknowledged) {
                measured
                    .faults
                    .note(|| format!("partition {}: {acknowledged} messages were acknowledged, its end moved by {grown}", target.number));
            }
        }
        Ok(())
    }

    fn report(&mut self, options: &BenchOptions, shape: &Shape, measured: &Measured, before: Option<StatsReply>) -> RunReport {
        let after = self.control.stats().ok();
        if self.io.is_none() {
            self.io = after.as_ref().map(|stats| stats.io.clone());
        }
        let mut report = RunReport::of(options, measured, self.io.clone(), self.place.as_ref());
        report.batch = Some(shape.batch);
        report.broker_version = after.as_ref().map(|stats| stats.broker_version.clone());
        let written = before.zip(after).map(|(before, after)| written_bytes(&after).saturating_sub(written_bytes(&before)));
        if measured.acknowledged_bytes > 0 {
            report.device_bytes_per_payload_byte = written.map(|bytes| bytes as f64 / measured.acknowledged_bytes as f64);
        }
        report
    }
}

fn written_bytes(stats: &StatsReply) -> u64 {
    stats.shards.iter().map(|s| s.device_bytes_written).sum()
}

fn read_bytes(stats: &StatsReply) -> u64 {
    stats.shards.iter().map(|s| s.device_bytes_read).sum()
}

/// Messages per batch when consuming: with `--preload-round-robin B`, as many as make a frame of B bytes.
fn round_robin_batch(options: &BenchOptions, payload: &Payload) -> u32 {
    let Some(bytes) = options.preload_round_robin else { return options.batch };
    let one = Shape::new(payload.clone(), 1, options.keys > 0, 0, 1).largest_frame_bytes();
    let record = one - frame::HEADER_BYTES - BATCH_PREFIX_BYTES;
    ((bytes as usize).saturating_sub(frame::HEADER_BYTES + BATCH_PREFIX_BYTES) / record).max(1) as u32
}

pub(crate) fn pin(core: Option<CoreId>) {
    if let Some(core) = core {
        // Refused where the set of cores is fixed from outside; the run is then as good as it gets.
        core_affinity::set_for_current(core);
    }
}
