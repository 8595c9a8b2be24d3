#!/usr/bin/env python3
"""A second, independent checker of dm-thin metadata (format version 2), for the tests.

    verify.py [--xml DUMP] IMAGE...

Shares no code with the crate: it reads images by the format's rules alone, checks everything they promise, recounts
all references and compares them with both space maps. With --xml (one image) it also compares every mapping with a
dump made by thin_dump. IMAGE and DUMP may be compressed (.zst, through the zstd command). Needs only python3.

Exit status: 0 sound; 3 sound, but some counts are above their references (leaks); 1 anything else.
"""
import argparse
import itertools
import re
import struct
import subprocess
import sys
from collections import Counter

BLOCK = 4096
PER_BITMAP = (BLOCK - 16) * 4
SALTS = {"superblock": 160774, "node": 121107, "index": 160478, "bitmap": 240779}
MAGIC = 27022010
INTERNAL, LEAF = 1, 2


class Damage(Exception):
    """The image breaks a rule of the format."""


def need(condition, message):
    if not condition:
        raise Damage(message)


# --- CRC-32C, register started at all ones and not complemented at the end ---------------------------------------


def crc_table_16_bits():
    """table[x] is the register after sixteen zero bits were shifted out of x."""
    step = []
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
        step.append(register)
    once = [step[x & 255] ^ (x >> 8) for x in range(65536)]
    return [step[x & 255] ^ (x >> 8) for x in once]


TABLE = crc_table_16_bits()


def crc_in_python(data):
    """Two bytes a step: about twice as fast as the textbook loop. `data` is of even length."""
    register, table = 0xFFFFFFFF, TABLE
    for pair in memoryview(data).cast("H") if sys.byteorder == "little" else struct.unpack(f"<{len(data) // 2}H", data):
        register = table[(register ^ pair) & 0xFFFF] ^ (register >> 16)
    return register


try:
    import crc32c as fast_crc32c  # much faster where it is installed; it complements

    def crc(data):
        return fast_crc32c.crc32c(bytes(data)) ^ 0xFFFFFFFF

except ImportError:
    crc = crc_in_python

assert crc_in_python(b"12345678") ^ 0xFFFFFFFF == 0x6087809A, "the CRC's own test vector"


# --- blocks and trees --------------------------------------------------------------------------------------------


def capacity(value_size):
    return (BLOCK - 32) // (8 + value_size) // 3 * 3


class Node:
    """One B-tree node, its header and keys already checked."""

    def __init__(self, number, raw, value_size):
        _, flags, own, count, limit, size, padding = struct.unpack_from("<IIQIIII", raw)
        need(own == number, f"node {number} says that it is block {own}")
        need(flags in (INTERNAL, LEAF), f"node {number}: flags {flags:#x}")
        self.is_leaf = flags == LEAF
        wanted = value_size if self.is_leaf else 8
        need(size == wanted, f"node {number}: value size {size}, not {wanted}")
        need(limit == capacity(wanted), f"node {number}: room for {limit} entries, not {capacity(wanted)}")
        need(count <= limit, f"node {number}: {count} entries where {limit} have room")
        need(padding == 0, f"node {number}: padding {padding:#x}")
        need(self.is_leaf or count > 0, f"node {number}: internal and empty")
        self.number, self.raw, self.limit = number, raw, limit
        self.keys = struct.unpack_from(f"<{count}Q", raw, 32)
        increasing = all(low < high for low, high in itertools.pairwise(self.keys))
        need(increasing, f"node {number}: keys do not strictly increase")

    def values(self, layout):
        size = struct.calcsize(layout)
        begin = 32 + 8 * self.limit
        return list(struct.iter_unpack(layout, self.raw[begin : begin + size * len(self.keys)]))

    def children(self):
        return [child for (child,) in self.values("<Q")]


class Summary:
    """What a walked subtree holds."""

    def __init__(self, first, last, entries, depth):
        self.first, self.last, self.entries, self.depth = first, last, entries, depth


