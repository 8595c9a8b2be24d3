//! Events of a pool that is served: what a monitor must not have to poll for.
//!
//! They are numbered from 1 on, in the daemon's life, and the last [`KEPT`] are kept for who asks later; nobody who listens can hold
//! up who has something to say. Levels are told once for each crossing: `ok` again only when there is a sixteenth more than
//! the mark, so that a pool at its mark does not chatter.

use super::api::{Mode, PoolInfo, SCHEMA};
use super::catalog::Operation;
use super::name::VolumeName;
use super::time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How many events are kept.
pub const KEPT: usize = 1024;

/// What has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Free space for data has fallen below the low water mark.
    DataLow,
    /// No data block is free.
    DataFull,
    /// There is enough again.
    DataOk,
    /// Free space for metadata has fallen below the kernel's mark: a quarter, 4 MiB at the most.
    MetadataLow,
    /// No metadata block is free but for the reserve.
    MetadataFull,
    /// There is enough again.
    MetadataOk,
    /// The pool is in another mode.
    Mode,
    /// Somebody has removed the metadata's or the data's file: it is there only until the daemon ends.
    Removed,
    /// A volume or snapshot was made.
    VolumeCreated,
    /// A volume was deleted.
    VolumeDeleted,
    /// The daemon ends: the last event.
    Closing,
}

impl Kind {
    /// The word that JSON uses.
    pub fn word(self) -> &'static str {
        match self {
            Kind::DataLow => "data-low",
            Kind::DataFull => "data-full",
            Kind::DataOk => "data-ok",
            Kind::MetadataLow => "metadata-low",
            Kind::MetadataFull => "metadata-full",
            Kind::MetadataOk => "metadata-ok",
            Kind::Mode => "mode",
            Kind::Removed => "removed",
            Kind::VolumeCreated => "volume-created",
            Kind::VolumeDeleted => "volume-deleted",
            Kind::Closing => "closing",
        }
    }
}

/// An event: one line of JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// [`SCHEMA`].
    pub schema: String,
    /// From 1 on, in the daemon's life.
    pub number: u64,
    /// When, RFC 3339.
    pub time: String,
    /// What.
    pub event: Kind,
    /// Of space: what is free now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Of space: all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Of a mode: the one that the pool is in now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Of a volume: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeName>,
    /// Of a volume: its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
}

impl Event {
    fn new(event: Kind) -> Self {
        Event {
            schema: SCHEMA.to_owned(),
            number: 0,
            time: time::rfc3339(time::now_unix_seconds()),
            event,
            free_bytes: None,
            total_bytes: None,
            mode: None,
            volume: None,
            id: None,
        }
    }
}

/// Events after a certain one: `GET /v1/events`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventList {
    /// [`SCHEMA`].
    pub schema: String,
    /// In order.
    pub events: Vec<Event>,
    /// The number of the last event that there was: what to ask for next is what comes after it.
    pub last: u64,
    /// Events that were asked for and are not kept any more.
    pub missed: u64,
}

/// How full a space is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Level {
    #[default]
    Ok,
    Low,
    Full,
}

impl Level {
    fn of(self, free_bytes: u64, has_none: bool, mark_bytes: u64) -> Level {
        let enough_bytes = match self {
            Level::Ok => mark_bytes,
            Level::Low | Level::Full => mark_bytes.saturating_add(mark_bytes / 16),
        };
        if has_none {
            Level::Full
        } else if free_bytes < enough_bytes {
            Level::Low
        } else {
            Level::Ok
        }
    }
}

/// What the last look at a space has shown.
#[derive(Default)]
struct SeenSpace {
    level: Level,
    times_full: u64,
    /// Nothing is free, and nobody has been refused yet: who is next will be, and that is told already.
    is_full_unasked: bool,
}

impl SeenSpace {
    /// What there is to tell now. What came and went between two looks is told as well: who got full at once has been low, and who
    /// got space and is full again has to be helped again.
    fn look(&mut self, free_bytes: u64, has_none: bool, mark_bytes: u64, times_full: u64) -> Vec<Level> {
        let before = self.level;
        self.level = before.of(free_bytes, has_none, mark_bytes);
        let was_full = times_full != std::mem::replace(&mut self.times_full, times_full);
        let is_told = was_full && std::mem::take(&mut self.is_full_unasked);
        let has_been_full = was_full && !is_told && before != Level::Full;
        let mut told = Vec::new();
        if before == Level::Ok && (has_been_full || self.level == Level::Full) {
            told.push(Level::Low);
        }
        if has_been_full || (self.level == Level::Full && (before != Level::Full || (was_full && !is_told))) {
            told.push(Level::Full);
        }
        if self.level != Level::Full && *told.last().unwrap_or(&before) != self.level {
            told.push(self.level);
        }
        if self.level == Level::Full && before != Level::Full {
            self.is_full_unasked = !was_full;
        }
        told
    }
}

