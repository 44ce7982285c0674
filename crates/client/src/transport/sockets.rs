//! Non-blocking sockets of one state machine, waited for together.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::{Access, READ_BYTES_PER_TURN};
use crate::error::ConnectionError;
use crate::links::{Action, Machine as _};

/// One epoll instance and the connections registered with it, named by port (0 = the bootstrap port).
#[derive(Debug)]
pub(super) struct Sockets {
    poll: Poll,
    events: Events,
    bootstrap: SocketAddr,
    connect_timeout: Duration,
    sockets: BTreeMap<u16, Socket>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    address: SocketAddr,
    /// Being connected until then at the latest; `None` = connected.
    connecting_until: Option<Instant>,
    out: Vec<u8>,
    out_at: usize,
    // Readiness comes once per change, so it is remembered until a call would block.
    readable: bool,
    writable: bool,
    /// The other side has ended it, which is said once: read up to there, whatever comes before.
    is_ended: bool,
    /// The last write took as much as a session gives at once: there may be more.
    more: bool,
}

impl Sockets {
    /// `bootstrap`: where port 0 leads; the other ports are on the same host.
    pub(super) fn new(bootstrap: SocketAddr, connect_timeout: Duration) -> io::Result<Sockets> {
        let (poll, events) = (Poll::new()?, Events::with_capacity(EVENTS));
        Ok(Sockets { poll, events, bootstrap, connect_timeout, sockets: BTreeMap::new(), scratch: Vec::new() })
    }

    /// Ends the next wait, from any thread.
    pub(super) fn waker(&self) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), WAKE)
    }

    /// Does what is due, opens and closes connections, and sends what can be sent.
    pub(super) fn advance(&mut self, access: &mut impl Access) {
        let now = Instant::now();
        let mut actions = Vec::new();
        access.with(|machine| {
            machine.handle_timeout(now);
            while let Some(action) = machine.poll_action(now) {
                actions.push(action);
            }
            for (port, socket) in &mut self.sockets {
                if socket.connecting_until.is_none() && socket.out_at == socket.out.len() {
                    socket.out.clear();
                    socket.out_at = 0;
                    machine.transmit(*port, now, &mut socket.out);
                }
            }
        });
        for action in actions {
            match action {
                Action::Close { port } => self.close(port),
                Action::Connect { port } => {
                    if let Err(error) = self.connect(port, now) {
                        let error = ConnectionError::Connect { address: self.address(port), error: Arc::new(error) };
                        access.with(|machine| machine.disconnected(port, error, now));
                    }
                }
            }
        }
        let mut failed = Vec::new();
        for (port, socket) in &mut self.sockets {
            if let Err(error) = socket.write() {
                failed.push((*port, error.into()));
            }
        }
        self.drop_failed(access, failed, now);
    }

    /// Waits until something can be read or sent, the waker is called, or `until`; then reads. Whether anything
    /// was read or connected.
    pub(super) fn wait_and_read(&mut self, access: &mut impl Access, until: Option<Instant>) -> io::Result<bool> {
        let deadlines = self.sockets.values().filter_map(|socket| socket.connecting_until).chain(until);
        let busy = self.sockets.values().any(|socket| socket.readable || socket.more);
        let now = Instant::now();
        let timeout = if busy { Some(Duration::ZERO) } else { deadlines.min().map(|at| at.saturating_duration_since(now)) };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &self.events {
            if let Some(socket) = u16::try_from(event.token().0).ok().and_then(|port| self.sockets.get_mut(&port)) {
                socket.is_ended |= event.is_read_closed() || event.is_error();
                socket.readable |= event.is_readable() || socket.is_ended;
                socket.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
            }
        }
        let now = Instant::now();
        let (mut failed, mut progress) = (Vec::new(), false);
        for (port, socket) in &mut self.sockets {
            if socket.connecting_until.is_some() {
                match socket.finish_connecting(now) {
                    Ok(false) => continue,
                    Ok(true) => {
                        progress = true;
                        access.with(|machine| machine.connected(*port, now));
                    }
                    Err(error) => {
                        failed.push((*port, ConnectionError::Connect { address: socket.address, error: Arc::new(error) }));
                        continue;
                    }
                }
            }
            match socket.read(*port, access, &mut self.scratch, now) {
                Ok(read) => progress |= read,
                Err(error) => failed.push((*port, error)),
            }
        }
        progress |= !failed.is_empty();
        self.drop_failed(access, failed, now);
        Ok(progress)
    }

    fn drop_failed(&mut self, access: &mut impl Access, failed: Vec<(u16, ConnectionError)>, now: Instant) {
        for (port, error) in failed {
            self.close(port);
            access.with(|machine| machine.disconnected(port, error, now));
        }
    }

    fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host(), if port == 0 { self.bootstrap.port() } else { port })
    }

    fn host(&self) -> IpAddr {
        self.bootstrap.ip()
    }

    fn connect(&mut self, port: u16, now: Instant) -> io::Result<()> {
        let address = self.address(port);
        let mut stream = TcpStream::connect(address)?;
        self.poll.registry().register(&mut stream, Token(usize::from(port)), Interest::READABLE | Interest::WRITABLE)?;
        let connecting_until = Some(now + self.connect_timeout);
        let socket = Socket {
            stream,
            address,
            connecting_until,
            out: Vec::new(),
            out_at: 0,
            readable: false,
            writable: false,
            is_ended: false,
            more: false,
        };
        self.sockets.insert(port, socket);
        Ok(())
    }

    fn close(&mut self, port: u16) {
        if let Some(mut socket) = self.sockets.remove(&port) {
            // Closing the descriptor ends the registration too; this only says so earlier.
            let _ = self.poll.registry().deregister(&mut socket.stream);
        }
    }
}

