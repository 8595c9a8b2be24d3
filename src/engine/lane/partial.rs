//! What a lane does with partial blocks: reads from two places, writes of units that are not there yet, settling.
//!
//! A write of units that are not there claims them first, so that nobody else writes them meanwhile; writes them as a whole
//! (what the request leaves out comes from the base); and only then says that they are there, before it completes. Units that
//! are there are written like any block's bytes: exactly what the request covers.

use super::{Ending, Fill, Lane, Piece, Step, Work, op_id};
use crate::engine::origin::Origin;
use crate::engine::partials::Claim;
use crate::engine::request::{Action, Ask, CHUNK_BYTES, FillSource, IoError, Kind, Place};
use crate::metadata::{Base, Partial};
use crate::units::{BlockSize, DataBlock, VirtualBlock};
use std::sync::atomic::Ordering;

/// The bytes of settling: none of them are a client's. The block is where the base, if it is an origin, is read.
fn no_piece(base: Base) -> Piece {
    let block = match base {
        Base::Origin(block) => block,
        Base::Zeros | Base::Block(_) => VirtualBlock(0),
    };
    Piece { block, at_bytes: 0, length_bytes: 0, request_bytes: 0 }
}

/// A partial block, as it was when the lane looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub block: DataBlock,
    pub partial: Partial,
}

impl Seen {
    /// What is read at a byte of the block, and up to which byte.
    pub fn source_at(self, size: BlockSize, at_bytes: u64) -> (FillSource, u64) {
        let unit = at_bytes / size.unit_bytes();
        let is_there = self.partial.units >> unit & 1 == 1;
        let from_here = if is_there { !self.partial.units } else { self.partial.units } >> unit;
        let end_bytes = (unit + u64::from(from_here.trailing_zeros())).saturating_mul(size.unit_bytes());
        let source = match (is_there, self.partial.base) {
            (true, _) => FillSource::Block(self.block),
            (false, base) => source_of(base),
        };
        (source, end_bytes.min(size.bytes()))
    }
}

impl Lane {
    /// What is partial of a block.
    pub(super) fn look_closer(&self, op: usize, block: DataBlock) -> Option<Seen> {
        self.volume_of(op).partials().get(block).map(|partial| Seen { block, partial })
    }

    /// Reads the piece of a partial block, of which `done_bytes` are there already, from where it is.
    pub(super) fn read_parts(
        &mut self,
        op: usize,
        piece: Piece,
        seen: Seen,
        mut done_bytes: u64,
        out: &mut Vec<Action>,
    ) {
        let tag = self.requests.get(self.ops.get(op).request).request.tag;
        while done_bytes < piece.length_bytes {
            let at_bytes = piece.at_bytes + done_bytes;
            let (source, end_bytes) = seen.source_at(self.block_size, at_bytes);
            let length_bytes = end_bytes.min(piece.end_bytes()) - at_bytes;
            let offset_bytes = piece.request_bytes + done_bytes;
            match source {
                FillSource::Block(block) => {
                    done_bytes += length_bytes;
                    self.ops.get_mut(op).step = Step::ReadingParts { seen, done_bytes };
                    return out.push(Action::ReadData {
                        op: op_id(op),
                        disk_offset_bytes: self.disk_offset(block, at_bytes),
                        length_bytes,
                        into: Place::Request(tag, offset_bytes),
                    });
                }
                FillSource::Origin => {
                    let begin = self.volume_byte(piece) + done_bytes;
                    let Some(origin_bytes) = self.bytes_of_origin(op, begin, length_bytes) else {
                        return self.finish(op, Err(IoError::Io), out);
                    };
                    if origin_bytes < length_bytes {
                        out.push(Action::ZeroRequest {
                            tag,
                            offset_bytes: offset_bytes + origin_bytes,
                            length_bytes: length_bytes - origin_bytes,
                        });
                    }
                    done_bytes += length_bytes;
                    if origin_bytes > 0 {
                        self.ops.get_mut(op).step = Step::ReadingParts { seen, done_bytes };
                        let into = Place::Request(tag, offset_bytes);
                        return self.read_origin(op, begin, origin_bytes, into, out);
                    }
                }
                FillSource::Zeros | FillSource::Nothing => {
                    done_bytes += length_bytes;
                    out.push(Action::ZeroRequest { tag, offset_bytes, length_bytes });
                }
            }
        }
        self.finish(op, Ok(()), out);
    }

    /// Writes the piece into a block that nobody else can see, partial or not.
    pub(super) fn write_own(&mut self, op: usize, piece: Piece, block: DataBlock, out: &mut Vec<Action>) {
        let Some(seen) = self.look_closer(op, block) else {
            return self.write_in_place(op, piece, block, 0, out);
        };
        let touched = self.block_size.units_touched(piece.at_bytes..piece.end_bytes());
        match self.volume_of(op).partials().claim(block, touched) {
            Claim::Won(0) => self.write_in_place(op, piece, block, 0, out),
            Claim::Won(units) => {
                // A unit at either end that was not there is written as a whole, one that was only as far as the request goes.
                let whole = self.block_size.unit_range(piece.at_bytes..piece.end_bytes());
                let (first, last) = (touched & touched.wrapping_neg(), 1 << touched.ilog2());
                let begin = if units & first != 0 { whole.start } else { piece.at_bytes };
                let end_bytes = if units & last != 0 { whole.end } else { piece.end_bytes() };
                let fill = Fill {
                    target: block,
                    source: source_of(seen.partial.base),
                    above: None,
                    written_bytes: begin,
                    end_bytes,
                    ending: Ending::Put(units),
                };
                self.fill(op, piece, fill, out);
            }
            Claim::Lost(units) => self.ask(op, Ask::AwaitUnits(block, units), out),
        }
    }

