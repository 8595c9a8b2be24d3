//! Over socket pairs, with a peer on a thread of its own.

use super::*;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A stream on a ring, and the other end.
fn pair() -> (SocketStream, Ring, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (SocketStream::new(ours.into(), 5).unwrap(), Ring::new(16).unwrap(), theirs)
}

/// One turn of a loop: starts what there is to start, waits, takes completions in.
fn turn(stream: &mut SocketStream, ring: &mut Ring) {
    stream.before_wait(ring);
    ring.submit_and_wait(1).unwrap();
    while let Some(completion) = ring.next_completion() {
        assert!(stream.owns(&completion));
        stream.complete(completion, ring);
    }
}

fn nobody(completion: Completion, _: &mut Ring) {
    panic!("{completion:?} belongs to nobody");
}

/// Reads everything until the end.
fn collect(mut from: UnixStream) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn numbered(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8).collect()
}

#[test]
fn answers_what_it_receives() {
    let (mut stream, mut ring, mut peer) = pair();
    let message = numbered(3_000_000);
    let sent = message.clone();
    let writer = std::thread::spawn(move || {
        let reader = collect(peer.try_clone().unwrap());
        peer.write_all(&sent).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        reader.join().unwrap()
    });
    while stream.state() == StreamState::Open {
        turn(&mut stream, &mut ring);
        let bytes = stream.received().to_vec();
        stream.send_bytes(&bytes);
        stream.consume(bytes.len());
    }
    assert_eq!(stream.state(), StreamState::Ended);
    while stream.unsent_bytes() > 0 {
        turn(&mut stream, &mut ring);
    }
    stream.drain(&mut ring, nobody).unwrap();
    assert!(writer.join().unwrap() == message);
}

#[test]
fn what_is_not_consumed_stays_and_a_full_staging_buffer_waits() {
    let (mut stream, mut ring, mut peer) = pair();
    let message = numbered(SocketStream::STAGING_BYTES + 1000);
    let sent = message.clone();
    let writer = std::thread::spawn(move || {
        peer.write_all(&sent).unwrap();
        peer
    });
    while stream.received().len() < SocketStream::STAGING_BYTES {
        turn(&mut stream, &mut ring);
    }
    stream.before_wait(&mut ring);
    assert!(stream.is_idle(), "there is no room for more");
    assert!(stream.received() == &message[..SocketStream::STAGING_BYTES]);
    stream.consume(SocketStream::STAGING_BYTES - 10);
    while stream.received().len() < 1010 {
        turn(&mut stream, &mut ring);
    }
    assert!(stream.received() == &message[SocketStream::STAGING_BYTES - 10..]);
    drop(writer.join().unwrap());
    stream.drain(&mut ring, nobody).unwrap();
}

#[test]
fn fills_a_buffer_from_what_is_staged_and_then_directly() {
    let (mut stream, mut ring, mut peer) = pair();
    let message = numbered(2 << 20);
    let sent = message.clone();
    peer.write_all(&message[..100]).unwrap();
    turn(&mut stream, &mut ring);
    stream.consume(28);
    stream.receive_into(AlignedBuffer::zeroed(2 << 20), 10..1_500_000);
    assert!(stream.received().is_empty());
    assert!(stream.is_filling() && stream.take_filled().is_none());
    let writer = std::thread::spawn(move || {
        peer.write_all(&sent[100..]).unwrap();
        peer
    });
    let filled = loop {
        turn(&mut stream, &mut ring);
        if let Some(filled) = stream.take_filled() {
            break filled;
        }
    };
    let length = 1_500_000 - 10;
    assert!(filled[10..1_500_000] == message[28..28 + length]);
    assert!(filled[..10].iter().chain(&filled[1_500_000..]).all(|byte| *byte == 0));
    let mut rest = Vec::new();
    while rest.len() < message.len() - 28 - length {
        turn(&mut stream, &mut ring);
        rest.extend_from_slice(stream.received());
        stream.consume(stream.received().len());
    }
    assert!(rest == message[28 + length..]);
    drop(writer.join().unwrap());
    stream.drain(&mut ring, nobody).unwrap();
}

