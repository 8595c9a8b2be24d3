//! TLS: what a server proves itself with, a connection that turns to it in its handshake, and the bridge behind which the
//! transmission goes on as if there were none.
//!
//! Section "TLS support" of the protocol's document. At TCP addresses a server with certificates insists on TLS (the
//! document's FORCEDTLS); at Unix sockets it offers it (SELECTIVETLS with no export that needs it). `rustls` does the work: TLS
//! 1.2 and 1.3, certificates, no pre-shared keys (`docs/decisions/0011`).
//!
//! A connection with TLS has a thread more than one without: the [`bridge`], which moves bytes between the client's socket
//! and a socket pair whose other end the transmission takes for its client. The transmission itself knows nothing of TLS.

use super::handshake::{self, TlsMode};
use super::listen::Socket;
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Files of a directory of certificates, by the names that other NBD servers and clients use.
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const AUTHORITY: &str = "ca-cert.pem";
/// Bytes that a bridge moves at a time in either direction.
const BRIDGE_BYTES: usize = 64 << 10;
/// How long a client may take to receive the last replies after the transmission has ended.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(10);

/// A server's certificate and key, and by whom clients must be certified.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    verifies_peer: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key is nothing for a log.
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads `server-cert.pem` (with the certificates that lead to the authority, if any) and `server-key.pem` of `directory`;
    /// with `verify_peer` also `ca-cert.pem`, and then only clients get in that have a certificate of that authority.
    /// `NotFound` or `Io` for a file that cannot be read, `Invalid` for one that is not what it should be.
    pub fn load(directory: &Path, verify_peer: bool) -> Result<Tls> {
        let chain = certificates(directory, CERTIFICATE)?;
        let path = directory.join(KEY);
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| unreadable(&path, error))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(ErrorKind::Failed, format!("TLS: {error}")))?;
        let builder = if verify_peer {
            let path = directory.join(AUTHORITY);
            let refused = |why: &dyn fmt::Display| invalid(&path, why);
            let mut roots = RootCertStore::empty();
            for authority in certificates(directory, AUTHORITY)? {
                roots.add(authority).map_err(|error| refused(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refused(&error))?)
        } else {
            builder.with_no_client_auth()
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|error| invalid(&directory.join(CERTIFICATE), &format!("{error} ({KEY})")))?;
        Ok(Tls { config: Arc::new(config), verifies_peer: verify_peer })
    }

    /// Whether clients must have a certificate.
    pub fn verifies_peer(&self) -> bool {
        self.verifies_peer
    }
}

fn certificates(directory: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let path = directory.join(name);
    let read = CertificateDer::pem_file_iter(&path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    let found = read.map_err(|error| unreadable(&path, error))?;
    if found.is_empty() {
        return Err(invalid(&path, &"there is no certificate in it"));
    }
    Ok(found)
}

const FILES_HINT: &str = "--tls-certificates DIR needs server-cert.pem and server-key.pem there, and ca-cert.pem to verify clients";

fn unreadable(path: &Path, error: pem::Error) -> Error {
    match error {
        pem::Error::Io(source) if source.kind() == io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("{}: there is no such file", path.display()))
                .hint(FILES_HINT)
        }
        pem::Error::Io(source) => Error::io(path.display(), &source).hint(FILES_HINT),
        pem::Error::NoItemsFound => invalid(path, &"there is no such thing in it, in PEM"),
        other => invalid(path, &other),
    }
}

fn invalid(path: &Path, why: &dyn fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {why}", path.display())).hint(FILES_HINT)
}

/// A connection's socket while its handshake is on: plain, and from STARTTLS on encrypted.
pub struct Line {
    socket: Socket,
    mode: TlsMode,
    /// What STARTTLS turns to.
    offer: Option<Tls>,
    session: Option<ServerConnection>,
}

impl Line {
    /// A plain connection. With an offer it can turn to TLS; over TCP it must.
    pub fn new(socket: Socket, offer: Option<Tls>) -> Line {
        let mode = match (&offer, &socket) {
            (None, _) => TlsMode::Unavailable,
            (Some(_), Socket::Unix(_)) => TlsMode::Offered,
            (Some(_), Socket::Tcp(_)) => TlsMode::Required,
        };
        Line { socket, mode, offer, session: None }
    }

    /// What the transmission goes on with.
    pub fn into_parts(self) -> (Socket, Option<ServerConnection>) {
        (self.socket, self.session)
    }

    /// Says goodbye, which TLS asks for; whether anybody listens does not matter.
    pub fn close(mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            let _ = flush(session, &mut self.socket);
        }
    }
}

/// Sends what is encrypted and not sent yet.
fn flush(session: &mut ServerConnection, socket: &mut impl Write) -> io::Result<()> {
    while session.wants_write() {
        if session.write_tls(socket)? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// Decrypts what was received. What the client did wrong it is told.
fn decrypt(session: &mut ServerConnection, socket: &mut impl Write) -> io::Result<()> {
    let processed = session.process_new_packets().map(|_| ());
    processed.map_err(|error| {
        let _ = flush(session, socket);
        io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}"))
    })
}

impl Read for Line {
    /// At most one receive: so the caller's patience holds for every piece of a record.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.read(buffer) };
        flush(session, &mut self.socket)?;
        match session.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return or_end(other),
        }
        session.read_tls(&mut self.socket)?;
        decrypt(session, &mut self.socket)?;
        or_end(session.reader().read(buffer))
    }
}

