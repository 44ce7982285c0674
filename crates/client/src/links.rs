//! The connections of one producer or consumer, without sockets: which ports are wanted, when to try again,
//! what was lost. A port of 0 is the bootstrap port.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ringmain_wire::control::{FetchReply, HelloReply, MetadataReply, TopicInfo};

use crate::error::{ConnectionError, MetadataError, SessionError};
use crate::session::{Event, Reply, Session, SessionConfig};

/// How connections are made and kept.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Limits of each connection.
    pub session: SessionConfig,
    /// Pause after the first failed attempt; doubles with each further one. Default 10 ms.
    pub first_backoff: Duration,
    /// Longest pause between attempts. Default 1 s.
    pub max_backoff: Duration,
}

impl Default for LinkConfig {
    fn default() -> LinkConfig {
        LinkConfig { session: SessionConfig::default(), first_backoff: Duration::from_millis(10), max_backoff: Duration::from_secs(1) }
    }
}

impl LinkConfig {
    /// The pause after `failures` failed attempts in a row (1 = the first).
    pub fn backoff(&self, failures: u32) -> Duration {
        self.first_backoff.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.max_backoff)
    }
}

/// What a state machine asks of its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to this port of the broker's host (0 = the bootstrap port), then call `connected` or `disconnected`.
    Connect {
        /// Which.
        port: u16,
    },
    /// Close the connection; nothing needs to be called.
    Close {
        /// Which.
        port: u16,
    },
}

/// A producer or a consumer as its transport sees it: connections named by port, bytes, and time.
///
/// The order of calls in a turn: [`Machine::handle_timeout`], every [`Machine::poll_action`], then
/// [`Machine::transmit`] for each connection that can take bytes; then wait for bytes, room or [`Machine::poll_timeout`].
pub trait Machine {
    /// The next connection to make or close.
    fn poll_action(&mut self, now: Instant) -> Option<Action>;
    /// The connection asked for is there.
    fn connected(&mut self, port: u16, now: Instant);
    /// The connection asked for couldn't be made, or ended.
    fn disconnected(&mut self, port: u16, error: ConnectionError, now: Instant);
    /// Where bytes read from the connection may be put; empty if there is no such connection.
    fn read_buffer(&mut self, port: u16) -> &mut [u8];
    /// The first `n` bytes of [`Machine::read_buffer`] came from the connection.
    fn received(&mut self, port: u16, n: usize, now: Instant);
    /// Appends what the connection should send now; whether there was anything.
    fn transmit(&mut self, port: u16, now: Instant, out: &mut Vec<u8>) -> bool;
    /// When to call [`Machine::handle_timeout`] at the latest.
    fn poll_timeout(&self) -> Option<Instant>;
    /// Does what is due.
    fn handle_timeout(&mut self, now: Instant);

    /// Bytes from the connection, in a buffer of the transport's.
    fn receive(&mut self, port: u16, mut input: &[u8], now: Instant) {
        while !input.is_empty() {
            let room = self.read_buffer(port);
            let n = room.len().min(input.len());
            if n == 0 {
                return;
            }
            room[..n].copy_from_slice(&input[..n]);
            self.received(port, n, now);
            input = &input[n..];
        }
    }
}

/// Sessions by port.
#[derive(Debug)]
pub(crate) struct Links<C> {
    config: LinkConfig,
    links: BTreeMap<u16, Link<C>>,
    closing: VecDeque<u16>,
    /// The last thing that went wrong with any connection, until one is ready again.
    problem: Option<ConnectionError>,
    /// The data directory that the first connection led to; every other must lead to the same.
    cluster_id: Option<u64>,
}

#[derive(Debug)]
struct Link<C> {
    state: State<C>,
    wanted: bool,
    failures: u32,
}

#[derive(Debug)]
enum State<C> {
    Idle { not_before: Option<Instant> },
    Connecting,
    Up(Box<Session<C>>),
}

/// What a connection has brought.
pub(crate) enum Heard<C> {
    /// It is the right broker; requests go out from now on.
    Ready(HelloReply),
    /// As [`Event::FetchHead`].
    FetchHead { context: C, head: FetchReply, body_bytes: u32 },
    /// A request is answered.
    Reply(Reply<C>),
    /// It is no connection any more, and these requests won't be answered.
    Lost(Vec<C>),
}

impl<C: Clone> Links<C> {
    pub(crate) fn new(config: LinkConfig) -> Links<C> {
        Links { config, links: BTreeMap::new(), closing: VecDeque::new(), problem: None, cluster_id: None }
    }

    /// No connection is wanted until the next calls of [`Links::want`]; those that are up stay.
    pub(crate) fn want_none(&mut self) {
        self.links.values_mut().for_each(|link| link.wanted = false);
    }

    /// Sees to it that there is, or will be, a connection to `port`.
    pub(crate) fn want(&mut self, port: u16) {
        self.links.entry(port).or_insert(Link { state: State::Idle { not_before: None }, wanted: false, failures: 0 }).wanted = true;
    }

