"""A volume as a block device: ext4 made, mounted, filled, trimmed, snapshotted in use, resized; refusals, links, a clean end.

The snapshot is taken while files are being written, so that mounting it replays the journal.
"""

import json
import os
import random
import subprocess
import threading
from pathlib import Path

from devices import Device, ram_disks
from filesystem import MIB, compare, compare_snapshot, fill, fill_and_trim, limits, mounted
from thin import BIN, Failed, check, main, run, say, uthin
from ublk import UblkPool, load_module, no_devices, refused

VOLUME_BYTES = 96 * MIB


def doctor(expected):
    """The doctor's findings by their names, and its exit status: 0 if devices can be made."""
    done = subprocess.run([BIN / "uthin", "doctor", "--json"], capture_output=True, text=True, timeout=60)
    found = json.loads(done.stdout)["ublk"]
    if done.returncode != expected or found["usable"] != (expected == 0):
        raise Failed(f"the doctor ended with {done.returncode}: {done.stdout}")
    return {finding["check"]: finding for finding in found["findings"]}


def without_the_module(folder, metadata, data):
    module = doctor(1)["module"]
    if "not loaded" not in module["message"] or "modprobe ublk_drv" not in module["hint"]:
        raise Failed(f"the doctor does not say how to get the module: {module}")
    with UblkPool(folder, metadata, data) as pool:
        pool.create("v1", VOLUME_BYTES)
        refused(5, "nobody serves the pool", "export", pool.path / "v1", "--ublk")
        pool.serve()
        refused(1, "ublk_drv is not loaded", "export", pool.path / "v1", "--ublk")
        pool.close()


def shape(pool):
    """What the kernel was told of the volume; what cannot be."""
    refused(2, "64 are possible", "export", pool.path / "v1", "--ublk", "--queues", "65")
    refused(2, "no whole number", "export", pool.path / "odd", "--ublk", "--logical-block", "4K")
    refused(5, "not exported", "unexport", pool.path / "v1")
    refused(5, "no volume", "export", pool.path / "none", "--ublk")
    device = pool.export("v1", "--logical-block", "4K", "--read-only")
    queue = Path("/sys/block") / device.name / "queue"
    if (queue / "logical_block_size").read_text().strip() != "4096" or run("blockdev", "--getro", device).strip() != "1":
        raise Failed(f"{device} is not what it was asked to be")
    if subprocess.run(["blkdiscard", "-z", "-l", "4096", device], capture_output=True).returncode == 0:
        raise Failed(f"{device} is read-only, and was written")
    pool.unexport("v1")

    device = pool.export("v1")
    say("exported:", limits(device))
    for name, expected in [
        ("fua", "1"),
        ("logical_block_size", "512"),
        ("physical_block_size", "4096"),
        ("discard_granularity", "65536"),
        ("optimal_io_size", "65536"),
    ]:
        found = (Path("/sys/block") / device.name / "queue" / name).read_text().strip()
        if found != expected:
            raise Failed(f"{device}: {name} is {found}, expected {expected}")
    listed = pool.exports()["v1"]
    if listed["device"] != str(device) or listed["queues"] != 1 or pool.link("v1").resolve() != device:
        raise Failed(f"{device} is listed as {listed}, and linked to {pool.link('v1').resolve()}")
    if str(device) not in pool.volumes()["v1"]["exports"]:
        raise Failed("the list of volumes does not know of the device")
    refused(5, "exported already", "export", pool.path / "v1", "--ublk")
    refused(6, f"exported as {device}", "volume", "delete", pool.path / "v1")
    return device


def in_use(pool, device):
    """Somebody has the device: it stays, until it is free or that is forced."""
    refused(6, "mounted at", "unexport", pool.path / "v1")
    with Device(pool.export("odd")):
        asked = subprocess.run([BIN / "uthin", "unexport", pool.path / "odd"], capture_output=True, text=True)
        if asked.returncode != 6 or f"open in process {os.getpid()} (python3" not in asked.stderr:
            raise Failed(f"unexport of an open device: {asked}")
        waiting = subprocess.Popen([BIN / "uthin", "unexport", pool.path / "odd", "--wait"])
    if waiting.wait(60) != 0 or pool.link("odd").is_symlink():
        raise Failed("unexport --wait did not take the device away when it was free")
    with Device(pool.export("odd")) as opened:
        pool.unexport("odd", "--force")
        try:
            left = os.preadv(opened.handle, [opened.buffer], 0)
        except OSError as error:
            left = str(error)
        if left not in (0, "[Errno 5] Input/output error"):
            raise Failed(f"a device that was taken away is still read: {left}")
    pool.lists({"v1"})


