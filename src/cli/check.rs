//! `uthin pool check`: what `uthin-fsck check` says of a pool, served or not.

use crate::check::cli as fsck;
use crate::control::api::PoolApi;
use crate::control::client::Client;
use crate::control::name::PoolRef;
use crate::control::pool_dir::PoolDir;
use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The pool
    #[arg(value_parser = PoolRef::parse)]
    pool: PoolRef,
    /// Check a pool that is being served as it is at this moment: a metadata snapshot is held for the time that takes, unless
    /// there is one, which is then checked. Counts of blocks are not compared, for they change
    #[arg(long)]
    online: bool,
}

/// Words, JSON and exit code are those of `uthin-fsck check`.
pub(super) fn run(args: &Args, json: bool) -> Result<ExitCode> {
    let dir = PoolDir::of(&args.pool);
    // Nothing is opened but the metadata, by the checker: a pool that is too damaged to be opened can be checked.
    let Some(daemon) = Client::find(&dir)? else { return Ok(check(&dir.metadata(), false, json)) };
    if !args.online {
        let what = format!("pool {} is being served: its metadata change", dir.shown());
        return Err(Error::new(ErrorKind::Busy, what).hint(
            "--online checks it as it is at this moment; or end its daemon first: `uthin pool close`",
        ));
    }
    if daemon.status()?.held_root.is_some() {
        return Ok(check(&dir.metadata(), true, json));
    }
    let interruption = Interruption::expect()?;
    daemon.reserve_metadata_snapshot()?;
    let code = interruption.or_end_of(dir.metadata(), json);
    daemon.release_metadata_snapshot()?;
    code
}

/// Waits for a check while signals do not end the process, which has something to give back.
struct Interruption {
    runtime: tokio::runtime::Runtime,
    signals: [tokio::signal::unix::Signal; 2],
}

impl Interruption {
    fn expect() -> Result<Self> {
        let failed = |source| Error::io("listening to signals", &source);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let inside = runtime.enter();
        let signals = [
            signal(SignalKind::interrupt()).map_err(failed)?,
            signal(SignalKind::terminate()).map_err(failed)?,
        ];
        drop(inside);
        Ok(Interruption { runtime, signals })
    }

    /// The outcome of the check, or an error once a signal came: the check is then left to end with the process.
    fn or_end_of(self, metadata: PathBuf, json: bool) -> Result<ExitCode> {
        let Interruption { runtime, signals: [mut interrupt, mut terminate] } = self;
        let (done, outcome) = oneshot::channel();
        std::thread::spawn(move || done.send(check(&metadata, true, json)));
        runtime.block_on(async {
            tokio::select! {
                outcome = outcome => outcome.map_err(|_| Error::new(ErrorKind::Failed, "the check did not come to an end")),
                _ = interrupt.recv() => Err(interrupted()),
                _ = terminate.recv() => Err(interrupted()),
            }
        })
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Failed, "interrupted; the metadata snapshot made for the check is released")
}

fn check(metadata: &Path, of_snapshot: bool, json: bool) -> ExitCode {
    let mut words: Vec<OsString> = vec!["uthin-fsck".into(), "check".into()];
    words.extend(of_snapshot.then(|| "--metadata-snap".into()));
    words.extend(json.then(|| "--json".into()));
    words.push(metadata.into());
    // Not locked: who is interrupted says so while this is still under way.
    ExitCode::from(fsck::run(words, &mut io::stdout(), &mut io::stderr()))
}
