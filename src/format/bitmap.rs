//! Bitmaps of reference counts (format §6.2): 16,320 entries of two bits.
//!
//! The two bits are the odd way round: the lower bit has weight 2 and the upper one weight 1. Nothing outside this file
//! sees them; here they are taken 32 at a time, as little-endian words.

use super::block::Block;
use crate::units::META_BLOCK_BYTES;

/// Entries of a bitmap.
pub const BITMAP_ENTRIES: usize = (META_BLOCK_BYTES - HEADER_BYTES) * 4;

const HEADER_BYTES: usize = 16;
const WORD_BYTES: usize = 8;
const ENTRIES_PER_WORD: usize = 32;
/// Counts in a word of [`Bitmap::plain_words`].
pub const BITMAP_PLAIN_ENTRIES: usize = ENTRIES_PER_WORD;
/// The lower bit of every entry of a word.
const LOWER_BITS: u64 = 0x5555_5555_5555_5555;

/// A count as far as a bitmap tells it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InlineCount {
    /// Count 0: free.
    Free,
    /// Count 1.
    One,
    /// Count 2.
    Two,
    /// 3 or more: the tree of large counts has it.
    Large,
}

impl InlineCount {
    /// How `count` is told.
    pub fn of(count: u32) -> Self {
        match count {
            0 => InlineCount::Free,
            1 => InlineCount::One,
            2 => InlineCount::Two,
            _ => InlineCount::Large,
        }
    }

    /// The count, if it is below 3.
    pub fn exact(self) -> Option<u32> {
        match self {
            InlineCount::Free => Some(0),
            InlineCount::One => Some(1),
            InlineCount::Two => Some(2),
            InlineCount::Large => None,
        }
    }

    fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0b00 => InlineCount::Free,
            0b10 => InlineCount::One,
            0b01 => InlineCount::Two,
            _ => InlineCount::Large,
        }
    }

    fn bits(self) -> u8 {
        match self {
            InlineCount::Free => 0b00,
            InlineCount::One => 0b10,
            InlineCount::Two => 0b01,
            InlineCount::Large => 0b11,
        }
    }
}

/// A bitmap. Any block will do: every pattern of bits is one.
#[derive(Clone, Copy)]
pub struct Bitmap<'a>(&'a Block);

impl<'a> Bitmap<'a> {
    /// Sees `block` as a bitmap.
    pub fn new(block: &'a Block) -> Self {
        Bitmap(block)
    }

    fn words(self) -> impl Iterator<Item = u64> + use<'a> {
        let (words, _) = self.0.0[HEADER_BYTES..].as_chunks::<WORD_BYTES>();
        words.iter().map(|word| u64::from_le_bytes(*word))
    }

    /// The `entry`-th count. Panics at [`BITMAP_ENTRIES`] and above.
    pub fn get(self, entry: usize) -> InlineCount {
        InlineCount::from_bits(u64::from(self.0.0[HEADER_BYTES + entry / 4] >> (entry % 4 * 2)))
    }

    /// All counts.
    pub fn iter(self) -> impl Iterator<Item = InlineCount> + use<'a> {
        self.words()
            .flat_map(|word| (0..ENTRIES_PER_WORD).map(move |i| InlineCount::from_bits(word >> (2 * i))))
    }

    /// All counts as plain numbers of two bits, [`BITMAP_PLAIN_ENTRIES`] a word from the lowest bits on; 3 is 3 or more.
    pub fn plain_words(self) -> impl Iterator<Item = u64> + use<'a> {
        self.words().map(|word| (word & LOWER_BITS) << 1 | word >> 1 & LOWER_BITS)
    }

    /// How many entries are free, those past the end of the device included.
    pub fn free_entries(self) -> u32 {
        self.words().map(|word| free_bits(word).count_ones()).sum()
    }

    /// The first free entry, [`BITMAP_ENTRIES`] if there is none.
    pub fn first_free(self) -> usize {
        let found = self.words().map(free_bits).enumerate().find(|(_, free)| *free != 0);
        found.map_or(BITMAP_ENTRIES, |(word, free)| {
            word * ENTRIES_PER_WORD + free.trailing_zeros() as usize / 2
        })
    }

    /// One bit for every entry, set where it is free: entry *e* is bit *e* mod 64 of word *e* / 64.
    pub fn free_mask(self) -> [u64; BITMAP_ENTRIES / 64] {
        let mut mask = [0; BITMAP_ENTRIES / 64];
        for (index, word) in self.words().enumerate() {
            mask[index / 2] |= u64::from(pack(free_bits(word))) << (index % 2 * ENTRIES_PER_WORD);
        }
        mask
    }
}

/// The lower bit of every entry that is free, all other bits clear.
fn free_bits(word: u64) -> u64 {
    !(word | word >> 1) & LOWER_BITS
}

/// Moves the even bits together.
fn pack(even_bits: u64) -> u32 {
    let mut x = even_bits;
    x = (x | x >> 1) & 0x3333_3333_3333_3333;
    x = (x | x >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) as u32
}

/// A bitmap that may be changed.
pub struct BitmapMut<'a>(&'a mut Block);

impl<'a> BitmapMut<'a> {
    /// Makes a bitmap with all entries free out of a block with any content.
    pub fn initialise(block: &'a mut Block) -> Self {
        block.0.fill(0);
        BitmapMut(block)
    }

    /// Sees `block` as a bitmap.
    pub fn new(block: &'a mut Block) -> Self {
        BitmapMut(block)
    }

    /// Sets the `entry`-th count. Panics at [`BITMAP_ENTRIES`] and above.
    pub fn set(&mut self, entry: usize, count: InlineCount) {
        let (byte, shift) = (&mut self.0.0[HEADER_BYTES + entry / 4], entry % 4 * 2);
        *byte = *byte & !(3 << shift) | count.bits() << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_are_the_odd_way_round() {
        let mut block = Block::ZERO;
        let mut bitmap = BitmapMut::new(&mut block);
        for entry in 0..4 {
            bitmap.set(entry, InlineCount::One);
            bitmap.set(4 + entry, InlineCount::Two);
            bitmap.set(8 + entry, InlineCount::Large);
        }
        bitmap.set(BITMAP_ENTRIES - 1, InlineCount::Two);
        assert_eq!(block.0[16..20], [0xaa, 0x55, 0xff, 0]);
        assert_eq!(block.0[4095], 0b0100_0000);
        BitmapMut::new(&mut block).set(1, InlineCount::Free);
        assert_eq!(block.0[16], 0b1010_0010);
    }

    #[test]
    fn whole_bitmap_questions_agree_with_single_entries() {
        let mut block = Block::ZERO;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for byte in &mut block.0[16..] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        block.0[16..100].fill(0xaa);
        let bitmap = Bitmap::new(&block);
        let mask = bitmap.free_mask();
        for (entry, count) in bitmap.iter().enumerate() {
            assert_eq!(count, bitmap.get(entry));
            assert_eq!(mask[entry / 64] >> (entry % 64) & 1 == 1, count == InlineCount::Free);
        }
        let free = (0..BITMAP_ENTRIES).filter(|entry| bitmap.get(*entry) == InlineCount::Free);
        assert_eq!(free.clone().count(), bitmap.free_entries() as usize);
        assert_eq!(free.clone().next(), Some(bitmap.first_free()));
        block.0[16..].fill(0x55);
        assert_eq!(Bitmap::new(&block).first_free(), BITMAP_ENTRIES);
        assert_eq!(Bitmap::new(&block).free_entries(), 0);
    }
}
