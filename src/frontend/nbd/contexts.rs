//! Metadata contexts: what BLOCK_STATUS can tell about a stretch of an export.
//!
//! `base:allocation` is the protocol's own (section "`base:` metadata namespace"). `uthin:mapping` is ours, and says what
//! dm-thin knows: its two lowest bits mean what they mean in `base:allocation`, further ones say why.
//!
//! A block that is shared with a snapshot is a hole in `uthin:mapping` (a write to it needs a free block) and is not one in
//! `base:allocation`: of a hole that does not read zeros the protocol calls the contents undefined, and clients take that by the
//! word (`docs/decisions/0010`). What the protocol asks of whoever clears the bit, that a write cannot run out of space
//! "unless for reasons specified in the definition of another context", is met by this definition of another context.

use crate::engine::ExtentState;

/// Flags of `base:allocation`, and the two lowest of `uthin:mapping`.
pub mod state_flags {
    /// A write may find no space.
    pub const HOLE: u32 = 1 << 0;
    /// Reads zeros.
    pub const ZERO: u32 = 1 << 1;
    /// `uthin:mapping` only: mapped, and perhaps shared with other volumes; a write is a copy.
    pub const SHARED: u32 = 1 << 2;
    /// `uthin:mapping` only: not mapped, and the volume's external origin shows.
    pub const ORIGIN: u32 = 1 << 3;
}

/// A metadata context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// `base:allocation`.
    Allocation,
    /// `uthin:mapping`.
    Mapping,
}

impl Context {
    /// All, in the order in which replies come.
    pub const ALL: [Context; 2] = [Context::Allocation, Context::Mapping];

    /// Its number on every connection, not 0.
    pub const fn id(self) -> u32 {
        match self {
            Context::Allocation => 1,
            Context::Mapping => 2,
        }
    }

    /// Its name: namespace, colon, leaf.
    pub const fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Mapping => "uthin:mapping",
        }
    }

    /// Whether `query` is its namespace with the colon and no leaf.
    pub fn is_in_namespace(self, query: &str) -> bool {
        query.ends_with(':') && self.name().starts_with(query)
    }

    /// What it says of an extent.
    pub const fn flags_of(self, state: ExtentState) -> u32 {
        use state_flags::{HOLE, ORIGIN, SHARED, ZERO};
        match (self, state) {
            (Context::Allocation | Context::Mapping, ExtentState::Hole) => HOLE | ZERO,
            (Context::Allocation | Context::Mapping, ExtentState::Exclusive) => 0,
            // What shows of an external origin is data, though it lies elsewhere.
            (Context::Allocation, ExtentState::Origin) => 0,
            (Context::Mapping, ExtentState::Origin) => HOLE | ORIGIN,
            (Context::Allocation, ExtentState::Shared) => 0,
            (Context::Mapping, ExtentState::Shared) => HOLE | SHARED,
        }
    }
}

/// A set of contexts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Contexts(u8);

impl Contexts {
    /// Every context.
    pub fn all() -> Contexts {
        Context::ALL.into_iter().collect()
    }

    /// The context with this number, in a set of its own; `None` when there is none in `self`.
    pub fn with_id(self, id: u32) -> Option<Context> {
        self.iter().find(|context| context.id() == id)
    }

    /// Whether `context` is in it.
    pub const fn contains(self, context: Context) -> bool {
        self.0 & 1 << context as u8 != 0
    }

    /// Puts `context` in; `false` when it was there.
    pub fn insert(&mut self, context: Context) -> bool {
        let is_new = !self.contains(context);
        self.0 |= 1 << context as u8;
        is_new
    }

    /// Whether none is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are in it, in the order of [`Context::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.contains(*context))
    }

    /// What all of them say of an extent: equal for two that need not be told apart.
    pub fn meaning_of(self, state: ExtentState) -> [u32; Context::ALL.len()] {
        Context::ALL.map(|context| if self.contains(context) { context.flags_of(state) } else { 0 })
    }
}

impl FromIterator<Context> for Contexts {
    fn from_iter<I: IntoIterator<Item = Context>>(contexts: I) -> Self {
        let mut set = Contexts::default();
        contexts.into_iter().for_each(|context| {
            set.insert(context);
        });
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_the_states() {
        let flags = |context: Context| {
            [ExtentState::Hole, ExtentState::Shared, ExtentState::Exclusive]
                .map(|state| context.flags_of(state))
        };
        assert_eq!(flags(Context::Allocation), [3, 0, 0]);
        assert_eq!(flags(Context::Mapping), [3, 5, 0]);
    }

    #[test]
    fn sets() {
        let mut set = Contexts::default();
        assert!(set.is_empty() && set.iter().next().is_none());
        assert!(set.insert(Context::Mapping) && !set.insert(Context::Mapping));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Context::Mapping]);
        assert_eq!((set.with_id(2), set.with_id(1), set.with_id(0)), (Some(Context::Mapping), None, None));
        assert_eq!(Contexts::all().iter().collect::<Vec<_>>(), Context::ALL);
        assert_eq!(set.meaning_of(ExtentState::Shared), [0, 5]);
    }

    #[test]
    fn namespaces() {
        let found = |query: &str| Context::ALL.map(|context| context.is_in_namespace(query));
        assert_eq!(found("base:"), [true, false]);
        assert_eq!(found("uthin:"), [false, true]);
        for query in ["", "base", ":", "bas:", "base:a", "base:allocation", "uthin:mapping"] {
            assert_eq!(found(query), [false, false], "{query}");
        }
    }
}
