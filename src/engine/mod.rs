//! The live pool: map tables, epochs, lanes and the keeper. No threads, no clocks, no data I/O.
//!
//! A [`Lane`] decides what a request needs, the driver moves the bytes, the [`Keeper`] changes the map.

mod command;
mod epochs;
mod keeper;
mod lane;
mod map_table;
mod origin;
mod pages;
mod partials;
mod request;
mod sizes;
mod sync;
mod volume;

pub use crate::metadata::{Base, Partial};
pub use command::*;
pub use epochs::{Epoch, Epochs};
pub use keeper::{DEFAULT_MAP_BYTES, FlushDone, FlushJob, Keeper, KeeperOptions, Outbox, Pace, Settled};
pub use lane::Lane;
pub use map_table::{Lookup, MapTable};
pub use origin::{Behind, Origin};
pub use pages::{PAGE_BYTES, Pages};
pub use request::*;
pub use volume::{Volume, VolumeLease};
