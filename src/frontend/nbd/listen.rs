//! Sockets: listening ones, and a connection's while its handshake is on.

use super::Address;
use crate::error::{Error, ErrorKind, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Owner only: whoever can connect can read and write every volume.
const UNIX_SOCKET_MODE: u32 = 0o600;
/// A TCP peer that is silent for this long is asked whether it is still there, this often, this many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Who may come over TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpAccess {
    /// Whoever is on this machine.
    Loopback,
    /// Whoever speaks TLS.
    Tls {
        /// And has a certificate.
        verifies_peer: bool,
    },
    /// Everybody.
    Everybody,
}

/// A listening socket.
pub struct Listener {
    /// Where; with the real port.
    pub address: Address,
    socket: ListeningSocket,
}

enum ListeningSocket {
    /// With the socket file's path, device and inode, by which it is known to be still ours.
    Unix(UnixListener, PathBuf, (u64, u64)),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens. See [`super::Server::start`] for errors.
    pub fn bind(address: &Address, access: TcpAccess) -> Result<Listener> {
        match address {
            Address::Unix(path) => {
                let listener =
                    bind_unix(path).map_err(|error| error.context(format!("cannot listen at {address}")))?;
                let file = fs::symlink_metadata(path).map_err(|error| Error::io(address, &error))?;
                let socket = ListeningSocket::Unix(listener, path.clone(), (file.dev(), file.ino()));
                Ok(Listener { address: address.clone(), socket })
            }
            Address::Tcp { host, port, .. } => {
                let listener = bind_tcp(address, host, *port, access)?;
                let port = listener.local_addr().map_err(|error| Error::io(address, &error))?.port();
                let address =
                    Address::Tcp { host: host.clone(), port, tls: matches!(access, TcpAccess::Tls { .. }) };
                Ok(Listener { address, socket: ListeningSocket::Tcp(listener) })
            }
        }
    }

    /// Takes the next connection, if one waits: never blocks.
    pub fn accept(&self) -> io::Result<Socket> {
        match &self.socket {
            ListeningSocket::Unix(listener, ..) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Socket::Unix(stream))
            }
            ListeningSocket::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
                sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            ListeningSocket::Unix(listener, ..) => listener.as_fd(),
            ListeningSocket::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ListeningSocket::Unix(_, path, identity) = &self.socket else { return };
        // Somebody may have put another socket there; theirs stays.
        let is_ours = fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == *identity);
        if is_ours && let Err(error) = fs::remove_file(path) {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

fn bind_unix(path: &Path) -> Result<UnixListener> {
    remove_stale(path)?;
    let failed = |errno: rustix::io::Errno| match errno {
        rustix::io::Errno::NOENT => Error::new(ErrorKind::NotFound, "the directory does not exist")
            .hint("make it first, or choose another path: --nbd unix:PATH"),
        rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS => Error::io("socket", &errno.into())
            .hint("choose a path where this user can make files: --nbd unix:PATH"),
        errno => Error::io("socket", &errno.into()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    // Set before the file exists, so that there is no moment in which others can connect.
    rustix::fs::fchmod(&socket, UNIX_SOCKET_MODE.into()).map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(UnixListener::from(socket))
}

/// Removes a socket at which nobody listens any more: what a daemon leaves that was killed.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(()) };
    if !file.file_type().is_socket() {
        let what = "a file that is no socket is there already";
        return Err(Error::new(ErrorKind::Exists, what).hint("choose another path, or remove the file"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::debug!("removing the stale socket {}", path.display());
            fs::remove_file(path).map_err(|error| Error::io("removing the stale socket", &error))
        }
        // Gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Busy, "another process listens there")
            .hint("stop it (`uthin pool close`), or choose another path")),
        Err(error) => Err(Error::io("looking who listens there", &error)),
    }
}

fn bind_tcp(address: &Address, host: &str, port: u16, access: TcpAccess) -> Result<TcpListener> {
    let found = (host, port).to_socket_addrs();
    let found: Vec<SocketAddr> =
        found.map_err(|error| Error::io(format!("{address}: looking up the host"), &error))?.collect();
    if let Some(remote) = found.iter().find(|found| !found.ip().is_loopback()) {
        let what = format!("{address}: {} can be reached from other machines", remote.ip());
        match access {
            TcpAccess::Loopback => {
                return Err(Error::new(ErrorKind::Invalid, what).hint(
                    "without TLS whoever connects reads and writes every volume: give it certificates \
                     (--tls-certificates DIR --tls-verify-peer), listen at tcp:127.0.0.1:PORT or a Unix socket and \
                     tunnel, or say that it is meant (--insecure-tcp)",
                ));
            }
            TcpAccess::Tls { verifies_peer: true } => {}
            TcpAccess::Tls { verifies_peer: false } | TcpAccess::Everybody => {
                tracing::warn!("{what}, and whoever comes from there can read and write every volume");
            }
        }
    }
    let listener = TcpListener::bind(&found[..]).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            Error::new(ErrorKind::Busy, format!("{address}: another process listens there"))
                .hint("choose another port")
        }
        _ => Error::io(format!("cannot listen at {address}"), &error),
    })
}