    /// The first write to a block that is to be a partial one: only the units that the piece touches are written.
    pub(super) fn fill_part(
        &mut self,
        op: usize,
        piece: Piece,
        (target, source): (DataBlock, FillSource),
        out: &mut Vec<Action>,
    ) {
        let range = self.block_size.unit_range(piece.at_bytes..piece.end_bytes());
        let units = self.block_size.units_touched(range.clone());
        let is_whole = units == self.block_size.all_units();
        let ending = if is_whole { Ending::Publish } else { Ending::PublishPart(units) };
        let fill =
            Fill { target, source, above: None, written_bytes: range.start, end_bytes: range.end, ending };
        self.fill(op, piece, fill, out);
    }

    /// The claimed units of a partial block are written: they are there from now on. With a journal it is for the keeper to say
    /// that, once it is recorded: whoever sees them there writes in place and is acknowledged.
    pub(super) fn put_units(&mut self, op: usize, fill: Fill, units: u64, out: &mut Vec<Action>) {
        if self.volume_of(op).partials().is_recorded.load(Ordering::Relaxed) {
            self.ops.get_mut(op).step = Step::Putting { fill, units };
            return out.push(Action::Ask { op: op_id(op), ask: Ask::PutUnits(fill.target, units) });
        }
        self.volume_of(op).partials().put(fill.target, units);
        out.push(Action::DropScratch { op: op_id(op) });
        self.finish(op, Ok(()), out);
    }

    /// The claimed units of a partial block could not be written: it is as it was. The op ends with `result`.
    pub(super) fn give_units_back(
        &mut self,
        op: usize,
        fill: Fill,
        units: u64,
        result: Result<(), IoError>,
        out: &mut Vec<Action>,
    ) {
        self.volume_of(op).partials().give_back(fill.target, units);
        out.push(Action::DropScratch { op: op_id(op) });
        self.finish(op, result, out);
    }

    /// Whether it is the settler's.
    pub(super) fn settles(&self, op: usize) -> bool {
        matches!(self.requests.get(self.ops.get(op).request).request.kind, Kind::Settle)
    }

    /// What a block is settled from cannot be read, or the block not written: it stays as it is for now, and others are settled.
    pub(super) fn leave_unsettled(&mut self, op: usize, fill: Fill, units: u64, out: &mut Vec<Action>) {
        self.volume_of(op).partials().set_stuck(fill.target);
        self.give_units_back(op, fill, units, Ok(()), out);
    }

    /// Fills a stretch of a partial block's missing units from its base, as long as one buffer holds, or one unit.
    pub(super) fn settle(
        &mut self,
        op: usize,
        block: DataBlock,
        origin: Option<Origin>,
        out: &mut Vec<Action>,
    ) {
        let Some(seen) = self.look_closer(op, block) else { return self.finish(op, Ok(()), out) };
        let unit_bytes = self.block_size.unit_bytes();
        let missing = self.volume_of(op).partials().unclaimed(block);
        let first = missing.trailing_zeros();
        if missing == 0 {
            return self.finish(op, Ok(()), out);
        }
        let run = u64::from((!(missing >> first)).trailing_zeros()).min((CHUNK_BYTES / unit_bytes).max(1));
        let begin = u64::from(first) * unit_bytes;
        let end_bytes = (begin + run * unit_bytes).min(self.block_size.bytes());
        let units = self.block_size.units_touched(begin..end_bytes);
        match self.volume_of(op).partials().claim(block, units) {
            Claim::Won(won) if won == units => {
                let place = no_piece(seen.partial.base);
                self.ops.get_mut(op).work = Work::Move(place);
                let request = self.ops.get(op).request;
                self.requests.get_mut(request).origin = origin;
                self.volume_of(op).partials().settled.fetch_add(1, Ordering::Relaxed);
                let fill = Fill {
                    target: block,
                    source: source_of(seen.partial.base),
                    above: None,
                    written_bytes: begin,
                    end_bytes,
                    ending: Ending::Put(units),
                };
                self.fill(op, place, fill, out);
            }
            // Somebody has come between; there will be another time.
            Claim::Won(won) => {
                self.volume_of(op).partials().give_back(block, won);
                self.finish(op, Ok(()), out);
            }
            Claim::Lost(_) => self.finish(op, Ok(()), out),
        }
    }
}

fn source_of(base: Base) -> FillSource {
    match base {
        Base::Zeros => FillSource::Zeros,
        Base::Block(block) => FillSource::Block(block),
        Base::Origin(_) => FillSource::Origin,
    }
}
