//! Requests in lent memory, on real files: the memory is a file in memory, so that both ways lead to the same bytes.

use super::*;
use crate::driver::testing::{BLOCK, Bench, Client, id};
use crate::engine::{IoError, Kind, Request, Tag, Volume};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

const SHELF_BYTES: usize = 1 << 20;
const WRITE: Kind = Kind::Write { fua: false };

/// Memory to be lent, under index 0.
struct Shelf {
    file: Arc<File>,
    start: *mut u8,
    index: u16,
}

impl Shelf {
    fn new(client: &mut Client, index: u16) -> Shelf {
        let file = memory_file(SHELF_BYTES as u64);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses a place where nothing is; it is never unmapped.
        let start =
            unsafe { mmap(std::ptr::null_mut(), SHELF_BYTES, protection, MapFlags::SHARED, &*file, 0) };
        let start = start.expect("mapped").cast();
        client.ring.make_room_for_lent(1).expect("this kernel can");
        // SAFETY: the mapping is there for ever, and its bytes are read through the file only.
        unsafe { client.ring.lend(0, start, SHELF_BYTES) };
        Shelf { file, start, index }
    }

    /// Does a request in it; what a write writes is put there before, what a read has read is returned.
    fn run(
        &self,
        client: &mut Client,
        volume: &Arc<Volume>,
        kind: Kind,
        offset_bytes: u64,
        bytes: &mut [u8],
    ) -> Result<(), IoError> {
        self.file.write_all_at(bytes, 0).expect("there is room");
        let length_bytes = bytes.len() as u64;
        let request = Request { tag: Tag(77), volume: volume.clone(), kind, offset_bytes, length_bytes };
        let (file, address) = (self.file.clone(), self.start as u64);
        let lent = Lent { index: self.index, address, file, file_offset_bytes: 0, length_bytes };
        let result = finish(client, request, lent);
        self.file.read_exact_at(bytes, 0).expect("they are there");
        result
    }
}

fn memory_file(length: u64) -> Arc<File> {
    let file = memfd_create("lent", MemfdFlags::CLOEXEC).expect("made");
    ftruncate(&file, length).expect("grown");
    Arc::new(File::from(file))
}

fn finish(client: &mut Client, request: Request, lent: Lent) -> Result<(), IoError> {
    client.lane.begin_lent(request, lent, &mut client.ring);
    let mut finished = client.finish_all();
    assert_eq!(finished.len(), 1);
    assert!(finished[0].buffer.is_none());
    finished.remove(0).result
}

fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|index| (index / 512 * 37 + seed * 11 + index % 7) as u8).collect()
}

