"""uthin is killed with SIGKILL under load, snapshots among it; the kernel's dm-thin opens what is there and finds every flushed write.

Twice: the second time after the kernel has written. Then uthin opens it again.
"""

import random

from contents import Contents, load
from devices import ram_disks
from stamps import stamps_in
from thin import Failed, KernelPool, UthinPool, check, main, say
from torture import VOLUME_BYTES, Torture

BLOCK = 64 << 10
ROUNDS = 2
SECONDS = 6


def compare_in_kernel(torture, kernel, numbers, when):
    def read(volume):
        return stamps_in(kernel.thin(numbers[volume]["id"], VOLUME_BYTES).pread(VOLUME_BYTES, 0))

    torture.compare(f"{when}: in the kernel", read)


def story(folder, _):
    metadata, data = ram_disks(2, 512 << 20)[::-1]
    chance = random.Random(6)
    with UthinPool(folder, metadata, data, "--journal", "none") as pool:
        pool.create("v1", VOLUME_BYTES)
        pool.create("quiet", 8 << 20)
        quiet = Contents(8 << 20)
        torture = Torture(pool, chance, others=["quiet"])
        for number in range(ROUNDS):
            pool.serve()
            opened = pool.open("quiet")
            load(opened, quiet, chance, 40, BLOCK)
            torture.load(SECONDS)
            say(f"killed after {torture.model.next_stamp} writes, snapshots: {sorted(torture.snapshots)}")
            check(metadata)
            torture.settle(f"round {number}")
            numbers = pool.volumes()
            with KernelPool(metadata, data, BLOCK) as kernel:
                kernel.same_as(pool.handed_over())
                compare_in_kernel(torture, kernel, numbers, f"round {number}")
                thin = kernel.thin(numbers["quiet"]["id"], 8 << 20)
                quiet.compare(thin, f"round {number}: the kernel's thin of the volume at rest")
                load(thin, quiet, chance, 40, BLOCK)
            check(metadata)
            say("the kernel found every flushed write, and wrote")
        pool.serve()
        torture.compare_served("back")
        opened = pool.open("quiet")
        quiet.compare(opened, "back: the volume at rest")
        opened.shutdown()
        pool.close()
        check(metadata, thorough=True)
    writes, commands = torture.model.next_stamp, torture.operations
    if writes < 200 or not commands:
        raise Failed(f"only {writes} writes and {commands} commands: this shows nothing")
    print(f"killed {ROUNDS} times, {writes} writes, {commands} commands: nothing flushed was lost")


if __name__ == "__main__":
    main(story)
