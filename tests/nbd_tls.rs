//! TLS: real clients with certificates get in and move data, everybody else is told to begin TLS, or is turned away.

mod cli_common;

#[path = "nbd/certificates.rs"]
mod certificates;

use cli_common::{Daemon, POOL, Place};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;
const GO: u32 = 7;
const STARTTLS: u32 = 5;
const TLS_REQUIRED: u32 = (1 << 31) + 5;

/// A pool with a volume `v`, served with TLS at a port of this machine and at its own socket.
struct Served {
    place: Place,
    daemon: Daemon,
    port: u16,
}

fn served(options: &[&str]) -> Served {
    let place = Place::with_pool("512M");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    certificates::make(&place.path("pki"));
    let always = ["--nbd", "unix:./p/nbd.sock", "--nbd", "tcp:127.0.0.1:0", "--tls-certificates", "./pki"];
    let daemon = place.serve(&[&always[..], options].concat());
    let status = place.json(&["pool", "status", POOL]);
    let uri = status["exports"][1].as_str().expect("a URI").to_owned();
    let port = uri.strip_prefix("nbds://127.0.0.1:").and_then(|rest| rest.split_once('/'));
    let port = port.expect("a URI says that TLS is needed").0.parse().expect("a port");
    Served { place, daemon, port }
}

impl Served {
    /// A URI for libnbd's tools.
    fn uri(&self, certificates: &str) -> String {
        let directory = self.place.path(certificates);
        format!("nbds://localhost:{}/v?tls-certificates={}", self.port, directory.display())
    }

    /// A client's outcome: whether it ended well, and what it said. `timeout` ends one that hangs.
    fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("timeout")
            .args(["--kill-after=5", "60", program])
            .args(arguments)
            .current_dir(self.place.path(""))
            .output()
            .expect("timeout starts");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_ne!(output.status.code(), Some(127), "{program} is missing: {text}");
        (output.status.success(), text)
    }

    fn ok(&self, program: &str, arguments: &[&str]) -> String {
        let (good, text) = self.run(program, arguments);
        assert!(good, "{program} {arguments:?}: {text}");
        text
    }

    fn end(self) {
        assert_eq!(self.daemon.signal(rustix::process::Signal::TERM), 0);
    }
}

/// A file of `length` bytes that do not repeat soon.
fn image(path: &std::path::Path, length: usize) {
    let bytes: Vec<u8> = (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn libnbd_and_qemu_copy_there_and_back() {
    let served = served(&[]);
    image(&served.place.path("there"), 64 * MIB);
    let uri = served.uri("pki");
    let info = served.ok("nbdinfo", &["--json", &uri]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["TLS"], true);
    served.ok("nbdcopy", &["--flush", "--connections=4", "there", &uri]);
    served.ok("nbdcopy", &[&uri, "back"]);
    served.ok("cmp", &["there", "back"]);
    let credentials = "tls-creds-x509,id=tls,endpoint=client,verify-peer=on,dir=pki";
    let options = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export=v,tls-creds=tls",
        served.port
    );
    let source = ["--object", credentials, "--image-opts", &options];
    served.ok("qemu-img", &[&["convert"][..], &source, &["-O", "raw", "back.qemu"]].concat());
    served.ok("cmp", &["there", "back.qemu"]);
    let io =
        ["-c", "write -P 0x5a 1M 256k", "-c", "flush", "-c", "read -P 0x5a 1M 256k", "-c", "discard 2M 1M"];
    let said = served.ok("qemu-io", &[&source[..], &io].concat());
    assert!(!said.contains("failed"), "{said}");
    // What is written over TLS is what others read without.
    let mut plain = served.place.connect("v");
    let bytes = plain.read(MIB as u64, 4096).expect("readable");
    assert!(bytes.iter().all(|byte| *byte == 0x5a));
    served.end();
}

#[test]
fn a_unix_socket_offers_it_and_asks_for_nothing() {
    let served = served(&[]);
    let socket = served.place.path("p/nbd.sock").display().to_string();
    let plain = served.ok("nbdinfo", &["--json", &format!("nbd+unix:///v?socket={socket}")]);
    assert!(plain.contains("\"TLS\": false"), "{plain}");
    let pki = served.place.path("pki").display().to_string();
    let uri = format!("nbds+unix:///v?socket={socket}&tls-hostname=localhost&tls-certificates={pki}");
    let encrypted = served.ok("nbdinfo", &["--json", &uri]);
    assert!(encrypted.contains("\"TLS\": true"), "{encrypted}");
    served.end();
}

#[test]
fn nobody_gets_anything_over_tcp_without_it() {
    let served = served(&[]);
    let plain = format!("nbd://localhost:{}/v", served.port);
    let (good, said) = served.run("nbdinfo", &[&plain]);
    assert!(!good, "{said}");
    let (good, said) = served.run("qemu-img", &["info", &plain]);
    assert!(!good && said.contains("TLS"), "{said}");
    let (good, said) = served.run("nbdinfo", &["--list", &format!("nbd://localhost:{}/", served.port)]);
    assert!(!good, "{said}");
    served.end();
}

#[test]
fn whoever_is_verified_needs_a_certificate_of_the_authority() {
    let served = served(&["--tls-verify-peer"]);
    let uri = served.uri("pki");
    served.ok("nbdinfo", &[&uri]);
    // None at all.
    std::fs::create_dir(served.place.path("none")).expect("made");
    std::fs::copy(served.place.path("pki/ca-cert.pem"), served.place.path("none/ca-cert.pem"))
        .expect("copied");
    let (good, said) = served.run("nbdinfo", &[&served.uri("none")]);
    assert!(!good, "{said}");
    // One of somebody else's.
    certificates::make(&served.place.path("other"));
    std::fs::copy(served.place.path("pki/ca-cert.pem"), served.place.path("other/ca-cert.pem"))
        .expect("copied");
    let (good, said) = served.run("nbdinfo", &[&served.uri("other")]);
    assert!(!good, "{said}");
    // And a server that somebody else certified is none for a client that looks.
    certificates::make(&served.place.path("stranger"));
    let (good, said) = served.run("nbdinfo", &[&served.uri("stranger")]);
    assert!(!good, "{said}");
    served.ok("nbdinfo", &[&uri]);
    served.end();
}

/// Says hello and returns the greeting's flags.
fn greet(stream: &mut (impl Read + Write), client_flags: u32) -> u16 {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("it greets");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&client_flags.to_be_bytes()).expect("it listens");
    u16::from_be_bytes([greeting[16], greeting[17]])
}

