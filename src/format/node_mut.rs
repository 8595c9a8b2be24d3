//! B-tree nodes, write side.
//!
//! [`NodeMut`] changes nodes that are ours and sound: made by [`NodeMut::initialise`], or read, verified and copied. An
//! index out of range or a value of the wrong size is therefore our own bug and panics. Neither key order nor occupancy
//! is looked at here.

use super::block::Block;
use super::node::{NodeHeader, NodeKind, NodeValue, capacity};
use crate::units::MetaBlock;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const KEY_BYTES: usize = size_of::<U64>();
const HEADER_BYTES: usize = size_of::<NodeHeader>();

/// A node that may be changed.
pub struct NodeMut<'a> {
    block: &'a mut Block,
}

impl<'a> NodeMut<'a> {
    /// Makes an empty node out of a block with any content.
    pub fn initialise(block: &'a mut Block, kind: NodeKind, value_size: usize) -> Self {
        block.0.fill(0);
        let header = NodeHeader {
            checksum: U32::ZERO,
            flags: U32::new(kind.flags()),
            number: U64::ZERO,
            entries: U32::ZERO,
            max_entries: U32::new(capacity(value_size) as u32),
            value_size: U32::new(value_size as u32),
            padding: U32::ZERO,
        };
        block.0[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        NodeMut { block }
    }

    /// A node that is sound already.
    pub fn new(block: &'a mut Block) -> Self {
        let header = NodeHeader::decode(block);
        assert!(
            header.kind().is_some() && header.has_usual_capacity() && header.entries <= header.max_entries,
            "only sound nodes are changed, not {header:?}"
        );
        NodeMut { block }
    }

    fn header(&self) -> &NodeHeader {
        NodeHeader::decode(self.block)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.header().entries.get() as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing more fits.
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    fn value_size(&self) -> usize {
        self.header().value_size.get() as usize
    }

    fn capacity(&self) -> usize {
        self.header().max_entries.get() as usize
    }

    fn set_len(&mut self, entries: usize) {
        assert!(entries <= self.capacity(), "a node takes {} entries, not {entries}", self.capacity());
        self.block.0[16..20].copy_from_slice(&(entries as u32).to_le_bytes());
    }

    fn key_at(&self, index: usize) -> usize {
        HEADER_BYTES + index * KEY_BYTES
    }

    fn value_at(&self, index: usize) -> usize {
        self.key_at(self.capacity()) + index * self.value_size()
    }

    /// Replaces the key of an entry.
    pub fn set_key(&mut self, index: usize, key: u64) {
        assert!(index < self.len(), "entry {index} of {}", self.len());
        let at = self.key_at(index);
        self.block.0[at..at + KEY_BYTES].copy_from_slice(&key.to_le_bytes());
    }

    /// Replaces the value of an entry.
    pub fn set_value<V: NodeValue>(&mut self, index: usize, value: V) {
        assert!(index < self.len(), "entry {index} of {}", self.len());
        assert_eq!(size_of::<V>(), self.value_size(), "values have the node's size");
        let at = self.value_at(index);
        self.block.0[at..at + size_of::<V>()].copy_from_slice(value.as_bytes());
    }

    /// Replaces the child of an internal node's entry.
    pub fn set_child(&mut self, index: usize, child: MetaBlock) {
        self.set_value(index, U64::new(child.0));
    }

    /// Puts all these entries into an empty node, which must have room for them.
    pub fn fill<V: NodeValue>(&mut self, entries: &[(u64, V)]) {
        assert!(self.is_empty(), "only an empty node is filled");
        assert_eq!(size_of::<V>(), self.value_size(), "values have the node's size");
        self.set_len(entries.len());
        let (keys, values) =
            (self.key_at(0)..self.key_at(entries.len()), self.value_at(0)..self.value_at(entries.len()));
        for (bytes, (key, _)) in self.block.0[keys].chunks_exact_mut(KEY_BYTES).zip(entries) {
            bytes.copy_from_slice(&key.to_le_bytes());
        }
        for (bytes, (_, value)) in self.block.0[values].chunks_exact_mut(size_of::<V>()).zip(entries) {
            bytes.copy_from_slice(value.as_bytes());
        }
    }

    /// Puts an entry before the `index`-th. There must be room.
    pub fn insert<V: NodeValue>(&mut self, index: usize, key: u64, value: V) {
        let entries = self.len();
        assert!(index <= entries, "entry {index} of {entries}");
        self.set_len(entries + 1);
        let keys = self.key_at(index)..self.key_at(entries);
        let values = self.value_at(index)..self.value_at(entries);
        let (keys_to, values_to) = (self.key_at(index + 1), self.value_at(index + 1));
        self.block.0.copy_within(keys, keys_to);
        self.block.0.copy_within(values, values_to);
        self.set_key(index, key);
        self.set_value(index, value);
    }

    /// Removes a range of entries.
    pub fn remove(&mut self, range: std::ops::Range<usize>) {
        let entries = self.len();
        assert!(range.start <= range.end && range.end <= entries, "entries {range:?} of {entries}");
        let keys = self.key_at(range.end)..self.key_at(entries);
        let values = self.value_at(range.end)..self.value_at(entries);
        let (keys_to, values_to) = (self.key_at(range.start), self.value_at(range.start));
        self.block.0.copy_within(keys, keys_to);
        self.block.0.copy_within(values, values_to);
        self.set_len(entries - range.len());
    }

    /// Adds entries, given as bytes of keys and values, before the `index`-th. There must be room.
    pub fn insert_bytes(&mut self, index: usize, entries: &EntryBytes) {
        let old = self.len();
        assert!(index <= old, "entry {index} of {old}");
        assert_eq!(entries.value_size, self.value_size(), "values have the node's size");
        let added = entries.len();
        let keys = self.key_at(index)..self.key_at(old);
        let values = self.value_at(index)..self.value_at(old);
        self.set_len(old + added);
        self.block.0.copy_within(keys.clone(), keys.start + entries.keys.len());
        self.block.0.copy_within(values.clone(), values.start + entries.values.len());
        self.block.0[keys.start..keys.start + entries.keys.len()].copy_from_slice(&entries.keys);
        self.block.0[values.start..values.start + entries.values.len()].copy_from_slice(&entries.values);
    }

    /// A copy of a range of entries.
    pub fn copy_bytes(&self, range: std::ops::Range<usize>) -> EntryBytes {
        EntryBytes::of(self.block, range)
    }
}

/// Entries on their way from one node to another.
pub struct EntryBytes {
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl EntryBytes {
    /// A copy of a range of entries of a sound node.
    pub fn of(block: &Block, range: std::ops::Range<usize>) -> Self {
        let header = NodeHeader::decode(block);
        assert!(range.end <= header.entries.get() as usize, "entries {range:?} of {header:?}");
        let value_size = header.value_size.get() as usize;
        let values_begin = HEADER_BYTES + header.max_entries.get() as usize * KEY_BYTES;
        let keys = HEADER_BYTES + range.start * KEY_BYTES..HEADER_BYTES + range.end * KEY_BYTES;
        let values = values_begin + range.start * value_size..values_begin + range.end * value_size;
        EntryBytes { value_size, keys: block.0[keys].to_vec(), values: block.0[values].to_vec() }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.keys.len() / KEY_BYTES
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The first key, `None` if there are no entries.
    pub fn first_key(&self) -> Option<u64> {
        U64::read_from_prefix(&self.keys).ok().map(|(key, _)| key.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Node;

    fn pairs(block: &Block) -> Vec<(u64, u32)> {
        match Node::<U32>::parse(block).unwrap() {
            Node::Leaf(entries) => entries.iter().map(|(key, value)| (key, value.get())).collect(),
            Node::Internal(_) => panic!("a leaf was made"),
        }
    }

    #[test]
    fn entries_go_in_and_out_where_they_should() {
        let mut block = Block([0xff; 4096]);
        let mut node = NodeMut::initialise(&mut block, NodeKind::Leaf, 4);
        for (index, key) in [(0, 5), (1, 9), (0, 1), (2, 7)] {
            node.insert(index, key, U32::new(key as u32 * 10));
        }
        assert_eq!(node.len(), 4);
        let middle = node.copy_bytes(1..3);
        assert_eq!((middle.len(), middle.first_key()), (2, Some(5)));
        node.remove(1..3);
        node.set_key(1, 8);
        node.set_value(1, U32::new(88));
        assert_eq!(pairs(&block), [(1, 10), (8, 88)]);
        NodeMut::new(&mut block).insert_bytes(1, &middle);
        assert_eq!(pairs(&block), [(1, 10), (5, 50), (7, 70), (8, 88)]);
    }

    #[test]
    fn a_full_node_holds_its_capacity_to_the_last_byte() {
        for size in [4, 8, 16, 24] {
            let mut block = Block::ZERO;
            let mut node = NodeMut::initialise(&mut block, NodeKind::Leaf, size);
            let entry = EntryBytes { value_size: size, keys: vec![0xab; 8], values: vec![0xcd; size] };
            for index in 0..capacity(size) {
                node.insert_bytes(index, &entry);
            }
            let header = NodeHeader::decode(&block);
            assert_eq!(header.check(size), Ok(NodeKind::Leaf));
            let used = HEADER_BYTES + capacity(size) * (KEY_BYTES + size);
            assert_eq!(block.0[used - 1], 0xcd);
            assert!(block.0[used..].iter().all(|byte| *byte == 0));
        }
    }
}
