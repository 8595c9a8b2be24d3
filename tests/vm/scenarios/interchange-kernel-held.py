"""A pool of the kernel with a metadata snapshot held: uthin writes all over the volumes, and what the snapshot shows stays as it is."""

import random

import from_kernel
from contents import load
from devices import ram_disks
from thin import Failed, KernelPool, check, dump, main, say

BLOCK = 64 << 10


def story(folder, _):
    data, metadata = ram_disks(2, 128 << 20)
    chance = random.Random(4)
    with KernelPool(metadata, data, BLOCK) as kernel:
        held = from_kernel.fill(kernel, chance, BLOCK)
        kernel.message("reserve_metadata_snap")
        load(kernel.thins[0], held[0], chance, 20, BLOCK)
        root = kernel.status()["held"]
    if root == "-":
        raise Failed("the kernel holds no metadata snapshot")
    check(metadata)
    frozen = dump(metadata, "--metadata-snap")

    handed_over = from_kernel.use(folder, (metadata, data), held, chance, BLOCK)
    if handed_over[3] != root:
        raise Failed(f"uthin's status says {handed_over[3]} is held, the kernel's said {root}")
    if dump(metadata, "--metadata-snap") != frozen:
        raise Failed("the metadata snapshot has changed")
    say("the metadata snapshot shows what it did:", frozen.count("<"), "elements")

    with KernelPool(metadata, data, BLOCK) as kernel:
        kernel.same_as(handed_over)
        from_kernel.compare(kernel, held, "back")
        kernel.message("release_metadata_snap")
        load(kernel.thins[from_kernel.SNAPSHOT], held[from_kernel.SNAPSHOT], chance, 30, BLOCK)
        from_kernel.compare(kernel, held, "released")
    check(metadata, thorough=True)
    print(f"metadata snapshot {root} kept while uthin wrote {len(held)} volumes, then released by the kernel")


if __name__ == "__main__":
    main(story)
