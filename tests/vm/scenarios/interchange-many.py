"""200 snapshots by the kernel, of a volume in use and of one another: uthin deletes many in any order, takes more, and all that is left is
equal. Then the kernel deletes some."""

import random

import from_kernel
from contents import Contents
from devices import ram_disks
from thin import KernelPool, UthinPool, check, main, say, uthin

BLOCK = 64 << 10
SIZE = 16 * BLOCK
SNAPSHOTS = 200
DELETED = 80
OURS = 20
ACTIVE = 25  # so many are activated at a time: each costs a few commands


def scribble(opened, contents, chance):
    """A few writes, large and small, and now and then a discard."""
    blocks = len(contents.bytes) // BLOCK
    for _ in range(3):
        length = chance.choice([512, 4096, BLOCK])
        offset = chance.randrange(0, blocks * BLOCK - length + 1, min(length, 4096))
        data = chance.randbytes(length)
        opened.pwrite(data, offset)
        contents.bytes[offset : offset + length] = data
    if chance.random() < 0.2:
        first = chance.randrange(blocks)
        opened.trim(BLOCK, first * BLOCK)
        contents.bytes[first * BLOCK : (first + 1) * BLOCK] = bytes(BLOCK)


def many_snapshots(kernel, chance):
    """Of the one volume in use, and of snapshots at rest."""
    held = {0: Contents(SIZE)}
    opened = kernel.create_thin(0, SIZE)
    scribble(opened, held[0], chance)
    for number in range(1, SNAPSHOTS + 1):
        origin = 0 if chance.random() < 0.5 else chance.randrange(number)
        kernel.snapshot(number, origin)
        held[number] = held[origin].copy()
        scribble(opened, held[0], chance)
    for number in chance.sample(sorted(held)[1:], ACTIVE):
        scribble(kernel.thin(number, SIZE), held[number], chance)
    return held


def delete_and_take_more(pool, held, chance):
    for number in chance.sample(sorted(held)[1:], DELETED):
        uthin("volume", "delete", pool.path / str(number))
        del held[number]
    pool.wait_for_deletions()
    say(f"uthin deleted {DELETED}")
    volumes = {volume["id"]: volume for volume in pool.volumes().values()}
    taken = {}
    for number in chance.sample(sorted(held), OURS):
        name = volumes[number]["name"]
        pool.snapshot(name, f"of-{name}")
        taken[f"of-{name}"] = held[number].copy()
        opened = pool.open(name)
        part = held[number].beginning(volumes[number]["size_bytes"], name)
        scribble(opened, part, chance)
        held[number].bytes[: len(part.bytes)] = part.bytes
        opened.flush()
        opened.shutdown()
    volumes = pool.volumes()
    held.update({volumes[name]["id"]: contents for name, contents in taken.items()})


def story(folder, _):
    data, metadata = ram_disks(2, 384 << 20)
    chance = random.Random(11)
    with KernelPool(metadata, data, BLOCK) as kernel:
        held = many_snapshots(kernel, chance)
    check(metadata)
    say(f"the kernel took {SNAPSHOTS} snapshots")
    with UthinPool(folder, metadata, data, adopt=True) as pool:
        pool.serve()
        delete_and_take_more(pool, held, chance)
        for name, volume in pool.volumes().items():
            opened = pool.open(name)
            held[volume["id"]].beginning(volume["size_bytes"], name).compare(opened, f"uthin's volume {name}")
            opened.shutdown()
        pool.close()
        check(metadata)
        say(f"{len(held)} volumes compared and closed by uthin:", *pool.dm_line())
        with KernelPool(metadata, data, BLOCK) as kernel:
            kernel.same_as(pool.handed_over())
            some = {number: held[number] for number in chance.sample(sorted(held), ACTIVE)}
            from_kernel.compare(kernel, some, "back")
            for number in chance.sample(sorted(held.keys() - {0}), ACTIVE):
                kernel.delete(number)
                some.pop(number, None)
            for number, contents in some.items():
                scribble(kernel.thins[number], contents, chance)
            from_kernel.compare(kernel, some, "thinned out")
    check(metadata, thorough=True)
    print(f"{SNAPSHOTS} snapshots by the kernel, {DELETED} deleted and {OURS} taken by uthin: equal")


if __name__ == "__main__":
    main(story)
