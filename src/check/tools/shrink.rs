//! A pool made to fit a smaller data device: what lies beyond the new end moves into free blocks below it.
//!
//! The mappings come as a stream, twice: once to see what is used, once to be written with the new places. Targets are blocks
//! that nothing refers to, and data are copied and flushed before the new metadata are written to another place: until
//! somebody cuts the data device off, the old metadata stay as good as they were.

use crate::check::counts::Counts;
use crate::check::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, SECTOR_BYTES};

/// Bytes that are copied at once.
const PIECE_BYTES: u64 = 4 << 20;

/// Data blocks that move, all of them to smaller numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Move {
    from: u64,
    to: u64,
    length: u64,
}

/// What becomes of a pool's data blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::check) struct Moves {
    block_bytes: u64,
    data_blocks: u64,
    /// By `from`.
    moves: Vec<Move>,
}

impl Moves {
    /// Blocks that move.
    pub(in crate::check) fn blocks(&self) -> u64 {
        self.moves.iter().map(|one| one.length).sum()
    }

    /// Bytes that are copied.
    pub(in crate::check) fn copied_bytes(&self) -> u64 {
        self.blocks() * self.block_bytes
    }

    /// The bytes that the data device needs afterwards.
    pub(in crate::check) fn data_bytes(&self) -> u64 {
        self.data_blocks * self.block_bytes
    }

    /// Copies what moves, and flushes it. `told` hears how many bytes are done.
    pub(in crate::check) fn copy(&self, data: &dyn Disk, told: &mut dyn FnMut(u64)) -> Result<()> {
        let mut buffer = AlignedBuffer::zeroed(PIECE_BYTES as usize);
        let failed = |doing: &str, error: std::io::Error| {
            Error::io(format_args!("{}: {doing}", data.name()), &error)
                .hint("nothing refers to the copies yet: the pool is as it was")
        };
        for one in &self.moves {
            let (from, to) = (one.from * self.block_bytes, one.to * self.block_bytes);
            let length = one.length * self.block_bytes;
            let mut done = 0;
            while done < length {
                let piece = &mut buffer[..(length - done).min(PIECE_BYTES) as usize];
                data.read_at(from + done, piece).map_err(|error| failed("reading", error))?;
                data.write_at(to + done, piece).map_err(|error| failed("writing", error))?;
                done += piece.len() as u64;
                told(piece.len() as u64);
            }
        }
        data.flush().map_err(|error| failed("flushing", error))
    }

    /// The new place of `block`, and how many blocks from there on go with it.
    fn place_of(&self, block: u64) -> (u64, u64) {
        if block < self.data_blocks {
            return (block, self.data_blocks - block);
        }
        let next = self.moves.partition_point(|one| one.from <= block);
        let one = self.moves[next - 1]; // the same mappings were surveyed
        let inside = block - one.from;
        (one.to + inside, one.length - inside)
    }
}

/// Takes in what a pool uses.
pub(in crate::check) struct Survey<'a> {
    data: &'a dyn Disk,
    pool: Option<(PoolRecord, u64)>,
    used: Counts,
}

impl<'a> Survey<'a> {
    /// Of the pool whose data are on `data`.
    pub(in crate::check) fn new(data: &'a dyn Disk) -> Self {
        Survey { data, pool: None, used: Counts::new(0) }
    }

