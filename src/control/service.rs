//! What can be done with an open pool: one implementation for the daemon and for commands that open the pool themselves.
//!
//! Every change goes through the three steps of [`super::catalog`], one change at a time; readers are not held up by it.
//! What must hold: a name is given to a client only when catalog and metadata both have the volume, durably; after a
//! change whose outcome is unknown (a failing disk) nothing more is changed, because the next open is to decide.

use super::api::{
    CreateVolume, DataSpace, Deleted, ExportInfo, ExportList, ExportVolume, GROUP_LIMIT, GrowPool, Grown,
    Health, MessageDone, MessageRequest, MetadataSnapshot, MetadataSpace, Mode, NewSnapshots, NewVolume,
    PoolApi, PoolInfo, PoolPlaces, PoolSettings, RenameVolume, Renamed, ResizeVolume, Resized,
    RollBackVolume, RolledBack, SCHEMA, ServedBy, SetPool, SetVolume, Sharing, SnapshotGroup, SnapshotPair,
    UnexportVolume, Unexported, VolumeInfo, VolumeList, VolumeSettings,
};
use super::block_devices::BlockDevices;
use super::catalog::{Catalog, Operation, Pending, VolumeEntry};
use super::catalog_file::CatalogStore;
use super::catalog_log::Durability;
use super::change::Change;
use super::events::Events;
use super::label;
use super::lasting_devices::LastingDevices;
use super::name::VolumeName;
use super::origin::ExternalOrigin;
use super::reconcile::{Note, volume_bytes_limit};
use super::settle::{PoolSettled, SettlePool};
use super::space::filesystem_free_bytes;
use super::time;
use crate::engine::{self, Answer, Behaviour, Command, IdStep, PoolStatus, WhenFull};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::nbd::Address;
use crate::units::{META_BLOCK_BYTES, SECTOR_BYTES, TransactionId, VolumeId};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::{Duration, Instant};

/// Carries commands to whoever owns the metadata.
pub trait Executor: Send + Sync {
    /// Does `command` and waits for its answer.
    fn run(&self, command: Command) -> Result<Answer>;
}

impl<T: Executor + ?Sized> Executor for Arc<T> {
    fn run(&self, command: Command) -> Result<Answer> {
        (**self).run(command)
    }
}

/// What a [`Service`] is made of.
pub struct Parts {
    /// The pool's directory, absolute.
    pub path: PathBuf,
    /// Who owns the metadata.
    pub executor: Box<dyn Executor>,
    /// Where the catalog is kept.
    pub store: Box<dyn CatalogStore>,
    /// The catalog, in step with the metadata.
    pub catalog: Catalog,
    /// What had to be put right at opening.
    pub notes: Vec<Note>,
}

/// An open pool with its catalog.
pub struct Service {
    path: PathBuf,
    pub(super) executor: Box<dyn Executor>,
    store: Box<dyn CatalogStore>,
    pub(super) catalog: RwLock<Catalog>,
    change: Mutex<Changes>,
    notes: Vec<Note>,
    serving: OnceLock<(ServedBy, Vec<Address>)>,
    events: Arc<Events>,
    /// Block devices; a pool that nobody serves has none.
    pub(super) block_devices: OnceLock<Arc<BlockDevices>>,
    /// Block devices that outlive their daemon.
    pub(super) lasting_devices: OnceLock<Arc<LastingDevices>>,
}

/// Whether changes are possible; locked for the length of one.
pub(super) enum Changes {
    Allowed,
    /// Catalog and metadata may be one step apart, because of this; opening the pool again puts it right.
    Uncertain(Error),
    /// The pool is being closed.
    Closed,
}

impl Service {
    /// Takes over an open pool.
    pub fn new(parts: Parts) -> Self {
        let Parts { path, executor, store, catalog, notes } = parts;
        let change = Mutex::new(Changes::Allowed);
        let catalog = RwLock::new(catalog);
        let (serving, block_devices, lasting_devices) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let events = Arc::new(Events::default());
        Service {
            path,
            executor,
            store,
            catalog,
            change,
            notes,
            serving,
            events,
            block_devices,
            lasting_devices,
        }
    }

    /// What happens to the pool.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The pool's directory.
    pub(super) fn directory(&self) -> &Path {
        &self.path
    }

    /// Says who serves the pool, and where; once.
    pub fn serve_as(&self, served_by: ServedBy, addresses: Vec<Address>) {
        self.serving.set((served_by, addresses)).expect("a daemon begins to serve once");
    }

