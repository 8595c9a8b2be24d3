"""Devices that grow under the kernel, and a pool that is full: uthin goes on with what it then finds.

A pool on part of a data device and on a small metadata device. The metadata device gets larger: uthin minds it not. The kernel takes all
of both (a stale size stays in the superblock). uthin fills the pool to the last block; the kernel makes room.
"""

import random
from pathlib import Path

import nbd

from contents import Contents, load
from devices import loop_device, ram_disks
from thin import Failed, KernelPool, UthinPool, check, main, run, say

BLOCK = 64 << 10
MIB = 1 << 20
SIZES = {"v": 24 * MIB, "w": 16 * MIB}


def write_ours(pool, held, chance):
    for name, contents in held.items():
        opened = pool.open(name)
        contents.compare(opened, f"uthin's {name}")
        load(opened, contents, chance, 40, BLOCK)
        contents.compare(opened, f"uthin's {name}, written")
        opened.shutdown()


def fill_up(pool, held, chance):
    """Writes whole blocks until there is none left; returns how many went in."""
    pool.create("filler", 256 * MIB)
    held["filler"] = Contents(256 * MIB)
    opened = pool.open("filler")
    written = 0
    try:
        while written < 4096:
            data = chance.randbytes(512) * (BLOCK // 512)
            opened.pwrite(data, written * BLOCK)
            held["filler"].bytes[written * BLOCK : (written + 1) * BLOCK] = data
            written += 1
    except nbd.Error as error:
        if error.errno != "ENOSPC":
            raise Failed(f"a full pool says {error}") from None
    opened.flush()
    status = pool.status()
    if status["mode"] != "out_of_data_space" or status["data"]["free_bytes"]:
        raise Failed(f"the pool is full, but its status says {status['mode']}, {status['data']}")
    held["filler"].compare(opened, "uthin's filler, in a full pool")
    opened.shutdown()
    return written


def compare(kernel, pool, held, when):
    for name, volume in pool.volumes().items():
        thin = kernel.thins.get(volume["id"]) or kernel.thin(volume["id"], volume["size_bytes"])
        held[name].compare(thin, f"{when}: the kernel's thin of {name}")


def story(folder, _):
    chance = random.Random(10)
    image = Path(folder) / "metadata.img"
    image.touch()
    run("truncate", "--size=4M", image)
    metadata, data = loop_device(image), ram_disks(1, 128 * MIB)[0]
    held = {name: Contents(size) for name, size in SIZES.items()}
    with UthinPool(folder, metadata, data, "--size", "96M") as pool:
        for name, size in SIZES.items():
            pool.create(name, size)
        pool.serve()
        write_ours(pool, held, chance)
        pool.close()
        check(metadata)

        run("truncate", "--size=12M", image)
        run("losetup", "--set-capacity", metadata)
        pool.serve()
        write_ours(pool, held, chance)
        pool.close()
        check(metadata)
        small = pool.dm_line()
        say("on a part of larger devices:", *small)

        with KernelPool(metadata, data, BLOCK) as kernel:
            grown = kernel.status()
            compare(kernel, pool, held, "grown")
            for name, volume in pool.volumes().items():
                load(kernel.thins[volume["id"]], held[name], chance, 20, BLOCK)
        check(metadata)
        totals = [part.split("/")[1] for part in (grown["metadata"], grown["data"], small[1], small[2])]
        say("metadata and data blocks, grown by the kernel and before:", *totals)
        if totals != ["3072", "2048", "1024", "1536"]:
            raise Failed(f"the kernel's pool is not as large as its devices: {totals}")

        pool.serve()
        write_ours(pool, held, chance)
        pool.snapshot("v", "s")
        held["s"] = held["v"].copy()
        written = fill_up(pool, held, chance)
        pool.close()
        check(metadata)
        say(f"{written} more blocks, then it was full:", *pool.dm_line())

        with KernelPool(metadata, data, BLOCK, ["error_if_no_space"]) as kernel:
            kernel.same_as(pool.handed_over())
            compare(kernel, pool, held, "full")
            filler = kernel.thins[pool.volumes()["filler"]["id"]]
            filler.trim(64 * BLOCK, 0)
            held["filler"].bytes[: 64 * BLOCK] = bytes(64 * BLOCK)
            filler.flush()
        check(metadata)
        pool.serve()
        opened = pool.open("filler")
        written = chance.randbytes(10 * BLOCK)
        opened.pwrite(written, BLOCK)
        held["filler"].bytes[BLOCK : BLOCK + len(written)] = written
        opened.flush()
        held["filler"].compare(opened, "uthin's filler, with room again")
        opened.shutdown()
        pool.close()
        check(metadata, thorough=True)
        with KernelPool(metadata, data, BLOCK) as kernel:
            kernel.same_as(pool.handed_over())
            compare(kernel, pool, held, "room again")
    print("grown by the kernel, filled by uthin, room made by the kernel: equal all the time")


if __name__ == "__main__":
    main(story)