#[test]
fn a_receive_in_flight_is_no_obstacle_to_filling() {
    let (mut stream, mut ring, mut peer) = pair();
    stream.before_wait(&mut ring);
    ring.submit_and_wait(0).unwrap();
    stream.receive_into(AlignedBuffer::zeroed(4096), 0..600);
    let message = numbered(1000);
    peer.write_all(&message).unwrap();
    turn(&mut stream, &mut ring);
    assert!(stream.take_filled().unwrap()[..600] == message[..600]);
    assert!(stream.received() == &message[600..]);
    stream.drain(&mut ring, nobody).unwrap();
}

#[test]
fn returns_the_buffers_when_the_peer_goes() {
    let (mut stream, mut ring, mut peer) = pair();
    peer.write_all(b"half a payload").unwrap();
    stream.receive_into(AlignedBuffer::zeroed(4096), 0..4096);
    stream.before_wait(&mut ring);
    ring.submit_and_wait(0).unwrap();
    drop(peer);
    while stream.state() == StreamState::Open {
        turn(&mut stream, &mut ring);
    }
    assert_eq!(stream.state(), StreamState::Ended);
    assert!(!stream.is_filling());
    assert_eq!(stream.take_sent().unwrap().len(), 4096, "the one that was being filled");
    stream.send_buffer(AlignedBuffer::zeroed(512), 0..512);
    while stream.state() == StreamState::Ended {
        turn(&mut stream, &mut ring);
    }
    assert_eq!(stream.state(), StreamState::Failed { errno: libc::EPIPE });
    stream.send_buffer(AlignedBuffer::zeroed(1024), 0..1024);
    stream.send_bytes(b"nobody listens");
    stream.receive_into(AlignedBuffer::zeroed(2048), 0..1);
    let mut returned: Vec<usize> =
        std::iter::from_fn(|| stream.take_sent()).map(|buffer| buffer.len()).collect();
    returned.sort_unstable();
    assert_eq!(returned, [512, 1024, 2048]);
    assert_eq!(stream.unsent_bytes(), 0);
    stream.drain(&mut ring, nobody).unwrap();
}

#[test]
fn shutdown_ends_a_send_that_the_peer_does_not_take() {
    let (mut stream, mut ring, _peer) = pair();
    for _ in 0..3 {
        stream.send_buffer(AlignedBuffer::zeroed(8 << 20), 0..8 << 20);
    }
    stream.before_wait(&mut ring);
    stream.send_buffer(AlignedBuffer::zeroed(4096), 0..4096);
    ring.submit_and_wait(0).unwrap();
    stream.drain(&mut ring, nobody).unwrap();
    assert_eq!(stream.state(), StreamState::Failed { errno: 0 });
    assert_eq!(std::iter::from_fn(|| stream.take_sent()).count(), 4);
}

#[test]
fn a_paused_stream_leaves_the_peers_bytes_where_they_are() {
    let (mut stream, mut ring, mut peer) = pair();
    stream.pause_receiving(true);
    peer.write_all(b"early").unwrap();
    stream.before_wait(&mut ring);
    assert!(stream.is_idle());
    stream.pause_receiving(false);
    turn(&mut stream, &mut ring);
    assert_eq!(stream.received(), b"early");
    stream.drain(&mut ring, nobody).unwrap();
}

