//! Requests in registered memory, on real files: the same bytes, whatever of a buffer is registered.

use super::*;
use crate::driver::testing::{BLOCK, Bench, Client, id};
use crate::driver::uring::Submit;
use crate::engine::{Kind, Request, Tag, Volume};
use std::sync::Arc;

const SMALL: u64 = 4096;

fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|index| (index / 512 * 41 + seed * 13 + index % 3) as u8).collect()
}

/// Reads what was written before, overwrites, first writes to holes and to shared blocks, all checked.
fn work(bench: &Bench, client: &mut Client, volume: &Arc<Volume>, expected: &mut Vec<u8>, snapshot: u64) {
    let write = |client: &mut Client, expected: &mut Vec<u8>, at: u64, length: u64, seed: u64| {
        let bytes = pattern(length, seed);
        client.write(volume, at, &bytes).unwrap();
        expected[at as usize..(at + length) as usize].copy_from_slice(&bytes);
    };
    for block in 0..32 {
        write(client, expected, block * BLOCK + 512, SMALL, block);
    }
    bench.snapshot(1, snapshot);
    for block in 0..32 {
        write(client, expected, block * BLOCK + 1024, SMALL, 50 + block);
    }
    for turn in 0..96 {
        let at = turn * 7919 * 512 % (31 * BLOCK);
        write(client, expected, at, SMALL, 100 + turn);
        assert_eq!(client.read(volume, at, SMALL).unwrap(), expected[at as usize..][..SMALL as usize]);
    }
    write(client, expected, BLOCK - 512, 3 * BLOCK, 300);
    assert!(client.read(volume, 0, 32 * BLOCK).unwrap() == *expected);
}

#[test]
fn a_lane_that_is_used_registers_its_memory_and_bytes_are_the_same() {
    for may_register in [true, false] {
        let bench = Bench::new(128, 1);
        bench.create(1, 32 * BLOCK);
        let lease = bench.pool.open_volume(id(1)).unwrap();
        let (volume, mut client) = (lease.volume(), bench.client());
        if !may_register {
            client.ring.refuse_buffers_after(0);
        }
        let first = client.lane.take_buffer(SMALL as usize);
        assert_eq!(client.lane.registered(&first), None, "a client that has just come costs nothing");
        client.lane.buffers().give(first);
        let mut expected = vec![0; 32 * BLOCK as usize];
        for snapshot in 2..4 {
            work(&bench, &mut client, volume, &mut expected, snapshot);
        }
        for length_bytes in [SMALL, BLOCK] {
            let buffer = client.lane.take_buffer(length_bytes as usize);
            let registered = client.lane.registered(&buffer);
            assert_eq!(
                registered.map(|registered| registered.length_bytes),
                may_register.then_some(length_bytes)
            );
            client.lane.buffers().give(buffer);
        }
        let tag = client.begin(volume, Kind::Read, 0, SMALL, Some(&[0; SMALL as usize]));
        assert_eq!(client.lane.is_registered(tag), may_register, "and operations name it");
        client.finish_all();
        client.end();
        bench.pool.close().unwrap();
    }
}

#[test]
fn a_buffer_may_be_registered_in_part() {
    let bench = Bench::new(64, 1);
    bench.create(1, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    let mut buffer = AlignedBuffer::zeroed(4 * BLOCK as usize);
    let index = client.ring.register(buffer.start(), SMALL as usize).expect("this kernel can");
    let registered = Registered { index, length_bytes: SMALL };
    // Up to its end, over it, and across blocks, the first of which ends within it.
    for (number, (at, length)) in
        [(0, SMALL), (0, 512), (BLOCK, 2 * SMALL), (2 * BLOCK - 512, 3 * BLOCK)].into_iter().enumerate()
    {
        for kind in [Kind::Write { fua: false }, Kind::Read] {
            let expected = pattern(length, number as u64);
            let is_write = kind != Kind::Read;
            buffer[..length as usize].copy_from_slice(&if is_write {
                expected.clone()
            } else {
                vec![0x5a; length as usize]
            });
            let volume = lease.volume().clone();
            let request = Request { tag: Tag(70), volume, kind, offset_bytes: at, length_bytes: length };
            client.lane.begin_registered(request, buffer, registered, &mut client.ring);
            let mut finished = client.finish_all();
            finished[0].result.unwrap();
            buffer = finished.remove(0).buffer.expect("it comes back");
            assert!(buffer[..length as usize] == expected, "{at} {length}");
        }
        assert!(client.read(lease.volume(), at, length).unwrap() == pattern(length, number as u64));
    }
    client.end();
    bench.pool.close().unwrap();
}

#[test]
fn a_ring_takes_as_many_as_it_has_room_for() {
    let mut ring = super::super::Ring::new(8).unwrap();
    let buffer = AlignedBuffer::zeroed(SMALL as usize);
    let indices: Vec<_> =
        std::iter::from_fn(|| ring.register(buffer.start(), buffer.len())).take(1000).collect();
    assert_eq!(indices, (0..indices.len() as u16).collect::<Vec<_>>());
    assert!((8..1000).contains(&indices.len()), "{}", indices.len());
}

#[test]
fn what_is_registered_has_its_limit_whatever_the_size_of_a_block() {
    for (scratch_bytes, registered) in
        [(64, 16), (192, 4), (256, 4), (4, 16)].map(|(kib, count)| (kib << 10, count))
    {
        let mut ring = super::super::Ring::new(8).unwrap();
        let budget = Arc::new(crate::driver::buffers::BufferBudget::new(1 << 30));
        let (mut buffers, mut slabs) = (BufferPool::new(64 << 20, budget), Slabs::default());
        for _ in 0..FILLS_FROM {
            slabs.grow(scratch_bytes, &mut buffers, &mut ring);
            assert!(slabs.slabs.is_empty());
            slabs.count_fill();
        }
        ring.refuse_buffers_after(2);
        slabs.grow(scratch_bytes, &mut buffers, &mut ring);
        (0..REQUESTS_FROM).for_each(|_| slabs.count_request());
        slabs.grow(scratch_bytes, &mut buffers, &mut ring);
        let taken: Vec<_> = (0..20).map(|_| buffers.take(scratch_bytes)).collect();
        let found = taken.iter().filter(|buffer| slabs.find(buffer).is_some()).count();
        assert_eq!(found, registered, "{scratch_bytes}");
        assert!(slabs.zeros().is_some(), "the third was refused, not this");
        assert_eq!(slabs.find(&buffers.take(SMALL as usize)), None);
    }
}