#[test]
fn what_is_in_place_moves_without_a_copy_and_the_rest_as_well() {
    for index in [0, Lent::NOT_THERE] {
        let bench = Bench::new(64, 1);
        bench.create(1, 32 * BLOCK);
        let lease = bench.pool.open_volume(id(1)).unwrap();
        let (volume, mut client) = (lease.volume(), bench.client());
        let shelf = Shelf::new(&mut client, index);
        let mut expected = vec![0; 8 * BLOCK as usize];
        let put = |expected: &mut Vec<u8>, at: u64, bytes: &[u8]| {
            expected[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        let (unaligned, inside) = (BLOCK - 1024, 2 * BLOCK + 512);
        // Whole blocks go as they are, what is put together with zeros or with the old bytes is copied.
        for (step, (at, length, copied)) in
            [(BLOCK, 3 * BLOCK, 0), (unaligned, 2 * BLOCK, 1024), (inside, 4096, 0), (inside, 4096, 4096)]
                .into_iter()
                .enumerate()
        {
            if step == 3 {
                bench.snapshot(1, 2);
            }
            let mut bytes = pattern(length, step as u64);
            let before = client.lane.lent_moved();
            shelf.run(&mut client, volume, WRITE, at, &mut bytes).unwrap();
            put(&mut expected, at, &bytes);
            let after = client.lane.lent_moved();
            let moved =
                [after.in_place_bytes - before.in_place_bytes, after.copied_bytes - before.copied_bytes];
            match index {
                0 => assert_eq!(moved, [length - copied, copied], "step {step}"),
                _ => assert_eq!(moved, [0, length], "step {step}"),
            }
        }
        assert!(client.read(volume, 0, 8 * BLOCK).unwrap() == expected);
        // Read with holes before and after.
        let (at, mut bytes) = (512, vec![0x5a; 7 * BLOCK as usize]);
        shelf.run(&mut client, volume, Kind::Read, at, &mut bytes).unwrap();
        assert!(bytes == expected[512..512 + 7 * BLOCK as usize]);
        client.end();
        bench.pool.close().unwrap();
    }
}

#[test]
fn a_ring_has_lent_memory_and_its_lane_s_own_beside_each_other() {
    let bench = Bench::new(64, 1);
    bench.create(1, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let (volume, mut client) = (lease.volume(), bench.client());
    let shelf = Shelf::new(&mut client, 0);
    let mut expected = vec![0; 32 * BLOCK as usize];
    // First to holes, then to what a snapshot shares: each is put together in a scratch buffer, which is registered by the end.
    for round in 0..2 {
        for block in 0..32 {
            let (at, length) = (block * BLOCK + 512 * (1 + round), 4096);
            let mut bytes = pattern(length, 40 * round + block);
            shelf.run(&mut client, volume, WRITE, at, &mut bytes).unwrap();
            expected[at as usize..(at + length) as usize].copy_from_slice(&bytes);
        }
        if round == 0 {
            bench.snapshot(1, 2);
        }
    }
    let scratch = client.lane.take_buffer(BLOCK as usize);
    assert!(client.lane.registered(&scratch).is_some_and(|registered| registered.index >= 1));
    client.lane.buffers().give(scratch);
    for block in 0..32 {
        let (at, mut bytes) = (block * BLOCK, vec![0x5a; BLOCK as usize]);
        shelf.run(&mut client, volume, Kind::Read, at, &mut bytes).unwrap();
        assert!(bytes == expected[at as usize..][..BLOCK as usize], "block {block}");
    }
    client.end();
    bench.pool.close().unwrap();
}

#[test]
fn a_copy_that_fails_fails_its_request_and_shows_nobody_else_s_bytes() {
    let bench = Bench::new(64, 1);
    bench.create(1, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let (volume, mut client) = (lease.volume(), bench.client());
    // Scratch buffers have been used before.
    client.write(volume, 0, &pattern(4096, 1)).unwrap();
    let lent = |file: &Arc<File>| Lent {
        index: Lent::NOT_THERE,
        address: 0,
        file: file.clone(),
        file_offset_bytes: 0,
        length_bytes: 4096,
    };
    let request = |kind, offset_bytes| {
        let (tag, volume) = (Tag(77), volume.clone());
        Request { tag, volume, kind, offset_bytes, length_bytes: 4096 }
    };
    let empty = memory_file(0);
    let outcome = finish(&mut client, request(WRITE, 3 * BLOCK + 512), lent(&empty));
    assert_eq!(outcome, Err(IoError::Io));
    assert!(client.read(volume, 3 * BLOCK, BLOCK).unwrap() == vec![0; BLOCK as usize]);
    let read_only = Arc::new(File::open("/dev/null").unwrap());
    for offset in [0, 9 * BLOCK] {
        let outcome = finish(&mut client, request(Kind::Read, offset), lent(&read_only));
        assert_eq!(outcome, Err(IoError::Io), "mapped, and a hole");
    }
    let outcome = finish(&mut client, request(WRITE, 0), lent(&empty));
    assert_eq!(outcome, Err(IoError::Io), "in place");
    assert!(client.read(volume, 0, 4096).unwrap() == pattern(4096, 1));
    client.end();
}
