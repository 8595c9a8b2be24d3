//! The keeper, and who has it work: its own thread, or a lane that finds it free.
//!
//! Waking the keeper's thread and being woken by it takes longer than what the keeper does for a fill. So a lane whose
//! question takes no I/O (but for metadata that is not in memory) asks on its own thread if nobody else is at the desk, and
//! otherwise sends it to the inbox. What must hold:
//!
//! - Lanes never wait for the desk, but for the end of a flush of theirs, and step back when somebody waits for it.
//! - What waits for the disk (loading of the map, whatever commits), and what the keeper does when it is settled, is left to the
//!   keeper's thread; a lane that has left something to settle rouses that.
//! - But for one thing: a flush that is all that a lane has under way is done there, by a commit if it takes one, when flushes have
//!   been quick of late ([`QUICK`]). Waking and being woken would be a good part of it.
//! - Whoever flushes and needs no commit leaves the desk while the disks do it: fills go on beside it ([`Desk::flush_beside`]).
//! - Who panics at the desk leaves it poisoned; the keeper's thread finds that at its next tick at the latest, and ends.

use super::inbox::Control;
use super::pool::Shared;
use crate::disk::{Disk, FileDisk};
use crate::engine::{Answer, Ask, Asker, FlushJob, Keeper, LaneId, OpId, Outbox, Reply, Settled};
use crate::error::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, LockResult, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a flush may take on a lane's own thread. Whoever comes to that lane meanwhile waits for it.
const QUICK: Duration = Duration::from_micros(500);

/// Where the keeper of a pool sits.
pub(super) struct Desk<M: Disk> {
    /// `None` once it has gone.
    work: Mutex<Option<Work<M>>>,
    /// So many wait for it.
    wanted: AtomicU32,
    /// What flushes take, in nanoseconds: an average in which the last four count most.
    flush_nanos: AtomicU64,
}

/// A desk as lanes know it.
pub(super) trait AskAtOnce: Send + Sync {
    /// Has those of `asks` answered that can be answered at once, into the lane's inbox, and leaves the rest. `is_alone`: the lane has
    /// no other request under way than the one that asks.
    fn ask_at_once(&self, shared: &Shared, lane: LaneId, asks: &mut Vec<(OpId, Ask)>, is_alone: bool);
}

impl<M: Disk> Desk<M> {
    pub fn new(keeper: Keeper<M, Arc<FileDisk>>, lanes: usize) -> Self {
        let work = Mutex::new(Some(Work::new(keeper, lanes)));
        Desk { work, wanted: AtomicU32::new(0), flush_nanos: AtomicU64::new(0) }
    }

    /// Keeper's thread: sits down, once the lane that is there has its answer.
    pub fn sit_down(&self) -> MutexGuard<'_, Option<Work<M>>> {
        self.wait_for_it().expect("a lane has panicked at the keeper's desk")
    }

    fn wait_for_it(&self) -> LockResult<MutexGuard<'_, Option<Work<M>>>> {
        self.wanted.fetch_add(1, Relaxed);
        let work = self.work.lock();
        self.wanted.fetch_sub(1, Relaxed);
        work
    }

    /// Has the keeper settle. What that takes when somebody waits for a flush is remembered.
    pub fn settle(&self, work: &mut Work<M>) -> Settled {
        let (flushes, begun) = (work.keeper.is_asked_to_flush(), Instant::now());
        let settled = work.keeper.settle(&mut work.out);
        if flushes {
            self.flush_took(begun.elapsed());
        }
        settled
    }

    fn flush_took(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4);
        let before = self.flush_nanos.load(Relaxed);
        self.flush_nanos.store(before - before / 4 + nanos / 4, Relaxed);
    }

    /// Flushes, while others have their questions answered. Whoever calls has left the desk. If it is one that somebody waits for, what it takes is
    /// remembered.
    pub fn flush_beside(&self, shared: &Shared, job: FlushJob<Arc<FileDisk>>, is_asked_for: bool) {
        let (mut job, mut took) = (Some(job), Duration::ZERO);
        while let Some(next) = job {
            let begun = Instant::now();
            let done = next.run();
            took += begun.elapsed();
            // Who waits for a flush that nobody ends is told when the keeper's thread has ended.
            let Ok(mut work) = self.wait_for_it() else { return };
            let Some(work) = work.as_mut() else { return };
            job = work.keeper.flush_ended(done, &mut work.out);
            work.deliver(shared);
            if work.keeper.wants_to_settle() {
                shared.keeper.rouse();
            }
        }
        if is_asked_for {
            self.flush_took(took);
        }
    }

    fn flushes_are_quick(&self) -> bool {
        Duration::from_nanos(self.flush_nanos.load(Relaxed)) < QUICK
    }

    /// Keeper's thread: the end.
    pub fn clear(&self) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl<M: Disk> AskAtOnce for Desk<M> {
    fn ask_at_once(&self, shared: &Shared, lane: LaneId, asks: &mut Vec<(OpId, Ask)>, is_alone: bool) {
        let flushes = is_alone && matches!(asks[..], [(_, Ask::Flush)]) && self.flushes_are_quick();
        if self.wanted.load(Relaxed) > 0 || !(flushes || asks.iter().any(|(_, ask)| is_answered_at_once(ask)))
        {
            return;
        }
        let Ok(mut desk) = self.work.try_lock() else { return };
        let Some(work) = desk.as_mut() else { return };
        let flushes = flushes && !work.keeper.is_flushing();
        asks.retain(|(op, ask)| {
            let at_once = flushes || is_answered_at_once(ask);
            if at_once {
                work.keeper.handle(Asker::Lane(lane, *op), ask.clone(), &mut work.out);
            }
            !at_once
        });
        let job = if flushes { work.keeper.begin_flush() } else { None };
        if flushes && job.is_none() {
            self.settle(work);
        }
        work.deliver(shared);
        if work.keeper.wants_to_settle() {
            shared.keeper.rouse();
        }
        drop(desk);
        if let Some(job) = job {
            self.flush_beside(shared, job, true);
        }
    }
}

