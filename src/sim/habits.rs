//! What a world's users like to do. Every seed has its own likes, some of them nothing at all: a mixture of everything hides
//! what only a crowd of one kind brings to light.

use super::chance::Chance;

/// Weights of kinds of requests and commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    requests: [u64; 5],
    commands: [u64; 10],
    /// One request in so many may overlap others.
    pub overlaps_one_in: u64,
    /// Blocks at the front of a volume that most requests go to; all if there are fewer.
    pub favourite_blocks: u64,
    /// A client leaves once in about so many of the steps in which one may.
    pub leaves_one_in: u64,
}

/// Kinds of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

/// Kinds of commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    Create,
    Snapshot,
    RollBack,
    Delete,
    Grow,
    Hold,
    SetOrigin,
    Configure,
    Resize,
    Unmap,
}

impl Habits {
    /// The likes of one seed; every other is an ordinary one.
    pub fn of(seed: u64, chance: &mut Chance) -> Self {
        let ordinary = Habits {
            requests: [5, 6, 1, 2, 2],
            commands: [6, 9, 3, 6, 1, 2, 1, 1, 2, 2],
            overlaps_one_in: 3,
            favourite_blocks: u64::MAX,
            leaves_one_in: 20,
        };
        if seed.is_multiple_of(2) {
            return ordinary;
        }
        let mut swarm = |weights: &mut [u64]| {
            for weight in weights {
                *weight *= [0, 1, 2, 8][chance.below(4) as usize];
            }
        };
        let mut habits = ordinary;
        swarm(&mut habits.requests);
        swarm(&mut habits.commands);
        // Without volumes and bytes in them nothing else means much.
        habits.requests[Wish::Write as usize] += 2;
        habits.commands[Errand::Create as usize] += 1;
        habits.commands[Errand::Snapshot as usize] += 2;
        habits.overlaps_one_in = 1 + chance.below(3);
        habits.favourite_blocks = 1 + chance.below(4);
        habits.leaves_one_in = [4, 10, 40, 1 << 30][chance.below(4) as usize];
        habits
    }

    /// As before, but what there is does not stay for long.
    pub fn deleting_much(mut self) -> Self {
        self.commands[Errand::Delete as usize] = 3 * self.commands.iter().sum::<u64>();
        self
    }

    pub fn request(&self, chance: &mut Chance) -> Wish {
        let wishes = [Wish::Read, Wish::Write, Wish::Zero, Wish::Discard, Wish::Flush];
        wishes[weighted(&self.requests, chance)]
    }

    pub fn command(&self, chance: &mut Chance) -> Errand {
        let errands = [
            Errand::Create,
            Errand::Snapshot,
            Errand::RollBack,
            Errand::Delete,
            Errand::Grow,
            Errand::Hold,
            Errand::SetOrigin,
            Errand::Configure,
            Errand::Resize,
            Errand::Unmap,
        ];
        errands[weighted(&self.commands, chance)]
    }
}

/// An index, as often as its weight says.
fn weighted(weights: &[u64], chance: &mut Chance) -> usize {
    let mut left = chance.below(weights.iter().sum());
    for (index, weight) in weights.iter().enumerate() {
        if left < *weight {
            return index;
        }
        left -= weight;
    }
    unreachable!("what is left is below the sum of the weights")
}
