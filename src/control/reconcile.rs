//! Which of the two is ahead, catalog or metadata: asked at every open, answered without anybody's help.
//!
//! The rules, in order:
//!
//! 1. The metadata's transaction id is the catalog's: a pending operation did not happen, and is dropped.
//! 2. It is the pending operation's: that happened, and is brought into the catalog.
//! 3. Neither, or no catalog at all: the catalog is stale or the metadata foreign. Names stay with the volumes that are
//!    certainly the same.
//!
//! Then, whatever the ids said, volumes are matched. One that the catalog does not know appears under its number, as large
//! as what is mapped in it. An entry without its volume is dropped and listed as lost. Deletions go on only under rules 1
//! and 2: a stale catalog never deletes anything. Nothing here reads or writes a file.

use super::catalog::{Catalog, VolumeEntry};
use super::label::Labels;
use super::name::VolumeName;
use crate::error::Result;
use crate::units::{BlockSize, TransactionId, VirtualBlock, VolumeId};
use std::collections::BTreeMap;

/// The most blocks that a volume can have here: 4 PiB of the smallest. Keeps map tables of volumes with absurd sizes,
/// which a foreign pool may hold, from taking all memory.
const VOLUME_BLOCKS_LIMIT: u64 = 1 << 36;
/// The most bytes, whatever the block size: far enough below 2^63, where the offsets of files and of NBD end.
const VOLUME_BYTES_LIMIT: u64 = 1 << 62;

/// The largest volume that a pool of this block size can have.
pub fn volume_bytes_limit(block_size: BlockSize) -> u64 {
    VOLUME_BLOCKS_LIMIT.saturating_mul(block_size.bytes()).min(VOLUME_BYTES_LIMIT)
}

/// A volume that the metadata holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundVolume {
    /// Its number.
    pub id: VolumeId,
    /// The pool's transaction id when it was made.
    pub created: TransactionId,
}

/// What kind of thing was found not to fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// An operation that was interrupted.
    Interrupted,
    /// Transaction ids that are apart.
    TransactionId,
    /// There is no catalog.
    NoCatalog,
    /// A name without a volume.
    LostVolume,
    /// A volume without a name.
    UnknownVolume,
    /// A size that is less than what is mapped, and stays.
    VolumeSize,
    /// A volume that has become larger behind the catalog's back.
    VolumeGrown,
    /// A volume whose map cannot be read.
    UnreadableMap,
    /// A journal that an earlier daemon left behind.
    Journal,
    /// A block device that an earlier daemon left behind.
    BlockDevice,
}

/// What was put right, or would have to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// What kind of thing.
    pub kind: NoteKind,
    /// In words.
    pub text: String,
}

/// What opening has found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reconciled {
    /// The catalog as it is to be from now on.
    pub catalog: Catalog,
    /// What was put right; empty if all agreed.
    pub notes: Vec<Note>,
    /// Entries whose volumes are gone.
    pub lost: Vec<VolumeEntry>,
    /// Whether what was loaded differs from `catalog` in more than a finished or dropped operation: keep a copy.
    pub keep_copy: bool,
}