/// What the last look at the pool has shown.
struct Seen {
    data: SeenSpace,
    metadata: SeenSpace,
    mode: Mode,
    removed: usize,
}

struct Ring {
    kept: VecDeque<Event>,
    last: u64,
    seen: Seen,
}

/// The events of one pool.
pub struct Events {
    ring: Mutex<Ring>,
    more: Condvar,
    last: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        let seen =
            Seen { data: SeenSpace::default(), metadata: SeenSpace::default(), mode: Mode::Rw, removed: 0 };
        let ring = Ring { kept: VecDeque::new(), last: 0, seen };
        Events { ring: Mutex::new(ring), more: Condvar::new(), last: watch::Sender::new(0) }
    }
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("nobody panics while holding the events")
    }

    fn emit(&self, ring: &mut Ring, event: Event) {
        ring.last += 1;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        tracing::info!("event {}: {}", ring.last, event.event.word());
        ring.kept.push_back(Event { number: ring.last, ..event });
        self.last.send_replace(ring.last);
        self.more.notify_all();
    }

    /// What an operation has done that is through.
    pub(super) fn done(&self, operation: &Operation, deleted: Option<u64>) {
        let mut ring = self.ring();
        for entry in operation.new_volumes() {
            let (volume, id) = (Some(entry.name.clone()), Some(entry.id.get()));
            self.emit(&mut ring, Event { volume, id, ..Event::new(Kind::VolumeCreated) });
        }
        match operation {
            Operation::Delete(name) => {
                let volume = Some(name.clone());
                self.emit(&mut ring, Event { volume, id: deleted, ..Event::new(Kind::VolumeDeleted) });
            }
            Operation::Create(_) | Operation::Snapshot(_) | Operation::SetTransactionId => {}
        }
    }

    /// A look at the pool: tells what has changed since the one before.
    pub fn observe(&self, info: &PoolInfo) {
        let mut ring = self.ring();
        let mode = info.mode;
        if mode != ring.seen.mode {
            ring.seen.mode = mode;
            self.emit(&mut ring, Event { mode: Some(mode), ..Event::new(Kind::Mode) });
        }
        if info.removed.len() > ring.seen.removed {
            ring.seen.removed = info.removed.len();
            info.removed_words().for_each(|words| tracing::error!("{words}"));
            self.emit(&mut ring, Event::new(Kind::Removed));
        }
        if mode == Mode::Fail {
            return; // its figures are those of an earlier moment
        }
        let space = |kind, free_bytes, total_bytes| Event {
            free_bytes: Some(free_bytes),
            total_bytes: Some(total_bytes),
            ..Event::new(kind)
        };
        let (free, total) = (info.data.free_bytes, info.data.total_bytes);
        let (mark, times) = (info.options.low_water.bytes_of(total), info.data.times_full);
        for level in ring.seen.data.look(free, free == 0, mark, times) {
            let kind = match level {
                Level::Ok => Kind::DataOk,
                Level::Low => Kind::DataLow,
                Level::Full => Kind::DataFull,
            };
            self.emit(&mut ring, space(kind, free, total));
        }
        let (free, total) = (info.metadata.free_bytes, info.metadata.total_bytes);
        let (mark, times) = (info.metadata_low_water_bytes(), info.metadata.times_full);
        for level in ring.seen.metadata.look(free, info.metadata.has_none(), mark, times) {
            let kind = match level {
                Level::Ok => Kind::MetadataOk,
                Level::Low => Kind::MetadataLow,
                Level::Full => Kind::MetadataFull,
            };
            self.emit(&mut ring, space(kind, free, total));
        }
    }

    /// The last event of all.
    pub fn close(&self) {
        self.emit(&mut self.ring(), Event::new(Kind::Closing));
    }

    /// What came after event `after`; a number that was never given (by a daemon before this one, perhaps) stands for 0.
    pub fn after(&self, after: u64) -> EventList {
        list(&self.ring(), after)
    }

    /// As [`Events::after`], waiting for something to come, but not for ever.
    pub fn wait_after(&self, after: u64, patience: Duration) -> EventList {
        let deadline = Instant::now() + patience;
        let mut ring = self.ring();
        loop {
            let found = list(&ring, after);
            let left = deadline.saturating_duration_since(Instant::now());
            if !found.events.is_empty() || left.is_zero() {
                return found;
            }
            let waited = self.more.wait_timeout(ring, left);
            ring = waited.expect("nobody panics while holding the events").0;
        }
    }

    /// The same without a thread that waits. Without a number it is events from now on that are waited for.
    pub async fn wait(&self, after: Option<u64>, patience: Duration) -> EventList {
        let mut last = self.last.subscribe();
        let after = after.unwrap_or_else(|| *last.borrow());
        let begun = self.after(after);
        if !begun.events.is_empty() || patience.is_zero() {
            return begun;
        }
        // Elapsed or not: what there is by then.
        let _ = tokio::time::timeout(patience, last.wait_for(|last| *last > after)).await;
        self.after(after)
    }
}

