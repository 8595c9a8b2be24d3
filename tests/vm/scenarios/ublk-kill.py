"""The daemon is killed with SIGKILL while its devices are written: they fail and go, the machine lives, and what was flushed is there.

Writers with stamps keep book of what a crash may leave; fio and a mounted filesystem are there to get hurt as well.
"""

import random
import subprocess
import threading
import time
from pathlib import Path

from devices import Device, ram_disks
from filesystem import mounted
from stamps import SECTOR, Model, sectors_of, stamps_in
from thin import Failed, check, main, run, say
from ublk import UblkPool, load_module, no_devices

MIB = 1 << 20
VOLUME_BYTES = 32 * MIB
SECTORS = VOLUME_BYTES // SECTOR
WRITERS = 3
STRIPE = 32
ROUNDS = 3
SECONDS = 5


def write_forever(device, model, number, seed, stop, wrong):
    """One client: stripes of its own, a flush or a forced write now and then; ends when the device fails."""
    chance = random.Random(seed)
    try:
        with Device(device) as opened:
            while not stop.is_set():
                if chance.random() < 0.05:
                    covers = model.flush_begins()
                    opened.flush()
                    model.flush_ends(covers)
                    continue
                stripe = (chance.randrange(SECTORS // STRIPE // WRITERS) * WRITERS + number) * STRIPE
                first = stripe + chance.choice([0, 8, chance.randrange(STRIPE)])
                count = min(chance.choice([1, 8, 8, STRIPE]), stripe + STRIPE - first)
                forced = chance.random() < 0.03
                stamp = model.write_begins(first, count)
                opened.pwrite(sectors_of(stamp, count), first * SECTOR, forced)
                model.write_ends(first, count, stamp, forced)
    except OSError as error:
        if not stop.is_set():
            wrong.append(f"writer {number}: {error}")


def load_and_kill(pool, model, chance, folder):
    device, other = pool.export("v1", "--queues", "2"), pool.export("other")
    run("mkfs.ext4", "-q", "-F", other)
    mount = mounted(other, folder / "mounted")
    stop, wrong = threading.Event(), []
    writers = [
        threading.Thread(target=write_forever, args=(device, model, n, chance.random(), stop, wrong), daemon=True)
        for n in range(WRITERS)
    ]
    words = [f"--filename={mount}/file", "--size=8M", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--time_based", "--runtime=120"]
    fio = subprocess.Popen(["fio", "--name=hurt", "--ioengine=io_uring", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for writer in writers:
        writer.start()
    time.sleep(SECONDS * (0.5 + chance.random()))
    if wrong or fio.poll() is not None:
        raise Failed(f"while the daemon was alive: {wrong}, fio {fio.poll()}\n{pool.log_tail()}")
    stop.set()
    pool.kill()
    for writer in writers:
        writer.join(timeout=60)
    if any(writer.is_alive() for writer in writers):
        raise Failed("a write to the dead device does not end")
    try:
        fio.wait(timeout=60)
    except subprocess.TimeoutExpired:
        raise Failed("fio on the dead device does not end") from None
    run("umount", "-l", mount)
    end = time.monotonic() + 30
    while any((Path("/sys/block") / gone.name).exists() for gone in (device, other)):
        if time.monotonic() > end:
            raise Failed("a device outlives its daemon")
        time.sleep(0.05)


def story(folder, _):
    metadata, data = ram_disks(2, 256 * MIB)[::-1]
    load_module()
    chance = random.Random(5)
    here = Path(folder)
    with UblkPool(folder, metadata, data, "--journal", "none") as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.create("other", 32 * MIB)
        model = Model(SECTORS)
        for number in range(ROUNDS):
            pool.serve()
            if pool.exports() or (pool.path / "dev").exists():
                raise Failed("a new daemon finds exports of the old one")
            load_and_kill(pool, model, chance, here)
            check(metadata)
            pool.serve()
            no_devices("left by the killed daemon")
            device = pool.export("v1")
            with Device(device) as opened:
                complaint = model.after_crash(stamps_in(opened.pread(VOLUME_BYTES, 0)))
            if complaint:
                raise Failed(f"round {number}: {complaint}")
            say(f"round {number}: {model.next_stamp} writes so far, everything flushed is there")
            pool.close()
            check(metadata)
    if model.next_stamp < 300:
        raise Failed(f"only {model.next_stamp} writes: this shows nothing")
    print(f"killed {ROUNDS} times under {model.next_stamp} writes, fio and a mounted filesystem: nothing flushed was lost")


if __name__ == "__main__":
    main(story)
