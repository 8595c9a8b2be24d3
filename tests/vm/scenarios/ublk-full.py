"""A pool without space, on which writes wait for as long as it takes: a device that is taken away with them waiting, and a daemon that is closed.

Who waits gets an error then, nobody hangs, and what was written before is there.
"""

import json
import subprocess
import time

from devices import ram_disks
from thin import Failed, check, main, run, say, uthin
from ublk import UblkPool, load_module, no_devices

MIB = 1 << 20
DATA_MIB = 32


def writer(device, offset_mib):
    """Writes more than the pool has, past the page cache, as long as it is let."""
    words = ["dd", "if=/dev/urandom", f"of={device}", "bs=1M", f"count={DATA_MIB}", f"seek={offset_mib}", "oflag=direct"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until_waiting(pool):
    deadline = time.monotonic() + 60
    while json.loads(uthin("pool", "status", pool.path, "--json"))["waiting_for_space"] == 0:
        if time.monotonic() > deadline:
            raise Failed("no write waits for space")
        time.sleep(0.1)


def has_failed(writing, what):
    _, words = writing.communicate(timeout=30)
    if writing.returncode == 0 or "error writing" not in words:
        raise Failed(f"{what}: the write that waited ended with {writing.returncode}: {words}")


def story(folder, _):
    metadata, data = ram_disks(2, DATA_MIB * MIB)[::-1]
    load_module()
    with UblkPool(folder, metadata, data, "--when-full", "queue:0") as pool:
        for name in ("v1", "v2"):
            pool.create(name, 4 * DATA_MIB * MIB)
        pool.serve()
        first = pool.export("v1")
        run("dd", "if=/dev/urandom", f"of={folder}/sample", "bs=1M", "count=8")
        run("dd", f"if={folder}/sample", f"of={first}", "bs=1M", "oflag=direct", "conv=fsync")
        writing = writer(first, 16)
        until_waiting(pool)
        begun = time.monotonic()
        pool.unexport("v1", "--force")
        say(f"a device with waiting writes was taken away in {time.monotonic() - begun:.1f} s")
        has_failed(writing, "taken away")

        writing = writer(pool.export("v2"), 0)
        until_waiting(pool)
        begun = time.monotonic()
        pool.close()
        say(f"a daemon with waiting writes was closed in {time.monotonic() - begun:.1f} s")
        has_failed(writing, "closed")
        no_devices("after the end")

        pool.serve()
        again = pool.export("v1", "--read-only")
        run("cmp", "--bytes", str(8 * MIB), again, f"{folder}/sample")
        pool.close()
    check(metadata)
    no_devices("at the end")
    print("devices with writes that wait for space go away, and so does the daemon")


if __name__ == "__main__":
    main(story)
