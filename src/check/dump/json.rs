//! One JSON object a line, for programs that would rather not read XML. Numbers of blocks, times and ids are integers.

use super::text::Text;
use crate::check::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::error::Result;
use serde_json::json;
use std::io::Write;

/// Writes JSON lines.
pub(in crate::check) struct JsonSink<'a> {
    text: Text<'a>,
}

impl<'a> JsonSink<'a> {
    pub(in crate::check) fn new(out: &'a mut dyn Write) -> Self {
        JsonSink { text: Text::new(out) }
    }
}

impl Sink for JsonSink<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        let line = json!({
            "schema": "uthin/v1", "type": "pool", "uuid": pool.uuid, "time": pool.time.0,
            "transaction_id": pool.transaction_id, "flags": pool.flags, "version": pool.version,
            "data_block_sectors": pool.data_block_sectors, "data_blocks": pool.data_blocks,
        });
        self.text.words(&format!("{line}\n"))
    }

    fn begin_shared(&mut self, name: u64) -> Result<()> {
        self.text.line(&["{\"type\":\"shared\",\"name\":", "}\n"], [name])
    }

    fn end_shared(&mut self) -> Result<()> {
        self.text.words("{\"type\":\"end-shared\"}\n")
    }

    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()> {
        self.text.line(
            &[
                "{\"type\":\"volume\",\"id\":",
                ",\"mapped_blocks\":",
                ",\"transaction_id\":",
                ",\"creation_time\":",
                ",\"snapshotted_time\":",
                "}\n",
            ],
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
        self.text.words("{\"type\":\"end-volume\"}\n")
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        self.text.line(
            &["{\"type\":\"run\",\"begin\":", ",\"data_begin\":", ",\"length\":", ",\"time\":", "}\n"],
            [run.begin, run.data_begin, run.length, u64::from(run.time)],
        )
    }

    fn shared(&mut self, name: u64) -> Result<()> {
        self.text.line(&["{\"type\":\"ref\",\"name\":", "}\n"], [name])
    }

    fn end_pool(&mut self) -> Result<()> {
        self.text.words("{\"type\":\"end\"}\n")?;
        self.text.flush()
    }
}
