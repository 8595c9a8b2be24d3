#!/usr/bin/env python3
"""Several NBD clients write stamped sectors, discard, zero and flush, and volumes come and go, when the daemon is killed with SIGKILL:
whatever was acknowledged as durable is there.

    torture.py [ROUNDS [SEED [partial] [journal]]]     (default 20, and a seed by chance, which is told; with partial blocks; with
                                                        a journal, by which whatever was acknowledged is there, flushed or not)

Each round: serve, load for a moment, kill -9, three checkers on the metadata, serve again (now and then killed in that, too), compare every
sector of the volume and of every snapshot with the model, and the volumes that there are with those that there may be. At the end all is
deleted, and the pool must be empty. A seed decides what is done and for how long; the moment that the kill finds is the machine's. UTHIN_KEEP
names a directory that gets the pool of a round that failed.
"""

import json
import random
import sys
import threading
import time

import nbd

from pool import Failed, Pool, main, uthin
from stamps import SECTOR, ZEROS, Model, compare_snapshot, sectors_of, stamps_in

VOLUME_BYTES = 32 << 20
SECTORS = VOLUME_BYTES // SECTOR
WRITERS = 4
BLOCK = 128  # sectors of the pool's blocks
STRIPE = 32  # sectors: in the first three quarters of the volume, four writers share each block
SHARED = SECTORS * 3 // 4
OWN = (SECTORS - SHARED) // WRITERS  # sectors at the end that are each writer's own: where it can discard whole blocks
SNAPSHOTS_KEPT = 4
SCRATCH_BYTES = 8 << 20


def connect(pool, volume):
    handle = nbd.NBD()
    handle.connect_uri(pool.uri(volume))
    return handle


class Ending:
    """How a load comes to its end: the daemon (or its disk) is about to die, whereupon errors are in order; or it is told to."""

    def __init__(self):
        self.dying = threading.Event()
        self.stopped = threading.Event()

    def excuses_errors(self):
        return self.dying.is_set() or self.stopped.is_set()


def write_forever(pool, model, number, seed, ending, wrong, volume="v1"):
    """One client: ends with the first error, or when it is told to."""
    chance = random.Random(seed)
    try:
        client = connect(pool, volume)
        while not ending.stopped.is_set():
            dice = chance.random()
            if dice < 0.03:
                covers = model.flush_begins()
                client.flush()
                model.flush_ends(covers)
            elif dice < 0.75:
                _write_shared(client, model, number, chance)
            else:
                _change_own(client, model, number, chance)
    except nbd.Error as error:
        if not ending.excuses_errors():
            wrong.append(f"writer {number}: {error}")