fn send_option(stream: &mut impl Write, number: u32, data: &[u8]) {
    let bytes = [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat();
    stream.write_all(&bytes).expect("it listens");
}

/// The kind of an option's only reply, and its words.
fn reply(stream: &mut impl Read) -> (u32, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).expect("it answers");
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
    let mut data = vec![0; word(16) as usize];
    stream.read_exact(&mut data).expect("it answers");
    (word(12), data)
}

fn go_data(name: &str) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), &[0, 0]].concat()
}

/// Bytes that a connection brings before it ends.
fn rest(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stream
}

#[test]
fn byte_by_byte() {
    let served = served(&[]);
    let mut stream = connect(served.port);
    assert_eq!(greet(&mut stream, 3), 3);
    // Everything before STARTTLS, known or not, gets the one answer.
    for (number, data) in
        [(3, vec![]), (GO, go_data("v")), (6, go_data("nobody")), (8, vec![]), (4711, vec![1; 10])]
    {
        send_option(&mut stream, number, &data);
        let (kind, words) = reply(&mut stream);
        assert_eq!(kind, TLS_REQUIRED, "option {number}");
        assert!(String::from_utf8_lossy(&words).contains("STARTTLS"));
    }
    send_option(&mut stream, STARTTLS, b"x");
    assert_eq!(reply(&mut stream).0, (1 << 31) + 3, "it takes no data");
    send_option(&mut stream, STARTTLS, &[]);
    assert_eq!(reply(&mut stream), (1, vec![]));
    let mut roots = RootCertStore::empty();
    let authority =
        CertificateDer::from_pem_file(served.place.path("pki/ca-cert.pem")).expect("a certificate");
    roots.add(authority).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    let mut stream = StreamOwned::new(session, stream);
    send_option(&mut stream, STARTTLS, &[]);
    assert_eq!(reply(&mut stream).0, (1 << 31) + 3, "it has begun already");
    send_option(&mut stream, GO, &go_data("nobody"));
    assert_eq!(reply(&mut stream).0, (1 << 31) + 6, "TLS_REQD is never said once TLS has begun");
    send_option(&mut stream, GO, &go_data("v"));
    loop {
        match reply(&mut stream).0 {
            1 => break,
            kind => assert_eq!(kind, 3),
        }
    }
    // A write, a read of it, and the end that TLS has too.
    let payload: Vec<u8> = (0..MIB).map(|at| (at / 3) as u8).collect();
    let request = |kind: u16, length: u32| {
        let head =
            [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[7; 8], &[0; 8]].concat();
        [head, length.to_be_bytes().to_vec()].concat()
    };
    stream.write_all(&[request(1, MIB as u32), payload.clone()].concat()).expect("it listens");
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(answer[4..8], [0; 4]);
    stream.write_all(&[request(0, MIB as u32), request(2, 0)].concat()).expect("it listens");
    stream.read_exact(&mut answer).expect("it answers");
    let mut back = vec![0; MIB];
    stream.read_exact(&mut back).expect("it answers");
    assert!(back == payload);
    let mut byte = [0];
    assert_eq!(stream.read(&mut byte).expect("the end is announced: close_notify"), 0);
    drop(stream);

    // EXPORT_NAME cannot be answered, and who does not speak fixed newstyle cannot begin TLS.
    let mut stream = connect(served.port);
    greet(&mut stream, 3);
    send_option(&mut stream, 1, b"v");
    assert!(rest(&mut stream).is_empty());
    let mut stream = connect(served.port);
    greet(&mut stream, 2);
    assert!(rest(&mut stream).is_empty());
    // Plain words where TLS should begin: a TLS alert at most.
    let mut stream = connect(served.port);
    greet(&mut stream, 3);
    send_option(&mut stream, STARTTLS, &[]);
    assert_eq!(reply(&mut stream).0, 1);
    send_option(&mut stream, 3, &[]);
    let said = rest(&mut stream);
    assert!(said.is_empty() || said[0] == 21, "{said:02x?}");
    served.end();
}

