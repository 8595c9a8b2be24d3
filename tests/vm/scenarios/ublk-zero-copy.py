"""A device with zero copy: mixed sizes with checksums while snapshots are taken, a load that keeps book, memory in odd places, partial blocks, a
mounted filesystem, and a daemon killed under it. That nothing is copied in place is shown by the device's counters.

On a kernel that does not lend requests, and for a pool whose devices outlive their daemon, the option is refused, and all else works.
"""

import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path

from contents import Contents, load
from devices import Device, ram_disks
from filesystem import compare, fill, mounted
from thin import BIN, Failed, check, main, run, say
from ublk import UblkPool, excuse_false_alarm, load_module, no_devices, refused

MIB = 1 << 20
BLOCK = 64 << 10
VOLUME_BYTES = 48 * MIB


def is_to_be_had():
    """What the doctor says of it."""
    done = subprocess.run([BIN / "uthin", "doctor", "--json"], capture_output=True, text=True, timeout=60)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["ublk"]["findings"]}
    return "can be had" in found["zero_copy"]["message"]


def refusals(pool, lends):
    """Whoever asks for what cannot be gets one clear error, and a device without it."""
    if not lends:
        refused(1, "there is no zero copy here", "export", pool.path / "v1", "--ublk", "--zero-copy")
    else:
        pool.close()
        pool.serve("--journal", "file")
        refused(5, "no zero copy", "export", pool.path / "v1", "--ublk", "--zero-copy")
    no_devices("after a refusal")
    device = pool.export("v1")
    if "zero_copy" in pool.exports()["v1"]:
        raise Failed("a device that copies has counters of what it does not")
    with Device(device) as opened:
        opened.pwrite(b"\x11" * BLOCK, 0)
    pool.unexport("v1")
    if lends:
        pool.close()
        pool.serve()


def moved(pool, volume="v1"):
    counters = pool.exports()[volume]["zero_copy"]
    return counters["in_place_bytes"], counters["copied_bytes"]


def fio_and_snapshots(pool, folder, device):
    """All sizes from a sector to the largest request, in random order, read back by checksum; snapshots come and go meanwhile."""
    stop, taken = threading.Event(), []

    def snapshots():
        while not stop.wait(0.5):
            name = f"s{len(taken)}"
            pool.snapshot("v1", name)
            taken.append(name)
            if len(taken) > 2:
                pool.delete(taken[-3])

    thread = threading.Thread(target=snapshots)
    thread.start()
    words = ["fio", "--name=mixed", f"--filename={device}", "--ioengine=io_uring", "--direct=1", "--iodepth=32", "--rw=randwrite"]
    words += ["--bsrange=512-512k", "--blockalign=512", f"--size={VOLUME_BYTES}", "--loops=3", "--verify=crc32c", "--verify_fatal=1"]
    try:
        run(*words, "--output-format=json", f"--output={folder}/fio.json", timeout=300)
    finally:
        stop.set()
        thread.join()
    told = (Path(folder) / "fio.json").read_text()
    job = json.loads(told[told.index("{") :])["jobs"][0]  # notes come before
    if job["error"] or not job["read"]["io_bytes"]:
        raise Failed(f"fio: error {job['error']}")
    if len(taken) < 2:
        raise Failed(f"{len(taken)} snapshots: this shows nothing")
    for name in taken[-2:]:
        pool.delete(name)
    say(f"fio: {job['write']['total_ios']} writes, {len(taken)} snapshots")


def in_place(pool, opened):
    """Overwritten and read in place, nothing is copied, wherever the request begins and its memory lies."""
    opened.pwrite(b"\x22" * (4 * BLOCK), 0)
    before = moved(pool)
    count = 0
    for at, length, offset in [(0, 4 * BLOCK, 0), (BLOCK - 512, BLOCK, 512), (3 * 512, 512, 1536), (4096, 4096, 3584)]:
        data = random.Random(at).randbytes(length)
        opened.buffer[offset : offset + length] = data
        with memoryview(opened.buffer) as view, view[offset : offset + length] as part:
            if os.pwritev(opened.handle, [part], at) != length:
                raise Failed("a short write")
        opened.buffer[offset : offset + length] = bytes(length)
        with memoryview(opened.buffer) as view, view[offset : offset + length] as part:
            if os.preadv(opened.handle, [part], at) != length or bytes(part) != data:
                raise Failed(f"{length} bytes at {at}, in memory at {offset}: not what was written")
        count += 2 * length
    after = moved(pool)
    if (after[0] - before[0], after[1] - before[1]) != (count, 0):
        raise Failed(f"{count} bytes moved in place; the counters went from {before} to {after}")