    /// Whether a daemon has it, in which work goes on by itself.
    pub(super) fn is_served(&self) -> bool {
        self.serving.get().is_some()
    }

    /// The URIs of an export; none if nobody serves. The export without a name stands for all.
    pub(super) fn uris(&self, export: &str) -> Vec<String> {
        self.serving.get().map_or_else(Vec::new, |(_, addresses)| {
            addresses.iter().map(|address| address.uri(export)).collect()
        })
    }

    /// The number of the volume of that name.
    pub fn volume_id(&self, name: &str) -> Option<VolumeId> {
        let catalog = self.catalog.read().expect(NO_PANIC);
        catalog.volumes.by_name(name).map(|entry| entry.id)
    }

    /// Whether clients may only read the volume. To be asked after it has been opened: then a change to read-only has
    /// either seen the opener and been refused, or shows here.
    pub fn is_read_only(&self, id: VolumeId) -> bool {
        self.catalog.read().expect(NO_PANIC).by_id(id).is_some_and(|entry| entry.read_only)
    }

    /// Names of all volumes, in order.
    pub fn volume_names(&self) -> Vec<String> {
        self.catalog.read().expect(NO_PANIC).volumes.names().map(VolumeName::to_string).collect()
    }

    /// Goes on with the deletions that an earlier run left unfinished, if the pool can be changed.
    pub fn resume_deletions(&self) -> Result<()> {
        if let engine::Mode::ReadOnly(_) = self.pool_status()?.mode {
            return Ok(());
        }
        let ids = self.catalog.read().expect(NO_PANIC).deleting.clone();
        for volume in ids {
            match self.executor.run(Command::Delete { volume, step: None }) {
                Ok(_) => tracing::info!("freeing the blocks of deleted volume {volume}"),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error.context(format!("going on with the deletion of volume {volume}")));
                }
            }
        }
        Ok(())
    }

    /// Ends it: the catalog forgets deletions that are through and is one file, running requests finish, everything is
    /// committed.
    pub fn close(&self) -> Result<()> {
        let mut changes = self.change.lock().expect(NO_PANIC);
        *changes = Changes::Closed;
        let tidied = self.finished_deletions().and_then(|freed| match freed {
            Some(freed) => self.keep(&[freed], Durability::WithTheNext),
            None => Ok(()),
        });
        if let Err(error) = tidied {
            // Only the list of deletions is older than it could be; the next open looks again.
            tracing::warn!("the catalog keeps finished deletions: {error}");
        }
        if let Err(error) = self.store.finish(&self.catalog.read().expect(NO_PANIC)) {
            tracing::warn!("the catalog stays in two files until the next open: {error}");
        }
        self.executor.run(Command::Close).map(drop)
    }

    /// From now on a full pool answers at once: before the end, so that nobody is waited for in vain.
    pub fn let_nobody_wait(&self) -> Result<()> {
        let behaviour = Behaviour { when_full: Some(WhenFull::Error), ..Behaviour::default() };
        self.executor.run(Command::Configure(behaviour))?;
        let catalog = self.catalog.read().expect(NO_PANIC);
        let waiting = catalog.volumes.iter().filter(|entry| entry.when_full.is_some());
        let mut commands =
            waiting.map(|entry| Command::ConfigureVolume { volume: entry.id, when_full: None });
        commands.try_for_each(|command| self.executor.run(command).map(drop))
    }

    pub(super) fn pool_status(&self) -> Result<Box<PoolStatus>> {
        match self.executor.run(Command::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Done
            | Answer::Deleting { .. }
            | Answer::Volumes(_)
            | Answer::Counting(_)
            | Answer::Settling(_) => {
                unreachable!("the answer is a status")
            }
        }
    }

    /// Begins a change: nobody else changes anything until the guard is dropped.
    pub(super) fn begin_change(&self) -> Result<MutexGuard<'_, Changes>> {
        let guard = self.change.lock().expect(NO_PANIC);
        match &*guard {
            Changes::Allowed => self.require_changeable().map(|()| guard),
            Changes::Uncertain(error) => Err(Error::new(
                ErrorKind::Failed,
                format!("nothing can be changed since an earlier operation failed: {}", error.message()),
            )
            .hint("close the pool and open it again")),
            Changes::Closed => Err(Error::new(ErrorKind::WrongState, "the pool is being closed")),
        }
    }

    /// A read-only pool keeps its catalog as it is, too.
    fn require_changeable(&self) -> Result<()> {
        match self.pool_status()?.mode {
            engine::Mode::ReadOnly(why) => Err(refused_by(&why)),
            engine::Mode::Write | engine::Mode::OutOfDataSpace | engine::Mode::Failed(_) => Ok(()),
        }
    }

    /// Keeps changes of the catalog, and makes them. After an error nothing has changed here.
    fn keep(&self, changes: &[Change], durability: Durability) -> Result<()> {
        self.store.keep(&self.catalog.read().expect(NO_PANIC), changes, durability)?;
        self.apply(changes);
        Ok(())
    }

    fn apply(&self, changes: &[Change]) {
        let mut catalog = self.catalog.write().expect(NO_PANIC);
        for change in changes {
            catalog.apply(change).expect("changes of a catalog are planned by what is in it");
        }
    }

    /// The numbers among `deleting` that the pool is through with, if there are any.
    fn finished_deletions(&self) -> Result<Option<Change>> {
        if self.catalog.read().expect(NO_PANIC).deleting.is_empty() {
            return Ok(None);
        }
        let still: BTreeSet<_> = self.pool_status()?.deleting.into_iter().collect();
        let finished: BTreeSet<_> =
            self.catalog.read().expect(NO_PANIC).deleting.difference(&still).copied().collect();
        if finished.is_empty() {
            return Ok(None);
        }
        // Finished is not yet durable: without this commit, a crash would bring a volume back that nobody knows.
        self.executor.run(Command::Commit)?;
        Ok(Some(Change::Freed(finished)))
    }

    /// The three steps of a change; the page of [`super::catalog`] says why they are safe.
    pub(super) fn carry_out(
        &self,
        changes: &mut Changes,
        operation: Operation,
        command: impl FnOnce(IdStep) -> Command,
    ) -> Result<Answer> {
        let to = TransactionId(self.catalog.read().expect(NO_PANIC).transaction_id).next();
        self.carry_out_to(changes, to, operation, command)
    }

    /// As [`Service::carry_out`], with a transaction id of the caller's choice, which is not the present one.
    pub(super) fn carry_out_to(
        &self,
        changes: &mut Changes,
        to: TransactionId,
        operation: Operation,
        command: impl FnOnce(IdStep) -> Command,
    ) -> Result<Answer> {
        let mut first: Vec<_> = self.finished_deletions()?.into_iter().collect();
        let (from, deleted) = {
            let catalog = self.catalog.read().expect(NO_PANIC);
            let deleted = match &operation {
                Operation::Delete(name) => catalog.find(name).map(|entry| entry.id),
                Operation::Create(_) | Operation::Snapshot(_) | Operation::SetTransactionId => None,
            };
            (TransactionId(catalog.transaction_id), deleted)
        };
        first.push(Change::Begin(Pending { transaction_id: to.0, operation: operation.clone() }));
        self.keep(&first, Durability::Now).map_err(|error| error.context("nothing was changed"))?;
        let answer = match self.executor.run(command(IdStep { from, to })) {
            Ok(answer) => answer,
            Err(error) => {
                if self.certainly_at(from) {
                    self.keep_later(&[Change::Dropped], "an operation that did not happen");
                } else {
                    *changes = Changes::Uncertain(error.clone());
                }
                return Err(error);
            }
        };
        let mut last = vec![Change::Done];
        if let (Some(id), Answer::Deleting { finished: true }) = (deleted, &answer) {
            last.push(Change::Freed(BTreeSet::from([id])));
        }
        self.keep_later(&last, "an operation that has happened");
        self.events.done(&operation, deleted.map(VolumeId::get));
        Ok(answer)
    }

    /// The third step. What is to be kept of it is also to be seen in the metadata: that it is not kept, or not durably, is put
    /// right by the next change or the next open.
    fn keep_later(&self, changes: &[Change], what: &str) {
        let catalog = self.catalog.read().expect(NO_PANIC);
        if let Err(error) = self.store.keep(&catalog, changes, Durability::WithTheNext) {
            tracing::warn!("the catalog has {what} as pending until the next change: {error}");
        }
        drop(catalog);
        self.apply(changes);
    }

    /// A change of what the metadata knows nothing of, at the transaction id that it has: what `plan` makes of the catalog.
    /// After an error the old catalog is in force here; what is on disk, old or new, fits the metadata as well.
    pub(super) fn amend<T>(
        &self,
        _changes: &mut Changes,
        plan: impl FnOnce(&Catalog) -> Result<(Change, T)>,
    ) -> Result<T> {
        let (change, value) = plan(&self.catalog.read().expect(NO_PANIC))?;
        self.keep(&[change], Durability::Now).map_err(|error| error.context("nothing was changed"))?;
        Ok(value)
    }

    fn set_volume(&self, name: &VolumeName, request: &SetVolume) -> Result<VolumeSettings> {
        let mut changes = self.begin_change()?;
        let before = self.catalog.read().expect(NO_PANIC).require(name)?.clone();
        let moved = request.external_origin.as_deref();
        let moved = moved.map(|path| self.plan_origin(&before, path)).transpose()?;
        let closes = request.read_only == Some(true) && !before.read_only;
        if closes {
            self.refuse_writers(&before)?;
        }
        let amended = self.amend(&mut changes, |catalog| {
            let mut entry = catalog.require(name)?.clone();
            if let Some(read_only) = request.read_only {
                entry.read_only = read_only;
            }
            if let Some(when_full) = request.when_full {
                entry.when_full = when_full.policy();
            }
            label::apply(&mut entry.labels, &request.labels)
                .map_err(|error| error.context(format!("volume `{name}`")))?;
            let mut entries = vec![entry];
            if let Some(moved) = &moved {
                moved.amend(catalog, &mut entries);
            }
            let entry = entries[0].clone();
            Ok((Change::Entries(entries), entry))
        });
        if closes && amended.is_err() {
            self.show_read_only(before.id, false);
        }
        let entry = amended?;
        if let Some(moved) = moved {
            self.put_behind(moved);
        }
        if request.when_full.is_some() {
            let command = Command::ConfigureVolume { volume: entry.id, when_full: entry.when_full };
            self.executor.run(command)?;
        }
        Ok(VolumeSettings {
            schema: SCHEMA.to_owned(),
            name: entry.name,
            id: entry.id.get(),
            labels: entry.labels,
            read_only: entry.read_only,
            external_origin: entry.external_origin.as_ref().map(ExternalOrigin::info),
            when_full: entry.when_full,
        })
    }

    fn delete_volume(&self, name: &VolumeName) -> Result<Deleted> {
        let mut changes = self.begin_change()?;
        let entry = self.catalog.read().expect(NO_PANIC).require(name)?.clone();
        self.require_no_device_waits(&entry)?;
        let volume = entry.id;
        let answer = self
            .carry_out(&mut changes, Operation::Delete(name.clone()), |step| Command::Delete {
                volume,
                step: Some(step),
            })
            .map_err(|error| {
                if error.kind() == ErrorKind::Busy {
                    return self.in_use(volume, name);
                }
                error.context(format!("deleting volume `{name}`"))
            })?;
        let finished = answer == Answer::Deleting { finished: true };
        Ok(Deleted { schema: SCHEMA.to_owned(), name: name.clone(), finished })
    }

    /// From here on clients get the volume for reading only. `Busy`, and all as before, when one has it open: it may be
    /// writing. The order matters: who opens it after we have counted sees what was set before.
    fn refuse_writers(&self, entry: &VolumeEntry) -> Result<()> {
        self.require_no_device_waits(entry)?;
        self.show_read_only(entry.id, true);
        let openers = self.engine_volumes().map(|volumes| {
            volumes.iter().find(|volume| volume.id == entry.id).map_or(0, |volume| volume.openers)
        });
        let refusal = match openers {
            Ok(0) => return Ok(()),
            Ok(_) => Error::new(
                ErrorKind::Busy,
                format!("volume `{}` is in use by a client, which may be writing", entry.name),
            )
            .hint("disconnect its clients first; `uthin volume list POOL` counts them"),
            Err(error) => error,
        };
        self.show_read_only(entry.id, false);
        Err(refusal)
    }

    /// What clients that come now get; on disk nothing changes.
    fn show_read_only(&self, id: VolumeId, read_only: bool) {
        let mut catalog = self.catalog.write().expect(NO_PANIC);
        if let Some(entry) = catalog.by_id(id).cloned() {
            catalog.volumes.replace(VolumeEntry { read_only, ..entry }).expect("its name is its own");
        }
    }

    pub(super) fn engine_volumes(&self) -> Result<Vec<engine::VolumeInfo>> {
        match self.executor.run(Command::Volumes)? {
            Answer::Volumes(volumes) => Ok(volumes),
            Answer::Done
            | Answer::Deleting { .. }
            | Answer::Status(_)
            | Answer::Counting(_)
            | Answer::Settling(_) => {
                unreachable!("the answer is a list")
            }
        }
    }

    /// With what they share counted anew, if that is out of date and does not take too long: for who asks, a moment ago is
    /// as good as now, and a count that takes longer is there for the next. `counts` is how many there have been.
    fn counted_volumes(&self, counts: u64) -> Result<Vec<engine::VolumeInfo>> {
        if self.executor.run(Command::CountShared)? == Answer::Counting(true) {
            let deadline = Instant::now() + COUNT_PATIENCE;
            // The volumes themselves are asked for once: that takes the keeper's time, and there may be very many.
            while self.pool_status()?.counts == counts && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.engine_volumes()
    }

    /// Whether the metadata is known to be at `id`, in core and on disk.
    fn certainly_at(&self, id: TransactionId) -> bool {
        self.pool_status().is_ok_and(|status| {
            status.transaction_id == id && !matches!(status.mode, engine::Mode::Failed(_))
        })
    }

    /// What the catalog knows of a volume, and the pool, if that can be asked (then with the size of its blocks).
    fn volume_info(
        &self,
        catalog: &Catalog,
        entry: &VolumeEntry,
        found: Option<(u64, engine::VolumeInfo)>,
    ) -> VolumeInfo {
        let details = found.as_ref().map(|(_, info)| info.details);
        VolumeInfo {
            name: entry.name.clone(),
            id: entry.id.get(),
            size_bytes: entry.size_bytes,
            mapped_bytes: found
                .as_ref()
                .map(|(block_size, info)| info.details.mapped_blocks.saturating_mul(*block_size)),
            mapped_end_bytes: found.as_ref().map(|(block_size, info)| {
                info.highest_mapped.map_or(0, |block| block.0.saturating_add(1).saturating_mul(*block_size))
            }),
            sharing: found.as_ref().and_then(|(block_size, info)| Some(shared(info.sharing?, *block_size))),
            origin: entry.origin.and_then(|id| catalog.by_id(id)).map(|origin| origin.name.clone()),
            created: entry.created_unix_seconds.map(time::rfc3339),
            transaction_id: details.map(|details| details.transaction_id.0),
            creation_time: details.map(|details| details.creation_time.0),
            snapshotted_time: details.map(|details| details.snapshotted_time.0),
            labels: entry.labels.clone(),
            read_only: entry.read_only,
            external_origin: entry.external_origin.as_ref().map(ExternalOrigin::info),
            when_full: entry.when_full,
            queue_expired: found.as_ref().map(|(_, info)| info.queue_expired),
            waiting_for_space: found.as_ref().map(|(_, info)| info.waiting_for_space as u64),
            open: found.map(|(_, info)| info.openers),
            exports: self.exports_of(entry),
        }
    }

    pub(super) fn new_volume(&self, entry: &VolumeEntry) -> NewVolume {
        let catalog = self.catalog.read().expect(NO_PANIC);
        NewVolume {
            schema: SCHEMA.to_owned(),
            name: entry.name.clone(),
            id: entry.id.get(),
            size_bytes: entry.size_bytes,
            origin: entry.origin.and_then(|id| catalog.by_id(id)).map(|origin| origin.name.clone()),
            created: time::rfc3339(entry.created_unix_seconds.unwrap_or_default()),
            labels: entry.labels.clone(),
            read_only: entry.read_only,
            external_origin: entry.external_origin.as_ref().map(ExternalOrigin::info),
        }
    }
}

