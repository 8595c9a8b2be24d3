//! The programs of packed blocks: a machine with one register that appends values and literals to its output.

use crate::checksum::BlockKind;
use crate::format::{Block, NodeHeader, NodeKind};
use crate::units::META_BLOCK_BYTES;

const SET: u8 = 0;
const POS: u8 = 1;
const POS_WIDE: u8 = 2;
const NEG: u8 = 3;
const NEG_WIDE: u8 = 4;
const CONST: u8 = 5;
const CONST_8: u8 = 6;
const COUNT: u8 = 7;
const COUNT_8: u8 = 8;
const LITERAL: u8 = 9;
const LITERAL_WIDE: u8 = 10;
const SHIFTED_RUN: u8 = 11;

/// The largest number in a tag's low half, and in that with the next byte.
const SHORT_LIMIT: usize = 15;
const LONG_LIMIT: usize = 0xfff;

const HEADER_BYTES: usize = size_of::<NodeHeader>();

/// Appends a program that yields `block`.
pub(super) fn encode(block: &Block, kind: BlockKind, out: &mut Vec<u8>) {
    match kind {
        BlockKind::Node => encode_node(block, out),
        BlockKind::Superblock | BlockKind::Bitmap | BlockKind::Index => literal(&block.0, out),
    }
}

fn encode_node(block: &Block, out: &mut Vec<u8>) {
    let header = NodeHeader::decode(block);
    let room = header.max_entries.get() as usize;
    let value_size = header.value_size.get() as usize;
    let values_begin = room.saturating_mul(8).saturating_add(HEADER_BYTES);
    let end = room.saturating_mul(value_size).saturating_add(values_begin);
    let Some(kind) = header.kind().filter(|_| end <= META_BLOCK_BYTES && room > 0) else {
        return literal(&block.0, out);
    };
    let words =
        |bytes: &[u8]| bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>();
    let mut machine = Encoder { out, base: 0 };
    literal(&block.0[..HEADER_BYTES], machine.out);
    machine.values(&words(&block.0[HEADER_BYTES..values_begin]));
    let values = &block.0[values_begin..end];
    match (kind, value_size) {
        (NodeKind::Internal, 8) => machine.values(&words(values)),
        (NodeKind::Leaf, 8) => {
            let values = words(values);
            machine.out.extend([SHIFTED_RUN << 4 | (room >> 8) as u8, room as u8]);
            machine.values(&values.iter().map(|value| value >> 24).collect::<Vec<_>>());
            machine.values(&values.iter().map(|value| value & 0xff_ffff).collect::<Vec<_>>());
        }
        (NodeKind::Internal | NodeKind::Leaf, _) => literal(values, machine.out),
    }
    literal(&block.0[end..], out);
}

fn literal(bytes: &[u8], out: &mut Vec<u8>) {
    match bytes.len() {
        0 => return,
        length @ 1..=SHORT_LIMIT => out.push(LITERAL << 4 | length as u8),
        length => wide(LITERAL_WIDE, length as u64, out),
    }
    out.extend_from_slice(bytes);
}

/// A tag with the narrowest operand that holds the number.
fn wide(tag: u8, operand: u64, out: &mut Vec<u8>) {
    let width = match operand {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    out.push(tag << 4 | width as u8);
    out.extend_from_slice(&operand.to_le_bytes()[..width]);
}

/// A tag with a number in its low half, or in that and a byte more.
fn counted(short: u8, long: u8, number: usize, out: &mut Vec<u8>) {
    if number <= SHORT_LIMIT {
        out.push(short << 4 | number as u8);
    } else {
        out.extend([long << 4 | (number >> 8) as u8, number as u8]);
    }
}

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    base: u64,
}

