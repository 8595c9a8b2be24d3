//! What happened to whom, told when a seed has gone wrong: the world is run once more, exactly as before, and writes down what
//! it does with the volume that was wrong.

use crate::engine::{OpId, Tag};
use crate::units::VolumeId;
use std::collections::{HashMap, VecDeque};
use std::fmt;

/// Lines that are kept, of all volumes together.
const LINES_LIMIT: usize = 20_000;
/// Lines that are told in the end.
const LINES_TOLD: usize = 80;

/// Whose doing something is; nobody's: the pool's as a whole.
pub(super) type Whose = Option<(VolumeId, Tag)>;

struct Line {
    step: u64,
    whose: Whose,
    text: String,
}

/// The last things that happened.
#[derive(Default)]
pub(super) struct Story {
    lines: VecDeque<Line>,
    /// Which requests' ops these are.
    ops: HashMap<(usize, OpId), Whose>,
    /// The request that was answered last.
    last_answered: Whose,
}

impl Story {
    pub fn tell(&mut self, step: u64, whose: Whose, text: fmt::Arguments<'_>) {
        if self.lines.len() == LINES_LIMIT {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { step, whose, text: text.to_string() });
    }

    pub fn begins(&mut self, lane: usize, op: OpId, whose: Whose) {
        self.ops.insert((lane, op), whose);
    }

    pub fn whose(&self, lane: usize, op: OpId) -> Whose {
        self.ops.get(&(lane, op)).copied().flatten()
    }

    pub fn answered(&mut self, whose: Whose) {
        self.last_answered = whose;
    }

    /// What led to `wrong`: of the volume that it names, and of the pool as a whole. The guilty request's lines are marked.
    pub fn of(&self, wrong: &str) -> String {
        let volume = named_volume(wrong);
        let guilty = self.last_answered.filter(|(id, _)| Some(id.get()) == volume);
        let belongs = |line: &&Line| match (line.whose, volume) {
            // Settling is of no volume, and of all.
            (Some((id, _)), Some(volume)) => id.get() == volume || id == VolumeId::MAX,
            (None, _) | (_, None) => true,
        };
        let mut told: Vec<_> = self.lines.iter().rev().filter(belongs).take(LINES_TOLD).collect();
        told.reverse();
        let line = |line: &Line| {
            let mark = if guilty.is_some() && line.whose == guilty { '>' } else { ' ' };
            let whose =
                line.whose.map_or_else(String::new, |(id, tag)| format!("volume {id} request {}: ", tag.0));
            format!("{mark} step {}: {whose}{}\n", line.step, line.text)
        };
        told.into_iter().map(line).collect()
    }
}

/// The volume that a violation is about.
fn named_volume(wrong: &str) -> Option<u64> {
    let mut words = wrong.split(' ');
    words.find(|word| ["volume", "snapshot"].contains(word))?;
    words.next()?.trim_end_matches([':', ',']).parse().ok()
}
