//! An open pool: the keeper on its thread, the seats of its lanes, and the way to both.
//!
//! - The keeper's thread drains its inbox, answers each lane in one batch, and lets the keeper settle when nothing is left.
//!   Lanes may have the keeper answer on their own threads meanwhile, also while it flushes ([`super::desk`]).
//!   When that thread panics, whoever waits for it is told: nobody hangs.
//! - Partial blocks are made whole by a lane of the pool's own ([`super::settler`]), if somebody starts it.
//! - A pool closes only when no lane holds a seat: then nobody reads a block any more that closing gives back.

use super::buffers::BufferBudget;
use super::desk::{AskAtOnce, Desk};
use super::give_back::GivingBack;
use super::inbox::{Control, Ended, KeeperInbox, LaneInbox};
use super::settler::Settler;
use super::uring::UringLane;
use crate::disk::{Disk, FileDisk};
use crate::engine::{
    Answer, Ask, Asker, Command, Epochs, Keeper, Lane, LaneId, OpId, Settled, Volume, VolumeLease,
};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, VolumeId};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What nobody asked to be flushed is committed this often.
const TICK: Duration = Duration::from_secs(1);
/// How soon to look again whether lanes have finished; doubled while they have not.
const LANES_WAIT_LEAST: Duration = Duration::from_micros(100);
const LANES_WAIT_MOST: Duration = Duration::from_millis(5);
/// Batches in a row after which the keeper settles although more has come: flushes must not starve.
const BATCHES_LIMIT: u32 = 32;
/// What the buffers of all lanes take together, beyond what each may in any case.
const BUFFERS_BYTES: usize = 512 << 20;
/// How long closing waits for a command that is under way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// A handle to an open pool; clones are handles to the same one. When the last is dropped without [`Pool::close`],
/// the keeper stops where it is, as after a crash: what was flushed is safe, the last second's rest is not.
#[derive(Clone)]
pub struct Pool {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    data: Arc<FileDisk>,
    epochs: Arc<Epochs>,
    block_size: BlockSize,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// For [`Settler::start`].
    settling: Arc<Volume>,
    settler: Mutex<Option<Settler>>,
}

/// What the keeper's thread, the handles and the lanes have in common.
pub(super) struct Shared {
    pub(super) keeper: KeeperInbox,
    desk: Arc<dyn AskAtOnce>,
    /// What the lanes' buffers take together.
    pub(super) buffers: Arc<BufferBudget>,
    lanes: Box<[LaneInbox]>,
    seats: Mutex<Seats>,
}

struct Seats {
    free: Vec<LaneId>,
    taken: usize,
    /// Seats of lanes that were dropped with I/O in flight: never free again.
    lost: usize,
    closing: bool,
}

/// A lane's place. Free again when it is dropped.
pub(super) struct Seat {
    pub(super) lane: LaneId,
    pub(super) shared: Arc<Shared>,
    /// The lane's I/O may still be running: nobody else may sit here.
    pub(super) is_lost: bool,
}

impl Seat {
    pub(super) fn inbox(&self) -> &LaneInbox {
        self.shared.inbox(self.lane)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.shared.seats();
        seats.taken -= 1;
        if self.is_lost {
            seats.lost += 1;
        } else {
            seats.free.push(self.lane);
        }
    }
}

impl Shared {
    pub(super) fn new(lanes: usize, desk: Arc<dyn AskAtOnce>) -> Self {
        let count = u16::try_from(lanes).expect("a lane's number has 16 bits");
        let seats = Seats { free: (0..count).rev().map(LaneId).collect(), taken: 0, lost: 0, closing: false };
        Shared {
            keeper: KeeperInbox::new(),
            desk,
            buffers: Arc::new(BufferBudget::new(BUFFERS_BYTES)),
            lanes: (0..lanes).map(|_| LaneInbox::new()).collect(),
            seats: Mutex::new(seats),
        }
    }

    /// A lane's questions of one turn: the keeper answers them into the lane's inbox, some before this returns.
    /// `is_alone`: it has no other request under way than the one that asks.
    pub(super) fn ask(&self, lane: LaneId, asks: &mut Vec<(OpId, Ask)>, is_alone: bool) {
        self.desk.ask_at_once(self, lane, asks, is_alone);
        if !asks.is_empty() {
            self.keeper.ask(lane, asks);
        }
    }

    pub(super) fn inbox(&self, lane: LaneId) -> &LaneInbox {
        &self.lanes[usize::from(lane.0)]
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().expect("nobody panics while holding the seats")
    }

