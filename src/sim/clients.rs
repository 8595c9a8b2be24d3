//! Clients that leave in the middle: a lane hangs up, its requests come to their ends, and another client takes its seat.
//!
//! What must hold: a request of a client that has left may be done or not, but nothing of it begins anew, lest it overwrite what
//! others have written since; and it waits for nothing that need not come, so that no seat, epoch or claim stays held.

use super::world::{Event, World};
use crate::engine::{Action, Ask, Asker, Lane, LaneId};
use crate::units::BlockSize;

/// Whether something changes a volume, or waits to.
pub(super) fn is_change(action: &Action) -> bool {
    match action {
        Action::WriteData { .. } => true,
        Action::Ask { ask, .. } => match ask {
            Ask::Fill(..) | Ask::AwaitUnits(..) | Ask::Settle | Ask::Unmap(..) | Ask::Thaw(_) => true,
            Ask::AwaitSpace(_) => true,
            Ask::Load(..)
            | Ask::Publish(..)
            | Ask::PublishPart(..)
            | Ask::PutUnits(..)
            | Ask::Abandon(..)
            | Ask::Flush
            | Ask::GiveUp => false,
        },
        Action::ReadData { .. }
        | Action::ReadOrigin { .. }
        | Action::ZeroRequest { .. }
        | Action::ZeroScratch { .. }
        | Action::PatchScratch { .. }
        | Action::DropScratch { .. }
        | Action::GiveUp { .. }
        | Action::Extents { .. }
        | Action::Complete { .. } => false,
    }
}

impl World {
    /// A client leaves, mostly one that has something under way. Somebody stays.
    pub(super) fn client_leaves(&mut self) -> Result<(), String> {
        let staying: Vec<usize> = (0..self.lanes.len()).filter(|lane| !self.has_left[*lane]).collect();
        if staying.len() < 2 {
            return Ok(());
        }
        let lane = staying[self.chance.below(staying.len() as u64) as usize];
        if self.lanes[lane].is_idle() {
            return Ok(());
        }
        self.outcome.clients_left += 1;
        self.hang_up(lane)
    }

    /// All leave; what they wait for need not come.
    pub(super) fn all_clients_leave(&mut self) -> Result<(), String> {
        (0..self.lanes.len()).try_for_each(|lane| self.hang_up(lane))
    }

    fn hang_up(&mut self, lane: usize) -> Result<(), String> {
        self.has_left[lane] = true;
        self.tell(None, format_args!("the client of lane {lane} leaves"));
        let mut actions = Vec::new();
        self.lanes[lane].hang_up(&mut actions);
        self.act(lane, actions)
    }

    /// A lane whose client has not left, if there is one.
    pub(super) fn some_lane(&mut self) -> Option<usize> {
        self.fill_seats();
        let lanes: Vec<usize> = (0..self.lanes.len()).filter(|lane| !self.has_left[*lane]).collect();
        match lanes.len() as u64 {
            0 => None,
            count => Some(lanes[self.chance.below(count) as usize]),
        }
    }

    /// New clients come where the last request of one that has left is through.
    pub(super) fn fill_seats(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.has_left[lane] && self.lanes[lane].is_idle() && !self.is_heard_of(lane) {
                self.has_left[lane] = false;
                // The old one goes first: it says so itself if something was forgotten.
                self.lanes[lane] = Lane::new(LaneId(lane as u16), self.keeper.epochs(), BlockSize::MIN);
            }
        }
    }

    /// Whether something of a lane is on its way.
    fn is_heard_of(&self, number: usize) -> bool {
        self.events.iter().any(|(_, event)| match event {
            Event::Read { lane, .. } | Event::Write { lane, .. } | Event::Reply(lane, ..) => *lane == number,
            Event::Ask(Asker::Lane(lane, _), _) => usize::from(lane.0) == number,
            Event::Ask(Asker::Command(_), _) | Event::FlushEnds(_) => false,
        })
    }

    /// Which event happens instead of this one: who gives up does so after having asked, as the keeper's inbox is a queue.
    pub(super) fn in_order(&self, chosen: usize) -> usize {
        let (_, Event::Ask(asker, Ask::GiveUp)) = &self.events[chosen] else { return chosen };
        let asked_before = |(_, event): &(u64, Event)| matches!(event, Event::Ask(other, ask) if other == asker && *ask != Ask::GiveUp);
        self.events.iter().position(asked_before).unwrap_or(chosen)
    }
}
