//! `uthin pool adopt`.

use super::options::{AttentionArgs, OptionArgs, changes};
use super::{print, print_json, size};
use crate::control::adopt::{Adopt, adopt};
use crate::control::name::{PoolRef, VolumeName};
use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The pool's directory, which is made
    #[arg(value_parser = PoolRef::parse)]
    pool: PoolRef,
    /// The metadata: a block device or file (of LVM the hidden volume POOL_tmeta)
    #[arg(long, value_name = "FILE|DEVICE")]
    metadata: PathBuf,
    /// The data: a block device or file (of LVM the hidden volume POOL_tdata)
    #[arg(long, value_name = "FILE|DEVICE")]
    data: PathBuf,
    /// The size of a volume, by its number; without a number, of all that nobody knows the size of. May be given several
    /// times [default: what is mapped]
    #[arg(long, value_name = "[NUMBER=]SIZE", value_parser = parse_size)]
    size: Vec<(Option<VolumeId>, u64)>,
    /// The name of a volume, by its number; may be given several times
    #[arg(long, value_name = "NUMBER=NAME", value_parser = parse_name)]
    name: Vec<(VolumeId, VolumeName)>,
    /// What shows of a volume, by its number, wherever it maps nothing: its external origin, which stays where it is. May be
    /// given several times
    #[arg(long, value_name = "NUMBER=FILE|DEVICE", value_parser = parse_origin)]
    origin: Vec<(VolumeId, String)>,
    /// Take names and sizes from this file, which LVM's `vgcfgbackup` has written
    #[arg(long, value_name = "FILE", conflicts_with = "docker")]
    lvm: Option<PathBuf>,
    /// Of that file's thin pools, the one that this is
    #[arg(long, value_name = "POOL", requires = "lvm")]
    lvm_pool: Option<String>,
    /// Take names and sizes from the metadata directory of Docker's devicemapper driver
    #[arg(long, value_name = "DIR")]
    docker: Option<PathBuf>,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    attention: AttentionArgs,
}

fn parse_number(text: &str) -> Result<VolumeId> {
    text.parse().ok().and_then(VolumeId::new).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("`{text}` is no volume's number"))
            .hint(format!("numbers go from 0 to {}; `uthin-fsck ls METADATA` lists them", VolumeId::MAX))
    })
}

fn parse_size(text: &str) -> Result<(Option<VolumeId>, u64)> {
    match text.split_once('=') {
        None => Ok((None, size::parse(text)?)),
        Some((number, size)) => Ok((Some(parse_number(number)?), size::parse(size)?)),
    }
}

fn parse_name(text: &str) -> Result<(VolumeId, VolumeName)> {
    let (number, name) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("`{text}` names no volume"))
            .hint("write NUMBER=NAME, such as 7=web")
    })?;
    Ok((parse_number(number)?, VolumeName::parse_new(name)?))
}

fn parse_origin(text: &str) -> Result<(VolumeId, String)> {
    let (number, path) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("`{text}` gives no volume an origin"))
            .hint("write NUMBER=PATH, such as 7=/dev/vg0/golden")
    })?;
    Ok((parse_number(number)?, super::volume::parse_origin(path)?))
}

pub(super) fn run(args: Args, json: bool) -> Result<()> {
    let (with_number, without): (Vec<_>, Vec<_>) = args.size.into_iter().partition(|(id, _)| id.is_some());
    let default_size_bytes = match &without[..] {
        [] => None,
        [(_, size_bytes)] => Some(*size_bytes),
        _ => return Err(twice("a --size without a number")),
    };
    let mut sizes = BTreeMap::new();
    for (id, size_bytes) in with_number.into_iter().filter_map(|(id, size_bytes)| Some((id?, size_bytes))) {
        if sizes.insert(id, size_bytes).is_some() {
            return Err(twice(&format!("the size of volume {id}")));
        }
    }
    let mut names = BTreeMap::new();
    for (id, name) in args.name {
        if names.values().any(|other| *other == name) {
            return Err(twice(&format!("the name `{name}`")));
        }
        if names.insert(id, name).is_some() {
            return Err(twice(&format!("the name of volume {id}")));
        }
    }
    let mut origins = BTreeMap::new();
    for (id, path) in args.origin {
        if origins.insert(id, path).is_some() {
            return Err(twice(&format!("the origin of volume {id}")));
        }
    }
    let wanted = Adopt {
        metadata: args.metadata,
        data: args.data,
        sizes,
        default_size_bytes,
        names,
        origins,
        lvm: args.lvm,
        lvm_pool: args.lvm_pool,
        docker: args.docker,
        journal: args.options.journal_device().map(Into::into),
        options: changes(&args.options, args.attention),
    };
    let adopted = adopt(&args.pool, &wanted)?;
    if json {
        return print_json(&adopted);
    }
    let mut text = format!(
        "pool {} adopted: {} volumes, {} for data in blocks of {}\n",
        args.pool.text(),
        adopted.volumes.len(),
        size::human(adopted.data_bytes),
        size::human(adopted.block_size_bytes)
    );
    adopted.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
    print(&text)
}

fn twice(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{what} is given twice")).hint("give it once")
}
