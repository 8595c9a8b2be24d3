"""Volumes as block devices: exported, looked at, taken away."""

import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

from thin import BIN, Failed, UthinPool, run, uthin

CLASS = Path("/sys/class/ublk-char")
PF_MEMALLOC_NOIO = 0x80000  # include/linux/sched.h


def load_module():
    run("modprobe", "ublk_drv")


def devices():
    """Names of all ublk devices that the kernel knows of, whoever made them."""
    return sorted(path.name for path in CLASS.iterdir()) if CLASS.exists() else []


def no_devices(when):
    """A device goes when its last file is closed: that may take a moment."""
    end = time.monotonic() + 20
    while devices():
        if time.monotonic() > end:
            raise Failed(f"{when}: there are still {devices()}")
        time.sleep(0.05)


def excuse_false_alarm():
    """Up to Linux 7.2 the first request that is lent to a ring may bring up one complaint that is the kernel's own mistake: an array is filled
    before the count is set by which its bounds are watched (`io_buffer_register_bvec`). That one, and no other, is excused."""
    found = re.search(r"(UBSAN: array-index-out-of-bounds in \S*io_uring/rsrc\.c:\d+:\d+)\n(.*\n)(?:.*\n){0,12}.*io_buffer_register_bvec", run("dmesg"))
    if found and "index 0 is out of range for type 'bio_vec" in found[2]:
        (Path(os.environ["KEEP"]) / "excused").write_text(found[1] + "\n")


def refused(code, words, *command):
    """Runs uthin, which must say no, with this exit code and these words on stderr."""
    done = subprocess.run([BIN / "uthin", *map(str, command)], capture_output=True, text=True, timeout=120)
    if done.returncode != code or words not in done.stderr or "hint:" not in done.stderr:
        raise Failed(f"uthin {' '.join(map(str, command))}: expected {code} and {words!r}, got {done.returncode}:\n{done.stderr}")
    return done.stderr


class UblkPool(UthinPool):
    """A pool whose volumes are block devices."""

    def __exit__(self, kind, *rest):
        if kind and self.daemon:
            # What is still mounted would wait for the next daemon for ever, and so would whoever cleans up.
            for volume in self.exports():
                subprocess.run([BIN / "uthin", "unexport", self.path / volume, "--force"], timeout=60)
        super().__exit__(kind, *rest)

    def export(self, volume, *options):
        device = Path(uthin("export", self.path / volume, "--ublk", *options).strip())
        if not stat.S_ISBLK(device.stat().st_mode):
            raise Failed(f"{device} is no block device")
        return device

    def unexport(self, volume, *options):
        device = self.exports()[volume]["device"]
        uthin("unexport", self.path / volume, *options)
        if Path(device).exists():
            raise Failed(f"{volume} is unexported, and {device} is still there")

    def exports(self):
        """By volume, what `export --list` says."""
        listed = json.loads(uthin("export", "--list", self.path, "--json"))
        if listed["schema"] != "uthin/v1":
            raise Failed(f"a list of exports with schema {listed['schema']}")
        return {export["volume"]: export for export in listed["exports"]}

    def take_over(self, *options):
        """A new daemon in place of the one that serves, which ends in order."""
        old = self.daemon
        try:
            self.serve("--takeover", *options)
        except Failed:
            self.daemon = old  # somebody has to end it
            raise
        status = old.wait(timeout=60)
        if status != 0:
            raise Failed(f"the daemon that was replaced ended with status {status}:\n{self.log_tail()}")

    def keeps(self, code, words, *options):
        """A daemon with these options must not take the place of the one that serves, which goes on as if nothing had been."""
        before = self.exports()
        refused(code, words, "serve", self.path, "--takeover", *options)
        if self.daemon.poll() is not None or self.exports() != before:
            raise Failed(f"a takeover was refused, and the daemon did not go on:\n{self.log_tail()}")

    def remembered(self):
        """Numbers of the devices that the pool remembers: those that outlive the daemon."""
        path = self.path / "devices.json"
        return sorted(device["number"] for device in json.loads(path.read_text())["devices"]) if path.exists() else []

    def lists(self, volumes):
        if set(self.exports()) != volumes:
            raise Failed(f"exported are {sorted(self.exports())}, expected {sorted(volumes)}")

    def link(self, volume):
        return self.path / "dev" / volume

    def resources(self):
        """What the daemon has: threads, open files, resident memory."""
        process = Path("/proc") / str(self.daemon.pid)
        words = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return int(words["Threads"]), len(os.listdir(process / "fd")), int(words["VmRSS"].split()[0]) << 10

    def stands_in_the_way_of_writes(self):
        """Every thread of the daemon has told the kernel so (PR_SET_IO_FLUSHER), and its memory is locked."""
        process = Path("/proc") / str(self.daemon.pid)
        for thread in (process / "task").iterdir():
            flags = int((thread / "stat").read_text().rpartition(")")[2].split()[6])
            if flags & PF_MEMALLOC_NOIO == 0:
                raise Failed(f"thread {(thread / 'comm').read_text().strip()} may wait for itself: flags {flags:x}")
        words = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        if int(words["VmLck"].split()[0]) == 0:
            raise Failed("the daemon's memory is not locked")