    pub(crate) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(port) = self.closing.pop_front() {
            return Some(Action::Close { port });
        }
        let due = |link: &Link<C>| link.wanted && matches!(link.state, State::Idle { not_before } if not_before.is_none_or(|at| at <= now));
        let (port, link) = self.links.iter_mut().find(|(_, link)| due(link))?;
        link.state = State::Connecting;
        Some(Action::Connect { port: *port })
    }

    pub(crate) fn connected(&mut self, port: u16, now: Instant) {
        if let Some(link) = self.links.get_mut(&port) {
            link.state = State::Up(Box::new(Session::new(self.config.session.clone(), now)));
        }
    }

    /// The hello was answered. Errors: by another cluster than before.
    pub(crate) fn ready(&mut self, port: u16, cluster_id: u64) -> Result<(), SessionError> {
        let expected = *self.cluster_id.get_or_insert(cluster_id);
        if expected != cluster_id {
            return Err(SessionError::OtherCluster { expected, got: cluster_id });
        }
        if let Some(link) = self.links.get_mut(&port) {
            link.failures = 0;
            self.problem = None;
        }
        Ok(())
    }

    /// The connection is gone; what was attached to its unanswered requests, oldest first.
    pub(crate) fn lost(&mut self, port: u16, error: ConnectionError, now: Instant) -> Vec<C> {
        self.problem = Some(error);
        let Some(link) = self.links.get_mut(&port) else { return Vec::new() };
        link.failures += 1;
        let not_before = Some(now + self.config.backoff(link.failures));
        match std::mem::replace(&mut link.state, State::Idle { not_before }) {
            State::Up(session) => session.into_lost().collect(),
            State::Idle { .. } | State::Connecting => Vec::new(),
        }
    }

    /// What the connection to `port` has brought next; `None` = no more for now, or it has gone.
    pub(crate) fn poll(&mut self, port: u16, now: Instant) -> Option<Heard<C>> {
        let failed = match self.session(port)?.poll_event() {
            Ok(None) => return None,
            Ok(Some(Event::Ready(hello))) => match self.ready(port, hello.cluster_id) {
                Ok(()) => return Some(Heard::Ready(hello)),
                Err(error) => error,
            },
            Ok(Some(Event::FetchHead { context, head, body_bytes })) => return Some(Heard::FetchHead { context, head, body_bytes }),
            Ok(Some(Event::Reply(reply))) => return Some(Heard::Reply(reply)),
            Err(error) => error,
        };
        Some(Heard::Lost(self.fail(port, failed.into(), now)))
    }

    /// Like [`Links::lost`], decided on this side: the transport is told to close.
    pub(crate) fn fail(&mut self, port: u16, error: ConnectionError, now: Instant) -> Vec<C> {
        self.closing.push_back(port);
        self.lost(port, error, now)
    }

    pub(crate) fn session(&mut self, port: u16) -> Option<&mut Session<C>> {
        match &mut self.links.get_mut(&port)?.state {
            State::Up(session) => Some(session),
            State::Idle { .. } | State::Connecting => None,
        }
    }

    /// The session, once its hello is answered.
    pub(crate) fn ready_session(&mut self, port: u16) -> Option<&mut Session<C>> {
        self.session(port).filter(|session| session.hello().is_some())
    }

    /// Connections whose oldest request is overdue.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<(u16, ConnectionError)> {
        let mut late = Vec::new();
        for (port, link) in &mut self.links {
            if let State::Up(session) = &mut link.state
                && let Err(error) = session.handle_timeout(now)
            {
                late.push((*port, error.into()));
            }
        }
        late
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let of = |link: &Link<C>| match &link.state {
            State::Up(session) => session.poll_timeout(),
            State::Idle { not_before } if link.wanted => *not_before,
            State::Idle { .. } | State::Connecting => None,
        };
        self.links.values().filter_map(of).min()
    }

    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        self.config.backoff(failures)
    }

    pub(crate) fn problem(&self) -> Option<&ConnectionError> {
        self.problem.as_ref()
    }
}

/// A topic as a producer or consumer needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMap {
    /// Its number; another one under the same name is another topic.
    pub topic: u32,
    /// Its name.
    pub name: String,
    /// Where each partition is, by index.
    pub partitions: Vec<Place>,
    /// Largest frame, header included.
    pub max_message_bytes: u32,
}

/// Where a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, for frames and fetches.
    pub partition: u32,
    /// The port of the core that owns it; 0 = the bootstrap port.
    pub port: u16,
}

impl TopicMap {
    /// Finds `name` in the broker's answer. Errors: it isn't there, or has no partitions.
    pub fn find(reply: &MetadataReply, name: &str) -> Result<TopicMap, MetadataError> {
        let info = reply.topics.iter().find(|t| t.name == name).ok_or_else(|| MetadataError::UnknownTopic { topic: name.into() })?;
        TopicMap::of(info, &reply.shard_ports)
    }

    fn of(info: &TopicInfo, shard_ports: &[u16]) -> Result<TopicMap, MetadataError> {
        // A shard without a port is reached through the bootstrap port, which serves every request (flag MOVED).
        let port = |shard: u16| shard_ports.get(usize::from(shard)).copied().unwrap_or(0);
        let partitions: Vec<Place> = info.partitions.iter().map(|p| Place { partition: p.partition, port: port(p.shard) }).collect();
        if partitions.is_empty() {
            return Err(MetadataError::PartitionsMissing { topic: info.name.clone(), expected: 1, got: 0 });
        }
        Ok(TopicMap { topic: info.topic, name: info.name.clone(), partitions, max_message_bytes: info.config.max_message_bytes })
    }

    /// Takes over a newer state. Errors: it is another topic, or partitions are missing.
    pub fn update(&mut self, newer: TopicMap) -> Result<(), MetadataError> {
        if newer.topic != self.topic {
            return Err(MetadataError::Replaced { topic: self.name.clone(), expected: self.topic, got: newer.topic });
        }
        if newer.partitions.len() < self.partitions.len() {
            let (expected, got) = (self.partitions.len() as u32, newer.partitions.len() as u32);
            return Err(MetadataError::PartitionsMissing { topic: self.name.clone(), expected, got });
        }
        *self = newer;
        Ok(())
    }
}
