//! The ways between lanes and keeper: one inbox for the keeper, one for each seat.
//!
//! Messages travel in batches under a short lock, and only who sleeps is woken: the keeper by a condition variable, a
//! lane by an eventfd that its ring reads. Nothing is allocated once the vectors have grown.
//!
//! The end: first the keeper's inbox refuses everything, then each lane's is told so, *after* the last answers. A lane
//! that sees it knows that no question of its own will be answered any more.

use crate::engine::{Answer, Ask, Asker, Command, IoError, LaneId, OpId, Reply, VolumeLease};
use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use rustix::event::EventfdFlags;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// Why a pool's keeper does not answer any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// It was closed.
    Closed,
    /// Its thread has panicked, or the last handle was dropped.
    Died,
}

impl Ended {
    /// What requests are told.
    pub(super) fn io_error(self) -> IoError {
        match self {
            Ended::Closed => IoError::Gone,
            Ended::Died => IoError::Io,
        }
    }

    /// What the control plane is told.
    pub(super) fn error(self) -> Error {
        match self {
            Ended::Closed => Error::new(ErrorKind::WrongState, "the pool is closed"),
            Ended::Died => {
                Error::new(ErrorKind::Failed, "the pool's keeper has stopped after an internal error").hint(
                    "restart the server: everything flushed is safe, and opening the pool again checks it",
                )
            }
        }
    }
}

/// What the control plane wants of the keeper.
pub(super) enum Control {
    Command(Command, SyncSender<Result<Answer>>),
    Open(VolumeId, SyncSender<Result<VolumeLease>>),
}

/// The keeper's inbox.
pub(super) struct KeeperInbox {
    state: Mutex<KeeperState>,
    filled: Condvar,
}

struct KeeperState {
    asks: Vec<(Asker, Ask)>,
    controls: Vec<Control>,
    /// Something was left for the keeper to settle.
    roused: bool,
    /// The keeper's thread is to end.
    stop: Option<Ended>,
    asleep: bool,
    ended: Option<Ended>,
}

impl KeeperInbox {
    pub(super) fn new() -> Self {
        let state = KeeperState {
            asks: Vec::new(),
            controls: Vec::new(),
            roused: false,
            stop: None,
            asleep: false,
            ended: None,
        };
        KeeperInbox { state: Mutex::new(state), filled: Condvar::new() }
    }

    /// A lane's questions of one turn. After the end they vanish: the lane's inbox tells of it.
    pub(super) fn ask(&self, lane: LaneId, asks: &mut Vec<(OpId, Ask)>) {
        let mut state = lock(&self.state);
        if state.ended.is_some() {
            return asks.clear();
        }
        state.asks.extend(asks.drain(..).map(|(op, ask)| (Asker::Lane(lane, op), ask)));
        self.wake(state);
    }

    pub(super) fn control(&self, control: Control) -> Result<()> {
        let mut state = lock(&self.state);
        if let Some(ended) = state.ended {
            return Err(ended.error());
        }
        state.controls.push(control);
        self.wake(state);
        Ok(())
    }

    /// Has the keeper's thread look again whether there is something to settle.
    pub(super) fn rouse(&self) {
        let mut state = lock(&self.state);
        if !state.roused {
            state.roused = true;
            self.wake(state);
        }
    }

    /// Has the keeper's thread end at once, if it still runs.
    pub(super) fn stop(&self, ended: Ended) {
        let mut state = lock(&self.state);
        state.stop.get_or_insert(ended);
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<KeeperState>) {
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.filled.notify_one();
        }
    }

    /// Keeper: swaps everything that has come into the two vectors, which are empty, and tells if it is to end. Waits at most
    /// `patience` for something.
    pub(super) fn take(
        &self,
        asks: &mut Vec<(Asker, Ask)>,
        controls: &mut Vec<Control>,
        patience: Option<Duration>,
    ) -> Option<Ended> {
        debug_assert!(asks.is_empty() && controls.is_empty(), "what was taken before is done");
        let mut state = lock(&self.state);
        if let Some(patience) = patience
            && state.asks.is_empty()
            && state.controls.is_empty()
            && !state.roused
            && state.stop.is_none()
        {
            state.asleep = true;
            let waited = self.filled.wait_timeout_while(state, patience, |state| state.asleep);
            state = waited.expect(UNPOISONED).0;
            state.asleep = false;
        }
        state.roused = false;
        std::mem::swap(&mut state.asks, asks);
        std::mem::swap(&mut state.controls, controls);
        state.stop
    }

    /// Refuses everything from now on, and drops what is there.
    pub(super) fn end(&self, ended: Ended) {
        let mut state = lock(&self.state);
        state.ended.get_or_insert(ended);
        state.asks.clear();
        state.controls.clear(); // who waits for an answer sees its sender go
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        lock(&self.state).ended
    }
}

/// A lane's inbox.
pub(super) struct LaneInbox {
    state: Mutex<LaneState>,
    /// The lane's thread waits in its ring, or is about to. Set under the lock when nothing is there, cleared without it.
    asleep: AtomicBool,
    bell: OnceLock<OwnedFd>,
}

#[derive(Default)]
struct LaneState {
    replies: Vec<(OpId, Reply)>,
    ended: Option<Ended>,
}

impl LaneInbox {
    pub(super) fn new() -> Self {
        LaneInbox {
            state: Mutex::new(LaneState::default()),
            asleep: AtomicBool::new(false),
            bell: OnceLock::new(),
        }
    }