def _write_shared(client, model, number, chance):
    """A write in the writer's stripe of a block that others write, too."""
    stripe = (chance.randrange(SHARED // STRIPE // WRITERS) * WRITERS + number) * STRIPE
    first = stripe + chance.choice([0, 8, chance.randrange(STRIPE)])
    _write(client, model, first, min(chance.choice([1, 8, 8, 8, STRIPE]), stripe + STRIPE - first), chance)


def _change_own(client, model, number, chance):
    """A write over several blocks, zeros, or a discard, in the part that is this writer's alone."""
    begin = SHARED + number * OWN
    first = chance.randrange(OWN)
    count = min(chance.choice([1, 8, BLOCK, 3 * BLOCK]), OWN - first)
    dice = chance.random()
    if dice < 0.5:
        return _write(client, model, begin + first, count, chance)
    if dice < 0.8:  # whole blocks: of others nothing would have to change
        first = first // BLOCK * BLOCK
        count = min(chance.choice([1, 1, 4]) * BLOCK, OWN - first)
        client_does = client.trim
    else:
        client_does = client.zero
    model.write_begins(begin + first, count, ZEROS)
    client_does(count * SECTOR, (begin + first) * SECTOR)
    model.write_ends(begin + first, count, ZEROS)


def _write(client, model, first, count, chance):
    forced = chance.random() < 0.02
    stamp = model.write_begins(first, count)
    client.pwrite(sectors_of(stamp, count), first * SECTOR, nbd.CMD_FLAG_FUA if forced else 0)
    model.write_ends(first, count, stamp, forced)


def read_all(pool, volume):
    client = connect(pool, volume)
    step = 4 << 20
    data = b"".join(bytes(client.pread(step, at)) for at in range(0, VOLUME_BYTES, step))
    client.shutdown()
    return stamps_in(data)


class Torture:
    """A pool's volumes, and what is known of them: v1, which is written, its snapshots, and what an operation that was cut off left open."""

    def __init__(self, pool, chance, others=(), keeps_all=False):
        self.pool = pool
        self.chance = chance
        self.others = others  # volumes that are none of our business
        self.model = Model(SECTORS, keeps_all)
        self.snapshots = {}  # by name, what they hold
        self.being_taken = {}  # likewise, of those that may be there or not
        self.being_deleted = {}  # likewise; None for a volume about whose contents nobody cares
        self.numbers = 0
        self.operations = 0

    def load(self, seconds, end=None):
        """Writers and an administrator; after `seconds`, `end()` (SIGKILL) in the middle of it. Returns when all have noticed."""
        ending, wrong = Ending(), []
        writers = [
            threading.Thread(target=write_forever, args=(self.pool, self.model, n, self.chance.random(), ending, wrong))
            for n in range(WRITERS)
        ]
        busy = [*writers, threading.Thread(target=self._administer, args=(random.Random(self.chance.random()), ending, wrong))]
        for thread in busy:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not wrong:
            time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        ending.dying.set()
        (end or self.pool.kill)()
        ending.stopped.set()
        for thread in busy:
            thread.join(timeout=60)
            if thread.is_alive():
                raise Failed(f"a client of the daemon hangs\n{self.pool.log_tail()}")
        if wrong:
            raise Failed(f"while the daemon was alive: {wrong}\n{self.pool.log_tail()}")

    def _administer(self, chance, ending, wrong):
        while not ending.stopped.wait(chance.random() * 0.3):
            try:
                chance.choice([self._take, self._take, self._delete, self._come_and_go])(chance, ending)
                self.operations += 1
            except (Failed, nbd.Error) as error:
                if not ending.excuses_errors():
                    wrong.append(f"a command: {error}")
                return

    def _name(self, kind):
        self.numbers += 1
        return f"{kind}-{self.numbers}"

    def _take(self, _, ending):
        if len(self.snapshots) >= SNAPSHOTS_KEPT:
            return
        name = self._name("s")
        begun = self.being_taken[name] = self.model.snapshot_begins()
        uthin("volume", "snapshot", self.pool.path / "v1", name)
        if ending.dying.is_set():
            return  # a command that finds no daemon does it itself, and then it is of what the kill has left
        self.snapshots[name] = self.model.snapshot_ends(begun)
        del self.being_taken[name]

    def _delete(self, chance, _):
        if not self.snapshots:
            return
        name = chance.choice(sorted(self.snapshots))
        self.being_deleted[name] = self.snapshots.pop(name)
        uthin("volume", "delete", self.pool.path / name)
        del self.being_deleted[name]

    def _come_and_go(self, chance, _):
        """A volume that is made, written and deleted: its blocks are there for others at once."""
        name = self._name("scratch")
        self.being_deleted[name] = None
        uthin("volume", "create", self.pool.path / name, "--size", str(SCRATCH_BYTES))
        client = connect(self.pool, name)
        for _ in range(20):
            client.pwrite(b"\xff" * (BLOCK * SECTOR), chance.randrange(SCRATCH_BYTES // SECTOR // BLOCK) * BLOCK * SECTOR)
        client.shutdown()
        uthin("volume", "delete", self.pool.path / name)
        del self.being_deleted[name]

    def volumes(self):
        listed = json.loads(uthin("volume", "list", self.pool.path, "--json"))["volumes"]
        return {volume["name"]: volume for volume in listed}

    def settle(self, when):
        """After a crash: there must be the volumes that were acknowledged, and no others but those in doubt."""
        listed = self.volumes().keys() - {"v1", *self.others}
        in_doubt = self.being_taken.keys() | self.being_deleted.keys()
        if self.snapshots.keys() - listed or listed - self.snapshots.keys() - in_doubt:
            raise Failed(f"{when}: there are {sorted(listed)}, not {sorted(self.snapshots)}; in doubt: {sorted(in_doubt)}")
        for name in self.being_taken.keys() & listed:
            self.snapshots[name] = self.model.or_after_crash(self.being_taken[name])
        for name in self.being_deleted.keys() & listed:
            if self.being_deleted[name]:
                self.snapshots[name] = self.being_deleted[name]
            else:
                uthin("volume", "delete", self.pool.path / name)
        self.being_taken.clear()
        self.being_deleted.clear()

    def compare(self, when, read):
        """After a crash, and `settle`: every sector, as `read(volume)` tells their stamps. What is found is the truth from now on."""
        complaint = self.model.after_crash(read("v1"))
        if complaint:
            raise Failed(f"{when}: v1: {complaint}")
        for name, contents in self.snapshots.items():
            found = read(name)
            complaint = compare_snapshot(contents, found)
            if complaint:
                raise Failed(f"{when}: {name}: {complaint}")
            self.snapshots[name] = (found, {})

    def compare_served(self, when):
        """Both, by a daemon's clients."""
        self.settle(when)
        self.compare(when, lambda volume: read_all(self.pool, volume))

    def delete_all(self):
        """Nothing may be left in the pool, which is served."""
        for name in self.volumes():
            uthin("volume", "delete", self.pool.path / name)
        deadline = time.monotonic() + 30
        while (status := self.pool.status())["deleting"] or status["data"]["used_bytes"]:
            if time.monotonic() > deadline:
                raise Failed(f"without volumes, {status['data']['used_bytes']} bytes are in use")
            time.sleep(0.1)


def serve(pool, chance):
    """Starts the daemon; at times the first one is killed before it is ready."""
    if chance.random() < 0.2:
        pool.start()
        time.sleep(chance.random() * 0.06)
        pool.kill()
        pool.check()
    pool.serve()


def story(folder, arguments):
    rounds = int(arguments[0]) if arguments else 20
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    begin = time.monotonic()
    ways = {"partial": ["--small-writes", "partial"], "journal": ["--journal", "file"]}
    options = [word for way in arguments[2:] for word in ways[way]]
    if "journal" not in arguments[2:]:
        options += ["--journal", "none"]
    with Pool(folder, "1G", *options) as pool:
        uthin("volume", "create", pool.path / "v1", "--size", str(VOLUME_BYTES))
        torture = Torture(pool, chance, keeps_all="journal" in arguments[2:])
        pool.serve()
        for number in range(rounds):
            try:
                torture.load(0.1 + chance.random() * 1.4)
                pool.check()
                serve(pool, chance)
                torture.compare_served("after the kill")
            except (Failed, nbd.Error) as wrong:
                raise Failed(f"seed {seed} round {number}: {wrong}\n{pool.log_tail()}") from None
            print(f"round {number}: {torture.model.next_stamp} writes and {torture.operations} commands so far", flush=True)
        torture.delete_all()
        pool.close()
        pool.check()
    took = time.monotonic() - begin
    print(f"{rounds} rounds, {torture.model.next_stamp} writes, {torture.operations} commands in {took:.0f} s: nothing lost")


if __name__ == "__main__":
    sys.exit(main(story))
