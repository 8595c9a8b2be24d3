//! The server: listening sockets, the thread that accepts, and a thread for each connection.
//!
//! A connection is registered before its thread starts and unregistered as the last thing that thread does, when its
//! lane and its hold on the volume are gone; so when the server has stopped, the pool can be closed. A panic in a
//! connection's thread ends that connection.

use super::connection::{Channel, RING_ENTRIES, serve};
use super::handshake::{Host, Patience, negotiate};
use super::listen::{Listener, Socket, TcpAccess};
use super::options::Facts;
use super::session::Closing;
use super::tls::{Line, Tls, bridge};
use super::validate::Terms;
use super::{Address, Export, Exports};
use crate::driver::Pool;
use crate::driver::uring::{Ring, SocketStream, Waker};
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long connections that were cut off may take to end: as long as the pool's disks take for what is in flight.
const CUT_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before accepting again when the system has no more files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Clients beyond the limit that are being told so at a time; whoever comes then is closed without a word.
const REFUSALS: usize = 8;
/// How long such a client may take to ask for something.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);

/// What a server puts up with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; the next one is told that there are so many. Each needs one of the pool's lanes.
    pub connections: usize,
    /// How long requests under way may take to finish, and their replies to be read, when the server stops.
    pub stop_grace: Duration,
    /// How long a handshake may take.
    pub patience: Patience,
    /// What TLS is done with: needed from everybody who comes over TCP, offered at Unix sockets. `None`: no TLS.
    pub tls: Option<Tls>,
    /// Without TLS: listen on TCP addresses that are not loopback ones, so that whoever connects can read and write.
    pub insecure_tcp: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 64,
            stop_grace: Duration::from_secs(5),
            patience: Patience::default(),
            tls: None,
            insecure_tcp: false,
        }
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    addresses: Vec<Address>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// What the server's threads have in common.
struct Shared {
    pool: Pool,
    exports: Arc<dyn Exports>,
    limits: Limits,
    /// Ends the accept thread's wait.
    bell: OwnedFd,
    is_stopping: AtomicBool,
    registry: Mutex<Registry>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Registry {
    connections: HashMap<u64, Connection>,
    next_number: u64,
    /// All that were started and not joined yet.
    threads: Vec<JoinHandle<()>>,
}

/// How to reach a connection from outside.
struct Connection {
    socket: Socket,
    /// It is only there to be told that there are too many.
    is_refused: bool,
    /// From the beginning of the transmission on.
    waker: Option<Waker>,
}

impl Registry {
    fn connected(&self) -> usize {
        self.connections.values().filter(|connection| !connection.is_refused).count()
    }
}

impl Limits {
    fn access(&self) -> TcpAccess {
        match (&self.tls, self.insecure_tcp) {
            (Some(tls), _) => TcpAccess::Tls { verifies_peer: tls.verifies_peer() },
            (None, false) => TcpAccess::Loopback,
            (None, true) => TcpAccess::Everybody,
        }
    }
}

impl Server {
    /// Whether a server could listen on all of `addresses`, were it not that somebody may listen there now: the errors of [`Server::start`], but
    /// for `Busy`.
    pub fn check_addresses(addresses: &[Address], limits: &Limits) -> Result<()> {
        addresses.iter().try_for_each(|address| match Listener::bind(address, limits.access()) {
            Err(error) if error.kind() != ErrorKind::Busy => Err(error),
            Ok(_) | Err(_) => Ok(()),
        })
    }

    /// Listens on all of `addresses` and serves. `Busy` when somebody else listens there, `Invalid` for an address that is
    /// not allowed or cannot be, `Exists` when a file that is no socket is in the way.
    pub fn start(
        addresses: &[Address],
        pool: Pool,
        exports: Arc<dyn Exports>,
        limits: Limits,
    ) -> Result<Server> {
        let bind = |address| Listener::bind(address, limits.access());
        let listeners = addresses.iter().map(bind).collect::<Result<Vec<_>>>()?;
        let addresses: Vec<Address> = listeners.iter().map(|listener| listener.address.clone()).collect();
        let bell = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| Error::io("eventfd", &errno.into()))?;
        let shared = Arc::new(Shared {
            pool,
            exports,
            limits,
            bell,
            is_stopping: AtomicBool::new(false),
            registry: Mutex::default(),
            ended: Condvar::new(),
        });
        let accepting = {
            let shared = shared.clone();
            Builder::new().name("nbd-accept".to_owned()).spawn(move || accept_all(&shared, &listeners))
        };
        let accepting = accepting.map_err(|error| Error::io("starting a thread", &error))?;
        for address in &addresses {
            tracing::debug!("listening for NBD clients at {address}");
        }
        Ok(Server { addresses, shared, accepting: Some(accepting) })
    }