fn shared(sharing: engine::SharingInfo, block_bytes: u64) -> Sharing {
    let engine::SharingInfo { mapped_blocks, exclusive_blocks, age_seconds, is_current } = sharing;
    Sharing {
        exclusive_bytes: exclusive_blocks.saturating_mul(block_bytes),
        shared_bytes: mapped_blocks.saturating_sub(exclusive_blocks).saturating_mul(block_bytes),
        as_of: time::rfc3339(time::now_unix_seconds().saturating_sub(age_seconds)),
        current: is_current,
    }
}

/// How long who asks for volumes waits for a count of what they share.
const COUNT_PATIENCE: Duration = Duration::from_millis(500);

/// Nothing that can panic runs under the locks here.
pub(super) const NO_PANIC: &str = "nobody panics while holding this lock";

impl PoolApi for Service {
    fn status(&self) -> Result<PoolInfo> {
        let status = self.pool_status()?;
        let catalog = self.catalog.read().expect(NO_PANIC);
        let block_size = status.block_size.bytes();
        let usage = status.usage;
        let meta_bytes = |blocks: u64| blocks * META_BLOCK_BYTES as u64;
        let (mode, failure) = match status.mode {
            engine::Mode::Failed(error) => (Mode::Fail, Some(error)),
            engine::Mode::ReadOnly(error) => (Mode::Ro, Some(error)),
            engine::Mode::Write => (Mode::Rw, None),
            engine::Mode::OutOfDataSpace => (Mode::OutOfDataSpace, None),
        };
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut info = PoolInfo {
            schema: SCHEMA.to_owned(),
            pool: name.unwrap_or_else(|| "/".to_owned()),
            path: self.path.to_string_lossy().into_owned(),
            mode,
            health: Health::Ok,
            failure,
            transaction_id: status.transaction_id.0,
            time: status.time.0,
            block_size_bytes: block_size,
            data: DataSpace {
                total_bytes: usage.data_total * block_size,
                used_bytes: usage.data_allocated * block_size,
                free_bytes: usage.data_total.saturating_sub(usage.data_allocated) * block_size,
                filesystem_free_bytes: filesystem_free_bytes(&self.path.join("data")),
                times_full: status.times_full.data,
            },
            metadata: MetadataSpace {
                total_bytes: meta_bytes(usage.metadata_total),
                used_bytes: meta_bytes(usage.metadata_allocated),
                free_bytes: meta_bytes(
                    usage.metadata_total.saturating_sub(usage.metadata_allocated + usage.metadata_reserve),
                ),
                reserve_bytes: meta_bytes(usage.metadata_reserve),
                is_full: status.out_of_metadata_space,
                times_full: status.times_full.metadata,
            },
            volumes: status.volumes as u64,
            virtual_bytes: catalog.volumes.total_bytes(),
            deleting: status.deleting.iter().map(|id| id.get()).collect(),
            held_root: status.held_root,
            discard: status.discard,
            to_give_back_bytes: status.to_give_back * block_size,
            zero_new_blocks: status.zero_new_blocks,
            small_writes: status.small_writes,
            partial_blocks: status.partial_blocks,
            when_full: if self.serving.get().is_some() {
                status.when_full
            } else {
                catalog.options.when_full
            },
            queue_expired: status.queue_expired,
            waiting_for_space: status.waiting_for_space as u64,
            map_bytes: status.map_bytes,
            journal: status.journal.into(),
            places: PoolPlaces::of(&self.path),
            options: catalog.options,
            needs_check: status.needs_check,
            served_by: self.serving.get().map(|(served_by, _)| served_by.clone()),
            exports: self.uris(""),
            removed: [("metadata", status.removed.metadata), ("data", status.removed.data)]
                .into_iter()
                .filter(|(_, is_removed)| *is_removed)
                .map(|(part, _)| part.to_owned())
                .collect(),
            notes: self.notes.iter().map(|note| note.text.clone()).collect(),
        };
        info.notes.extend(self.device_notes(&catalog));
        info.notes.extend(info.data.overcommitment(info.options.low_water));
        info.health = info.assess();
        Ok(info)
    }