#[test]
fn takes_tcp_and_nonblocking_sockets_and_refuses_others() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    let probe = ours.try_clone().unwrap();
    let (mut stream, mut ring) = (SocketStream::new(ours.into(), 0).unwrap(), Ring::new(8).unwrap());
    assert!(probe.nodelay().unwrap());
    let late = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        peer.write_all(b"hello").unwrap();
        peer
    });
    while stream.received() != b"hello" {
        turn(&mut stream, &mut ring);
        assert_eq!(stream.state(), StreamState::Open);
    }
    drop(late.join().unwrap());
    stream.drain(&mut ring, nobody).unwrap();

    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let refused = SocketStream::new(datagram.into(), 0).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

#[test]
fn a_stream_dropped_in_flight_is_a_bug_that_panics() {
    let dropped = std::panic::catch_unwind(|| {
        let (mut stream, mut ring, _peer) = pair();
        stream.before_wait(&mut ring);
    });
    assert!(dropped.is_err());
}

/// What the far end and we do with a stream.
#[derive(Clone, Debug)]
enum Deed {
    Consume(usize),
    Fill(usize),
    SendBytes(usize),
    SendBuffer(usize),
    Turn,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        (1_usize..3000).prop_map(Deed::Consume),
        (1_usize..400_000).prop_map(Deed::Fill),
        (0_usize..300).prop_map(Deed::SendBytes),
        (0_usize..200_000).prop_map(Deed::SendBuffer),
        Just(Deed::Turn),
    ];
    proptest::collection::vec(deed, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the order of receiving, filling and sending: both directions keep every byte in order.
    #[test]
    fn keeps_both_directions_in_order(deeds in deeds(), written in 0_usize..4_000_000) {
        let (mut stream, mut ring, mut peer) = pair();
        let incoming = numbered(written);
        let (source, reader) = (incoming.clone(), collect(peer.try_clone().unwrap()));
        let writer = std::thread::spawn(move || {
            // The other side may break off first.
            let _ = peer.write_all(&source);
            let _ = peer.shutdown(std::net::Shutdown::Write);
        });
        let (mut got, mut outgoing) = (Vec::new(), Vec::new());
        let mut fill_length = 0;
        for deed in deeds {
            match deed {
                Deed::Consume(count) => {
                    let count = count.min(stream.received().len());
                    got.extend_from_slice(&stream.received()[..count]);
                    stream.consume(count);
                }
                Deed::Fill(length) if !stream.is_filling() && stream.state() == StreamState::Open => {
                    fill_length = length;
                    stream.receive_into(AlignedBuffer::zeroed(length + 3), 3..length + 3);
                }
                Deed::SendBytes(length) => {
                    let bytes = numbered(length);
                    stream.send_bytes(&bytes);
                    outgoing.extend(bytes);
                }
                Deed::SendBuffer(length) => {
                    let mut buffer = AlignedBuffer::zeroed(length + 10);
                    buffer[10..].copy_from_slice(&numbered(length));
                    stream.send_buffer(buffer, 10..length + 10);
                    outgoing.extend(numbered(length));
                }
                Deed::Turn if stream.state() == StreamState::Open && stream.received().len() < 200_000 => {
                    turn(&mut stream, &mut ring);
                }
                Deed::Fill(_) | Deed::Turn => {}
            }
            if let Some(filled) = stream.take_filled() {
                got.extend_from_slice(&filled[3..fill_length + 3]);
            }
        }
        while stream.state() == StreamState::Open || stream.unsent_bytes() > 0 {
            got.extend_from_slice(stream.received());
            stream.consume(stream.received().len());
            turn(&mut stream, &mut ring);
            if let Some(filled) = stream.take_filled() {
                got.extend_from_slice(&filled[3..fill_length + 3]);
            }
        }
        got.extend_from_slice(stream.received());
        stream.drain(&mut ring, nobody).unwrap();
        drop(stream);
        writer.join().unwrap();
        prop_assert!(got.len() <= incoming.len() && got == incoming[..got.len()]);
        prop_assert!(got.len() + fill_length >= incoming.len(), "only an unfinished fill is lost");
        prop_assert!(reader.join().unwrap() == outgoing);
    }
}
