//! The way to a daemon: HTTP over the control socket of the pool that it serves.

use super::api::{
    ClosePool, Closed, CreateVolume, Deleted, ExportInfo, ExportList, ExportVolume, Failure, GrowPool, Grown,
    MessageDone, MessageRequest, MetadataSnapshot, NewSnapshots, NewVolume, PoolApi, PoolInfo, PoolSettings,
    RenameVolume, Renamed, ResizeVolume, Resized, RollBackVolume, RolledBack, SetPool, SetVolume,
    SnapshotGroup, SnapshotPair, SnapshotVolume, UnexportVolume, Unexported, VolumeList, VolumeSettings,
};
use super::events::EventList;
use super::name::VolumeName;
use super::pool_dir::{PoolDir, short_socket_path};
use super::settle::{PoolSettled, SettlePool};
use crate::disk::{FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A daemon that has not answered by then is stuck. Snapshots of a busy volume and closing take seconds at most.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);
/// How long closing may take: requests under way, and clients, have their time, and partial blocks are settled.
const CLOSE_PATIENCE: Duration = Duration::from_secs(300);
/// How long a daemon that said that it is closed may take to be gone.
const EXIT_PATIENCE: Duration = Duration::from_secs(30);
/// Settling may take longer than any answer; so it is asked for in parts.
const SETTLE_SLICE_SECONDS: u64 = 30;
/// The longest list of volumes is far below this.
const ANSWER_BYTES_LIMIT: usize = 1 << 30;

const CLOSE: &str = "/v1/close";

/// A daemon that serves a pool.
pub struct Client {
    pool: String,
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// The daemon that serves the pool; `None` if there is none. A socket without a listener, which a killed daemon leaves
    /// behind, counts as none.
    pub fn find(dir: &PoolDir) -> Result<Option<Self>> {
        let socket = dir.control_socket();
        match connect(&socket) {
            Ok(_) => {}
            Err(source) => {
                // Only now: what a daemon serves is a pool, whatever somebody has removed since.
                dir.require()?;
                return match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                    io::ErrorKind::PermissionDenied => Err(Error::new(
                        ErrorKind::Busy,
                        format!("pool `{}` is served by a daemon of another user", dir.shown()),
                    )
                    .hint("become that user, or root")),
                    _ => Err(Error::io(format!("connecting to {}", socket.display()), &source)),
                };
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::io("starting a client", &source))?;
        Ok(Some(Client { pool: dir.shown().to_owned(), socket, runtime }))
    }

    /// Ends the daemon clean, and waits until its process is gone and the pool is free.
    pub fn close(&self, dir: &PoolDir) -> Result<()> {
        self.end(dir, ClosePool::default())
    }

    /// As [`Client::close`], and the daemon leaves its block devices to the caller, who serves the pool next.
    pub fn hand_over(&self, dir: &PoolDir) -> Result<()> {
        self.end(dir, ClosePool { hand_over: true })
    }

    fn end(&self, dir: &PoolDir, how: ClosePool) -> Result<()> {
        let process = self.daemon_process();
        let _closed: Closed = self.ask(Method::POST, CLOSE, &how)?;
        let deadline = Instant::now() + EXIT_PATIENCE;
        if let Some(process) = process {
            let patience = Timespec { tv_sec: EXIT_PATIENCE.as_secs() as i64, tv_nsec: 0 };
            // An error here leaves the lock to wait for, below.
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience));
        }
        loop {
            match FileDisk::open(&dir.metadata(), OpenMode::ReadOnly) {
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) if error.kind() == ErrorKind::Busy => {
                    return Err(error.context("the daemon has closed the pool but does not end"));
                }
                // Whatever else is wrong with it, nobody has it.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }

    /// Events after one of that number, or from now on; what has happened by now, or, if that is nothing, what happens within so
    /// many seconds.
    pub fn events(&self, after: Option<u64>, wait_seconds: u32) -> Result<EventList> {
        let path = match after {
            Some(after) => format!("/v1/events?after={after}&wait={wait_seconds}"),
            None => format!("/v1/events?wait={wait_seconds}"),
        };
        self.ask(Method::GET, &path, &())
    }

    /// A handle to the daemon's process that stays its, whatever becomes of the number. `None` where the system has none
    /// to give, or the process is not visible from here.
    fn daemon_process(&self) -> Option<std::os::fd::OwnedFd> {
        let stream = connect(&self.socket).ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        let pid = Pid::from_raw(peer.pid.as_raw_nonzero().get())?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    }

    fn ask<Q: Serialize, A: DeserializeOwned>(&self, method: Method, path: &str, question: &Q) -> Result<A> {
        let (status, body) = self.runtime.block_on(self.exchange(method, path, question))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| self.strange(&format!("its answer: {error}")));
        }
        match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => Err(failure.error),
            Err(_) => Err(self.strange(&format!("it says {status}"))),
        }
    }

    async fn exchange<Q: Serialize>(
        &self,
        method: Method,
        path: &str,
        question: &Q,
    ) -> Result<(StatusCode, Bytes)> {
        let body = if method == Method::POST || method == Method::PATCH {
            serde_json::to_vec(question).expect("our questions have nothing that JSON cannot hold")
        } else {
            Vec::new()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "uthin")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("volume names need no escapes in a path");
        let stream = connect(&self.socket)
            .and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream)
            })
            .map_err(|source| self.gone(&source))?;
        let talk = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.gone(&error))?;
            tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(|error| self.gone(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_LIMIT).collect().await;
            Ok((status, body.map_err(|error| self.gone(&error))?.to_bytes()))
        };
        let patience = if path == CLOSE { CLOSE_PATIENCE } else { ANSWER_PATIENCE };
        tokio::time::timeout(patience, talk).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Busy,
                format!("the daemon of pool `{}` has not answered for {} s", self.pool, patience.as_secs()),
            )
            .hint("what was asked may still happen; its log says more"))
        })
    }

    fn gone(&self, why: &dyn std::fmt::Display) -> Error {
        Error::new(
            ErrorKind::Io,
            format!("the daemon of pool `{}` went away before it answered: {why}", self.pool),
        )
        .hint("look at the pool before you ask again: it may have happened")
    }

    fn strange(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!("the daemon of pool `{}` is not understood: {what}", self.pool),
        )
        .hint("use the same version of uthin as the daemon")
    }
}

