"""What is written to a device is what is read from it: fio with checksums on two queues at depth 128, and a load that keeps book.

Direct I/O of 512 bytes to 1 MiB at any sector, discards and zeroes with unaligned heads and tails, blkdiscard with and without -z.
"""

import json
import random
import time
from pathlib import Path

from contents import Contents, load
from devices import Device, ram_disks
from thin import Failed, check, main, run, say
from ublk import UblkPool, load_module, no_devices

MIB = 1 << 20
BLOCK = 64 << 10
VOLUME_BYTES = 64 * MIB
ODD_BYTES = 10 * MIB + 3 * 512


def fio(folder, device, name, *options):
    """Writes all of the device in random order and reads it back by checksum; returns how many writes were made."""
    words = ["fio", f"--name={name}", f"--filename={device}", "--ioengine=io_uring", "--direct=1", "--iodepth=128", "--rw=randwrite"]
    words += ["--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--output-format=json", f"--output={folder}/fio.json", *options]
    run(*words, timeout=300)
    told = (Path(folder) / "fio.json").read_text()
    job = json.loads(told[told.index("{") :])["jobs"][0]  # notes come before
    if job["error"] or not job["write"]["total_ios"] or job["read"]["io_bytes"] < job["write"]["io_bytes"]:
        raise Failed(f"fio {name}: error {job['error']}, {job['write']['total_ios']} writes, {job['read']['total_ios']} reads")
    say(f"fio {name}: {job['write']['total_ios']} writes, read back")
    return job["write"]["total_ios"]


def discards(pool, device, contents, opened):
    """blkdiscard unmaps the whole blocks inside its range, and with -z zeroes all of it, heads and tails too."""
    begin, length = 3 * BLOCK + 512, 9 * BLOCK + 1024
    run("blkdiscard", "-z", "-o", begin, "-l", length, device)
    contents.bytes[begin : begin + length] = bytes(length)
    contents.compare(opened, "after blkdiscard -z")

    begin, length = 20 * BLOCK + 4096, 10 * BLOCK
    mapped = pool.volumes()["v1"]["mapped_bytes"]
    run("blkdiscard", "-o", begin, "-l", length, device)
    first, end = 21 * BLOCK, 30 * BLOCK
    contents.bytes[first:end] = bytes(end - first)
    contents.compare(opened, "after blkdiscard")
    gone = mapped - pool.volumes()["v1"]["mapped_bytes"]
    if gone != end - first:
        raise Failed(f"blkdiscard of {length} bytes freed {gone}, expected {end - first}")

    run("blkdiscard", device)
    contents.bytes[:] = bytes(len(contents.bytes))
    contents.compare(opened, "after blkdiscard of everything")
    if pool.volumes()["v1"]["mapped_bytes"] != 0:
        raise Failed("blkdiscard of everything left blocks mapped")
    run("blkdiscard", "-z", device)
    contents.compare(opened, "after blkdiscard -z of everything")


def story(folder, _):
    metadata, data = ram_disks(2, 256 * MIB)[::-1]
    load_module()
    chance = random.Random(4)
    with UblkPool(folder, metadata, data, "--journal", "none") as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.create("odd", ODD_BYTES)
        pool.serve()
        device = pool.export("v1", "--queues", "2", "--depth", "128")
        if len(list((Path("/sys/block") / device.name / "mq").iterdir())) != 2:
            raise Failed(f"{device} does not have two queues")
        writes = fio(folder, device, "sectors", "--bs=512", f"--size={2 * MIB}")
        writes += fio(folder, device, "large", "--bs=1M", f"--size={VOLUME_BYTES}")
        writes += fio(folder, device, "any", "--bsrange=512-256k", "--blockalign=512", f"--size={VOLUME_BYTES}")
        pool.snapshot("v1", "s1")
        writes += fio(folder, device, "jobs", "--bs=4k", "--numjobs=2", "--group_reporting", f"--size={8 * MIB}", f"--offset_increment={16 * MIB}")

        held = {"v1": Contents(VOLUME_BYTES), "odd": Contents(ODD_BYTES)}
        with Device(device) as opened:
            held["v1"].bytes[:] = opened.pread(VOLUME_BYTES, 0)
            load(opened, held["v1"], chance, 400, BLOCK)
            held["v1"].compare(opened, "written and discarded")
        with Device(pool.export("odd")) as opened:
            load(opened, held["odd"], chance, 200, BLOCK)
            held["odd"].compare(opened, "the volume with a short last block")
        say("a load that keeps book: equal")
        pool.unexport("odd")
        through_nbd = pool.open("v1")
        held["v1"].compare(through_nbd, "the same through NBD")
        through_nbd.shutdown()

        pool.kill()
        no_devices_of(device)
        pool.serve()
        device = pool.export("v1")
        with Device(device) as opened:
            held["v1"].compare(opened, "flushed, killed and served again")
            discards(pool, device, held["v1"], opened)
        pool.unexport("v1")
        no_devices("at the end")
        pool.close()
        check(metadata)
    print(f"{writes} writes of fio and 600 of our own on two queues: every byte is right")


def no_devices_of(device):
    """The block device of a daemon that was killed goes by itself."""
    end = time.monotonic() + 20
    while (Path("/sys/block") / device.name).exists():
        if time.monotonic() > end:
            raise Failed(f"{device} outlives its daemon")
        time.sleep(0.05)


if __name__ == "__main__":
    main(story)