/// A connection's socket, blocking.
#[derive(Debug)]
pub enum Socket {
    /// A Unix stream.
    Unix(UnixStream),
    /// A TCP stream.
    Tcp(TcpStream),
}

impl Socket {
    /// Another handle to it.
    pub fn try_clone(&self) -> io::Result<Socket> {
        match self {
            Socket::Unix(stream) => stream.try_clone().map(Socket::Unix),
            Socket::Tcp(stream) => stream.try_clone().map(Socket::Tcp),
        }
    }

    /// Breaks the connection off: whoever waits on it stops waiting.
    pub fn shutdown(&self) {
        // Fails when the peer was first, which is as good.
        let _ = match self {
            Socket::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Socket::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// From now on nobody waits for it.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Socket::Unix(stream) => stream.set_nonblocking(true),
            Socket::Tcp(stream) => stream.set_nonblocking(true),
        }
    }

    /// A read or write from now on waits this long at most.
    pub fn limit_wait(&self, limit: Duration) -> io::Result<()> {
        match self {
            Socket::Unix(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))
            }
            Socket::Tcp(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))
            }
        }
    }

    /// The plain socket.
    pub fn into_fd(self) -> OwnedFd {
        match self {
            Socket::Unix(stream) => stream.into(),
            Socket::Tcp(stream) => stream.into(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.read(buffer),
            Socket::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.write(bytes),
            Socket::Tcp(stream) => stream.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn at(path: &Path) -> Address {
        Address::unix(path).expect("a short path")
    }

    #[test]
    fn a_unix_socket_is_its_owners_and_goes_with_the_listener() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = Listener::bind(&at(&path), TcpAccess::Loopback).expect("it is free");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, UNIX_SOCKET_MODE);
        assert_eq!(listener.accept().expect_err("nobody called").kind(), io::ErrorKind::WouldBlock);
        let mut client = UnixStream::connect(&path).expect("somebody listens");
        client.write_all(b"x").expect("room");
        let mut socket = listener.accept().expect("it waits");
        let mut byte = [0];
        socket.read_exact(&mut byte).expect("it was sent");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).expect("it is free"));
        assert!(path.exists(), "left behind");
        let first = Listener::bind(&at(&path), TcpAccess::Loopback).expect("nobody listens");
        let error = Listener::bind(&at(&path), TcpAccess::Loopback).err().expect("somebody listens");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.message().contains(&path.display().to_string()), "{error}");
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "precious").expect("room");
        let error = Listener::bind(&at(&path), TcpAccess::Loopback).err().expect("no socket");
        assert_eq!(error.kind(), ErrorKind::Exists);
        drop(first);
        assert_eq!(fs::read(&path).expect("it is still there"), b"precious");
        let nowhere = directory.path().join("no/s");
        let error = Listener::bind(&at(&nowhere), TcpAccess::Loopback).err().expect("no directory");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn tcp_is_loopback_unless_allowed() {
        let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port, tls: false };
        for remote in ["0.0.0.0", "::"] {
            let error =
                Listener::bind(&tcp(remote, 0), TcpAccess::Loopback).err().expect("everybody could connect");
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.next_step().is_some());
        }
        assert!(Listener::bind(&tcp("0.0.0.0", 0), TcpAccess::Everybody).is_ok());
        let encrypted =
            Listener::bind(&tcp("0.0.0.0", 0), TcpAccess::Tls { verifies_peer: true }).expect("a free port");
        assert!(encrypted.address.uri("v1").starts_with("nbds://0.0.0.0:"));
        let first = Listener::bind(&tcp("127.0.0.1", 0), TcpAccess::Loopback).expect("a free port");
        let Address::Tcp { port, .. } = first.address else { panic!("it is TCP") };
        assert_ne!(port, 0);
        let error = Listener::bind(&tcp("127.0.0.1", port), TcpAccess::Loopback).err().expect("taken");
        assert_eq!(error.kind(), ErrorKind::Busy);
        let client = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
        let socket = loop {
            match first.accept() {
                Ok(socket) => break socket,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        let Socket::Tcp(stream) = &socket else { panic!("it is TCP") };
        assert!(stream.nodelay().expect("an option"));
        assert!(sockopt::socket_keepalive(stream).expect("an option"));
        drop(client);
    }
}
