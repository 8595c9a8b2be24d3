//! The control plane: what a pool directory holds, names and sizes of volumes, the daemon and its control socket.
//!
//! dm-thin keeps neither names nor sizes. The [`catalog`] does, in step with the metadata's transaction id; [`reconcile`]
//! decides at every open which of the two is ahead. [`service`] is the one place where a volume is made, snapshotted or
//! deleted, whether a daemon runs (then requests come over [`http`]) or a command opened the pool for itself.

pub mod adopt;
pub mod api;
pub mod block_devices;
pub mod catalog;
pub mod catalog_file;
pub mod catalog_log;
pub mod change;
pub mod client;
pub mod create;
pub mod daemon;
pub mod direct;
pub mod doctor;
pub mod events;
mod export_volume;
pub mod hook;
pub mod http;
pub mod journal;
pub mod label;
pub mod lasting_devices;
pub(crate) mod listen;
mod message;
mod min_free;
pub mod name;
pub mod open;
pub mod options;
pub mod origin;
pub mod pool_dir;
pub mod reconcile;
mod replace;
mod reshape;
pub mod service;
pub mod settle;
mod signature;
mod space;
mod staging;
mod time;
pub mod volumes;
