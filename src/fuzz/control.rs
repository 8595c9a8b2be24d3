//! Bytes as a client of the control socket, and as a catalog.

use crate::control::api::ServedBy;
use crate::control::catalog::Catalog;
use crate::control::catalog_file::CatalogStore;
use crate::control::catalog_log::Durability;
use crate::control::change::Change;
use crate::control::http::{self, CloseRequest};
use crate::control::listen::{Limits, connect};
use crate::control::service::{Executor, Parts, Service};
use crate::engine::{Answer, Command};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{TransactionId, VolumeId};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// A keeper that refuses everything: what clients say is taken apart before it is asked.
struct Refuses;

impl Executor for Refuses {
    fn run(&self, _: Command) -> Result<Answer> {
        Err(Error::new(ErrorKind::Failed, "the pool has failed"))
    }
}

/// A catalog that nobody keeps.
struct Nowhere;

impl CatalogStore for Nowhere {
    fn keep(&self, _: &Catalog, _: &[Change], _: Durability) -> Result<()> {
        Ok(())
    }
    fn finish(&self, _: &Catalog) -> Result<()> {
        Ok(())
    }
}

const LIMITS: Limits =
    Limits { connections: 1, header: Duration::from_millis(200), life: Duration::from_millis(500) };

/// A client that says all this, listens while there is something to be heard, and hangs up. The server hangs up, too, and what it said is
/// HTTP.
pub fn connection(input: &[u8]) {
    let answer = answer_to(input, Duration::from_millis(5));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
}

/// What a client hears who says all this, and hangs up when nothing was to be heard for so long.
pub fn answer_to(input: &[u8], patience: Duration) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let parts = Parts {
            path: PathBuf::from("/nowhere"),
            executor: Box::new(Refuses),
            store: Box::new(Nowhere),
            catalog: Catalog::empty(TransactionId(0)),
            notes: Vec::new(),
        };
        let service = Arc::new(Service::new(parts));
        service.serve_as(ServedBy { pid: 1, since: String::new() }, Vec::new());
        let (close, mut asked_to_close) = mpsc::channel::<CloseRequest>(1);
        let closer = tokio::spawn(async move {
            while let Some(request) = asked_to_close.recv().await {
                let _ = request.answer.send(Ok(()));
            }
        });
        let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
        let (_stop, stopped) = watch::channel(());
        let served = tokio::spawn(connect(server, http::router(service, close), LIMITS, stopped));
        // A server that has hung up takes no more.
        let said = async {
            let (mut from, mut to) = client.split();
            let mut answer = Vec::new();
            let listening = async {
                while let Ok(Ok(1..)) = tokio::time::timeout(patience, from.read_buf(&mut answer)).await {}
            };
            let _ = tokio::join!(to.write_all(input), listening);
            let _ = to.shutdown().await;
            let _ = from.read_to_end(&mut answer).await;
            answer
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), said).await.expect("it hangs up");
        served.await.expect("no panic");
        closer.abort();
        answer
    })
}

/// Bytes as `catalog.json`: what is taken for one is written and read again as the same, and can be worked with.
pub fn catalog(input: &[u8]) {
    let whence = Path::new("catalog.json");
    let Ok(mut catalog) = Catalog::parse(input, whence) else { return };
    let bytes = catalog.to_bytes();
    let again = Catalog::parse(&bytes, whence).expect("we can read what we write");
    assert_eq!(again.to_bytes(), bytes);
    black_box(catalog.free_ids(3).is_ok());
    black_box(catalog.by_id(VolumeId::new(0).expect("it is small")));
    if let Some(pending) = &catalog.pending {
        black_box(pending.operation.describe());
    }
    catalog.apply_pending();
    black_box(catalog.to_bytes());
}
