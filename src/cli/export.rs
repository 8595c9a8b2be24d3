//! `uthin export`, `uthin unexport`.

use super::table::{Cell, Column, TableArgs, render, select};
use super::{look, print, print_json, refuse_table_options, size};
use crate::control::api::{
    ExportInfo, ExportKind, ExportList, ExportVolume, PoolApi, SCHEMA, UnexportVolume,
};
use crate::control::client::Client;
use crate::control::name::{PoolRef, VolumeRef, base_directory};
use crate::control::pool_dir::PoolDir;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::ublk;
use std::time::{Duration, Instant};

/// How often to look whether a device is free.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["ublk", "list"])))]
pub(super) struct ExportArgs {
    /// The volume: POOL/VOLUME; with --list a pool [default with --list: all pools in the usual place]
    #[arg(value_name = "POOL/VOLUME", required_unless_present = "list")]
    target: Option<String>,
    /// As a block device of this machine, /dev/ublkbN; prints its path when it can be opened. The pool must be served
    #[arg(long)]
    ublk: bool,
    /// List the volumes that are exported
    #[arg(long)]
    list: bool,
    /// Queues of the device, each with a thread of the daemon [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "list")]
    queues: Option<u16>,
    /// Requests of a queue at a time [default: 128]
    #[arg(long, value_name = "D", conflicts_with = "list")]
    depth: Option<u16>,
    /// Its smallest unit, 512 or 4K [default: 512]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "list")]
    logical_block: Option<u64>,
    /// What is said to be written in one piece, 512 or 4K [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "list")]
    physical_block: Option<u64>,
    /// The device can only be read, though the volume can be written
    #[arg(long, conflicts_with = "list")]
    read_only: bool,
    /// What moves between a request and the data disk is not copied (Linux 6.16, as root, no journal): good for large requests
    #[arg(long, conflicts_with = "list")]
    zero_copy: bool,
    #[command(flatten)]
    table: TableArgs,
}

#[derive(clap::Args, Debug)]
pub(super) struct UnexportArgs {
    /// The volume: POOL/VOLUME
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
    volume: VolumeRef,
    /// Do it though the device is open or mounted: who has it open gets errors
    #[arg(long, conflicts_with = "wait")]
    force: bool,
    /// Wait until nobody has the device open, for so many seconds [default: without end]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    wait: Option<Option<u64>>,
}

const COLUMNS: &[Column<ExportInfo>] = &[
    Column { name: "volume", by_default: true, cell: |export| Cell::Text(export.volume.to_string()) },
    Column { name: "device", by_default: true, cell: |export| Cell::Text(export.device.clone()) },
    Column { name: "size", by_default: true, cell: |export| Cell::Bytes(export.size_bytes) },
    Column { name: "access", by_default: true, cell: |export| Cell::Text(access(export).to_owned()) },
    Column { name: "queues", by_default: true, cell: |export| Cell::Number(export.queues.into()) },
    Column { name: "depth", by_default: true, cell: |export| Cell::Number(export.depth.into()) },
    Column {
        name: "outlives_daemon",
        by_default: false,
        cell: |export| Cell::Text(if export.outlives_daemon { "yes" } else { "no" }.to_owned()),
    },
    Column {
        name: "zero_copy",
        by_default: false,
        cell: |export| Cell::Text(if export.zero_copy.is_some() { "yes" } else { "no" }.to_owned()),
    },
    Column { name: "link", by_default: true, cell: |export| Cell::maybe(export.link.as_ref()) },
    Column { name: "id", by_default: false, cell: |export| Cell::Number(export.id) },
    Column {
        name: "logical_block",
        by_default: false,
        cell: |export| Cell::Bytes(export.logical_block_bytes.into()),
    },
    Column {
        name: "physical_block",
        by_default: false,
        cell: |export| Cell::Bytes(export.physical_block_bytes.into()),
    },
];

fn access(export: &ExportInfo) -> &'static str {
    if export.read_only { "read-only" } else { "read-write" }
}

pub(super) fn export(args: ExportArgs, json: bool) -> Result<()> {
    if args.list {
        return list(args.target.as_deref(), &args.table, json);
    }
    if args.table.is_used() {
        return Err(Error::new(ErrorKind::Invalid, "-o, -H and -p are for lists").hint("add --list"));
    }
    let volume = VolumeRef::parse(args.target.as_deref().unwrap_or_default())?;
    let request = ExportVolume {
        kind: ExportKind::Ublk,
        queues: args.queues,
        depth: args.depth,
        logical_block_bytes: args.logical_block.map(block_bytes).transpose()?,
        physical_block_bytes: args.physical_block.map(block_bytes).transpose()?,
        read_only: args.read_only,
        zero_copy: args.zero_copy,
    };
    let made = look(&volume.pool, |pool| pool.export(&volume.volume, &request))?;
    if json { print_json(&made) } else { print(&format!("{}\n", made.device)) }
}

fn block_bytes(bytes: u64) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("a device cannot have blocks of {bytes} bytes"))
            .hint("512 or 4K")
    })
}

fn list(target: Option<&str>, table: &TableArgs, json: bool) -> Result<()> {
    refuse_table_options(json, table)?;
    let columns = select(COLUMNS, table)?;
    let found = match target {
        Some(pool) => look(&PoolRef::parse(pool)?, |pool| pool.exports())?,
        None => exports_of_all_pools()?,
    };
    if json { print_json(&found) } else { print(&render(&columns, &found.exports, table)) }
}

/// Of the pools that have a mere name and are served. One that cannot be asked is told on stderr, and no reason to hide the
/// others.
fn exports_of_all_pools() -> Result<ExportList> {
    let base = base_directory();
    let mut names: Vec<_> = match std::fs::read_dir(&base) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io(format!("looking into {}", base.display()), &error)),
    };
    names.sort();
    let mut exports = Vec::new();
    for dir in names.iter().filter_map(|name| Some(PoolDir::of(&PoolRef::parse(name).ok()?))) {
        if dir.require().is_err() {
            continue;
        }
        match Client::find(&dir).and_then(|client| client.map(|client| client.exports()).transpose()) {
            Ok(found) => exports.extend(found.into_iter().flat_map(|found| found.exports)),
            Err(error) => tracing::warn!("pool {}: {error}", dir.shown()),
        }
    }
    Ok(ExportList { schema: SCHEMA.to_owned(), exports })
}

pub(super) fn unexport(args: &UnexportArgs, json: bool) -> Result<()> {
    let request = UnexportVolume { force: args.force };
    let patience = args.wait.map(|seconds| seconds.map_or(Duration::MAX, Duration::from_secs));
    let begin = Instant::now();
    let gone = loop {
        match look(&args.volume.pool, |pool| pool.unexport(&args.volume.volume, &request)) {
            Err(error)
                if error.kind() == ErrorKind::Busy
                    && patience.is_some_and(|limit| begin.elapsed() < limit) =>
            {
                std::thread::sleep(LOOK_AGAIN);
            }
            outcome => break outcome?,
        }
    };
    if json { print_json(&gone) } else { print(&format!("{} is gone\n", gone.device)) }
}

/// Two words that a udev rule takes apart, or nothing.
pub(super) fn owner(name: &str) -> Result<()> {
    match ublk::owner(name)? {
        Some((user, group)) => print(&format!("{user} {group}\n")),
        None => Ok(()),
    }
}
