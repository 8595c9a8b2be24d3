//! The command line: noun, then verb. Command files parse, call the control plane, and print; nothing else.
//!
//! What scripts rely on: the exit code ([`exit_code`]), `--json` with `"schema": "uthin/v1"`, `-H` with tabs, errors on
//! stderr (with `--json` as `{"error":{"code","message","hint"}}`). Nothing but the answer goes to stdout.

mod adopt;
mod check;
mod dm;
mod docker;
mod doctor;
mod events;
mod export;
mod machine;
mod options;
mod pool;
mod serve;
mod size;
mod table;
mod volume;

use crate::control::api::{Failure, PoolApi};
use crate::control::client::Client;
use crate::control::direct;
use crate::control::name::PoolRef;
use crate::control::pool_dir::PoolDir;
use crate::control::service::Service;
use crate::error::{Error, ErrorKind, Result};
use crate::manual;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Thin pools in the kernel's on-disk format, in userspace.
///
/// POOL is a name (a directory under /var/lib/uthin, or $UTHIN_DIR) or a path with a slash in it; POOL/VOLUME ends in the
/// volume's name. Sizes: 20G is 20 GiB; K, M, G, T and P are powers of 1024. With a daemon serving the pool a command goes
/// through its control socket, else it opens the pool itself.
#[derive(Parser, Debug)]
#[command(name = "uthin", version, max_term_width = 110)]
struct Cli {
    /// Print JSON, also for errors
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand, Debug)]
enum Noun {
    /// Make pools and look after them
    #[command(subcommand)]
    Pool(pool::Verb),
    /// Make volumes and snapshots, list and delete them
    #[command(subcommand, visible_alias = "vol")]
    Volume(volume::Verb),
    /// Serve a pool's volumes over NBD, in the foreground, until SIGTERM or `uthin pool close`
    Serve(serve::Args),
    /// Print what happens to a pool that is being served, a line for each event, until the daemon ends
    ///
    /// Space that runs low or out or is there again, changes of mode, volumes made and deleted.
    Events(events::Args),
    /// Make a volume a block device of this machine, or list those that are
    Export(export::ExportArgs),
    /// Take a volume's block device away
    Unexport(export::UnexportArgs),
    /// Say what this machine lacks for block devices, and how to get it
    ///
    /// The exit code is 0 if nothing is missing, and 1 otherwise; warnings do not count.
    Doctor(machine::Args),
    /// Print user and group of whoever made a ublk device, if that is an ordinary user: for udev's rules
    #[command(hide = true)]
    UblkOwner {
        /// The device's name: ublkc0, ublkb0
        name: String,
    },
    /// Print a script that completes commands and options in a shell
    ///
    /// For example: `uthin completion bash > /etc/bash_completion.d/uthin`, or `source <(uthin completion bash)`.
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write man pages, one for each command, into a directory
    Man {
        /// The directory, for example /usr/local/share/man/man1
        directory: PathBuf,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(problem) => return usage(&problem, wants_json),
    };
    start_log(matches!(cli.noun, Noun::Serve(_)));
    let json = cli.json;
    let done = match cli.noun {
        Noun::Pool(verb) => pool::run(verb, json),
        Noun::Volume(verb) => volume::run(verb, json).map(|()| ExitCode::SUCCESS),
        Noun::Serve(args) => serve::run(args).map(|()| ExitCode::SUCCESS),
        Noun::Events(args) => events::run(&args, json).map(|()| ExitCode::SUCCESS),
        Noun::Export(args) => export::export(args, json).map(|()| ExitCode::SUCCESS),
        Noun::Unexport(args) => export::unexport(&args, json).map(|()| ExitCode::SUCCESS),
        Noun::Doctor(args) => machine::run(&args, json),
        Noun::UblkOwner { name } => export::owner(&name).map(|()| ExitCode::SUCCESS),
        Noun::Completion { shell } => completion(shell, json).map(|()| ExitCode::SUCCESS),
        Noun::Man { directory } => {
            manual::write_man_pages(Cli::command(), &directory).map(|()| ExitCode::SUCCESS)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            tell(&error, json);
            exit_code(error.kind())
        }
    }
}

fn completion(shell: clap_complete::Shell, json: bool) -> Result<()> {
    if json {
        return Err(
            Error::new(ErrorKind::Invalid, "a completion script is no JSON").hint("leave --json away")
        );
    }
    print(&manual::completion(Cli::command(), shell))
}

