//! Certificates for tests, made by openssl, named as NBD servers and clients want them named.

use std::path::Path;
use std::process::Command;

/// Makes an authority in `directory`, and certificates of it for a server and a client at this machine.
pub fn make(directory: &Path) {
    std::fs::create_dir_all(directory).expect("a place for certificates");
    openssl(
        directory,
        &["-days", "30", "-subj", "/CN=uthin test", "-keyout", "ca-key.pem", "-out", "ca-cert.pem"],
    );
    for side in ["server", "client"] {
        let (key, certificate) = (format!("{side}-key.pem"), format!("{side}-cert.pem"));
        let usage = format!("extendedKeyUsage={side}Auth");
        let signed = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-days", "30", "-subj", "/CN=localhost"];
        let extensions = [
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            &usage,
        ];
        openssl(directory, &[&signed[..], &extensions, &["-keyout", &key, "-out", &certificate]].concat());
    }
}

fn openssl(directory: &Path, arguments: &[&str]) {
    let always = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let output = Command::new("openssl")
        .args(always)
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl starts: apt-get install openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
