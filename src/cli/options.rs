//! How a pool is run, as the command line says it: options that `pool create`, `pool set`, `pool adopt` and `serve` share.

use super::size;
use crate::control::api::{Discard, SetPool};
use crate::control::options::{FreeSpace, VolumeWhenFull};
use crate::engine::{JournalMode, SmallWrites, WhenFull};
use crate::error::{Error, ErrorKind, Result};
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// How a pool is run. `pool create` and `pool set` keep it with the pool; `serve` does so once.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct OptionArgs {
    /// What becomes of discards, and of the space of freed blocks: `passdown` unless the pool was told otherwise
    #[arg(long, value_enum)]
    discard: Option<DiscardArg>,
    /// Leave the unwritten rest of a fresh block as it was on the data device, instead of zeroing it. Old data shows
    #[arg(long, conflicts_with = "zero")]
    no_zero: bool,
    /// Zero the unwritten rest of a fresh block, as is done unless the pool was told otherwise
    #[arg(long)]
    zero: bool,
    /// What the first write to a block that is shared, or fresh and zeroed, does with the rest of it: `copy` unless the pool was
    /// told otherwise
    #[arg(long, value_enum)]
    small_writes: Option<SmallWritesArg>,
    /// Where a daemon records changes, so that a flush is no metadata transaction and the death of the daemon loses nothing: in the
    /// `file` journal of the pool's directory, on a device or in a file that is there (when the pool is made), or nowhere (`none`:
    /// every flush commits, as dm-thin does it). `file` for pools that are made here, `none` for adopted ones. In force from the
    /// next time that the pool is served
    #[arg(long, value_name = "none|file|DEVICE", value_parser = parse_journal)]
    journal: Option<JournalArg>,
}

/// What a pool does when its space runs low.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct AttentionArgs {
    /// The pool asks for attention with less free space for data than this: a part of all, such as 10%, or a size. 10%
    /// unless the pool was told otherwise
    #[arg(long, value_name = "PERCENT%|SIZE", value_parser = parse_free_space)]
    low_water: Option<FreeSpace>,
    /// What a write that needs a block gets when none is free: `error` (no space, at once), or `queue` (it waits, 60 seconds
    /// or as many as are given, 0 for as long as it takes). `error` unless the pool was told otherwise
    #[arg(long, value_name = "error|queue[:SECONDS]", value_parser = parse_when_full)]
    when_full: Option<WhenFull>,
    /// With less free space than this no volumes and snapshots are made: a part of all, of data and of metadata, or a size, of data.
    /// 0% unless the pool was told otherwise
    #[arg(long, value_name = "PERCENT%|SIZE", value_parser = parse_free_space)]
    min_free: Option<FreeSpace>,
}

/// dm-thin's own patience.
const QUEUE_SECONDS: u32 = 60;

fn parse_when_full(text: &str) -> Result<WhenFull> {
    match text.split_once(':') {
        None if text == "error" => Ok(WhenFull::Error),
        None if text == "queue" => Ok(WhenFull::Queue(QUEUE_SECONDS)),
        Some(("queue", seconds)) if seconds.parse::<u32>().is_ok() => {
            Ok(WhenFull::Queue(seconds.parse().expect("just parsed")))
        }
        Some(_) | None => Err(Error::new(ErrorKind::Invalid, format!("`{text}` is no way to be full"))
            .hint("write error, queue or queue:SECONDS")),
    }
}

pub(super) fn parse_volume_when_full(text: &str) -> Result<VolumeWhenFull> {
    if text == "pool" {
        return Ok(VolumeWhenFull::Pool);
    }
    let own = parse_when_full(text).map_err(|error| {
        Error::new(error.kind(), error.message()).hint("write pool, error, queue or queue:SECONDS")
    })?;
    Ok(match own {
        WhenFull::Error => VolumeWhenFull::Error,
        WhenFull::Queue(seconds) => VolumeWhenFull::Queue(seconds),
    })
}

pub(super) fn when_full_shown(when_full: WhenFull) -> String {
    match when_full {
        WhenFull::Error => "error".to_owned(),
        WhenFull::Queue(0) => "queue without end".to_owned(),
        WhenFull::Queue(seconds) => format!("queue for {seconds} s"),
    }
}

fn parse_free_space(text: &str) -> Result<FreeSpace> {
    let Some(percent) = text.strip_suffix('%') else { return size::parse(text).map(FreeSpace::Bytes) };
    let percent = percent.parse().map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("`{text}` is no part of the space"))
            .hint("write 0% to 100%, or a size")
    })?;
    let low_water = FreeSpace::Percent(percent);
    low_water.check()?;
    Ok(low_water)
}