/// Decides. Under rules 1 and 2 the sizes are the catalog's, however much is mapped; one that is too small is told of.
pub fn reconcile(
    loaded: Option<Catalog>,
    metadata_id: TransactionId,
    found: &[FoundVolume],
    block_size: BlockSize,
    highest_mapped: &mut dyn FnMut(VolumeId) -> Result<Option<VirtualBlock>>,
) -> Result<Reconciled> {
    let mut notes = Vec::new();
    let mut note = |kind, text: String| notes.push(Note { kind, text });
    let missing = loaded.is_none();
    let mut catalog = loaded.unwrap_or_else(|| Catalog::empty(metadata_id));
    let in_step = match_ids(&mut catalog, metadata_id, &mut note);
    if missing && !found.is_empty() {
        note(NoteKind::NoCatalog, "there is no catalog: the volumes appear by their numbers".to_owned());
    }
    let mut unknown: BTreeMap<VolumeId, FoundVolume> =
        found.iter().map(|volume| (volume.id, *volume)).collect();
    if in_step {
        catalog.deleting.retain(|id| unknown.remove(id).is_some());
    } else {
        catalog.deleting.clear();
    }
    let is_lost = |entry: &&VolumeEntry| {
        let same = unknown.get(&entry.id).is_some_and(|volume| is_same(entry, volume));
        !same || unknown.remove(&entry.id).is_none()
    };
    let lost: Vec<_> = catalog.volumes.iter().filter(is_lost).cloned().collect();
    for entry in &lost {
        note(
            NoteKind::LostVolume,
            format!("volume `{}` (number {}) is not in the metadata any more", entry.name, entry.id),
        );
    }
    for entry in &lost {
        catalog.volumes.remove(entry.id);
    }
    let mut grown = Vec::new();
    for entry in catalog.volumes.iter() {
        match size_to_show(entry.id, block_size, highest_mapped) {
            // The last block may be longer than what the volume has of it.
            Ok(mapped_bytes) if mapped_bytes <= whole_blocks(entry.size_bytes, block_size) => {}
            Ok(mapped_bytes) if in_step => note(
                NoteKind::VolumeSize,
                format!(
                    "volume `{}` has {} bytes, and {mapped_bytes} are mapped: what is beyond takes space and cannot be reached; if the \
                 size is wrong, correct its `size_bytes` in catalog.json while nobody has the pool",
                    entry.name, entry.size_bytes
                ),
            ),
            Ok(mapped_bytes) => {
                note(
                    NoteKind::VolumeGrown,
                    format!("volume `{}` has grown to {mapped_bytes} bytes", entry.name),
                );
                grown.push(VolumeEntry { size_bytes: mapped_bytes, ..entry.clone() });
            }
            // Of that volume alone: whoever reads it is told.
            Err(error) => note(
                NoteKind::UnreadableMap,
                format!("the map of volume `{}` cannot be read: {error}", entry.name),
            ),
        }
    }
    for entry in grown {
        catalog.volumes.replace(entry).expect("its name is its own");
    }
    let keep_copy = !missing && (!in_step || !lost.is_empty() || !unknown.is_empty());
    for id in unknown.into_keys() {
        let size_bytes = size_to_show(id, block_size, highest_mapped)?;
        let name = VolumeName::of_unknown(id);
        note(
            NoteKind::UnknownVolume,
            format!(
                "volume {id} is in the metadata but not in the catalog: it appears as `{name}`, {size_bytes} bytes large"
            ),
        );
        catalog.insert(VolumeEntry {
            name,
            id,
            size_bytes,
            created_unix_seconds: None,
            created_in_transaction: None,
            origin: None,
            labels: Labels::new(),
            read_only: false,
            external_origin: None,
            when_full: None,
        });
    }
    Ok(Reconciled { catalog, notes, lost, keep_copy })
}

/// Rules 1 to 3; whether catalog and metadata are in step.
fn match_ids(
    catalog: &mut Catalog,
    metadata_id: TransactionId,
    note: &mut dyn FnMut(NoteKind, String),
) -> bool {
    let pending_id = catalog.pending.as_ref().map(|pending| pending.transaction_id);
    if catalog.transaction_id == metadata_id.0 {
        if let Some(pending) = catalog.pending.take() {
            note(
                NoteKind::Interrupted,
                format!("the {} was interrupted before it happened", pending.operation.describe()),
            );
        }
        return true;
    }
    if pending_id == Some(metadata_id.0) {
        let words = catalog.apply_pending().expect("it has just been looked at");
        note(
            NoteKind::Interrupted,
            format!("the {words} was interrupted after it had happened, and is complete now"),
        );
        return true;
    }
    note(
        NoteKind::TransactionId,
        format!(
            "the catalog belongs to transaction {} and the metadata is at {metadata_id}: somebody else has changed one of them",
            catalog.transaction_id
        ),
    );
    catalog.pending = None;
    catalog.transaction_id = metadata_id.0;
    false
}

/// Whether the volume that has the entry's number is the one that the entry was written for. The metadata notes the id
/// before the operation's step or after it; a number's next owner is made at least one operation (a deletion) later.
fn is_same(entry: &VolumeEntry, volume: &FoundVolume) -> bool {
    entry
        .created_in_transaction
        .is_none_or(|made| volume.created.0 == made || volume.created == TransactionId(made).next())
}

/// A size, rounded up to whole blocks.
pub(super) fn whole_blocks(size_bytes: u64, block_size: BlockSize) -> u64 {
    block_size.blocks_to_hold(size_bytes).saturating_mul(block_size.bytes())
}