#[test]
fn without_certificates_there_is_none() {
    let place = Place::with_pool("512M");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    let daemon = place.serve(&[]);
    let mut stream = UnixStream::connect(place.path("p/nbd.sock")).expect("it listens");
    greet(&mut stream, 3);
    send_option(&mut stream, STARTTLS, &[]);
    let (kind, words) = reply(&mut stream);
    assert_eq!(kind, (1 << 31) + 2);
    assert!(String::from_utf8_lossy(&words).contains("no certificates"));
    drop(stream);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
}

#[test]
fn stopping_ends_clients_that_do_not_read() {
    let served = served(&[]);
    let uri = served.uri("pki");
    // It asks for more than it reads, and is stopped in the middle.
    let script = "nbdcopy \"$0\" - | { head -c 100000 >/dev/null; echo begun; sleep 30; }";
    let mut client = Command::new("sh")
        .args(["-c", script, &uri])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sh starts");
    let mut begun = [0; 6];
    client.stdout.as_mut().expect("piped").read_exact(&mut begun).expect("it begins");
    let asked = std::time::Instant::now();
    assert_eq!(served.daemon.signal(rustix::process::Signal::TERM), 0);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    client.kill().expect("it was ours");
    client.wait().expect("it was ours");
}

#[test]
fn listening_to_everybody_wants_certificates_or_to_be_told_twice() {
    let place = Place::with_pool("512M");
    certificates::make(&place.path("pki"));
    let everywhere = ["serve", POOL, "--nbd", "tcp:0.0.0.0:0"];
    let refused = place.fails(&everywhere, 2, "0.0.0.0 can be reached from other machines");
    assert!(refused.hint().contains("--insecure-tcp") && refused.hint().contains("--tls-certificates"));
    let everywhere = &everywhere[2..];
    for told in [&["--insecure-tcp"][..], &["--tls-certificates", "pki", "--tls-verify-peer"]] {
        assert_eq!(place.serve(&[everywhere, told].concat()).signal(rustix::process::Signal::TERM), 0);
    }
    // What does not fit together, and what is not there.
    place.fails(&["serve", POOL, "--insecure-tcp", "--tls-certificates", "pki"], 2, "cannot be used with");
    place.fails(&["serve", POOL, "--tls-verify-peer"], 2, "--tls-certificates");
    place.fails(&["serve", POOL, "--tls-certificates", "nowhere"], 5, "nowhere/server-cert.pem").hint();
    std::fs::write(place.path("pki/server-key.pem"), "no key").expect("written");
    place.fails(&["serve", POOL, "--tls-certificates", "pki"], 2, "pki/server-key.pem").hint();
    std::fs::remove_file(place.path("pki/ca-cert.pem")).expect("removed");
    std::fs::copy(place.path("pki/client-key.pem"), place.path("pki/server-key.pem")).expect("copied");
    place.fails(&["serve", POOL, "--tls-certificates", "pki"], 2, "pki/server-cert.pem").hint();
    std::fs::write(place.path("pki/ca-cert.pem"), "").expect("written");
    place.fails(&["serve", POOL, "--tls-certificates", "pki", "--tls-verify-peer"], 2, "pki/").hint();
}
