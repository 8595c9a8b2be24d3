//! What cannot be in a pool kept out of it: mappings past the end of the data device are dropped, times after the pool's
//! own brought down to it.

use crate::check::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::error::Result;

/// Passes a stream on, made sane.
pub(in crate::check) struct SaneSink<'a> {
    sink: &'a mut dyn Sink,
    data_blocks: u64,
    time: u32,
}

impl<'a> SaneSink<'a> {
    pub(in crate::check) fn new(sink: &'a mut dyn Sink) -> Self {
        SaneSink { sink, data_blocks: 0, time: 0 }
    }
}

impl Sink for SaneSink<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        (self.data_blocks, self.time) = (pool.data_blocks, pool.time.0);
        self.sink.begin_pool(pool)
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let length = run.length.min(self.data_blocks.saturating_sub(run.data_begin));
        if length == 0 {
            return Ok(());
        }
        // A mapping is shared when it is older than its volume's last snapshot; no later time changes that.
        self.sink.run(&Run { length, time: run.time.min(self.time), ..*run })
    }

    fn begin_shared(&mut self, name: u64) -> Result<()> {
        self.sink.begin_shared(name)
    }
    fn end_shared(&mut self) -> Result<()> {
        self.sink.end_shared()
    }
    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()> {
        self.sink.begin_volume(volume)
    }
    fn end_volume(&mut self) -> Result<()> {
        self.sink.end_volume()
    }
    fn shared(&mut self, name: u64) -> Result<()> {
        self.sink.shared(name)
    }
    fn end_pool(&mut self) -> Result<()> {
        self.sink.end_pool()
    }
}
