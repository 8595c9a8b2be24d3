//! `uthin pool`.

use super::options::{
    AttentionArgs, OptionArgs, changes, discard_word, free_space_shown, journal_word, small_writes_word,
    when_full_shown,
};
use super::size::NewSize;
use super::table::{Cell, Column, TableArgs, render, render_properties, select};
use super::{change, dm, docker, look, print, print_json, refuse_table_options, size};
use crate::control::api::{GrowPool, Health, PoolInfo, SCHEMA, SetPool, VolumeList};
use crate::control::client::Client;
use crate::control::create::{self, CreatePool};
use crate::control::journal::JournalState;
use crate::control::name::{PoolRef, base_directory};
use crate::control::options::PoolOptions;
use crate::control::pool_dir::PoolDir;
use crate::control::settle::SettlePool;
use crate::disk::OpenMode;
use crate::engine::JournalMode;
use crate::error::{Error, ErrorKind, Result};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Verb {
    /// Make a pool
    ///
    /// Without --data and --metadata these are files in the pool's directory. Data need no space until they are
    /// written; metadata of up to 64 MiB have theirs from the start, larger ones 64 MiB ahead of what is in use.
    Create(CreateArgs),
    /// Make a pool of one that LVM, Docker, containerd or another dm-thin has made
    ///
    /// The metadata and data stay where they are, and nothing is written to them. They are checked first, and must not be
    /// in use. Volumes appear under the names of a backup (--lvm, --docker) or those given, else under their numbers.
    Adopt(super::adopt::Args),
    /// Show how a pool is doing
    Status {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        /// `dm` is the kernel's status line of a thin-pool target, `docker` the block of `docker info`
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// For monitors: exit with 0 if all is well, 1 if space is below the low water mark, 2 if the pool is full,
        /// failed or not to be changed
        #[arg(long)]
        exit_code: bool,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Change how a pool is run: kept with it, and in force at once
    Set {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        #[command(flatten)]
        options: OptionArgs,
        #[command(flatten)]
        attention: AttentionArgs,
    },
    /// Make a pool larger, in use or not
    ///
    /// Files are extended; for devices that have grown, no size need be given.
    Grow {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        /// Space for data in all, or `+SIZE` for so much more [default: all of its file or device]
        #[arg(long, value_parser = NewSize::parse, allow_hyphen_values = true)]
        size: Option<NewSize>,
        /// Space for metadata, likewise [default: all of its file or device]
        #[arg(long, value_parser = NewSize::parse, allow_hyphen_values = true)]
        metadata_size: Option<NewSize>,
    },
    /// Make whole blocks of partial ones (see --small-writes), in use or not
    ///
    /// A settled and closed pool is one that dm-thin knows. It is an error when blocks are left at the end of the time.
    Settle {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        /// How long it may take at the most
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        seconds: u64,
    },
    /// Send a pool one of dm-thin's messages: the same words, the same errors
    ///
    /// create_thin ID; create_snap ID ORIGIN; delete ID; set_transaction_id CURRENT NEW; reserve_metadata_snap;
    /// release_metadata_snap. A volume that is made is called by its number.
    Message {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        /// The message, in one word or several; a sector before it, as for `dmsetup message`, is passed over
        #[arg(required = true, value_name = "WORD")]
        message: Vec<String>,
        /// The size of the volume that create_thin makes, which the message has no place for [default: none]
        #[arg(long, value_parser = size::parse)]
        size: Option<u64>,
    },
    /// Print the table line that the kernel's thin-pool target would have on the same metadata and data
    Table {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
    },
    /// Keep the metadata as it is now, for tools that read it beside the running pool
    MetadataSnapshot {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        /// Let it go
        #[arg(long)]
        release: bool,
    },
    /// Check a pool's metadata, as `uthin-fsck check` does; also while it is being served
    ///
    /// Exits with 0 when it is clean, 3 for leaks only, 4 for damage, 1 when nothing could be said.
    Check(super::check::Args),
    /// Look for what does not fit together in a pool, and mend it
    ///
    /// Exits with 0 when nothing is left to do, 3 when something should be seen to, 4 when a pool cannot be served as it is.
    Doctor(super::doctor::Args),
    /// End the daemon that serves a pool, and wait until it is gone
    Close {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
    },
    /// List the pools that have a name
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        table: TableArgs,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct CreateArgs {
    /// The pool
    #[arg(value_parser = PoolRef::parse)]
    pool: PoolRef,
    /// Space for data; what is no whole block at its end stays unused [default: all of --data]
    #[arg(long, value_parser = size::parse, allow_hyphen_values = true, required_unless_present = "data")]
    size: Option<u64>,
    /// Keep the data on this block device or existing file
    #[arg(long, value_name = "DEVICE")]
    data: Option<PathBuf>,
    /// Keep the metadata on this block device or existing file
    #[arg(long, value_name = "DEVICE")]
    metadata: Option<PathBuf>,
    /// Size of a data block: 64K to 1G in steps of 64K. Larger ones need less metadata, and copy more after a snapshot
    #[arg(long, value_parser = size::parse, default_value = "64K")]
    block_size: u64,
    /// Size of the metadata file; `auto` chooses generously
    #[arg(long, value_parser = parse_metadata_size, default_value = "auto")]
    metadata_size: MetadataSize,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    attention: AttentionArgs,
    /// Use devices whatever they hold
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug)]
enum MetadataSize {
    Auto,
    Bytes(u64),
}

fn parse_metadata_size(text: &str) -> Result<MetadataSize> {
    if text == "auto" { Ok(MetadataSize::Auto) } else { size::parse(text).map(MetadataSize::Bytes) }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Table,
    Json,
    Dm,
    Docker,
}

pub(super) fn run(verb: Verb, json: bool) -> Result<ExitCode> {
    let done = match verb {
        Verb::Create(args) => create(args, json),
        Verb::Adopt(args) => super::adopt::run(args, json),
        Verb::Status { pool, format, exit_code, table } => {
            return match status(&pool, format, json, &table) {
                Ok(health) if exit_code => Ok(health_code(health)),
                Ok(_) => Ok(ExitCode::SUCCESS),
                // Who cannot be asked how it is must not pass for one whose space runs low.
                Err(error) if exit_code && super::exit_code(error.kind()) == ExitCode::from(1) => {
                    super::tell(&error, json);
                    Ok(health_code(Health::Critical))
                }
                Err(error) => Err(error),
            };
        }
        Verb::Doctor(args) => return super::doctor::run(&args, json),
        Verb::Check(args) => return super::check::run(&args, json),
        Verb::Set { pool, options, attention } => set(&pool, &options, attention, json),
        Verb::Grow { pool, size, metadata_size } => grow(&pool, size, metadata_size, json),
        Verb::Settle { pool, seconds } => settle(&pool, seconds, json),
        Verb::Message { pool, message, size } => dm::message(&pool, &message, size, json),
        Verb::Table { pool } => dm::pool_table(&pool, json),
        Verb::MetadataSnapshot { pool, release } => metadata_snapshot(&pool, release, json),
        Verb::Close { pool } => close(&pool, json),
        Verb::List { table } => list(json, &table),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn grow(pool: &PoolRef, data: Option<NewSize>, metadata: Option<NewSize>, json: bool) -> Result<()> {
    let grown = change(pool, |pool| {
        let data = data.map(|size| size.bytes(|| Ok(pool.status()?.data.total_bytes)));
        let metadata = metadata.map(|size| size.bytes(|| Ok(pool.status()?.metadata.total_bytes)));
        pool.grow(&GrowPool { data_bytes: data.transpose()?, metadata_bytes: metadata.transpose()? })
    })?;
    if json {
        return print_json(&grown);
    }
    let line = |what: &str, old: u64, new: u64| match old == new {
        true => format!("{what}: {} as before\n", size::human(new)),
        false => format!("{what}: {} -> {}\n", size::human(old), size::human(new)),
    };
    let data = line("data", grown.old_data_bytes, grown.data_bytes);
    print(&(data + &line("metadata", grown.old_metadata_bytes, grown.metadata_bytes)))
}

fn settle(pool: &PoolRef, seconds: u64, json: bool) -> Result<()> {
    let settled = change(pool, |pool| pool.settle(&SettlePool { seconds }))?;
    match settled.left {
        0 if json => print_json(&settled),
        0 => print(&format!("{} partial blocks made whole, 0 left\n", settled.before)),
        left => {
            let message = format!("{left} partial blocks are left of {}", settled.before);
            match settled.problem {
                None => Err(Error::new(ErrorKind::Busy, message).hint("give it more time (--seconds)")),
                Some(problem) => Err(Error::new(ErrorKind::WrongState, format!("{message}: {problem}"))
                    .hint(settled.hint.unwrap_or_default())),
            }
        }
    }
}

fn metadata_snapshot(pool: &PoolRef, release: bool, json: bool) -> Result<()> {
    let done = change(pool, |pool| match release {
        true => pool.release_metadata_snapshot(),
        false => pool.reserve_metadata_snapshot(),
    })?;
    if json {
        return print_json(&done);
    }
    print(&match done.held_root {
        Some(block) => format!("metadata snapshot held at block {block}\n"),
        None => "metadata snapshot released\n".to_owned(),
    })
}

fn health_code(health: Health) -> ExitCode {
    ExitCode::from(match health {
        Health::Ok => 0,
        Health::Low => 1,
        Health::Critical => 2,
    })
}

fn create(args: CreateArgs, json: bool) -> Result<()> {
    let wanted = CreatePool {
        size_bytes: args.size,
        data: args.data,
        metadata: args.metadata,
        block_size_bytes: args.block_size,
        metadata_bytes: match args.metadata_size {
            MetadataSize::Auto => None,
            MetadataSize::Bytes(bytes) => Some(bytes),
        },
        journal: args.options.journal_device().map(Into::into),
        options: PoolOptions::of_a_new_pool().changed_by(&changes(&args.options, args.attention)),
        force: args.force,
    };
    let made = create::create(&args.pool, &wanted)?;
    if json {
        return print_json(&made);
    }
    let mut text = format!(
        "pool {} made: {} for data in blocks of {}, {} for metadata\n",
        args.pool.text(),
        size::human(made.data_bytes),
        size::human(made.block_size_bytes),
        size::human(made.metadata_bytes)
    );
    made.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
    print(&text)
}

const COLUMNS: &[Column<PoolInfo>] = &[
    Column { name: "pool", by_default: true, cell: |pool| Cell::Text(pool.pool.clone()) },
    Column { name: "path", by_default: true, cell: |pool| Cell::Text(pool.path.clone()) },
    Column { name: "state", by_default: true, cell: |pool| Cell::Text(state(pool)) },
    Column { name: "health", by_default: true, cell: |pool| Cell::Text(pool.health.word().to_owned()) },
    Column { name: "mode", by_default: true, cell: |pool| Cell::Text(pool.mode.word().replace('_', " ")) },
    Column {
        name: "failure",
        by_default: false,
        cell: |pool| Cell::maybe(pool.failure.as_ref().map(Error::message)),
    },
    Column { name: "needs_check", by_default: false, cell: |pool| yes_or_no(pool.needs_check) },
    Column { name: "block_size", by_default: true, cell: |pool| Cell::Bytes(pool.block_size_bytes) },
    Column { name: "data_size", by_default: true, cell: |pool| Cell::Bytes(pool.data.total_bytes) },
    Column { name: "data_used", by_default: true, cell: |pool| Cell::Bytes(pool.data.used_bytes) },
    Column { name: "data_free", by_default: true, cell: |pool| Cell::Bytes(pool.data.free_bytes) },
    Column { name: "metadata_size", by_default: true, cell: |pool| Cell::Bytes(pool.metadata.total_bytes) },
    Column { name: "metadata_used", by_default: true, cell: |pool| Cell::Bytes(pool.metadata.used_bytes) },
    Column { name: "metadata_free", by_default: true, cell: |pool| Cell::Bytes(pool.metadata.free_bytes) },
    Column {
        name: "metadata_reserve",
        by_default: true,
        cell: |pool| Cell::Bytes(pool.metadata.reserve_bytes),
    },
    Column { name: "volumes", by_default: true, cell: |pool| Cell::Number(pool.volumes) },
    Column { name: "virtual_size", by_default: true, cell: |pool| Cell::Bytes(pool.virtual_bytes) },
    Column { name: "deleting", by_default: true, cell: |pool| Cell::Number(pool.deleting.len() as u64) },
    Column { name: "transaction_id", by_default: true, cell: |pool| Cell::Number(pool.transaction_id) },
    Column { name: "time", by_default: false, cell: |pool| Cell::Number(pool.time.into()) },
    Column { name: "held_root", by_default: false, cell: |pool| Cell::maybe(pool.held_root) },
    Column { name: "discard", by_default: true, cell: |pool| Cell::Text(discard(pool).to_owned()) },
    Column { name: "to_give_back", by_default: false, cell: |pool| Cell::Bytes(pool.to_give_back_bytes) },
    Column { name: "zero_new_blocks", by_default: true, cell: |pool| yes_or_no(pool.zero_new_blocks) },
    Column {
        name: "small_writes",
        by_default: true,
        cell: |pool| Cell::Text(small_writes_word(pool.small_writes).to_owned()),
    },
    Column { name: "journal", by_default: true, cell: |pool| Cell::Text(journal(pool).to_owned()) },
    Column { name: "journal_used", by_default: false, cell: |pool| Cell::Bytes(pool.journal.used_bytes) },
    Column { name: "metadata_path", by_default: false, cell: |pool| shown(pool.places.metadata.as_ref()) },
    Column { name: "data_path", by_default: false, cell: |pool| shown(pool.places.data.as_ref()) },
    Column { name: "journal_path", by_default: false, cell: |pool| shown(pool.places.journal.as_ref()) },
    Column { name: "partial_blocks", by_default: true, cell: |pool| Cell::Number(pool.partial_blocks) },
    Column {
        name: "low_water",
        by_default: true,
        cell: |pool| Cell::Text(free_space_shown(pool.options.low_water)),
    },
    Column { name: "when_full", by_default: true, cell: |pool| Cell::Text(when_full_shown(pool.when_full)) },
    Column {
        name: "min_free",
        by_default: false,
        cell: |pool| Cell::Text(free_space_shown(pool.options.min_free)),
    },
    Column {
        name: "waiting_for_space",
        by_default: false,
        cell: |pool| Cell::Number(pool.waiting_for_space),
    },
    Column { name: "map_memory", by_default: false, cell: |pool| Cell::Bytes(pool.map_bytes) },
    Column { name: "exports", by_default: true, cell: |pool| Cell::Text(pool.exports.join(" ")) },
];

fn state(pool: &PoolInfo) -> String {
    pool.served_by.as_ref().map_or_else(
        || match pool.journal.state {
            JournalState::Pending | JournalState::Missing => "not closed, and not served".to_owned(),
            JournalState::None | JournalState::On | JournalState::Failed => "closed".to_owned(),
        },
        |daemon| format!("served by process {} since {}", daemon.pid, daemon.since),
    )
}

/// A closed pool has none, and those that are made here have one while they are served.
fn journal(pool: &PoolInfo) -> &'static str {
    let comes = pool.served_by.is_none() && pool.options.journal == JournalMode::File;
    if comes && pool.journal.state == JournalState::None { "when served" } else { pool.journal.state.word() }
}

fn shown(path: Option<&PathBuf>) -> Cell {
    Cell::maybe(path.map(|path| path.display()))
}

fn yes_or_no(value: bool) -> Cell {
    Cell::Text(if value { "yes" } else { "no" }.to_owned())
}

fn discard(pool: &PoolInfo) -> &'static str {
    discard_word(pool.discard)
}

fn status(pool: &PoolRef, format: Option<Format>, json: bool, table: &TableArgs) -> Result<Health> {
    let format = match (format, json) {
        (None, false) => Format::Table,
        (None | Some(Format::Json), _) => Format::Json,
        (Some(format), false) => format,
        (Some(Format::Table | Format::Dm | Format::Docker), true) => {
            return Err(Error::new(ErrorKind::Invalid, "--json and another --format exclude each other"));
        }
    };
    refuse_table_options(format != Format::Table, table)?;
    let columns = select(COLUMNS, table)?;
    let (info, base_bytes) = look(pool, |pool| {
        let base_bytes = if format == Format::Docker { base_bytes(&pool.volumes()?) } else { 0 };
        Ok((pool.status()?, base_bytes))
    })?;
    match format {
        Format::Json => print_json(&info),
        Format::Dm => print(&(info.dm_line() + "\n")),
        Format::Docker => print(&docker::block(&info, base_bytes)),
        Format::Table if table.no_header || !table.columns.is_empty() => {
            print(&render(&columns, std::slice::from_ref(&info), table))
        }
        Format::Table => print(&status_text(&columns, &info, table)),
    }?;
    Ok(info.health)
}

fn status_text(columns: &[&Column<PoolInfo>], info: &PoolInfo, table: &TableArgs) -> String {
    let mut text = render_properties(columns, info, table);
    if let Some(failure) = &info.failure {
        text.push_str(&format!("failure: {}\n", failure.message()));
        if let Some(hint) = failure.next_step() {
            text.push_str(&format!("hint: {hint}\n"));
        }
    }
    let notes = info.removed_words().chain(info.notes.iter().cloned());
    notes.for_each(|note| text.push_str(&format!("note: {note}\n")));
    text
}

/// Docker's driver makes all its volumes as snapshots of one that it calls its base device.
fn base_bytes(list: &VolumeList) -> u64 {
    list.volumes.iter().find(|volume| volume.name.as_str() == "base").map_or(0, |volume| volume.size_bytes)
}

fn set(pool: &PoolRef, args: &OptionArgs, attention: AttentionArgs, json: bool) -> Result<()> {
    args.refuse_journal_device()?;
    let request = changes(args, attention);
    if request == SetPool::default() {
        return Err(Error::new(ErrorKind::Invalid, "nothing to set").hint(
            "give --discard, --zero, --no-zero, --small-writes, --journal, --low-water, --when-full or --min-free",
        ));
    }
    let settings = change(pool, |pool| pool.set_pool(&request))?;
    if json {
        return print_json(&settings);
    }
    let PoolOptions { discard, zero_new_blocks, small_writes, journal, low_water, when_full, min_free } =
        settings.options;
    let zero = if zero_new_blocks { "yes" } else { "no" };
    let rest = if settings.in_force {
        ""
    } else {
        "; what holds the data cannot discard: freed blocks keep their space"
    };
    print(&format!(
        "pool {}: discard {}, zero new blocks {zero}, low water {}, when full {}, min free {}, small writes {}, journal {}{rest}\n",
        pool.text(),
        discard_word(discard),
        free_space_shown(low_water),
        when_full_shown(when_full),
        free_space_shown(min_free),
        small_writes_word(small_writes),
        journal_word(journal)
    ))
}

fn close(pool: &PoolRef, json: bool) -> Result<()> {
    let dir = PoolDir::of(pool);
    let was_served = match Client::find(&dir)? {
        Some(client) => {
            client.close(&dir)?;
            true
        }
        None => {
            // Whoever has it without a control socket is nobody that could be asked to end.
            drop(dir.open_disks(OpenMode::ReadOnly)?);
            false
        }
    };
    if json {
        return print_json(
            &serde_json::json!({ "schema": SCHEMA, "pool": pool.text(), "was_served": was_served }),
        );
    }
    print(&format!("pool {} {}\n", pool.text(), if was_served { "closed" } else { "was not being served" }))
}

/// A line of `pool list`.
#[derive(serde::Serialize)]
struct Listed {
    name: String,
    path: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
    volumes: Option<u64>,
    data_total_bytes: Option<u64>,
    data_used_bytes: Option<u64>,
}

const LIST_COLUMNS: &[Column<Listed>] = &[
    Column { name: "name", by_default: true, cell: |pool| Cell::Text(pool.name.clone()) },
    Column { name: "state", by_default: true, cell: |pool| Cell::Text(pool.state.to_owned()) },
    Column {
        name: "volumes",
        by_default: true,
        cell: |pool| pool.volumes.map_or(Cell::Text(String::new()), Cell::Number),
    },
    Column {
        name: "size",
        by_default: true,
        cell: |pool| pool.data_total_bytes.map_or(Cell::Text(String::new()), Cell::Bytes),
    },
    Column {
        name: "used",
        by_default: true,
        cell: |pool| pool.data_used_bytes.map_or(Cell::Text(String::new()), Cell::Bytes),
    },
    Column { name: "path", by_default: true, cell: |pool| Cell::Text(pool.path.clone()) },
    Column {
        name: "error",
        by_default: false,
        cell: |pool| Cell::maybe(pool.error.as_ref().map(Error::message)),
    },
];

fn list(json: bool, table: &TableArgs) -> Result<()> {
    refuse_table_options(json, table)?;
    let columns = select(LIST_COLUMNS, table)?;
    let pools = named_pools(&base_directory())?;
    let pools: Vec<_> = pools.iter().map(listed).collect();
    if json {
        return print_json(&serde_json::json!({ "schema": SCHEMA, "pools": pools }));
    }
    print(&render(&columns, &pools, table))
}

/// The pools under `base`, in order.
pub(super) fn named_pools(base: &Path) -> Result<Vec<PoolRef>> {
    let context = |source: std::io::Error| Error::io(format!("reading {}", base.display()), &source);
    let mut names = Vec::new();
    match std::fs::read_dir(base) {
        Ok(entries) => {
            for entry in entries {
                names.extend(entry.map_err(context)?.file_name().into_string());
            }
        }
        // Nobody has made a pool yet.
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(context(source)),
    }
    names.sort();
    let is_pool = |pool: &PoolRef| {
        pool.path().join("metadata").symlink_metadata().is_ok_and(|metadata| !metadata.is_dir())
    };
    Ok(names.iter().filter_map(|name| PoolRef::parse_under(name, base).ok()).filter(is_pool).collect())
}

fn listed(pool: &PoolRef) -> Listed {
    let path = pool.path().display().to_string();
    let empty = Listed {
        name: pool.text().to_owned(),
        path,
        state: "unreadable",
        error: None,
        volumes: None,
        data_total_bytes: None,
        data_used_bytes: None,
    };
    match look(pool, |pool| pool.status()) {
        Ok(info) => Listed {
            state: if info.served_by.is_some() { "served" } else { "closed" },
            volumes: Some(info.volumes),
            data_total_bytes: Some(info.data.total_bytes),
            data_used_bytes: Some(info.data.used_bytes),
            ..empty
        },
        Err(error) => {
            let state = if error.kind() == ErrorKind::Busy { "in use" } else { "unreadable" };
            Listed { state, error: Some(error), ..empty }
        }
    }
}