    fn set_pool(&self, request: &SetPool) -> Result<PoolSettings> {
        for amount in [request.low_water, request.min_free].into_iter().flatten() {
            amount.check()?;
        }
        let mut changes = self.begin_change()?;
        let options = self.amend(&mut changes, |catalog| {
            let options = catalog.options.changed_by(request);
            Ok((Change::Options(options), options))
        })?;
        // What was not mentioned stays as the daemon was told, also where that is for its own time.
        let SetPool { discard, zero_new_blocks, small_writes, when_full, .. } = *request;
        let behaviour = Behaviour { discard, zero_new_blocks, small_writes, when_full };
        if behaviour != Behaviour::default() {
            self.executor.run(Command::Configure(behaviour))?;
        }
        let in_force =
            discard.is_none_or(|discard| self.pool_status().is_ok_and(|status| status.discard == discard));
        Ok(PoolSettings { schema: SCHEMA.to_owned(), options, in_force })
    }

    fn volumes(&self) -> Result<VolumeList> {
        let volumes = self.pool_status().and_then(|status| {
            let volumes = self.counted_volumes(status.counts)?;
            Ok((status.block_size.bytes(), volumes))
        });
        let catalog = self.catalog.read().expect(NO_PANIC);
        let mut list: Vec<_> = match volumes {
            // One that is not in the catalog is just being made or deleted: its operation is not through.
            Ok((block_size, volumes)) => volumes
                .into_iter()
                .filter_map(|info| Some((catalog.by_id(info.id)?, Some((block_size, info)))))
                .map(|(entry, info)| self.volume_info(&catalog, entry, info))
                .collect(),
            // The catalog goes on knowing what it knows; the pool's status says what is wrong.
            Err(error) if knows_no_volumes(&error) => {
                tracing::warn!("the list of volumes is the catalog's alone: {error}");
                catalog.volumes.iter().map(|entry| self.volume_info(&catalog, entry, None)).collect()
            }
            Err(error) => return Err(error),
        };
        list.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(VolumeList { schema: SCHEMA.to_owned(), volumes: list })
    }

