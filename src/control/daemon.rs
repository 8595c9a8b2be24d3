//! The daemon: opens a pool, serves its volumes, answers on the control socket, and ends clean.
//!
//! Nobody is told `ready` before every listener listens. At the end the order is: no new clients, requests under way finish
//! (for a bounded time), partial blocks are settled (likewise), the catalog is tidied, the pool commits, whoever asked for it is told how that went, sockets go.
//! The lock goes last, with the process. A daemon that is killed leaves sockets behind, which the next one removes: it has
//! the pool's lock, so nobody listens there.

use super::api::{Discard, ExportKind, ExportVolume, PoolApi, ServedBy};
use super::block_devices::{BlockDevices, End};
use super::catalog_file::LoggedCatalog;
use super::client::Client;
use super::hook;
use super::http::{self, CloseRequest};
use super::journal;
use super::lasting_devices::LastingDevices;
use super::listen;
use super::name::{PoolRef, VolumeName};
use super::open::{OpenPool, open_to_serve};
use super::options::PoolOptions;
use super::pool_dir::{PoolDir, short_socket_path};
use super::service::{Executor, Parts, Service};
use super::time;
use crate::driver::Pool;
use crate::engine::{Answer, Command, DEFAULT_MAP_BYTES, JournalMode, Keeper, KeeperOptions, SmallWrites};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::nbd::{Address, Export, Exports, Limits, Server, Tls};
use crate::frontend::ublk;
use crate::metadata::Access;
use crate::units::BlockSize;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// How long the last answers on the control socket may take.
const CONTROL_GRACE: Duration = Duration::from_secs(2);

/// How often levels and modes are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Lanes for the queues of block devices, beside those of NBD connections.
const BLOCK_DEVICE_LANES: usize = 192;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to serve NBD; the pool's own socket if empty.
    pub listen: Vec<Address>,
    /// Where the certificates for TLS are; `None`: no TLS.
    pub tls_certificates: Option<PathBuf>,
    /// Whether clients must have a certificate, too.
    pub tls_verify_peer: bool,
    /// Without TLS: whether TCP addresses other than loopback ones are allowed.
    pub insecure_tcp: bool,
    /// Zero the unwritten rest of fresh blocks; `None`: as is kept with the pool.
    pub zero_new_blocks: Option<bool>,
    /// What the first write to a block does with its rest; `None`: as is kept with the pool.
    pub small_writes: Option<SmallWrites>,
    /// Whether to keep a journal; `None`: as is kept with the pool.
    pub journal: Option<JournalMode>,
    /// How long making whole blocks of partial ones may take when the pool is closed.
    pub settle_seconds: u64,
    /// What becomes of the space of freed blocks; `None`: as is kept with the pool.
    pub discard: Option<Discard>,
    /// Bytes of volumes' maps to keep in memory; `None`: [`DEFAULT_MAP_BYTES`].
    pub map_bytes: Option<u64>,
    /// A program to run for each event.
    pub hook: Option<PathBuf>,
    /// Volumes to make block devices of from the beginning.
    pub block_devices: Vec<VolumeName>,
    /// If another daemon serves the pool, take its place, with its block devices.
    pub takeover: bool,
}

/// Serves the pool until somebody ends it: a signal, or a request to close. `ready` is called once, when clients can come.
pub fn serve(pool: &PoolRef, options: &ServeOptions, ready: impl FnOnce()) -> Result<()> {
    // Before there are other threads: they inherit it.
    prepare_process();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("starting the daemon", &source))?;
    let served = runtime.block_on(run(pool, options, ready));
    // A handler that still blocks waits for a pool that has closed; it must not hold up the end.
    runtime.shutdown_timeout(CONTROL_GRACE);
    served
}

