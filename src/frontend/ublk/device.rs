//! A block device: made, served, and taken away by a thread of its own.
//!
//! That thread is the only one that sends the device's control commands, so that whoever waits for one can give up waiting.
//! The order of making: lanes, `ADD`, the character device, `SET_PARAMS`, the queues' threads, and, when all tags of all
//! queues wait in the kernel, `START`. Of taking away: `STOP` (requests under way are answered, a mounted filesystem is
//! synced), the queues' threads end, the character device is closed, `DEL`. A start that fails takes away what there is.

use super::control::{Control, failed};
use super::openers::{PROBE_PATIENCE, claim};
use super::queue::{self, Plan, Told};
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long a device may take to come up. It reads the partition table meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long udev may take to make the character device ours.
const FILE_PATIENCE: Duration = Duration::from_secs(5);
/// How long whoever asks for the end of a device waits for it.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long requests of a device that goes away may wait for space in the pool; then they get errors.
const SPACE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the device's thread waits for requests under way.
const STOP_PATIENCE_MOST: Duration = Duration::from_secs(24 * 3600);

/// A block device on a volume. When it is dropped, the device is taken away, with or without somebody having it open.
pub struct Device {
    number: u32,
    orders: Sender<Order>,
    has_ended: Arc<AtomicBool>,
}

/// What a device's thread is told.
enum Order {
    Resize(u64, SyncSender<Result<()>>),
    Stop {
        force: bool,
        answer: SyncSender<Result<()>>,
    },
    /// A queue has ended, though nobody asked for it.
    QueueEnded,
}