    /// What has to move, for the pool to end at `data_blocks`. `NoDataSpace` when it does not fit.
    pub(in crate::check) fn moves(&self, data_blocks: u64) -> Result<Moves> {
        let Some((pool, block_bytes)) = &self.pool else {
            return Err(Error::new(ErrorKind::Invalid, "no pool was described"));
        };
        if data_blocks > pool.data_blocks {
            let message =
                format!("{data_blocks} data blocks are more than the pool has: {}", pool.data_blocks);
            return Err(Error::new(ErrorKind::Invalid, message).hint(
                "to make it larger, enlarge its data device; the pool takes it into use (`uthin pool grow`, `lvextend`)",
            ));
        }
        let is_used = |block: &u64| self.used.get(*block) > 0;
        let mut free = (0..data_blocks).filter(|block| !is_used(block));
        let mut moves: Vec<Move> = Vec::new();
        let mut homeless = 0_u64;
        for from in (data_blocks..pool.data_blocks).filter(is_used) {
            let Some(to) = free.next() else {
                homeless += 1;
                continue;
            };
            match moves.last_mut() {
                Some(last) if last.from + last.length == from && last.to + last.length == to => {
                    last.length += 1
                }
                _ => moves.push(Move { from, to, length: 1 }),
            }
        }
        if homeless > 0 {
            let message = format!(
                "{} data blocks are in use, {homeless} more than fit into {data_blocks}",
                data_blocks + homeless
            );
            return Err(Error::new(ErrorKind::NoDataSpace, message)
                .hint("delete volumes, or discard what their filesystems do not use (fstrim), or ask for more blocks"));
        }
        Ok(Moves { block_bytes: *block_bytes, data_blocks, moves })
    }
}

impl Sink for Survey<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        let sectors = u64::from(pool.data_block_sectors);
        let Some(size) = BlockSize::from_sectors(sectors) else {
            let message = format!("a data block size of {sectors} sectors of {SECTOR_BYTES} bytes");
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        let needed = pool.data_blocks.saturating_mul(size.bytes());
        if self.data.size_bytes() < needed {
            let message = format!(
                "{}: {} bytes, where the pool has {} blocks of {} bytes",
                self.data.name(),
                self.data.size_bytes(),
                pool.data_blocks,
                size.bytes()
            );
            return Err(Error::new(ErrorKind::Invalid, message).hint("is this the pool's data device?"));
        }
        self.used = Counts::new(pool.data_blocks);
        self.pool = Some((pool.clone(), size.bytes()));
        Ok(())
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        for index in 0..run.length {
            let block = run.data_begin.saturating_add(index);
            if !self.used.add(block) {
                let blocks = self.pool.as_ref().map_or(0, |(pool, _)| pool.data_blocks);
                let message = format!("data block {block} is past the end, {blocks} blocks");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        Ok(())
    }

    fn begin_shared(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn end_shared(&mut self) -> Result<()> {
        Ok(())
    }
    fn begin_volume(&mut self, _: &VolumeRecord) -> Result<()> {
        Ok(())
    }
    fn end_volume(&mut self) -> Result<()> {
        Ok(())
    }
    fn shared(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn end_pool(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Passes a pool on with its blocks in their new places.
pub(in crate::check) struct Moved<'a> {
    moves: &'a Moves,
    to: &'a mut dyn Sink,
}

impl<'a> Moved<'a> {
    /// To `to`, the pool from which `moves` were made.
    pub(in crate::check) fn new(moves: &'a Moves, to: &'a mut dyn Sink) -> Self {
        Moved { moves, to }
    }
}

impl Sink for Moved<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        self.to.begin_pool(&PoolRecord { data_blocks: self.moves.data_blocks, ..pool.clone() })
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let mut done = 0;
        while done < run.length {
            let (data_begin, together) = self.moves.place_of(run.data_begin + done);
            let length = together.min(run.length - done);
            self.to.run(&Run { begin: run.begin + done, data_begin, length, time: run.time })?;
            done += length;
        }
        Ok(())
    }

    fn begin_shared(&mut self, name: u64) -> Result<()> {
        self.to.begin_shared(name)
    }
    fn end_shared(&mut self) -> Result<()> {
        self.to.end_shared()
    }
    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()> {
        self.to.begin_volume(volume)
    }
    fn end_volume(&mut self) -> Result<()> {
        self.to.end_volume()
    }
    fn shared(&mut self, name: u64) -> Result<()> {
        self.to.shared(name)
    }
    fn end_pool(&mut self) -> Result<()> {
        self.to.end_pool()
    }
}
