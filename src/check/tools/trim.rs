//! Free data blocks given back to whoever provides the data device.
//!
//! Free is what nothing refers to: every reference is counted first, and a pool with any damage keeps everything.

use crate::check::source::{of_whole_blocks, without_journal};
use crate::check::{CheckOptions, Verdict, look};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR_BYTES;
use std::ops::Range;

/// The most that is given back at once, so that no device is busy with one request for minutes.
const PIECE_BYTES: u64 = 1 << 30;

/// Gives back every data block that nothing refers to. Answers how many bytes. `Unsupported`: not all references are in the metadata's
/// own trees.
pub(in crate::check) fn trim(metadata: &dyn Disk, data: &dyn Disk) -> Result<u64> {
    let looked = look(metadata, &CheckOptions::default())?;
    without_journal(looked.superblock.clone()).and_then(of_whole_blocks)?;
    let references = match (looked.report.verdict, looked.references) {
        (Verdict::Clean | Verdict::Leaks, Some(references)) => references.data,
        (Verdict::Clean | Verdict::Leaks | Verdict::Damage, _) => {
            let message = format!("{}: damaged: nobody can say which blocks are free", metadata.name());
            return Err(
                Error::new(ErrorKind::Corrupt, message).hint("`uthin-fsck check` says what is damaged")
            );
        }
    };
    let block_bytes = u64::from(looked.superblock.data_block_sectors) * SECTOR_BYTES;
    let blocks = looked.superblock.data_space_map.total_blocks.get();
    if blocks.saturating_mul(block_bytes) > data.size_bytes() {
        let message =
            format!("{}: smaller than the pool's {blocks} blocks of {block_bytes} bytes", data.name());
        return Err(Error::new(ErrorKind::Invalid, message).hint("is this the pool's data device?"));
    }
    let mut given_back = 0;
    let mut block = 0;
    while block < blocks {
        let end = (block..blocks).find(|next| references.get(*next) > 0).unwrap_or(blocks);
        discard(data, block * block_bytes..end * block_bytes)?;
        given_back += (end - block) * block_bytes;
        block = (end..blocks).find(|next| references.get(*next) == 0).unwrap_or(blocks);
    }
    Ok(given_back)
}

fn discard(data: &dyn Disk, bytes: Range<u64>) -> Result<()> {
    let mut begin = bytes.start;
    while begin < bytes.end {
        let length = (bytes.end - begin).min(PIECE_BYTES);
        let done = data.discard(begin, length);
        done.map_err(|error| Error::io(format_args!("{}: giving blocks back", data.name()), &error))?;
        begin += length;
    }
    Ok(())
}
