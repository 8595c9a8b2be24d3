//! `uthin volume`.

use super::options::{parse_volume_when_full, when_full_shown};
use super::size::NewSize;
use super::table::{Cell, Column, TableArgs, render, render_properties, select};
use super::{change, dm, look, print, print_json, refuse_table_options, size};
use crate::control::api::{
    CreateVolume, NewSnapshots, RenameVolume, ResizeVolume, RollBackVolume, SCHEMA, SetVolume, Sharing,
    SnapshotGroup, SnapshotPair, VolumeInfo,
};
use crate::control::label::{self, LabelChanges, LabelKey, LabelValue, Labels};
use crate::control::name::{PoolRef, VolumeName, VolumeRef};
use crate::control::options::VolumeWhenFull;
use crate::engine::WhenFull;
use crate::error::{Error, ErrorKind, Result};
use clap::ValueEnum;
use std::collections::BTreeMap;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Verb {
    /// Make an empty volume, or one on an external origin
    Create {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// Its size, a multiple of 512 bytes; it takes space only as it is written [default: that of --origin]
        #[arg(long, value_parser = size::parse, allow_hyphen_values = true, required_unless_present = "origin")]
        size: Option<u64>,
        /// A raw file or block device outside the pool that shows wherever the volume was not written; it is only read, and
        /// must stay where and as it is
        #[arg(long, value_name = "FILE|DEV", value_parser = parse_origin)]
        origin: Option<String>,
        /// A label, for people and programs; may be given several times
        #[arg(long, value_name = "KEY=VALUE", value_parser = label::parse_pair)]
        label: Vec<(LabelKey, LabelValue)>,
    },
    /// Make a snapshot of a volume, or of several at one moment, in use or not
    #[command(visible_alias = "snap")]
    Snapshot {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        origin: VolumeRef,
        /// The snapshot's name, in the same pool
        #[arg(value_parser = parse_name_alone)]
        name: VolumeName,
        /// Snapshot these volumes of the pool as well, at the same moment: all or none
        #[arg(long, value_name = "VOLUME=NAME,…", value_parser = parse_pair, value_delimiter = ',')]
        group: Vec<SnapshotPair>,
        /// Clients can only read the snapshot (or all of the group)
        #[arg(long)]
        read_only: bool,
    },
    /// Give a volume another name, in use or not; its clients stay, new ones find it under the new name
    Rename {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// The name that it is to have, in the same pool
        #[arg(value_name = "NEW", value_parser = parse_name_alone)]
        name: VolumeName,
    },
    /// Change a volume's settings, in use or not: all that is given, or nothing
    #[command(group(clap::ArgGroup::new("setting").required(true).multiple(true)))]
    Set {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// Set a label, for people and programs; may be given several times
        #[arg(long, value_name = "KEY=VALUE", value_parser = label::parse_pair, group = "setting")]
        label: Vec<(LabelKey, LabelValue)>,
        /// Take a label away; may be given several times
        #[arg(long, value_name = "KEY", value_parser = LabelKey::parse, group = "setting")]
        unlabel: Vec<LabelKey>,
        /// Let clients only read it; no client may have it open
        #[arg(long, group = "setting", conflicts_with = "read_write")]
        read_only: bool,
        /// Let clients that come from now on write it
        #[arg(long, group = "setting")]
        read_write: bool,
        /// Where the external origin is now, or that it is right though it was modified: for all volumes on it, which no client
        /// may have open
        #[arg(long, value_name = "FILE|DEV", value_parser = parse_origin, group = "setting")]
        origin: Option<String>,
        /// What a write that needs a block gets when none is free: as with the pool's `--when-full`, or `pool` for what
        /// that says
        #[arg(long, value_name = "pool|error|queue[:SECONDS]", value_parser = parse_volume_when_full, group = "setting")]
        when_full: Option<VolumeWhenFull>,
    },
    /// Give a volume the contents of a snapshot; what it holds now is kept as a new volume, the way back
    #[command(visible_alias = "roll-back")]
    Rollback {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// The snapshot, in the same pool
        #[arg(value_name = "SNAPSHOT", value_parser = VolumeName::parse)]
        to: VolumeName,
        /// The name for what the volume holds now [default: VOLUME.before-rollback-N]
        #[arg(long, value_name = "NAME", value_parser = parse_name_alone)]
        keep: Option<VolumeName>,
        /// Do it though clients have the volume open; what is mounted from it breaks
        #[arg(long)]
        force: bool,
    },
    /// Make a volume larger, in use or not, or smaller
    ///
    /// NBD clients see the new size when they connect again, block devices at once (with Linux 6.16). Smaller only when no client has it open and it holds
    /// nothing past the new end.
    Resize {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// The size that it is to have, a multiple of 512 bytes, or `+SIZE` for so much more
        #[arg(long, value_parser = NewSize::parse, allow_hyphen_values = true)]
        size: NewSize,
        /// Drop what it holds past the new end
        #[arg(long)]
        discard_rest: bool,
    },
    /// Show one volume
    Status {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// `dm` is the kernel's status line of a thin target: mapped sectors, and the highest mapped sector
        #[arg(long, value_enum)]
        format: Option<Format>,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Print the table line that the kernel's thin target would have for a volume
    Table {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
        /// The pool's device [default: /dev/mapper/POOL]
        #[arg(long, value_name = "DEVICE")]
        pool_device: Option<String>,
    },
    /// List a pool's volumes
    #[command(visible_alias = "ls")]
    List {
        /// The pool
        #[arg(value_parser = PoolRef::parse)]
        pool: PoolRef,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Delete a volume or snapshot that no client uses; in any order, its snapshots stay
    #[command(visible_alias = "rm")]
    Delete {
        /// The volume: POOL/VOLUME
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeRef::parse)]
        volume: VolumeRef,
    },
}

