//! The control socket: JSON over HTTP/1.1 on a unix socket of mode 0600. `docs/control.md` describes every resource.
//!
//! Only the file's mode says who may speak: the daemon's user and root. Handlers do nothing but translate: the work is
//! [`Service`]'s, on threads where blocking is allowed, changes one after the other. A client that goes away does not stop
//! what it asked for.

use super::api::{
    ClosePool, Closed, CreateVolume, ExportVolume, Failure, GrowPool, MessageRequest, PoolApi, RenameVolume,
    ResizeVolume, RollBackVolume, SCHEMA, SetPool, SetVolume, SnapshotGroup, SnapshotPair, SnapshotVolume,
    UnexportVolume,
};
use super::name::VolumeName;
use super::service::Service;
use super::settle::SettlePool;
use crate::error::{Error, ErrorKind, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// No request needs more.
const BODY_BYTES_LIMIT: usize = 64 * 1024;

/// How long a request's body may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// Somebody asks the daemon to end, and waits for how that went.
pub struct CloseRequest {
    /// What is asked for.
    pub how: ClosePool,
    /// Where the outcome goes.
    pub answer: oneshot::Sender<Result<()>>,
}

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
        .route("/v1/pool", get(pool).patch(set_pool))
        .route("/v1/pool/grow", post(grow))
        .route("/v1/pool/settle", post(settle))
        .route("/v1/pool/message", post(message))
        .route("/v1/pool/metadata-snapshot", post(reserve_snapshot).delete(release_snapshot))
        .route("/v1/volumes", get(volumes).post(create))
        .route("/v1/volumes/{name}", delete(remove).patch(set))
        .route("/v1/volumes/{name}/snapshot", post(snapshot))
        .route("/v1/volumes/{name}/rename", post(rename))
        .route("/v1/volumes/{name}/roll-back", post(roll_back))
        .route("/v1/volumes/{name}/resize", post(resize))
        .route("/v1/volumes/{name}/export", post(export))
        .route("/v1/volumes/{name}/unexport", post(unexport))
        .route("/v1/exports", get(exports))
        .route("/v1/snapshots", post(snapshot_group))
        .route("/v1/events", get(events))
        .route("/v1/close", post(close_pool))
        .fallback(no_resource)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_LIMIT))
        .with_state(shared)
}

async fn pool(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, read(shared, |service| service.status()).await)
}

