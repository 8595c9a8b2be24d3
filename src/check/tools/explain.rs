//! What one metadata block is, and who points at it.

use crate::check::source::Source;
use crate::checksum::BlockKind;
use crate::error::Result;
use crate::format::{
    Block, DetailsRecord, MappingRecord, MetadataIndex, Node, NodeHeader, NodeKind, Superblock,
};
use crate::units::{META_BLOCKS_LIMIT, MetaBlock, VolumeId};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The superblock's field that names the tree of volumes.
const TREE_OF_VOLUMES: &str = "tree of volumes";
/// Blocks that point at one that are named.
const SHOWN: usize = 16;

/// What is known of a block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(in crate::check) struct Explained {
    pub(in crate::check) block: u64,
    /// What it is, in words.
    pub(in crate::check) is: String,
    /// Who points at it: blocks and fields of superblocks, those in use first.
    pub(in crate::check) pointed_at_by: Vec<Pointer>,
    /// Whether the superblock reaches it.
    pub(in crate::check) is_in_use: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(in crate::check) struct Pointer {
    pub(in crate::check) from: u64,
    /// The entry's key, or the field's name.
    pub(in crate::check) by: String,
    pub(in crate::check) is_in_use: bool,
}

/// Looks at a block, and at all others for what points at it.
pub(in crate::check) fn explain(source: Source<'_>, number: MetaBlock) -> Result<Explained> {
    let block = source.raw(number)?;
    let mut parents: Vec<(Way, String)> = Vec::new();
    let mut above = Above::new();
    // Leaves that may be of a tree of volumes, with what their values would point at.
    let mut perhaps: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut held_root = 0;
    source.sweep(&mut |from, other| {
        if from == MetaBlock::SUPERBLOCK {
            held_root = Superblock::read(other, from).map_or(0, |superblock| superblock.held_root);
        }
        each_pointer(from, other, &mut |to, sort, by| {
            let way = Way { from: from.0, sort };
            match sort {
                Sort::Root => perhaps.entry(from.0).or_default().push(to),
                Sort::Volumes | Sort::Child | Sort::Other => above.entry(to).or_default().push(way),
            }
            if to == number.0 {
                parents.push((way, by()));
            }
        });
    });
    // Mappings may look like roots: only leaves below a tree of volumes in use hold some that are in use.
    let (of_volumes, others): (Vec<_>, Vec<_>) =
        perhaps.into_iter().partition(|(leaf, _)| is_of_volumes(*leaf, &above, held_root));
    for (from, roots) in of_volumes {
        for to in roots {
            above.entry(to).or_default().push(Way { from, sort: Sort::Root });
        }
    }
    let no_roots: HashSet<u64> = match could_be_root(&block) {
        // In use as something else, so they are mappings.
        true => others.iter().map(|(leaf, _)| *leaf).filter(|leaf| is_reached(*leaf, &above)).collect(),
        false => others.iter().map(|(leaf, _)| *leaf).collect(),
    };
    let mut pointed_at_by: Vec<Pointer> = Vec::new();
    for (way, by) in parents {
        if way.sort != Sort::Root || !no_roots.contains(&way.from) {
            pointed_at_by.push(Pointer { from: way.from, by, is_in_use: is_reached(way.from, &above) });
        }
    }
    pointed_at_by.sort_by_key(|pointer| (!pointer.is_in_use, pointer.from));
    let is_in_use = number == MetaBlock::SUPERBLOCK || pointed_at_by.iter().any(|pointer| pointer.is_in_use);
    pointed_at_by.truncate(SHOWN);
    Ok(Explained { block: number.0, is: words_for(number, &block), pointed_at_by, is_in_use })
}

/// What sort of pointer one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sort {
    /// A superblock's, to the tree of volumes.
    Volumes,
    /// An internal node's.
    Child,
    /// A leaf's, to a volume's tree, if it is one of the tree of volumes.
    Root,
    Other,
}

/// Who points at a block, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    from: u64,
    sort: Sort,
}

/// Who is told of a pointer: where to, what sort, and by what.
type Told<'a> = dyn FnMut(u64, Sort, &dyn Fn() -> String) + 'a;

/// By the block pointed at.
type Above = HashMap<u64, Vec<Way>>;

/// Whether a leaf is below the tree of volumes of the superblock, or of the metadata snapshot.
fn is_of_volumes(leaf: u64, above: &Above, held_root: u64) -> bool {
    let (mut waiting, mut seen) = (vec![leaf], HashSet::new());
    while let Some(block) = waiting.pop() {
        if !seen.insert(block) {
            continue;
        }
        for way in above.get(&block).into_iter().flatten() {
            match way.sort {
                Sort::Volumes if way.from == MetaBlock::SUPERBLOCK.0 || way.from == held_root => return true,
                Sort::Child => waiting.push(way.from),
                Sort::Volumes | Sort::Root | Sort::Other => {}
            }
        }
    }
    false
}

/// Whether a block could be the root of a volume's tree, which is a node with values of eight bytes.
fn could_be_root(block: &Block) -> bool {
    let is_node = !block.is_zero() && block.kind() == Some(BlockKind::Node);
    is_node && NodeHeader::decode(block).value_size.get() == 8
}