def keeping_book(pool, device, chance, held):
    """Snapshots hold what the volume did, whatever is written later."""
    with Device(device) as opened:
        held["v1"].bytes[:] = opened.pread(VOLUME_BYTES, 0)
        for name in ("one", "two"):
            load(opened, held["v1"], chance, 150, BLOCK)
            pool.snapshot("v1", name)
            held[name] = held["v1"].copy()
        load(opened, held["v1"], chance, 150, BLOCK)
        held["v1"].compare(opened, "written, discarded and shared")
        opened.flush()
    with Device(pool.export("one", "--zero-copy")) as opened:
        held["one"].compare(opened, "a snapshot, without copies")
    pool.unexport("one")
    compared(pool, held)


def compared(pool, held):
    for name, contents in held.items():
        through_nbd = pool.open(name)
        contents.compare(through_nbd, f"{name} through NBD")
        through_nbd.shutdown()


def killed(pool, device, folder):
    """The daemon dies while requests are lent to it; the device goes, and the machine lives."""
    words = [f"--filename={device}", "--rw=randwrite", "--bs=64k", "--direct=1", "--iodepth=32", "--time_based", "--runtime=60"]
    fio = subprocess.Popen(["fio", "--name=hurt", "--ioengine=io_uring", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    time.sleep(4)
    if fio.poll() is not None:
        raise Failed("fio ended while the daemon was alive")
    pool.kill()
    fio.wait(timeout=60)
    end = time.monotonic() + 30
    while (Path("/sys/block") / device.name).exists():
        if time.monotonic() > end:
            raise Failed("a device outlives its daemon")
        time.sleep(0.05)


def story(folder, _):
    metadata, data = ram_disks(2, 512 * MIB)[::-1]
    load_module()
    lends = is_to_be_had()
    chance = random.Random(6)
    held = {"v1": Contents(VOLUME_BYTES)}
    with UblkPool(folder, metadata, data, "--journal", "none") as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.create("other", VOLUME_BYTES)
        pool.serve()
        refusals(pool, lends)
        if not lends:
            pool.close()
            check(metadata)
            print("this kernel does not lend requests: refused, and devices work without")
            return
        device = pool.export("v1", "--zero-copy", "--queues", "2", "--depth", "32")
        with Device(device) as opened:
            in_place(pool, opened)
        fio_and_snapshots(pool, folder, device)
        keeping_book(pool, device, chance, held)
        in_place_bytes, copied_bytes = moved(pool)
        if in_place_bytes < copied_bytes or not copied_bytes:
            raise Failed(f"moved in place: {in_place_bytes} bytes, copied: {copied_bytes}")
        say(f"moved in place: {in_place_bytes >> 20} MiB, copied: {copied_bytes >> 20} MiB")

        other = pool.export("other", "--zero-copy")
        run("mkfs.ext4", "-q", other)
        live = mounted(other, Path(folder) / "live")
        kept = fill(live, chance, 30)
        run("umount", live)
        compare(mounted(other, live), kept, "a filesystem")
        run("umount", live)
        killed(pool, other, folder)

        pool.serve("--small-writes", "partial")
        no_devices("left by the killed daemon")
        compared(pool, held)
        keeping_book_again = pool.export("v1", "--zero-copy")
        with Device(keeping_book_again) as opened:
            load(opened, held["v1"], chance, 200, BLOCK)
            held["v1"].compare(opened, "with partial blocks")
            opened.flush()
        compared(pool, held)
        pool.unexport("v1")
        no_devices("at the end")
        pool.close()
        run(BIN / "uthin-fsck", "check", metadata)
    excuse_false_alarm()
    print(f"{in_place_bytes >> 20} MiB moved without a copy, {copied_bytes >> 20} MiB with one: every byte is right, killed or not")


if __name__ == "__main__":
    main(story)
