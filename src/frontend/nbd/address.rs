//! Where a server listens: `unix:PATH` or `tcp:HOST:PORT`, and the URI that a client is given for it.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path of a Unix socket: what the kernel's address holds, less the byte that ends it.
const UNIX_PATH_LIMIT: usize = 107;

/// A place to listen at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// A name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// Port; 0 lets the system choose.
        port: u16,
        /// Whether clients need TLS. That follows from how the server is run, not from the address as it is written.
        tls: bool,
    },
}

impl Address {
    /// A Unix socket. `Invalid` when the path is empty or longer than the system allows.
    pub fn unix(path: impl AsRef<Path>) -> Result<Address> {
        let path = path.as_ref();
        let length = path.as_os_str().as_bytes().len();
        if length == 0 {
            return Err(invalid("the path of a Unix socket is empty"));
        }
        if length > UNIX_PATH_LIMIT {
            let what = format!(
                "{}: the path of a Unix socket is {length} bytes long, the system allows {UNIX_PATH_LIMIT}",
                path.display()
            );
            return Err(Error::new(ErrorKind::Invalid, what).hint("choose a shorter path: --nbd unix:PATH"));
        }
        if path.as_os_str().as_bytes().contains(&0) {
            return Err(invalid("the path of a Unix socket contains a NUL byte"));
        }
        Ok(Address::Unix(path.to_owned()))
    }

    /// The URI by which clients (`nbdinfo`, `nbdcopy`, `qemu-img` and others) reach an export here.
    pub fn uri(&self, export: &str) -> String {
        match self {
            Address::Unix(path) => format!(
                "nbd+unix:///{}?socket={}",
                Escaped(export.as_bytes()),
                Escaped(path.as_os_str().as_bytes())
            ),
            Address::Tcp { host, port, tls } => {
                let scheme = if *tls { "nbds" } else { "nbd" };
                format!("{scheme}://{}:{port}/{}", Bracketed(host), Escaped(export.as_bytes()))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port, .. } => write!(f, "tcp:{}:{port}", Bracketed(host)),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Address::unix(path);
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return Err(invalid(format!("`{text}` is no address to listen at")));
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(invalid(format!("`{text}`: the port is missing")));
        };
        let port =
            port.parse().map_err(|_| invalid(format!("`{text}`: `{port}` is no port (0 to 65535)")))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let bare = bracketed.unwrap_or(host);
        if bare.is_empty() {
            return Err(invalid(format!("`{text}`: the host is missing")));
        }
        if bare.contains(['[', ']', '/', '?', ' ']) || (bracketed.is_none() && bare.contains(':')) {
            return Err(invalid(format!("`{text}`: `{host}` is no host (an IPv6 address goes in brackets)")));
        }
        Ok(Address::Tcp { host: bare.to_owned(), port, tls: false })
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what).hint("write unix:PATH, tcp:127.0.0.1:10809 or tcp:[::1]:10809")
}

/// A host as it stands before a port.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

/// Bytes as a URI carries them in a path or a query value. `/` stays as it is: both may hold it.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                write!(f, "{}", char::from(*byte))
            }
            other => write!(f, "%{other:02X}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Address {
        text.parse().expect(text)
    }

    #[test]
    fn parses_and_prints_the_same() {
        for text in [
            "unix:/run/a b.sock",
            "unix:relative",
            "tcp:127.0.0.1:10809",
            "tcp:[::1]:0",
            "tcp:localhost:65535",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
        let link_local = Address::Tcp { host: "fe80::1%eth0".into(), port: 7, tls: false };
        assert_eq!(parsed("tcp:[fe80::1%eth0]:7"), link_local);
    }

    #[test]
    fn uris_are_what_clients_understand() {
        assert_eq!(parsed("unix:/tmp/p/nbd.sock").uri("v1"), "nbd+unix:///v1?socket=/tmp/p/nbd.sock");
        assert_eq!(parsed("unix:/a b&c").uri("ä/1"), "nbd+unix:///%C3%A4/1?socket=/a%20b%26c");
        assert_eq!(parsed("tcp:[::1]:10809").uri("v1"), "nbd://[::1]:10809/v1");
        assert_eq!(parsed("tcp:localhost:7").uri(""), "nbd://localhost:7/");
        let encrypted = Address::Tcp { host: "::1".into(), port: 7, tls: true };
        assert_eq!(
            (encrypted.uri("v1").as_str(), encrypted.to_string().as_str()),
            ("nbds://[::1]:7/v1", "tcp:[::1]:7")
        );
    }

    #[test]
    fn refuses_what_is_no_address_and_says_what_is() {
        for text in [
            "",
            "/run/x",
            "unix:",
            "unix:a\0b",
            "tcp:",
            "tcp:localhost",
            "tcp::10809",
            "tcp:h:",
            "tcp:h:65536",
            "tcp:h:-1",
            "tcp:::1:5",
            "tcp:[::1:5",
            "tcp:a b:5",
            "udp:h:5",
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.next_step().is_some_and(|hint| hint.contains("unix:PATH")), "{text}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(long.parse::<Address>().expect_err("too long").message().contains("108 bytes"));
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<Address>().is_ok());
    }
}
