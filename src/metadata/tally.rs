//! How many nodes the trees have made and gained, by kind of tree and of node: what the budget need not ask for again.

use crate::format::NodeKind;

/// The kinds of trees there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TreeKind {
    Mappings,
    Roots,
    Details,
    Index,
    LargeCounts,
}

/// A number for leaves and one for internal nodes.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Nodes<N> {
    pub leaves: N,
    pub internal: N,
}

impl Nodes<u64> {
    pub fn all(self) -> u64 {
        self.leaves + self.internal
    }
}

impl<N> Nodes<N> {
    fn of_kind(&mut self, kind: NodeKind) -> &mut N {
        match kind {
            NodeKind::Internal => &mut self.internal,
            NodeKind::Leaf => &mut self.leaves,
        }
    }
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tally {
    made: [Nodes<u64>; 5],
    grown: [Nodes<i64>; 5],
    grown_at_commit: [Nodes<i64>; 5],
}

impl Tally {
    /// Nodes that this transaction made and still uses.
    pub fn made(&self, tree: TreeKind) -> Nodes<u64> {
        self.made[tree as usize]
    }

    /// By how much more nodes there were at the last commit than at opening; 0 if there were fewer.
    pub fn grown_at_commit(&self, tree: TreeKind) -> Nodes<u64> {
        let Nodes { leaves, internal } = self.grown_at_commit[tree as usize];
        let at_least_0 = |grown: i64| u64::try_from(grown).unwrap_or(0);
        Nodes { leaves: at_least_0(leaves), internal: at_least_0(internal) }
    }

    /// A node was made.
    pub fn add(&mut self, tree: TreeKind, kind: NodeKind) {
        *self.made[tree as usize].of_kind(kind) += 1;
        *self.grown[tree as usize].of_kind(kind) += 1;
    }

    /// A node was given up, which this transaction made or which is from before.
    pub fn remove(&mut self, tree: TreeKind, kind: NodeKind, was_made: bool) {
        *self.made[tree as usize].of_kind(kind) -= u64::from(was_made);
        *self.grown[tree as usize].of_kind(kind) -= 1;
    }

    /// The transaction is over.
    pub fn committed(&mut self) {
        self.made = Default::default();
        self.grown_at_commit = self.grown;
    }
}
