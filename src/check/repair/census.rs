//! Every block of a device looked at by itself: which are nodes, and of which kind of tree.
//!
//! Sound nodes of long gone transactions lie about everywhere; nothing here says what is current. Memory: about 100 bytes
//! for each node found, and the children of internal ones.

use crate::check::source::Source;
use crate::checksum::BlockKind;
use crate::format::{
    Block, DetailsRecord, MappingRecord, Node, NodeHeader, NodeValue, RootRecord, Superblock,
};
use crate::units::{META_BLOCKS_LIMIT, MetaBlock, VolumeId};
use std::collections::HashMap;

/// No sound tree is deeper.
const DEPTH_LIMIT: u32 = 12;

/// What a tree is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::check) enum Sort {
    /// One volume's mappings.
    Mappings,
    /// The tree of volumes.
    Volumes,
    Details,
    /// The space maps' trees, and what is no sound tree at all.
    Other,
}

/// What the mappings of a leaf, or of a whole tree, add up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sum {
    pub(super) mapped_blocks: u64,
    /// The latest time, and how many mappings have it.
    pub(super) newest: (u32, u64),
    /// One past the last data block.
    pub(super) data_end: u64,
    /// Mappings to data blocks past the end of the data device, which are none of those above.
    pub(super) outside: u64,
}

impl Sum {
    pub(super) fn add(&mut self, other: &Sum) {
        self.mapped_blocks += other.mapped_blocks;
        self.data_end = self.data_end.max(other.data_end);
        self.outside += other.outside;
        self.newest = match self.newest.0.cmp(&other.newest.0) {
            std::cmp::Ordering::Less => other.newest,
            std::cmp::Ordering::Equal => (self.newest.0, self.newest.1 + other.newest.1),
            std::cmp::Ordering::Greater => self.newest,
        };
    }
}

/// A node that is sound by itself.
enum Seen {
    Internal(Box<[MetaBlock]>),
    /// Values of eight bytes: mappings, or the roots of volumes where all of them could be.
    EightByteLeaf {
        span: Option<(u64, u64)>,
        sum: Sum,
        roots: Option<Box<[MetaBlock]>>,
    },
    DetailsLeaf,
    OtherLeaf,
}

/// The nodes of a device.
pub(super) struct Census {
    nodes: HashMap<MetaBlock, Seen>,
    sorts: HashMap<MetaBlock, Sort>,
    /// Copies of superblocks, in block order; block 0 is not among them.
    pub(super) superblocks: Vec<(MetaBlock, Superblock)>,
}

impl Census {
    /// Looks at every block of what may be a part of the device only. Mappings to data blocks from `data_blocks` on are not counted.
    pub(super) fn take(source: Source<'_>, data_blocks: u64) -> Self {
        let mut census = Census { nodes: HashMap::new(), sorts: HashMap::new(), superblocks: Vec::new() };
        source.sweep(&mut |number, block| {
            if block.verify(number, BlockKind::Node).is_ok() {
                if let Some(seen) = seen_of(block, data_blocks) {
                    census.nodes.insert(number, seen);
                }
            } else if number != MetaBlock::SUPERBLOCK
                && let Ok(superblock) = Superblock::read(block, number)
            {
                census.superblocks.push((number, superblock));
            }
        });
        census
    }

    /// What tree a node is the root of.
    pub(super) fn sort(&mut self, number: MetaBlock) -> Sort {
        self.sort_below(number, 0)
    }

