"""A pool with small writes (--small-writes partial), killed while it has partial blocks: the kernel refuses it and changes nothing. Settled and
closed, it is plain dm-thin: the kernel opens it, reads what was written, and writes.
"""

import random

from contents import Contents, compare_all
from devices import ram_disks
from thin import BIN, Failed, KernelPool, UthinPool, check, main, refused_by_kernel, run, say, uthin

BLOCK = 64 << 10
SIZE = 32 << 20


def write(opened, contents, chance, count, length):
    for _ in range(count):
        at = chance.randrange(SIZE // 512 - length // 512) * 512
        data = chance.randbytes(length)
        opened.pwrite(data, at)
        contents.bytes[at : at + length] = data
    opened.flush()


def story(folder, _):
    data, metadata = ram_disks(2, 512 << 20)
    chance = random.Random(18)
    held = {"v": Contents(SIZE)}
    with UthinPool(folder, metadata, data, "--small-writes", "partial", "--journal", "none") as pool:
        pool.create("v", SIZE)
        pool.serve()
        opened = pool.open("v")
        write(opened, held["v"], chance, 20, 1 << 20)
        for number in range(3):
            pool.snapshot("v", f"s{number}")
            held[f"s{number}"] = held["v"].copy()
            write(opened, held["v"], chance, 100, 4096)
            write(opened, held["v"], chance, 30, 512)
        count = pool.status()["partial_blocks"]
        if count < 100:
            raise Failed(f"only {count} blocks are partial: this shows nothing")
        pool.kill()
        run(BIN / "uthin-fsck", "check", metadata)
        refused_by_kernel(metadata, data, BLOCK, "20000000")
        say(f"killed with {count} partial blocks: the kernel refuses it")
        pool.serve()
        compare_all(pool, held, "after the kill")
        uthin("pool", "settle", pool.path)
        if pool.status()["partial_blocks"]:
            raise Failed("it is settled, and has partial blocks")
        compare_all(pool, held, "settled")
        numbers = pool.volumes()
        pool.close()
        check(metadata, thorough=True)
        with KernelPool(metadata, data, BLOCK) as kernel:
            for name, contents in held.items():
                contents.compare(kernel.thin(numbers[name]["id"], SIZE), f"in the kernel: {name}")
            thin = kernel.thins[numbers["v"]["id"]]
            write(thin, held["v"], chance, 50, 4096)
        check(metadata)
        pool.serve()
        compare_all(pool, held, "back")
        pool.close()
    print(f"{count} partial blocks, refused by the kernel until they were settled; {len(held)} volumes equal in both")


if __name__ == "__main__":
    main(story)