fn parse_name_alone(text: &str) -> Result<VolumeName> {
    if text.contains('/') {
        return Err(Error::new(ErrorKind::Invalid, format!("`{text}` is no name: it has a slash in it"))
            .hint("it stays in the volume's pool: give the name alone"));
    }
    VolumeName::parse_new(text)
}

/// The path as the daemon can use it: absolute, links left as they are.
pub(super) fn parse_origin(path: &str) -> Result<String> {
    let absolute =
        std::path::absolute(path).map_err(|source| Error::io(format!("origin `{path}`"), &source))?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("the path {} is no text", absolute.display()))
            .hint("give it a name in UTF-8, by a link perhaps")
    })
}

fn parse_pair(text: &str) -> Result<SnapshotPair> {
    let Some((origin, name)) = text.split_once('=') else {
        return Err(Error::new(ErrorKind::Invalid, format!("`{text}` names no volume and its snapshot"))
            .hint("write VOLUME=NAME, several separated by commas"));
    };
    if origin.contains('/') {
        return Err(Error::new(ErrorKind::Invalid, format!("`{origin}` is no name: it has a slash in it"))
            .hint("a group is within one pool: give the volume's name alone"));
    }
    Ok(SnapshotPair { origin: VolumeName::parse(origin)?, name: parse_name_alone(name)?, read_only: false })
}

const COLUMNS: &[Column<VolumeInfo>] = &[
    Column { name: "name", by_default: true, cell: |volume| Cell::Text(volume.name.to_string()) },
    Column { name: "id", by_default: true, cell: |volume| Cell::Number(volume.id) },
    Column { name: "size", by_default: true, cell: |volume| Cell::Bytes(volume.size_bytes) },
    Column { name: "mapped", by_default: true, cell: |volume| Cell::maybe_bytes(volume.mapped_bytes) },
    Column {
        name: "mapped_end",
        by_default: false,
        cell: |volume| Cell::maybe_bytes(volume.mapped_end_bytes),
    },
    Column {
        name: "exclusive",
        by_default: true,
        cell: |volume| shared(volume, |sharing| sharing.exclusive_bytes),
    },
    Column {
        name: "shared",
        by_default: true,
        cell: |volume| shared(volume, |sharing| sharing.shared_bytes),
    },
    Column {
        name: "as_of",
        by_default: false,
        cell: |volume| Cell::maybe(volume.sharing.as_ref().map(|sharing| &sharing.as_of)),
    },
    Column { name: "origin", by_default: true, cell: |volume| Cell::maybe(origin(volume)) },
    Column { name: "created", by_default: true, cell: |volume| Cell::maybe(volume.created.as_ref()) },
    Column { name: "open", by_default: true, cell: |volume| Cell::maybe_number(volume.open) },
    Column {
        name: "transaction_id",
        by_default: false,
        cell: |volume| Cell::maybe_number(volume.transaction_id),
    },
    Column {
        name: "creation_time",
        by_default: false,
        cell: |volume| Cell::maybe_number(volume.creation_time),
    },
    Column {
        name: "snapshotted_time",
        by_default: false,
        cell: |volume| Cell::maybe_number(volume.snapshotted_time),
    },
    Column {
        name: "access",
        by_default: false,
        cell: |volume| Cell::Text(access(volume.read_only).to_owned()),
    },
    Column {
        name: "external_origin",
        by_default: false,
        cell: |volume| Cell::maybe(volume.external_origin.as_ref().map(|origin| &origin.path)),
    },
    Column {
        name: "problem",
        by_default: false,
        cell: |volume| {
            Cell::maybe(volume.external_origin.as_ref().and_then(|origin| origin.problem.as_ref()))
        },
    },
    Column {
        name: "when_full",
        by_default: false,
        cell: |volume| Cell::Text(when_full_of(volume.when_full)),
    },
    Column {
        name: "waiting_for_space",
        by_default: false,
        cell: |volume| Cell::maybe_number(volume.waiting_for_space),
    },
    Column { name: "labels", by_default: false, cell: |volume| Cell::Text(shown(&volume.labels)) },
    Column { name: "exports", by_default: false, cell: |volume| Cell::Text(volume.exports.join(",")) },
];