    fn sort_below(&mut self, number: MetaBlock, depth: u32) -> Sort {
        if let Some(sort) = self.sorts.get(&number) {
            return *sort;
        }
        // Who meets a node again below itself finds no tree.
        self.sorts.insert(number, Sort::Other);
        let below = match self.nodes.get(&number) {
            Some(_) if depth > DEPTH_LIMIT => return Sort::Other,
            None | Some(Seen::OtherLeaf) => return Sort::Other,
            Some(Seen::DetailsLeaf) => None,
            Some(Seen::EightByteLeaf { roots: None, .. }) => {
                self.sorts.insert(number, Sort::Mappings);
                return Sort::Mappings;
            }
            Some(Seen::EightByteLeaf { roots: Some(roots), .. }) => Some((true, roots.clone())),
            Some(Seen::Internal(children)) => Some((false, children.clone())),
        };
        let sort = match below {
            None => Sort::Details,
            Some((true, roots)) => {
                // Damaged volumes do not make it another tree; an empty one is a leaf like an empty tree of volumes.
                let mut is_tree =
                    |root| self.is_empty_leaf(root) || self.sort_below(root, depth + 1) == Sort::Mappings;
                if roots.is_empty() || roots.iter().copied().any(&mut is_tree) {
                    Sort::Volumes
                } else {
                    Sort::Mappings
                }
            }
            Some((false, children)) => {
                // Lost children say nothing; the first that is there does.
                let sorts = children.iter().map(|child| self.sort_below(*child, depth + 1));
                sorts.into_iter().find(|sort| *sort != Sort::Other).unwrap_or(Sort::Other)
            }
        };
        self.sorts.insert(number, sort);
        sort
    }

    fn is_empty_leaf(&self, number: MetaBlock) -> bool {
        matches!(self.nodes.get(&number), Some(Seen::EightByteLeaf { span: None, .. }))
    }

    /// Whether a node could be the only one of a tree of volumes, all of them perhaps damaged.
    pub(super) fn could_be_volumes(&self, number: MetaBlock) -> bool {
        matches!(self.nodes.get(&number), Some(Seen::EightByteLeaf { roots: Some(_), .. }))
    }

    /// All nodes of one sort, by number.
    pub(super) fn of_sort(&mut self, wanted: Sort) -> Vec<MetaBlock> {
        let mut numbers: Vec<_> = self.nodes.keys().copied().collect();
        numbers.sort();
        numbers.retain(|number| self.sort(*number) == wanted);
        numbers
    }

    /// What a leaf of mappings adds up to, if it is one with its keys in this range.
    pub(super) fn leaf(&self, number: MetaBlock, keys: &std::ops::Range<u64>) -> Option<Sum> {
        match self.nodes.get(&number)? {
            Seen::EightByteLeaf { span, sum, .. } => {
                let fits = span.is_none_or(|(first, last)| first >= keys.start && last < keys.end);
                fits.then_some(*sum)
            }
            Seen::Internal(_) | Seen::DetailsLeaf | Seen::OtherLeaf => None,
        }
    }
}

fn seen_of(block: &Block, data_blocks: u64) -> Option<Seen> {
    match NodeHeader::decode(block).value_size.get() as usize {
        8 => eight_byte_node(block, data_blocks),
        size if size == size_of::<DetailsRecord>() => {
            is_sound_leaf::<DetailsRecord>(block).then_some(Seen::DetailsLeaf)
        }
        _ => Some(Seen::OtherLeaf),
    }
}

fn is_sound_leaf<V: NodeValue>(block: &Block) -> bool {
    matches!(Node::<V>::parse(block), Ok(Node::Leaf(entries)) if entries.keys_ascend())
}

fn eight_byte_node(block: &Block, data_blocks: u64) -> Option<Seen> {
    let entries = match Node::<MappingRecord>::parse(block).ok()? {
        Node::Internal(entries) => {
            let is_sound = entries.keys_ascend() && !entries.is_empty();
            let children = entries.iter().map(|(_, child)| MetaBlock(child.get())).collect();
            return is_sound.then_some(Seen::Internal(children));
        }
        Node::Leaf(entries) => entries,
    };
    if !entries.keys_ascend() {
        return None;
    }
    let mut sum = Sum::default();
    for (_, record) in entries.iter() {
        let mapping = record.mapping();
        if mapping.block.0 < data_blocks {
            let (newest, data_end) = ((mapping.time.0, 1), mapping.block.0 + 1);
            sum.add(&Sum { mapped_blocks: 1, newest, data_end, outside: 0 });
        } else {
            sum.outside += 1;
        }
    }
    let could_be_root = |(key, record): (u64, MappingRecord)| {
        VolumeId::new(key).is_some() && (1..META_BLOCKS_LIMIT).contains(&record.0.get())
    };
    let roots = entries
        .iter()
        .all(could_be_root)
        .then(|| entries.iter().map(|(_, record)| RootRecord(record.0).root()).collect());
    Some(Seen::EightByteLeaf { span: entries.key_span(), sum, roots })
}
