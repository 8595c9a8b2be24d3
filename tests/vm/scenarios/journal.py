"""A pool with a journal, killed under its clients: the kernel refuses it and changes nothing. Opened again, it has every
write that was acknowledged, flushed or not; closed, it is plain dm-thin: the kernel opens it, reads what was written, and writes.

With whole-block copies and the journal in a file, then with small writes and the journal on a device.
"""

import random
from pathlib import Path

from contents import Contents, compare_all, load
from devices import ram_disks
from thin import BIN, Failed, KernelPool, UthinPool, check, main, refused_by_kernel, run, say

BLOCK = 64 << 10
SIZE = 8 << 20
KILLS = 3
# As the kernel prints them: a journal, and partial blocks.
JOURNAL, PARTIAL = 0x4000_0000, 0x2000_0000


def unflushed(opened, contents, chance, count):
    """Writes of some sectors that nobody flushes; each is over before the next."""
    for _ in range(count):
        length = chance.choice([512, 4096, 4096, BLOCK])
        at = chance.randrange((SIZE - length) // 512) * 512
        data = chance.randbytes(length)
        opened.pwrite(data, at)
        contents.bytes[at : at + length] = data


def journaled(folder, metadata, data, chance, journal, small_writes):
    held = {"v": Contents(SIZE)}
    features = JOURNAL
    with UthinPool(folder, metadata, data, "--journal", journal, "--small-writes", small_writes) as pool:
        pool.create("v", SIZE)
        for number in range(KILLS):
            pool.serve()
            compare_all(pool, {"v": held["v"]}, f"before kill {number}")
            opened = pool.open("v")
            load(opened, held["v"], chance, 40, BLOCK)
            pool.snapshot("v", f"s{number}")
            held[f"s{number}"] = held["v"].copy()
            unflushed(opened, held["v"], chance, 100)
            if number == KILLS - 1 and pool.status()["partial_blocks"]:
                features |= PARTIAL
            pool.kill()
            run(BIN / "uthin-fsck", "check", metadata)
        if (features != JOURNAL) != (small_writes == "partial"):
            raise Failed(f"features {features:x} with small writes: {small_writes}")
        refused_by_kernel(metadata, data, BLOCK, f"{features:x}")
        say(f"killed {KILLS} times; the kernel refuses {features:x}")
        pool.serve()
        compare_all(pool, held, "after the last kill")
        numbers = pool.volumes()
        pool.close()
        check(metadata, thorough=True)
        with KernelPool(metadata, data, BLOCK) as kernel:
            for name, contents in held.items():
                contents.compare(kernel.thin(numbers[name]["id"], SIZE), f"in the kernel: {name}")
            load(kernel.thins[numbers["v"]["id"]], held["v"], chance, 40, BLOCK)
        check(metadata)
        pool.serve()
        compare_all(pool, held, "back")
        pool.close()


def story(folder, _):
    disks = ram_disks(5, 512 << 20)
    chance = random.Random(19)
    for journal, small_writes in (("file", "copy"), (disks.pop(), "partial")):
        own = Path(folder) / small_writes
        own.mkdir()
        data, metadata = disks.pop(), disks.pop()
        journaled(own, metadata, data, chance, journal, small_writes)
    print(f"{2 * KILLS} kills, nothing acknowledged was lost; refused by the kernel until closed, then equal in both")


if __name__ == "__main__":
    main(story)
