"""A device with zero copy beside one without, of equal pools on RAM disks, by size of request; run by `tests/vm/lab --bench --kernel newest copying`.

All is in place: blocks are mapped and nothing shares them. As in peers.py, only figures of one run compare, and only as ratios; and copying is
dearer in software emulation than on a CPU.
"""

import json
import os
import statistics
import sys
from pathlib import Path

from devices import ram_disks
from peers import MIB, VOLUME_BYTES, Ours, fio
from thin import main, say
from ublk import excuse_false_alarm, load_module, no_devices

ROUNDS = 3
SECONDS = 2
SIZES = ("4k", "16k", "64k", "256k")


class Copying(Ours):
    def __init__(self, name, folder, metadata, data, *options):
        self.options = options
        super().__init__(name, folder, metadata, data)

    def export(self):
        return self.pool.export("v", "--queues", "2", *self.options)


def story(folder, _):
    disks = ram_disks(4, 640 * MIB)
    load_module()
    peers = [Copying("copying", folder, disks[0], disks[1]), Copying("zero copy", folder, disks[2], disks[3], "--zero-copy")]
    figures = {}
    for _ in range(ROUNDS):
        for size in SIZES:
            for work in ("randread", "randwrite"):
                for peer in peers:
                    options = [f"--filename={peer.device}", "--time_based", f"--runtime={SECONDS}", "--norandommap", f"--size={VOLUME_BYTES}"]
                    rate = fio(peer.device, size, *options, f"--rw={work}", "--iodepth=8", f"--bs={size}")
                    figures.setdefault((work, size), {}).setdefault(peer.name, []).append(rate)
    lines = ["| requests a second, depth 8 | copying | zero copy | zero copy : copying |", "| --- | ---: | ---: | ---: |"]
    for (work, size), found in figures.items():
        one, other = (statistics.median(found[peer.name]) for peer in peers)
        lines.append(f"| {work}, {size} | {one:.0f} | {other:.0f} | {other / one:.2f} |")
    say(json.dumps(peers[1].pool.exports()["v"]["zero_copy"]))
    for peer in peers:
        peer.close()
    no_devices("at the end")
    excuse_false_alarm()
    (Path(os.environ["KEEP"]) / "results.md").write_text("\n".join([f"Linux {os.uname().release}", "", *lines, ""]))
    print(f"{ROUNDS} rounds: see results.md")


if __name__ == "__main__":
    sys.exit(main(story))
