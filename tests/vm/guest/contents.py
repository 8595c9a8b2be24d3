"""What a volume should hold, byte for byte, and a load that keeps book of it.

The load speaks to libnbd's handles and to `devices.Device` alike: pread, pwrite, flush, trim, zero.
"""

import zlib

from pool import Failed

CHUNK_BYTES = 1 << 20
SECTOR = 512


class Contents:
    """The bytes of one volume."""

    def __init__(self, size_bytes):
        self.bytes = bytearray(size_bytes)

    def copy(self):
        """What a snapshot holds from now on."""
        twin = Contents(0)
        twin.bytes = bytearray(self.bytes)
        return twin

    def checksum(self):
        return f"{zlib.crc32(self.bytes):08x}"

    def compare(self, opened, what):
        """Reads all of it; fails with the first sector that differs."""
        end = len(self.bytes)
        expected = memoryview(self.bytes)
        for offset in range(0, end, CHUNK_BYTES):
            step = min(CHUNK_BYTES, end - offset)
            found = bytes(opened.pread(step, offset))
            if found != expected[offset : offset + step]:
                raise Failed(f"{what}: {_difference(found, expected, offset)}")

    def beginning(self, size_bytes, what):
        """The contents of a volume that ends where the last mapped block does: there must be only zeros beyond."""
        if any(memoryview(self.bytes)[size_bytes:]):
            raise Failed(f"{what}: ends at {size_bytes}, but more was written")
        part = Contents(0)
        part.bytes = self.bytes[:size_bytes]
        return part


def compare_all(pool, held, when):
    """Compares volumes of a pool that is served; `held`: what each should hold, by its name."""
    for name, contents in held.items():
        opened = pool.open(name)
        contents.compare(opened, f"{when}: {name}")
        opened.shutdown()


def _difference(found, expected, offset):
    for at in range(0, len(found), SECTOR):
        here, there = found[at : at + SECTOR], bytes(expected[offset + at : offset + at + SECTOR])
        if here != there:
            return f"differs at byte {offset + at}: found {here[:16].hex()}…, expected {there[:16].hex()}…"
    raise AssertionError("no sector differs")


def load(opened, contents, chance, operations, block_bytes):
    """Writes of 512 bytes to 256 KiB, whole blocks, zeroes, discards of whole blocks, flushes; much of it in one part after another,
    so that it meets again what it has written. Ends flushed."""
    size = len(contents.bytes)
    whole_blocks = size // block_bytes
    window = min(size, 48 * block_bytes)
    begin = 0
    for number in range(operations):
        if number % 25 == 0:
            begin = chance.randrange(0, size - window + 1, SECTOR)
        dice = chance.random()
        if dice < 0.10:
            first = chance.randrange(whole_blocks)
            length = min(chance.choice([1, 1, 2, 5]), whole_blocks - first) * block_bytes
            opened.trim(length, first * block_bytes)
            contents.bytes[first * block_bytes : first * block_bytes + length] = bytes(length)
        elif dice < 0.14:
            length, offset = _place(chance, begin, window, [512, 4096, 3 * block_bytes])
            opened.zero(length, offset)
            contents.bytes[offset : offset + length] = bytes(length)
        elif dice < 0.18:
            opened.flush()
        else:
            if dice < 0.35:
                length, offset = block_bytes, chance.randrange(whole_blocks) * block_bytes
            else:
                length, offset = _place(chance, begin, window, [512, 4096, 4096, 12800, 65536, 262144])
            data = chance.randbytes(length)
            opened.pwrite(data, offset)
            contents.bytes[offset : offset + length] = data
    if size % block_bytes:  # the short last block is always in use
        data = chance.randbytes(SECTOR)
        opened.pwrite(data, size - SECTOR)
        contents.bytes[size - SECTOR :] = data
    opened.flush()


def _place(chance, begin, window, lengths):
    length = min(chance.choice(lengths), window)
    return length, begin + chance.randrange(0, window - length + 1, SECTOR)
