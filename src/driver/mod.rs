//! Who moves bytes and owns threads.
//!
//! [`Pool`] runs the keeper on a thread of its own and hands out lanes; [`uring`] moves the bytes of a lane and of its
//! client's socket on an `io_uring`, any number of requests at a time; [`blocking`] runs keeper and lanes inline on any
//! disk, for tests and tools. Knows nothing of protocols.

pub mod blocking;
mod buffers;
mod hash;
mod inbox;
mod pool;
#[cfg(test)]
mod testing;
pub mod uring;

pub use buffers::BufferPool;
pub use pool::Pool;