async fn run(pool: &PoolRef, options: &ServeOptions, ready: impl FnOnce()) -> Result<()> {
    // First of all, so that no signal from here on ends the process in the middle of something.
    let listen_to = |kind| signal(kind).map_err(|source| Error::io("listening to signals", &source));
    let mut signals = (listen_to(SignalKind::terminate())?, listen_to(SignalKind::interrupt())?);
    // A file that may not get larger (`ulimit -f`) is an error of that write, as a full disk is, and not the end.
    let _too_large = listen_to(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let dir = PoolDir::of(pool);
    // Before the pool is touched: certificates are where mistakes are made.
    let limits = limits(options)?;
    let hook = options.hook.as_deref().map(hook::require_program).transpose()?;
    if options.takeover {
        let (dir, options) = (dir.clone(), options.clone());
        let limits = limits.clone();
        blocking("taking the pool over", move || take_over(&dir, &options, &limits)).await?;
    }
    let Started { service, driver, block_size, lasting_devices, journal } = start_pool(&dir, options)?;
    let (close, mut close_requests) = mpsc::channel(1);
    let (control, control_name) = match bind_control(&dir) {
        Ok(bound) => bound,
        Err(error) => return give_up(&service, error),
    };
    service.remember_devices(lasting_devices.clone());
    let exports = Arc::new(PoolExports { service: service.clone(), pool: driver.clone(), block_size });
    let folder = dir.absolute().unwrap_or_else(|_| dir.path().to_owned()).join("dev");
    let block_devices =
        BlockDevices::new(driver.clone(), block_size, folder, lasting_devices.clone(), journal);
    service.export_with(Arc::new(block_devices));
    service.take_devices_up();
    let started = export_first(&service, &options.block_devices)
        .and_then(|()| start_nbd(&dir, options, limits, driver.clone(), exports));
    let server = match started {
        Ok(server) => server,
        Err(error) => {
            control_name.remove();
            let has_let_go = service.end_devices(End::AsFound);
            let closed = service.close();
            note_devices(&lasting_devices, journal.filter(|_| has_let_go && closed.is_ok()));
            log_second(closed);
            return Err(error);
        }
    };
    let pid = std::process::id();
    let since = time::rfc3339(time::now_unix_seconds());
    service.serve_as(ServedBy { pid, since }, server.addresses().iter().map(absolute).collect());
    let (stop, stopped) = watch::channel(());
    let watcher = tokio::spawn(watch_pool(service.clone()));
    if let Some(program) = hook
        && let Err(error) =
            dir.absolute().and_then(|path| hook::start(program, path, service.events().clone()))
    {
        // Nothing else depends on it, and clients may be there already.
        tracing::error!("events are not told to the hook: {error}");
    }
    let router = http::router(service.clone(), close);
    let control = tokio::spawn(listen::serve(control, router, listen::Limits::default(), stopped));
    tracing::info!("pool {} is ready", dir.shown());
    ready();
    tell_supervisor(sd_notify::NotifyState::Ready);
    let asked_by = wait_for_the_end(&mut signals, &mut close_requests).await;
    tell_supervisor(sd_notify::NotifyState::Stopping);
    let (closing, settle_seconds) = (service.clone(), options.settle_seconds);
    let hands_over = asked_by.as_ref().is_some_and(|asker| asker.how.hand_over);
    let closed = blocking("closing", move || {
        let mut server = server;
        if hands_over {
            // Who waits for space goes on waiting with the next daemon.
            watcher.abort();
            let has_let_go = closing.end_devices(End::LetGo);
            let _ = closing.let_nobody_wait();
            server.stop();
            let closed = closing.close();
            note_devices(&lasting_devices, journal.filter(|_| has_let_go && closed.is_ok()));
            return closed;
        }
        // Most of it while clients are served: they need not miss their volumes for so long.
        let left_seconds = closing.settle_before_the_end(settle_seconds);
        watcher.abort(); // until now clients could be in need of a hook
        // Who waits for space would wait for ever. A pool that has failed has nobody who does.
        let _ = closing.let_nobody_wait();
        closing.end_devices(End::TakeAway);
        server.stop();
        closing.settle_at_the_end(left_seconds);
        closing.close()
    })
    .await;
    if let Some(asker) = asked_by {
        // If it has gone away in the meantime, the exit status still tells.
        let _ = asker.answer.send(closed.clone());
    }
    service.events().close();
    control_name.remove();
    drop(stop);
    if tokio::time::timeout(CONTROL_GRACE, control).await.is_err() {
        tracing::warn!("a client of the control socket did not take its answer");
    }
    closed
}

/// Work that waits, off the daemon's own thread.
async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Failed, format!("{doing} has met a bug: {panic}"))))
}

/// Has the daemon that serves the pool end and leave its block devices to us, if there is one. What can be wrong with the options is
/// looked for before that.
fn take_over(dir: &PoolDir, options: &ServeOptions, limits: &Limits) -> Result<()> {
    let Some(daemon) = Client::find(dir)? else {
        tracing::info!("nobody serves the pool: there is nothing to take over");
        return Ok(());
    };
    let volumes = daemon.volumes()?.volumes;
    let is_there = |name: &&VolumeName| volumes.iter().any(|volume| volume.name == **name);
    if let Some(name) = options.block_devices.iter().find(|name| !is_there(name)) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no volume `{name}`"))
            .hint("`uthin volume list POOL` shows them; the daemon goes on"));
    }
    let exports = daemon.exports()?.exports;
    if !options.block_devices.is_empty() || !exports.is_empty() {
        ublk::check(1)?;
    }
    Server::check_addresses(&options.listen, limits)?;
    let journal = options.journal.unwrap_or(daemon.status()?.options.journal);
    for export in exports {
        let refused = |what: &str| Error::new(ErrorKind::WrongState, format!("{} {what}", export.device));
        if !export.outlives_daemon {
            return Err(
                refused("was made without a journal, and goes with its daemon").hint("unexport it first")
            );
        }
        if journal == JournalMode::None {
            let what = "cannot be taken over without a journal";
            return Err(refused(what).hint("add `--journal file`, or unexport it first"));
        }
    }
    tracing::info!("taking the pool over");
    daemon.hand_over(dir)
}

