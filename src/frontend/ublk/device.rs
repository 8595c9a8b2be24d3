//! A block device: made, served, and taken away by a thread of its own.
//!
//! That thread is the only one that sends the device's control commands, so that whoever waits for one can give up waiting.
//! The order of making: lanes, `ADD`, the character device, `SET_PARAMS`, the queues' threads, and, when all tags of all
//! queues wait in the kernel, `START`. Of taking up what an earlier daemon has left: `START_USER_RECOVERY`, the character device, the
//! queues' threads, `END_USER_RECOVERY`. Of taking away: `STOP` (requests under way are answered, a mounted filesystem is
//! synced), the queues' threads end, the character device is closed, `DEL`. Of letting go: the queues' threads end, and the
//! character device is closed. A start that fails takes away what there is.

use super::control::{Control, failed};
use super::left;
use super::openers::{PROBE_PATIENCE, claim, sync_filesystems};
use super::params::Mark;
use super::queue::{self, Plan, Tells, Told};
use super::{BLOCK_DEVICE, CHARACTER_DEVICE, Options, abi, params, requirements};
use crate::driver::Pool;
use crate::driver::uring::{UringLane, Waker};
use crate::engine::VolumeLease;
use crate::error::{Error, ErrorKind, Result};
use crate::units::BlockSize;
use std::fs::{File, OpenOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long a device may take to come up. It reads the partition table meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long udev may take to make the character device ours; a busy machine gets to its events in seconds.
const FILE_PATIENCE: Duration = Duration::from_secs(15);
/// How long whoever asks for the end of a device waits for it.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a mounted filesystem may take to write what it holds back, before its device goes away.
const SYNC_PATIENCE: Duration = Duration::from_secs(30);
/// How long requests of a device that goes away may wait for space in the pool; then they get errors.
const SPACE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take to notice that the daemon before this one is gone: a queue all of whose requests were under way then is
/// looked at after thirty seconds, and again after as many.
const TAKE_UP_PATIENCE: Duration = Duration::from_secs(90);
/// How often it is asked meanwhile.
const TAKE_UP_INTERVAL: Duration = Duration::from_millis(20);
/// How long the device's thread waits for requests under way.
const STOP_PATIENCE_MOST: Duration = Duration::from_secs(24 * 3600);

/// A block device on a volume. When it is dropped, the device is taken away, with or without somebody having it open.
pub struct Device {
    number: u32,
    outlives_daemon: bool,
    /// Of its queues, if it has zero copy.
    tells: Vec<Arc<Tells>>,
    orders: Sender<Order>,
    has_ended: Arc<AtomicBool>,
}

/// What has moved since a device with zero copy was made, in bytes of its requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct Moved {
    /// Between their pages and a disk, without a copy.
    pub in_place_bytes: u64,
    /// By a copy, because it had to be looked at or put together.
    pub copied_bytes: u64,
}

/// How a device comes to be.
pub enum Birth {
    /// It is made, and goes with the process that serves it.
    Mortal,
    /// It is made, and outlives the process that serves it: requests wait for the next one.
    Outliving {
        /// By what it is known again.
        mark: Mark,
        /// Told its number, before the first request comes. An error is the device's end.
        remember: Box<dyn FnOnce(u32) -> Result<()> + Send>,
    },
    /// An earlier process made it.
    Found {
        /// Its number.
        number: u32,
        /// By what it is known.
        mark: Mark,
        /// Called when the kernel has it wait for us: until `goes_on` was called nobody else can take it up. An error is its end.
        begins: Box<dyn FnOnce() -> Result<()> + Send>,
        /// Called before its first request comes. An error is the device's end.
        goes_on: Box<dyn FnOnce() -> Result<()> + Send>,
    },
}

/// What a device's thread is told.
enum Order {
    Resize(u64, SyncSender<Result<()>>),
    Stop {
        force: bool,
        answer: SyncSender<Result<()>>,
    },
    LetGo(SyncSender<Result<()>>),
    /// A queue has ended, though nobody asked for it.
    QueueEnded,
}

