"""xfs on a device: made, filled, trimmed, snapshotted in use over several generations; every snapshot mounts and is sound."""

import os
import random
from pathlib import Path

from devices import ram_disks
from filesystem import MIB, compare, fill, mounted, used
from thin import Failed, check, main, run, say
from ublk import UblkPool, load_module, no_devices

VOLUME_BYTES = 400 * MIB
GENERATIONS = 5


def story(folder, _):
    metadata, data = ram_disks(2, 640 * MIB)[::-1]
    load_module()
    chance = random.Random(3)
    here = Path(folder)
    with UblkPool(folder, metadata, data) as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.serve()
        device = pool.export("v1", "--queues", "2")
        run("mkfs.xfs", "-q", device)
        live = mounted(device, here / "live", "xfs")
        os.sync()
        empty = used(pool)  # most of it is xfs' log
        kept, generations = {}, {}
        for number in range(GENERATIONS):
            kept |= fill(live, chance, 12)
            for name in chance.sample(sorted(kept), len(kept) // 4):
                (live / name).unlink()
                del kept[name]
            os.sync()
            fill(live, chance, 3)  # not synced: the snapshot may have it, or not
            extra = {path.name for path in live.iterdir()} - kept.keys()
            pool.snapshot("v1", f"s{number}")
            generations[f"s{number}"] = dict(kept)
            for name in extra:
                (live / name).unlink()
        full = used(pool)
        for name in list(kept):
            (live / name).unlink()
        os.sync()
        say(run("fstrim", "-v", live).strip())
        for name, there in generations.items():
            look_at(pool, here, name, there)
        for name in generations:
            pool.delete(name)
        after = used(pool)
        say(f"used: {empty >> 20} MiB when empty, {full >> 20} MiB, {after >> 20} MiB when files and snapshots were gone")
        if full < empty + 4 * MIB or after - empty > (full - empty) // 2:
            raise Failed(f"blocks do not come back: {empty} bytes, {full}, then {after}")
        run("umount", live)
        run("xfs_repair", "-n", device)
        pool.unexport("v1")
        no_devices("at the end")
        pool.close()
        check(metadata)
    print(f"xfs on {device}: {GENERATIONS} generations of snapshots, all sound; blocks came back")


def look_at(pool, here, name, there):
    """A snapshot of a filesystem in use: mounting it replays the log; what was not synced may be there or not. Its UUID is the
    origin's, which is mounted too."""
    device = pool.export(name)
    folder = mounted(device, here / "snapshot", "xfs", "nouuid")
    for extra in {path.name for path in folder.iterdir()} - there.keys():
        (folder / extra).unlink()
    compare(folder, there, f"snapshot {name}")
    run("umount", folder)
    run("xfs_repair", "-n", device)
    pool.unexport(name, "--wait=20")


if __name__ == "__main__":
    main(story)
