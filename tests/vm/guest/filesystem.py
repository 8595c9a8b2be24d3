"""What a filesystem on a device must do: files that are there when they should be, blocks that come and go, journals replayed."""

import hashlib
import os
import time
from pathlib import Path

from thin import Failed, run, say

MIB = 1 << 20


def mounted(device, folder, kind="ext4", options="defaults"):
    folder.mkdir(exist_ok=True)
    run("mount", "-t", kind, "-o", options, device, folder)
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
    queue = Path("/sys/block") / device.resolve().name / "queue"
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
    # With a journal a flush is no commit; the next one, within a second, gives the blocks back.
    deadline = time.monotonic() + 10
    while full - (after := used(pool)) < 19 * MIB and time.monotonic() < deadline:
        time.sleep(0.2)
    say(f"used: {before >> 20} MiB, {full >> 20} MiB with a large file, {after >> 20} MiB when it was gone and trimmed")
    if full - before < 19 * MIB or full - after < 19 * MIB:
        raise Failed(f"blocks did not come and go with the file: used {before}, {full}, {after} bytes")
    return kept


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