impl Device {
    /// Makes the volume a block device, and returns when it can be opened. `Unsupported` with what is missing when this
    /// machine has no ublk (or not for us), `Busy` when the pool has no seats for the queues' lanes. A found device: `NotFound`, and nothing is
    /// done to it, when it is not there or not the one that is meant. Whatever goes wrong before `begins` was called leaves it as it is, what goes
    /// wrong then is its end.
    pub fn start(
        pool: &Pool,
        lease: VolumeLease,
        block_size: BlockSize,
        options: Options,
        birth: Birth,
    ) -> Result<Device> {
        params::check(&options, lease.volume().size_bytes())?;
        requirements::check(options.queues)?;
        if options.zero_copy {
            assert!(matches!(birth, Birth::Mortal), "a device that outlives its daemon has no zero copy");
            requirements::check_zero_copy()?;
        }
        let lanes = (0..options.queues).map(|_| pool.lane()).collect::<Result<Vec<_>>>()?;
        let (orders, inbox) = channel();
        // Handed over or not at all: who has given up waiting gets no device.
        let (ready, is_ready) = sync_channel(0);
        let all_tell: Vec<_> = (0..options.queues).map(|_| Arc::<Tells>::default()).collect();
        let tells = if options.zero_copy { all_tell.clone() } else { Vec::new() };
        let has_ended = Arc::new(AtomicBool::new(false));
        let ending = Ending(has_ended.clone());
        let to_itself = orders.clone();
        let patience = match birth {
            Birth::Mortal | Birth::Outliving { .. } => START_PATIENCE + FILE_PATIENCE,
            Birth::Found { .. } => TAKE_UP_PATIENCE + START_PATIENCE + FILE_PATIENCE,
        };
        let work = move || {
            let _ending = ending;
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let making = Making { lanes, tells: all_tell, block_size, birth, orders: to_itself };
                supervise(lease, options, making, &inbox, &ready)
            }));
            if outcome.is_err() {
                tracing::error!("the thread of a block device has panicked; this is a bug");
            }
        };
        let thread = Builder::new().name("ublk-device".to_owned()).spawn(work);
        thread.map_err(|error| Error::io("starting a thread", &error))?;
        match is_ready.recv_timeout(patience) {
            Ok(started) => {
                let device =
                    |(number, outlives_daemon)| Device { number, outlives_daemon, tells, orders, has_ended };
                started.map(device)
            }
            Err(RecvTimeoutError::Timeout) => {
                Err(Error::new(ErrorKind::Busy, "ublk: the device does not come up").hint(
                    "look at the kernel's log (dmesg); the device is taken away again as soon as it can be",
                ))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::new(ErrorKind::Failed, "ublk: making the device has met a bug")
                    .hint("see the daemon's log"))
            }
        }
    }

    /// The device's number: the N of `/dev/ublkbN`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The block device.
    pub fn path(&self) -> PathBuf {
        block_device(self.number)
    }

    /// Whether requests wait for another process when this one dies.
    pub fn outlives_daemon(&self) -> bool {
        self.outlives_daemon
    }

    /// What has moved, if it has zero copy.
    pub fn moved(&self) -> Option<Moved> {
        let sum = |bytes: fn(&Tells) -> &AtomicU64| {
            self.tells.iter().map(|tells| bytes(tells).load(Ordering::Relaxed)).sum()
        };
        (!self.tells.is_empty()).then(|| Moved {
            in_place_bytes: sum(|tells| &tells.in_place_bytes),
            copied_bytes: sum(|tells| &tells.copied_bytes),
        })
    }

    /// Whether it is gone, by our doing or not.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Shows the volume's new size. `Unsupported` when the kernel cannot change a device's size.
    pub fn resize(&self, size_bytes: u64) -> Result<()> {
        self.ask(|answer| Order::Resize(size_bytes, answer))
    }

    /// Takes the device away, and returns when it is gone. `Busy`, changing nothing, when somebody has it open, unless that
    /// is forced: then what is under way is answered, and whoever has it open gets errors. `Busy` as well when requests
    /// under way do not end soon: then the device goes away when they do.
    pub fn stop(&self, force: bool) -> Result<()> {
        self.ask(|answer| Order::Stop { force, answer })
    }

    /// Leaves a device that outlives its daemon to the next one. When this returns, all is done that was begun, and nothing more is: what is asked
    /// of the device from now on waits, and what could not be done here is done there.
    pub fn let_go(&self) -> Result<()> {
        assert!(self.outlives_daemon, "its requests would wait for ever");
        self.ask(Order::LetGo)
    }

    fn ask(&self, order: impl FnOnce(SyncSender<Result<()>>) -> Order) -> Result<()> {
        let gone = || Error::new(ErrorKind::NotFound, format!("{} is gone", self.path().display()));
        let (answer, answered) = sync_channel(1);
        self.orders.send(order(answer)).map_err(|_| gone())?;
        answered.recv_timeout(STOP_PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Disconnected => Err(gone()),
            RecvTimeoutError::Timeout => {
                let what = format!("{} has requests under way that do not end", self.path().display());
                Err(Error::new(ErrorKind::Busy, what).hint(
                    "the disks below may be slow, or hang; what was asked for is done when they have ended",
                ))
            }
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let (answer, _) = sync_channel(1);
        // An error says that it has gone.
        let _ = self.orders.send(Order::Stop { force: true, answer });
    }
}

