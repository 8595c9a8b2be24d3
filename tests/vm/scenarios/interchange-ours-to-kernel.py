"""A pool made and written by uthin; the kernel's dm-thin opens the same devices, reads the same, writes, and gives it back.

Volumes of whole blocks and with a short last block, snapshots, a snapshot of a snapshot, discards, a deletion. Then the kernel writes,
discards, takes a snapshot that the catalog does not know, and deletes a volume. Checkers after every hand-over.
"""

import random

from contents import Contents, load
from devices import ram_disks
from thin import Failed, KernelPool, UthinPool, check, main, say

BLOCK = 64 << 10
SIZES = {"v1": 32 << 20, "v2": (12 << 20) + 512}
KERNELS_SNAPSHOT = 4711


def write_ours(pool, chance):
    """Fills the pool; returns what each volume holds."""
    held = {name: Contents(size) for name, size in SIZES.items()}
    for name, size in SIZES.items():
        pool.create(name, size)
    pool.serve()

    def write(name, operations):
        opened = pool.open(name)
        load(opened, held[name], chance, operations, BLOCK)
        opened.shutdown()

    def snapshot(origin, name):
        pool.snapshot(origin, name)
        held[name] = held[origin].copy()

    write("v1", 150)
    write("v2", 80)
    snapshot("v1", "s1")
    write("v1", 60)
    snapshot("v1", "doomed")
    snapshot("s1", "s1s")
    write("s1", 40)
    write("v1", 40)
    snapshot("v2", "s2")
    write("v2", 30)
    pool.delete("doomed")
    del held["doomed"]
    compare_ours(pool, held, "before the hand-over")
    pool.close()
    return held


def compare_ours(pool, held, when):
    volumes = pool.volumes()
    if set(volumes) != set(held):
        raise Failed(f"{when}: uthin lists {sorted(volumes)}, expected {sorted(held)}")
    for name, contents in held.items():
        opened = pool.open(name)
        what = f"{when}: uthin's {name}"
        contents.beginning(volumes[name]["size_bytes"], what).compare(opened, what)
        opened.shutdown()
    say(f"{when}: equal in uthin:", ", ".join(f"{name} {held[name].checksum()}" for name in held))


def compare_kernels(kernel, volumes, held, when):
    for name, contents in held.items():
        number = volumes[name]["id"]
        thin = kernel.thins.get(number) or kernel.thin(number, volumes[name]["size_bytes"])
        contents.compare(thin, f"{when}: the kernel's thin {number} ({name})")
    say(f"{when}: equal in the kernel:", ", ".join(f"{name} {held[name].checksum()}" for name in held))


def story(folder, _):
    metadata, data = ram_disks(2, 256 << 20)[::-1]
    chance = random.Random(1)
    with UthinPool(folder, metadata, data) as pool:
        held = write_ours(pool, chance)
        check(metadata, thorough=True)
        volumes = pool.volumes()
        say("closed by uthin and checked:", *pool.dm_line())

        with KernelPool(metadata, data, BLOCK) as kernel:
            kernel.same_as(pool.handed_over())
            compare_kernels(kernel, volumes, held, "first time")
            for name in ("v1", "s1", "s2", "v2"):
                load(kernel.thins[volumes[name]["id"]], held[name], chance, 40, BLOCK)
            compare_kernels(kernel, volumes, held, "after its writes")
        check(metadata)

        pool.serve()
        compare_ours(pool, held, "back")
        for name in ("v1", "s1s"):
            opened = pool.open(name)
            load(opened, held[name], chance, 40, BLOCK)
            opened.shutdown()
        pool.close()
        check(metadata)

        # Now what the catalog cannot know: a snapshot and a deletion behind its back.
        with KernelPool(metadata, data, BLOCK) as kernel:
            compare_kernels(kernel, volumes, held, "second time")
            snapshot = kernel.create_snap(KERNELS_SNAPSHOT, volumes["v1"]["id"], SIZES["v1"])
            held[str(KERNELS_SNAPSHOT)] = held["v1"].copy()
            kernel.delete(volumes["s1"]["id"])
            del held["s1"]
            load(snapshot, held[str(KERNELS_SNAPSHOT)], chance, 30, BLOCK)
            load(kernel.thins[volumes["v1"]["id"]], held["v1"], chance, 30, BLOCK)
        check(metadata)
        pool.serve()
        compare_ours(pool, held, "with the kernel's snapshot")
        pool.delete("s1s")
        del held["s1s"]
        pool.close()
        check(metadata)
        with KernelPool(metadata, data, BLOCK) as kernel:
            kernel.same_as(pool.handed_over())
            compare_kernels(kernel, volumes, {name: held[name] for name in ("v1", "v2", "s2")}, "last")
        check(metadata, thorough=True)
    print(f"{len(held)} volumes went back and forth three times, equal each time")


if __name__ == "__main__":
    main(story)
