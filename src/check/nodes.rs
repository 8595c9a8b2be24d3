//! What a check knows of the nodes that it has met, by block: a table, for there are millions of them and every one is asked
//! for by each of its parents. 32 bytes a block, in pieces that exist once a node of theirs was met.

use super::walk::Tree;
use crate::units::{MetaBlock, SnapTime};
use std::ops::Range;

/// Blocks of a piece of the table.
const PIECE_BLOCKS: usize = 512;

/// What is below a node whose own bytes are sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Subtree {
    /// First and last key; the first is above the last when nothing below holds any.
    first: u64,
    last: u64,
    /// Entries of all leaves below, which no device has too many of for this: a tree has no node twice.
    pub(super) entries: u32,
    /// The latest time of a mapping below; 0 in other trees.
    pub(super) youngest: SnapTime,
    pub(super) own_entries: u16,
    pub(super) own_capacity: u16,
    pub(super) tree: Tree,
    /// Levels of nodes below; 0 for a leaf.
    pub(super) depth: u8,
}

impl Subtree {
    /// A node with so many entries and room for so many, as its block has them, and nothing below it yet.
    pub(super) fn new(tree: Tree, own_entries: usize, own_capacity: usize) -> Self {
        Subtree {
            first: 1,
            last: 0,
            entries: 0,
            youngest: SnapTime(0),
            // A block has no room for more.
            own_entries: own_entries as u16,
            own_capacity: own_capacity as u16,
            tree,
            depth: 0,
        }
    }

    pub(super) fn span(&self) -> Option<(u64, u64)> {
        (self.first <= self.last).then_some((self.first, self.last))
    }

    /// Adds keys behind those that are there.
    pub(super) fn extend(&mut self, span: Option<(u64, u64)>, entries: u32, youngest: SnapTime) {
        if let Some((first, last)) = span {
            self.first = self.span().map_or(first, |span| span.0);
            self.last = last;
            self.entries = self.entries.saturating_add(entries);
            self.youngest = self.youngest.max(youngest);
        }
    }

    /// Why this cannot be the child under `keys` of a parent whose children have `depth` levels below them.
    pub(super) fn misfit(&self, keys: &Range<u64>, depth: u8) -> Option<String> {
        let (first, last) = self.span()?;
        if self.depth != depth {
            Some(format!("{} levels below it, but {depth} below its siblings", self.depth))
        } else if first < keys.start {
            Some(format!("its first key {first} is below {}, the key its parent has for it", keys.start))
        } else if last >= keys.end {
            Some(format!("its last key {last} is not below {}, where its next sibling begins", keys.end))
        } else {
            None
        }
    }

    /// Whether this can be that child, and has keys.
    #[inline]
    pub(super) fn fits(&self, keys: &Range<u64>, depth: u8) -> bool {
        self.first <= self.last && self.depth == depth && keys.start <= self.first && self.last < keys.end
    }
}

/// What became of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Visited {
    /// Being walked right now.
    Open,
    /// Reported as no sound node of this kind of tree; nothing is known below.
    Unreadable(Tree),
    Read(Subtree),
}

type Piece = Box<[Option<Visited>]>;

/// The table.
pub(super) struct Nodes {
    blocks: u64,
    pieces: Vec<Option<Piece>>,
    met: u64,
}

impl Nodes {
    /// For so many blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let pieces = usize::try_from(blocks).expect("the caller bounds it").div_ceil(PIECE_BLOCKS);
        Nodes { blocks, pieces: vec![None; pieces], met: 0 }
    }

    /// Blocks that it is for.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Nodes that were met.
    pub(super) fn met(&self) -> u64 {
        self.met
    }

    #[inline]
    pub(super) fn get(&self, number: MetaBlock) -> Option<&Visited> {
        let (piece, at) = place_of(number);
        self.pieces.get(piece)?.as_ref()?[at].as_ref()
    }

    /// Notes what a node is, which must be a block of the table.
    pub(super) fn insert(&mut self, number: MetaBlock, visited: Visited) {
        let (piece, at) = place_of(number);
        let piece = self.pieces[piece].get_or_insert_with(|| vec![None; PIECE_BLOCKS].into());
        self.met += u64::from(piece[at].is_none());
        piece[at] = Some(visited);
    }
}

fn place_of(number: MetaBlock) -> (usize, usize) {
    // No table has so many pieces.
    let number = usize::try_from(number.0).unwrap_or(usize::MAX);
    (number / PIECE_BLOCKS, number % PIECE_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small_and_blocks_past_the_end_are_unknown() {
        assert_eq!(size_of::<Option<Visited>>(), 32);
        let mut nodes = Nodes::new(513);
        nodes.insert(MetaBlock(512), Visited::Open);
        nodes.insert(MetaBlock(512), Visited::Unreadable(Tree::Index));
        assert_eq!(nodes.met(), 1);
        assert_eq!(nodes.get(MetaBlock(512)), Some(&Visited::Unreadable(Tree::Index)));
        assert!([0, 511, 513, 1024, u64::MAX].iter().all(|number| nodes.get(MetaBlock(*number)).is_none()));
    }
}
