"""A device with zero copy beside one without and beside the kernel's dm-thin, of equal pools on RAM disks, by size of request; run by `tests/vm/lab --bench --kernel newest copying`.

All is in place: blocks are mapped and nothing shares them. As in peers.py, only figures of one run compare, and only as ratios; and copying is
dearer in software emulation than on a CPU.
"""

import json
import os
import statistics
import sys
from pathlib import Path

from devices import ram_disks
from peers import MIB, VOLUME_BYTES, Kernel, Ours, fio
from thin import main, say
from ublk import excuse_false_alarm, load_module, no_devices

ROUNDS = 3
SECONDS = 2
SIZES = ("4k", "16k", "64k", "256k")


class Copying(Ours):
    def __init__(self, name, folder, metadata, data, *options):
        self.options = options
        super().__init__(name, folder, metadata, data, "--journal", "none")

    def export(self):
        return self.pool.export("v", "--queues", "2", *self.options)


def story(folder, _):
    disks = ram_disks(6, 640 * MIB)
    load_module()
    copying = Copying("copying", folder, disks[0], disks[1])
    lending = Copying("zero copy", folder, disks[2], disks[3], "--zero-copy")
    peers = [Kernel("dm-thin", disks[4], disks[5]), copying, lending]
    figures = {}
    for _ in range(ROUNDS):
        for size in SIZES:
            for work in ("randread", "randwrite"):
                for peer in peers:
                    options = [f"--filename={peer.device}", "--time_based", f"--runtime={SECONDS}", "--norandommap", f"--size={VOLUME_BYTES}"]
                    rate = fio(peer.device, size, *options, f"--rw={work}", f"--bs={size}", depth=8)
                    figures.setdefault((work, size), {}).setdefault(peer.name, []).append(rate)
    lines = ["| requests a second, depth 8 | dm-thin | copying | zero copy | zero copy : copying | zero copy : dm-thin |", "| --- |" + " ---: |" * 5]
    for (work, size), found in figures.items():
        kernel, one, other = (statistics.median(found[peer.name]) for peer in peers)
        lines.append(f"| {work}, {size} | {kernel:.0f} | {one:.0f} | {other:.0f} | {other / one:.2f} | {other / kernel:.2f} |")
    say(json.dumps(lending.pool.exports()["v"]["zero_copy"]))
    for peer in peers:
        peer.close()
    no_devices("at the end")
    excuse_false_alarm()
    (Path(os.environ["KEEP"]) / "results.md").write_text("\n".join([f"Linux {os.uname().release}", "", *lines, ""]))
    print(f"{ROUNDS} rounds: see results.md")


if __name__ == "__main__":
    sys.exit(main(story))
