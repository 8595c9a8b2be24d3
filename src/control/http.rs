//! The control socket: JSON over HTTP/1.1 on a unix socket of mode 0600. `docs/control.md` describes every resource.
//!
//! Only the file's mode says who may speak: the daemon's user and root. Handlers do nothing but translate: the work is
//! [`Service`]'s, on threads where blocking is allowed, changes one after the other. A client that goes away does not stop
//! what it asked for.

use super::api::{Closed, CreateVolume, Failure, PoolApi, SCHEMA, SnapshotPair, SnapshotVolume};
use super::name::VolumeName;
use super::service::Service;
use crate::error::{Error, ErrorKind, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// No request needs more.
const BODY_BYTES_LIMIT: usize = 64 * 1024;

/// Somebody asks the daemon to end, and waits for how that went.
pub type CloseRequest = oneshot::Sender<Result<()>>;

/// What handlers share.
#[derive(Clone)]
struct Shared {
    service: Arc<Service>,
    close: mpsc::Sender<CloseRequest>,
    one_change_at_a_time: Arc<Semaphore>,
}

/// All resources of the control socket. Requests to end go to `close`.
pub fn router(service: Arc<Service>, close: mpsc::Sender<CloseRequest>) -> Router {
    let shared = Shared { service, close, one_change_at_a_time: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/v1/pool", get(pool))
        .route("/v1/volumes", get(volumes).post(create))
        .route("/v1/volumes/{name}", delete(remove))
        .route("/v1/volumes/{name}/snapshot", post(snapshot))
        .route("/v1/close", post(close_pool))
        .fallback(no_resource)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_LIMIT))
        .with_state(shared)
}

async fn pool(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, read(shared, |service| service.status()).await)
}

async fn volumes(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, read(shared, |service| service.volumes()).await)
}

async fn create(State(shared): State<Shared>, body: Bytes) -> Response {
    let made = match parse::<CreateVolume>(&body) {
        Ok(request) => change(shared, move |service| service.create(&request)).await,
        Err(error) => Err(error),
    };
    answer(StatusCode::CREATED, made)
}

async fn snapshot(State(shared): State<Shared>, Path(origin): Path<String>, body: Bytes) -> Response {
    let request = VolumeName::parse(&origin).and_then(|origin| {
        let SnapshotVolume { name } = parse(&body)?;
        Ok(SnapshotPair { origin, name })
    });
    let made = match request {
        Ok(request) => change(shared, move |service| service.snapshot(&request)).await,
        Err(error) => Err(error),
    };
    answer(StatusCode::CREATED, made)
}

async fn remove(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let removed = match VolumeName::parse(&name) {
        Ok(name) => change(shared, move |service| service.delete(&name)).await,
        Err(error) => Err(error),
    };
    match &removed {
        // Gone for everybody, but its blocks are still being freed.
        Ok(deleted) if !deleted.finished => answer(StatusCode::ACCEPTED, removed),
        Ok(_) | Err(_) => answer(StatusCode::OK, removed),
    }
}

async fn close_pool(State(shared): State<Shared>) -> Response {
    let (sender, receiver) = oneshot::channel();
    let closing = || Error::new(ErrorKind::WrongState, "the daemon is ending already");
    let closed = match shared.close.send(sender).await {
        Ok(()) => receiver.await.unwrap_or_else(|_| Err(closing())),
        Err(_) => Err(closing()),
    };
    answer(StatusCode::OK, closed.map(|()| Closed { schema: SCHEMA.to_owned(), pid: std::process::id() }))
}

async fn no_resource() -> Response {
    let error =
        Error::new(ErrorKind::NotFound, "there is no such resource").hint("the resources begin with /v1/");
    failure(StatusCode::NOT_FOUND, error)
}

async fn no_method() -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, Error::new(ErrorKind::Invalid, "the resource has no such method"))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::new(ErrorKind::Invalid, format!("request body: {error}")))
}

/// Runs on a thread that may block.
async fn read<T: Send + 'static>(
    shared: Shared,
    work: impl FnOnce(&Service) -> Result<T> + Send + 'static,
) -> Result<T> {
    let service = shared.service;
    tokio::task::spawn_blocking(move || work(&service)).await.unwrap_or_else(|panic| {
        Err(Error::new(ErrorKind::Failed, format!("the request has met a bug: {panic}")))
    })
}

/// As [`read`], waiting for the changes before it; goes on when the client goes away.
async fn change<T: Send + 'static>(
    shared: Shared,
    work: impl FnOnce(&Service) -> Result<T> + Send + 'static,
) -> Result<T> {
    let turn =
        shared.one_change_at_a_time.clone().acquire_owned().await.expect("the semaphore is never closed");
    read(shared, move |service| {
        let _turn = turn;
        work(service)
    })
    .await
}

fn answer<T: Serialize>(success: StatusCode, result: Result<T>) -> Response {
    match result {
        Ok(value) => json(success, &value),
        Err(error) => failure(status_of(error.kind()), error),
    }
}

fn failure(status: StatusCode, error: Error) -> Response {
    json(status, &Failure { error })
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut body = serde_json::to_vec(value).expect("our answers have nothing that JSON cannot hold");
    body.push(b'\n');
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The HTTP status that comes nearest; the body's `code` is exact.
fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Busy | ErrorKind::Exists | ErrorKind::WrongState | ErrorKind::NeedsCheck => {
            StatusCode::CONFLICT
        }
        ErrorKind::NoDataSpace | ErrorKind::NoMetadataSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Corrupt | ErrorKind::Io => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Failed => StatusCode::SERVICE_UNAVAILABLE,
    }
}
