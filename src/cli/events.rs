//! `uthin events`.

use super::size;
use crate::control::client::Client;
use crate::control::events::{Event, Kind};
use crate::control::name::PoolRef;
use crate::control::pool_dir::PoolDir;
use crate::error::{Error, ErrorKind, Result};
use std::io::Write;

/// How long one question waits for its answer: less than the daemon's patience with a connection.
const WAIT_SECONDS: u32 = 30;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The pool, which is being served
    #[arg(value_parser = PoolRef::parse)]
    pool: PoolRef,
    /// First those that the daemon still knows of, not only what happens from now on
    #[arg(long)]
    past: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<()> {
    let dir = PoolDir::of(&args.pool);
    let Some(client) = Client::find(&dir)? else {
        let what = format!("pool `{}` is not being served: nothing happens to it", args.pool.text());
        return Err(Error::new(ErrorKind::WrongState, what)
            .hint(format!("`uthin serve {}` serves it", args.pool.text())));
    };
    let mut after = match args.past {
        true => 0,
        false => client.events(None, 0)?.last,
    };
    loop {
        let list = client.events(Some(after), WAIT_SECONDS)?;
        if list.missed > 0 {
            tracing::warn!("{} events came too fast to be told", list.missed);
        }
        for event in &list.events {
            let line = if json {
                serde_json::to_string(event).expect("an event has nothing that JSON cannot hold")
            } else {
                words(event)
            };
            if !is_taken(&line)? || event.event == Kind::Closing {
                return Ok(());
            }
        }
        after = list.last;
    }
}

/// Prints a line; whether anybody still reads.
fn is_taken(line: &str) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(Error::io("writing to stdout", &source)),
    }
}

fn words(event: &Event) -> String {
    let mut text = format!("{} {}", event.time, event.event.word());
    if let Some(volume) = &event.volume {
        text += &format!(" {volume}");
    }
    if let Some(mode) = event.mode {
        text += &format!(" {}", mode.word());
    }
    if let (Some(free), Some(total)) = (event.free_bytes, event.total_bytes) {
        text += &format!(" {} of {} free", size::human(free), size::human(total));
    }
    text
}