impl Device {
    /// Makes the volume a block device, and returns when it can be opened. `Unsupported` with what is missing when this
    /// machine has no ublk (or not for us), `Busy` when the pool has no seats for the queues' lanes.
    pub fn start(pool: &Pool, lease: VolumeLease, block_size: BlockSize, options: Options) -> Result<Device> {
        params::check(&options, lease.volume().size_bytes())?;
        requirements::check(options.queues)?;
        let lanes = (0..options.queues).map(|_| pool.lane()).collect::<Result<Vec<_>>>()?;
        let (orders, inbox) = channel();
        let (ready, is_ready) = sync_channel(1);
        let has_ended = Arc::new(AtomicBool::new(false));
        let ending = Ending(has_ended.clone());
        let to_itself = orders.clone();
        let work = move || {
            let _ending = ending;
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                supervise(lease, lanes, block_size, options, to_itself, &inbox, &ready)
            }));
            if outcome.is_err() {
                tracing::error!("the thread of a block device has panicked; this is a bug");
            }
        };
        let thread = Builder::new().name("ublk-device".to_owned()).spawn(work);
        thread.map_err(|error| Error::io("starting a thread", &error))?;
        match is_ready.recv_timeout(START_PATIENCE + FILE_PATIENCE) {
            Ok(started) => started.map(|number| Device { number, orders, has_ended }),
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

    fn ask(&self, order: impl FnOnce(SyncSender<Result<()>>) -> Order) -> Result<()> {
        let gone = || Error::new(ErrorKind::NotFound, format!("{} is gone", self.path().display()));
        let (answer, answered) = sync_channel(1);
        self.orders.send(order(answer)).map_err(|_| gone())?;
        answered.recv_timeout(STOP_PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Disconnected => Err(gone()),
            RecvTimeoutError::Timeout => {
                let what = format!("{} has requests under way that do not end", self.path().display());
                Err(Error::new(ErrorKind::Busy, what)
                    .hint("the disks below may be slow, or hang; the device goes away when they have ended"))
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
    lanes: Vec<UringLane>,
    block_size: BlockSize,
    options: Options,
    orders: Sender<Order>,
    inbox: &Receiver<Order>,
    ready: &SyncSender<Result<u32>>,
) {
    let started = match Running::add(options, lease) {
        Ok(mut running) => match running.start(lanes, block_size, orders) {
            Ok(()) => Ok(running),
            Err(error) => {
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
            if ready.send(Ok(running.number)).is_ok() {
                running.obey(inbox);
            } else {
                let _ = running.take_away(None);
            }
        }
    }
}

/// A device that was added, and what belongs to it.
struct Running {
    number: u32,
    options: Options,
    control: Control,
    lease: VolumeLease,
    /// `/dev/ublkcN`: the driver lets only one process open it.
    file: Option<Arc<File>>,
    queues: Vec<Queue>,
}

struct Queue {
    thread: JoinHandle<()>,
    waker: Waker,
    told: Arc<Told>,
}

impl Running {
    fn add(options: Options, lease: VolumeLease) -> Result<Running> {
        let mut control = Control::open().map_err(|error| requirements::cannot_open(&error))?;
        let mut info = params::device_info(&options);
        control.add(&mut info).map_err(|error| requirements::cannot_add(&error))?;
        Ok(Running { number: info.dev_id, options, control, lease, file: None, queues: Vec::new() })
    }

    fn start(&mut self, lanes: Vec<UringLane>, block_size: BlockSize, orders: Sender<Order>) -> Result<()> {
        let file = Arc::new(open_when_there(&format!("{CHARACTER_DEVICE}{}", self.number))?);
        self.file = Some(file.clone());
        let size_bytes = self.lease.volume().size_bytes();
        let limits = params::of_volume(&self.options, size_bytes, block_size);
        self.control
            .set_params(self.number, &limits)
            .map_err(|error| failed("telling the driver about the volume", &error))?;
        let (ready, is_ready) = channel();
        for (number, lane) in lanes.into_iter().enumerate() {
            let (waker, told) = (lane.waker(), Arc::<Told>::default());
            let plan = Plan {
                number: number as u16,
                depth: self.options.depth,
                device: file.clone(),
                volume: self.lease.volume().clone(),
                lane,
                block_size,
                read_only: self.options.read_only,
                told: told.clone(),
            };
            let thread = start_queue(self.number, plan, ready.clone(), orders.clone())?;
            self.queues.push(Queue { thread, waker, told });
        }
        drop(ready);
        for _ in 0..self.queues.len() {
            let gone = || Error::new(ErrorKind::Failed, "ublk: a queue ended before it had begun");
            is_ready.recv_timeout(START_PATIENCE).unwrap_or_else(|_| Err(gone()))?;
        }
        self.control
            .start(self.number, START_PATIENCE)
            .map_err(|error| failed("starting the device", &error))?;
        tracing::info!(volume = %self.lease.volume().id(), "{} is there", block_device(self.number).display());
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
                Ok(Order::QueueEnded) => {
                    tracing::error!("{} is going away: see above", block_device(self.number).display());
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
) -> Result<JoinHandle<()>> {
    let name = format!("ublk{device}-{}", plan.number);
    let number = plan.number;
    let work = move || {
        let announce = ready.clone();
        let served = catch_unwind(AssertUnwindSafe(|| {
            // If nobody listens any more, the device is being taken away.
            queue::run(plan, move || drop(announce.send(Ok(()))))
        }));
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

/// Removes devices that a daemon of ours left behind when it was killed: the kernel has stopped them, and keeps their
/// numbers. What cannot be done is logged.
pub fn remove_left_overs() {
    let Ok(mut control) = Control::open() else { return };
    for number in requirements::devices() {
        let Ok(info) = control.info(number) else { continue };
        let is_dead = u32::from(info.state) == abi::UBLK_S_DEV_DEAD && info.ublksrv_flags == params::OURS;
        if !is_dead || is_alive(info.ublksrv_pid) {
            continue;
        }
        match control.delete(number, false) {
            Ok(()) => tracing::info!("removed {CHARACTER_DEVICE}{number}, left by a daemon that was killed"),
            Err(error) => tracing::warn!("removing {CHARACTER_DEVICE}{number}: {error}"),
        }
    }
}

/// User and group of whoever made a device, if that is an ordinary user: what udev's rules give the files of the device to.
/// `name` is that of either file, without the folder.
pub fn owner(name: &str) -> Result<Option<(u32, u32)>> {
    let number = name.strip_prefix("ublkc").or_else(|| name.strip_prefix("ublkb"));
    let number = number.and_then(|number| number.parse().ok()).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("`{name}` is no device of ublk"))
            .hint("they are called ublkc0 and ublkb0")
    })?;
    let mut control = Control::open().map_err(|error| requirements::cannot_open(&error))?;
    let info = control.info(number).map_err(|error| failed("asking for a device's owner", &error))?;
    let is_ordinary = info.flags & u64::from(abi::UBLK_F_UNPRIVILEGED_DEV) != 0;
    Ok(is_ordinary.then_some((info.owner_uid, info.owner_gid)))
}

/// Whether there is such a process; who cannot be told counts as alive. The driver notes -1 for one whose device it has
/// stopped, which to kill(2) would mean everybody.
fn is_alive(process: i32) -> bool {
    let process = Some(process).filter(|process| *process > 0).and_then(rustix::process::Pid::from_raw);
    process.is_some_and(|process| rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_stands_for_everybody() {
        assert!(is_alive(std::process::id() as i32));
        assert!(!is_alive(-1), "the driver has stopped its device");
        assert!(!is_alive(0));
        assert!(!is_alive(i32::MAX), "no system has so many");
    }

    #[test]
    fn owners_are_asked_for_by_the_names_of_files() {
        for name in ["ublk0", "ublkc", "ublkb-1", "sda", "ublkbx"] {
            assert_eq!(owner(name).expect_err("no device").kind(), ErrorKind::Invalid, "{name}");
        }
    }
}
