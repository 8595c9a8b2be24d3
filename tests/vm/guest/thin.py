"""The two sides of a scenario: the kernel's dm-thin on a pair of devices, and uthin on the same pair."""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import nbd

from devices import Device
from pool import BIN, ROOT, Failed, Pool, main, run, uthin

__all__ = ["BIN", "Cut", "Failed", "KernelPool", "UthinPool", "check", "check_but_leaks", "dump", "main", "run", "say", "uthin"]

SECTOR = 512


def say(*words):
    print(f"[{time.monotonic():7.2f} s]", *words, flush=True)


@functools.cache
def oracles():
    return Path(run(ROOT / "tools" / "oracle").strip().splitlines()[-1])


def check_but_leaks(metadata):
    """As `check`, for metadata whose counts may be above their references: what the kernel leaves when it is cut off
    in a discard. Returns whether there are any."""
    run(oracles() / "thin_check", "--ignore-non-fatal-errors", metadata)
    found = subprocess.run([BIN / "uthin-fsck", "check", metadata], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if found.returncode not in (0, 3):
        raise Failed(f"uthin-fsck check {metadata}: exit status {found.returncode}\n{found.stdout}")
    return found.returncode == 3


def check(metadata, thorough=False):
    """Independent checkers look at metadata that nobody has open: thin_check, uthin-fsck and, where it is worth ten seconds, verify.py."""
    run(oracles() / "thin_check", metadata)
    run(BIN / "uthin-fsck", "check", metadata)
    if thorough:
        run(sys.executable, ROOT / "tests" / "oracle" / "verify.py", metadata, timeout=300)


def dump(metadata, *options):
    """All mappings, as thin_dump tells them."""
    return run(oracles() / "thin_dump", *options, metadata)


class KernelPool:
    """A thin-pool target and its thins, which are `Device`s."""

    def __init__(self, metadata, data, block_bytes, features=(), name=None):
        """The targets are `pool` and `thin0` ..., or `NAME-pool` and `NAME-thin0` ..."""
        run("modprobe", "dm-thin-pool")
        self.prefix = f"{name}-" if name else ""
        self.name = f"{self.prefix}pool"
        with Device(data) as device:
            self.sectors = device.size_bytes // block_bytes * block_bytes // SECTOR
        self.line = f"{metadata} {data} {block_bytes // SECTOR} 0 {len(features)} {' '.join(features)}".strip()
        self.thins = {}

    def __enter__(self):
        self.dm("create", self.name, "--table", f"0 {self.sectors} thin-pool {self.line}")
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.remove()

    def dm(self, *words):
        try:
            return run("dmsetup", *words)
        except Failed as wrong:
            raise Failed(f"{wrong}\nthe kernel says:\n{kernel_log_tail()}") from None

    def message(self, words):
        self.dm("message", self.name, "0", words)

    def thin_name(self, number):
        return f"{self.prefix}thin{number}"

    def thin(self, number, size_bytes):
        """Activates a thin device and opens it."""
        name = self.thin_name(number)
        self.dm("create", name, "--table", f"0 {size_bytes // SECTOR} thin /dev/mapper/{self.name} {number}")
        self.thins[number] = Device(f"/dev/mapper/{name}")
        return self.thins[number]

    def create_thin(self, number, size_bytes):
        self.message(f"create_thin {number}")
        return self.thin(number, size_bytes)

    def snapshot(self, number, origin):
        """As the kernel wants it: the origin is suspended meanwhile."""
        if origin in self.thins:
            self.dm("suspend", self.thin_name(origin))
        self.message(f"create_snap {number} {origin}")
        if origin in self.thins:
            self.dm("resume", self.thin_name(origin))

    def create_snap(self, number, origin, size_bytes):
        self.snapshot(number, origin)
        return self.thin(number, size_bytes)

    def deactivate(self, number):
        self.thins.pop(number).close()
        self.dm("remove", "--retry", self.thin_name(number))

    def delete(self, number):
        if number in self.thins:
            self.deactivate(number)
        self.message(f"delete {number}")

    def status(self):
        """The status line's words, by what they are."""
        words = self.dm("status", self.name).split()[3:]
        if len(words) < 9:
            raise Failed(f"the kernel's pool is in no good state: {' '.join(words)}\n{kernel_log_tail()}")
        names = ("transaction", "metadata", "data", "held", "mode", "discard", "full", "needs_check", "mark")
        return dict(zip(names, words))

    def same_as(self, handed_over):
        """Whether the kernel sees the numbers that uthin told."""
        state = self.status()
        state = [state["transaction"], state["metadata"], state["data"], state["held"]]
        if state != handed_over:
            raise Failed(f"the kernel's status says {state}, uthin's said {handed_over}")

    def abandon(self):
        """Takes the targets away, whatever state the pool is in."""
        for number in list(self.thins):
            self.deactivate(number)
        self.dm("remove", "--retry", self.name)

    def remove(self):
        state = self.status()
        if state["mode"] != "rw" or state["needs_check"] != "-":
            raise Failed(f"the kernel's pool ended as {state}\n{kernel_log_tail()}")
        self.abandon()


class Cut:
    """A linear target on a device, which can be cut off as a power cut does: what is under way fails, nothing more arrives. Or made to fail
    otherwise, and restored."""

    def __init__(self, device):
        with Device(device) as opened:
            self.sectors = opened.size_bytes // SECTOR
        self.device = device
        self.name = f"cut-{Path(device).name}"
        self.path = Path("/dev/mapper") / self.name
        run("dmsetup", "create", self.name, "--table", self._table("linear", device, 0))

    def _table(self, *words):
        return " ".join(str(word) for word in (0, self.sectors, *words))

    def _becomes(self, *words):
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        run("dmsetup", "load", self.name, "--table", self._table(*words))
        run("dmsetup", "resume", self.name)

    def cut(self):
        self._becomes("error")

    def refuse_writes(self):
        """What is there can be read; writes fail."""
        self._becomes("flakey", self.device, 0, 0, 3600, 1, "error_writes")

    def come_and_go(self):
        """Everything fails for a second, works for a second, and so on."""
        self._becomes("flakey", self.device, 0, 1, 1)

    def restore(self):
        self._becomes("linear", self.device, 0)

    def remove(self):
        run("dmsetup", "remove", "--retry", self.name)


def refused_by_kernel(metadata, data, block_bytes, features):
    """The kernel must refuse the pool because of these incompatible features, a mask as it prints it, and leave it as it is."""
    before = run("sha256sum", metadata)
    try:
        KernelPool(metadata, data, block_bytes).__enter__()
    except Failed as wrong:
        if f"unsupported optional features ({features})" not in str(wrong):
            raise Failed(f"the kernel refuses it for another reason: {wrong}") from None
    else:
        raise Failed(f"the kernel opens a pool with the features {features}")
    if run("sha256sum", metadata) != before:
        raise Failed("the kernel has written to metadata that it refused")


def kernel_log_tail(lines=15):
    return "\n".join(run("dmesg").splitlines()[-lines:])


class UthinPool(Pool):
    """A pool directory whose `data` and `metadata` are devices: made by `uthin pool create`, laid around a pool that is there, or there."""

    def __init__(self, folder, metadata, data, *options, adopt=False, exists=False):
        self.path = Path(folder) / "pool"
        self.daemon = None
        self.devices = (metadata, data)
        if exists:
            return
        if adopt:
            self.path.mkdir()
            (self.path / "metadata").symlink_to(metadata)
            (self.path / "data").symlink_to(data)
        else:
            uthin("pool", "create", self.path, "--data", data, "--metadata", metadata, *options)

    def check(self):
        check(self.devices[0])

    def handed_over(self):
        """What the kernel's status line must say about it: transaction id, metadata and data in use, metadata snapshot."""
        return self.dm_line()[:4]

    def create(self, name, size_bytes):
        uthin("volume", "create", self.path / name, "--size", str(size_bytes))

    def snapshot(self, origin, name):
        uthin("volume", "snapshot", self.path / origin, name)

    def delete(self, name):
        uthin("volume", "delete", self.path / name)
        self.wait_for_deletions()

    def wait_for_deletions(self):
        end = time.monotonic() + 60
        while self.status()["deleting"]:
            if time.monotonic() > end:
                raise Failed("a deletion in the background does not come to its end")
            time.sleep(0.2)

    def volumes(self):
        """By name, what `volume list` says about each."""
        listed = json.loads(uthin("volume", "list", self.path, "--json"))["volumes"]
        return {volume["name"]: volume for volume in listed}

    def dm_line(self):
        return uthin("pool", "status", self.path, "--format", "dm").split()

    def open(self, volume):
        handle = nbd.NBD()
        handle.connect_uri(self.uri(volume))
        return handle
