//! What handshakes are tested with: a client that has said everything already, and exports that are only names.

use super::*;
use crate::units::BlockSize;

/// A client that has said everything already.
pub struct Script {
    pub input: Vec<u8>,
    pub at: usize,
    pub output: Vec<u8>,
    /// Most bytes that one read returns.
    pub step: usize,
    pub limits: Vec<Duration>,
    pub tls: TlsMode,
}

impl Script {
    pub fn new(input: Vec<u8>, step: usize) -> Script {
        Script { input, at: 0, output: Vec::new(), step, limits: Vec::new(), tls: TlsMode::Unavailable }
    }
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.step).min(self.input.len() - self.at);
        buffer[..count].copy_from_slice(&self.input[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.step);
        self.output.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Channel for Script {
    fn limit_wait(&mut self, limit: Duration) -> io::Result<()> {
        self.limits.push(limit);
        Ok(())
    }
    fn tls_mode(&self) -> TlsMode {
        self.tls
    }
    /// TLS in which every byte is as it was.
    fn begin_tls(&mut self) -> io::Result<()> {
        assert!(matches!(self.tls, TlsMode::Offered | TlsMode::Required));
        self.tls = TlsMode::Active;
        Ok(())
    }
}

/// Exports of these names; entering one yields its name.
pub struct Names(pub &'static [&'static str]);

impl Host for Names {
    type Entered = String;
    fn list(&self) -> Result<Vec<String>> {
        Ok(self.0.iter().map(|name| (*name).to_owned()).collect())
    }
    fn describe(&self, name: &str) -> Result<Facts> {
        match name {
            "busy" => Err(Error::new(ErrorKind::Busy, "all lanes are taken").hint("try again")),
            "going" => Err(Error::new(ErrorKind::WrongState, "the pool is closing")),
            name if self.0.contains(&name) => Ok(Facts {
                name: name.to_owned(),
                description: format!("volume {name}"),
                size_bytes: 1 << 30,
                read_only: false,
                block_size: BlockSize::MIN,
            }),
            other => Err(Error::new(ErrorKind::NotFound, format!("no volume `{other}`"))),
        }
    }
    fn enter(&self, name: &str) -> Result<(Facts, String)> {
        Ok((self.describe(name)?, name.to_owned()))
    }
}

pub const TWO: Names = Names(&["v1", "v2"]);
