//! B-tree nodes, read side (format §4.1, §4.2).
//!
//! [`Node::parse`] looks at one block alone: header, sizes, number of entries. [`Entries::keys_ascend`] and occupancy are
//! separate questions, because a checker reports them and goes on.

use super::block::Block;
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use std::fmt;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a value of a leaf must be able to do. All records of [`super`] and plain little-endian integers can.
pub trait NodeValue: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy> NodeValue for T {}

/// Bytes of a key, and of an internal node's value.
const KEY_BYTES: usize = 8;
const HEADER_BYTES: usize = size_of::<NodeHeader>();

/// The `max_entries` that every node with values of this size is written with: 252, 168, 126, 336 for 8, 16, 24, 4 bytes.
pub const fn capacity(value_size: usize) -> usize {
    (META_BLOCK_BYTES - HEADER_BYTES) / (KEY_BYTES + value_size) / 3 * 3
}

/// The fewest entries that a node other than a root may hold.
pub const fn smallest_occupancy(capacity: usize) -> usize {
    capacity / 3
}

/// Whether a node's values are other nodes, or the tree's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeKind {
    /// Values are child blocks.
    Internal,
    /// Values are the tree's.
    Leaf,
}

impl NodeKind {
    /// The header's flags for this kind.
    pub fn flags(self) -> u32 {
        match self {
            NodeKind::Internal => 1,
            NodeKind::Leaf => 2,
        }
    }
}

/// The first 32 bytes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NodeHeader {
    /// See [`crate::checksum`].
    pub checksum: U32,
    /// 1 = internal, 2 = leaf.
    pub flags: U32,
    /// The block's own number.
    pub number: U64,
    /// Entries in use.
    pub entries: U32,
    /// Entries that there is room for; the values begin behind that many keys.
    pub max_entries: U32,
    /// Bytes of a value.
    pub value_size: U32,
    /// Written as 0.
    pub padding: U32,
}

impl NodeHeader {
    /// The header of any block, without judging it.
    pub fn decode(block: &Block) -> &Self {
        Self::ref_from_prefix(&block.0).expect("a block is longer than a header, which needs no alignment").0
    }

    /// Internal or leaf; `None` for flags that are neither.
    pub fn kind(&self) -> Option<NodeKind> {
        match self.flags.get() {
            1 => Some(NodeKind::Internal),
            2 => Some(NodeKind::Leaf),
            _ => None,
        }
    }

    /// Requires a header that is consistent in itself, for a tree whose leaves hold `leaf_value_size` bytes each.
    pub fn check(&self, leaf_value_size: usize) -> Result<NodeKind, NodeFault> {
        let kind = self.kind().ok_or(NodeFault::Flags { found: self.flags.get() })?;
        let expected = match kind {
            NodeKind::Internal => KEY_BYTES,
            NodeKind::Leaf => leaf_value_size,
        };
        if self.value_size.get() as usize != expected {
            return Err(NodeFault::ValueSize { found: self.value_size.get(), expected });
        }
        let (entries, max_entries, limit) = (self.entries.get(), self.max_entries.get(), capacity(expected));
        if max_entries as usize > limit || max_entries % 3 != 0 {
            return Err(NodeFault::MaxEntries { found: max_entries, expected: limit });
        }
        if entries > max_entries {
            return Err(NodeFault::Entries { found: entries, max_entries });
        }
        Ok(kind)
    }

    /// The keys in use of a block whose header this is, as many of them as fit into a block.
    pub fn keys_of<'a>(&self, block: &'a Block) -> &'a [U64] {
        let keys = block.0[HEADER_BYTES..].as_chunks::<KEY_BYTES>().0;
        let entries = keys.len().min(self.entries.get() as usize);
        <[U64]>::ref_from_bytes(keys[..entries].as_flattened()).expect("whole keys, which need no alignment")
    }

    /// Whether the node has the `max_entries` that the kernel and we write. Others are legal to read (format §11), but
    /// siblings of different sizes cannot be rebalanced.
    pub fn has_usual_capacity(&self) -> bool {
        self.max_entries.get() as usize == capacity(self.value_size.get() as usize)
    }
}

/// What is wrong with a node's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeFault {
    /// Neither internal nor leaf.
    Flags {
        /// The header's flags.
        found: u32,
    },
    /// Not the tree's.
    ValueSize {
        /// In the header, in bytes.
        found: u32,
        /// In bytes.
        expected: usize,
    },
    /// Too large for the block, or no multiple of three.
    MaxEntries {
        /// In the header.
        found: u32,
        /// The usual one, which is also the largest.
        expected: usize,
    },
    /// More entries than there is room for.
    Entries {
        /// In the header.
        found: u32,
        /// Also in the header.
        max_entries: u32,
    },
}

impl fmt::Display for NodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeFault::Flags { found } => write!(f, "found node flags {found:#x}, expected 1 or 2"),
            NodeFault::ValueSize { found, expected } => {
                write!(f, "found node values of {found} bytes, expected {expected}")
            }
            NodeFault::MaxEntries { found, expected } => {
                write!(f, "found room for {found} entries in a node, expected {expected}")
            }
            NodeFault::Entries { found, max_entries } => {
                write!(f, "found {found} entries in a node, expected at most {max_entries}")
            }
        }
    }
}

/// The entries of a node, in the order of their keys. `keys` and `values` are equally long.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a, V> {
    /// The keys in use.
    pub keys: &'a [U64],
    /// Their values.
    pub values: &'a [V],
}

