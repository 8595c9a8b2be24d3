//! The control socket, spoken to by hand.

use super::Place;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// One exchange of any bytes: the status, 0 if there is none, and the body.
pub fn http(place: &Place, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(place.path("p/control.sock")).expect("a daemon listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
}

/// A request, and the JSON that answers it.
pub fn ask(place: &Place, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let (status, body) = http(place, &request);
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
}

/// One of dm-thin's messages, which succeeds. By the thousand this is quicker than `uthin pool message`, which says the same.
pub fn message(place: &Place, text: &str) {
    let (status, answer) = ask(place, "POST", "/v1/pool/message", &format!("{{\"message\": \"{text}\"}}"));
    assert_eq!(status, 200, "{text}: {answer}");
}