/// Notes the end of a device's thread, however it comes.
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub(super) fn block_device(number: u32) -> PathBuf {
    PathBuf::from(format!("{BLOCK_DEVICE}{number}"))
}

/// The life of a device.
fn supervise(
    lease: VolumeLease,
    options: Options,
    making: Making,
    inbox: &Receiver<Order>,
    ready: &SyncSender<Result<(u32, bool)>>,
) {
    let found = match &making.birth {
        Birth::Mortal => Running::add(options, lease, None),
        Birth::Outliving { mark, .. } => Running::add(options, lease, Some(*mark)),
        Birth::Found { number, mark, .. } => Running::find(options, lease, *number, *mark),
    };
    let started = match found {
        Ok(mut running) => match running.start(making) {
            Ok(()) => Ok(running),
            Err(error) if running.is_untouched => Err(error),
            Err(error) => {
                running.is_healthy = false;
                // Its own error would only follow from this one.
                let _ = running.take_away(None);
                Err(error)
            }
        },
        Err(error) => Err(error),
    };
    match started {
        Err(error) => {
            // Nobody is left to be told if the one who asked has given up.
            let _ = ready.send(Err(error));
        }
        Ok(running) => {
            let (number, was_found) = (running.number, running.was_found);
            if ready.send(Ok((number, running.outlives_daemon))).is_ok() {
                running.obey(inbox);
            } else if was_found {
                // It came later than anybody waited; another time, then.
                let _ = running.let_go();
            } else {
                let _ = running.take_away(None);
            }
        }
    }
}

/// What a device is made from.
struct Making {
    lanes: Vec<UringLane>,
    tells: Vec<Arc<Tells>>,
    block_size: BlockSize,
    birth: Birth,
    orders: Sender<Order>,
}

/// A device that the driver knows, and what belongs to it.
struct Running {
    number: u32,
    options: Options,
    outlives_daemon: bool,
    was_found: bool,
    /// It was found, and is as it was left.
    is_untouched: bool,
    /// As far as is known, its requests are answered.
    is_healthy: bool,
    control: Control,
    lease: VolumeLease,
    /// `/dev/ublkcN`: the driver lets only one process open it.
    file: Option<Arc<File>>,
    queues: Vec<Queue>,
}

struct Queue {
    /// Comes back with whether it ended well.
    thread: JoinHandle<bool>,
    waker: Waker,
    told: Arc<Told>,
}

impl Running {
    fn new(
        number: u32,
        options: Options,
        lease: VolumeLease,
        control: Control,
        outlives_daemon: bool,
    ) -> Running {
        Running {
            number,
            options,
            outlives_daemon,
            was_found: false,
            is_untouched: false,
            is_healthy: true,
            control,
            lease,
            file: None,
            queues: Vec::new(),
        }
    }

