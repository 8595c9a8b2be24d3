//! `uthin serve`.

use super::pool::DiscardArg;
use crate::control::daemon::{self, ServeOptions};
use crate::control::name::PoolRef;
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
    /// Leave the unwritten rest of a fresh block as it was on the data device, instead of zeroing it. Old data shows
    #[arg(long)]
    no_zero: bool,
    /// Whether the space of freed blocks goes back to the filesystem or device that holds the data
    #[arg(long, value_enum, default_value_t = DiscardArg::Passdown)]
    discard: DiscardArg,
}

fn parse_address(text: &str) -> Result<Address> {
    text.parse()
}

pub(super) fn run(args: Args) -> Result<()> {
    let options = ServeOptions {
        listen: args.nbd,
        allow_remote: args.allow_remote,
        zero_new_blocks: !args.no_zero,
        discard_passdown: match args.discard {
            DiscardArg::Passdown => true,
            DiscardArg::Nopassdown => false,
        },
    };
    daemon::serve(&args.pool, &options, || {
        // Who waits for it reads it; a closed stdout is no reason not to serve.
        let _ = super::print("ready\n");
    })
}
