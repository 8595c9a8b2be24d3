//! `uthin serve`.

use super::options::OptionArgs;
use crate::control::daemon::{self, ServeOptions};
use crate::control::name::{PoolRef, VolumeName};
use crate::control::settle::SETTLE_SECONDS;
use crate::error::Result;
use crate::frontend::nbd::Address;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The pool
    #[arg(value_parser = PoolRef::parse)]
    pool: PoolRef,
    /// Where to serve NBD: unix:PATH or tcp:HOST:PORT; may be given several times [default: unix:POOL/nbd.sock]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    nbd: Vec<Address>,
    /// Encrypt with TLS: server-cert.pem and server-key.pem of this directory. TCP clients must use it, others may
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,
    /// Let only clients in that have a certificate of ca-cert.pem's authority (those at Unix sockets that use TLS included)
    #[arg(long, requires = "tls_certificates")]
    tls_verify_peer: bool,
    /// Without TLS, allow TCP addresses other than loopback ones: whoever connects there reads and writes every volume
    #[arg(long, conflicts_with = "tls_certificates")]
    insecure_tcp: bool,
    /// If another daemon serves the pool, take its place: it closes the pool, and its block devices go on with this one. NBD clients have to
    /// connect anew
    #[arg(long)]
    takeover: bool,
    /// Make this volume a block device from the beginning; may be given several times
    #[arg(long, value_name = "VOLUME", value_parser = VolumeName::parse)]
    ublk: Vec<VolumeName>,
    #[command(flatten)]
    options: OptionArgs,
    /// At the end, make whole blocks of partial ones for so many seconds at the most; what is left then is done the next time
    #[arg(long, value_name = "SECONDS", default_value_t = SETTLE_SECONDS)]
    settle_seconds: u64,
    /// Keep so much of the volumes' maps in memory: 8 bytes a block that is in use. What has not been used for longest goes
    /// first, and is read again when needed [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse)]
    map_memory: Option<u64>,
    /// Run this program for each event (see `uthin events`), without a shell or arguments. It finds UTHIN_EVENT, UTHIN_POOL and
    /// UTHIN_EVENT_JSON in its environment, may take 30 seconds, and holds up nothing
    #[arg(long, value_name = "PROGRAM")]
    hook: Option<PathBuf>,
}

fn parse_address(text: &str) -> Result<Address> {
    text.parse()
}

pub(super) fn run(args: Args) -> Result<()> {
    args.options.refuse_journal_device()?;
    let options = ServeOptions {
        listen: args.nbd,
        tls_certificates: args.tls_certificates,
        tls_verify_peer: args.tls_verify_peer,
        insecure_tcp: args.insecure_tcp,
        zero_new_blocks: args.options.zero_new_blocks(),
        small_writes: args.options.small_writes(),
        journal: args.options.journal(),
        settle_seconds: args.settle_seconds,
        discard: args.options.discard(),
        map_bytes: args.map_memory,
        hook: args.hook,
        block_devices: args.ublk,
        takeover: args.takeover,
    };
    daemon::serve(&args.pool, &options, || {
        // Who waits for it reads it; a closed stdout is no reason not to serve.
        let _ = super::print("ready\n");
    })
}
