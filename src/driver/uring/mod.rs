//! Lanes and sockets on an `io_uring`, one ring per thread.
//!
//! # A thread's loop
//!
//! ```text
//! loop {
//!     while let Some(completion) = ring.next_completion() {
//!         if lane.owns(&completion)        { lane.complete(completion, &mut ring) }
//!         else if stream.owns(&completion) { stream.complete(completion, &mut ring) }
//!     }
//!     // Parse stream.received(), stream.consume(n), lane.begin(request, buffer, &mut ring) ...
//!     lane.before_wait(&mut ring);             // questions go to the keeper, its answers are taken in
//!     while let Some(finished) = lane.next_finished() { /* stream.send_bytes, stream.send_buffer */ }
//!     while let Some(buffer) = stream.take_sent() { lane.buffers().give(buffer) }
//!     stream.before_wait(&mut ring);           // starts the next receive and the next send
//!     ring.submit_and_wait(1)?;                // the one system call
//! }
//! ```
//!
//! `user_data`: bit 63 marks a lane's operations, bit 62 a stream's; all others are free for frontends.
//!
//! # Safety of memory
//!
//! The kernel reads and writes buffers while an operation is in flight. So lanes and streams own every buffer from the
//! push of the entry to its completion, take completions by value (each exists once), and leak the buffers if they are
//! dropped too early, which is a bug and panics.

mod bursts;
mod lane;
mod lent;
mod outgoing;
mod poll;
mod registered;
mod ring;
mod socket;
mod transfer;

pub use lane::{Finished, UringLane, Waker};
pub use lent::{Lent, LentMoved};
pub use registered::Registered;
pub use ring::{Completion, DataFile, Ring, Submit};
pub use socket::{SocketStream, StreamState};
