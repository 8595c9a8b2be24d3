//! The ways in: a protocol's request becomes an engine's [`Request`](crate::engine::Request), and its end a reply.
//!
//! Frontends know volumes, lanes and sockets. They know neither the metadata nor its format.

pub mod nbd;
pub mod ublk;