async fn set_pool(State(shared): State<Shared>, body: RawBody) -> Response {
    match parse::<SetPool>(body) {
        Ok(request) => {
            answer(StatusCode::OK, change(shared, move |service| service.set_pool(&request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn volumes(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, read(shared, |service| service.volumes()).await)
}

async fn create(State(shared): State<Shared>, body: RawBody) -> Response {
    match parse::<CreateVolume>(body) {
        Ok(request) => {
            answer(StatusCode::CREATED, change(shared, move |service| service.create(&request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn snapshot(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    let request = volume_name(name).and_then(|origin| {
        let SnapshotVolume { name, read_only } = parse(body)?;
        Ok(SnapshotPair { origin, name, read_only })
    });
    match request {
        Ok(request) => {
            answer(StatusCode::CREATED, change(shared, move |service| service.snapshot(&request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn snapshot_group(State(shared): State<Shared>, body: RawBody) -> Response {
    match parse::<SnapshotGroup>(body) {
        Ok(request) => {
            answer(StatusCode::CREATED, change(shared, move |service| service.snapshot_group(&request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn rename(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    match volume_name(name).and_then(|name| Ok((name, parse::<RenameVolume>(body)?))) {
        Ok((name, request)) => {
            answer(StatusCode::OK, change(shared, move |service| service.rename(&name, &request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn set(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    match volume_name(name).and_then(|name| Ok((name, parse::<SetVolume>(body)?))) {
        Ok((name, request)) => {
            answer(StatusCode::OK, change(shared, move |service| service.set(&name, &request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn roll_back(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    match volume_name(name).and_then(|name| Ok((name, parse::<RollBackVolume>(body)?))) {
        Ok((name, request)) => {
            answer(StatusCode::OK, change(shared, move |service| service.roll_back(&name, &request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn resize(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    match volume_name(name).and_then(|name| Ok((name, parse::<ResizeVolume>(body)?))) {
        Ok((name, request)) => {
            answer(StatusCode::OK, change(shared, move |service| service.resize(&name, &request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn exports(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, read(shared, |service| service.exports()).await)
}

/// Not one of the changes that wait for each other: a device may take long to come and to go.
async fn export(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    match volume_name(name).and_then(|name| Ok((name, parse::<ExportVolume>(body)?))) {
        Ok((name, request)) => {
            answer(StatusCode::CREATED, read(shared, move |service| service.export(&name, &request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn unexport(State(shared): State<Shared>, name: RawName, body: RawBody) -> Response {
    match volume_name(name).and_then(|name| Ok((name, parse::<UnexportVolume>(body)?))) {
        Ok((name, request)) => {
            answer(StatusCode::OK, read(shared, move |service| service.unexport(&name, &request)).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn grow(State(shared): State<Shared>, body: RawBody) -> Response {
    match parse::<GrowPool>(body) {
        Ok(request) => answer(StatusCode::OK, change(shared, move |service| service.grow(&request)).await),
        Err(refusal) => refusal.into_response(),
    }
}

/// Not one of the changes that wait for each other: it may take long.
async fn settle(State(shared): State<Shared>, body: RawBody) -> Response {
    match parse::<SettlePool>(body) {
        Ok(request) => answer(StatusCode::OK, read(shared, move |service| service.settle(&request)).await),
        Err(refusal) => refusal.into_response(),
    }
}

async fn message(State(shared): State<Shared>, body: RawBody) -> Response {
    match parse::<MessageRequest>(body) {
        Ok(request) => answer(StatusCode::OK, change(shared, move |service| service.message(&request)).await),
        Err(refusal) => refusal.into_response(),
    }
}

async fn reserve_snapshot(State(shared): State<Shared>) -> Response {
    answer(StatusCode::CREATED, change(shared, |service| service.reserve_metadata_snapshot()).await)
}

async fn release_snapshot(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, change(shared, |service| service.release_metadata_snapshot()).await)
}

async fn remove(State(shared): State<Shared>, name: RawName) -> Response {
    let name = match volume_name(name) {
        Ok(name) => name,
        Err(refusal) => return refusal.into_response(),
    };
    let removed = change(shared, move |service| service.delete(&name)).await;
    // Gone for everybody in either case; accepted means that its blocks are still being freed.
    let success = if removed.as_ref().is_ok_and(|deleted| !deleted.finished) {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    answer(success, removed)
}

async fn events(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    match EventQuery::parse(query.as_deref().unwrap_or_default()) {
        Ok(EventQuery { after, wait }) => {
            answer(StatusCode::OK, Ok(shared.service.events().wait(after, wait).await))
        }
        Err(error) => Refusal::from(error).into_response(),
    }
}

/// The longest wait for an event: far less than a connection's life.
const EVENT_PATIENCE: Duration = Duration::from_secs(60);

/// Which events, and how long to wait for one.
#[derive(PartialEq, Eq, Debug, Default)]
struct EventQuery {
    after: Option<u64>,
    wait: Duration,
}

impl EventQuery {
    fn parse(query: &str) -> Result<Self> {
        let mut found = EventQuery::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let number = |text: &str| {
                text.parse::<u64>().map_err(|_| {
                    Error::new(ErrorKind::Invalid, format!("query: {pair:?} is no number"))
                        .hint("after=NUMBER&wait=SECONDS")
                })
            };
            match pair.split_once('=') {
                Some(("after", text)) => found.after = Some(number(text)?),
                Some(("wait", text)) => found.wait = Duration::from_secs(number(text)?).min(EVENT_PATIENCE),
                Some(_) | None => {
                    return Err(Error::new(ErrorKind::Invalid, format!("query: {pair:?} is not known"))
                        .hint("after=NUMBER&wait=SECONDS"));
                }
            }
        }
        Ok(found)
    }
}

async fn close_pool(State(shared): State<Shared>, body: RawBody) -> Response {
    let body = body.0.map(|bytes| if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes });
    let how = match parse::<Option<ClosePool>>(RawBody(body)) {
        Ok(how) => how.unwrap_or_default(),
        Err(refusal) => return refusal.into_response(),
    };
    if how.hand_over
        && let Err(error) = read(shared.clone(), Service::require_can_hand_over).await
    {
        return Refusal::from(error).into_response();
    }
    let (sender, receiver) = oneshot::channel();
    let closing = || Error::new(ErrorKind::WrongState, "the daemon is ending already");
    let closed = match shared.close.send(CloseRequest { how, answer: sender }).await {
        Ok(()) => receiver.await.unwrap_or_else(|_| Err(closing())),
        Err(_) => Err(closing()),
    };
    answer(StatusCode::OK, closed.map(|()| Closed { schema: SCHEMA.to_owned(), pid: std::process::id() }))
}

async fn no_resource() -> Response {
    let error =
        Error::new(ErrorKind::NotFound, "there is no such resource").hint("the resources begin with /v1/");
    Refusal(StatusCode::NOT_FOUND, error).into_response()
}

async fn no_method() -> Response {
    let error = Error::new(ErrorKind::Invalid, "the resource has no such method");
    Refusal(StatusCode::METHOD_NOT_ALLOWED, error).into_response()
}

/// A body, or why it could not be taken: too long, cut off, or too slow.
struct RawBody(std::result::Result<Bytes, Refusal>);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, state: &S) -> std::result::Result<Self, Self::Rejection> {
        let taken = tokio::time::timeout(BODY_PATIENCE, Bytes::from_request(request, state)).await;
        Ok(RawBody(match taken {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(rejection)) => Err(Refusal(rejection.status(), invalid_body(&rejection.body_text()))),
            Err(_) => {
                let what = format!("it has not come within {} s", BODY_PATIENCE.as_secs());
                Err(Refusal(StatusCode::REQUEST_TIMEOUT, invalid_body(&what)))
            }
        }))
    }
}

fn invalid_body(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("request body: {what}"))
}

/// The name in a path, or why it is none: no UTF-8.
type RawName = std::result::Result<Path<String>, PathRejection>;

/// A failure with its status.
struct Refusal(StatusCode, Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal(status_of(error.kind()), error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.0, &Failure { error: self.1 })
    }
}

fn parse<T: DeserializeOwned>(body: RawBody) -> std::result::Result<T, Refusal> {
    serde_json::from_slice(&body.0?).map_err(|error| invalid_body(&error.to_string()).into())
}

fn volume_name(name: RawName) -> std::result::Result<VolumeName, Refusal> {
    let Path(name) = name.map_err(|rejection| {
        Refusal(rejection.status(), Error::new(ErrorKind::Invalid, rejection.body_text()))
    })?;
    Ok(VolumeName::parse(&name)?)
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
        Err(error) => Refusal::from(error).into_response(),
    }
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