pub(super) fn run(verb: Verb, json: bool) -> Result<()> {
    match verb {
        Verb::Create { volume, size, origin, label } => {
            let name = VolumeName::parse_new(volume.volume.as_str())?;
            let labels = once_each(label)?;
            let request = CreateVolume { name, size_bytes: size, labels, external_origin: origin };
            let made = change(&volume.pool, |pool| pool.create(&request))?;
            if json {
                return print_json(&made);
            }
            let on = made.external_origin.map_or_else(String::new, |origin| format!(" on {}", origin.path));
            print(&format!("volume {} made: {}{on}\n", made.name, size::human(made.size_bytes)))
        }
        Verb::Snapshot { origin, name, group, read_only } => {
            let first = SnapshotPair { origin: origin.volume, name, read_only };
            let group: Vec<_> = group.into_iter().map(|pair| SnapshotPair { read_only, ..pair }).collect();
            snapshot(&origin.pool, first, group, json)
        }
        Verb::Rename { volume, name } => {
            let request = RenameVolume { name };
            let renamed = change(&volume.pool, |pool| pool.rename(&volume.volume, &request))?;
            if json {
                return print_json(&renamed);
            }
            print(&format!("volume {} renamed to {}\n", renamed.old_name, renamed.name))
        }
        Verb::Set { volume, label, unlabel, read_only, read_write, origin, when_full } => {
            let labels = label_changes(label, unlabel)?;
            let read_only = (read_only || read_write).then_some(read_only);
            set(&volume, &SetVolume { labels, read_only, external_origin: origin, when_full }, json)
        }
        Verb::Rollback { volume, to, keep, force } => {
            let request = RollBackVolume { to, keep, force };
            let done = change(&volume.pool, |pool| pool.roll_back(&volume.volume, &request))?;
            if json {
                return print_json(&done);
            }
            let (name, kept) = (&done.name, &done.kept.name);
            print(&format!(
                "volume {name} holds what {} holds; what it held before is kept as {kept}\n",
                done.to
            ))
        }
        Verb::Resize { volume, size, discard_rest } => {
            let done = change(&volume.pool, |pool| {
                let size_bytes = size.bytes(|| Ok(dm::find(pool.volumes()?.volumes, &volume)?.size_bytes))?;
                pool.resize(&volume.volume, &ResizeVolume { size_bytes, discard_rest })
            })?;
            if json {
                return print_json(&done);
            }
            let (old, new) = (size::human(done.old_size_bytes), size::human(done.size_bytes));
            let notice = done.notice.map_or_else(String::new, |notice| format!("{notice}\n"));
            print(&format!("volume {}: {old} -> {new}\n{notice}", done.name))
        }
        Verb::Status { volume, format, table } => status(&volume, format, &table, json),
        Verb::Table { volume, pool_device } => dm::volume_table(&volume, pool_device.as_deref(), json),
        Verb::List { pool, table } => {
            refuse_table_options(json, &table)?;
            let columns = select(COLUMNS, &table)?;
            let list = look(&pool, |pool| pool.volumes())?;
            if json {
                return print_json(&list);
            }
            let note = if table.no_header { String::new() } else { age_note(&columns, &list.volumes) };
            print(&(render(&columns, &list.volumes, &table) + &note))
        }
        Verb::Delete { volume } => {
            let deleted = change(&volume.pool, |pool| pool.delete(&volume.volume))?;
            if json {
                return print_json(&deleted);
            }
            let rest = if deleted.finished { "" } else { "; its blocks are being freed in the background" };
            print(&format!("volume {} deleted{rest}\n", deleted.name))
        }
    }
}

/// How to print a volume.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Table,
    Json,
    Dm,
}

