//! Doors: where they listen, and taking connections in.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::core::Shared;
use super::runtime::{self, Readiness, Signal};
use crate::frontend::{Ends, Session};

/// A start waits so long for a port held by a dying process.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two tries.
const PORT_RETRY: Duration = Duration::from_millis(50);
/// Connections waiting to be taken in; the system may allow fewer.
const QUEUE_LENGTH: i32 = 4096;
/// Connections taken in before others get a turn.
const ACCEPTS_PER_TURN: usize = 32;
/// Pause after an error that more tries right away wouldn't cure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Such errors are logged this often.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why a door can't be opened.
#[derive(Debug)]
pub struct BindError {
    /// The flag that names the address.
    pub flag: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// The system's word.
    pub error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { flag, address, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "{flag} {address}: the port is taken by another process; stop it, or choose another port (0 = any free one)")
            }
            io::ErrorKind::PermissionDenied => write!(f, "{flag} {address}: {error}; ports below 1024 need privileges"),
            io::ErrorKind::AddrNotAvailable => write!(f, "{flag} {address}: this machine has no such address"),
            _ => write!(f, "{flag} {address}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

/// Opens a door. Waits for a port that another process still holds, saying so once through `waiting`.
pub fn bind(flag: &'static str, address: SocketAddr, waiting: &mut dyn FnMut(&str)) -> Result<TcpListener, BindError> {
    let started = Instant::now();
    let mut is_told = false;
    loop {
        // The standard library sets SO_REUSEADDR, so connections of the process before don't hold the port.
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() != 0 && started.elapsed() < PORT_PATIENCE => {
                if !std::mem::replace(&mut is_told, true) {
                    waiting(&format!("{flag} {address}: the port is taken; waiting up to {} s for it", PORT_PATIENCE.as_secs()));
                }
                std::thread::sleep(PORT_RETRY);
            }
            Err(error) => return Err(BindError { flag, address, error }),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // Again, for a longer queue than the standard library's 128: what doesn't fit is tried again by its peer a second later.
    rustix::net::listen(&listener, QUEUE_LENGTH)?;
    Ok(listener)
}

/// Makes the broker's side of a connection, which came to the broker by this address.
pub type MakeSession = dyn Fn(Ends) -> Box<dyn Session>;

/// Takes connections in until the core stops. `session` makes the broker's side of each.
pub async fn accept(shared: Rc<Shared>, listener: TcpListener, session: Rc<MakeSession>) {
    let readiness = match listener.try_clone().and_then(|duplicate| Readiness::new(duplicate.into())) {
        Ok(readiness) => readiness,
        Err(error) => return tracing::error!("a door can't be watched: {error}"),
    };
    let mut logged: Option<Instant> = None;
    loop {
        let result = accept_some(&shared, &listener, &*session);
        if !shared.is_open() {
            return;
        }
        match result {
            // A wait also lets the others have their turn; if there is more it returns at once.
            Ok(()) => {
                if let Err(error) = readiness.readable().await {
                    tracing::error!("a door can't be watched: {error}");
                    runtime::sleep_or(ACCEPT_PAUSE, &Signal::default()).await;
                }
            }
            Err(error) => {
                if logged.is_none_or(|at| at.elapsed() > ACCEPT_LOG_INTERVAL) {
                    logged = Some(Instant::now());
                    tracing::warn!(
                        "a connection can't be accepted: {error}; trying again (too many open files? raise ulimit -n, LimitNOFILE=)"
                    );
                }
                runtime::sleep_or(ACCEPT_PAUSE, &Signal::default()).await;
            }
        }
    }
}

fn accept_some(shared: &Rc<Shared>, listener: &TcpListener, session: &MakeSession) -> io::Result<()> {
    for _ in 0..ACCEPTS_PER_TURN {
        let socket = match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => TcpStream::from(socket),
            Err(Errno::AGAIN) => return Ok(()),
            // The peer has gone already, or the network says something about it: the next one may be fine.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH | Errno::NETUNREACH) => continue,
            Err(error) => return Err(error.into()),
        };
        // Replies leave as soon as they are there; a peer that has gone meanwhile shows itself at the first read.
        let _ = socket.set_nodelay(true);
        // Within the host nothing can be congested; a host-wide default that paces (bbr) would cost a timer per burst
        // and delay replies. Where the kernel has no such algorithm, its default stays.
        if socket.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
            let _ = rustix::net::sockopt::set_tcp_congestion(&socket, "reno");
        }
        let (Ok(local), Ok(peer)) = (socket.local_addr(), socket.peer_addr()) else { continue };
        let ends = Ends { local: local.ip().to_canonical(), peer: peer.ip().to_canonical() };
        if !shared.open(socket, session(ends))? {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the memory budget has no room for another connection"));
        }
    }
    Ok(())
}
