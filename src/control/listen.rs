//! The control socket's connections: how many there are at a time, and for how long.
//!
//! A client that connects and says nothing, or begins and does not go on, loses its connection; so neither the daemon's
//! files nor its end are in any client's hands. What a request has begun goes on without its connection.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long to wait before accepting again when the system has no more files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; the next ones wait in the listening socket's queue.
    pub connections: usize,
    /// From the connection, or from the last answer on it, to the end of a request's header.
    pub header: Duration,
    /// So old a connection takes no more requests. One under way may take as long again: the longest operations take less.
    pub life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 64, header: Duration::from_secs(5), life: Duration::from_secs(300) }
    }
}

/// Serves until `stopped` changes; then the requests under way get their answers. Dropping it cuts all off.
pub async fn serve(listener: UnixListener, router: Router, limits: Limits, mut stopped: watch::Receiver<()>) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = stopped.changed() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let connection = connect(stream, router.clone(), limits, stopped.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(source) => {
                tracing::warn!("cannot accept a connection at the control socket: {source}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection, to its end.
pub(crate) async fn connect(
    stream: UnixStream,
    router: Router,
    limits: Limits,
    mut stopped: watch::Receiver<()>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = async {
        tokio::select! {
            served = connection.as_mut() => return served,
            _ = stopped.changed() => {}
            () = tokio::time::sleep(limits.life) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    match tokio::time::timeout(limits.life * 2, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection of the control socket has ended: {error}"),
        Err(_) => tracing::warn!("hung up on a client of the control socket: it takes too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMITS: Limits =
        Limits { connections: 2, header: Duration::from_millis(300), life: Duration::from_millis(1000) };

    /// Runs a test against a server that says `here` at `/` at once, at `/soon` before it is too old, and at `/late` never.
    fn with_server<F: Future<Output = ()>>(
        test: impl FnOnce(std::path::PathBuf, watch::Sender<()>, tokio::task::JoinHandle<()>) -> F,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("started");
        runtime.block_on(async {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("socket");
            let listener = UnixListener::bind(&path).expect("bound");
            let router = Router::new()
                .route("/", get(async || "here"))
                .route("/soon", get(async || tokio::time::sleep(LIMITS.life * 7 / 10).await))
                .route("/late", get(async || std::future::pending::<&str>().await));
            let (stop, stopped) = watch::channel(());
            let server = tokio::spawn(serve(listener, router, LIMITS, stopped));
            test(path, stop, server).await;
        });
    }

    async fn ask(stream: &mut UnixStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        let mut answer = vec![0; 1000];
        let length = stream.read(&mut answer).await.expect("answered");
        String::from_utf8(answer[..length].to_vec()).expect("text")
    }

    /// How long it takes until the server hangs up.
    async fn end_of(mut stream: UnixStream) -> Duration {
        let begin = Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        begin.elapsed()
    }

    #[test]
    fn who_says_nothing_keeps_nobody_out() {
        with_server(async |path, _stop, _server| {
            let connect = || async { UnixStream::connect(&path).await.expect("connected") };
            let silent = [connect().await, connect().await];
            let mut asks = connect().await;
            assert!(ask(&mut asks).await.ends_with("here"));
            for stream in silent {
                assert!(end_of(stream).await < LIMITS.header / 2, "they have lost their places");
            }
            assert!(ask(&mut asks).await.ends_with("here"), "it may ask again");
            let idle = end_of(asks).await;
            assert!(idle >= LIMITS.header / 2 && idle < LIMITS.header * 2, "{idle:?}");
            let mut slow = connect().await;
            slow.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
            assert!(end_of(slow).await < LIMITS.header * 2);
        });
    }

    #[test]
    fn no_connection_lives_for_ever() {
        with_server(async |path, _stop, _server| {
            let mut waits = UnixStream::connect(&path).await.expect("connected");
            waits.write_all(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
            let life = end_of(waits).await;
            assert!(life > LIMITS.life && life < LIMITS.life * 3, "{life:?}");
        });
    }

    #[test]
    fn an_old_connection_ends_between_two_requests() {
        with_server(async |path, _stop, _server| {
            let mut stream = UnixStream::connect(&path).await.expect("connected");
            let mut answers = String::new();
            for _ in 0..2 {
                stream.write_all(b"GET /soon HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
                let mut answer = vec![0; 1000];
                let length = stream.read(&mut answer).await.expect("answered");
                answers.push_str(std::str::from_utf8(&answer[..length]).expect("text"));
            }
            assert_eq!(
                answers.matches("200 OK").count(),
                2,
                "the second came of age while it was served: {answers}"
            );
            assert!(answers.contains("connection: close"), "{answers}");
            assert!(end_of(stream).await < LIMITS.header);
        });
    }

    #[test]
    fn silent_clients_do_not_hold_up_the_end() {
        with_server(async |path, stop, server| {
            let silent = UnixStream::connect(&path).await.expect("connected");
            let mut begun = UnixStream::connect(&path).await.expect("connected");
            begun.write_all(b"GET").await.expect("sent");
            let mut queued = UnixStream::connect(&path).await.expect("connected");
            queued.write_all(b"GET").await.expect("sent");
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(stop);
            tokio::time::timeout(LIMITS.header * 2, server).await.expect("in time").expect("no panic");
            drop((silent, begun, queued));
        });
    }
}