pub(super) fn free_space_shown(low_water: FreeSpace) -> String {
    match low_water {
        FreeSpace::Percent(percent) => format!("{percent}%"),
        FreeSpace::Bytes(bytes) => size::human(bytes),
    }
}

/// What of the pool's options is to be as it says, and nothing else.
pub(super) fn changes(options: &OptionArgs, attention: AttentionArgs) -> SetPool {
    SetPool {
        discard: options.discard(),
        zero_new_blocks: options.zero_new_blocks(),
        small_writes: options.small_writes(),
        journal: options.journal(),
        low_water: attention.low_water,
        when_full: attention.when_full,
        min_free: attention.min_free,
    }
}

impl OptionArgs {
    pub(super) fn zero_new_blocks(&self) -> Option<bool> {
        (self.zero || self.no_zero).then_some(self.zero)
    }

    pub(super) fn small_writes(&self) -> Option<SmallWrites> {
        self.small_writes.map(|small_writes| match small_writes {
            SmallWritesArg::Copy => SmallWrites::Copy,
            SmallWritesArg::Partial => SmallWrites::Partial,
        })
    }

    pub(super) fn journal(&self) -> Option<JournalMode> {
        self.journal.as_ref().map(|journal| match journal {
            JournalArg::None => JournalMode::None,
            JournalArg::File | JournalArg::On(_) => JournalMode::File,
        })
    }

    /// The device or file that the journal is to be on, for who makes a pool's directory.
    pub(super) fn journal_device(&self) -> Option<&Path> {
        match &self.journal {
            Some(JournalArg::On(device)) => Some(device),
            Some(JournalArg::None | JournalArg::File) | None => None,
        }
    }

    /// `Invalid` if a device is named for the journal of a pool that is there.
    pub(super) fn refuse_journal_device(&self) -> Result<()> {
        match self.journal_device() {
            None => Ok(()),
            Some(device) => Err(Error::new(
                ErrorKind::Invalid,
                format!("{}: only a pool that is being made gets its journal on a device", device.display()),
            )
            .hint("write none or file. To move the journal of a closed pool, put a link to the device in place of its file `journal`")),
        }
    }

    pub(super) fn discard(&self) -> Option<Discard> {
        self.discard.map(|discard| match discard {
            DiscardArg::Passdown => Discard::Passdown,
            DiscardArg::Nopassdown => Discard::NoPassdown,
            DiscardArg::Ignore => Discard::Ignore,
        })
    }
}

/// What becomes of the rest of a block.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SmallWritesArg {
    /// It is copied, or zeroed, at once, as dm-thin does it
    Copy,
    /// It stays where it is, so that 4 KiB written are 4 KiB. dm-thin knows the pool only once it is settled (`pool settle`,
    /// `pool close`)
    Partial,
}

pub(super) fn small_writes_word(small_writes: SmallWrites) -> &'static str {
    match small_writes {
        SmallWrites::Copy => "copy",
        SmallWrites::Partial => "partial",
    }
}

/// Where changes are recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum JournalArg {
    /// Nowhere.
    None,
    /// In the file `journal` of the pool's directory.
    File,
    /// On this device or in this file, to which `journal` is a link.
    On(PathBuf),
}

fn parse_journal(text: &str) -> Result<JournalArg> {
    match text {
        "none" => Ok(JournalArg::None),
        "file" => Ok(JournalArg::File),
        path if path.contains('/') => Ok(JournalArg::On(path.into())),
        _ => Err(Error::new(ErrorKind::Invalid, format!("`{text}` is no place for a journal"))
            .hint("write none, file, or the path of a device or file, such as /dev/sdc1 or ./journal")),
    }
}

pub(super) fn journal_word(journal: JournalMode) -> &'static str {
    match journal {
        JournalMode::None => "none",
        JournalMode::File => "file",
    }
}

/// What becomes of discards and freed blocks' space.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DiscardArg {
    /// Discards unmap, and the space of freed blocks goes back to what holds the data
    Passdown,
    /// Discards unmap, and freed blocks keep their space for the pool
    Nopassdown,
    /// Discards do nothing
    Ignore,
}

pub(super) fn discard_word(discard: Discard) -> &'static str {
    match discard {
        Discard::Passdown => "passdown",
        Discard::NoPassdown => "nopassdown",
        Discard::Ignore => "ignore",
    }
}