fn list(ring: &Ring, after: u64) -> EventList {
    let after = if after > ring.last { 0 } else { after };
    let events: Vec<_> = ring.kept.iter().filter(|event| event.number > after).cloned().collect();
    let missed = ring.last - after - events.len() as u64;
    EventList { schema: SCHEMA.to_owned(), events, last: ring.last, missed }
}

#[cfg(test)]
mod tests {
    use super::super::api::sample_pool;
    use super::*;

    fn words(events: &Events, after: u64) -> Vec<&'static str> {
        events.after(after).events.iter().map(|event| event.event.word()).collect()
    }

    #[test]
    fn a_crossing_is_told_once() {
        let events = Events::default();
        let mut info = sample_pool();
        let total = info.data.total_bytes;
        let mut look = |free_bytes: u64, expected: &[&str]| {
            let before = events.after(0).last;
            info.data.free_bytes = free_bytes;
            events.observe(&info);
            events.observe(&info);
            assert_eq!(words(&events, before), expected, "{free_bytes} free");
        };
        look(total, &[]);
        look(total / 10, &[]);
        look(total / 10 - 65_536, &["data-low"]);
        look(total / 20, &[]);
        look(total / 10, &[]);
        look(total / 10 - 65_536, &[]);
        look(total / 8, &["data-ok"]);
        look(0, &["data-low", "data-full"]);
        look(65_536, &["data-low"]);
        look(total, &["data-ok"]);
        let last = events.after(0).events.pop().expect("there were some");
        assert_eq!((last.free_bytes, last.total_bytes, last.number), (Some(total), Some(total), 6));
    }

    #[test]
    fn what_came_and_went_between_two_looks_is_told() {
        let events = Events::default();
        let mut info = sample_pool();
        let total = info.data.total_bytes;
        let mut look = |free_bytes: u64, times_full: u64, expected: &[&str]| {
            let before = events.after(0).last;
            (info.data.free_bytes, info.data.times_full) = (free_bytes, times_full);
            events.observe(&info);
            events.observe(&info);
            assert_eq!(words(&events, before), expected, "{free_bytes} free, full {times_full} times");
        };
        look(0, 1, &["data-low", "data-full"]);
        look(0, 2, &["data-full"]); // it got space, and that is gone
        look(total, 2, &["data-ok"]);
        look(total, 3, &["data-low", "data-full", "data-ok"]);
        look(total / 20, 3, &["data-low"]);
        look(total / 20, 4, &["data-full", "data-low"]);
        look(0, 4, &["data-full"]); // the last block was handed out
        look(0, 5, &[]); // and who came next was refused
        look(0, 6, &["data-full"]);
    }

    #[test]
    fn modes_and_metadata_are_told() {
        let events = Events::default();
        let mut info = sample_pool();
        info.mode = Mode::OutOfDataSpace;
        info.metadata.free_bytes = 4096;
        events.observe(&info);
        info.metadata.is_full = true;
        events.observe(&info);
        info.metadata.free_bytes = 0;
        events.observe(&info);
        info.mode = Mode::Fail;
        info.data.free_bytes = 0;
        events.observe(&info);
        events.close();
        assert_eq!(words(&events, 0), ["mode", "metadata-low", "metadata-full", "mode", "closing"]);
        assert_eq!(events.after(3).events[0].mode, Some(Mode::Fail));
    }

    #[test]
    fn the_last_events_are_kept_and_the_others_counted() {
        let events = Events::default();
        (0..KEPT + 10).for_each(|_| events.close());
        let all = events.after(0);
        assert_eq!((all.events.len(), all.missed, all.last), (KEPT, 10, KEPT as u64 + 10));
        assert_eq!(events.after(KEPT as u64 + 8).events.len(), 2);
        assert_eq!(events.after(KEPT as u64 + 11).missed, 10, "the number is another daemon's");
        let none = events.wait_after(all.last, Duration::from_millis(10));
        assert_eq!((none.events.len(), none.missed), (0, 0));
    }

    #[test]
    fn who_waits_is_told() {
        let events = Events::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| events.wait_after(0, Duration::from_secs(30)).events.len());
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().expect("started");
            let also = scope.spawn({
                let events = &events;
                move || runtime.block_on(events.wait(Some(0), Duration::from_secs(30))).events.len()
            });
            std::thread::sleep(Duration::from_millis(20));
            events.close();
            assert_eq!((waiting.join().expect("whole"), also.join().expect("whole")), (1, 1));
        });
    }
}
