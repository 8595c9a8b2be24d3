"""The kernel's pool loses its devices under load, as in a power cut: uthin opens what is left, and every flushed write is there.

Metadata is cut off first: what the kernel wrote since its last commit lies in blocks that this commit does not know. One thin keeps book of
what each sector may hold, one is written and discarded without care (a cut in a discard leaves the kernel's counts too high: such
leaks stay, and there must be no other damage), and three rest.
"""

import random
import threading
import time
from pathlib import Path

import from_kernel
from contents import SECTOR, Contents
from devices import Device, ram_disks
from stamps import Model, sectors_of, stamps_in
from thin import Cut, Failed, KernelPool, UthinPool, check, check_but_leaks, main, say

BLOCK = 64 << 10
BUSY, NOISE = 10, 11
BUSY_BYTES = 12 << 20
SECTORS = BUSY_BYTES // SECTOR
STRIPE = SECTORS // 2  # a half for each writer


def write_until_cut(model, number):
    """Stamped writes and flushes, until the device fails."""
    chance = random.Random(number)
    with Device(f"/dev/mapper/thin{BUSY}") as device:
        try:
            while True:
                if chance.random() < 0.04:
                    covers = model.flush_begins()
                    device.flush()
                    model.flush_ends(covers)
                count = chance.choice([1, 8, 8, 128])
                first = number * STRIPE + chance.randrange(STRIPE - count + 1)
                stamp = model.write_begins(first, count)
                device.pwrite(sectors_of(stamp, count), first * SECTOR)
                model.write_ends(first, count, stamp)
        except OSError:
            return  # the power is gone


def make_noise(size_bytes):
    chance = random.Random(7)
    with Device(f"/dev/mapper/thin{NOISE}") as device:
        try:
            while True:
                first = chance.randrange(size_bytes // BLOCK - 8)
                if chance.random() < 0.5:
                    device.trim(8 * BLOCK, first * BLOCK)
                else:
                    device.pwrite(chance.randbytes(BLOCK), first * BLOCK)
        except OSError:
            return


def lose_power(metadata, data, chance):
    """Returns what the resting volumes hold and the model of the busy one."""
    cuts = [Cut(metadata), Cut(data)]
    kernel = KernelPool(cuts[0].path, cuts[1].path, BLOCK).__enter__()
    held = from_kernel.fill(kernel, chance, BLOCK, 50)
    model = Model(SECTORS)
    kernel.create_thin(BUSY, BUSY_BYTES)
    kernel.create_thin(NOISE, BUSY_BYTES)
    kernel.create_snap(NOISE + 1, NOISE, BUSY_BYTES)
    busy = [threading.Thread(target=write_until_cut, args=(model, number)) for number in range(2)]
    busy.append(threading.Thread(target=make_noise, args=(BUSY_BYTES,)))
    for thread in busy:
        thread.start()
    time.sleep(5)
    for cut in cuts:
        cut.cut()
    for thread in busy:
        thread.join(timeout=60)
        if thread.is_alive():
            raise Failed("the kernel's pool hangs after the cut")
    kernel.abandon()
    for cut in cuts:
        cut.remove()
    say(f"cut off after {model.next_stamp} writes")
    if model.next_stamp < 100:
        raise Failed("hardly a write before the cut: this shows nothing")
    return held, model


def story(folder, _):
    data, metadata = ram_disks(2, 256 << 20)
    chance = random.Random(5)
    held, model = lose_power(metadata, data, chance)
    leaks = check_but_leaks(metadata)
    say("the kernel left", "leaks" if leaks else "no leaks")

    with UthinPool(folder, metadata, data, adopt=True) as pool:
        pool.serve()
        size = pool.volumes()[str(BUSY)]["size_bytes"]
        opened = pool.open(str(BUSY))
        found = opened.pread(size, 0)
        opened.shutdown()
        complaint = model.after_crash(stamps_in(found) + [0] * (SECTORS - size // SECTOR))
        if complaint:
            raise Failed(f"uthin's volume {BUSY}: {complaint}")
        held[BUSY] = Contents(BUSY_BYTES)
        held[BUSY].bytes[: len(found)] = found
        for number in (NOISE, NOISE + 1):
            pool.delete(str(number))
        pool.close()
    say("every flushed write is there")
    again = Path(folder) / "again"  # a second directory around the same devices: its volumes appear by number once more
    again.mkdir()
    handed_over = from_kernel.use(again, (metadata, data), held, chance, BLOCK, leaks, from_kernel.TRANSACTION + 2)
    if leaks:
        check_but_leaks(metadata)
    with KernelPool(metadata, data, BLOCK) as kernel:
        kernel.same_as(handed_over)
        from_kernel.compare(kernel, held, "back")
    if not leaks:
        check(metadata, thorough=True)
    print(f"{model.next_stamp} writes, cut off, nothing lost; {'the kernel had leaked' if leaks else 'no leaks'}")


if __name__ == "__main__":
    main(story)
