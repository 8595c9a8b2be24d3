//! The first look: whether this is a pool's metadata at all, and what block 0 says.

use super::report::{Findings, Severity};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, SUPERBLOCK_MAGIC, Superblock};
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use std::ops::Range;

/// Where the superblock's fields end; behind them everything is zero unless somebody extended the format.
const FIELDS_END: usize = 364;
/// What is behind them in a superblock with a tree of partial blocks, and in one that names a journal.
const PARTIAL_FIELDS: [Range<usize>; 2] = [364..372, 396..404];
const JOURNAL_FIELDS: Range<usize> = 372..396;

/// Beginnings of things that are given instead of metadata by mistake.
const LOOKS_LIKE: [(&[u8], usize, &str); 7] = [
    (b"<superblock", 0, "it is an XML dump; thin_restore makes metadata of it"),
    (b"<?xml", 0, "it is an XML file; thin_restore makes metadata of a dump"),
    (b"\x28\xb5\x2f\xfd", 0, "it is compressed with zstd; unpack it first"),
    (b"\x1f\x8b", 0, "it is compressed with gzip; unpack it first"),
    (b"QFI\xfb", 0, "it is a qcow2 image"),
    (b"LABELONE", 512, "it is an LVM physical volume; give the hidden volume POOL_tmeta in it"),
    (b"\x53\xef", 1080, "it holds an ext filesystem"),
];

/// The superblock, judged. What is wrong with it but lets the walk go on is added to `findings`.
pub(super) fn read_superblock(disk: &dyn Disk, findings: &mut Findings) -> Result<Superblock> {
    let name = disk.name();
    let block = require_pool(disk)?;
    let superblock = Superblock::decode(&block);
    match Superblock::read(&block, MetaBlock::SUPERBLOCK) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error.context(name)),
        Err(error) => {
            let message = error.message();
            findings.note(Severity::Damage, Some(MetaBlock::SUPERBLOCK), "superblock", message);
        }
    }
    notes(&block, &superblock, findings);
    Ok(superblock)
}

/// The first block, which must be a superblock, damaged or not.
pub(super) fn require_pool(disk: &dyn Disk) -> Result<Block> {
    let name = disk.name();
    if disk.size_bytes() < META_BLOCK_BYTES as u64 {
        return Err(too_small(&name, disk.size_bytes()));
    }
    let mut block = Block::ZERO;
    disk.read_at(0, &mut block.0)
        .map_err(|error| Error::io(format_args!("{name}: reading block 0"), &error))?;
    let has_magic = Superblock::decode(&block).magic == SUPERBLOCK_MAGIC;
    let is_ours = has_magic || block.kind() == Some(BlockKind::Superblock);
    if is_ours { Ok(block) } else { Err(not_metadata(&name, &block)) }
}

pub(super) fn too_small(name: &str, size_bytes: u64) -> Error {
    let message = format!("{name}: no pool's metadata: {size_bytes} bytes are too few");
    Error::new(ErrorKind::Invalid, message)
        .hint("metadata is many blocks of 4096 bytes; was the right file given, and copied in full?")
}

/// There are changes on top of this commit. (A metadata snapshot is what it is.)
pub(super) fn note_journal(superblock: &Superblock, findings: &mut Findings) {
    if let Some(journal) = superblock.journal() {
        let message = format!(
            "a journal holds changes on top of this commit (number {:#x}, generation {}): the pool was not closed. Serving it \
             brings them in",
            journal.id, journal.generation
        );
        findings.note(Severity::Note, Some(MetaBlock::SUPERBLOCK), "superblock", message);
    }
}

/// What is unusual and wrong for nobody.
fn notes(block: &Block, superblock: &Superblock, findings: &mut Findings) {
    let extended = superblock.partial_tree().is_some();
    let partial_root = superblock.partial_fields.root;
    if !extended && partial_root.0 != 0 {
        let message = format!(
            "names a tree of partial blocks, at {partial_root}, without the feature that goes with it"
        );
        findings.note(Severity::Damage, Some(MetaBlock::SUPERBLOCK), "superblock", message);
    }
    let mut note = |message: String| {
        findings.note(Severity::Note, Some(MetaBlock::SUPERBLOCK), "superblock", message);
    };
    if superblock.needs_check() {
        note("needs_check is set: the pool had an error that it could not mend".to_owned());
    }
    if superblock.compat_ro_flags != 0 {
        note(format!(
            "unknown features {:#x} that forbid writing; reading goes on as if they meant nothing",
            superblock.compat_ro_flags
        ));
    }
    if superblock.compat_flags != 0 {
        note(format!("unknown compatible features {:#x}", superblock.compat_flags));
    }
    let mut rest = block.0;
    if extended || partial_root.0 != 0 {
        PARTIAL_FIELDS.into_iter().for_each(|field| rest[field].fill(0));
    }
    if superblock.journal().is_some() {
        rest[JOURNAL_FIELDS].fill(0);
    }
    if let Some(at) = rest[FIELDS_END..].iter().position(|byte| *byte != 0) {
        note(format!("bytes behind the last field (from {} on) are not zero", FIELDS_END + at));
    }
}

pub(super) fn not_metadata(name: &str, block: &Block) -> Error {
    let error = |words: &str| Error::new(ErrorKind::Invalid, format!("{name}: {words}"));
    if block.is_zero() {
        return error("no pool's metadata: the first block is all zeros")
            .hint("a pool that was never opened, or a wiped device; was the data device given instead?");
    }
    error("no pool's metadata: neither magic nor checksum of a superblock in block 0")
        .hint(looks_like(&block.0).unwrap_or("was the data device given instead of the metadata?"))
}

/// What a file is that begins with these bytes, if it is something that people have beside metadata.
pub(super) fn looks_like(beginning: &[u8]) -> Option<&'static str> {
    let begins_with =
        |bytes, offset| beginning.get(offset..).is_some_and(|rest: &[u8]| rest.starts_with(bytes));
    LOOKS_LIKE.iter().find(|(bytes, offset, _)| begins_with(bytes, *offset)).map(|(_, _, words)| *words)
}
