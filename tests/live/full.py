#!/usr/bin/env python3
"""The filesystem that holds a pool is full: data writes get ENOSPC, and everything that gives space back works.

    full.py tmpfs|ext4

Mounts a small filesystem in a mount namespace of its own (and a user namespace, for who is not root). Exit status 77 where that
cannot be done: only root mounts an ext4.
"""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import nbd

from pool import Failed, Pool, main, uthin

MIB = 1 << 20
BLOCK = 64 << 10
CANNOT = 77


def enter_namespace():
    """Runs this script again where mounting changes nothing for others."""
    if os.environ.get("UTHIN_FULL_INSIDE"):
        return
    unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        print("no mount namespace can be made here")
        sys.exit(CANNOT)
    environment = dict(os.environ, UTHIN_FULL_INSIDE="1")
    os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], environment)


def mount(kind, folder):
    """A filesystem of 160 MiB."""
    place = Path(folder) / "full"
    place.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=160M", "tmpfs", place]
    else:
        image = Path(folder) / "image"
        with open(image, "wb") as file:
            file.truncate(160 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        command = ["mount", "-o", "loop", image, place]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{kind} cannot be mounted here: {done.stderr.strip()}")
        sys.exit(CANNOT)
    return place


def fill(place, name):
    """Takes all the space that is left."""
    with open(place / name, "wb", buffering=0) as file:
        for step in (MIB, 4096, 512):
            try:
                while True:
                    file.write(b"\xee" * step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        try:
            os.fsync(file.fileno())
        except OSError:
            pass


def connect(pool, volume):
    handle = nbd.NBD()
    handle.connect_uri(pool.uri(volume))
    return handle


def write_until_refused(pool, client, first_block, limit):
    """Writes one sector into each hole from a block on; the block that was refused."""
    for block in range(first_block, limit):
        try:
            client.pwrite(b"\xdd" * 512, block * BLOCK)
        except nbd.Error as error:
            if error.errno != "ENOSPC":
                raise Failed(f"a write on a full filesystem got {error}\n{pool.log_tail()}")
            return block
    raise Failed("the filesystem does not get full")


def require_working(pool, when):
    status = pool.status()
    if status["mode"] in ("fail", "ro"):
        raise Failed(f"{when}: the pool has failed: {status['failure']}\n{pool.log_tail()}")


def expect(client, byte, at, what):
    if bytes(client.pread(BLOCK, at)) != byte * BLOCK:
        raise Failed(f"{what} reads other bytes at {at}")


def write_eventually(client, block):
    """What was refused works once space has come back, which takes the daemon a moment."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return client.pwrite(b"\xdd" * BLOCK, block * BLOCK)
        except nbd.Error as error:
            if error.errno != "ENOSPC" or time.monotonic() > deadline:
                raise Failed(f"a write after the deletion got {error}")
            time.sleep(0.05)


def story(folder, arguments):
    place = mount(arguments[0], folder)
    try:
        full_filesystem(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def full_filesystem(place):
    with Pool(place, "1G", "--metadata-size", "16M") as pool:
        for volume in ("kept", "junk", "junk2"):
            uthin("volume", "create", pool.path / volume, "--size", "512M")
        pool.serve()
        kept, junk = connect(pool, "kept"), connect(pool, "junk")
        for block in range(160):
            kept.pwrite(b"\xaa" * BLOCK, block * BLOCK)
            junk.pwrite(b"\xbb" * BLOCK, block * 3 * BLOCK)
        kept.flush()
        junk.shutdown()
        # Their deletions do not fit behind them into the catalog's log: all of it is written anew on the way.
        many = [f"many{number}" for number in range(600)]
        pool.ask(*(("POST", "/v1/volumes/junk2/snapshot", {"name": name}) for name in many))
        fill(place, "filler")
        before = (pool.path / "catalog.json").read_text()
        pool.ask(*(("DELETE", f"/v1/volumes/{name}", None) for name in many))
        require_working(pool, "after many deletions")
        after = (pool.path / "catalog.json").read_text()
        if before == after or '"log"' not in after:
            raise Failed("the log of the catalog did not begin anew")
        fill(place, "filler3")
        status = pool.status()
        left, notes = status["data"]["filesystem_free_bytes"], " ".join(status["notes"])
        if left > MIB or "the filesystem that holds the data has" not in notes:
            raise Failed(f"with the filesystem full, the status says {left} bytes left, and {notes!r}")

        # Many transactions, each of which writes metadata to blocks that it has not used before.
        hole = write_until_refused(pool, kept, 1000, 4000)
        for round in range(30):
            kept.pwrite(b"\xaa" * BLOCK, round * BLOCK)
            uthin("volume", "snapshot", pool.path / "junk", f"s{round}")
            kept.trim(BLOCK, (100 + round) * BLOCK)
            kept.flush()
            # One block came back, and is as good as any. Whatever else is free on the filesystem may be used as well.
            hole = write_until_refused(pool, kept, hole, 4000)
            kept.flush()
            require_working(pool, f"round {round}")
        uthin("volume", "set", pool.path / "kept", "--label", "why=" + "x" * 200)
        for round in range(30):
            uthin("volume", "delete", pool.path / f"s{round}")
        require_working(pool, "after the snapshots went")
        uthin("volume", "delete", pool.path / "junk")
        write_eventually(kept, hole)
        kept.flush()
        for block in range(100):
            expect(kept, b"\xaa", block * BLOCK, "a volume on a full filesystem")

        # Killed and opened again while it is full, and nobody serves it.
        fill(place, "filler2")
        kept.shutdown()
        pool.kill()
        uthin("volume", "delete", pool.path / "junk2")
        pool.serve()
        kept = connect(pool, "kept")
        expect(kept, b"\xdd", hole * BLOCK, "what was flushed")
        kept.trim(BLOCK, 0)
        kept.flush()
        require_working(pool, "after opening again")
        kept.shutdown()
        pool.close()
        pool.check()
        uthin("volume", "delete", pool.path / "kept")
        left = os.statvfs(place)
        if left.f_bavail * left.f_frsize < 8 * MIB:
            raise Failed("the space of the deleted volumes has not come back")


if __name__ == "__main__":
    enter_namespace()
    main(story)