/// The exit codes that scripts rely on: 1 failed, 2 usage, 5 not found or in the wrong state, 6 in use, 7 no space.
/// (3 and 4 belong to `check` and to `doctor`.)
fn exit_code(kind: ErrorKind) -> ExitCode {
    ExitCode::from(match kind {
        ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Io | ErrorKind::Failed => 1,
        ErrorKind::Invalid => 2,
        ErrorKind::NotFound | ErrorKind::Exists | ErrorKind::WrongState | ErrorKind::NeedsCheck => 5,
        ErrorKind::Busy => 6,
        ErrorKind::NoDataSpace | ErrorKind::NoMetadataSpace => 7,
    })
}

/// Help and version go to stdout and are a success; the rest is a mistake in the command.
fn usage(problem: &clap::Error, wants_json: bool) -> ExitCode {
    if !problem.use_stderr() {
        let _ = problem.print();
        return ExitCode::SUCCESS;
    }
    if wants_json {
        tell(&usage_error(&problem.render().to_string()), true);
    } else {
        let _ = problem.print();
    }
    ExitCode::from(2)
}

/// The first paragraph of what clap prints, in which our own errors have a line with their hint.
fn usage_error(text: &str) -> Error {
    let lines = || text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let hint = lines().find_map(|line| line.strip_prefix("hint: "));
    let message: Vec<&str> = lines().filter(|line| !line.starts_with("hint: ")).collect();
    Error::new(ErrorKind::Invalid, message.join(" ").trim_start_matches("error: "))
        .hint(hint.unwrap_or("`uthin --help` and `uthin COMMAND --help` show the usage"))
}

fn tell(error: &Error, json: bool) {
    let text = if json {
        let failure = Failure { error: error.clone() };
        serde_json::to_string(&failure).expect("errors have nothing that JSON cannot hold")
    } else {
        format!("uthin: {error}")
    };
    // Nobody is left to be told if this fails.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The log goes to stderr: warnings, and for a daemon what it does; `$UTHIN_LOG` says otherwise (`debug`, `uthin=trace`).
fn start_log(is_daemon: bool) {
    let default = if is_daemon { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("UTHIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would report a log that cannot be written (a full filesystem) to stderr, which is the log, and panic.
        .log_internal_errors(false);
    if is_daemon { log.init() } else { log.without_time().init() }
}

/// Writes the answer. Nobody reading it any more (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("writing to stdout", &source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("our answers have nothing that JSON cannot hold");
    print(&(text + "\n"))
}

/// `--json` shows everything, exactly.
fn refuse_table_options(json: bool, args: &table::TableArgs) -> Result<()> {
    if json && args.is_used() {
        return Err(Error::new(ErrorKind::Invalid, "-o, -H and -p are for tables, not for JSON")
            .hint("JSON has all fields and exact numbers; pick with `jq`"));
    }
    Ok(())
}

/// A pool to work with, behind its daemon or opened here.
enum Handle {
    Daemon(Client),
    Own(Box<Service>),
}

impl Handle {
    fn get(pool: &PoolRef, open: impl Fn(&PoolRef) -> Result<Service>) -> Result<Self> {
        let dir = PoolDir::of(pool);
        if let Some(client) = Client::find(&dir)? {
            return Ok(Handle::Daemon(client));
        }
        match open(pool) {
            Ok(service) => Ok(Handle::Own(Box::new(service))),
            // Who has it may be a daemon that was just starting.
            Err(error) if error.kind() == ErrorKind::Busy => {
                Client::find(&dir)?.map(Handle::Daemon).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    fn api(&self) -> &dyn PoolApi {
        match self {
            Handle::Daemon(client) => client,
            Handle::Own(service) => &**service,
        }
    }
}

/// Looks at a pool.
fn look<T>(pool: &PoolRef, work: impl FnOnce(&dyn PoolApi) -> Result<T>) -> Result<T> {
    work(Handle::get(pool, direct::open_to_look)?.api())
}

/// Changes a pool. When it was opened here, it is closed again whatever happens; the first error is the one to tell.
fn change<T>(pool: &PoolRef, work: impl FnOnce(&dyn PoolApi) -> Result<T>) -> Result<T> {
    let handle = Handle::get(pool, direct::open_to_change)?;
    let done = work(handle.api());
    match handle {
        Handle::Daemon(_) => done,
        Handle::Own(service) => {
            let closed = service.close();
            done.and_then(|value| closed.map(|()| value))
        }
    }
}
