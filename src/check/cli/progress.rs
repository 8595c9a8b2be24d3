//! How far long work has come, on a terminal; elsewhere nothing.

use crate::check::source::Source;
use crate::disk::Disk;
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Read};
use std::ops::Range;

/// A bar on standard error, which goes away when the work ends. It appears when the work takes long enough to wonder.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// For so many bytes of `doing`; an estimate will do.
    pub(super) fn new(doing: &'static str, total_bytes: u64, is_quiet: bool) -> Self {
        let is_shown = !is_quiet && io::stderr().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target).with_message(doing);
        let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a template of ours"));
        Progress { bar }
    }

    /// `input`, with what is read of it counted as done.
    pub(super) fn reading(&self, input: impl Read) -> impl Read {
        self.bar.wrap_read(input)
    }

    /// So many bytes more are done.
    pub(super) fn more(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Metadata with a bar for what is read of them: most commands read what is allocated, once.
pub(super) struct Watched {
    disk: Box<dyn Disk>,
    progress: Progress,
}

impl Watched {
    /// `doing` is what the bar says.
    pub(super) fn new(disk: Box<dyn Disk>, doing: &'static str, is_quiet: bool) -> Self {
        let superblock = Source::new(&*disk).superblock(MetaBlock::SUPERBLOCK).ok();
        let allocated = superblock.map(|found| found.metadata_space_map.allocated_blocks.get());
        let bytes = allocated.map(|blocks| blocks.saturating_mul(META_BLOCK_BYTES as u64));
        let size_bytes = disk.size_bytes();
        let total_bytes = bytes.unwrap_or(size_bytes).min(size_bytes);
        Watched { progress: Progress::new(doing, total_bytes, is_quiet), disk }
    }
}

impl Disk for Watched {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.progress.more(buffer.len() as u64);
        self.disk.read_at(offset_bytes, buffer)
    }
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.disk.grow(size_bytes)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        self.disk.discard(offset_bytes, length_bytes)
    }
    fn set_aside(&self, bytes: Range<u64>) -> io::Result<()> {
        self.disk.set_aside(bytes)
    }
    fn check_size(&self) -> io::Result<()> {
        self.disk.check_size()
    }
    fn name(&self) -> String {
        self.disk.name()
    }
}
