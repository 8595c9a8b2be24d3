//! Metadata in the packed form of thin_metadata_pack (version 3): for mailing a pool's metadata to whoever can help.
//!
//! A header, then chunks: a length and that many bytes of zlib, in which each record is a block number and a program that
//! yields the block (`program`). Blocks that no checksum identifies are not stored and unpack to zeros. Any bytes are taken:
//! what is no packed metadata is an error with the place in the file.

mod program;

use super::source::Source;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Block;
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use std::fmt;
use std::io::{Read, Write};

const MAGIC: u64 = 0xa537_a0aa_6309_ef77;
const VERSION: u64 = 3;
const HEADER_BYTES: usize = 32;
/// Records of a chunk.
const CHUNK_RECORDS: usize = 1024;
/// No program that yields a block is longer: nine bytes for each of its values.
const RECORD_BYTES_LIMIT: u64 = 8 + 9 * META_BLOCK_BYTES as u64;

/// Whether a checksum identifies any block: damaged metadata have some, what was given by mistake has none.
pub(super) fn has_any(source: Source<'_>) -> Result<bool> {
    let is_identified = |block: &Block| !block.is_zero() && block.kind().is_some();
    let mut has_any = is_identified(&*source.raw(MetaBlock::SUPERBLOCK)?);
    if !has_any {
        source.sweep(&mut |_, block| has_any |= is_identified(block));
    }
    Ok(has_any)
}

/// Packs all identified blocks of a device. Answers how many there were.
pub(super) fn pack(source: Source<'_>, out: &mut dyn Write) -> Result<u64> {
    let failed = |error: std::io::Error| Error::io("writing the packed file", &error);
    for word in [MAGIC, VERSION, META_BLOCK_BYTES as u64, source.device_blocks()] {
        out.write_all(&word.to_le_bytes()).map_err(failed)?;
    }
    let (mut chunk, mut records, mut packed) = (Vec::new(), 0, 0);
    let mut outcome = Ok(());
    source.sweep(&mut |number, block| {
        let Some(kind) = (!block.is_zero()).then(|| block.kind()).flatten() else { return };
        chunk.extend_from_slice(&number.0.to_le_bytes());
        program::encode(block, kind, &mut chunk);
        records += 1;
        packed += 1;
        if records == CHUNK_RECORDS && outcome.is_ok() {
            outcome = write_chunk(&chunk, out);
            chunk.clear();
            records = 0;
        }
    });
    outcome.and_then(|()| if records > 0 { write_chunk(&chunk, out) } else { Ok(()) }).map_err(failed)?;
    out.flush().map_err(failed)?;
    Ok(packed)
}

fn write_chunk(records: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(records)?;
    let packed = encoder.finish()?;
    out.write_all(&(packed.len() as u64).to_le_bytes())?;
    out.write_all(&packed)
}

/// A packed file, its header read.
pub(super) struct Packed<'a> {
    input: &'a mut dyn Read,
    /// Bytes read so far.
    position: u64,
    /// Blocks of the device.
    pub(super) blocks: u64,
}

impl<'a> Packed<'a> {
    /// Reads the header.
    pub(super) fn open(input: &'a mut dyn Read) -> Result<Self> {
        let mut packed = Packed { input, position: 0, blocks: 0 };
        let mut header = [0; HEADER_BYTES];
        if !packed.fill(&mut header)? {
            return Err(packed.corrupt("too short for packed metadata"));
        }
        let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|i| header[index * 8 + i]));
        if word(0) != MAGIC {
            return Err(packed.corrupt(format_args!(
                "no packed metadata: found magic {:#x}, expected {MAGIC:#x}",
                word(0)
            )));
        }
        if word(1) != VERSION {
            let message = format!("packed metadata of version {}, expected {VERSION}", word(1));
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if word(2) != META_BLOCK_BYTES as u64 || word(3) == 0 || word(3) > META_BLOCKS_LIMIT * 2 {
            return Err(packed.corrupt(format_args!("{} blocks of {} bytes cannot be", word(3), word(2))));
        }
        packed.blocks = word(3);
        Ok(packed)
    }

    /// Writes every block to `disk`, which must be large enough and all zeros. Answers how many there were.
    pub(super) fn unpack(mut self, disk: &dyn Disk) -> Result<u64> {
        let mut unpacked = 0;
        let mut length = [0; 8];
        while self.fill(&mut length)? {
            let length = u64::from_le_bytes(length);
            let mut compressed = Vec::new();
            let begin = self.position;
            let read =
                self.input.take(length).read_to_end(&mut compressed).map_err(|error| read_failed(&error))?;
            self.position += read as u64;
            if read as u64 != length {
                return Err(self.corrupt("the file ends in the middle of a chunk"));
            }
            let mut records = Vec::new();
            let limit = RECORD_BYTES_LIMIT * CHUNK_RECORDS as u64;
            let inflated = ZlibDecoder::new(&compressed[..]).take(limit + 1).read_to_end(&mut records);
            self.position = begin;
            if !inflated.is_ok_and(|count| count as u64 <= limit) {
                return Err(self.corrupt("a chunk that is no zlib stream of records"));
            }
            unpacked += self.unpack_chunk(&records, disk)?;
            self.position = begin + length;
        }
        Ok(unpacked)
    }

    fn unpack_chunk(&self, mut records: &[u8], disk: &dyn Disk) -> Result<u64> {
        let mut unpacked = 0;
        while !records.is_empty() {
            let Some((number, program)) = records.split_first_chunk() else {
                return Err(self.corrupt("a record that is cut short"));
            };
            let number = MetaBlock(u64::from_le_bytes(*number));
            if number.0 >= self.blocks {
                return Err(
                    self.corrupt(format_args!("block {number} of a device of {} blocks", self.blocks))
                );
            }
            let mut block = Block::ZERO;
            records = program::run(program, &mut block)
                .map_err(|why| self.corrupt(format_args!("the program of block {number}: {why}")))?;
            disk.write_at(number.offset_bytes(), &block.0)
                .map_err(|error| Error::io(format_args!("{}: writing", disk.name()), &error))?;
            unpacked += 1;
        }
        Ok(unpacked)
    }

    /// Fills a buffer; `false` at the end of the file.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.corrupt("the file is cut short")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_failed(&error)),
            }
        }
        self.position += filled as u64;
        Ok(true)
    }

    fn corrupt(&self, what: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Corrupt, format!("at byte {}: {what}", self.position))
    }
}

fn read_failed(error: &std::io::Error) -> Error {
    Error::io("reading the packed file", error)
}