fn connect(socket: &std::path::Path) -> io::Result<UnixStream> {
    let (path, _directory) = short_socket_path(socket)?;
    UnixStream::connect(path)
}

impl PoolApi for Client {
    fn status(&self) -> Result<PoolInfo> {
        self.ask(Method::GET, "/v1/pool", &())
    }

    fn set_pool(&self, request: &SetPool) -> Result<PoolSettings> {
        self.ask(Method::PATCH, "/v1/pool", request)
    }

    fn volumes(&self) -> Result<VolumeList> {
        self.ask(Method::GET, "/v1/volumes", &())
    }

    fn create(&self, request: &CreateVolume) -> Result<NewVolume> {
        self.ask(Method::POST, "/v1/volumes", request)
    }

    fn snapshot(&self, request: &SnapshotPair) -> Result<NewVolume> {
        let body = SnapshotVolume { name: request.name.clone(), read_only: request.read_only };
        self.ask(Method::POST, &format!("/v1/volumes/{}/snapshot", request.origin), &body)
    }

    fn snapshot_group(&self, request: &SnapshotGroup) -> Result<NewSnapshots> {
        self.ask(Method::POST, "/v1/snapshots", request)
    }

    fn rename(&self, name: &VolumeName, request: &RenameVolume) -> Result<Renamed> {
        self.ask(Method::POST, &format!("/v1/volumes/{name}/rename"), request)
    }

    fn set(&self, name: &VolumeName, request: &SetVolume) -> Result<VolumeSettings> {
        self.ask(Method::PATCH, &format!("/v1/volumes/{name}"), request)
    }

    fn roll_back(&self, name: &VolumeName, request: &RollBackVolume) -> Result<RolledBack> {
        self.ask(Method::POST, &format!("/v1/volumes/{name}/roll-back"), request)
    }

    fn resize(&self, name: &VolumeName, request: &ResizeVolume) -> Result<Resized> {
        self.ask(Method::POST, &format!("/v1/volumes/{name}/resize"), request)
    }

    fn grow(&self, request: &GrowPool) -> Result<Grown> {
        self.ask(Method::POST, "/v1/pool/grow", request)
    }

    fn settle(&self, request: &SettlePool) -> Result<PoolSettled> {
        let deadline = Instant::now().checked_add(Duration::from_secs(request.seconds));
        let mut before = None;
        loop {
            let time_left = deadline.map_or(u64::MAX, |end| end.duration_since(Instant::now()).as_secs());
            let slice = SettlePool { seconds: time_left.min(SETTLE_SLICE_SECONDS) };
            let settled: PoolSettled = self.ask(Method::POST, "/v1/pool/settle", &slice)?;
            let before = *before.get_or_insert(settled.before);
            if settled.left == 0 || settled.problem.is_some() || time_left <= SETTLE_SLICE_SECONDS {
                return Ok(PoolSettled { before, ..settled });
            }
        }
    }

    fn reserve_metadata_snapshot(&self) -> Result<MetadataSnapshot> {
        self.ask(Method::POST, "/v1/pool/metadata-snapshot", &())
    }

    fn release_metadata_snapshot(&self) -> Result<MetadataSnapshot> {
        self.ask(Method::DELETE, "/v1/pool/metadata-snapshot", &())
    }

    fn message(&self, request: &MessageRequest) -> Result<MessageDone> {
        self.ask(Method::POST, "/v1/pool/message", request)
    }

    fn exports(&self) -> Result<ExportList> {
        self.ask(Method::GET, "/v1/exports", &())
    }

    fn export(&self, name: &VolumeName, request: &ExportVolume) -> Result<ExportInfo> {
        self.ask(Method::POST, &format!("/v1/volumes/{name}/export"), request)
    }

    fn unexport(&self, name: &VolumeName, request: &UnexportVolume) -> Result<Unexported> {
        self.ask(Method::POST, &format!("/v1/volumes/{name}/unexport"), request)
    }

    fn delete(&self, name: &VolumeName) -> Result<Deleted> {
        self.ask(Method::DELETE, &format!("/v1/volumes/{name}"), &())
    }
}
