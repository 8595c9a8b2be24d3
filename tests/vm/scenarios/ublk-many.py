"""Fifty devices in one daemon, all in use at a time; and one that comes and goes 200 times: no device, thread, file or memory is left."""

import random
import threading
import time
from pathlib import Path

from devices import Device, ram_disks
from thin import Failed, check, main, say, uthin
from ublk import UblkPool, devices, load_module, no_devices

MIB = 1 << 20
COUNT = 50
CYCLES = 200
WARM_CYCLES = 20
THREADS = 9  # that looking once a second can keep for ten
MEMORY_BYTES = 4 * MIB


def use(device, number, wrong):
    """A pattern of its own in every device, while all others are written too."""
    try:
        chance = random.Random(number)
        pieces = {at: chance.randbytes(8192) for at in range(0, 4 * MIB, 256 << 10)}
        with Device(device) as opened:
            for at, data in pieces.items():
                opened.pwrite(data, at)
            opened.flush()
            for at, data in pieces.items():
                if opened.pread(len(data), at) != data:
                    raise Failed(f"{device}: another's bytes at {at}")
    except (Failed, OSError) as error:
        wrong.append(f"{device}: {error}")


def all_at_once(pool):
    volumes = [f"v{number}" for number in range(COUNT)]
    exported = {volume: pool.export(volume) for volume in volumes}
    if len(set(exported.values())) != COUNT or len(devices()) != COUNT:
        raise Failed(f"{COUNT} exports made {len(devices())} devices")
    threads, files, memory = pool.resources()
    say(f"{COUNT} devices: {threads} threads, {files} files, {memory >> 20} MiB")
    wrong = []
    users = [threading.Thread(target=use, args=(device, n, wrong)) for n, device in enumerate(exported.values())]
    for user in users:
        user.start()
    for user in users:
        user.join(timeout=120)
    if wrong or any(user.is_alive() for user in users):
        raise Failed(f"{len(wrong)} devices: {wrong[:3]}\n{pool.log_tail()}")
    for volume in volumes:
        pool.unexport(volume)
    no_devices("after 50 exports")


def come_and_go(pool, threads):
    before = None
    for cycle in range(CYCLES):
        device = pool.export("v0")
        with Device(device) as opened:
            opened.pread(512, 0)
        uthin("unexport", pool.path / "v0", "--wait=20")
        if cycle == WARM_CYCLES:
            before = pool.resources()
    no_devices(f"after {CYCLES} exports")
    costs_nothing(pool, (threads, *before[1:]), f"{CYCLES} exports")


def costs_nothing(pool, before, what):
    """Threads that answered a command live on for ten seconds; the daemon looks at itself once a second, by each in turn, so that a few stay."""
    end = time.monotonic() + 40
    while True:
        after = pool.resources()
        if after[0] <= before[0] + THREADS and after[1] <= before[1] and after[2] <= before[2] + MEMORY_BYTES:
            return say(f"{what}: {before} before, {after} after (threads, files, bytes)")
        if time.monotonic() > end:
            raise Failed(f"{what} cost something: {before} before, {after} after (threads, files, bytes)")
        time.sleep(0.5)


def story(folder, _):
    metadata, data = ram_disks(2, 512 * MIB)[::-1]
    load_module()
    with UblkPool(folder, metadata, data) as pool:
        pool.serve()
        for number in range(COUNT):
            pool.create(f"v{number}", 8 * MIB)
        idle = pool.resources()
        all_at_once(pool)
        first = pool.resources()  # a lane's seat keeps its eventfd for the next who sits there
        all_at_once(pool)
        costs_nothing(pool, (idle[0], *first[1:]), f"{COUNT} devices that came and went twice")
        come_and_go(pool, idle[0])
        log = (Path(folder) / "daemon.log").read_text()
        if " ERROR " in log:
            raise Failed(f"the daemon complained:\n{pool.log_tail()}")
        pool.close()
        check(metadata)
    print(f"{COUNT} devices at a time, {CYCLES} one after the other: nothing is left of them")


if __name__ == "__main__":
    main(story)
