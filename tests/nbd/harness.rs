//! A served pool in a temporary directory, and a client that sends whatever bytes a test wants.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use uthin::disk::{FileDisk, MemoryDisk};
use uthin::driver::Pool;
use uthin::engine::{Command, IdStep, Keeper, KeeperOptions};
use uthin::error::{Error, ErrorKind, Result};
use uthin::frontend::nbd::{Address, Export, Exports, Limits, Server};
use uthin::metadata::{Geometry, Metadata};
use uthin::units::{BlockSize, TransactionId, VolumeId};

pub const MIB: u64 = 1 << 20;
/// Opening an export of this name panics.
pub const PANICS: &str = "panics";
/// Seats for lanes.
pub const LANES: usize = 64;

/// The exports of a test's pool: names, and whether they are read-only.
struct Volumes {
    pool: Pool,
    block_size: BlockSize,
    names: Mutex<Vec<(String, VolumeId, bool)>>,
}

impl Exports for Volumes {
    fn list(&self) -> Vec<String> {
        self.names.lock().expect("no panic").iter().map(|volume| volume.0.clone()).collect()
    }

    fn open(&self, name: &str) -> Result<Export> {
        assert!(name != PANICS, "as a test wants it");
        let names = self.names.lock().expect("no panic").clone();
        let (_, id, read_only) = names
            .into_iter()
            .find(|volume| volume.0 == name)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no volume `{name}`")))?;
        Ok(Export {
            lease: self.pool.open_volume(id)?,
            read_only,
            description: format!("thin volume {name}"),
            block_size: self.block_size,
        })
    }
}

/// A pool that is served.
pub struct Served {
    pub directory: TempDir,
    pub pool: Pool,
    pub server: Server,
    volumes: Arc<Volumes>,
    transactions: u64,
}

impl Served {
    /// A pool of `data_bytes` with 64 KiB blocks, served at a Unix socket.
    pub fn new(data_bytes: u64) -> Served {
        Served::with(data_bytes, BlockSize::MIN, &[], Limits::default())
    }

    /// Also at further addresses, with other limits.
    pub fn with(data_bytes: u64, block_size: BlockSize, more: &[Address], limits: Limits) -> Served {
        let directory = tempfile::tempdir().expect("a directory");
        let data = FileDisk::create(&directory.path().join("data"), data_bytes).expect("a data file");
        let data = Arc::new(data);
        let geometry = Geometry { block_size, data_blocks: block_size.whole_blocks_in(data_bytes) };
        let metadata = Metadata::format(MemoryDisk::zeroed(16 * MIB), geometry).expect("it is large enough");
        let options = KeeperOptions { lanes: LANES, ..KeeperOptions::default() };
        let keeper = Keeper::new(metadata, data.clone(), options).expect("a new pool");
        let pool = Pool::start(keeper, data).expect("a thread");
        let volumes = Arc::new(Volumes { pool: pool.clone(), block_size, names: Mutex::default() });
        let mut addresses = vec![Address::unix(directory.path().join("nbd.sock")).expect("a short path")];
        addresses.extend_from_slice(more);
        let server =
            Server::start(&addresses, pool.clone(), volumes.clone(), limits).expect("the sockets are free");
        Served { directory, pool, server, volumes, transactions: 0 }
    }

    fn step(&mut self) -> IdStep {
        self.transactions += 1;
        IdStep { from: TransactionId(self.transactions - 1), to: TransactionId(self.transactions) }
    }

    fn id(&self, name: &str) -> VolumeId {
        let names = self.volumes.names.lock().expect("no panic");
        names.iter().find(|volume| volume.0 == name).expect("it was made").1
    }

    fn add(&mut self, name: &str, read_only: bool) -> VolumeId {
        let mut names = self.volumes.names.lock().expect("no panic");
        let id = VolumeId::new(names.len() as u64 + 1).expect("a small number");
        names.push((name.to_owned(), id, read_only));
        id
    }

    /// Adds a volume.
    pub fn volume(&mut self, name: &str, size_bytes: u64) {
        let (volume, step) = (self.add(name, false), self.step());
        self.pool
            .command(Command::CreateVolume { volume, size_bytes, origin: None, step })
            .expect("a new volume");
    }