fn is_answered_at_once(ask: &Ask) -> bool {
    match ask {
        Ask::Fill(..) | Ask::Publish(..) | Ask::PublishPart(..) | Ask::PutUnits(..) => true,
        Ask::Load(..)
        | Ask::Abandon(..)
        | Ask::Unmap(..)
        | Ask::AwaitUnits(..)
        | Ask::Settle
        | Ask::Flush
        | Ask::Thaw(_)
        | Ask::AwaitSpace(_)
        | Ask::GiveUp => false,
    }
}

/// The keeper with what lies before it.
pub(super) struct Work<M: Disk> {
    pub keeper: Keeper<M, Arc<FileDisk>>,
    pub out: Outbox,
    /// The batch of answers to each lane, and the lanes whose batch is not empty.
    replies: Vec<Vec<(OpId, Reply)>>,
    answered: Vec<LaneId>,
    commands: HashMap<u64, SyncSender<Result<Answer>>>,
    next_command: u64,
}

impl<M: Disk> Work<M> {
    fn new(keeper: Keeper<M, Arc<FileDisk>>, lanes: usize) -> Self {
        Work {
            keeper,
            out: Outbox::default(),
            replies: (0..lanes).map(|_| Vec::new()).collect(),
            answered: Vec::new(),
            commands: HashMap::new(),
            next_command: 0,
        }
    }

    /// What the control plane wants.
    pub fn control(&mut self, control: Control) {
        match control {
            Control::Command(command, answer) => {
                let number = self.next_command;
                self.next_command += 1;
                self.commands.insert(number, answer);
                self.keeper.command(number, command, &mut self.out);
            }
            Control::Open(id, answer) => {
                let volume = self.keeper.volume(id).ok_or_else(|| {
                    let message = format!("the pool has no volume {id}, or it is being deleted");
                    Error::new(ErrorKind::NotFound, message)
                });
                let lease = volume.and_then(|volume| volume.open());
                // Whoever asked may have gone; then the lease goes here.
                let _ = answer.send(lease);
            }
        }
    }

    /// Hands out what the keeper has to say, to each lane in one go.
    pub fn deliver(&mut self, shared: &Shared) {
        for (number, answer) in self.out.answers.drain(..) {
            let sender = self.commands.remove(&number).expect("a command is answered once");
            let _ = sender.send(answer); // whoever asked may have gone
        }
        for (asker, reply) in self.out.replies.drain(..) {
            let Asker::Lane(lane, op) = asker else { unreachable!("commands get answers, not replies") };
            let batch = &mut self.replies[usize::from(lane.0)];
            if batch.is_empty() {
                self.answered.push(lane);
            }
            batch.push((op, reply));
        }
        for lane in self.answered.drain(..) {
            shared.inbox(lane).reply(&mut self.replies[usize::from(lane.0)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::engine::KeeperOptions;
    use crate::metadata::{Geometry, Metadata};
    use crate::units::{BlockSize, VirtualBlock, VolumeId};

    /// What a lane is told before [`Shared::ask`] returns. Nobody else is there.
    fn told(desk: &Arc<Desk<MemoryDisk>>, asks: &[Ask], is_alone: bool) -> Vec<Reply> {
        let shared = Shared::new(1, desk.clone());
        let mut asks = (0..).map(OpId).zip(asks.iter().cloned()).collect();
        shared.ask(LaneId(0), &mut asks, is_alone);
        assert!(asks.is_empty(), "the rest is with the keeper");
        let mut replies = Vec::new();
        shared.inbox(LaneId(0)).take_or_sleep(&mut replies);
        replies.into_iter().map(|(_, reply)| reply).collect()
    }

    #[test]
    fn a_lane_flushes_on_its_own_thread_when_that_holds_nobody_up() {
        let directory = tempfile::TempDir::new().unwrap();
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 16 };
        let data = FileDisk::create(&directory.path().join("data"), 16 * BlockSize::MIN.bytes()).unwrap();
        let metadata = Metadata::format(MemoryDisk::zeroed(8 << 20), geometry).unwrap();
        let options = KeeperOptions { lanes: 1, ..KeeperOptions::default() };
        let desk = Arc::new(Desk::new(Keeper::new(metadata, Arc::new(data), options).unwrap(), 1));
        let nowhere = Ask::Load(VolumeId::new(7).unwrap(), VirtualBlock(0));
        let ways: [(&[Ask], bool, Duration, &[Reply]); 5] = [
            (&[Ask::Flush], true, Duration::ZERO, &[Reply::Done]),
            (&[Ask::Flush], false, Duration::ZERO, &[]),
            (&[Ask::Flush], true, QUICK, &[]),
            (&[Ask::Flush, Ask::Flush], true, Duration::ZERO, &[]),
            (&[nowhere], true, Duration::ZERO, &[]),
        ];
        for (asks, is_alone, lately, expected) in ways {
            desk.flush_nanos.store(lately.as_nanos() as u64, Relaxed);
            assert_eq!(told(&desk, asks, is_alone), expected, "{asks:?}, alone: {is_alone}, {lately:?}");
        }
        desk.flush_nanos.store(0, Relaxed);
        told(&desk, &[Ask::Flush], true);
        assert!(desk.flush_nanos.load(Relaxed) > 0, "what it took is remembered");
        let busy = desk.sit_down();
        assert_eq!(told(&desk, &[Ask::Flush], true), [], "nobody waits for the desk");
        drop(busy);
    }
}
