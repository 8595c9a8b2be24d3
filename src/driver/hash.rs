//! Maps from our own small numbers: a multiplication instead of the standard hash, which withstands attackers. Nobody
//! attacks with numbers that we give out ourselves.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map from a newtype of `u64`.
pub(super) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;
/// A set of a newtype of `u64`.
pub(super) type NumberSet<K> = HashSet<K, BuildHasherDefault<NumberHasher>>;

#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio: neighbours end up far apart.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32) // the table looks at the low bits, the product is best in its high ones
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Tag;

    #[test]
    fn numbers_spread_over_low_and_high_bits() {
        let hash = |number: u64| {
            let mut hasher = NumberHasher::default();
            std::hash::Hash::hash(&Tag(number), &mut hasher);
            hasher.finish()
        };
        for step in [1, 512, 4096, 1 << 32] {
            let low: HashSet<u64> = (0..256).map(|index| hash(index * step) & 0xff).collect();
            let high: HashSet<u64> = (0..256).map(|index| hash(index * step) >> 57).collect();
            assert!(low.len() > 100 && high.len() > 64, "step {step}: {} {}", low.len(), high.len());
        }
    }
}
