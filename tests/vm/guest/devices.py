"""Block devices as a scenario uses them: RAM disks, and direct I/O on whatever is a device.

Direct I/O, so that nothing stands between a scenario and the driver that it is about: what is read comes from the device,
and what a write left there is there when the write returns.
"""

import fcntl
import mmap
import os
import struct
from pathlib import Path

from pool import Failed, run

BLKGETSIZE64 = 0x80081272
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
CHUNK_BYTES = 1 << 20


def ram_disks(count, size_bytes):
    """Makes blank RAM disks, all of one size; they take memory as they are written. Once a run."""
    run("modprobe", "brd", f"rd_nr={count}", f"rd_size={size_bytes >> 10}")
    disks = [Path(f"/dev/ram{number}") for number in range(count)]
    for disk in disks:
        if not disk.is_block_device():
            raise Failed(f"brd made no {disk}")
    return disks


def loop_device(path):
    """A loop device on a file, with direct I/O where the file's filesystem can."""
    run("modprobe", "loop")
    return Path(run("losetup", "--find", "--show", "--sector-size", "512", path).strip())


class Device:
    """An open block device. Offsets and lengths are multiples of 512."""

    def __init__(self, path, writable=True):
        self.path = Path(path)
        self.handle = os.open(self.path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, CHUNK_BYTES)  # pages: aligned as direct I/O wants it
        self.size_bytes = struct.unpack("Q", fcntl.ioctl(self.handle, BLKGETSIZE64, bytes(8)))[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        os.close(self.handle)
        self.buffer.close()

    def pread(self, length, offset):
        parts = []
        while length:
            step = min(length, CHUNK_BYTES)
            with memoryview(self.buffer) as view, view[:step] as part:
                if os.preadv(self.handle, [part], offset) != step:
                    raise Failed(f"{self.path}: a read of {step} bytes at {offset} came back short")
                parts.append(bytes(part))
            offset, length = offset + step, length - step
        return b"".join(parts)

    def pwrite(self, data, offset, forced=False):
        """Forced: durable when it returns."""
        flags = os.RWF_DSYNC if forced else 0
        for at in range(0, len(data), CHUNK_BYTES):
            step = min(len(data) - at, CHUNK_BYTES)
            self.buffer[:step] = data[at : at + step]
            with memoryview(self.buffer) as view, view[:step] as part:
                if os.pwritev(self.handle, [part], offset + at, flags) != step:
                    raise Failed(f"{self.path}: a write of {step} bytes at {offset + at} came back short")

    def flush(self):
        os.fsync(self.handle)

    def trim(self, length, offset):
        fcntl.ioctl(self.handle, BLKDISCARD, struct.pack("QQ", offset, length))

    def zero(self, length, offset):
        fcntl.ioctl(self.handle, BLKZEROOUT, struct.pack("QQ", offset, length))

    def can_trim(self):
        return int((Path("/sys/class/block") / self.path.resolve().name / "queue/discard_max_bytes").read_text()) > 0