    fn create(&self, request: &CreateVolume) -> Result<NewVolume> {
        let name = VolumeName::parse_new(request.name.as_str())?;
        label::check_count(&request.labels)?;
        let origin = request.external_origin.as_deref();
        let (external_origin, origin) =
            origin.map(|path| ExternalOrigin::examine(path, &self.path)).transpose()?.unzip();
        let mut changes = self.begin_change()?;
        let size_bytes = request
            .size_bytes
            .or(external_origin.as_ref().map(|origin| origin.size_bytes))
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "the volume's size is missing").hint("give one"))?;
        check_volume_size(size_bytes, volume_bytes_limit(self.pool_status()?.block_size))?;
        self.require_min_free().map_err(|error| error.context(format!("volume `{name}` is not made")))?;
        let labels = request.labels.clone();
        let entry =
            self.catalog.read().expect(NO_PANIC).plan_volume(name, size_bytes, labels, external_origin)?;
        let volume = entry.id;
        self.carry_out(&mut changes, Operation::Create(entry.clone()), |step| Command::CreateVolume {
            volume,
            size_bytes,
            origin,
            step,
        })
        .map_err(|error| error.context(format!("creating volume `{}`", entry.name)))?;
        Ok(self.new_volume(&entry))
    }

    fn snapshot(&self, request: &SnapshotPair) -> Result<NewVolume> {
        let mut made = self.snapshot_group(&SnapshotGroup { snapshots: vec![request.clone()] })?.snapshots;
        Ok(made.pop().expect("one snapshot was asked for and made"))
    }

    fn snapshot_group(&self, request: &SnapshotGroup) -> Result<NewSnapshots> {
        check_group(request)?;
        let mut changes = self.begin_change()?;
        let planned = self.catalog.read().expect(NO_PANIC).plan_snapshots(&request.snapshots)?;
        let first = &request.snapshots[0].name;
        self.require_min_free().map_err(|error| error.context(format!("snapshot `{first}` is not made")))?;
        let pairs = planned.iter().map(|(origin, entry)| (*origin, entry.id)).collect();
        let entries: Vec<_> = planned.into_iter().map(|(_, entry)| entry).collect();
        self.carry_out(&mut changes, Operation::Snapshot(entries.clone()), |step| Command::Snapshot {
            pairs,
            step,
        })
        .map_err(|error| {
            let words: Vec<_> = request
                .snapshots
                .iter()
                .map(|pair| format!("snapshot `{}` of volume `{}`", pair.name, pair.origin))
                .collect();
            error.context(words.join(", "))
        })?;
        let snapshots = entries.iter().map(|entry| self.new_volume(entry)).collect();
        Ok(NewSnapshots { schema: SCHEMA.to_owned(), snapshots })
    }

    fn rename(&self, name: &VolumeName, request: &RenameVolume) -> Result<Renamed> {
        let new = VolumeName::parse_new(request.name.as_str())?;
        let mut changes = self.begin_change()?;
        let id = self.amend(&mut changes, |catalog| {
            catalog.require(name)?;
            catalog.require_free(&new)?;
            let entry = VolumeEntry { name: new.clone(), ..catalog.require(name)?.clone() };
            let id = entry.id;
            Ok((Change::Entries(vec![entry]), id))
        })?;
        self.renamed(Some(id), &new);
        Ok(Renamed { schema: SCHEMA.to_owned(), name: new, old_name: name.clone(), id: id.get() })
    }

    fn set(&self, name: &VolumeName, request: &SetVolume) -> Result<VolumeSettings> {
        once_clients_have_gone(|| self.set_volume(name, request))
    }

    fn roll_back(&self, name: &VolumeName, request: &RollBackVolume) -> Result<RolledBack> {
        self.roll_back_volume(name, request)
    }

    fn resize(&self, name: &VolumeName, request: &ResizeVolume) -> Result<Resized> {
        once_clients_have_gone(|| self.resize_volume(name, request))
    }

    fn grow(&self, request: &GrowPool) -> Result<Grown> {
        self.grow_pool(request)
    }

    fn settle(&self, request: &SettlePool) -> Result<PoolSettled> {
        self.settle_partial(*request)
    }

    fn reserve_metadata_snapshot(&self) -> Result<MetadataSnapshot> {
        self.reserve_snapshot()
    }

    fn release_metadata_snapshot(&self) -> Result<MetadataSnapshot> {
        self.release_snapshot()
    }

    fn message(&self, request: &MessageRequest) -> Result<MessageDone> {
        self.do_message(request)
    }

    fn exports(&self) -> Result<ExportList> {
        Ok(self.list_exports())
    }

    fn export(&self, name: &VolumeName, request: &ExportVolume) -> Result<ExportInfo> {
        self.export_volume(name, request)
    }

    fn unexport(&self, name: &VolumeName, request: &UnexportVolume) -> Result<Unexported> {
        self.unexport_volume(name, request)
    }

    fn delete(&self, name: &VolumeName) -> Result<Deleted> {
        once_clients_have_gone(|| self.delete_volume(name))
    }
}
/// A third of a second in all.
const LEAVING_PAUSES_MS: [u64; 6] = [5, 10, 20, 40, 80, 160];

