//! thin_dump's XML, to the byte.

use super::text::Text;
use crate::check::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::error::Result;
use crate::format::FLAG_NEEDS_CHECK;
use std::io::Write;

/// Writes XML.
pub(in crate::check) struct XmlSink<'a> {
    text: Text<'a>,
}

impl<'a> XmlSink<'a> {
    pub(in crate::check) fn new(out: &'a mut dyn Write) -> Self {
        XmlSink { text: Text::new(out) }
    }
}

impl Sink for XmlSink<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        let uuid = quick_xml::escape::escape(pool.uuid.as_str());
        // Others mean nothing, here and in thin_dump.
        let known = pool.flags & FLAG_NEEDS_CHECK;
        let flags = if known == 0 { String::new() } else { format!(" flags=\"{known}\"") };
        self.text.words(&format!(
            "<superblock uuid=\"{uuid}\" time=\"{}\" transaction=\"{}\"{flags} version=\"{}\" data_block_size=\"{}\" \
             nr_data_blocks=\"{}\">\n",
            pool.time.0, pool.transaction_id, pool.version, pool.data_block_sectors, pool.data_blocks
        ))
    }

    fn begin_shared(&mut self, name: u64) -> Result<()> {
        self.text.line(&["  <def name=\"", "\">\n"], [name])
    }

    fn end_shared(&mut self) -> Result<()> {
        self.text.words("  </def>\n")
    }

    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()> {
        self.text.line(
            &[
                "  <device dev_id=\"",
                "\" mapped_blocks=\"",
                "\" transaction=\"",
                "\" creation_time=\"",
                "\" snap_time=\"",
                "\">\n",
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
        self.text.words("  </device>\n")
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let time = u64::from(run.time);
        if run.length == 1 {
            self.text.line(
                &["    <single_mapping origin_block=\"", "\" data_block=\"", "\" time=\"", "\"/>\n"],
                [run.begin, run.data_begin, time],
            )
        } else {
            self.text.line(
                &[
                    "    <range_mapping origin_begin=\"",
                    "\" data_begin=\"",
                    "\" length=\"",
                    "\" time=\"",
                    "\"/>\n",
                ],
                [run.begin, run.data_begin, run.length, time],
            )
        }
    }

    fn shared(&mut self, name: u64) -> Result<()> {
        self.text.line(&["    <ref name=\"", "\"/>\n"], [name])
    }

    fn end_pool(&mut self) -> Result<()> {
        self.text.words("</superblock>")?;
        self.text.flush()
    }
}