    /// Snapshots a volume; the snapshot is read-only.
    pub fn snapshot(&mut self, origin: &str, name: &str) {
        let (from, step) = (self.id(origin), self.step());
        let to = self.add(name, true);
        self.pool.command(Command::Snapshot { pairs: vec![(from, to)], step }).expect("a new snapshot");
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    /// The URI of an export at the Unix socket.
    pub fn uri(&self, export: &str) -> String {
        self.server.addresses()[0].uri(export)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A raw client in transmission.
    pub fn connect(&self, export: &str, structured: bool) -> Client {
        Client::connect(&self.socket(), export, structured)
    }

    /// Stops the server and closes the pool: what tests end with, so that everything has ended.
    pub fn close(mut self) {
        self.server.stop();
        self.pool.close().expect("nobody uses it");
    }
}

/// A client that speaks in bytes.
pub struct Client {
    pub stream: UnixStream,
    pub size_bytes: u64,
    pub flags: u16,
    pub structured: bool,
}

/// A reply: cookie, error, and data (of a structured one: the chunk's payload).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

pub fn take<const N: usize>(stream: &mut impl Read) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("the server goes on talking");
    bytes
}

pub fn take_u32(stream: &mut impl Read) -> u32 {
    u32::from_be_bytes(take(stream))
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), rest].concat()
}

/// Connects and says hello.
pub fn greet(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    assert_eq!(&take::<16>(&mut stream), b"NBDMAGICIHAVEOPT");
    assert_eq!(take::<2>(&mut stream), [0, 3]);
    stream.write_all(&3_u32.to_be_bytes()).expect("the server listens");
    stream
}

/// The replies to an option, up to the last: kinds and data.
pub fn replies(stream: &mut UnixStream) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    loop {
        let _magic_and_option: [u8; 12] = take(stream);
        let kind = take_u32(stream);
        let mut data = vec![0; take_u32(stream) as usize];
        stream.read_exact(&mut data).expect("the server goes on talking");
        found.push((kind, data));
        if kind == 1 || kind >= 1 << 31 {
            return found;
        }
    }
}

impl Client {
    pub fn connect(socket: &Path, export: &str, structured: bool) -> Client {
        let mut stream = greet(socket);
        if structured {
            stream.write_all(&option(8, &[])).expect("the server listens");
            assert_eq!(replies(&mut stream).pop(), Some((1, Vec::new())));
            let query = named(export, &[&[0, 0, 0, 1], &named("base:allocation", &[])[..]].concat());
            stream.write_all(&option(10, &query)).expect("the server listens");
            assert_eq!(replies(&mut stream).len(), 2);
        }
        stream.write_all(&option(7, &named(export, &[0, 0]))).expect("the server listens");
        let replies = replies(&mut stream);
        let info = &replies[0].1;
        assert_eq!(replies.last(), Some(&(1, Vec::new())), "{replies:?}");
        let size_bytes = u64::from_be_bytes(info[2..10].try_into().expect("8 bytes"));
        let flags = u16::from_be_bytes(info[10..12].try_into().expect("2 bytes"));
        Client { stream, size_bytes, flags, structured }
    }

    pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    pub fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        let bytes = Client::request_bytes(command, flags, cookie, offset, length);
        self.stream.write_all(&bytes).expect("the server listens");
    }

    pub fn send_write(&mut self, flags: u16, cookie: u64, offset: u64, payload: &[u8]) {
        self.send(1, flags, cookie, offset, payload.len() as u32);
        self.stream.write_all(payload).expect("the server listens");
    }

    /// The next reply; `data_bytes` is what a simple one without an error brings.
    pub fn reply(&mut self, data_bytes: usize) -> Reply {
        let stream = &mut self.stream;
        if take_u32(stream) == 0x6744_6698 {
            let error = take_u32(stream);
            let cookie = u64::from_be_bytes(take(stream));
            let mut data = vec![0; if error == 0 { data_bytes } else { 0 }];
            stream.read_exact(&mut data).expect("the server goes on talking");
            return Reply { cookie, error, data };
        }
        assert!(self.structured);
        let kind: [u8; 4] = take(stream);
        let cookie = u64::from_be_bytes(take(stream));
        let mut data = vec![0; take_u32(stream) as usize];
        stream.read_exact(&mut data).expect("the server goes on talking");
        let error = match kind {
            [0, 1, 0x80, 1] => u32::from_be_bytes(data[..4].try_into().expect("4 bytes")),
            _ => 0,
        };
        Reply { cookie, error, data }
    }

    pub fn write(&mut self, offset: u64, payload: &[u8]) -> u32 {
        self.send_write(0, 1, offset, payload);
        self.reply(0).error
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        self.send(0, 0, 2, offset, length);
        let Reply { error, mut data, .. } = self.reply(length as usize);
        if self.structured && error == 0 {
            data.drain(..8);
        }
        if error == 0 { Ok(data) } else { Err(error) }
    }

    /// Whether the server has hung up.
    pub fn is_hung_up(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