impl Encoder<'_> {
    fn values(&mut self, values: &[u64]) {
        let Some((first, mut rest)) = values.split_first() else { return };
        wide(SET, *first, self.out);
        self.base = *first;
        while let Some(next) = rest.first() {
            let step = next.wrapping_sub(self.base);
            let mut at = self.base;
            let count = rest.iter().take(LONG_LIMIT).take_while(|value| {
                at = at.wrapping_add(step);
                **value == at
            });
            let count = count.count();
            self.steps(step, count);
            self.base = rest[count - 1];
            rest = &rest[count..];
        }
    }

    fn steps(&mut self, step: u64, count: usize) {
        if step == 0 {
            return counted(CONST, CONST_8, count, self.out);
        }
        if count > 1 {
            counted(COUNT, COUNT_8, count, self.out);
        }
        let back = step.wrapping_neg();
        match (step < back, step.min(back)) {
            (true, size) if size <= SHORT_LIMIT as u64 => self.out.push(POS << 4 | size as u8),
            (true, size) => wide(POS_WIDE, size, self.out),
            (false, size) if size <= SHORT_LIMIT as u64 => self.out.push(NEG << 4 | size as u8),
            (false, size) => wide(NEG_WIDE, size, self.out),
        }
    }
}

/// Runs a program; answers what lies behind it.
pub(super) fn run<'a>(program: &'a [u8], block: &mut Block) -> Result<&'a [u8], &'static str> {
    let mut machine = Machine { program, base: 0 };
    let mut output = Vec::with_capacity(META_BLOCK_BYTES);
    while output.len() < META_BLOCK_BYTES {
        machine.step(&mut output)?;
    }
    let whole = output.first_chunk().filter(|_| output.len() == META_BLOCK_BYTES);
    block.0 = *whole.ok_or("it yields more than a block")?;
    Ok(machine.program)
}

