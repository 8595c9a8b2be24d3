//! Both space maps: their own blocks are read and counted, then every stored count is compared with the references found.

use super::counts::{Counts, PAGE_ENTRIES};
use super::report::{Severity, Space};
use super::walk::{Place, Walk};
use crate::checksum::BlockKind;
use crate::format::{Bitmap, IndexEntry, InlineCount, LargeCount, MetadataIndex, SpaceMapRoot};
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MapKind {
    Data,
    Metadata,
}

impl fmt::Display for MapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapKind::Data => "data",
            MapKind::Metadata => "metadata",
        })
    }
}

impl MapKind {
    fn index_place(self) -> Place {
        match self {
            MapKind::Data => Place::DataIndex,
            MapKind::Metadata => Place::MetadataIndex,
        }
    }

    fn large_counts_place(self) -> Place {
        match self {
            MapKind::Data => Place::DataLargeCounts,
            MapKind::Metadata => Place::MetadataLargeCounts,
        }
    }

    fn bitmap_place(self, index: u64) -> Place {
        match self {
            MapKind::Data => Place::DataBitmap(index),
            MapKind::Metadata => Place::MetadataBitmap(index),
        }
    }

    fn counts(self, walk: &Walk<'_>) -> u64_counts::Lookup<'_> {
        match self {
            MapKind::Data => &walk.data_counts,
            MapKind::Metadata => &walk.metadata_counts,
        }
    }
}
