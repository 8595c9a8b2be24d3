//! A program of the user's that is run for each event, without a shell.
//!
//! It can hold up nobody: it runs on a thread of its own, one at a time, for [`PATIENCE`] at most, and what it is behind by more
//! than the events that are kept, it misses.

use super::events::{Event, Events, Kind};
use crate::error::{Error, ErrorKind, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long to wait for the next event before looking again.
const WAIT: Duration = Duration::from_secs(60);

/// The program, if it can be run: `Invalid` if not.
pub fn require_program(program: &Path) -> Result<PathBuf> {
    let wrong = |what: &str| {
        Error::new(ErrorKind::Invalid, format!("--hook {}: {what}", program.display())).hint(
            "give the path of one program, without arguments; what it needs to know is in its environment",
        )
    };
    // The daemon need not stay where it was started.
    let path = program.canonicalize().map_err(|source| wrong(&source.to_string()))?;
    let found = path.metadata().map_err(|source| wrong(&source.to_string()))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(wrong("it is no program"));
    }
    Ok(path)
}

/// Runs the program for all events from now on, on a thread of its own, until the pool closes.
pub fn start(program: PathBuf, pool: PathBuf, events: Arc<Events>) -> Result<()> {
    let mut after = events.after(0).last;
    let run = move || {
        loop {
            let list = events.wait_after(after, WAIT);
            if list.missed > 0 {
                tracing::warn!("the hook is too slow: it has missed {} events", list.missed);
            }
            for event in &list.events {
                if event.event == Kind::Closing {
                    return;
                }
                run_once(&program, &pool, event);
            }
            after = list.last;
        }
    };
    std::thread::Builder::new()
        .name("uthin-hook".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|source| Error::io("starting the hook's thread", &source))
}

fn run_once(program: &Path, pool: &Path, event: &Event) {
    let json = serde_json::to_string(event).expect("an event has nothing that JSON cannot hold");
    let mut command = Command::new(program);
    command.env("UTHIN_EVENT", event.event.word()).env("UTHIN_POOL", pool).env("UTHIN_EVENT_JSON", json);
    let numbers = [("UTHIN_FREE_BYTES", event.free_bytes), ("UTHIN_TOTAL_BYTES", event.total_bytes)];
    for (name, value) in numbers {
        value.map(|value| command.env(name, value.to_string()));
    }
    event.mode.map(|mode| command.env("UTHIN_MODE", mode.word()));
    event.volume.as_ref().map(|volume| command.env("UTHIN_VOLUME", volume.as_str()));
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    match command.spawn() {
        Ok(child) => wait_for(child, event),
        Err(source) => tracing::warn!("the hook {} cannot be run: {source}", program.display()),
    }
}

fn wait_for(mut child: Child, event: &Event) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => {
                return tracing::warn!("the hook for event {} has failed: {status}", event.number);
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) => {
                tracing::warn!("the hook for event {} takes more than {PATIENCE:?}: killed", event.number);
                // It is gone, or about to be: nothing else can be done about it.
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            Err(source) => return tracing::warn!("waiting for the hook: {source}"),
        }
    }
}
