"""The kernel's own NBD client on uthin: ext4 made, mounted, filled, trimmed, checked, and a snapshot of it mounted.

Over the unix socket and over TCP; the snapshot is taken while the filesystem is in use, so that mounting it replays its journal.
"""

import hashlib
import os
import random
import time
from pathlib import Path

from devices import ram_disks
from thin import Failed, UthinPool, check, main, run, say, uthin

MIB = 1 << 20
VOLUME_BYTES = 96 * MIB


def attach(number, volume, *where):
    """/dev/nbdN, connected to an export."""
    device = Path(f"/dev/nbd{number}")
    run("nbd-client", *where, device, "-name", volume, "-block-size", "512")
    end = time.monotonic() + 20
    while int((Path("/sys/block") / device.name / "size").read_text()) == 0:
        if time.monotonic() > end:
            raise Failed(f"{device} does not come up for {volume}")
        time.sleep(0.1)
    return device


def detach(device):
    run("nbd-client", "-d", device)


def mounted(device, folder):
    folder.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", device, folder)
    return folder


def fill(folder, chance, count):
    """Files of all sizes; returns their checksums by name."""
    sums = {}
    for number in range(count):
        data = chance.randbytes(chance.choice([0, 100, 5000, 70_000, 800_000]))
        name = f"file-{chance.randrange(1 << 40):010x}-{number}"
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    return sums


def compare(folder, sums, what):
    found = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
    if found != sums:
        wrong = sorted(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))
        raise Failed(f"{what}: {len(wrong)} files differ, {wrong[0]} is the first")


def used(pool):
    return pool.status()["data"]["used_bytes"]


def limits(device):
    """What the kernel made of our export."""
    queue = Path("/sys/block") / device.name / "queue"
    names = ("discard_max_bytes", "write_zeroes_max_bytes", "write_cache", "fua", "logical_block_size")
    found = {name: (queue / name).read_text().strip() for name in names}
    if found["write_cache"] != "write back" or found["discard_max_bytes"] == "0":
        raise Failed(f"{device}: no cache to flush, or no discard: {found}")
    return found


def fill_and_trim(pool, device, folder, chance):
    """Files come and go; their blocks do too. Returns the checksums of those that stay."""
    kept = fill(folder, chance, 40)
    os.sync()
    before = used(pool)
    doomed = folder / "doomed"
    doomed.write_bytes(chance.randbytes(20 * MIB))
    os.sync()
    full = used(pool)
    doomed.unlink()
    os.sync()
    say(run("fstrim", "-v", folder).strip())
    os.sync()
    after = used(pool)
    say(f"used: {before >> 20} MiB, {full >> 20} MiB with a large file, {after >> 20} MiB when it was gone and trimmed")
    if full - before < 19 * MIB or full - after < 19 * MIB:
        raise Failed(f"blocks did not come and go with the file: used {before}, {full}, {after} bytes")
    return kept


def story(folder, _):
    run("modprobe", "nbd", "max_part=0")
    metadata, data = ram_disks(2, 256 * MIB)[::-1]
    chance = random.Random(8)
    here = Path(folder)
    tcp = ["127.0.0.1", "10809"]
    with UthinPool(folder, metadata, data) as pool:
        unix = ["-unix", pool.path / "nbd.sock"]
        pool.create("v1", VOLUME_BYTES)
        pool.serve("--nbd", f"unix:{pool.path}/nbd.sock", "--nbd", f"tcp:{':'.join(tcp)}")

        device = attach(0, "v1", *unix)
        say("attached:", limits(device))
        run("mkfs.ext4", "-q", device)
        live = mounted(device, here / "live")
        kept = fill_and_trim(pool, device, live, chance)
        pool.snapshot("v1", "s1")
        more = fill(live, chance, 30)

        snapshot = attach(1, "s1", *tcp)
        compare_snapshot(snapshot, here, kept)
        compare(live, kept | more, "the filesystem in use")
        run("umount", live)
        run("fsck.ext4", "-f", "-n", device)
        detach(device)
        detach(snapshot)

        device = attach(2, "v1", *tcp)
        compare(mounted(device, live), kept | more, "the filesystem over TCP")
        run("umount", live)
        detach(device)
        uthin("volume", "delete", pool.path / "s1")
        pool.wait_for_deletions()
        pool.close()
        check(metadata)
    print(f"ext4 on /dev/nbd*: {len(kept | more)} files, trimmed, snapshotted in use, over unix and TCP: all there")


def compare_snapshot(device, here, kept):
    """The snapshot was taken of a filesystem in use: mounting it replays the journal, then it is sound."""
    folder = mounted(device, here / "snapshot")
    if f"EXT4-fs ({device.name}): recovery complete" not in run("dmesg"):
        raise Failed("the snapshot of a filesystem in use had no journal to replay: it is none")
    compare(folder, kept, "the snapshot's filesystem")
    (folder / "written").write_bytes(b"snapshots can be written")
    run("umount", folder)
    run("fsck.ext4", "-f", "-n", device)
    say("the snapshot's filesystem is sound")


if __name__ == "__main__":
    main(story)
