//! What volumes take: mapped blocks, and which of those no other volume has.
//!
//! A block is exclusive when one volume alone maps it, through whichever leaves. Each distinct leaf is read twice at most,
//! however many volumes share it: what lies in a shared leaf is shared. Memory: two bits for each data block.

use crate::check::counts::PAGE_ENTRIES;
use crate::check::dump::{Plan, Sharing};
use crate::check::forest::{Forest, LeafPlace, Refuse, read_leaves};
use crate::check::source::Source;
use crate::error::Result;
use crate::format::MappingRecord;
use std::collections::HashSet;

/// What a volume takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::check) struct Taken {
    pub(in crate::check) exclusive_blocks: u64,
    /// The highest virtual block that is mapped.
    pub(in crate::check) highest_block: Option<u64>,
}

/// Adds up what each of the planned volumes takes, in their order. `data_blocks` is the size of the data device, which the copy of
/// the superblock in a metadata snapshot does not tell.
pub(in crate::check) fn taken(source: Source<'_>, plan: &Plan, data_blocks: u64) -> Result<Vec<Taken>> {
    let mut forest = Forest::<MappingRecord>::new(source);
    let mut sharing = Sharing::default();
    let mut leaves = Vec::new();
    for volume in &plan.volumes {
        leaves.clear();
        forest.leaves(volume.root, &mut Refuse, &mut leaves)?;
        sharing.add(&leaves);
    }
    // A device cannot have bitmaps for more data blocks than this, whatever its superblock says.
    let mut owners = Owners::new(data_blocks.min(source.device_blocks() * PAGE_ENTRIES));
    let mut seen = HashSet::new();
    for volume in &plan.volumes {
        leaves.clear();
        forest.leaves(volume.root, &mut Refuse, &mut leaves)?;
        leaves.retain(|leaf| sharing.users(leaf.number) == 1 || seen.insert(leaf.number));
        each_block(source, &leaves, &mut |leaf, _, block| {
            owners.add(block, sharing.users(leaf.number) > 1);
        })?;
    }
    let mut found = Vec::new();
    for volume in &plan.volumes {
        leaves.clear();
        forest.leaves(volume.root, &mut Refuse, &mut leaves)?;
        let last = leaves.last().cloned();
        leaves.retain(|leaf| sharing.users(leaf.number) == 1);
        let mut taken = Taken::default();
        each_block(source, &leaves, &mut |_, _, block| {
            taken.exclusive_blocks += u64::from(owners.is_one(block))
        })?;
        each_block(source, last.as_slice(), &mut |_, key, _| taken.highest_block = Some(key))?;
        found.push(taken);
    }
    Ok(found)
}

fn each_block(
    source: Source<'_>,
    leaves: &[LeafPlace],
    each: &mut dyn FnMut(&LeafPlace, u64, u64),
) -> Result<()> {
    read_leaves::<MappingRecord>(source, leaves, &mut Refuse, &mut |leaf, entries| {
        entries.iter().for_each(|(key, record)| each(leaf, key, record.mapping().block.0));
        Ok(())
    })
}

/// Whether a data block has no, one or more owners: two bits for each.
struct Owners {
    one: Vec<u64>,
    more: Vec<u64>,
}

impl Owners {
    fn new(data_blocks: u64) -> Self {
        let words = usize::try_from(data_blocks.div_ceil(64)).expect("the caller bounds it");
        Owners { one: vec![0; words], more: vec![0; words] }
    }

    fn add(&mut self, block: u64, is_shared: bool) {
        let (word, bit) = ((block / 64) as usize, 1_u64 << (block % 64));
        if word >= self.one.len() {
            return; // past the end of the data device: a check's business
        }
        if is_shared || self.one[word] & bit != 0 {
            self.more[word] |= bit;
        }
        self.one[word] |= bit;
    }

    fn is_one(&self, block: u64) -> bool {
        let (word, bit) = ((block / 64) as usize, 1_u64 << (block % 64));
        self.one.get(word).is_some_and(|one| one & bit != 0) && self.more[word] & bit == 0
    }
}
