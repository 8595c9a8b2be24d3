"""The kernel's dm-thin and uthin's block devices on equal RAM disks, in one boot of the lab's virtual machine; run by bench/vm/run.

The machine's CPU is emulated in software: only figures of one run compare, and only as ratios. Cases are interleaved (each
round takes every peer once), and medians of the rounds are told. 4 KiB requests; a first write to a shared block is one 4 KiB
write into a 64 KiB block of a filled volume from which a snapshot was just taken, each block once, in random order.

A scenario to the lab: what it finds inside is told by tests/vm/guest/run. Results are left in $KEEP.
"""

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

from devices import Device, ram_disks
from thin import Failed, KernelPool, check, main, run, say
from ublk import UblkPool, load_module, no_devices

MIB = 1 << 20
BLOCK = 64 << 10
VOLUME_BYTES = 128 * MIB
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = 3

STEADY = {
    "randread-16": ("random read, depth 16", ["--rw=randread", "--iodepth=16"]),
    "overwrite-16": ("overwrite, depth 16", ["--rw=randwrite", "--iodepth=16"]),
    "randread-1": ("random read, depth 1", ["--rw=randread", "--iodepth=1"]),
    "overwrite-1": ("overwrite, depth 1", ["--rw=randwrite", "--iodepth=1"]),
    "randread-2x16": ("random read, 2 jobs of depth 16", ["--rw=randread", "--iodepth=16", "--numjobs=2"]),
    "overwrite-2x16": ("overwrite, 2 jobs of depth 16", ["--rw=randwrite", "--iodepth=16", "--numjobs=2"]),
}
SHARED = {
    "shared-16": ("first write to a shared block, depth 16", 16, 1),
    "shared-1": ("first write to a shared block, depth 1", 1, 2),
}


def fio(device, name, *options):
    words = ["fio", f"--name={name}", "--ioengine=io_uring", "--direct=1", "--bs=4k", "--group_reporting", "--output-format=json"]
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
    return fio(device, case, *options, *STEADY[case][1])


def touch(device, folder, case):
    _, depth, share = SHARED[case]
    slots = list(range(0, VOLUME_BYTES // BLOCK, share))
    random.shuffle(slots)
    log = Path(folder) / "touch.log"
    lines = ["fio version 2 iolog", f"{device} add", f"{device} open"]
    lines += [f"{device} write {slot * BLOCK + 4096 * random.randrange(16)} 4096" for slot in slots]
    log.write_text("\n".join([*lines, f"{device} close", ""]))
    return fio(device, case, f"--read_iolog={log}", "--replay_no_stall=1", f"--iodepth={depth}", "--rw=randwrite")


def fill(device):
    data = random.randbytes(MIB)
    with Device(device) as opened:
        for at in range(0, VOLUME_BYTES, MIB):
            opened.pwrite(data, at)
        opened.flush()


class Kernel:
    name = "dm-thin"

    def __init__(self, metadata, data):
        self.pool = KernelPool(metadata, data, BLOCK, ["skip_block_zeroing"]).__enter__()
        self.pool.create_thin(0, VOLUME_BYTES)
        self.device = Path("/dev/mapper/thin0")
        fill(self.device)

    def snapshot(self):
        self.pool.snapshot(1, 0)

    def drop_snapshot(self):
        self.pool.message("delete 1")

    def open_seconds(self):
        """A thin that is there, from the command to the first byte read."""
        self.pool.deactivate(0)
        begin = time.monotonic()
        self.pool.thin(0, VOLUME_BYTES).pread(512, 0)
        return time.monotonic() - begin

    def close(self):
        self.pool.remove()


class Ours:
    name = "uthin"

    def __init__(self, folder, metadata, data):
        (Path(folder) / "ours").mkdir()
        self.pool = UblkPool(Path(folder) / "ours", metadata, data, "--no-zero")
        self.pool.create("v", VOLUME_BYTES)
        self.pool.serve()
        self.device = self.pool.export("v", "--queues", "2")
        fill(self.device)

    def snapshot(self):
        self.pool.snapshot("v", "s")

    def drop_snapshot(self):
        self.pool.delete("s")

    def open_seconds(self):
        self.pool.unexport("v")
        begin = time.monotonic()
        self.device = self.pool.export("v", "--queues", "2")
        with Device(self.device) as opened:
            opened.pread(512, 0)
        return time.monotonic() - begin

    def close(self):
        self.pool.unexport("v")
        no_devices("at the end")
        self.pool.close()


class Raw:
    """The RAM disk itself: what lies below both."""

    name = "RAM disk"

    def __init__(self, disk):
        self.device = disk
        fill(disk)

    def close(self):
        pass


def measure(folder, peers):
    figures = {}
    note = lambda case, peer, value: figures.setdefault(case, {}).setdefault(peer.name, []).append(value)
    for number in range(ROUNDS):
        for case in STEADY:
            for peer in peers:
                note(case, peer, steady(peer.device, case))
        for case in SHARED:
            for peer in peers[:2]:
                peer.snapshot()
                note(case, peer, touch(peer.device, folder, case))
                peer.drop_snapshot()
                fill(peer.device)  # what dm-thin still takes for shared is copied here, and not in the next round's overwrites
        for peer in peers[:2]:
            note("open", peer, peer.open_seconds() * 1000)
        say(f"round {number + 1} of {ROUNDS}")
    return figures


def table(figures, peers, heading):
    """Medians, and how we compare with the kernel: more is better, except for the time to open."""
    titles = {case: entry[0] for case, entry in (STEADY | SHARED).items()} | {"open": "open to first read, ms"}
    lines = [heading, "", "| 4 KiB, requests a second | " + " | ".join(peer.name for peer in peers) + " | uthin : dm-thin |"]
    lines.append("| --- |" + " ---: |" * (len(peers) + 1))
    for case, found in figures.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        cells = [f"{medians[peer.name]:.0f}" if peer.name in medians else "" for peer in peers]
        lines.append(f"| {titles[case]} | " + " | ".join(cells) + f" | {medians['uthin'] / medians['dm-thin']:.2f} |")
    return "\n".join(lines) + "\n"


def story(folder, _):
    disks = ram_disks(5, 640 * MIB)
    load_module()
    random.seed(1)
    peers = [Kernel(disks[0], disks[1]), Ours(folder, disks[2], disks[3]), Raw(disks[4])]
    say("filled")
    figures = measure(folder, peers)
    for peer in peers:
        peer.close()
    check(disks[0])
    check(disks[2])
    release = os.uname().release
    heading = f"Linux {release}, {os.cpu_count()} emulated CPUs (QEMU without KVM), {ROUNDS} rounds of {SECONDS} s, medians"
    keep = Path(os.environ["KEEP"])
    (keep / "results.json").write_text(json.dumps({"kernel": release, "emulated": True, "rounds": ROUNDS, "figures": figures}, indent=1))
    (keep / "results.md").write_text(table(figures, peers, heading))
    print(f"{ROUNDS} rounds: see results.md")


if __name__ == "__main__":
    sys.exit(main(story))