    fn end(&self, ended: Ended) {
        self.keeper.end(ended);
        self.lanes.iter().for_each(|lane| lane.end(ended));
    }
}

impl Pool {
    /// Starts the keeper's thread. `data` is the disk that the keeper was made with.
    pub fn start<M: Disk + 'static>(keeper: Keeper<M, Arc<FileDisk>>, data: Arc<FileDisk>) -> Result<Pool> {
        let (epochs, block_size, settling) = (keeper.epochs(), keeper.block_size(), keeper.settling());
        let desk = Arc::new(Desk::new(keeper, epochs.lanes()));
        let shared = Arc::new(Shared::new(epochs.lanes(), desk.clone()));
        let thread = KeeperThread { desk, shared: shared.clone(), asks: Vec::new(), controls: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("uthin-keeper".to_owned())
            .spawn(move || thread.run_to_the_end())
            .map_err(|error| Error::io("starting the keeper's thread", &error))?;
        let (thread, settler) = (Mutex::new(Some(thread)), Mutex::new(None));
        let handle = Handle { shared, data, epochs, block_size, thread, settling, settler };
        Ok(Pool { handle: Arc::new(handle) })
    }

    /// Has partial blocks made whole, when the keeper finds it time for that, until the pool is closed. Takes a seat.
    pub fn start_settler(&self) -> Result<()> {
        let settler = Settler::start(self, self.handle.settling.clone())?;
        *self.handle.settler() = Some(settler);
        Ok(())
    }

    /// Carries a command out and waits for its answer: on any thread but one that runs a lane's ring.
    /// `Failed` when the keeper has died, `WrongState` when the pool is closed.
    pub fn command(&self, command: Command) -> Result<Answer> {
        if command == Command::Close {
            return self.close().map(|()| Answer::Done);
        }
        self.ask_keeper(|answer| Control::Command(command, answer))
    }

    /// Opens a volume: until the lease is dropped, it cannot be deleted. `NotFound` when there is none or it is being
    /// deleted; when its external origin cannot be had, what is wrong with that. Waits for the keeper, as [`Pool::command`] does.
    pub fn open_volume(&self, id: VolumeId) -> Result<VolumeLease> {
        self.ask_keeper(|answer| Control::Open(id, answer))
    }

    fn ask_keeper<T>(&self, control: impl FnOnce(SyncSender<Result<T>>) -> Control) -> Result<T> {
        let (sender, receiver) = sync_channel(1);
        let keeper = &self.handle.shared.keeper;
        keeper.control(control(sender))?;
        // Without an answer, the sender went with the keeper, which says why.
        receiver.recv().unwrap_or_else(|_| Err(keeper.ended().unwrap_or(Ended::Died).error()))
    }

    /// Takes a seat for a lane; the seat is free again when the lane is dropped. `Busy` when all are taken.
    pub fn lane(&self) -> Result<UringLane> {
        let Handle { shared, data, epochs, block_size, .. } = &*self.handle;
        if let Some(ended) = shared.keeper.ended() {
            return Err(ended.error());
        }
        let lane = {
            let mut seats = shared.seats();
            if seats.closing {
                return Err(Error::new(ErrorKind::WrongState, "the pool is being closed"));
            }
            let lane = seats.free.pop().ok_or_else(|| {
                let message =
                    format!("all {} seats for connections to the pool are taken", shared.lanes.len());
                Error::new(ErrorKind::Busy, message)
                    .hint("disconnect a client, or open the pool with more seats")
            })?;
            seats.taken += 1;
            lane
        };
        let seat = Seat { lane, shared: shared.clone(), is_lost: false };
        seat.inbox().bell()?;
        Ok(UringLane::new(Lane::new(lane, epochs.clone(), *block_size), *block_size, seat, data.clone()))
    }

    /// Commits, stops the keeper and waits for it to end. `Busy` while a lane holds a seat: end the clients' connections
    /// first. What comes afterwards is refused. Calling it again does nothing.
    pub fn close(&self) -> Result<()> {
        self.handle.stop_settler();
        let shared = &self.handle.shared;
        let lost = {
            let mut seats = shared.seats();
            if seats.taken > 0 {
                let message = format!("{} connections to the pool are open", seats.taken);
                return Err(Error::new(ErrorKind::Busy, message).hint("disconnect its clients first"));
            }
            seats.closing = true;
            seats.lost
        };
        let closed = self.close_keeper(lost);
        match &closed {
            Err(error) if error.kind() == ErrorKind::Busy => shared.seats().closing = false,
            Ok(()) | Err(_) => self.handle.stop(Ended::Closed),
        }
        closed
    }

