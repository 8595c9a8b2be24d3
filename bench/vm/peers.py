"""The kernel's dm-thin, uthin's block devices and libublk's example programs on equal RAM disks, in one boot of the lab's virtual machine; run
by bench/vm/run.

The machine's CPU is emulated in software: only figures of one run compare, and only as ratios. Cases are interleaved (each
round takes every peer once), and medians of the rounds are told: of rates, and of the ratios within each round. The emulator
translates code when it is first run: what is seldom run, as first writes are, is run once beforehand and not counted. 4 KiB requests; a first write to a shared block is one 4 KiB
write into a 64 KiB block of a filled volume from which a snapshot was just taken, each block once, in random order; a first write to a fresh block
likewise, in an empty volume, fresh blocks being zeroed (but for dm-thin with `skip_block_zeroing`); a synchronous one is followed by a flush.
In a storm a snapshot is made every fifth of a second, and deleted before the next. At depth 1 requests are asked for by plain system calls, which is
how most programs do it: io_uring hands an fsync, and what is for a device that cannot say that it would have to wait (dm-thin's), to another thread.

libublk's `null` answers at once and moves nothing, its `loop` hands each request on to a disk: the ublk driver and one ring, and nothing that
is mapped. They have the depth and buffers that uthin's devices have, and one queue: each of several they bind to a CPU of its own, which makes one job
three times slower here. They have no snapshots, so the rows of first writes are not theirs.

Whoever copies a block reads and writes 64 KiB. What the RAM disk alone needs for that is told in two rows of their own.

What a first write to a shared block copies is told by the kernel's trace of what is asked of the data disk, until a flush after the last
write has returned; it is on for that alone. (RAM disks keep no statistics, and a target that does in between would slow every peer.)

A scenario to the lab: what it finds inside is told by tests/vm/guest/run. Results are left in $KEEP.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from devices import Device, ram_disks
from pool import ROOT
from thin import Failed, KernelPool, check, main, run, say
from ublk import UblkPool, load_module, no_devices

MIB = 1 << 20
BLOCK = 64 << 10
VOLUME_BYTES = 512 * MIB
ROUNDS = 3
SECONDS = 3
TRACE = Path("/sys/kernel/tracing")

STEADY = {
    "randread-16": ("random read, depth 16", 16, ["--rw=randread"]),
    "overwrite-16": ("overwrite, depth 16", 16, ["--rw=randwrite"]),
    "randread-1": ("random read, depth 1", 1, ["--rw=randread"]),
    "overwrite-1": ("overwrite, depth 1", 1, ["--rw=randwrite"]),
    "randread-2x16": ("random read, 2 jobs of depth 16", 16, ["--rw=randread", "--numjobs=2"]),
    "overwrite-2x16": ("overwrite, 2 jobs of depth 16", 16, ["--rw=randwrite", "--numjobs=2"]),
}
COPYING = {
    "read-64k": ("64 KiB: random read, depth 4", 4, ["--rw=randread", "--bs=64k"]),
    "write-64k": ("64 KiB: random write, depth 4", 4, ["--rw=randwrite", "--bs=64k"]),
}
FIRST = {
    "shared-16": ("first write to a shared block, depth 16", 16, 1),
    "shared-1": ("first write to a shared block, depth 1", 1, 2),
    "fresh-16": ("first write to a fresh block, depth 16", 16, 1),
}
STORM = ("overwrite, depth 16, a snapshot every 0.2 s", 0.2)
SYNC = ("first writes to shared blocks, each flushed, depth 1", 500)
COPIED = "first write to a shared block: written to the data disk, bytes"


def fio(device, name, *options, depth):
    """What a client makes of it: requests a second."""
    engine = "psync" if depth == 1 else "io_uring"
    words = ["fio", f"--name={name}", f"--ioengine={engine}", f"--iodepth={depth}", "--direct=1", "--bs=4k", "--group_reporting", "--output-format=json"]
    output = Path(os.environ["KEEP"]) / "fio.json"
    run(*words, *options, f"--output={output}", timeout=300)
    told = output.read_text()
    job = json.loads(told[told.index("{") :])["jobs"][0]  # notes come before
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    if job["error"] or not side["total_ios"]:
        raise Failed(f"fio {name} on {device}: error {job['error']}")
    return side["iops"]


def steady(device, case):
    options = [f"--filename={device}", "--time_based", f"--runtime={SECONDS}", "--norandommap", f"--size={VOLUME_BYTES}"]
    _, depth, words = (STEADY | COPYING)[case]
    return fio(device, case, *options, *words, depth=depth)


def touch(device, folder, case):
    _, depth, share = FIRST[case]
    slots = list(range(0, VOLUME_BYTES // BLOCK, share))
    random.shuffle(slots)
    log = Path(folder) / "touch.log"
    lines = ["fio version 2 iolog", f"{device} add", f"{device} open"]
    lines += [f"{device} write {slot * BLOCK + 4096 * random.randrange(16)} 4096" for slot in slots]
    log.write_text("\n".join([*lines, f"{device} close", ""]))
    return fio(device, case, f"--read_iolog={log}", "--replay_no_stall=1", "--rw=randwrite", depth=depth)


def touch_and_flush(device):
    options = ["--rw=randwrite", "--fsync=1", f"--size={VOLUME_BYTES}", f"--number_ios={SYNC[1]}"]
    return fio(device, "sync", f"--filename={device}", *options, depth=1)


def fill(device):
    data = random.randbytes(MIB)
    with Device(device) as opened:
        for at in range(0, VOLUME_BYTES, MIB):
            opened.pwrite(data, at)
        opened.flush()


def written_bytes(disk, work):
    """What is written to a disk while `work` runs."""
    event = TRACE / "events/block/block_bio_queue"
    if not event.exists():
        run("mount", "-t", "tracefs", "none", TRACE)
    counting = 'hist:keys=dev:vals=nr_sector if rwbs ~ "*W*"'
    (event / "trigger").write_text(counting)
    work()
    counted = (event / "hist").read_text()
    (event / "trigger").write_text("!" + counting)
    number = disk.stat().st_rdev
    key = os.major(number) << 20 | os.minor(number)
    found = re.search(rf"dev: +{key} +}}.* nr_sector: +([0-9]+)", counted)
    if not found:
        raise Failed(f"nothing was written to {disk}:\n{counted}")
    return int(found[1]) * 512


def copied(peer, folder):
    """Bytes written to the data disk for each first write to a shared block."""
    writes = VOLUME_BYTES // BLOCK // FIRST["shared-16"][2]

    def work():
        touch(peer.device, folder, "shared-16")
        with Device(peer.device) as opened:
            opened.flush()

    peer.snapshot()
    written = written_bytes(peer.data, work)
    peer.drop_snapshot()
    return written / writes


class Kernel:
    is_thin = True

    def __init__(self, name, metadata, data, features=()):
        self.name = name
        self.data = data
        self.pool = KernelPool(metadata, data, BLOCK, features, name.replace(" ", "-")).__enter__()
        self.pool.create_thin(0, VOLUME_BYTES)
        self.device = self.pool.thins[0].path
        fill(self.device)

    def snapshot(self):
        self.pool.snapshot(1, 0)

    def drop_snapshot(self):
        self.pool.message("delete 1")

    def fresh(self):
        return self.pool.create_thin(2, VOLUME_BYTES).path

    def drop_fresh(self):
        self.pool.delete(2)

    def open_seconds(self):
        """A thin that is there, from the command to the first byte read."""
        self.pool.deactivate(0)
        begin = time.monotonic()
        self.pool.thin(0, VOLUME_BYTES).pread(512, 0)
        return time.monotonic() - begin

    def close(self):
        self.pool.remove()


class Ours:
    is_thin = True

    def __init__(self, name, folder, metadata, data, *options):
        self.name = name
        self.data = data
        own = Path(folder) / name.replace(" ", "-")
        own.mkdir()
        self.pool = UblkPool(own, metadata, data, *options)
        self.pool.create("v", VOLUME_BYTES)
        self.pool.serve()
        self.device = self.export()
        fill(self.device)

    def export(self):
        return self.pool.export("v", "--queues", "2")

    def snapshot(self):
        self.pool.snapshot("v", "s")

    def drop_snapshot(self):
        self.pool.delete("s")

    def fresh(self):
        self.pool.create("fresh", VOLUME_BYTES)
        return self.pool.export("fresh", "--queues", "2")

    def drop_fresh(self):
        self.pool.unexport("fresh")
        self.pool.delete("fresh")

    def open_seconds(self):
        self.pool.unexport("v")
        begin = time.monotonic()
        self.device = self.export()
        with Device(self.device) as opened:
            opened.pread(512, 0)
        return time.monotonic() - begin

    def close(self):
        self.pool.unexport("v")
        self.pool.close()


class Libublk:
    """An example program of libublk's, with a device of its own."""

    is_thin = False

    def __init__(self, example, number, *options):
        self.name = f"libublk {example}"
        self.program = ROOT / "target/vm/libublk/bin" / example
        self.number = number
        self.device = Path(f"/dev/ublkb{number}")
        words = [self.program, "add", "--foreground", "-n", str(number), "-q", "1", "-d", "128", *map(str, options)]
        with open(Path(os.environ["KEEP"]) / f"{example}.log", "w") as log:
            self.server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        size = Path("/sys/block") / self.device.name / "size"
        end = time.monotonic() + 60
        while not (size.exists() and int(size.read_text()) and self.device.is_block_device()):
            if self.server.poll() is not None or time.monotonic() > end:
                raise Failed(f"{self.name} made no device; see {example}.log")
            time.sleep(0.1)

    def close(self):
        run(self.program, "del", "-n", self.number)
        self.server.wait(60)


