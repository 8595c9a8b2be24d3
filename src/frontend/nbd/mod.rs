//! The NBD server: every volume of a pool is an export.
//!
//! Facts come from the protocol's own document (`doc/proto.md` of the NetworkBlockDevice project). A connection is a
//! thread: first the [`handshake`] over the blocking socket, then the [`connection`]'s loop on one `io_uring` for socket
//! and data. What must hold:
//!
//! - No byte that a client sends makes the server panic, and nothing one client does ends another's connection.
//! - A request is validated as a whole ([`validate`]) before any of it is done.
//! - A connection's memory is bounded ([`session`]): a client that does not read its replies stops being read from.
//! - A request that was begun is finished, whatever becomes of its connection.

mod address;
mod connection;
mod contexts;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handshake;
mod headers;
mod listen;
mod options;
mod protocol;
mod server;
mod session;
mod status;
mod tls;
mod validate;

pub use address::Address;
pub use handshake::Patience;
pub use server::{Limits, Server};
pub use tls::Tls;

use crate::engine::VolumeLease;
use crate::error::Result;
use crate::units::BlockSize;

/// The volumes that a server offers, by name. Called on connections' threads; may block.
pub trait Exports: Send + Sync + 'static {
    /// The names of all exports, in the order in which clients are to see them.
    fn list(&self) -> Vec<String>;

    /// Opens the export of that name (never the empty one; see below). `NotFound` is told to the client as "no such
    /// export", `WrongState` and `Failed` as "shutting down", every other kind as "refused"; the message goes along.
    ///
    /// A client that names no export gets the only one there is; if there are none or several, an error that names them.
    fn open(&self, name: &str) -> Result<Export>;
}

/// An open export.
pub struct Export {
    /// The hold on its volume.
    pub lease: VolumeLease,
    /// Refuse everything that changes it.
    pub read_only: bool,
    /// For people: what it is.
    pub description: String,
    /// The pool's data block size, from which clients are told the preferred size of requests.
    pub block_size: BlockSize,
}