/// Where the highest mapped block of a volume ends.
pub(super) fn size_to_show(
    id: VolumeId,
    block_size: BlockSize,
    highest_mapped: &mut dyn FnMut(VolumeId) -> Result<Option<VirtualBlock>>,
) -> Result<u64> {
    let blocks = highest_mapped(id)?.map_or(0, |block| block.0.saturating_add(1));
    Ok(blocks.saturating_mul(block_size.bytes()).min(volume_bytes_limit(block_size)))
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{Operation, Pending};
    use super::*;

    fn id(raw: u64) -> VolumeId {
        VolumeId::new(raw).expect("a number")
    }

    fn entry(name: &str, number: u64, made: u64) -> VolumeEntry {
        VolumeEntry {
            name: VolumeName::parse(name).expect("a name"),
            id: id(number),
            size_bytes: 1 << 20,
            created_unix_seconds: None,
            created_in_transaction: Some(made),
            origin: None,
            labels: Labels::new(),
            read_only: false,
            external_origin: None,
            when_full: None,
        }
    }

    fn catalog_at(transaction_id: u64, entries: Vec<VolumeEntry>) -> Catalog {
        let mut catalog = Catalog::empty(TransactionId(transaction_id));
        entries.into_iter().for_each(|entry| catalog.insert(entry));
        catalog
    }

    fn first(result: &Reconciled) -> &VolumeEntry {
        result.catalog.volumes.iter().next().expect("there is one")
    }

    /// Every volume has blocks 0 and 9 mapped, and was made as the pairs say.
    fn run(loaded: Option<Catalog>, metadata_id: u64, found: &[(u64, u64)]) -> Reconciled {
        let found: Vec<_> = found
            .iter()
            .map(|(number, created)| FoundVolume { id: id(*number), created: TransactionId(*created) })
            .collect();
        reconcile(loaded, TransactionId(metadata_id), &found, BlockSize::MIN, &mut |_| {
            Ok(Some(VirtualBlock(9)))
        })
        .expect("the metadata can be read")
    }

    fn names(reconciled: &Reconciled) -> Vec<&str> {
        reconciled.catalog.volumes.iter().map(|entry| entry.name.as_str()).collect()
    }

    fn texts(reconciled: &Reconciled) -> Vec<&str> {
        reconciled.notes.iter().map(|note| note.text.as_str()).collect()
    }

    #[test]
    fn in_step_nothing_is_said_or_changed() {
        let catalog = catalog_at(4, vec![entry("a", 0, 2), entry("b", 1, 3)]);
        let result = run(Some(catalog.clone()), 4, &[(0, 2), (1, 4)]);
        let expected = Reconciled { catalog, notes: vec![], lost: vec![], keep_copy: false };
        assert_eq!(result, expected);
    }

    #[test]
    fn an_operation_that_did_not_happen_is_dropped() {
        let mut catalog = catalog_at(4, vec![entry("a", 0, 2)]);
        catalog.pending = Some(Pending { transaction_id: 5, operation: Operation::Create(entry("b", 1, 4)) });
        let result = run(Some(catalog), 4, &[(0, 2)]);
        assert_eq!((names(&result), result.catalog.pending.is_none()), (vec!["a"], true));
        assert_eq!(texts(&result), ["the creation of volume `b` was interrupted before it happened"]);
        assert_eq!(result.notes[0].kind, NoteKind::Interrupted);
        assert!(!result.keep_copy);
    }

    #[test]
    fn an_operation_that_happened_is_brought_in() {
        let mut catalog = catalog_at(4, vec![entry("a", 0, 2)]);
        catalog.pending = Some(Pending { transaction_id: 5, operation: Operation::Create(entry("b", 1, 4)) });
        let result = run(Some(catalog), 5, &[(0, 2), (1, 4)]);
        assert_eq!((names(&result), result.catalog.transaction_id), (vec!["a", "b"], 5));
        assert_eq!(result.notes.len(), 1);
        assert!(!result.keep_copy);
    }

    #[test]
    fn a_deletion_goes_on_where_the_metadata_still_holds_the_volume() {
        let mut catalog = catalog_at(4, vec![entry("a", 0, 2), entry("b", 1, 3)]);
        catalog.deleting = [id(7), id(8)].into();
        catalog.pending = Some(Pending {
            transaction_id: 5,
            operation: Operation::Delete(VolumeName::parse("b").expect("a name")),
        });
        let result = run(Some(catalog.clone()), 5, &[(0, 2), (1, 3), (7, 0)]);
        assert_eq!((names(&result), result.catalog.deleting.clone()), (vec!["a"], [id(1), id(7)].into()));
        let result = run(Some(catalog), 5, &[(0, 2)]);
        assert!(result.catalog.deleting.is_empty());
    }

    #[test]
    fn without_a_catalog_volumes_appear_by_number_and_a_new_pool_is_quiet() {
        let result = run(None, 9, &[(3, 1), (5, 2)]);
        assert_eq!((names(&result), result.catalog.transaction_id), (vec!["3", "5"], 9));
        assert_eq!(first(&result).size_bytes, 10 * 65_536);
        assert_eq!(result.catalog.next_volume_id, 6);
        assert_eq!(result.notes.len(), 3);
        assert!(!result.keep_copy, "there is nothing to copy");
        assert!(run(None, 0, &[]).notes.is_empty());
    }

    #[test]
    fn a_stale_catalog_keeps_the_names_that_are_certain_and_deletes_nothing() {
        let mut catalog = catalog_at(4, vec![entry("a", 0, 2), entry("b", 1, 3), entry("c", 2, 3)]);
        catalog.deleting = [id(7)].into();
        catalog.pending = Some(Pending {
            transaction_id: 5,
            operation: Operation::Delete(VolumeName::parse("a").expect("a name")),
        });
        let result = run(Some(catalog), 8, &[(0, 2), (1, 7), (7, 1)]);
        assert_eq!(names(&result), ["a", "1", "7"]);
        assert_eq!(
            result.lost,
            [entry("b", 1, 3), entry("c", 2, 3)],
            "b's number belongs to another volume now"
        );
        assert!(result.catalog.deleting.is_empty() && result.catalog.pending.is_none());
        assert_eq!(result.catalog.transaction_id, 8);
        assert_eq!(first(&result).size_bytes, 1 << 20, "larger than what is mapped");
        assert!(result.keep_copy);
    }

    #[test]
    fn a_volume_that_grew_behind_our_back_shows_all_its_blocks() {
        let small = VolumeEntry { size_bytes: 512, ..entry("a", 0, 2) };
        let result = run(Some(catalog_at(4, vec![small.clone()])), 8, &[(0, 2)]);
        assert_eq!(first(&result).size_bytes, 10 * 65_536);
        // In step it is what somebody wants or has mistyped: not ours to change, and not to hide.
        let result = run(Some(catalog_at(4, vec![small])), 4, &[(0, 2)]);
        assert_eq!(first(&result).size_bytes, 512);
        assert!(
            result.notes[0].text.contains("volume `a` has 512 bytes, and 655360 are mapped"),
            "{:?}",
            result.notes
        );
        assert!(!result.keep_copy);
    }

    #[test]
    fn a_volume_that_ends_within_a_block_has_not_grown() {
        let odd = VolumeEntry { size_bytes: 10 * 65_536 - 512, ..entry("a", 0, 2) };
        for metadata_id in [4, 8] {
            let result = run(Some(catalog_at(4, vec![odd.clone()])), metadata_id, &[(0, 2)]);
            assert_eq!(first(&result).size_bytes, odd.size_bytes);
            assert!(!result.notes.iter().any(|note| note.text.contains("volume `a`")), "{:?}", result.notes);
        }
    }

    #[test]
    fn one_damaged_volume_is_told_of_and_hides_no_other() {
        let loaded = catalog_at(4, vec![entry("a", 0, 2), entry("b", 1, 2)]);
        let found = [0, 1].map(|number| FoundVolume { id: id(number), created: TransactionId(2) });
        for metadata_id in [4, 8] {
            let result = reconcile(
                Some(loaded.clone()),
                TransactionId(metadata_id),
                &found,
                BlockSize::MIN,
                &mut |volume| match volume.get() {
                    0 => Err(crate::error::Error::corrupt(crate::units::MetaBlock(7), "damaged")),
                    _ => Ok(Some(VirtualBlock(9))),
                },
            )
            .expect("the volumes are there");
            assert_eq!(names(&result), ["a", "b"]);
            assert!(
                result.notes.iter().any(|note| note.text.contains("the map of volume `a` cannot be read"))
            );
        }
    }

    #[test]
    fn volumes_are_matched_even_when_the_ids_agree() {
        let result = run(Some(catalog_at(4, vec![entry("a", 0, 2)])), 4, &[(1, 0)]);
        assert_eq!((names(&result), result.lost.len(), result.keep_copy), (vec!["1"], 1, true));
    }

    #[test]
    fn an_absurd_size_is_cut() {
        let found = [FoundVolume { id: id(0), created: TransactionId(0) }];
        let result = reconcile(None, TransactionId(0), &found, BlockSize::MAX, &mut |_| {
            Ok(Some(VirtualBlock(u64::MAX)))
        })
        .expect("the metadata can be read");
        assert_eq!(first(&result).size_bytes, 1 << 62);
        assert_eq!(volume_bytes_limit(BlockSize::MIN), 1 << 52);
    }
}
