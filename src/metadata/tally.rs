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
    Partials,
}

/// How many there are.
const KINDS: usize = 6;

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
    made: [Nodes<u64>; KINDS],
    /// Nodes more than at opening, now.
    grown: [Nodes<i64>; KINDS],
    /// The same, at the last commit.
    committed: [Nodes<i64>; KINDS],
    /// The least that it was at any commit: there were no fewer than 0 nodes then.
    least: [Nodes<i64>; KINDS],
}

impl Tally {
    /// Nodes that this transaction made and still uses.
    pub fn made(&self, tree: TreeKind) -> Nodes<u64> {
        self.made[tree as usize]
    }

    /// How many nodes there were at the last commit, at least.
    pub fn committed(&self, tree: TreeKind) -> Nodes<u64> {
        let (now, least) = (self.committed[tree as usize], self.least[tree as usize]);
        Nodes { leaves: now.leaves.abs_diff(least.leaves), internal: now.internal.abs_diff(least.internal) }
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
    pub fn commit(&mut self) {
        self.made = Default::default();
        self.committed = self.grown;
        for (least, now) in self.least.iter_mut().zip(self.grown) {
            least.leaves = least.leaves.min(now.leaves);
            least.internal = least.internal.min(now.internal);
        }
    }
}