    /// A new one.
    fn add(options: Options, lease: VolumeLease, mark: Option<Mark>) -> Result<Running> {
        let mut control = Control::open().map_err(|error| requirements::cannot_open(&error))?;
        let mut info = params::device_info(&options, mark);
        control.add(&mut info).map_err(|error| requirements::cannot_add(&error))?;
        // Of an ordinary user's device the driver does not keep the requests.
        let outlives_daemon = info.flags & u64::from(abi::UBLK_F_USER_RECOVERY) != 0;
        let lends = u64::from(params::LENDS);
        if options.zero_copy && info.flags & lends != lends {
            let _ = control.delete(info.dev_id, true); // nobody has it
            return Err(requirements::no_zero_copy("the driver does not lend requests"));
        }
        Ok(Running::new(info.dev_id, options, lease, control, outlives_daemon))
    }

    /// One that an earlier process made.
    fn find(options: Options, lease: VolumeLease, number: u32, mark: Mark) -> Result<Running> {
        let control = left::find(number, mark, Some(options))?;
        let mut running = Running::new(number, options, lease, control, true);
        (running.was_found, running.is_untouched) = (true, true);
        Ok(running)
    }

    fn start(&mut self, making: Making) -> Result<()> {
        let Making { lanes, tells, block_size, birth, orders } = making;
        let is_new = !self.was_found;
        let goes_on = match birth {
            Birth::Mortal => None,
            Birth::Outliving { remember, .. } => {
                let number = self.number;
                Some(Box::new(move || remember(number)) as Box<dyn FnOnce() -> Result<()> + Send>)
            }
            Birth::Found { begins, goes_on, .. } => {
                self.begin_recovery(begins)?;
                Some(goes_on)
            }
        };
        let file = Arc::new(open_when_there(&format!("{CHARACTER_DEVICE}{}", self.number))?);
        self.file = Some(file.clone());
        if is_new {
            let size_bytes = self.lease.volume().size_bytes();
            let limits = params::of_volume(&self.options, size_bytes, block_size);
            self.control
                .set_params(self.number, &limits)
                .map_err(|error| failed("telling the driver about the volume", &error))?;
        }
        let lanes = lanes.into_iter().zip(tells).collect();
        self.start_queues(lanes, block_size, &file, &orders)?;
        let (volume, device) = (self.lease.volume().id(), block_device(self.number));
        if let (true, Some(goes_on)) = (self.outlives_daemon, goes_on) {
            goes_on()?;
        }
        let started = match is_new {
            true => self.control.start(self.number, START_PATIENCE),
            false => self.control.end_recovery(self.number, START_PATIENCE),
        };
        started.map_err(|error| failed("starting the device", &error))?;
        let word = if is_new { "there" } else { "taken up" };
        tracing::info!(%volume, "{} is {word}", device.display());
        Ok(())
    }

    /// Waits until the kernel knows that the device's last daemon is gone.
    fn begin_recovery(&mut self, begins: impl FnOnce() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + TAKE_UP_PATIENCE;
        loop {
            match self.control.begin_recovery(self.number) {
                Ok(()) => {
                    self.is_untouched = false;
                    return begins();
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(TAKE_UP_INTERVAL);
                }
                Err(error) => {
                    // `EINVAL`: whoever took it up last was cut off in that, and the driver does not give it to anybody again. And what does not
                    // come back may be done yet.
                    let is_busy = error.raw_os_error() == Some(libc::EBUSY);
                    self.is_untouched = is_busy;
                    let refused = failed("taking the device up", &error);
                    return if is_busy { Err(refused) } else { begins().and(Err(refused)) };
                }
            }
        }
    }

