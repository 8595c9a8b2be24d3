"""uthin is killed with SIGKILL under load, snapshots among it; the kernel's dm-thin opens what is there and finds every flushed write.

Twice: the second time after the kernel has written. Then uthin opens it again.
"""

import random

from contents import Contents, load
from devices import ram_disks
from stamps import Model, compare_snapshot, stamps_in
from thin import Failed, KernelPool, UthinPool, check, main, say
from torture import SECTORS, VOLUME_BYTES
from torture import compare as compare_ours
from torture import load as load_and_kill

BLOCK = 64 << 10
ROUNDS = 2
SECONDS = 6


def compare_in_kernel(pool, kernel, model, snapshots, when):
    volumes = pool.volumes()
    for name in ["v1", *snapshots]:
        thin = kernel.thin(volumes[name]["id"], VOLUME_BYTES)
        found = stamps_in(thin.pread(VOLUME_BYTES, 0))
        complaint = model.after_crash(found) if name == "v1" else compare_snapshot(snapshots[name], found)
        if complaint:
            raise Failed(f"{when}: the kernel's thin {name}: {complaint}")
        if name != "v1":
            snapshots[name] = (found, {})  # from now on it is what it is


def story(folder, _):
    metadata, data = ram_disks(2, 512 << 20)[::-1]
    chance = random.Random(6)
    with UthinPool(folder, metadata, data) as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.create("quiet", 8 << 20)
        quiet = Contents(8 << 20)
        model, snapshots = Model(SECTORS), {}
        for number in range(ROUNDS):
            pool.serve()
            opened = pool.open("quiet")
            load(opened, quiet, chance, 40, BLOCK)
            load_and_kill(pool, model, chance, snapshots, SECONDS, number)
            say(f"killed after {model.next_stamp} writes, snapshots: {sorted(snapshots)}")
            check(metadata)
            with KernelPool(metadata, data, BLOCK) as kernel:
                kernel.same_as(pool.handed_over())
                compare_in_kernel(pool, kernel, model, snapshots, f"round {number}")
                thin = kernel.thin(pool.volumes()["quiet"]["id"], 8 << 20)
                quiet.compare(thin, f"round {number}: the kernel's thin of the volume at rest")
                load(thin, quiet, chance, 40, BLOCK)
            check(metadata)
            say("the kernel found every flushed write, and wrote")
        pool.serve()
        compare_ours(pool, model, snapshots, "back")
        opened = pool.open("quiet")
        quiet.compare(opened, "back: the volume at rest")
        opened.shutdown()
        pool.close()
        check(metadata, thorough=True)
    if model.next_stamp < 200 or not snapshots:
        raise Failed(f"only {model.next_stamp} writes and {len(snapshots)} snapshots: this shows nothing")
    print(f"killed {ROUNDS} times, {model.next_stamp} writes, {len(snapshots)} snapshots: nothing flushed was lost")


if __name__ == "__main__":
    main(story)
