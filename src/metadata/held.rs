//! The metadata snapshot: a copy of the superblock that keeps the trees as they are, for readers beside the running pool
//! (format §7.3).
//!
//! It holds one reference to each of the two roots, and whoever changes a tree from then on leaves the held nodes alone, as
//! they have another holder. There is one at most.

use super::Metadata;
use super::budget::Ask;
use super::space::{Space, Span};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DetailsRecord, MappingRecord, RootRecord, Superblock};
use crate::units::MetaBlock;

impl<D: Disk> Metadata<D> {
    /// Takes a metadata snapshot of the last commit, in force with the next one. There must be nothing to commit
    /// (`WrongState`): what it holds is durable before it is. `Exists` when one is held. Returns its block.
    pub fn reserve_snapshot(&mut self) -> Result<MetaBlock> {
        self.require_changeable()?;
        if let Some(held) = self.held_root() {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("a metadata snapshot is held at block {held}"),
            )
            .hint("release it first"));
        }
        if self.is_dirty() {
            return Err(Error::new(
                ErrorKind::WrongState,
                "a metadata snapshot can only be taken of a commit",
            ));
        }
        self.afford(&Ask::metadata_snapshot())?;
        self.change(|this| {
            let number = this.space.allocate()?;
            let copy = this.superblock.for_metadata_snapshot();
            *this.space.cache.create(number, BlockKind::Superblock) = copy.encode(number);
            this.space.references.metadata.increment(this.mapping_root)?;
            this.space.references.metadata.increment(this.details_root)?;
            (this.shape.held_volumes, this.shape.held_mappings) = (this.shape.volumes, this.shape.mappings);
            this.held_root = number.0;
            Ok(number)
        })
    }

    /// Lets the metadata snapshot go, and all that it alone still held. `NotFound` when none is held.
    pub fn release_snapshot(&mut self) -> Result<()> {
        self.require_changeable()?;
        let held = self.held_root().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "no metadata snapshot is held").hint("reserve one first")
        })?;
        let block = self.space.cache.get(&self.space.disk, held, BlockKind::Superblock)?;
        let copy = Superblock::read(block, held)?;
        self.afford(&Ask::delete())?;
        self.change(|this| {
            this.space.drop_roots(copy.mapping_root, Span::ALL, 0)?;
            this.space.drop_tree::<DetailsRecord>(copy.details_root, Span::ALL, 0)?;
            this.space.release_block(held)?;
            (this.shape.held_volumes, this.shape.held_mappings) = (0, 0);
            this.held_root = 0;
            this.apply_long_log()
        })
    }
}

impl<D: Disk> Space<D> {
    /// Drops one reference to an upper mapping tree, and with the last one those to the volumes' trees that it names.
    fn drop_roots(&mut self, block: MetaBlock, span: Span, depth: usize) -> Result<()> {
        if self.references.metadata.referenced(block)? == 1 {
            match self.children::<RootRecord>(block, span, depth)? {
                Some(children) => {
                    for (span, child) in children {
                        self.drop_roots(child, span, depth + 1)?;
                    }
                }
                None => {
                    for (_, root) in self.entries::<RootRecord>(block)? {
                        self.drop_tree::<MappingRecord>(root.root(), Span::ALL, 0)?;
                    }
                }
            }
        }
        self.release_node::<RootRecord>(block)
    }
}
