//! What changes the shape of things that are in use: volumes rolled back and resized, pools that grow, metadata snapshots.

use super::api::{
    GrowPool, Grown, MetadataSnapshot, ResizeVolume, Resized, RollBackVolume, RolledBack, SCHEMA,
    SnapshotPair,
};
use super::catalog::{Operation, VolumeEntry};
use super::change::Change;
use super::name::VolumeName;
use super::reconcile::volume_bytes_limit;
use super::service::{NO_PANIC, Service, check_volume_size};
use crate::engine::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT};

impl Service {
    /// See [`super::api::PoolApi::roll_back`].
    pub(super) fn roll_back_volume(&self, name: &VolumeName, request: &RollBackVolume) -> Result<RolledBack> {
        let mut changes = self.begin_change()?;
        let (volume, to, keep) = {
            let catalog = self.catalog.read().expect(NO_PANIC);
            let volume = catalog.require(name)?.clone();
            let to = catalog.require(&request.to)?.clone();
            let keep = match &request.keep {
                Some(keep) => VolumeName::parse_new(keep.as_str())?,
                None => kept_name(name, |candidate| catalog.find(candidate).is_none())?,
            };
            let pair = SnapshotPair { origin: name.clone(), name: keep, read_only: false };
            let (_, entry) = catalog.plan_snapshots(&[pair])?.remove(0);
            (volume, to, entry)
        };
        if volume.id == to.id {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("volume `{name}` cannot be rolled back to itself"),
            )
            .hint("name one of its snapshots"));
        }
        require_writable(&volume)?;
        if volume.external_origin != to.external_origin {
            let what = format!("volumes `{name}` and `{}` have different external origins", to.name);
            return Err(Error::new(ErrorKind::Invalid, what)
                .hint(format!("take a snapshot of `{}`, and use that in its place", to.name)));
        }
        self.require_unused(
            &volume,
            request.force,
            "would not know that its contents change: unmount it and disconnect",
        )?;
        if to.size_bytes > volume.size_bytes {
            let what = format!(
                "volume `{name}` has {} bytes, fewer than the {} of `{}`",
                volume.size_bytes, to.size_bytes, to.name
            );
            let hint =
                format!("make it larger first: uthin volume resize POOL/{name} --size {}", to.size_bytes);
            return Err(Error::new(ErrorKind::Invalid, what).hint(hint));
        }
        self.carry_out(&mut changes, Operation::Snapshot(vec![keep.clone()]), |step| Command::RollBack {
            volume: volume.id,
            to: to.id,
            keep: keep.id,
            step,
        })
        .map_err(|error| error.context(format!("rolling volume `{name}` back to `{}`", to.name)))?;
        let kept = self.new_volume(&keep);
        Ok(RolledBack { schema: SCHEMA.to_owned(), name: name.clone(), to: to.name, kept })
    }

    /// See [`super::api::PoolApi::resize`].
    pub(super) fn resize_volume(&self, name: &VolumeName, request: &ResizeVolume) -> Result<Resized> {
        let mut changes = self.begin_change()?;
        let block_size = self.pool_status()?.block_size;
        let new = request.size_bytes;
        check_volume_size(new, volume_bytes_limit(block_size))?;
        let before = self.catalog.read().expect(NO_PANIC).require(name)?.clone();
        require_writable(&before)?;
        let (volume, old) = (before.id, before.size_bytes);
        if new < old {
            self.require_unused(&before, false, "would write past its new end: disconnect")?;
            if request.discard_rest {
                let blocks = block_size.blocks_to_hold(new)..u64::MAX;
                self.executor.run(Command::Unmap { volume, blocks })?;
            }
            self.executor.run(Command::Resize { volume, size_bytes: new }).map_err(|error| {
                if error.kind() != ErrorKind::WrongState {
                    return error.context(format!("volume `{name}`"));
                }
                let what = format!("volume `{name}` has data past its new end: {}", error.message());
                Error::new(ErrorKind::WrongState, what).hint(
                    "shrink the filesystem on it and fstrim what is behind, or drop that: --discard-rest",
                )
            })?;
        }
        let saved = self.amend(&mut changes, |catalog| {
            let entry = VolumeEntry { size_bytes: new, ..catalog.require(name)?.clone() };
            Ok((Change::Entries(vec![entry]), ()))
        });
        // What clients see follows what is on disk.
        let size_bytes = if saved.is_ok() { new } else { old };
        self.executor.run(Command::Resize { volume, size_bytes })?;
        saved?;
        Ok(Resized {
            schema: SCHEMA.to_owned(),
            name: name.clone(),
            size_bytes: new,
            old_size_bytes: old,
            notice: self.resized(volume, new),
        })
    }

    /// See [`super::api::PoolApi::grow`].
    pub(super) fn grow_pool(&self, request: &GrowPool) -> Result<Grown> {
        let _changes = self.begin_change()?;
        let before = self.pool_status()?;
        let block_bytes = before.block_size.bytes();
        if let Some(bytes) = request.data_bytes.filter(|bytes| *bytes / block_bytes < before.usage.data_total)
        {
            return Err(smaller("data", bytes, before.usage.data_total * block_bytes));
        }
        let meta_bytes = |blocks: u64| blocks * META_BLOCK_BYTES as u64;
        if let Some(bytes) =
            request.metadata_bytes.filter(|bytes| *bytes < meta_bytes(before.usage.metadata_total))
        {
            return Err(smaller("metadata", bytes, meta_bytes(before.usage.metadata_total)));
        }
        let most = meta_bytes(META_BLOCKS_LIMIT);
        if let Some(bytes) = request.metadata_bytes.filter(|bytes| *bytes > most) {
            let what = format!("the metadata cannot have {bytes} bytes: the format ends at {most}");
            return Err(Error::new(ErrorKind::Invalid, what).hint(format!("{most} would do")));
        }
        self.executor
            .run(Command::Grow { data_bytes: request.data_bytes, metadata_bytes: request.metadata_bytes })?;
        let after = self.pool_status()?;
        Ok(Grown {
            schema: SCHEMA.to_owned(),
            data_bytes: after.usage.data_total * block_bytes,
            old_data_bytes: before.usage.data_total * block_bytes,
            metadata_bytes: meta_bytes(after.usage.metadata_total),
            old_metadata_bytes: meta_bytes(before.usage.metadata_total),
        })
    }

    /// See [`super::api::PoolApi::reserve_metadata_snapshot`].
    pub(super) fn reserve_snapshot(&self) -> Result<MetadataSnapshot> {
        let _changes = self.begin_change()?;
        self.executor.run(Command::HoldMetadata)?;
        Ok(MetadataSnapshot { schema: SCHEMA.to_owned(), held_root: self.pool_status()?.held_root })
    }

    /// See [`super::api::PoolApi::release_metadata_snapshot`].
    pub(super) fn release_snapshot(&self) -> Result<MetadataSnapshot> {
        let _changes = self.begin_change()?;
        self.executor.run(Command::ReleaseMetadata)?;
        Ok(MetadataSnapshot { schema: SCHEMA.to_owned(), held_root: self.pool_status()?.held_root })
    }

    /// `Busy` when a client has the volume open, unless that is `forced`.
    fn require_unused(&self, volume: &VolumeEntry, forced: bool, why: &str) -> Result<()> {
        self.require_no_device_waits(volume)?;
        let openers = self
            .engine_volumes()?
            .iter()
            .find(|found| found.id == volume.id)
            .map_or(0, |found| found.openers);
        if openers == 0 || forced {
            return Ok(());
        }
        let what = format!("volume `{}` is in use by {openers} client(s)", volume.name);
        Err(Error::new(ErrorKind::Busy, what).hint(format!("they {why} them first")))
    }
}

fn require_writable(volume: &VolumeEntry) -> Result<()> {
    if !volume.read_only {
        return Ok(());
    }
    let what = format!("volume `{}` is read-only", volume.name);
    let hint = format!("uthin volume set POOL/{} --read-write", volume.name);
    Err(Error::new(ErrorKind::WrongState, what).hint(hint))
}

fn smaller(what: &str, bytes: u64, has: u64) -> Error {
    Error::new(ErrorKind::Invalid, format!("the pool has {has} bytes for {what} and cannot have {bytes}"))
        .hint("a pool only grows; to make it smaller, copy its volumes to a new one")
}

/// A name for what a volume held before it was rolled back: the first that is free.
fn kept_name(volume: &VolumeName, is_free: impl Fn(&VolumeName) -> bool) -> Result<VolumeName> {
    for number in 1.. {
        let name = VolumeName::parse_new(&format!("{volume}.before-rollback-{number}"))
            .map_err(|error| error.hint("choose a name for what the volume holds now: --keep NAME"))?;
        if is_free(&name) {
            return Ok(name);
        }
    }
    unreachable!("a pool has fewer volumes than there are numbers")
}
