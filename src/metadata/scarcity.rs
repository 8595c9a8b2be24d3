//! For tests: a pool that says "no space" at a moment of their choice. In production nothing here does anything.

/// Something that may not be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scarce {
    /// A data block to reserve.
    DataBlock,
    /// Metadata space for an operation's worst case, before it begins.
    MetadataSpace,
    /// A metadata block, in the middle of an operation: what the budget rules out.
    MetadataBlock,
}

/// Counts who asks, and refuses some. Clones are one.
#[derive(Clone, Default)]
pub struct Scarcity {
    #[cfg(test)]
    inner: std::sync::Arc<std::sync::Mutex<Inner>>,
}

#[cfg(test)]
#[derive(Default)]
struct Inner {
    asked: [u64; 3],
    /// What is refused, and the numbers of the askers.
    refused: Option<(Scarce, std::ops::Range<u64>)>,
}

impl Scarcity {
    /// Whether who asks for it now must go without.
    #[cfg(not(test))]
    #[inline]
    pub(super) fn refuses(&self, _what: Scarce) -> bool {
        false
    }

    /// Whether who asks for it now must go without.
    #[cfg(test)]
    pub(super) fn refuses(&self, what: Scarce) -> bool {
        let mut inner = self.inner.lock().expect("nobody panics here");
        let number = inner.asked[what as usize];
        inner.asked[what as usize] += 1;
        inner.refused.as_ref().is_some_and(|(refused, numbers)| *refused == what && numbers.contains(&number))
    }

    /// Refuses it to these askers, counted from 0.
    #[cfg(test)]
    pub fn refuse(&self, what: Scarce, askers: std::ops::Range<u64>) {
        self.inner.lock().expect("nobody panics here").refused = Some((what, askers));
    }

    /// How often each was asked for, in the order of [`Scarce`].
    #[cfg(test)]
    pub fn asked(&self) -> [u64; 3] {
        self.inner.lock().expect("nobody panics here").asked
    }
}
