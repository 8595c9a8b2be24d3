#!/usr/bin/env python3
"""Four fio jobs with verify=crc32c and mixed sizes, a snapshot every second, stamped writers beside, each snapshot compared.

    snapshots.py [SECONDS]     (default 60)

fio verifies what it wrote to v1. Beside it writers stamp v2, which is snapshotted every second too; each snapshot of v2 must
be what the model says v2 was at that moment, and stay so.
"""

import random
import subprocess
import sys
import threading
import time

from pool import Failed, Pool, main, run, uthin
from stamps import Model, compare_snapshot
from torture import SECTORS, VOLUME_BYTES, WRITERS, Ending, read_all, write_forever

KEPT = 6


def fio(pool, seconds):
    jobs = ["--name=mixed", "--ioengine=nbd", f"--uri={pool.uri('v1')}", "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned=0"]
    jobs += ["--blockalign=512", "--numjobs=4", "--size=48m", "--offset_increment=48m", "--iodepth=8", "--verify=crc32c"]
    jobs += ["--verify_fatal=1", "--verify_state_save=0", "--verify_backlog=512", "--fsync=64", "--group_reporting"]
    jobs += ["--time_based=1", f"--runtime={seconds}"]
    return subprocess.Popen(["fio", *jobs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def story(folder, arguments):
    seconds = int(arguments[0]) if arguments else 60
    with Pool(folder, "2G") as pool:
        uthin("volume", "create", pool.path / "v1", "--size", str(4 * 48 << 20))
        uthin("volume", "create", pool.path / "v2", "--size", str(VOLUME_BYTES))
        pool.serve()
        model, ending, wrong, snapshots = Model(SECTORS), Ending(), [], {}
        writers = [
            threading.Thread(target=write_forever, args=(pool, model, number, random.random(), ending, wrong, "v2"))
            for number in range(WRITERS)
        ]
        job = fio(pool, seconds)
        for writer in writers:
            writer.start()
        try:
            taken = _snapshot_every_second(pool, model, job, snapshots, wrong)
        finally:
            ending.stopped.set()
            for writer in writers:
                writer.join(timeout=30)
            output, _ = job.communicate(timeout=120)
        if job.returncode != 0 or wrong:
            raise Failed(f"fio: exit status {job.returncode}, writers: {wrong}\n{output}\n{pool.log_tail()}")
        _compare_all(pool, snapshots)
        if read_all(pool, "v2") != model.now():
            raise Failed("v2 is not what was written to it")
        pool.close()
        pool.check()
        print(f"{taken} snapshots of each volume in {seconds} s of load, {model.next_stamp} stamped writes, all as they should be")


def _snapshot_every_second(pool, model, job, snapshots, wrong):
    taken = 0
    while job.poll() is None and not wrong:
        begin = time.monotonic()
        uthin("volume", "snapshot", pool.path / "v1", f"fio-{taken}")
        begun = model.snapshot_begins()
        uthin("volume", "snapshot", pool.path / "v2", f"stamped-{taken}")
        snapshots[f"stamped-{taken}"] = model.snapshot_ends(begun)
        taken += 1
        if len(snapshots) > KEPT:  # the oldest is compared once more, after all that was written since, and goes
            name = next(iter(snapshots))
            complaint = compare_snapshot(snapshots.pop(name), read_all(pool, name))
            if complaint:
                raise Failed(f"{name}: {complaint}")
            uthin("volume", "delete", pool.path / name)
            uthin("volume", "delete", pool.path / name.replace("stamped", "fio"))
        time.sleep(max(0.0, begin + 1 - time.monotonic()))
    return taken


def _compare_all(pool, snapshots):
    for name, contents in snapshots.items():
        complaint = compare_snapshot(contents, read_all(pool, name))
        if complaint:
            raise Failed(f"{name}: {complaint}")


if __name__ == "__main__":
    sys.exit(main(story))