    fn close_keeper(&self, lost_lanes: usize) -> Result<()> {
        let shared = &self.handle.shared;
        if shared.keeper.ended() == Some(Ended::Closed) {
            return Ok(());
        }
        if lost_lanes > 0 {
            // Their I/O may still be running, so nothing is given back; the next opening finds what they left.
            tracing::warn!("closing the pool although {lost_lanes} connections ended with I/O in flight");
            return self.command(Command::Commit).map(|_| ());
        }
        let deadline = Instant::now() + CLOSE_PATIENCE;
        loop {
            match self.ask_keeper(|answer| Control::Command(Command::Close, answer)) {
                // A snapshot is under way, or the rest of a discard.
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                answer => return answer.map(|_| ()),
            }
        }
    }
}

impl Handle {
    fn settler(&self) -> MutexGuard<'_, Option<Settler>> {
        self.settler.lock().expect("nobody panics while holding the settler")
    }

    fn stop_settler(&self) {
        let settler = self.settler().take();
        settler.into_iter().for_each(Settler::stop);
    }

    /// Ends the thread, if it runs, and waits until it has.
    fn stop(&self, ended: Ended) {
        let thread = self.thread.lock().expect("nobody panics while holding the thread").take();
        if let Some(thread) = thread {
            self.shared.keeper.stop(ended);
            // Its panics are caught and logged where they happen.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.shared.keeper.ended().is_none() {
            tracing::warn!("a pool is abandoned without being closed: what was not flushed is lost");
        }
        self.stop(Ended::Died);
        self.stop_settler();
    }
}

/// The keeper's thread.
struct KeeperThread<M: Disk> {
    desk: Arc<Desk<M>>,
    shared: Arc<Shared>,
    asks: Vec<(Asker, Ask)>,
    controls: Vec<Control>,
}

impl<M: Disk> KeeperThread<M> {
    fn run_to_the_end(mut self) {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|_| {
            tracing::error!(
                "the keeper's thread has panicked; the pool answers nothing but errors from now on"
            );
            Ended::Died
        });
        self.shared.end(ended);
        // Now the commands' senders go, and whoever still waits for an answer learns of the end.
        self.desk.clear();
    }

    /// Works until it is told to stop, and says how.
    fn run(&mut self) -> Ended {
        let mut next_tick = Instant::now() + TICK;
        let mut patience = None;
        let mut lanes_wait = LANES_WAIT_LEAST;
        let mut batches = 0;
        let mut giving_back = GivingBack::default();
        loop {
            let stop = self.shared.keeper.take(&mut self.asks, &mut self.controls, patience);
            let got_something = !(self.asks.is_empty() && self.controls.is_empty());
            let mut desk = self.desk.sit_down();
            let work = desk.as_mut().expect("the keeper is there until its thread ends");
            for (asker, ask) in self.asks.drain(..) {
                work.keeper.handle(asker, ask, &mut work.out);
            }
            self.controls.drain(..).for_each(|control| work.control(control));
            work.deliver(&self.shared);
            if let Some(ended) = stop {
                return ended;
            }
            let is_tick = Instant::now() >= next_tick;
            let goes_on = got_something && batches < BATCHES_LIMIT;
            let flush = match is_tick {
                true => work.keeper.begin_flush_ahead(),
                false if goes_on => None,
                false => work.keeper.begin_flush(),
            };
            if let Some(job) = flush {
                drop(desk);
                self.desk.flush_beside(&self.shared, job, !is_tick);
                desk = self.desk.sit_down();
            }
            let work = desk.as_mut().expect("the keeper is there until its thread ends");
            if is_tick {
                work.keeper.tick(&mut work.out);
                work.deliver(&self.shared);
                next_tick = Instant::now() + TICK;
            }
            if goes_on {
                batches += 1;
                patience = None; // more may have come
                lanes_wait = LANES_WAIT_LEAST;
                continue;
            }
            batches = 0;
            let settled = self.desk.settle(work);
            work.deliver(&self.shared);
            let until_more_is_given_back = giving_back.step(&mut work.keeper, Instant::now());
            let until_tick = next_tick.saturating_duration_since(Instant::now());
            let rest = until_more_is_given_back.map_or(until_tick, |until| until.min(until_tick));
            patience = match settled {
                Settled::Idle => Some(rest),
                Settled::WaitsForLanes => {
                    let wait = lanes_wait;
                    lanes_wait = (lanes_wait * 2).min(LANES_WAIT_MOST);
                    Some(wait.min(rest))
                }
                Settled::HasWork => None,
            };
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