/// The devices that we leave behind can go on if all has come to its end, their journal too. If that cannot be written, they are taken away.
fn note_devices(lasting_devices: &LastingDevices, closed_journal: Option<u64>) {
    if let Some(journal) = closed_journal
        && let Err(error) = lasting_devices.journal_is_closed(journal)
    {
        tracing::error!("{error}; the block devices will be taken away");
    }
}

/// Looks at the pool once a second, and tells what has changed.
async fn watch_pool(service: Arc<Service>) {
    let mut clock = tokio::time::interval(WATCH_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let service = service.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let info = service.status()?;
            service.events().observe(&info);
            Ok::<_, Error>(())
        });
        if let Ok(Err(error)) = looked.await {
            tracing::debug!("the pool does not tell how it is: {error}");
        }
    }
}

/// A pool with its keeper.
struct Started {
    service: Arc<Service>,
    driver: Pool,
    block_size: BlockSize,
    /// Block devices that an earlier daemon left.
    lasting_devices: Arc<LastingDevices>,
    /// The number of its journal, if it has one.
    journal: Option<u64>,
}

/// The pool with its keeper, and what an earlier run left to do under way.
fn start_pool(dir: &PoolDir, options: &ServeOptions) -> Result<Started> {
    let mut opened = open_to_serve(dir)?;
    let kept = opened.catalog.options;
    let in_force = PoolOptions {
        discard: options.discard.unwrap_or(kept.discard),
        zero_new_blocks: options.zero_new_blocks.unwrap_or(kept.zero_new_blocks),
        small_writes: options.small_writes.unwrap_or(kept.small_writes),
        journal: options.journal.unwrap_or(kept.journal),
        ..kept
    };
    let keeper_options = KeeperOptions {
        zero_new_blocks: in_force.zero_new_blocks,
        small_writes: in_force.small_writes,
        discard: in_force.discard,
        when_full: in_force.when_full,
        volumes_when_full: opened.volumes_when_full(),
        lanes: Limits::default().connections + BLOCK_DEVICE_LANES + 1, // and the settler's
        volume_sizes: opened.volume_sizes(),
        behind: opened.behind(),
        map_bytes: options.map_bytes.unwrap_or(DEFAULT_MAP_BYTES),
        ..KeeperOptions::default()
    };
    let journal = match (in_force.journal, opened.metadata.access()) {
        (JournalMode::File, Access::ReadWrite) => Some(journal::begin(dir, &mut opened)?),
        (JournalMode::File, Access::ReadOnly) | (JournalMode::None, _) => None,
    };
    let (journal, journal_id) = journal.unzip();
    let OpenPool { path, metadata, data, catalog, notes, lasting_devices } = opened;
    let block_size = metadata.geometry().block_size;
    let data = Arc::new(data);
    let mut keeper = Keeper::new(metadata, data.clone(), keeper_options)?;
    if let Some(journal) = journal {
        keeper.use_journal(journal);
    }
    let driver = Pool::start(keeper, data)?;
    driver.start_settler()?;
    let executor = Box::new(PoolExecutor(driver.clone()));
    let store = Box::new(LoggedCatalog::new(dir.catalog()));
    let service = Service::new(Parts { path, executor, store, catalog, notes });
    service.resume_deletions()?;
    let (service, lasting_devices) = (Arc::new(service), Arc::new(lasting_devices));
    Ok(Started { service, driver, block_size, lasting_devices, journal: journal_id })
}

fn limits(options: &ServeOptions) -> Result<Limits> {
    let load = |directory: &PathBuf| Tls::load(directory, options.tls_verify_peer);
    let tls = options.tls_certificates.as_ref().map(load).transpose()?;
    Ok(Limits { tls, insecure_tcp: options.insecure_tcp, ..Limits::default() })
}

