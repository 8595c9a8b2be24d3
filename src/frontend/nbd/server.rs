//! The server: listening sockets, the thread that accepts, and a thread for each connection.
//!
//! A connection is registered before its thread starts and unregistered as the last thing that thread does, when its
//! lane and its hold on the volume are gone; so when the server has stopped, the pool can be closed. A panic in a
//! connection's thread ends that connection.

use super::connection::{Channel, RING_ENTRIES, serve};
use super::handshake::{Host, Patience, negotiate};
use super::listen::{Listener, Socket};
use super::options::Facts;
use super::session::Closing;
use super::validate::Terms;
use super::{Address, Export, Exports};
use crate::driver::Pool;
use crate::driver::uring::{Ring, SocketStream, Waker};
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long connections that were cut off may take to end: as long as the pool's disks take for what is in flight.
const CUT_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before accepting again when the system has no more files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a server puts up with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; the next one is closed at once. Each needs one of the pool's lanes.
    pub connections: usize,
    /// How long requests under way may take to finish, and their replies to be read, when the server stops.
    pub stop_grace: Duration,
    /// How long a handshake may take.
    pub patience: Patience,
    /// Listen on TCP addresses that are not loopback ones. NBD has no passwords: whoever connects can read and write.
    pub allow_remote: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 64,
            stop_grace: Duration::from_secs(5),
            patience: Patience::default(),
            allow_remote: false,
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
    /// From the beginning of the transmission on.
    waker: Option<Waker>,
}

impl Server {
    /// Listens on all of `addresses` and serves. `Busy` when somebody else listens there, `Invalid` for an address that is
    /// not allowed or cannot be, `Exists` when a file that is no socket is in the way.
    pub fn start(
        addresses: &[Address],
        pool: Pool,
        exports: Arc<dyn Exports>,
        limits: Limits,
    ) -> Result<Server> {
        let bind = |address| Listener::bind(address, limits.allow_remote);
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

    /// Number of connections at the moment.
    pub fn connections(&self) -> usize {
        self.shared.registry().connections.len()
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
    let number = {
        let mut registry = shared.registry();
        if registry.connections.len() >= shared.limits.connections {
            let what =
                format!("{} clients are connected, and no more are allowed", registry.connections.len());
            return Err(Error::new(ErrorKind::Busy, what));
        }
        join_finished(&mut registry.threads);
        let number = registry.next_number;
        registry.next_number += 1;
        registry.connections.insert(number, Connection { socket: handle, waker: None });
        number
    };
    let registered = Registered { shared: shared.clone(), number };
    let thread = Builder::new().name(format!("nbd-{number}")).spawn(move || run(&registered, socket));
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
fn run(registered: &Registered, socket: Socket) {
    let number = registered.number;
    match catch_unwind(AssertUnwindSafe(|| connect(registered, socket))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(connection = number, "NBD connection ended: {error}"),
        Err(_) => tracing::error!(connection = number, "an NBD connection ended in a panic; this is a bug"),
    }
}

/// Handshake and transmission.
fn connect(registered: &Registered, mut socket: Socket) -> Result<()> {
    let Registered { shared, number } = registered;
    let Some(agreed) = negotiate(&mut socket, &**shared, shared.limits.patience)? else { return Ok(()) };
    let (facts, channel) = (agreed.facts, agreed.entered);
    let terms = Terms {
        size_bytes: facts.size_bytes,
        read_only: facts.read_only,
        structured: agreed.structured,
        allocation: agreed.allocation,
        block_size: facts.block_size,
        origin_bytes: channel.lease.volume().origin_bytes(),
    };
    shared.set_waker(*number, channel.lane.waker());
    let stream = SocketStream::new(socket.into_fd(), 0)?;
    tracing::info!(connection = number, export = facts.name, "an NBD client has connected");
    match serve(stream, channel, terms, || shared.is_stopping())? {
        Closing::Disconnect | Closing::Asked => {
            tracing::info!(connection = number, export = facts.name, "an NBD client has gone");
        }
        Closing::Broken(what) => {
            tracing::warn!(connection = number, export = facts.name, "hung up on an NBD client: {what}");
        }
    }
    Ok(())
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

    fn list(&self) -> Vec<String> {
        self.exports.list()
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