struct Machine<'a> {
    program: &'a [u8],
    base: u64,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.program.split_at_checked(count).ok_or("it is cut short")?;
        self.program = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    fn operand(&mut self, width: u8) -> Result<u64, &'static str> {
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err("an operand of a width that cannot be");
        }
        let mut word = [0; 8];
        word[..usize::from(width)].copy_from_slice(self.take(usize::from(width))?);
        Ok(u64::from_le_bytes(word))
    }

    fn append(&self, count: usize, output: &mut Vec<u8>) -> Result<(), &'static str> {
        if output.len() + 8 * count > META_BLOCK_BYTES {
            return Err("it yields more than a block");
        }
        (0..count).for_each(|_| output.extend_from_slice(&self.base.to_le_bytes()));
        Ok(())
    }

    fn step(&mut self, output: &mut Vec<u8>) -> Result<(), &'static str> {
        let tag = self.byte()?;
        let (instruction, low) = (tag >> 4, tag & 0xf);
        match instruction {
            CONST => self.append(usize::from(low), output),
            CONST_8 => {
                let count = usize::from(low) << 8 | usize::from(self.byte()?);
                self.append(count, output)
            }
            COUNT => self.repeat(usize::from(low), output),
            COUNT_8 => {
                let count = usize::from(low) << 8 | usize::from(self.byte()?);
                self.repeat(count, output)
            }
            LITERAL => {
                output.extend_from_slice(self.take(usize::from(low))?);
                Ok(())
            }
            LITERAL_WIDE => {
                let length = usize::try_from(self.operand(low)?).unwrap_or(usize::MAX);
                output.extend_from_slice(self.take(length)?);
                Ok(())
            }
            SHIFTED_RUN => {
                let length = usize::from(low) << 8 | usize::from(self.byte()?);
                self.shifted_run(length, output)
            }
            _ => {
                self.change(tag)?;
                self.append(1, output)
            }
        }
    }

    /// One instruction that changes the base, `count` times.
    fn repeat(&mut self, count: usize, output: &mut Vec<u8>) -> Result<(), &'static str> {
        let tag = self.byte()?;
        let before = self.program;
        for _ in 0..count {
            self.program = before;
            self.change(tag)?;
            self.append(1, output)?;
        }
        if count == 0 { Err("a count of zero") } else { Ok(()) }
    }

    fn change(&mut self, tag: u8) -> Result<(), &'static str> {
        let low = tag & 0xf;
        self.base = match tag >> 4 {
            SET => self.operand(low)?,
            POS => self.base.wrapping_add(u64::from(low)),
            POS_WIDE => self.base.wrapping_add(self.operand(low)?),
            NEG => self.base.wrapping_sub(u64::from(low)),
            NEG_WIDE => self.base.wrapping_sub(self.operand(low)?),
            _ => return Err("an unknown instruction"),
        };
        Ok(())
    }

    /// Runs until `length` values have come out.
    fn halves(&mut self, length: usize) -> Result<Vec<u64>, &'static str> {
        let mut output = Vec::new();
        while output.len() < 8 * length {
            if self.program.first().is_some_and(|tag| tag >> 4 >= LITERAL) {
                return Err("something else than values in a run");
            }
            self.step(&mut output)?;
        }
        if output.len() > 8 * length {
            return Err("more values than a run has");
        }
        Ok(output.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    fn shifted_run(&mut self, length: usize, output: &mut Vec<u8>) -> Result<(), &'static str> {
        if output.len() + 8 * length > META_BLOCK_BYTES {
            return Err("it yields more than a block");
        }
        let (high, low) = (self.halves(length)?, self.halves(length)?);
        for (high, low) in high.iter().zip(&low) {
            output.extend_from_slice(&(high << 24 | low & 0xff_ffff).to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MetaBlock;
    use rand::rngs::SmallRng;
    use rand::{Rng, RngExt, SeedableRng};

    #[test]
    fn what_is_encoded_runs_back_to_the_same_block() {
        let mut random = SmallRng::seed_from_u64(5);
        for round in 0..400 {
            let mut block = Block::ZERO;
            random.fill_bytes(&mut block.0);
            let size = [8_u32, 8, 4, 24, 16, 7][round % 6];
            let room = [252_u32, 250, 336, 126, 168, 600][round % 6];
            for (offset, word) in [4, 16, 20, 24].into_iter().zip([1 + round as u32 % 2, 100, room, size]) {
                block.0[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
            }
            for key in 0..250_u64 {
                let value = match round % 4 {
                    0 => key * 3,
                    1 => 1000 - key,
                    2 => key / 20,
                    _ => random.random::<u64>() >> random.random_range(0..64),
                };
                block.0[32 + 8 * key as usize..][..8].copy_from_slice(&value.to_le_bytes());
            }
            block.seal(MetaBlock(9), BlockKind::Node);
            let mut program = Vec::new();
            encode(&block, BlockKind::Node, &mut program);
            program.extend([1, 2, 3]);
            let mut found = Block::ZERO;
            assert_eq!(run(&program, &mut found), Ok(&[1, 2, 3][..]));
            assert!(found.0 == block.0, "round {round}");
        }
    }

    #[test]
    fn no_bytes_make_the_machine_panic_or_run_away() {
        let mut random = SmallRng::seed_from_u64(6);
        for _ in 0..20_000 {
            let mut program = vec![0; random.random_range(0..60)];
            random.fill_bytes(&mut program);
            let _ = run(&program, &mut Block::ZERO.clone());
        }
        for (program, why) in [
            (&[0xc0][..], "an unknown instruction"),
            (&[0x03, 0, 0, 0], "an operand of a width that cannot be"),
            (&[0x01], "it is cut short"),
            (&[0x70, 0x11], "a count of zero"),
            (&[0x72, 0x51], "an unknown instruction"),
            (&[0x6f, 0xff], "it yields more than a block"),
            (&[0xb0, 2, 0x53, 0x52], "more values than a run has"),
            (&[0xb0, 2, 0x91, 0], "something else than values in a run"),
        ] {
            assert_eq!(run(program, &mut Block::ZERO.clone()), Err(why), "{program:x?}");
        }
    }
}