/// Tries again for a little while what a client is in the way of: who has just said good-bye may not have been heard yet, as the `nbdcopy` of
/// the line before in a script. No lock is held in between.
fn once_clients_have_gone<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    for pause_ms in LEAVING_PAUSES_MS {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Busy => {
                std::thread::sleep(Duration::from_millis(pause_ms));
            }
            result => return result,
        }
    }
    attempt()
}

/// What a change of a pool that is read-only because of `why` is answered.
pub(super) fn refused_by(why: &Error) -> Error {
    let message = format!("the pool is read-only and takes no changes: {}", why.message());
    let kind = if why.kind() == ErrorKind::NeedsCheck { ErrorKind::NeedsCheck } else { ErrorKind::Failed };
    let refused = Error::new(kind, message);
    match why.next_step() {
        Some(hint) => refused.hint(hint),
        None => refused,
    }
}

/// Whether an error of the pool's is one by which it cannot tell of its volumes, now or ever.
fn knows_no_volumes(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Failed | ErrorKind::Corrupt | ErrorKind::Io => true,
        ErrorKind::Unsupported
        | ErrorKind::NeedsCheck
        | ErrorKind::Busy
        | ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::NoDataSpace
        | ErrorKind::NoMetadataSpace
        | ErrorKind::Invalid
        | ErrorKind::WrongState => false,
    }
}