    /// A thread for each lane; returns when all tags wait in the kernel.
    fn start_queues(
        &mut self,
        lanes: Vec<(UringLane, Arc<Tells>)>,
        block_size: BlockSize,
        file: &Arc<File>,
        orders: &Sender<Order>,
    ) -> Result<()> {
        let (ready, is_ready) = channel();
        for (number, (lane, tells)) in lanes.into_iter().enumerate() {
            let (waker, told) = (lane.waker(), Arc::<Told>::default());
            let plan = Plan {
                number: number as u16,
                depth: self.options.depth,
                device: file.clone(),
                volume: self.lease.volume().clone(),
                lane,
                block_size,
                read_only: self.options.read_only,
                zero_copy: self.options.zero_copy,
                told: told.clone(),
                tells,
            };
            let thread = start_queue(self.number, plan, ready.clone(), orders.clone())?;
            self.queues.push(Queue { thread, waker, told });
        }
        drop(ready);
        for _ in 0..self.queues.len() {
            let gone = || Error::new(ErrorKind::Failed, "ublk: a queue ended before it had begun");
            is_ready.recv_timeout(START_PATIENCE).unwrap_or_else(|_| Err(gone()))?;
        }
        Ok(())
    }

    /// Does what it is told, until the device is to go.
    fn obey(mut self, inbox: &Receiver<Order>) {
        let (mut answer, mut held) = (None, None);
        loop {
            match inbox.recv() {
                Ok(Order::Resize(size_bytes, answer)) => {
                    // Whoever asked may have given up waiting.
                    let _ = answer.send(self.resize(size_bytes));
                }
                Ok(Order::Stop { force, answer: asker }) => {
                    let patience = if force { Duration::ZERO } else { PROBE_PATIENCE };
                    match claim(&block_device(self.number), patience) {
                        Ok(file) => held = Some(file),
                        Err(_) if force => {}
                        Err(error) => {
                            let _ = asker.send(Err(error));
                            continue;
                        }
                    }
                    answer = Some(asker);
                    break;
                }
                Ok(Order::LetGo(asker)) => {
                    let _ = asker.send(self.let_go());
                    return;
                }
                Ok(Order::QueueEnded) => {
                    tracing::error!("{} is going away: see above", block_device(self.number).display());
                    // Nobody would answer it.
                    self.is_healthy = false;
                    break;
                }
                Err(_) => unreachable!("the queues' threads keep the other end, and say when they end"),
            }
        }
        let gone = self.take_away(held);
        if let Some(answer) = answer {
            let _ = answer.send(gone);
        }
    }

    fn resize(&mut self, size_bytes: u64) -> Result<()> {
        let device = block_device(self.number);
        let features = self.control.features().unwrap_or(0);
        if features & u64::from(abi::UBLK_F_UPDATE_SIZE) == 0 {
            let what =
                format!("{} keeps its size: this kernel cannot change it, Linux 6.16 can", device.display());
            return Err(
                Error::new(ErrorKind::Unsupported, what).hint("unexport the volume and export it again")
            );
        }
        if !size_bytes.is_multiple_of(u64::from(self.options.logical_block_bytes)) {
            let what = format!(
                "{} keeps its size: {size_bytes} bytes are no whole number of its blocks of {} bytes",
                device.display(),
                self.options.logical_block_bytes
            );
            return Err(
                Error::new(ErrorKind::WrongState, what).hint("choose a size that is a multiple of them")
            );
        }
        let doing = format!("changing the size of {}", device.display());
        self.control.resize(self.number, size_bytes).map_err(|error| failed(&doing, &error))
    }

    /// Has the driver stop it, which waits for requests under way.
    fn stop(&mut self) -> std::io::Result<()> {
        let is_served = self.is_healthy && self.queues.iter().all(|queue| !queue.thread.is_finished());
        if self.outlives_daemon && is_served {
            // The driver ends all requests of such a device before a mounted filesystem can write what it holds back.
            sync_filesystems(&block_device(self.number), SYNC_PATIENCE);
        }
        let (stopped, is_stopped) = channel::<()>();
        let queues = &self.queues;
        std::thread::scope(|scope| {
            let watch = Builder::new().name("ublk-stop".to_owned()).spawn_scoped(scope, move || {
                if is_stopped.recv_timeout(SPACE_PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    for queue in queues {
                        queue.told.to_hang_up.store(true, Ordering::SeqCst);
                        queue.waker.wake();
                    }
                }
            });
            if let Err(error) = watch {
                tracing::warn!("nobody ends what waits for space: starting a thread: {error}");
            }
            let outcome = self.control.stop(self.number, STOP_PATIENCE_MOST);
            drop(stopped);
            outcome
        })
    }

