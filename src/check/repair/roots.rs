//! Which trees are a pool's: candidates for the tree of volumes and the details, ranked.
//!
//! Candidates that belong together (the same volumes in both trees, and as many mappings as the details promise but for
//! what damage can have taken) come before those that do not. Then the newer wins: a later time of its latest mappings, then
//! more of them, then more mappings at all. An older state that is whole does not win over a newer one that is damaged: its
//! data blocks may belong to somebody else by now.

use super::census::{Census, Sort, Sum};
use crate::check::forest::{Collect, Forest, LeafPlace};
use crate::check::source::Source;
use crate::checksum::BlockKind;
use crate::error::{Error, Result};
use crate::format::{DetailsRecord, MappingRecord, Node, RootRecord, capacity};
use crate::units::MetaBlock;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Trees of details that are held against one tree of volumes.
const PAIRS_LIMIT: usize = 64;

/// A volume's tree, as far as it can be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) sum: Sum,
    pub(super) lost: Vec<(LeafPlace, String)>,
}

impl Tree {
    /// Whether it had so many mappings before anything of it was lost.
    fn could_have_had(&self, mapped_blocks: u64) -> bool {
        let limit = if self.lost.is_empty() { self.sum.mapped_blocks } else { u64::MAX };
        (self.sum.mapped_blocks..=limit).contains(&mapped_blocks)
    }
}

/// A pair of trees that could be a pool's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(in crate::check) struct Candidate {
    /// Root of the tree of volumes.
    pub(in crate::check) mapping_root: u64,
    /// Root of the details, if any go with it.
    pub(in crate::check) details_root: Option<u64>,
    /// Whether both trees say the same, but for what damage can have taken.
    pub(in crate::check) agrees: bool,
    /// Whether everything could be read.
    pub(in crate::check) is_whole: bool,
    pub(in crate::check) volumes: u64,
    pub(in crate::check) mapped_blocks: u64,
    /// The latest time of any mapping, and how many mappings have it.
    pub(in crate::check) newest_time: u32,
    pub(in crate::check) newest_mappings: u64,
    /// The latest transaction in which a volume was made.
    pub(in crate::check) transaction_id: u64,
}

/// A pool's two trees of volumes, read as far as they can be.
#[derive(Clone, Debug, Default)]
pub(super) struct Volumes {
    pub(super) roots: BTreeMap<u64, MetaBlock>,
    pub(super) details: BTreeMap<u64, DetailsRecord>,
    pub(super) lost: Vec<(LeafPlace, String)>,
}

/// The root of a tree of details, and what it holds.
type DetailsTree = (MetaBlock, BTreeMap<u64, DetailsRecord>);