/// What is wrong with a group whatever the pool holds.
fn check_group(request: &SnapshotGroup) -> Result<()> {
    let count = request.snapshots.len();
    if count == 0 || count > GROUP_LIMIT {
        let message = format!("a group has 1 to {GROUP_LIMIT} snapshots, and {count} were asked for");
        return Err(Error::new(ErrorKind::Invalid, message).hint("make several groups"));
    }
    let (mut origins, mut names) = (HashSet::new(), HashSet::new());
    for pair in &request.snapshots {
        VolumeName::parse_new(pair.name.as_str())?;
        if !origins.insert(&pair.origin) {
            let message = format!("volume `{}` is in the group twice", pair.origin);
            return Err(Error::new(ErrorKind::Invalid, message).hint("name each volume once"));
        }
        if !names.insert(&pair.name) {
            let message = format!("two snapshots of the group would be called `{}`", pair.name);
            return Err(Error::new(ErrorKind::Invalid, message).hint("give each a name of its own"));
        }
    }
    Ok(())
}

/// Who forgets the unit gets few bytes.
pub(super) fn size_that_would_do(size_bytes: u64) -> String {
    match size_bytes {
        0..SECTOR_BYTES => "give it with a unit, as in 10G".to_owned(),
        _ => format!("{} would do", size_bytes / SECTOR_BYTES * SECTOR_BYTES),
    }
}

pub(super) fn check_volume_size(size_bytes: u64, limit_bytes: u64) -> Result<()> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        let message =
            format!("a volume cannot have {size_bytes} bytes: sizes are multiples of {SECTOR_BYTES}, not 0");
        return Err(Error::new(ErrorKind::Invalid, message).hint(size_that_would_do(size_bytes)));
    }
    if size_bytes > limit_bytes {
        let message =
            format!("a volume cannot have {size_bytes} bytes: {limit_bytes} are the most in this pool");
        return Err(Error::new(ErrorKind::Invalid, message).hint(format!("{limit_bytes} would do")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