    /// Ends the queues, and leaves the device as it is.
    fn let_go(mut self) -> Result<()> {
        let device = block_device(self.number);
        for queue in &self.queues {
            queue.told.to_let_go.store(true, Ordering::SeqCst);
            queue.waker.wake();
        }
        // Not one after the other until the first that has failed: all are to be waited for.
        let ended_well = |queue: Queue| queue.thread.join().unwrap_or(false);
        let ended: Vec<bool> = std::mem::take(&mut self.queues).into_iter().map(ended_well).collect();
        if ended.contains(&false) {
            let what = format!("a queue of {} has failed: see above", device.display());
            return Err(Error::new(ErrorKind::Failed, what));
        }
        tracing::info!("{} waits for the next daemon", device.display());
        Ok(())
    }

    /// Stops and removes it, as far as it had come. `held` is the block device, if nobody else has it open.
    fn take_away(mut self, held: Option<File>) -> Result<()> {
        let device = block_device(self.number);
        let stopped = self.stop();
        if let Err(error) = &stopped {
            // Somebody else may have removed it. The queues end all the same, and then the driver gives it up.
            tracing::warn!("stopping {}: {error}", device.display());
            for queue in &self.queues {
                queue.told.to_end.store(true, Ordering::SeqCst);
                queue.waker.wake();
            }
        }
        for queue in std::mem::take(&mut self.queues) {
            // Its panics are caught and logged where they happen.
            let _ = queue.thread.join();
        }
        // DEL waits until nobody has a file of the device open. Who has the block device mounted may keep it for ever.
        self.file = None;
        let is_ours_alone = held.is_some();
        drop(held);
        match self.control.delete(self.number, is_ours_alone) {
            Ok(()) => {
                tracing::info!("{} is gone", device.display());
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(error) => {
                let error = failed(&format!("removing {}", device.display()), &error);
                tracing::error!("{error}");
                Err(error)
            }
        }
    }
}

/// Starts a queue's thread. It says on `ready` when its tags wait in the kernel, or why they cannot.
fn start_queue(
    device: u32,
    plan: Plan,
    ready: Sender<Result<()>>,
    orders: Sender<Order>,
) -> Result<JoinHandle<bool>> {
    let name = format!("ublk{device}-{}", plan.number);
    let number = plan.number;
    let work = move || {
        let announce = ready.clone();
        let served = catch_unwind(AssertUnwindSafe(|| {
            // If nobody listens any more, the device is being taken away.
            queue::run(plan, move || drop(announce.send(Ok(()))))
        }));
        let has_ended_well = matches!(served, Ok(Ok(())));
        match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!("queue {number} of {} ended: {error}", block_device(device).display());
                let _ = ready.send(Err(error));
            }
            Err(_) => tracing::error!(
                "queue {number} of {} ended in a panic; this is a bug",
                block_device(device).display()
            ),
        }
        // Not expected, unless the device's thread has stopped it: then it listens no more.
        let _ = orders.send(Order::QueueEnded);
        has_ended_well
    };
    Builder::new()
        .name(name)
        .spawn(work)
        .map_err(|error| Error::io("ublk: starting a queue's thread", &error))
}

/// Opens the character device, which udev may have to make or give to us first.
fn open_when_there(path: &str) -> Result<File> {
    let deadline = Instant::now() + FILE_PATIENCE;
    loop {
        match OpenOptions::new().read(true).write(true).open(Path::new(path)) {
            Ok(file) => return Ok(file),
            Err(error) if Instant::now() > deadline => {
                return Err(Error::io(format!("ublk: opening {path}"), &error).hint(
                    "an ordinary user needs the udev rules that come with uthin; `uthin doctor` says more",
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
