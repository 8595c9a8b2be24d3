//! `uthin-fsck pack` and `unpack`, aliases `thin_metadata_pack` and `thin_metadata_unpack`.

use super::{CLEAN, Terminal, TextFile, open_metadata, require_different};
use crate::check::open::not_metadata;
use crate::check::pack::{Packed, has_any, pack};
use crate::check::source::Source;
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// What is read.
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// What is written. It must not exist yet.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite the output if it exists.
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run_pack(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    finish(pack_file(arguments), terminal)
}

pub(super) fn run_unpack(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    finish(unpack_file(arguments), terminal)
}

fn finish(outcome: Result<()>, terminal: &mut Terminal<'_>) -> u8 {
    match outcome {
        Ok(()) => CLEAN,
        Err(error) => terminal.failed(&error, false),
    }
}

fn pack_file(arguments: &Arguments) -> Result<()> {
    let disk = open_metadata(&arguments.input)?;
    let source = Source::new(&disk);
    if !has_any(source)? {
        return Err(not_metadata(&disk.name(), &*source.raw(MetaBlock::SUPERBLOCK)?));
    }
    let file = output_file(arguments)?;
    pack(source, &mut BufWriter::new(file.file)).map(drop)
}

fn unpack_file(arguments: &Arguments) -> Result<()> {
    let shown = arguments.input.display();
    let file =
        File::open(&arguments.input).map_err(|error| Error::io(format_args!("{shown}: opening"), &error))?;
    let mut input = BufReader::new(file);
    let packed = Packed::open(&mut input).map_err(|error| error.context(shown.to_string()))?;
    let size_bytes = packed.blocks * META_BLOCK_BYTES as u64;
    let disk = unpacked_disk(arguments, size_bytes)?;
    packed.unpack(&disk).map_err(|error| error.context(shown))?;
    disk.flush().map_err(|error| Error::io(format_args!("{}: flushing", disk.name()), &error))
}

/// A file of zeros, or a device that is made one.
fn unpacked_disk(arguments: &Arguments, size_bytes: u64) -> Result<FileDisk> {
    let path = &arguments.output;
    let is_file = !std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    if is_file {
        let resized = output_file(arguments)?.file.set_len(size_bytes);
        resized.map_err(|error| Error::io(format_args!("{}: setting its size", path.display()), &error))?;
    } else if !arguments.force {
        return Err(exists(path));
    }
    let disk = FileDisk::open(path, OpenMode::ReadWrite)?.through_page_cache()?;
    if disk.size_bytes() < size_bytes {
        let message = format!("{}: too small: {size_bytes} bytes are needed", path.display());
        return Err(Error::new(ErrorKind::NoMetadataSpace, message));
    }
    if !is_file {
        let zeros = vec![0; 1 << 20];
        for begin in (0..size_bytes).step_by(zeros.len()) {
            let length = (size_bytes - begin).min(zeros.len() as u64) as usize;
            let wiped = disk.write_at(begin, &zeros[..length]);
            wiped.map_err(|error| Error::io(format_args!("{}: writing zeros", path.display()), &error))?;
        }
    }
    Ok(disk)
}

/// An empty file for the output, which is never the input.
fn output_file(arguments: &Arguments) -> Result<TextFile> {
    let path = &arguments.output;
    require_different(&arguments.input, path)?;
    if arguments.force {
        return TextFile::create(path);
    }
    let opened = File::create_new(path).map(|file| TextFile { file, _locked: None });
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(path),
        _ => Error::io(format_args!("{}: creating", path.display()), &error),
    })
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Exists, format!("{} exists already", path.display())).hint("--force overwrites it")
}