fn status(volume: &VolumeRef, format: Option<Format>, table: &TableArgs, json: bool) -> Result<()> {
    let format = match (format, json) {
        (None, false) => Format::Table,
        (None | Some(Format::Json), _) => Format::Json,
        (Some(format), false) => format,
        (Some(Format::Table | Format::Dm), true) => {
            return Err(Error::new(ErrorKind::Invalid, "--json and another --format exclude each other")
                .hint("give one of them"));
        }
    };
    refuse_table_options(format != Format::Table, table)?;
    let columns = match table.columns.is_empty() {
        true => COLUMNS.iter().collect(),
        false => select(COLUMNS, table)?,
    };
    let info = look(&volume.pool, |pool| dm::find(pool.volumes()?.volumes, volume))?;
    match format {
        Format::Json => {
            let mut value =
                serde_json::to_value(&info).expect("our answers have nothing that JSON cannot hold");
            value["schema"] = SCHEMA.into();
            print_json(&value)
        }
        Format::Dm => print(&(dm::thin_line(&info) + "\n")),
        Format::Table if table.no_header || !table.columns.is_empty() => {
            print(&render(&columns, std::slice::from_ref(&info), table))
        }
        Format::Table => print(&render_properties(&columns, &info, table)),
    }
}

/// Without a group the answer is the snapshot, with one it is a list.
fn snapshot(pool: &PoolRef, first: SnapshotPair, group: Vec<SnapshotPair>, json: bool) -> Result<()> {
    let is_group = !group.is_empty();
    let request = SnapshotGroup { snapshots: std::iter::once(first).chain(group).collect() };
    let made = change(pool, |pool| match &request.snapshots[..] {
        [one] => {
            pool.snapshot(one).map(|made| NewSnapshots { schema: made.schema.clone(), snapshots: vec![made] })
        }
        _ => pool.snapshot_group(&request),
    })?;
    if json {
        return if is_group { print_json(&made) } else { print_json(&made.snapshots[0]) };
    }
    let lines = made.snapshots.iter().zip(&request.snapshots);
    print(
        &lines
            .map(|(made, pair)| format!("snapshot {} made of {}\n", made.name, pair.origin))
            .collect::<String>(),
    )
}

fn set(volume: &VolumeRef, request: &SetVolume, json: bool) -> Result<()> {
    let settings = change(&volume.pool, |pool| pool.set(&volume.volume, request))?;
    if json {
        return print_json(&settings);
    }
    let labels = if settings.labels.is_empty() { "none".to_owned() } else { shown(&settings.labels) };
    let on = settings.external_origin.map_or_else(String::new, |origin| format!(", on {}", origin.path));
    let when_full = match settings.when_full.is_some() || request.when_full.is_some() {
        true => format!(", when full {}", when_full_of(settings.when_full)),
        false => String::new(),
    };
    let access = access(settings.read_only);
    print(&format!("volume {}: {access}, labels {labels}{on}{when_full}\n", settings.name))
}

fn shared(volume: &VolumeInfo, bytes: impl Fn(&Sharing) -> u64) -> Cell {
    Cell::maybe_bytes(volume.sharing.as_ref().map(bytes))
}

/// Numbers that are not of this moment say so.
fn age_note(columns: &[&Column<VolumeInfo>], volumes: &[VolumeInfo]) -> String {
    let tells = columns.iter().any(|column| ["exclusive", "shared"].contains(&column.name));
    let sharing = volumes.iter().find_map(|volume| volume.sharing.as_ref());
    match sharing.filter(|sharing| tells && !sharing.current) {
        Some(sharing) => {
            format!("exclusive and shared: as of {}, and the pool has changed since\n", sharing.as_of)
        }
        None => String::new(),
    }
}

/// What a volume stands on: another one, or (with a slash) something outside the pool.
fn origin(volume: &VolumeInfo) -> Option<String> {
    let external = volume.external_origin.as_ref().map(|origin| origin.path.clone());
    volume.origin.as_ref().map(VolumeName::to_string).or(external)
}

fn label_changes(set: Vec<(LabelKey, LabelValue)>, unset: Vec<LabelKey>) -> Result<LabelChanges> {
    let set = set.into_iter().map(|(key, value)| (key, Some(value)));
    once_each(set.chain(unset.into_iter().map(|key| (key, None))).collect())
}

/// Which of two values for one key is meant, nobody can tell.
fn once_each<V>(pairs: Vec<(LabelKey, V)>) -> Result<BTreeMap<LabelKey, V>> {
    let mut all = BTreeMap::new();
    for (key, value) in pairs {
        if all.contains_key(&key) {
            return Err(Error::new(ErrorKind::Invalid, format!("label `{key}` is given twice"))
                .hint("give each key once, with --label or with --unlabel"));
        }
        all.insert(key, value);
    }
    Ok(all)
}

/// What becomes of a volume's writes on a full pool.
fn when_full_of(own: Option<WhenFull>) -> String {
    own.map_or_else(|| "as the pool".to_owned(), when_full_shown)
}

fn access(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}

/// For tables; JSON has them apart.
fn shown(labels: &Labels) -> String {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}