class Image:
    """The metadata device: every block is read once, as one kind of thing, and each reference to it is counted."""

    def __init__(self, data):
        self.data = memoryview(data)
        self.blocks = len(data) // BLOCK
        self.kinds = {}
        self.nodes = {}
        self.summaries = {}
        self.metadata_references = Counter()
        self.data_references = Counter()

    def block(self, number, kind):
        need(number < self.blocks, f"{kind} block {number} is outside the device of {self.blocks} blocks")
        raw = self.data[number * BLOCK : (number + 1) * BLOCK]
        if number not in self.kinds:
            (stored,) = struct.unpack_from("<I", raw)
            need(crc(raw[4:]) ^ SALTS[kind] == stored, f"wrong checksum of {kind} block {number}")
            self.kinds[number] = kind
        need(self.kinds[number] == kind, f"block {number} used as {self.kinds[number]} and as {kind}")
        return raw

    def walk(self, root, value_size, on_leaf):
        """Counts one reference to the tree's root and walks what was not walked before; answers its Summary."""
        return self._walk(root, value_size, on_leaf, True, ())

    def _walk(self, number, value_size, on_leaf, is_root, above):
        self.metadata_references[number] += 1
        need(number not in above, f"node {number} is its own descendant")
        if (number, value_size) not in self.summaries:
            need(number not in self.nodes, f"node {number} used in trees with different values")
            node = self.nodes[number] = Node(number, self.block(number, "node"), value_size)
            summary = self._summarise(node, value_size, on_leaf, above + (number,))
            self.summaries[number, value_size] = summary
        node = self.nodes[number]
        full_enough = is_root or len(node.keys) >= node.limit // 3
        need(full_enough, f"node {number}: {len(node.keys)} entries, fewer than {node.limit // 3}")
        return self.summaries[number, value_size]

    def _summarise(self, node, value_size, on_leaf, above):
        if node.is_leaf:
            on_leaf(node)
            return Summary(*((node.keys[0], node.keys[-1]) if node.keys else (None, None)), len(node.keys), 0)
        below = [self._walk(child, value_size, on_leaf, False, above) for child in node.children()]
        for key, next_key, child in itertools.zip_longest(node.keys, node.keys[1:], below):
            need(child.depth == below[0].depth, f"node {node.number}: children of different depths")
            need(key <= child.first, f"node {node.number}: key {key} above its child's first {child.first}")
            ends = next_key is None or child.last < next_key
            need(ends, f"node {node.number}: a child's last key {child.last} reaches the next key {next_key}")
        entries = sum(child.entries for child in below)
        return Summary(below[0].first, below[-1].last, entries, below[0].depth + 1)

    def entries_under(self, root, layout):
        """All (key, value tuple) of a tree that was walked."""
        node = self.nodes[root]
        if node.is_leaf:
            yield from zip(node.keys, node.values(layout))
        else:
            for child in node.children():
                yield from self.entries_under(child, layout)

    def tree(self, root, layout):
        """Walks a tree of plain values; answers it as a dictionary."""
        self.walk(root, struct.calcsize(layout), lambda node: None)
        return dict(self.entries_under(root, layout))

    # Two bits an entry, the lower one weighing 2 and the upper one 1.
    FOUR_COUNTS = [bytes((byte >> 2 * e & 1) * 2 + (byte >> 2 * e + 1 & 1) for e in range(4)) for byte in range(256)]

    def bitmap(self, number):
        raw = self.block(number, "bitmap")
        unused, own = struct.unpack_from("<IQ", raw, 4)
        need((unused, own) == (0, number), f"bitmap {number}: header {unused} {own}")
        return b"".join(map(self.FOUR_COUNTS.__getitem__, raw[16:]))

    def superblock(self, number):
        raw = self.block(number, "superblock")
        names = ("own", "magic", "version", "time", "transaction", "held_root")
        values = struct.unpack_from("<8xQ16xQIIQQ", raw)
        fields = dict(zip(names, values))
        fields["data_map"] = struct.unpack_from("<4Q", raw, 64)
        fields["metadata_map"] = struct.unpack_from("<4Q", raw, 192)
        names = ("mapping_root", "details_root", "block_size", "metadata_block_size", "_", "_", "ro", "incompatible")
        fields.update(zip(names, struct.unpack_from("<QQIIQIII", raw, 320)))
        need(fields["own"] == number, f"superblock {number} says that it is block {fields['own']}")
        need(fields["magic"] == MAGIC, f"superblock {number}: magic {fields['magic']}")
        need(fields["version"] == 2, f"superblock {number}: version {fields['version']}")
        need(fields["metadata_block_size"] == 8, f"metadata block size {fields['metadata_block_size']}")
        size = fields["block_size"]
        need(128 <= size <= 2097152 and size % 128 == 0, f"data block size {size}")
        need(fields["ro"] == fields["incompatible"] == 0, f"features {fields['ro']:#x} {fields['incompatible']:#x}")
        need(fields["time"] < 1 << 24, f"time {fields['time']}")
        tails = (raw[96:192], raw[224:320], raw[364:])
        need(not any(map(any, tails)), f"superblock {number}: unused bytes are not zero")
        return fields


