//! thin_dump's human-readable form, to the byte.

use super::text::Text;
use crate::check::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::error::Result;
use std::io::Write;

/// Writes for people.
pub(in crate::check) struct HumanSink<'a> {
    text: Text<'a>,
}

impl<'a> HumanSink<'a> {
    pub(in crate::check) fn new(out: &'a mut dyn Write) -> Self {
        HumanSink { text: Text::new(out) }
    }
}

impl Sink for HumanSink<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        self.text.words(&format!(
            "begin superblock: \"{}\", {}, {}, {}, {}, {}, {}\n",
            pool.uuid,
            pool.time.0,
            pool.transaction_id,
            pool.flags,
            pool.version,
            pool.data_block_sectors,
            pool.data_blocks
        ))
    }

    fn begin_shared(&mut self, name: u64) -> Result<()> {
        self.text.line(&["def: ", "\n"], [name])
    }

    fn end_shared(&mut self) -> Result<()> {
        self.text.words("\n")
    }

    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()> {
        self.text.line(
            &["device: ", "\nmapped_blocks: ", "\ntransaction: ", "\ncreation time: ", "\nsnap time: ", "\n"],
            [
                volume.id.get(),
                volume.mapped_blocks,
                volume.transaction_id,
                u64::from(volume.creation_time),
                u64::from(volume.snapshotted_time),
            ],
        )
    }

    fn end_volume(&mut self) -> Result<()> {
        self.text.words("\n")
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        // A run is at least one block long.
        let (last, data_last) = (run.begin + (run.length - 1), run.data_begin + (run.length - 1));
        self.text.line(
            &["    (", "..", ") -> (", "..", "), ", "\n"],
            [run.begin, last, run.data_begin, data_last, u64::from(run.time)],
        )
    }

    fn shared(&mut self, name: u64) -> Result<()> {
        self.text.line(&["    ref: ", "\n"], [name])
    }

    fn end_pool(&mut self) -> Result<()> {
        self.text.words("end superblock\n")?;
        self.text.flush()
    }
}