/// The block devices that are there from the beginning. Whoever is told `ready` finds them.
fn export_first(service: &Service, volumes: &[VolumeName]) -> Result<()> {
    for volume in volumes {
        if service.exports()?.exports.iter().any(|export| export.volume == *volume) {
            continue; // an earlier daemon made it
        }
        let request = ExportVolume::usual(ExportKind::Ublk);
        let export = service.export(volume, &request)?;
        tracing::info!("volume {volume} is {}", export.device);
    }
    Ok(())
}

/// What a process needs that stands in the way of writes: the kernel is told not to wait for us in order to give us memory,
/// and files do not run out before they must.
fn prepare_process() {
    use rustix::process::{Resource, configure_io_flusher_behavior, getrlimit, setrlimit};
    if let Err(errno) = configure_io_flusher_behavior(true) {
        tracing::debug!("PR_SET_IO_FLUSHER: {errno} (`uthin doctor`)");
    }
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, files) {
        tracing::debug!("raising the limit of open files: {errno}");
    }
}

/// systemd, if it started us so that it wants to know.
fn tell_supervisor(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!("telling the service manager: {error}");
    }
}

fn start_nbd(
    dir: &PoolDir,
    options: &ServeOptions,
    limits: Limits,
    driver: Pool,
    exports: Arc<PoolExports>,
) -> Result<Server> {
    if !options.listen.is_empty() {
        return Server::start(&options.listen, driver, exports, limits);
    }
    remove_socket(&dir.nbd_socket());
    Server::start(&[Address::unix(dir.nbd_socket())?], driver, exports, limits)
}

/// The end of a start that failed: the pool closes, the first error is the one to tell.
fn give_up(service: &Service, error: Error) -> Result<()> {
    log_second(service.close());
    Err(error)
}

fn log_second(closed: Result<()>) {
    if let Err(second) = closed {
        tracing::warn!("closing the pool: {second}");
    }
}

async fn wait_for_the_end(
    signals: &mut (Signal, Signal),
    close_requests: &mut mpsc::Receiver<CloseRequest>,
) -> Option<CloseRequest> {
    let (terminate, interrupt) = signals;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: closing"),
        _ = interrupt.recv() => tracing::info!("SIGINT: closing"),
        request = close_requests.recv() => {
            tracing::info!("asked to close");
            return request;
        }
    }
    None
}

/// The control socket, for its owner only from its first moment on.
fn bind_control(dir: &PoolDir) -> Result<(UnixListener, SocketName)> {
    let socket = dir.control_socket();
    remove_socket(&socket);
    let context = |source| Error::io(format!("listening at {}", socket.display()), &source);
    let (path, _directory) = short_socket_path(&socket).map_err(context)?;
    // The keeper's thread makes no files, and nobody else runs yet.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(context)?;
    let bound = std::fs::symlink_metadata(&socket).map_err(context)?;
    Ok((listener, SocketName { path: socket, identity: (bound.dev(), bound.ino()) }))
}

/// The name of a socket of ours, by which another daemon's may be found when this one ends: directories are moved, and others put in
/// their place.
struct SocketName {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketName {
    fn remove(self) {
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_ours && let Err(source) = std::fs::remove_file(&self.path) {
            tracing::warn!("removing {}: {source}", self.path.display());
        }
    }
}

/// Removes a socket that nobody can be listening at: whoever calls has the pool's lock.
fn remove_socket(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && let Err(source) = std::fs::remove_file(path) {
        tracing::warn!("removing {}: {source}", path.display());
    }
}

/// For URIs, which are used from other directories.
fn absolute(address: &Address) -> Address {
    match address {
        Address::Unix(path) => Address::Unix(
            path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone()),
        ),
        Address::Tcp { .. } => address.clone(),
    }
}

/// The keeper on the driver's thread.
struct PoolExecutor(Pool);

impl Executor for PoolExecutor {
    fn run(&self, command: Command) -> Result<Answer> {
        self.0.command(command)
    }
}

/// Every volume is an export by its name.
struct PoolExports {
    service: Arc<Service>,
    pool: Pool,
    block_size: BlockSize,
}

impl Exports for PoolExports {
    fn list(&self) -> Vec<String> {
        self.service.volume_names()
    }

    fn open(&self, name: &str) -> Result<Export> {
        let not_found =
            || Error::new(ErrorKind::NotFound, format!("there is no volume `{name}` in this pool"));
        let id = self.service.volume_id(name).ok_or_else(not_found)?;
        let lease = self.service.open_volume(&self.pool, id);
        let lease = lease.map_err(|error| error.context(format!("volume `{name}`")))?;
        let read_only = self.service.is_read_only(id) || lease.volume().refuses_changes();
        let description = format!("uthin volume {name} (number {id})");
        Ok(Export { lease, read_only, description, block_size: self.block_size })
    }
}
