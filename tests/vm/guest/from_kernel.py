"""A pool that the kernel made, in uthin's hands and back: the story that several scenarios tell with different pools."""

from contents import Contents, load
from thin import Failed, KernelPool, UthinPool, check, say

SIZES = {0: 32 << 20, 1: (12 << 20) + 512}
SNAPSHOT = 2
TRANSACTION = 5


def fill(kernel, chance, block_bytes, operations=80):
    """Two thins and a snapshot, written, discarded and shared; the transaction id set. Returns what each number holds."""
    held = {number: Contents(size) for number, size in SIZES.items()}
    for number, size in SIZES.items():
        load(kernel.create_thin(number, size), held[number], chance, operations, block_bytes)
    kernel.create_snap(SNAPSHOT, 0, SIZES[0])
    held[SNAPSHOT] = held[0].copy()
    for number in (0, SNAPSHOT):
        load(kernel.thins[number], held[number], chance, operations // 2, block_bytes)
    kernel.message(f"set_transaction_id 0 {TRANSACTION}")
    return held


def compare(kernel, held, when):
    for number, contents in held.items():
        thin = kernel.thins.get(number) or kernel.thin(number, len(contents.bytes))
        contents.compare(thin, f"{when}: the kernel's thin {number}")
    say(f"{when}: equal in the kernel:", ", ".join(f"{number} {held[number].checksum()}" for number in held))


def use(folder, devices, held, chance, block_bytes, may_leak=False, transaction=TRANSACTION):
    """uthin finds the volumes by number, reads them, writes them, takes a snapshot by name; `held` is brought up to date.
    Returns what the kernel's status must say afterwards."""
    with UthinPool(folder, *devices, adopt=True) as pool:
        found = pool.status()["transaction_id"]
        if found != transaction:
            raise Failed(f"uthin sees transaction id {found}, expected {transaction}")
        pool.serve()
        volumes = pool.volumes()
        if set(volumes) != {str(number) for number in held}:
            raise Failed(f"uthin lists {sorted(volumes)}, the kernel made {sorted(held)}")
        for number, contents in held.items():
            _read_and_write(pool, volumes[str(number)], contents, chance, block_bytes)
        pool.snapshot("0", "ours")
        number = pool.volumes()["ours"]["id"]
        held[number] = held[0].copy()
        _read_and_write(pool, pool.volumes()["0"], held[0], chance, block_bytes)
        pool.close()
        if not may_leak:
            check(devices[0])
        say("written and closed by uthin:", *pool.dm_line())
        return pool.handed_over()


def _read_and_write(pool, volume, contents, chance, block_bytes):
    what, size = f"uthin's volume {volume['name']}", volume["size_bytes"]
    opened = pool.open(volume["name"])
    part = contents.beginning(size, what)
    part.compare(opened, what)
    load(opened, part, chance, 40, block_bytes)
    part.compare(opened, f"{what}, written")
    contents.bytes[:size] = part.bytes
    opened.shutdown()


def round_trip(folder, devices, chance, block_bytes):
    """Kernel, uthin, kernel: all of it with a pool that was left in order."""
    metadata, data = devices
    with KernelPool(metadata, data, block_bytes) as kernel:
        held = fill(kernel, chance, block_bytes)
    check(metadata)
    say("made by the kernel and checked")
    handed_over = use(folder, devices, held, chance, block_bytes)
    with KernelPool(metadata, data, block_bytes) as kernel:
        kernel.same_as(handed_over)
        compare(kernel, held, "back")
        load(kernel.thins[0], held[0], chance, 30, block_bytes)
        compare(kernel, held, "written once more")
    check(metadata, thorough=True)
    return held