    /// The eventfd that is rung when there is something for a lane that sleeps. Made at the first call.
    pub(super) fn bell(&self) -> Result<&OwnedFd> {
        if let Some(bell) = self.bell.get() {
            return Ok(bell);
        }
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| Error::io("making an eventfd for a lane", &error.into()))?;
        Ok(self.bell.get_or_init(|| bell))
    }

    /// Ends the wait of the lane's thread, now or the next time.
    pub(super) fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            // It fails only when the count would overflow, and then it is rung already.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    /// Keeper: answers, which it leaves empty.
    pub(super) fn reply(&self, replies: &mut Vec<(OpId, Reply)>) {
        lock(&self.state).replies.append(replies);
        self.ring_if_asleep();
    }

    /// Keeper: nothing will come any more.
    pub(super) fn end(&self, ended: Ended) {
        lock(&self.state).ended.get_or_insert(ended);
        self.ring_if_asleep();
    }

    fn ring_if_asleep(&self) {
        if self.asleep.swap(false, SeqCst) {
            self.ring();
        }
    }

    /// Lane: swaps the answers into `replies`, which is empty, and tells whether they were the last. If there is nothing, the lane
    /// counts as asleep from now on.
    pub(super) fn take_or_sleep(&self, replies: &mut Vec<(OpId, Reply)>) -> Option<Ended> {
        debug_assert!(replies.is_empty(), "what was taken before is done");
        let mut state = lock(&self.state);
        std::mem::swap(&mut state.replies, replies);
        if replies.is_empty() && state.ended.is_none() {
            self.asleep.store(true, SeqCst);
        }
        state.ended
    }

    /// Lane: it looks here again before it sleeps, so nobody needs to wake it.
    pub(super) fn is_awake(&self) {
        self.asleep.store(false, SeqCst);
    }
}

const UNPOISONED: &str = "nobody panics while holding an inbox";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(UNPOISONED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn rings(inbox: &LaneInbox) -> u64 {
        let bell = inbox.bell().unwrap();
        let mut ready = [rustix::event::PollFd::new(bell, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut ready, Some(&now)).unwrap() == 0 {
            return 0;
        }
        let mut count = [0; 8];
        rustix::io::read(bell, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn only_a_sleeping_lane_is_rung_and_once() {
        let inbox = LaneInbox::new();
        assert_eq!(rings(&inbox), 0);
        let mut replies = Vec::new();
        inbox.reply(&mut vec![(OpId(1), Reply::Done)]);
        assert_eq!(rings(&inbox), 0, "awake");
        assert_eq!(inbox.take_or_sleep(&mut replies), None);
        assert_eq!(replies, [(OpId(1), Reply::Done)]);
        replies.clear();
        inbox.reply(&mut vec![(OpId(2), Reply::Again)]);
        assert_eq!(rings(&inbox), 0, "it had something and did not fall asleep");
        assert_eq!(inbox.take_or_sleep(&mut replies), None);
        replies.clear();
        assert_eq!(inbox.take_or_sleep(&mut replies), None);
        for op in 3..6 {
            inbox.reply(&mut vec![(OpId(op), Reply::Done)]);
        }
        assert_eq!(rings(&inbox), 1, "asleep");
        assert_eq!(inbox.take_or_sleep(&mut replies), None);
        assert_eq!(replies.len(), 3);
        replies.clear();
        assert_eq!(inbox.take_or_sleep(&mut replies), None);
        inbox.is_awake();
        inbox.end(Ended::Closed);
        assert_eq!(rings(&inbox), 0, "woken by something else");
        assert_eq!(inbox.take_or_sleep(&mut replies), Some(Ended::Closed));
    }

    #[test]
    fn the_keeper_waits_until_something_comes() {
        let inbox = KeeperInbox::new();
        let (mut asks, mut controls) = (Vec::new(), Vec::new());
        inbox.take(&mut asks, &mut controls, Some(Duration::from_millis(1)));
        assert!(asks.is_empty() && controls.is_empty());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                inbox.ask(LaneId(3), &mut vec![(OpId(1), Ask::Flush), (OpId(2), Ask::Flush)]);
            });
            let begun = Instant::now();
            inbox.take(&mut asks, &mut controls, Some(Duration::from_secs(60)));
            assert!(begun.elapsed() < Duration::from_secs(30));
        });
        let from = [OpId(1), OpId(2)].map(|op| (Asker::Lane(LaneId(3), op), Ask::Flush));
        assert_eq!(asks, from);
    }

    #[test]
    fn a_keeper_that_is_roused_does_not_fall_asleep_once() {
        let inbox = KeeperInbox::new();
        let (mut asks, mut controls) = (Vec::new(), Vec::new());
        inbox.rouse();
        inbox.rouse();
        let begun = Instant::now();
        assert_eq!(inbox.take(&mut asks, &mut controls, Some(Duration::from_secs(60))), None);
        assert!(begun.elapsed() < Duration::from_secs(30));
        let patience = Duration::from_millis(5);
        let begun = Instant::now();
        assert_eq!(inbox.take(&mut asks, &mut controls, Some(patience)), None);
        assert!(begun.elapsed() >= patience, "once is enough");
        inbox.stop(Ended::Closed);
        let stop = inbox.take(&mut asks, &mut controls, Some(Duration::from_secs(60)));
        assert_eq!(stop, Some(Ended::Closed));
    }

    #[test]
    fn after_the_end_questions_vanish_and_commands_are_refused() {
        let inbox = KeeperInbox::new();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        inbox.control(Control::Command(Command::Status, sender)).unwrap();
        inbox.end(Ended::Died);
        assert!(receiver.recv().is_err(), "who waited is told");
        let mut asks = vec![(OpId(1), Ask::Flush)];
        inbox.ask(LaneId(0), &mut asks);
        assert!(asks.is_empty());
        let (sender, _receiver) = std::sync::mpsc::sync_channel(1);
        let refused = inbox.control(Control::Command(Command::Status, sender));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Failed);
        assert_eq!(inbox.ended(), Some(Ended::Died));
    }
}
