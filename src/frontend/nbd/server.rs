//! Listening sockets, the accept thread, and connections' threads.

use super::{Address, Exports};
use crate::driver::Pool;
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;

/// What a server puts up with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; the next one is closed at once. Each needs one of the pool's lanes.
    pub connections: usize,
    /// How long requests under way may take to finish, and their replies to be read, when the server stops.
    pub stop_grace: Duration,
    /// Listen on TCP addresses that are not loopback ones. NBD has no passwords: whoever connects can read and write.
    pub allow_remote: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 64, stop_grace: Duration::from_secs(5), allow_remote: false }
    }
}

/// A running server. Dropping it stops it.
pub struct Server {}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl Server {
    /// Listens on all of `addresses` and serves. `Busy` when somebody else listens there, `Invalid` for an address that is
    /// not allowed or cannot be.
    pub fn start(
        addresses: &[Address],
        pool: Pool,
        exports: Arc<dyn Exports>,
        limits: Limits,
    ) -> Result<Server> {
        todo!()
    }

    /// Where it listens; a TCP port given as 0 is the real one here.
    pub fn addresses(&self) -> &[Address] {
        todo!()
    }

    /// Number of connections at the moment.
    pub fn connections(&self) -> usize {
        todo!()
    }

    /// Stops accepting, lets requests under way finish, ends all connections and joins their threads. To be called
    /// before the pool is closed. Calling it again does nothing.
    pub fn stop(&mut self) {
        todo!()
    }
}
