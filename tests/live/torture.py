#!/usr/bin/env python3
"""Several NBD clients write stamped sectors, flush and snapshot; the daemon is killed with SIGKILL; whatever was flushed is there.

    torture.py [ROUNDS]     (default 20)

Each round: serve, load for a moment, kill -9, three checkers on the metadata, serve again, compare every sector of the volume and
of every snapshot with the model.
"""

import random
import sys
import threading
import time

import nbd

from pool import Failed, Pool, main, uthin
from stamps import SECTOR, Model, compare_snapshot, sectors_of, stamps_in

VOLUME_BYTES = 48 << 20
SECTORS = VOLUME_BYTES // SECTOR
WRITERS = 4
STRIPE = 32  # sectors: four writers share each 64 KiB block


def connect(pool, volume):
    handle = nbd.NBD()
    handle.connect_uri(pool.uri(volume))
    return handle


def write_forever(pool, model, number, seed, stop, wrong):
    """One client: writes in its own stripes, flushes now and then, and ends when the daemon dies."""
    chance = random.Random(seed)
    try:
        client = connect(pool, "v1")
        while not stop.is_set():
            if chance.random() < 0.03:
                covers = model.flush_begins()
                client.flush()
                model.flush_ends(covers)
                continue
            stripe = (chance.randrange(SECTORS // STRIPE // WRITERS) * WRITERS + number) * STRIPE
            first = stripe + chance.choice([0, 8, chance.randrange(STRIPE)])
            count = min(chance.choice([1, 8, 8, 8, STRIPE]), stripe + STRIPE - first)
            forced = chance.random() < 0.02
            stamp = model.write_begins(first, count)
            client.pwrite(sectors_of(stamp, count), first * SECTOR, nbd.CMD_FLAG_FUA if forced else 0)
            model.write_ends(first, count, stamp, forced)
    except nbd.Error as error:
        if not stop.is_set():
            wrong.append(f"writer {number}: {error}")


def read_all(pool, volume):
    client = connect(pool, volume)
    step = 4 << 20
    data = b"".join(bytes(client.pread(step, at)) for at in range(0, VOLUME_BYTES, step))
    client.shutdown()
    return stamps_in(data)


def load(pool, model, chance, snapshots, seconds, number):
    """Writers and a snapshot or two, then SIGKILL in the middle of it."""
    stop, wrong = threading.Event(), []
    writers = [
        threading.Thread(target=write_forever, args=(pool, model, n, chance.random(), stop, wrong)) for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    end = time.monotonic() + seconds
    taken = 0
    while time.monotonic() < end and not wrong:
        if taken < 2 and chance.random() < 0.5:
            name = f"s{number}-{taken}"
            begun = model.snapshot_begins()
            uthin("volume", "snapshot", pool.path / "v1", name)
            snapshots[name] = model.snapshot_ends(begun)
            taken += 1
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    stop.set()
    pool.kill()
    for writer in writers:
        writer.join(timeout=30)
    if wrong:
        raise Failed(f"while the daemon was alive: {wrong}\n{pool.log_tail()}")


def compare(pool, model, snapshots, wrong):
    complaint = model.after_crash(read_all(pool, "v1"))
    if complaint:
        raise Failed(f"{wrong}: v1: {complaint}")
    for name, contents in snapshots.items():
        found = read_all(pool, name)
        complaint = compare_snapshot(contents, found)
        if complaint:
            raise Failed(f"{wrong}: {name}: {complaint}")
        snapshots[name] = (found, {})  # from now on it is what it is


def story(folder, arguments):
    rounds = int(arguments[0]) if arguments else 20
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Pool(folder, "1G") as pool:
        uthin("volume", "create", pool.path / "v1", "--size", str(VOLUME_BYTES))
        model, snapshots = Model(SECTORS), {}
        pool.serve()
        for number in range(rounds):
            load(pool, model, chance, snapshots, 0.4 + chance.random() * 1.2, number)
            pool.check()
            opened = pool.serve()
            compare(pool, model, snapshots, f"seed {seed} round {number}")
            while len(snapshots) > 4:
                name = chance.choice(sorted(snapshots))
                uthin("volume", "delete", pool.path / name)
                del snapshots[name]
            print(f"round {number}: {model.next_stamp} writes so far, reopened in {opened:.2f} s", flush=True)
        pool.close()
        pool.check()
    print(f"{rounds} rounds, {model.next_stamp} writes: nothing lost")


if __name__ == "__main__":
    sys.exit(main(story))