/// Leaving without a word is leaving.
fn or_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        other => other,
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.write(bytes) };
        flush(session, &mut self.socket)?;
        let count = session.writer().write(bytes)?;
        match flush(session, &mut self.socket) {
            // They are taken; the next read, write or bridge sends the rest of them.
            Err(error) if count == 0 || !handshake::is_passing(&error) => Err(error),
            Ok(()) | Err(_) => Ok(count),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl handshake::Channel for Line {
    fn limit_wait(&mut self, limit: Duration) -> io::Result<()> {
        self.socket.limit_wait(limit)
    }
    fn tls_mode(&self) -> TlsMode {
        self.mode
    }
    fn begin_tls(&mut self) -> io::Result<()> {
        let Tls { config, .. } = self.offer.clone().ok_or(io::ErrorKind::Unsupported)?;
        self.session = Some(ServerConnection::new(config).map_err(io::Error::other)?);
        self.mode = TlsMode::Active;
        Ok(())
    }
}

/// Moves bytes between a client's `socket` and `inner`, the other end of which is the transmission's, until either has
/// ended and what it had sent is delivered. An error is the client's socket's, or TLS's.
pub fn bridge(mut session: ServerConnection, socket: &mut Socket, inner: UnixStream) -> io::Result<()> {
    socket.set_nonblocking()?;
    inner.set_nonblocking(true)?;
    // It is given more only when it has sent all it had.
    session.set_buffer_limit(None);
    let mut bridge = Bridge {
        session,
        inner,
        arrived: vec![0; BRIDGE_BYTES],
        undelivered: 0..0,
        answered: vec![0; BRIDGE_BYTES],
        client_has_ended: false,
        farewell_until: None,
    };
    loop {
        let has_moved = bridge.inwards(socket)? | bridge.outwards(socket)?;
        if bridge.farewell_until.is_some() && !bridge.session.wants_write() {
            socket.shutdown();
            return Ok(());
        }
        if !has_moved {
            bridge.wait(socket)?;
        }
    }
}

struct Bridge {
    session: ServerConnection,
    inner: UnixStream,
    /// From the client, decrypted; of it `undelivered` is still to go to the transmission.
    arrived: Vec<u8>,
    undelivered: Range<usize>,
    /// From the transmission.
    answered: Vec<u8>,
    client_has_ended: bool,
    /// The transmission has ended; until then the client may take what is left.
    farewell_until: Option<Instant>,
}

impl Bridge {
    /// Client to transmission. Whether anything has moved.
    fn inwards(&mut self, socket: &mut Socket) -> io::Result<bool> {
        if !self.undelivered.is_empty() {
            return match self.inner.write(&self.arrived[self.undelivered.clone()]) {
                Ok(count) => {
                    self.undelivered.start += count;
                    Ok(true)
                }
                Err(error) if handshake::is_passing(&error) => Ok(false),
                // The transmission has ended, and is not interested.
                Err(_) => {
                    self.undelivered = 0..0;
                    self.client_has_ended = true;
                    Ok(true)
                }
            };
        }
        if self.client_has_ended {
            return Ok(false);
        }
        match or_end(self.session.reader().read(&mut self.arrived)) {
            Ok(0) => {
                self.client_has_ended = true;
                // Fails when the transmission was first, which is as good.
                let _ = self.inner.shutdown(std::net::Shutdown::Write);
                Ok(true)
            }
            Ok(count) => {
                self.undelivered = 0..count;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match self.session.read_tls(socket) {
                    Ok(_) => {}
                    Err(error) if handshake::is_passing(&error) => return Ok(false),
                    Err(error) => return Err(error),
                }
                decrypt(&mut self.session, socket)?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Transmission to client. Whether anything has moved.
    fn outwards(&mut self, socket: &mut Socket) -> io::Result<bool> {
        let mut has_moved = false;
        if !self.session.wants_write() && self.farewell_until.is_none() {
            match self.inner.read(&mut self.answered) {
                Err(error) if handshake::is_passing(&error) => {}
                Ok(0) | Err(_) => {
                    self.farewell_until = Some(Instant::now() + FAREWELL_PATIENCE);
                    self.session.send_close_notify();
                }
                Ok(count) => self.session.writer().write_all(&self.answered[..count])?,
            }
        }
        while self.session.wants_write() {
            match self.session.write_tls(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => has_moved = true,
                Err(error) if handshake::is_passing(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(has_moved)
    }

    /// Waits until something can move. What is not waited for is left out: it may have hung up, which is always news.
    fn wait(&self, socket: &Socket) -> io::Result<()> {
        let reads = |wanted| if wanted { PollFlags::IN } else { PollFlags::empty() };
        let writes = |wanted| if wanted { PollFlags::OUT } else { PollFlags::empty() };
        let is_sending = self.session.wants_write();
        let outer = reads(self.undelivered.is_empty() && !self.client_has_ended) | writes(is_sending);
        let inner =
            reads(!is_sending && self.farewell_until.is_none()) | writes(!self.undelivered.is_empty());
        let mut waits = Vec::with_capacity(2);
        if !outer.is_empty() {
            waits.push(PollFd::from_borrowed_fd(socket.as_fd(), outer));
        }
        if !inner.is_empty() {
            waits.push(PollFd::from_borrowed_fd(self.inner.as_fd(), inner));
        }
        let timeout = match self.farewell_until {
            None => None,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client does not take its last replies",
                    ));
                }
                Some(Timespec { tv_sec: left.as_secs() as i64 + 1, tv_nsec: 0 })
            }
        };
        match poll(&mut waits, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