impl Socket {
    /// Whether the connection is made now.
    fn finish_connecting(&mut self, now: Instant) -> io::Result<bool> {
        if !self.writable {
            return if self.connecting_until.is_some_and(|until| until <= now) { Err(ErrorKind::TimedOut.into()) } else { Ok(false) };
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                self.writable = false;
                Ok(false)
            }
            Err(error) => Err(error),
            Ok(_) => {
                self.stream.set_nodelay(true)?;
                self.connecting_until = None;
                Ok(true)
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        self.more = false;
        while self.writable && self.connecting_until.is_none() && self.out_at < self.out.len() {
            match self.stream.write(&self.out[self.out_at..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.out_at += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.more = self.out_at == self.out.len() && self.out.len() >= MORE_BYTES;
        Ok(())
    }

    /// Reads until there is nothing or the turn is over; whether anything came.
    fn read<A: Access>(&mut self, port: u16, access: &mut A, scratch: &mut Vec<u8>, now: Instant) -> Result<bool, ConnectionError> {
        let mut read_bytes = 0;
        while self.readable && read_bytes < READ_BYTES_PER_TURN {
            let (got, room) = if A::DIRECT {
                access.with(|machine| {
                    let buffer = machine.read_buffer(port);
                    if buffer.is_empty() {
                        // The machine gave this connection up while its earlier bytes were read; it says so next.
                        return (Err(ErrorKind::WouldBlock.into()), 0);
                    }
                    (self.stream.read(buffer), buffer.len())
                })
            } else {
                scratch.resize(SCRATCH_BYTES, 0);
                (self.stream.read(scratch), scratch.len())
            };
            match got {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(n) => {
                    read_bytes += n;
                    // Less than asked for: the socket is empty, and the next bytes will say so.
                    self.readable = n == room || self.is_ended;
                    access
                        .with(|machine| if A::DIRECT { machine.received(port, n, now) } else { machine.receive(port, &scratch[..n], now) });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read_bytes > 0)
    }
}

const WAKE: Token = Token(usize::MAX);
const EVENTS: usize = 256;
const SCRATCH_BYTES: usize = 64 << 10;
/// A write of so many bytes was probably cut by the session's limit of unsent bytes.
const MORE_BYTES: usize = 512 << 10;