/// Whether a way up from a block ends in the superblock.
fn is_reached(from: u64, above: &Above) -> bool {
    let (mut waiting, mut seen) = (vec![from], HashSet::new());
    while let Some(block) = waiting.pop() {
        if block == 0 {
            return true;
        }
        if seen.insert(block) {
            waiting.extend(above.get(&block).into_iter().flatten().map(|way| way.from));
        }
    }
    false
}

/// Every block that one points at.
fn each_pointer(from: MetaBlock, block: &Block, found: &mut Told<'_>) {
    match (!block.is_zero()).then(|| block.kind()).flatten() {
        Some(BlockKind::Superblock) => {
            let Ok(superblock) = Superblock::read(block, from) else { return };
            for (to, field) in [
                (superblock.mapping_root.0, TREE_OF_VOLUMES),
                (superblock.details_root.0, "details"),
                (superblock.held_root, "metadata snapshot"),
                (superblock.partial_tree().map_or(0, |tree| tree.root.0), "partial blocks"),
                (superblock.data_space_map.bitmap_root.get(), "index of the data space map"),
                (superblock.data_space_map.large_counts_root.get(), "large counts of the data space map"),
                (superblock.metadata_space_map.bitmap_root.get(), "index of the metadata space map"),
                (
                    superblock.metadata_space_map.large_counts_root.get(),
                    "large counts of the metadata space map",
                ),
            ] {
                if to != 0 {
                    let sort = if field == TREE_OF_VOLUMES { Sort::Volumes } else { Sort::Other };
                    found(to, sort, &|| field.to_owned());
                }
            }
        }
        Some(BlockKind::Index) => {
            for (bitmap, entry) in MetadataIndex::of(block).entries.iter().enumerate() {
                if entry.bitmap.get() != 0 {
                    found(entry.bitmap.get(), Sort::Other, &|| format!("bitmap {bitmap}"));
                }
            }
        }
        Some(BlockKind::Node) => each_child(block, found),
        Some(BlockKind::Bitmap) | None => {}
    }
}

fn each_child(block: &Block, found: &mut Told<'_>) {
    match NodeHeader::decode(block).value_size.get() {
        8 => match Node::<MappingRecord>::parse(block) {
            Ok(Node::Internal(entries)) => {
                for (key, child) in entries.iter() {
                    found(child.get(), Sort::Child, &|| format!("child from key {key} on"));
                }
            }
            // Values that could be roots of volumes; most mappings are far larger numbers.
            Ok(Node::Leaf(entries)) => {
                let is_root = |key: u64, value: u64| {
                    VolumeId::new(key).is_some() && (1..META_BLOCKS_LIMIT).contains(&value)
                };
                if entries.iter().all(|(key, record)| is_root(key, record.0.get())) {
                    for (key, record) in entries.iter() {
                        found(record.0.get(), Sort::Root, &|| format!("mappings of volume {key}"));
                    }
                }
            }
            Err(_) => {}
        },
        16 => {
            if let Ok(Node::Leaf(entries)) = Node::<crate::format::IndexEntry>::parse(block) {
                for (key, entry) in entries.iter() {
                    found(entry.bitmap.get(), Sort::Other, &|| format!("bitmap {key}"));
                }
            }
        }
        _ => {}
    }
}

/// What a block is, as far as it can be told from itself.
pub(in crate::check) fn words_for(number: MetaBlock, block: &Block) -> String {
    if block.is_zero() {
        return "all zeros: never written, or wiped".to_owned();
    }
    let Some(kind) = block.kind() else {
        return "nothing that a checksum identifies: damaged, or of something else".to_owned();
    };
    let elsewhere = match block.stored_number() {
        own if own == number.0 => String::new(),
        other => format!("; it says that it is block {other}: written to the wrong place"),
    };
    let words = match kind {
        BlockKind::Superblock => {
            let superblock = Superblock::decode(block);
            let what = if number == MetaBlock::SUPERBLOCK { "the superblock" } else { "a superblock's copy" };
            format!("{what}: transaction {}, time {}", superblock.transaction_id, superblock.time.0)
        }
        BlockKind::Bitmap => "a bitmap of a space map".to_owned(),
        BlockKind::Index => "the index of the metadata space map".to_owned(),
        BlockKind::Node => node_words(block),
    };
    words + &elsewhere
}

fn node_words(block: &Block) -> String {
    let header = NodeHeader::decode(block);
    let (entries, size) = (header.entries.get(), header.value_size.get());
    let span = match header.keys_of(block) {
        [first, .., last] => format!(", keys {first} to {last}"),
        [only] => format!(", key {only}"),
        [] => String::new(),
    };
    let what = match (header.kind(), size as usize) {
        (Some(NodeKind::Internal), _) => "an internal node".to_owned(),
        (Some(NodeKind::Leaf), 8) => "a leaf of mappings, or of the tree of volumes".to_owned(),
        (Some(NodeKind::Leaf), 4) => "a leaf of large counts".to_owned(),
        (Some(NodeKind::Leaf), 16) => "a leaf of the data space map's index, or of partial blocks".to_owned(),
        (Some(NodeKind::Leaf), size) if size == size_of::<DetailsRecord>() => "a leaf of details".to_owned(),
        (Some(NodeKind::Leaf), size) => format!("a leaf with values of {size} bytes, as no tree has"),
        (None, _) => "a node that is neither internal nor leaf".to_owned(),
    };
    format!("{what}: {entries} entries{span}")
}