def take_snapshot_under_load(pool, live):
    """Other files come and go meanwhile, in a folder of their own."""
    busy = live / "busy"
    busy.mkdir()
    stop = threading.Event()

    def write():
        chance = random.Random(9)
        while not stop.is_set():
            name = busy / str(chance.randrange(30))
            name.write_bytes(chance.randbytes(chance.choice([100, 5000, 200_000])))
            if chance.random() < 0.2:
                name.unlink()
            if chance.random() < 0.1:
                os.sync()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        pool.snapshot("v1", "s1")
    finally:
        stop.set()
        writer.join()


def resized(pool, device):
    """The device shows the new size where the kernel can do that; else the answer says so."""
    old = int((Path("/sys/block") / device.name / "size").read_text()) * 512
    new = VOLUME_BYTES + 32 * MIB
    answer = uthin("volume", "resize", pool.path / "v1", "--size", str(new))
    found = int((Path("/sys/block") / device.name / "size").read_text()) * 512
    if "Linux 6.16" in answer:
        if found != old:
            raise Failed(f"the device has {found} bytes, though it was said to keep its {old}")
        say("the kernel cannot resize devices, and the answer says so")
        return
    if found != new:
        raise Failed(f"the device has {found} bytes after a resize to {new}: {answer}")
    say(run("resize2fs", device).strip().splitlines()[-1])


def story(folder, _):
    metadata, data = ram_disks(2, 256 * MIB)[::-1]
    (Path(folder) / "first").mkdir()
    without_the_module(Path(folder) / "first", metadata, data)
    for disk in (metadata, data):
        run("blkdiscard", "-z", disk)
    load_module()
    doctor(0)
    chance = random.Random(8)
    here = Path(folder)
    with UblkPool(folder, metadata, data) as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.create("odd", MIB + 512)
        pool.serve()
        device = shape(pool)
        pool.stands_in_the_way_of_writes()

        run("mkfs.ext4", "-q", device)
        live = mounted(device, here / "live")
        in_use(pool, device)
        kept = fill_and_trim(pool, device, live, chance)
        take_snapshot_under_load(pool, live)
        more = fill(live, chance, 30)
        snapshot = pool.export("s1", "--queues", "2", "--depth", "32")
        compare_snapshot(snapshot, here, kept)
        compare(live, kept | more, "the filesystem in use")
        resized(pool, device)
        uthin("volume", "rename", pool.path / "v1", "renamed")
        if pool.link("v1").is_symlink() or pool.link("renamed").resolve() != device:
            raise Failed("the link did not follow the name")

        # The end in order, though the filesystem is mounted: it is synced first.
        late = fill(live, chance, 5)
        pool.close()
        if pool.link("renamed").is_symlink():
            raise Failed("links are left after a clean end")
        run("umount", live)
        no_devices("after a clean end")
        say("closed with the filesystem mounted")

        pool.serve("--ublk", "renamed", "--ublk", "odd")
        device = pool.link("renamed").resolve()
        compare(mounted(device, live), kept | more | late, "the filesystem, served again")
        run("umount", live)
        run("fsck.ext4", "-f", "-n", device)
        for volume in ("renamed", "odd"):
            pool.unexport(volume)
        no_devices("after unexport")
        if (pool.path / "dev").exists():
            raise Failed("the folder of links is left")
        uthin("volume", "delete", pool.path / "s1")
        pool.wait_for_deletions()
        pool.close()
        check(metadata)
    print(f"ext4 on {device}: {len(kept | more | late)} files, trimmed, snapshotted in use, closed while mounted: all there")


if __name__ == "__main__":
    main(story)
