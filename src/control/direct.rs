//! A pool without a daemon: opened by the command that needs it, for as long as that takes.

use super::journal;
use super::name::PoolRef;
use super::open::{OpenPool, open};
use super::options::PoolOptions;
use super::pool_dir::PoolDir;
use super::service::{Executor, Parts, Service};
use crate::disk::{Disk, FileDisk};
use crate::driver::blocking::Blocking;
use crate::engine::{
    Answer, Command, JournalStatus, Keeper, KeeperOptions, Kind, Mode, PoolStatus, Removed, SharingInfo,
    TimesFull, VolumeInfo, WhenFull,
};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{Access, Count, Metadata, VolumeSharing};
use crate::units::{MetaBlock, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Opens the pool to look at it. Nothing is written, and changes are refused.
pub fn open_to_look(pool: &PoolRef) -> Result<Service> {
    let dir = PoolDir::of(pool);
    let OpenPool { path, metadata, data: _, catalog, notes, lasting_devices } = open(&dir, Access::ReadOnly)?;
    let (deleting, options) = (catalog.deleting.clone(), catalog.options);
    let journal = match metadata.journal().map(|mark| journal::why_lost(&dir, mark.id)) {
        None => JournalStatus::Off,
        Some(None) => JournalStatus::Pending,
        Some(Some(_)) => JournalStatus::Missing,
    };
    let executor = Box::new(Onlooker { metadata: Mutex::new(metadata), deleting, options, journal });
    let service = Service::new(Parts { path, executor, store: Box::new(dir.catalog()), catalog, notes });
    service.remember_devices(Arc::new(lasting_devices));
    Ok(service)
}

/// Opens the pool to change it; to be ended with [`Service::close`]. Deletions that were left unfinished go on.
pub fn open_to_change(pool: &PoolRef) -> Result<Service> {
    let dir = PoolDir::of(pool);
    let opened = open(&dir, Access::ReadWrite)?;
    let options = KeeperOptions {
        zero_new_blocks: opened.catalog.options.zero_new_blocks,
        discard: opened.catalog.options.discard,
        when_full: WhenFull::Error,
        lanes: 1, // nobody reads or writes here, but to settle
        volume_sizes: opened.volume_sizes(),
        behind: opened.behind_unopened(),
        ..KeeperOptions::default()
    };
    let OpenPool { path, metadata, data, catalog, notes, lasting_devices } = opened;
    let data = Arc::new(data);
    let keeper = Keeper::new(metadata, data.clone(), options)?;
    let executor = Box::new(InlineKeeper(Mutex::new(Blocking::new(keeper, data))));
    let service = Service::new(Parts { path, executor, store: Box::new(dir.catalog()), catalog, notes });
    service.remember_devices(Arc::new(lasting_devices));
    service.resume_deletions()?;
    Ok(service)
}

/// Stretches of partial blocks that one command makes whole.
const SETTLED_AT_ONCE: usize = 256;

/// A keeper with nobody to serve. What a daemon does in the background is done before the answer.
struct InlineKeeper<M: Disk, D: Disk>(Mutex<Blocking<M, D>>);

impl<M: Disk, D: Disk> Executor for InlineKeeper<M, D> {
    fn run(&self, command: Command) -> Result<Answer> {
        let mut pool = self.0.lock().expect("nobody panics while holding the keeper");
        let deleted = if let Command::Delete { volume, .. } = &command { Some(*volume) } else { None };
        let settles = command == Command::Settle(true);
        let answer = pool.command(command)?;
        if settles {
            settle_some(&mut pool)?;
        }
        let (Some(deleted), Answer::Deleting { finished: false }) = (deleted, &answer) else {
            return Ok(answer);
        };
        pool.run();
        let Answer::Status(status) = pool.command(Command::Status)? else { return Ok(answer) };
        // The deletion counts as finished when it is durable.
        let finished = !status.deleting.contains(&deleted) && pool.command(Command::Commit).is_ok();
        Ok(Answer::Deleting { finished })
    }
}

/// Makes some partial blocks whole.
fn settle_some<M: Disk, D: Disk>(pool: &mut Blocking<M, D>) -> Result<()> {
    let settling = pool.keeper().settling();
    for _ in 0..SETTLED_AT_ONCE {
        if !pool.keeper().has_unsettled() {
            break;
        }
        pool.request(&settling, Kind::Settle, 0, 0).map_err(|error| {
            Error::new(ErrorKind::Io, format!("settling the pool's partial blocks: {error:?}"))
                .hint("the log says what was wrong with the data disk")
        })?;
    }
    Ok(())
}

/// Answers from the metadata alone, without a keeper: reads and nothing else.
struct Onlooker {
    metadata: Mutex<Metadata<FileDisk>>,
    deleting: BTreeSet<VolumeId>,
    options: PoolOptions,
    journal: JournalStatus,
}

impl Executor for Onlooker {
    fn run(&self, command: Command) -> Result<Answer> {
        let mut metadata = self.metadata.lock().expect("nobody panics while holding the metadata");
        match command {
            Command::Status => self.status(&mut metadata).map(|status| Answer::Status(Box::new(status))),
            Command::Volumes => self.volumes(&mut metadata).map(Answer::Volumes),
            // Whoever asks for the volumes gets it.
            Command::CountShared => Ok(Answer::Counting(false)),
            Command::CreateVolume { .. }
            | Command::Snapshot { .. }
            | Command::RollBack { .. }
            | Command::Resize { .. }
            | Command::SetOrigin { .. }
            | Command::Unmap { .. }
            | Command::Grow { .. }
            | Command::Configure(_)
            | Command::ConfigureVolume { .. }
            | Command::SetTransactionId(_)
            | Command::HoldMetadata
            | Command::ReleaseMetadata
            | Command::Settle(_)
            | Command::Delete { .. }
            | Command::Commit
            | Command::Close => Err(Error::new(ErrorKind::WrongState, "the pool is open for reading only")),
        }
    }
}

impl Onlooker {
    fn status(&self, metadata: &mut Metadata<FileDisk>) -> Result<PoolStatus> {
        let all = metadata.volumes()?;
        let (deleting, volumes): (Vec<_>, Vec<_>) =
            all.into_iter().map(|(id, _)| id).partition(|id| self.deleting.contains(id));
        Ok(PoolStatus {
            mode: match metadata.require_writable() {
                Ok(()) => Mode::Write,
                Err(why) => Mode::ReadOnly(why),
            },
            needs_check: metadata.needs_check(),
            transaction_id: metadata.transaction_id(),
            time: metadata.time(),
            block_size: metadata.geometry().block_size,
            usage: metadata.usage(),
            out_of_metadata_space: false,
            times_full: TimesFull::default(),
            held_root: metadata.held_root().map(|MetaBlock(block)| block),
            // As a daemon does it unless told otherwise.
            discard: self.options.discard,
            to_give_back: 0,
            zero_new_blocks: self.options.zero_new_blocks,
            small_writes: self.options.small_writes,
            partial_blocks: metadata.partial_blocks(),
            when_full: self.options.when_full,
            queue_expired: false,
            waiting_for_space: 0,
            volumes: volumes.len(),
            deleting,
            counts: 1,
            map_bytes: 0,
            journal: self.journal,
            removed: Removed::default(),
        })
    }

    fn volumes(&self, metadata: &mut Metadata<FileDisk>) -> Result<Vec<VolumeInfo>> {
        let all = metadata.volumes()?;
        metadata.look_up_highest(all.iter().map(|(id, _)| *id));
        let all = all.into_iter().filter(|(id, _)| !self.deleting.contains(id));
        let counted = count_all(metadata).unwrap_or_else(|error| {
            tracing::warn!("what volumes share cannot be counted: {error}");
            BTreeMap::new()
        });
        let sharing = |id: &VolumeId| {
            let VolumeSharing { mapped_blocks, exclusive_blocks } = *counted.get(id)?;
            Some(SharingInfo { mapped_blocks, exclusive_blocks, age_seconds: 0, is_current: true })
        };
        // What cannot be read of one volume hides no other.
        let info = |(id, details)| {
            let highest_mapped = metadata.highest_mapped(id).unwrap_or(None);
            let sharing = sharing(&id);
            VolumeInfo {
                id,
                size_bytes: 0,
                details,
                highest_mapped,
                openers: 0,
                lacks_origin: false,
                when_full: None,
                queue_expired: false,
                waiting_for_space: 0,
                sharing,
            }
        };
        Ok(all.map(info).collect())
    }
}

fn count_all(metadata: &mut Metadata<FileDisk>) -> Result<BTreeMap<VolumeId, VolumeSharing>> {
    metadata.begin_count()?;
    match metadata.count_step(usize::MAX)? {
        Count::Done(volumes) => Ok(volumes.into_iter().collect()),
        Count::More | Count::GivenUp => unreachable!("nothing stops a count that nobody disturbs"),
    }
}
