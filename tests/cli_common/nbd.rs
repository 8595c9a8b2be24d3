//! The least of an NBD client that these tests need: one request at a time, simple replies.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// ENOSPC as the protocol writes it.
pub const NO_SPACE: u32 = 28;

/// EIO likewise.
pub const IO: u32 = 5;

/// EPERM likewise.
pub const NOT_PERMITTED: u32 = 1;

/// A connection to an export.
pub struct Client {
    stream: UnixStream,
    /// The export's size.
    pub size_bytes: u64,
    /// What the server says of it.
    pub is_read_only: bool,
}

fn protocol(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

impl Client {
    /// Connects; an export that is not there ends the connection.
    pub fn connect(socket: &Path, export: &str) -> Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(protocol("no NBD server"));
        }
        // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME, which has no answer but the export's size and flags.
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        let size_bytes = u64::from_be_bytes(answer[..8].try_into().expect("8 bytes"));
        let is_read_only = answer[9] & 0b10 != 0;
        Ok(Client { stream, size_bytes, is_read_only })
    }

    fn request(&mut self, kind: u16, offset_bytes: u64, length_bytes: u32, payload: &[u8]) -> Result<u32> {
        self.request_with(0, kind, offset_bytes, length_bytes, payload)
    }

    fn request_with(
        &mut self,
        flags: u16,
        kind: u16,
        offset_bytes: u64,
        length_bytes: u32,
        payload: &[u8],
    ) -> Result<u32> {
        self.send(flags, kind, offset_bytes, length_bytes, payload)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        if reply[..4] != 0x6744_6698_u32.to_be_bytes() || reply[8..] != 7_u64.to_be_bytes() {
            return Err(protocol("no simple reply to our request"));
        }
        Ok(u32::from_be_bytes(reply[4..8].try_into().expect("4 bytes")))
    }

    fn send(
        &mut self,
        flags: u16,
        kind: u16,
        offset_bytes: u64,
        length_bytes: u32,
        payload: &[u8],
    ) -> Result<()> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(7_u64.to_be_bytes());
        request.extend(offset_bytes.to_be_bytes());
        request.extend(length_bytes.to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request)
    }

    /// Sends a write, and leaves without waiting for its end; with a goodbye, or as a killed client does.
    pub fn write_and_leave(
        mut self,
        offset_bytes: u64,
        bytes: &[u8],
        says_goodbye: bool,
        before: impl FnOnce(),
    ) {
        self.send(0, 1, offset_bytes, bytes.len() as u32, bytes).expect("sent");
        before();
        if says_goodbye {
            self.send(0, 2, 0, 0, &[]).expect("sent");
        }
    }

    /// Reads; the protocol's error number if it fails.
    pub fn read(&mut self, offset_bytes: u64, length: usize) -> std::result::Result<Vec<u8>, u32> {
        let error = self.request(0, offset_bytes, length as u32, &[]).expect("the server answers");
        let mut bytes = vec![0; length];
        if error != 0 {
            return Err(error);
        }
        self.stream.read_exact(&mut bytes).expect("the bytes follow");
        Ok(bytes)
    }

    /// Writes.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> std::result::Result<(), u32> {
        self.simple(1, offset_bytes, bytes.len(), bytes)
    }

    /// Writes, to a server that may go away: whether it has said that it is done.
    pub fn write_if_served(&mut self, offset_bytes: u64, bytes: &[u8]) -> bool {
        self.request(1, offset_bytes, bytes.len() as u32, bytes).is_ok_and(|error| error == 0)
    }

    /// Whether the server ends the connection, of which it has no request.
    pub fn is_let_go(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    /// Writes, and what is written is durable when this returns.
    pub fn write_fua(&mut self, offset_bytes: u64, bytes: &[u8]) -> std::result::Result<(), u32> {
        match self.request_with(1, 1, offset_bytes, bytes.len() as u32, bytes).expect("the server answers") {
            0 => Ok(()),
            error => Err(error),
        }
    }

    /// Flushes.
    pub fn flush(&mut self) -> std::result::Result<(), u32> {
        self.simple(3, 0, 0, &[])
    }

    /// Discards.
    pub fn trim(&mut self, offset_bytes: u64, length: usize) -> std::result::Result<(), u32> {
        self.simple(4, offset_bytes, length, &[])
    }

    /// Makes it read zeros; blocks may be unmapped.
    pub fn zero(&mut self, offset_bytes: u64, length: usize) -> std::result::Result<(), u32> {
        self.simple(6, offset_bytes, length, &[])
    }

    fn simple(
        &mut self,
        kind: u16,
        offset_bytes: u64,
        length: usize,
        payload: &[u8],
    ) -> std::result::Result<(), u32> {
        match self.request(kind, offset_bytes, length as u32, payload).expect("the server answers") {
            0 => Ok(()),
            error => Err(error),
        }
    }
}