/// Reads trees, and remembers what volumes add up to.
pub(super) struct Reader<'a> {
    source: Source<'a>,
    census: Census,
    mappings: Forest<'a, MappingRecord>,
    trees: HashMap<MetaBlock, Tree>,
    /// As the census has it: mappings from here on are lost.
    data_blocks: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: Source<'a>, census: Census, data_blocks: u64) -> Self {
        Reader { source, census, mappings: Forest::new(source), trees: HashMap::new(), data_blocks }
    }

    /// Mappings that at least one of these volumes has, each leaf's once, and the metadata blocks that any trees of them take, packed as
    /// they may be: what volumes share is counted once, the nodes above it for each of them.
    pub(super) fn fewest_blocks(&mut self, roots: &[(MetaBlock, u64)]) -> Result<u64> {
        const CAPACITY: u64 = capacity(8) as u64;
        let (mut seen, mut own_mappings, mut above) = (HashSet::new(), 0, 0);
        for (root, mapped_blocks) in roots {
            let mut leaves = Vec::new();
            self.mappings.leaves(*root, &mut Collect::default(), &mut leaves)?;
            for leaf in leaves {
                let sum = self.census.leaf(leaf.number, &leaf.keys).unwrap_or_default();
                own_mappings += if seen.insert(leaf.number) { sum.mapped_blocks } else { 0 };
            }
            let mut nodes = mapped_blocks.div_ceil(CAPACITY);
            // An empty tree is a block of its own.
            above += u64::from(nodes == 0);
            while nodes > 1 {
                nodes = nodes.div_ceil(CAPACITY);
                above += nodes;
            }
        }
        Ok(own_mappings.div_ceil(CAPACITY) + above)
    }

    /// The mappings of a leaf that lead past the end of the data device, those of neighbours together.
    fn outside(&self, leaf: &LeafPlace) -> Result<Vec<(LeafPlace, String)>> {
        let block = self.source.block(leaf.number, BlockKind::Node)?;
        let Ok(Node::Leaf(entries)) = Node::<MappingRecord>::parse(&block) else { return Ok(Vec::new()) };
        let mut found: Vec<(LeafPlace, String)> = Vec::new();
        for (key, record) in entries.iter() {
            let data = record.mapping().block.0;
            match found.last_mut() {
                _ if data < self.data_blocks => {}
                Some((last, _)) if last.keys.end == key => last.keys.end = key.saturating_add(1),
                Some(_) | None => {
                    let keys = key..key.saturating_add(1);
                    let end = self.data_blocks;
                    let why =
                        format!("mapped to data block {data}, past the end of the data device, {end} blocks");
                    found.push((LeafPlace { number: leaf.number, keys }, why));
                }
            }
        }
        Ok(found)
    }

    /// Whether a block can be taken for the root of the tree of volumes, when somebody says that it is.
    pub(super) fn can_be_volumes(&mut self, number: MetaBlock) -> bool {
        self.census.could_be_volumes(number) || self.census.sort(number) == Sort::Volumes
    }

    /// Whether a block is the root of a tree of details.
    pub(super) fn is_details(&mut self, number: MetaBlock) -> bool {
        self.census.sort(number) == Sort::Details
    }

    /// The trees of volumes and details below these roots.
    pub(super) fn volumes(
        &self,
        mapping_root: MetaBlock,
        details_root: Option<MetaBlock>,
    ) -> Result<Volumes> {
        let mut damage = Collect::default();
        let roots = Forest::<RootRecord>::new(self.source).entries(mapping_root, &mut damage)?;
        let details = match details_root {
            Some(root) => Forest::<DetailsRecord>::new(self.source).entries(root, &mut damage)?,
            None => Vec::new(),
        };
        Ok(Volumes {
            roots: roots.into_iter().map(|(id, root)| (id, root.root())).collect(),
            details: details.into_iter().collect(),
            lost: damage
                .found
                .into_iter()
                .map(|(place, error)| (place, error.message().to_owned()))
                .collect(),
        })
    }

    /// What can be read of a volume.
    pub(super) fn tree(&mut self, root: MetaBlock) -> Result<&Tree> {
        if !self.trees.contains_key(&root) {
            let (mut damage, mut leaves) = (Collect::default(), Vec::new());
            self.mappings.leaves(root, &mut damage, &mut leaves)?;
            let mut tree = Tree::default();
            for leaf in leaves {
                match self.census.leaf(leaf.number, &leaf.keys) {
                    Some(sum) => {
                        tree.sum.add(&sum);
                        if sum.outside > 0 {
                            tree.lost.extend(self.outside(&leaf)?);
                        }
                    }
                    None => {
                        let error = Error::corrupt(
                            leaf.number,
                            "no sound leaf of mappings with the keys that its parent has for it",
                        );
                        damage.found.push((leaf, error));
                    }
                }
            }
            tree.lost
                .extend(damage.found.into_iter().map(|(place, error)| (place, error.message().to_owned())));
            self.trees.insert(root, tree);
        }
        Ok(&self.trees[&root])
    }

    /// All pairs of trees that could be the pool's, the best first.
    pub(super) fn candidates(&mut self) -> Result<Vec<Candidate>> {
        let volumes = self.census.of_sort(Sort::Volumes);
        let mut details_by_set: HashMap<Vec<u64>, Vec<DetailsTree>> = HashMap::new();
        for root in self.census.of_sort(Sort::Details) {
            let mut damage = Collect::default();
            let found = Forest::<DetailsRecord>::new(self.source).entries(root, &mut damage)?;
            let found: BTreeMap<_, _> = found.into_iter().collect();
            details_by_set.entry(found.keys().copied().collect()).or_default().push((root, found));
        }
        let mut candidates = Vec::new();
        for mapping_root in volumes {
            let found = self.volumes(mapping_root, None)?;
            let set: Vec<u64> = found.roots.keys().copied().collect();
            let matching = details_by_set
                .get(&set)
                .map_or(&[][..], |list| &list[list.len().saturating_sub(PAIRS_LIMIT)..]);
            candidates.push(self.judge(mapping_root, &found, None)?);
            for pair in matching {
                candidates.push(self.judge(mapping_root, &found, Some(pair))?);
            }
        }
        candidates.sort_by_key(|candidate| Reverse(rank(candidate)));
        Ok(candidates)
    }

    fn judge(
        &mut self,
        mapping_root: MetaBlock,
        found: &Volumes,
        details: Option<&DetailsTree>,
    ) -> Result<Candidate> {
        let mut sum = Sum::default();
        let mut is_whole = found.lost.is_empty();
        let mut agrees = details.is_some();
        for (id, root) in &found.roots {
            let tree = self.tree(*root)?;
            sum.add(&tree.sum);
            let promised =
                details.and_then(|(_, records)| records.get(id)).map(|record| record.mapped_blocks.get());
            is_whole &= tree.lost.is_empty();
            agrees &= promised.is_some_and(|promised| tree.could_have_had(promised));
        }
        let transactions = details
            .iter()
            .flat_map(|(_, records)| records.values())
            .map(|record| record.transaction_id.get());
        Ok(Candidate {
            mapping_root: mapping_root.0,
            details_root: details.map(|(root, _)| root.0),
            agrees,
            is_whole,
            volumes: found.roots.len() as u64,
            mapped_blocks: sum.mapped_blocks,
            newest_time: sum.newest.0,
            newest_mappings: sum.newest.1,
            transaction_id: transactions.max().unwrap_or(0),
        })
    }
}

fn rank(candidate: &Candidate) -> impl Ord + use<> {
    (
        candidate.agrees,
        candidate.newest_time,
        candidate.newest_mappings,
        candidate.mapped_blocks,
        candidate.details_root.is_some(),
        candidate.is_whole,
        candidate.transaction_id,
    )
}
