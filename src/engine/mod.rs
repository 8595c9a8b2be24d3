//! The live pool: map tables, epochs, lanes and the keeper. No threads, no clocks, no data I/O.

mod request;
mod volume;

pub use request::*;
pub use volume::Volume;