class Raw:
    """The RAM disk itself: what lies below all."""

    name = "RAM disk"
    is_thin = False

    def __init__(self, disk):
        self.device = disk
        fill(disk)

    def close(self):
        pass


def beside_a_snapshot(peer, work):
    peer.snapshot()
    work()
    peer.drop_snapshot()
    fill(peer.device)  # what dm-thin still takes for shared is copied here, and not in the next round's overwrites


@contextmanager
def storm(peer):
    over, failures = threading.Event(), []

    def make_snapshots():
        try:
            while not over.is_set():
                peer.snapshot()
                over.wait(STORM[1])
                peer.drop_snapshot()
        except Exception as wrong:
            failures.append(wrong)

    maker = threading.Thread(target=make_snapshots)
    maker.start()
    try:
        yield
    finally:
        over.set()
        maker.join()
    if failures:
        raise failures[0]
    fill(peer.device)


def first_writes(folder, thin, note):
    for case in FIRST:
        for peer in thin:
            if case.startswith("fresh"):
                note(case, peer, touch(peer.fresh(), folder, case))
                peer.drop_fresh()
            else:
                beside_a_snapshot(peer, lambda: note(case, peer, touch(peer.device, folder, case)))
    for peer in thin:
        beside_a_snapshot(peer, lambda: note("sync", peer, touch_and_flush(peer.device)))


