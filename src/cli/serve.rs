//! `uthin serve`.

use super::pool::OptionArgs;
use crate::control::daemon::{self, ServeOptions};
use crate::control::name::{PoolRef, VolumeName};
use crate::error::Result;
use crate::frontend::nbd::Address;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The pool
    #[arg(value_parser = PoolRef::parse)]
    pool: PoolRef,
    /// Where to serve NBD: unix:PATH or tcp:HOST:PORT; may be given several times [default: unix:POOL/nbd.sock]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    nbd: Vec<Address>,
    /// Allow addresses other than loopback ones. NBD has no passwords: whoever connects reads and writes every volume
    #[arg(long)]
    allow_remote: bool,
    /// Make this volume a block device from the beginning; may be given several times
    #[arg(long, value_name = "VOLUME", value_parser = VolumeName::parse)]
    ublk: Vec<VolumeName>,
    #[command(flatten)]
    options: OptionArgs,
}

fn parse_address(text: &str) -> Result<Address> {
    text.parse()
}

pub(super) fn run(args: Args) -> Result<()> {
    let options = ServeOptions {
        listen: args.nbd,
        allow_remote: args.allow_remote,
        zero_new_blocks: args.options.zero_new_blocks(),
        discard: args.options.discard(),
        block_devices: args.ublk,
    };
    daemon::serve(&args.pool, &options, || {
        // Who waits for it reads it; a closed stdout is no reason not to serve.
        let _ = super::print("ready\n");
    })
}