impl<'a, V: NodeValue> Entries<'a, V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The `index`-th key, which must exist.
    pub fn key(&self, index: usize) -> u64 {
        self.keys[index].get()
    }

    /// First and last key, `None` if there are none.
    pub fn key_span(&self) -> Option<(u64, u64)> {
        Some((self.keys.first()?.get(), self.keys.last()?.get()))
    }

    /// Keys and values side by side.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, V)> + use<'a, V> {
        self.keys.iter().zip(self.values).map(|(key, value)| (key.get(), *value))
    }

    /// The first index whose key is not below `key`; the number of entries if there is none.
    pub fn lower_bound(&self, key: u64) -> usize {
        self.keys.partition_point(|other| other.get() < key)
    }

    /// The index of exactly `key`.
    pub fn find(&self, key: u64) -> Option<usize> {
        let index = self.lower_bound(key);
        (index < self.len() && self.key(index) == key).then_some(index)
    }

    /// The last index whose key is not above `key`: in an internal node, the child in whose range `key` is.
    pub fn floor(&self, key: u64) -> Option<usize> {
        self.keys.partition_point(|other| other.get() <= key).checked_sub(1)
    }

    /// Whether the keys strictly increase, as they must.
    pub fn keys_ascend(&self) -> bool {
        self.keys.windows(2).all(|pair| pair[0].get() < pair[1].get())
    }
}

impl Entries<'_, U64> {
    /// The `index`-th child of an internal node; the entry must exist.
    pub fn child(&self, index: usize) -> MetaBlock {
        MetaBlock(self.values[index].get())
    }
}

/// A node whose header is in order, with the values of its tree.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a, V> {
    /// Values are child blocks.
    Internal(Entries<'a, U64>),
    /// Values are the tree's.
    Leaf(Entries<'a, V>),
}

impl<'a, V: NodeValue> Node<'a, V> {
    /// A view of `block` as a node of a tree whose leaves hold `V`.
    pub fn parse(block: &'a Block) -> Result<Self, NodeFault> {
        let header = NodeHeader::decode(block);
        Ok(match header.check(size_of::<V>())? {
            NodeKind::Internal => Node::Internal(entries_of(block, header)),
            NodeKind::Leaf => Node::Leaf(entries_of(block, header)),
        })
    }

    /// The keys in use.
    pub fn keys(&self) -> &'a [U64] {
        match self {
            Node::Internal(entries) => entries.keys,
            Node::Leaf(entries) => entries.keys,
        }
    }
}

/// The entries of a block whose header has passed [`NodeHeader::check`] for values of this size.
fn entries_of<'a, V: NodeValue>(block: &'a Block, header: &NodeHeader) -> Entries<'a, V> {
    let (entries, max_entries) = (header.entries.get() as usize, header.max_entries.get() as usize);
    let (keys, values) = block.0[HEADER_BYTES..].split_at(max_entries * KEY_BYTES);
    let fits = "the header was checked: that many entries fit, and they need no alignment";
    Entries {
        keys: <[U64]>::ref_from_prefix_with_elems(keys, entries).expect(fits).0,
        values: <[V]>::ref_from_prefix_with_elems(values, entries).expect(fits).0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_those_of_the_format() {
        assert_eq!([8, 16, 24, 4].map(capacity), [252, 168, 126, 336]);
        assert_eq!([8, 16, 24, 4].map(|size| smallest_occupancy(capacity(size))), [84, 56, 42, 112]);
    }

    #[test]
    fn searches_find_the_child_and_the_entry() {
        let keys = [10, 20, 30].map(U64::new);
        let entries = Entries { keys: &keys, values: &keys };
        assert_eq!(
            [9, 10, 19, 20, 31].map(|key| entries.floor(key)),
            [None, Some(0), Some(0), Some(1), Some(2)]
        );
        assert_eq!([0, 10, 11, 30, 31].map(|key| entries.lower_bound(key)), [0, 0, 1, 2, 3]);
        assert_eq!([10, 11, 30].map(|key| entries.find(key)), [Some(0), None, Some(2)]);
        assert_eq!(entries.key_span(), Some((10, 30)));
        assert!(entries.keys_ascend());
        let equal = [10, 10].map(U64::new);
        assert!(!Entries { keys: &equal, values: &equal }.keys_ascend());
    }

    #[test]
    fn a_header_that_cannot_be_is_a_fault() {
        let mut block = Block::ZERO;
        assert_eq!(Node::<U64>::parse(&block).unwrap_err(), NodeFault::Flags { found: 0 });
        let mut set = |flags: u32, entries: u32, max_entries: u32, value_size: u32| {
            block.0[4..8].copy_from_slice(&flags.to_le_bytes());
            block.0[16..20].copy_from_slice(&entries.to_le_bytes());
            block.0[20..24].copy_from_slice(&max_entries.to_le_bytes());
            block.0[24..28].copy_from_slice(&value_size.to_le_bytes());
            Node::<U64>::parse(&block).map(|node| node.keys().len())
        };
        assert_eq!(set(2, 252, 252, 8), Ok(252));
        assert_eq!(set(1, 0, 249, 8), Ok(0));
        assert_eq!(set(3, 1, 252, 8), Err(NodeFault::Flags { found: 3 }));
        assert_eq!(set(2, 1, 126, 24), Err(NodeFault::ValueSize { found: 24, expected: 8 }));
        assert_eq!(set(2, 1, 255, 8), Err(NodeFault::MaxEntries { found: 255, expected: 252 }));
        assert_eq!(set(2, 1, 251, 8), Err(NodeFault::MaxEntries { found: 251, expected: 252 }));
        assert_eq!(set(2, 1, u32::MAX, 8), Err(NodeFault::MaxEntries { found: u32::MAX, expected: 252 }));
        assert_eq!(set(2, 253, 252, 8), Err(NodeFault::Entries { found: 253, max_entries: 252 }));
    }
}
