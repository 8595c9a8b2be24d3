"""The kernel's own NBD client on uthin: ext4 made, mounted, filled, trimmed, checked, and a snapshot of it mounted.

Over the unix socket and over TCP; the snapshot is taken while the filesystem is in use, so that mounting it replays its journal.
"""

import random
import time
from pathlib import Path

from devices import ram_disks
from filesystem import MIB, compare, compare_snapshot, fill, fill_and_trim, limits, mounted
from thin import Failed, UthinPool, check, main, run, say, uthin

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


if __name__ == "__main__":
    main(story)