    /// Where it listens; a TCP port given as 0 is the real one here.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Number of connections at the moment, those not counted that are being refused.
    pub fn connections(&self) -> usize {
        self.shared.registry().connected()
    }

    /// Stops accepting, lets requests under way finish, ends all connections and joins their threads. To be called
    /// before the pool is closed. Calling it again does nothing.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        ring(&self.shared.bell);
        if accepting.join().is_err() {
            tracing::error!("the thread that accepts connections has panicked");
        }
        for connection in self.shared.registry().connections.values() {
            match &connection.waker {
                Some(waker) => waker.wake(),
                None => connection.socket.shutdown(),
            }
        }
        if !self.shared.wait_until_none(self.shared.limits.stop_grace) {
            for connection in self.shared.registry().connections.values() {
                connection.socket.shutdown();
            }
            self.shared.wait_until_none(CUT_PATIENCE);
        }
        let (threads, left) = {
            let mut registry = self.shared.registry();
            (std::mem::take(&mut registry.threads), registry.connections.len())
        };
        if left > 0 {
            tracing::error!("{left} connections do not end: their I/O does not finish");
        }
        // Who has unregistered is about to end; who has not may never.
        for thread in threads.into_iter().filter(|thread| left == 0 || thread.is_finished()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing is left half done by a panic while it is held.
        self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Waits until there is no connection; `false` when there still is one.
    fn wait_until_none(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut registry = self.registry();
        while !registry.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(registry, left);
            registry = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        true
    }

    /// Notes how to wake the connection from now on. Whoever stops the server before this finds the socket to shut down.
    fn set_waker(&self, number: u64, waker: Waker) {
        if let Some(connection) = self.registry().connections.get_mut(&number) {
            connection.waker = Some(waker);
        }
    }
}

/// Adds one to an eventfd: a wait for it ends.
fn ring(bell: &OwnedFd) {
    // It fails only when the count is about to overflow; then it rings already.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

/// The accept thread; the listeners close when it ends.
fn accept_all(shared: &Arc<Shared>, listeners: &[Listener]) {
    while !shared.is_stopping() {
        let mut waits: Vec<PollFd<'_>> =
            listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        waits.push(PollFd::new(&shared.bell, PollFlags::IN));
        if let Err(errno) = poll(&mut waits, None)
            && errno != rustix::io::Errno::INTR
        {
            tracing::error!("waiting for connections failed, no more are accepted: {errno}");
            return;
        }
        for (listener, wait) in listeners.iter().zip(&waits) {
            if !wait.revents().is_empty() {
                accept(shared, listener);
            }
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    let socket = match listener.accept() {
        Ok(socket) => socket,
        Err(error) => {
            let is_passing = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
            );
            if !is_passing {
                tracing::warn!("cannot accept a connection at {}: {error}", listener.address);
                std::thread::sleep(ACCEPT_PAUSE);
            }
            return;
        }
    };
    if let Err(error) = start(shared, socket) {
        tracing::warn!("closed a new connection at {}: {error}", listener.address);
    }
}

/// Registers a connection and starts its thread.
fn start(shared: &Arc<Shared>, socket: Socket) -> Result<()> {
    let handle = socket.try_clone().map_err(|error| Error::io("its socket", &error))?;
    let (number, refusal) = {
        let mut registry = shared.registry();
        let connected = registry.connected();
        let what = format!("{connected} clients are connected, and no more are allowed");
        let refusal = (connected >= shared.limits.connections)
            .then(|| Error::new(ErrorKind::Busy, what).hint("wait until one has left"));
        if let Some(refusal) = &refusal {
            tracing::warn!("refusing a new connection: {}", refusal.message());
            if registry.connections.len() - connected >= REFUSALS {
                return Err(refusal.clone());
            }
        }
        join_finished(&mut registry.threads);
        let number = registry.next_number;
        registry.next_number += 1;
        let connection = Connection { socket: handle, is_refused: refusal.is_some(), waker: None };
        registry.connections.insert(number, connection);
        (number, refusal)
    };
    let registered = Registered { shared: shared.clone(), number };
    let thread =
        Builder::new().name(format!("nbd-{number}")).spawn(move || run(&registered, socket, refusal));
    // If it did not start, the closure is gone, and `registered` with it.
    let thread = thread.map_err(|error| Error::io("starting a thread", &error))?;
    shared.registry().threads.push(thread);
    Ok(())
}

fn join_finished(threads: &mut Vec<JoinHandle<()>>) {
    for thread in std::mem::take(threads) {
        if thread.is_finished() {
            let _ = thread.join();
        } else {
            threads.push(thread);
        }
    }
}

/// A place in the registry, given up on drop.
struct Registered {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.registry().connections.remove(&self.number);
        self.shared.ended.notify_all();
    }
}

/// A connection's thread.
fn run(registered: &Registered, socket: Socket, refusal: Option<Error>) {
    let number = registered.number;
    let connection = || match refusal {
        None => connect(registered, socket),
        Some(refusal) => refuse(&registered.shared, socket, refusal),
    };
    match catch_unwind(AssertUnwindSafe(connection)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(connection = number, "NBD connection ended: {error}"),
        Err(_) => tracing::error!(connection = number, "an NBD connection ended in a panic; this is a bug"),
    }
}

/// A handshake in which whoever asks for anything is told why there is nothing.
fn refuse(shared: &Shared, socket: Socket, refusal: Error) -> Result<()> {
    let mut line = Line::new(socket, shared.limits.tls.clone());
    let Patience { message, total } = shared.limits.patience;
    let patience = Patience { message: message.min(REFUSAL_PATIENCE), total: total.min(REFUSAL_PATIENCE) };
    negotiate(&mut line, &Full(refusal), patience)?;
    line.close();
    Ok(())
}

/// Nobody gets in.
struct Full(Error);

impl Host for Full {
    type Entered = std::convert::Infallible;

    fn list(&self) -> Result<Vec<String>> {
        Err(self.0.clone())
    }

    fn describe(&self, _: &str) -> Result<Facts> {
        Err(self.0.clone())
    }

    fn enter(&self, _: &str) -> Result<(Facts, Self::Entered)> {
        Err(self.0.clone())
    }
}

/// Handshake and transmission.
fn connect(registered: &Registered, socket: Socket) -> Result<()> {
    let Registered { shared, number } = registered;
    let mut line = Line::new(socket, shared.limits.tls.clone());
    let Some(agreed) = negotiate(&mut line, &**shared, shared.limits.patience)? else {
        line.close();
        return Ok(());
    };
    let (facts, channel) = (agreed.facts, agreed.entered);
    let terms = Terms {
        size_bytes: facts.size_bytes,
        read_only: facts.read_only,
        style: agreed.style,
        contexts: agreed.contexts,
        block_size: facts.block_size,
        origin_bytes: channel.lease.volume().origin_bytes(),
    };
    shared.set_waker(*number, channel.lane.waker());
    let (socket, bridge) = join_bridge(line, *number)?;
    let stream = SocketStream::new(socket, 0)?;
    tracing::info!(connection = number, export = facts.name, "an NBD client has connected");
    let closing = serve(stream, channel, terms, || shared.is_stopping());
    if let Some(bridge) = bridge
        && bridge.join().is_err()
    {
        tracing::error!(connection = number, "a connection's TLS ended in a panic; this is a bug");
    }
    match closing? {
        Closing::Disconnect | Closing::Asked => {
            tracing::info!(connection = number, export = facts.name, "an NBD client has gone");
        }
        Closing::Broken(what) => {
            tracing::warn!(connection = number, export = facts.name, "hung up on an NBD client: {what}");
        }
    }
    Ok(())
}

/// The socket that the transmission goes on with: the client's own, or one end of a pair whose other end a thread joins to it.
fn join_bridge(line: Line, number: u64) -> Result<(OwnedFd, Option<JoinHandle<()>>)> {
    let (mut socket, session) = line.into_parts();
    let Some(session) = session else { return Ok((socket.into_fd(), None)) };
    let (inner, outer) = UnixStream::pair().map_err(|error| Error::io("a pair of sockets", &error))?;
    let run = move || {
        if let Err(error) = bridge(session, &mut socket, inner) {
            tracing::debug!(connection = number, "TLS ended: {error}");
        }
    };
    let thread = Builder::new().name(format!("nbd-tls-{number}")).spawn(run);
    let thread = thread.map_err(|error| Error::io("starting a thread", &error))?;
    Ok((outer.into(), Some(thread)))
}

impl Shared {
    fn open(&self, name: &str) -> Result<(Facts, Export)> {
        if self.is_stopping() {
            return Err(Error::new(ErrorKind::WrongState, "the server is stopping"));
        }
        let export = self.exports.open(name)?;
        let facts = Facts {
            name: name.to_owned(),
            description: export.description.clone(),
            size_bytes: export.lease.volume().size_bytes(),
            read_only: export.read_only,
            block_size: export.block_size,
        };
        Ok((facts, export))
    }
}

impl Host for Shared {
    type Entered = Channel;

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.exports.list())
    }

    fn describe(&self, name: &str) -> Result<Facts> {
        self.open(name).map(|(facts, _)| facts)
    }

    fn enter(&self, name: &str) -> Result<(Facts, Channel)> {
        let (facts, export) = self.open(name)?;
        let channel =
            Channel { lease: export.lease, lane: self.pool.lane()?, ring: Ring::new(RING_ENTRIES)? };
        Ok((facts, channel))
    }
}