# --- the check ---------------------------------------------------------------------------------------------------


class Report:
    """What a sound image holds; `leaks` lists (space map, block, count, references)."""

    def __init__(self):
        self.superblock, self.devices, self.leaks, self.notes = {}, {}, [], []


def check(data):
    """Answers the Image and its Report, or raises Damage."""
    image, report = Image(data), Report()
    live = report.superblock = image.superblock(0)
    image.metadata_references[0] += 1
    report.devices = check_devices(image, live, live)
    if live["held_root"]:
        held = image.superblock(live["held_root"])
        image.metadata_references[live["held_root"]] += 1
        bare = not any(held["data_map"]) and not any(held["metadata_map"]) and not held["held_root"]
        need(bare, "the metadata snapshot names space maps or a further snapshot")
        check_devices(image, held, live)

    total, allocated, root, large_root = live["data_map"]
    index = image.tree(root, "<QII")
    large = {block: count for block, (count,) in image.tree(large_root, "<I").items()}
    need(sorted(index) == list(range(len(index))), "the data index has gaps")
    for location, _, _ in index.values():
        image.metadata_references[location] += 1
    bitmaps = [index[i] for i in range(len(index))]
    compare_counts(image, report, "data", total, allocated, bitmaps, large, image.data_references)

    total, allocated, root, large_root = live["metadata_map"]
    need(total <= image.blocks, f"the space map has {total} metadata blocks, the device {image.blocks}")
    image.metadata_references[root] += 1
    raw = image.block(root, "index")
    need(struct.unpack_from("<IQ", raw, 4) == (0, root), f"index block {root}: header")
    entries = list(struct.iter_unpack("<QII", raw[16:]))
    used = -(-total // PER_BITMAP)
    need(not any(map(any, entries[used:])), f"index block {root}: unused entries are not zero")
    large = {block: count for block, (count,) in image.tree(large_root, "<I").items()}
    for location, _, _ in entries[:used]:
        image.metadata_references[location] += 1
    compare_counts(image, report, "metadata", total, allocated, entries[:used], large, image.metadata_references)
    return image, report


def check_devices(image, superblock, live):
    """Walks both device trees of one superblock; answers {device: (root, mapped, transaction, created, snapshotted)}."""
    data_blocks, now = live["data_map"][0], live["time"]

    def on_mappings(node):
        for (value,) in node.values("<Q"):
            block, time = value >> 24, value & 0xFFFFFF
            need(block < data_blocks, f"node {node.number}: data block {block} of {data_blocks}")
            need(time <= now, f"node {node.number}: time {time} is after the pool's {now}")
            image.data_references[block] += 1

    def on_roots(node):
        for (root,) in node.values("<Q"):
            image.walk(root, 8, on_mappings)

    image.walk(superblock["mapping_root"], 8, on_roots)
    roots = {device: root for device, (root,) in image.entries_under(superblock["mapping_root"], "<Q")}
    details = image.tree(superblock["details_root"], "<QQII")
    need(set(roots) == set(details), f"mapped devices {set(roots) ^ set(details)} differ from the details")
    devices = {}
    for device, (mapped, transaction, created, snapshotted) in details.items():
        need(device < 1 << 24, f"device id {device}")
        found = image.summaries[roots[device], 8].entries
        need(mapped == found, f"device {device}: {mapped} blocks mapped by its details, {found} found")
        need(max(created, snapshotted) <= superblock["time"], f"device {device}: times {created} {snapshotted}")
        devices[device] = (roots[device], mapped, transaction, created, snapshotted)
    return devices


def compare_counts(image, report, name, total, allocated, bitmaps, large, references):
    need(len(bitmaps) == -(-total // PER_BITMAP), f"{name} map: {len(bitmaps)} bitmaps for {total} blocks")
    found_allocated, found_large = 0, 0
    for i, (location, free, none_free_before) in enumerate(bitmaps):
        counts = image.bitmap(location)
        begin, end = i * PER_BITMAP, min(PER_BITMAP, total - i * PER_BITMAP)
        need(not any(counts[end:]), f"{name} bitmap {i}: counts past the end of the device")
        found_free, first_free = counts.count(0), counts.find(0)
        need(free == found_free, f"{name} bitmap {i}: {free} free by the index, {found_free} found")
        first_free = PER_BITMAP if first_free < 0 else first_free
        need(none_free_before <= first_free, f"{name} bitmap {i}: hides free entry {first_free} < {none_free_before}")
        found_allocated += PER_BITMAP - found_free
        for offset in range(end):
            count, wanted = counts[offset], references.get(begin + offset, 0)
            if count == 3:
                count = large.get(begin + offset, 0)
                found_large += 1
                need(count > 2, f"{name} block {begin + offset}: no large count")
            need(count >= wanted, f"{name} block {begin + offset}: count {count}, but {wanted} references")
            if count > wanted:
                report.leaks.append((name, begin + offset, count, wanted))
    need(found_large == len(large), f"{name} map: {len(large)} large counts, {found_large} wanted")
    need(found_allocated == allocated, f"{name} map: {allocated} allocated by its root, {found_allocated} found")
    report.notes.append(f"{name} {allocated}/{total}")


# --- comparison with a dump --------------------------------------------------------------------------------------


def compare_with_dump(image, report, text):
    live, dumped, mappings = report.superblock, {}, []
    for tag, attributes in re.findall(r"<(superblock|device|range_mapping|single_mapping)\b([^>]*)>", text):
        fields = {name: value for name, value in re.findall(r'(\w+)="([^"]*)"', attributes)}
        if tag == "superblock":
            theirs = [int(fields[k]) for k in ("time", "transaction", "data_block_size", "nr_data_blocks")]
            ours = [live["time"], live["transaction"], live["block_size"], live["data_map"][0]]
            need(theirs == ours, f"the dump's superblock {theirs} is not {ours}")
        elif tag == "device":
            keys = ("mapped_blocks", "transaction", "creation_time", "snap_time")
            mappings = []
            dumped[int(fields["dev_id"])] = tuple(int(fields[k]) for k in keys), mappings
        elif tag == "range_mapping":
            keys = ("origin_begin", "data_begin", "length", "time")
            begin, block, length, time = (int(fields[k]) for k in keys)
            mappings.extend((begin + i, block + i, time) for i in range(length))
        else:
            mappings.append(tuple(int(fields[k]) for k in ("origin_block", "data_block", "time")))
    need(set(dumped) == set(report.devices), f"the dump has other devices: {set(dumped) ^ set(report.devices)}")
    for device, (root, *details) in report.devices.items():
        need(dumped[device][0] == tuple(details), f"device {device}: the dump says {dumped[device][0]}, not {details}")
        found = [(key, value >> 24, value & 0xFFFFFF) for key, (value,) in image.entries_under(root, "<Q")]
        need(found == dumped[device][1], f"device {device}: the dump has other mappings")
    report.notes.append(f"equal to the dump: {sum(len(maps) for _, maps in dumped.values())} mappings")


def read(path):
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], stdout=subprocess.PIPE, check=True).stdout
    with open(path, "rb") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xml", metavar="DUMP", help="also compare with a dump (one IMAGE)")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    arguments = parser.parse_args()
    if arguments.xml and len(arguments.images) != 1:
        parser.error("--xml goes with one IMAGE")
    status = 0
    for path in arguments.images:
        try:
            image, report = check(read(path))
            if arguments.xml:
                compare_with_dump(image, report, read(arguments.xml).decode())
        except (Damage, struct.error) as damage:
            print(f"DAMAGE {path}: {damage}")
            status = 1
            continue
        leaks = report.leaks
        verdict = f"LEAKS  {path}: {len(leaks)} counts above their references, e.g. %s block %d: %d, not %d; " % leaks[0] \
            if leaks else f"OK     {path}: "
        print(f"{verdict}{len(report.devices)} devices; {'; '.join(report.notes)}")
        status = status or (3 if leaks else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
