//! Which runs of leaves several volumes have in common: a dump writes each such run once and refers to it.
//!
//! Leaves belong to one run when they follow each other in every volume that has any of them. A run is named after its
//! first leaf.

use crate::check::forest::LeafPlace;
use crate::units::MetaBlock;
use std::ops::Range;

/// The neighbour of a leaf, over all volumes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Neighbour {
    /// No volume was seen yet.
    Unknown,
    /// The same in every volume.
    Leaf(u32),
    /// Not the same everywhere, or none in some volume.
    None,
}

impl Neighbour {
    fn merge(&mut self, found: Option<MetaBlock>) {
        // Leaves are on a device of at most 255 * 16,320 blocks.
        let found = found.map_or(Neighbour::None, |leaf| Neighbour::Leaf(leaf.0 as u32));
        *self = match *self {
            Neighbour::Unknown => found,
            known if known == found => known,
            Neighbour::Leaf(_) | Neighbour::None => Neighbour::None,
        };
    }
}

#[derive(Clone)]
struct Link {
    users: u32,
    before: Neighbour,
    after: Neighbour,
    /// The keys that every volume has the leaf for.
    keys: Range<u64>,
}

const UNSEEN: Link =
    Link { users: 0, before: Neighbour::Unknown, after: Neighbour::Unknown, keys: 0..u64::MAX };

/// All leaves of the volumes seen.
#[derive(Default)]
pub(in crate::check) struct Sharing {
    links: Vec<Link>,
}

impl Sharing {
    /// Takes the leaves of one volume more.
    pub(in crate::check) fn add(&mut self, leaves: &[LeafPlace]) {
        for (index, leaf) in leaves.iter().enumerate() {
            let at = leaf.number.0 as usize;
            if at >= self.links.len() {
                self.links.resize(at + 1, UNSEEN);
            }
            let link = &mut self.links[at];
            link.users += 1;
            link.before.merge(index.checked_sub(1).map(|before| leaves[before].number));
            link.after.merge(leaves.get(index + 1).map(|after| after.number));
            link.keys = link.keys.start.max(leaf.keys.start)..link.keys.end.min(leaf.keys.end);
        }
    }

    /// How many volumes have this leaf.
    pub(in crate::check) fn users(&self, leaf: MetaBlock) -> u32 {
        self.links.get(leaf.0 as usize).map_or(0, |link| link.users)
    }

    fn continues(&self, leaf: MetaBlock) -> Option<MetaBlock> {
        let Neighbour::Leaf(after) = self.links[leaf.0 as usize].after else { return None };
        let is_mutual = self.links[after as usize].before == Neighbour::Leaf(leaf.0 as u32);
        is_mutual.then_some(MetaBlock(u64::from(after)))
    }

    fn is_head(&self, leaf: MetaBlock) -> bool {
        match self.links[leaf.0 as usize].before {
            Neighbour::Leaf(before) => self.continues(MetaBlock(u64::from(before))) != Some(leaf),
            Neighbour::None | Neighbour::Unknown => true,
        }
    }

    /// The leaves of the run that begins with `head`.
    pub(in crate::check) fn run(&self, head: MetaBlock) -> Vec<LeafPlace> {
        let leaves = std::iter::successors(Some(head), |leaf| self.continues(*leaf));
        // What a circle of leaves would be: a damaged tree that the descent has refused already.
        let place =
            |number: MetaBlock| LeafPlace { number, keys: self.links[number.0 as usize].keys.clone() };
        leaves.take(self.links.len()).map(place).collect()
    }

    /// The first leaves of all runs that more than one volume has, by number.
    pub(in crate::check) fn heads(&self) -> impl Iterator<Item = MetaBlock> + '_ {
        let shared = (0..).map(MetaBlock).zip(&self.links).filter(|(_, link)| link.users > 1);
        shared.map(|(leaf, _)| leaf).filter(|leaf| self.is_head(*leaf))
    }
}
