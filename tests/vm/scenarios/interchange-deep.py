"""Trees of three levels: 70,000 mappings in random order, made by uthin, thinned out by the kernel and by uthin in turn.

Whoever removes rebalances nodes that the other has written; dm-thin gives up on siblings that it would not have written itself. A
snapshot shares all of it, so that the removals shadow. Blocks carry a stamp in one sector each.
"""

import random
import re

import nbd

from devices import ram_disks
from thin import Failed, KernelPool, UthinPool, check, dump, main, say

BLOCK = 64 << 10
BLOCKS = 70_000
SECTOR = 512
IN_FLIGHT = 64


def stamp(block, version):
    return (block << 8 | version).to_bytes(8, "little") * (SECTOR // 8)


def write_ours(opened, blocks, version):
    """One sector of each block, many at a time."""
    flying = []
    for block in blocks:
        if len(flying) == IN_FLIGHT:
            reap(opened, flying)
        flying.append(opened.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(stamp(block, version))), block * BLOCK))
    while flying:
        reap(opened, flying)
    opened.flush()


def reap(opened, flying):
    """Waits for the oldest and takes all that are done."""
    while not opened.aio_command_completed(flying[0]):
        opened.poll(-1)
    flying.pop(0)
    while flying and opened.aio_command_completed(flying[0]):
        flying.pop(0)


def compare(opened, expected, what, chance):
    """Every tenth block or so, at random: which blocks are mapped at all, `compare_mapped` asks of the metadata."""
    for block in chance.sample(range(BLOCKS), 5000):
        version = expected[block]
        wanted = bytes(SECTOR) if version is None else stamp(block, version)
        if bytes(opened.pread(SECTOR, block * BLOCK)) != wanted:
            raise Failed(f"{what}: block {block} is not at version {version}")


def mapped_in(text, shared):
    """The blocks mapped by a piece of a dump; `shared` are the pieces that devices refer to by name."""
    found = {int(block) for block in re.findall(r'<single_mapping origin_block="(\d+)"', text)}
    for begin, length in re.findall(r'<range_mapping origin_begin="(\d+)".*?length="(\d+)"', text):
        found.update(range(int(begin), int(begin) + int(length)))
    for name in re.findall(r'<ref name="(\d+)"', text):
        found |= mapped_in(shared[name], shared)
    return found


def compare_mapped(metadata, number, expected, what):
    """Whether exactly these blocks are mapped, by thin_dump."""
    text = dump(metadata)
    shared = dict(re.findall(r'<def name="(\d+)">(.*?)</def>', text, re.DOTALL))
    device = re.search(rf'<device dev_id="{number}".*?</device>', text, re.DOTALL).group()
    wanted = {block for block, version in enumerate(expected) if version is not None}
    wrong = mapped_in(device, shared) ^ wanted
    if wrong:
        raise Failed(f"{what}: {len(wrong)} of {len(wanted)} blocks are not mapped, or are and should not be, {min(wrong)} for one")


def discard(opened, expected, chance, count):
    """Ranges of 1 to 400 blocks, here and there."""
    for _ in range(count):
        first = chance.randrange(BLOCKS)
        length = min(chance.choice([1, 1, 3, 40, 400]), BLOCKS - first)
        opened.trim(length * BLOCK, first * BLOCK)
        expected[first : first + length] = [None] * length


def mapped(expected):
    return sum(version is not None for version in expected)


def thin_out(folder, devices, chance):
    """Mappings made by uthin, thinned out by the kernel, by uthin and by the kernel again."""
    expected = [1] * BLOCKS
    with UthinPool(folder, *devices) as pool:
        pool.create("v", BLOCKS * BLOCK)
        pool.serve("--no-zero")
        opened = pool.open("v")
        write_ours(opened, chance.sample(range(BLOCKS), BLOCKS), 1)
        opened.shutdown()
        say(f"uthin mapped {BLOCKS} blocks in random order")
        pool.snapshot("v", "s")
        pool.close()
        numbers = {name: volume["id"] for name, volume in pool.volumes().items()}

        def closed(what):
            check(devices[0])
            compare_mapped(devices[0], numbers["v"], expected, what)
            say(f"{what}, {mapped(expected)} blocks are left")

        closed("made by uthin")
        with KernelPool(*devices, BLOCK, ["skip_block_zeroing"]) as kernel:
            kernel.same_as(pool.handed_over())
            thin = kernel.thin(numbers["v"], BLOCKS * BLOCK)
            discard(thin, expected, chance, 300)
            for block in chance.sample(range(BLOCKS), 500):
                thin.pwrite(stamp(block, 2), block * BLOCK)
                expected[block] = 2
            compare(thin, expected, "the kernel's thin", chance)
        closed("discarded and written by the kernel")

        pool.serve("--no-zero")
        opened = pool.open("v")
        compare(opened, expected, "uthin's volume", chance)
        discard(opened, expected, chance, 300)
        opened.flush()
        compare(opened, expected, "uthin's volume, discarded", chance)
        opened.shutdown()
        opened = pool.open("s")
        compare(opened, [1] * BLOCKS, "uthin's snapshot", chance)
        opened.shutdown()
        pool.close()
        closed("discarded by uthin")

        with KernelPool(*devices, BLOCK, ["skip_block_zeroing"]) as kernel:
            kernel.same_as(pool.handed_over())
            discard(kernel.thin(numbers["v"], BLOCKS * BLOCK), expected, chance, 100)
            compare(kernel.thins[numbers["v"]], expected, "the kernel's thin, at last", chance)
            kernel.delete(numbers["s"])
        closed("discarded by the kernel, the snapshot deleted")


def story(folder, _):
    # RAM disks take memory by the page: a sector of each block needs 280 MB.
    data, metadata = ram_disks(2, (BLOCKS + 4096) * BLOCK)
    thin_out(folder, (metadata, data), random.Random(9))
    print(f"{BLOCKS} mappings, thinned out by both sides in turn: equal all the time")


if __name__ == "__main__":
    main(story)