def measure(folder, peers):
    figures = {}
    thin = [peer for peer in peers if peer.is_thin]
    note = lambda case, peer, value: figures.setdefault(case, {}).setdefault(peer.name, []).append(value)
    first_writes(folder, thin, lambda *_: None)
    for number in range(ROUNDS):
        for case in STEADY:
            for peer in peers:
                note(case, peer, steady(peer.device, case))
        for case in COPYING:
            for peer in peers:
                if isinstance(peer, Raw):
                    note(case, peer, steady(peer.device, case))
        first_writes(folder, thin, note)
        for peer in thin:
            with storm(peer):
                note("storm", peer, steady(peer.device, "overwrite-16"))
        for peer in thin:
            note("open", peer, peer.open_seconds() * 1000)
        say(f"round {number + 1} of {ROUNDS}")
    for peer in thin:
        note("copied", peer, copied(peer, folder))
    return figures


def table(figures, peers, heading):
    """Medians, and how we compare with the kernel: more is better, except for the time to open and what is copied."""
    titles = {case: entry[0] for case, entry in (STEADY | COPYING | FIRST).items()}
    titles |= {"sync": SYNC[0], "storm": STORM[0], "open": "open to first read, ms", "copied": COPIED}
    ours = [peer.name for peer in peers if peer.name.startswith("uthin")]
    columns = [peer.name for peer in peers] + [f"{name} : dm-thin" for name in ours]
    lines = [heading, "", "| 4 KiB, requests a second | " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for case, found in figures.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        cells = [f"{medians[peer.name]:.0f}" if peer.name in medians else "" for peer in peers]
        # Peers take turns: what slows the machine for a while is in both.
        beside = lambda name: statistics.median(one / other for one, other in zip(found[name], found["dm-thin"]))
        cells += [f"{beside(name):.2f}" if "dm-thin" in found else "" for name in ours]
        lines.append(f"| {titles[case]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def story(folder, _):
    disks = ram_disks(12, 3 * VOLUME_BYTES)
    load_module()
    random.seed(1)
    copying = Ours("uthin", folder, disks[2], disks[3], "--journal", "none")
    partial = Ours("uthin small writes", folder, disks[4], disks[5], "--journal", "none", "--small-writes", "partial")
    journal = Ours("uthin journal", folder, disks[6], disks[7], "--journal", "file", "--small-writes", "partial")
    fill(disks[9])
    loop, null = Libublk("loop", 40, "-f", disks[9]), Libublk("null", 41)
    kernel, sloppy = Kernel("dm-thin", disks[0], disks[1]), Kernel("dm-thin unzeroed", disks[10], disks[11], ["skip_block_zeroing"])
    peers = [kernel, sloppy, copying, partial, journal, loop, null, Raw(disks[8])]
    say("filled")
    figures = measure(folder, peers)
    for peer in peers:
        peer.close()
    no_devices("at the end")
    for metadata in (disks[0], disks[2], disks[4], disks[6], disks[10]):
        check(metadata)
    release = os.uname().release
    heading = f"Linux {release}, {os.cpu_count()} emulated CPUs (QEMU without KVM), {ROUNDS} rounds of {SECONDS} s, medians"
    keep = Path(os.environ["KEEP"])
    (keep / "results.json").write_text(json.dumps({"kernel": release, "emulated": True, "rounds": ROUNDS, "figures": figures}, indent=1))
    (keep / "results.md").write_text(table(figures, peers, heading))
    print(f"{ROUNDS} rounds: see results.md")


if __name__ == "__main__":
    sys.exit(main(story))
